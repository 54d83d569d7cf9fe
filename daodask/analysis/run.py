"""Where reductions run: one after another, on threads, or as few tasks of a Dask cluster. The one place with dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pandas as pd

from daodask._connection import cluster_errors, require_connection, scheduler_address
from daodask._environment import check_cluster
from daodask._format import plural
from daodask.analysis.blocks import MemoryBlock, Reading, StoredBlock
from daodask.analysis.reductions import Reducer, fold
from daodask.analysis.transforms import Normalise, Transform
from daodask.blocks import BlockAddress
from daodask.errors import SpecError, UnknownNameError, suggest
from daodask.runners import on_worker
from daodask.store import Store
from daodask.types import CSR

if TYPE_CHECKING:
    import dask.array as da
    import dask.dataframe as dd
    from dask.delayed import Delayed
    from distributed import Client

__all__ = ["Plan", "compute", "map_blocks", "plan_reduction", "resolve_transform"]

P = TypeVar("P")
R = TypeVar("R")

#: Tasks for each thread that there is, so that none is left waiting for the last; and cells that a task has at most.
_TASKS_PER_THREAD: Final = 4
_MOST_CELLS: Final = 2**20
#: Results that one task combines.
_FAN_IN: Final = 8
#: What to do where the cluster ended it.
_AGAIN: Final = "do the same again"


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """Which blocks are reduced by which task.

    Parameters
    ----------
    reading
        What is read of each block, and how.
    tasks
        Neighbouring blocks of each task, in store order.
    """

    reading: Reading
    tasks: tuple[tuple[BlockAddress, ...], ...]

    @property
    def depth(self) -> int:
        """How often results are combined, one after another, on a cluster."""
        depth, width = 0, len(self.tasks)
        while width > 1:
            depth, width = depth + 1, -(-width // _FAN_IN)
        return depth

    def __repr__(self) -> str:
        blocks = [block for task in self.tasks for block in task]
        cells = plural(sum(block.n_obs for block in blocks), "cell")
        genes = plural(self.reading.n_vars, "gene")
        return (
            f"{self.reading.matrix} of {cells} × {genes} in {plural(len(blocks), 'block')}, read by "
            f"{plural(len(self.tasks), 'task')} and combined in {plural(self.depth, 'step')}"
        )


def plan_reduction(
    store: Store,
    columns: Sequence[str] = (),
    *,
    layer: str | None = None,
    transform: Transform = None,
    totals_of: Store | None = None,
    measured_only: bool = False,
    threads: int = 1,
) -> Plan:
    """Decide what is read, and by which task; reads nothing.

    Parameters
    ----------
    store
        The cells and genes.
    columns
        Obs columns that blocks bring.
    layer
        The layer to read in place of ``X``.
    transform
        Of the values.
    totals_of
        Whose genes are the selected ones, of which ``Normalise(totals="selected")`` speaks; those of ``store`` by
        default.
    measured_only
        Whether blocks tell which genes were measured.
    threads
        Threads that there are for the tasks.

    Raises
    ------
    UnknownNameError
        There is no such obs column or layer.
    SpecError
        Values that are no counts are to be normalised.
    """
    for column in columns:
        if column not in store.obs_columns:
            raise UnknownNameError(f"obs has no column {column!r}; {suggest(column, store.obs_columns)}")
    if layer is not None:
        store.layers[layer]  # refuses a layer that some dataset lacks
    matrix = "X" if layer is None else f"layers/{layer}"
    if isinstance(transform, Normalise):
        _require_counts(store, matrix)
    reading = Reading(
        matrix,
        store.selection.n_stored_vars,
        store.selection.genes,
        store.served_dtype(matrix).name,
        tuple(store.obs_schema),
        store.dataset_ids,
        tuple(columns),
        transform,
        _counted(totals_of or store, transform),
        measured_only,
    )
    return Plan(reading, _share_out(store.blocks, threads))


def _require_counts(store: Store, matrix: str) -> None:
    for dataset in store.selection.datasets:
        info = store.snapshot.dataset[dataset].matrix
        if matrix in info and info[matrix].kind != "counts":
            raise SpecError(
                f"expected counts to normalise, but {matrix} of dataset {dataset!r} is {info[matrix].kind!r}; leave "
                f"the values as they are with transform=None, or leave the dataset out"
            )


def _counted(store: Store, transform: Transform) -> Any:
    genes = store.selection.genes
    if genes is None or not isinstance(transform, Normalise) or transform.totals == "all":
        return None
    counted = np.zeros(store.selection.n_stored_vars)
    counted[genes] = 1.0
    return counted


def _share_out(blocks: Sequence[BlockAddress], threads: int) -> tuple[tuple[BlockAddress, ...], ...]:
    """Runs of neighbouring blocks of about as many cells each."""
    if not blocks:
        return ()
    ends = np.cumsum([block.n_obs for block in blocks])
    n_tasks = min(len(blocks), max(_TASKS_PER_THREAD * threads, -(-int(ends[-1]) // _MOST_CELLS)))
    # A block is in the share in which its middle is.
    middles = ends - np.array([block.n_obs for block in blocks]) / 2
    share = (middles * n_tasks / max(1, int(ends[-1]))).astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(share)) + 1).tolist(), len(blocks)]
    return tuple(tuple(blocks[a:b]) for a, b in pairwise(cuts))


def compute(
    store: Store,
    reducer: Reducer[P, R],
    *,
    layer: str | None = None,
    transform: Transform = None,
    totals_of: Store | None = None,
    measured_only: bool = False,
    client: Client | None = None,
    threads: int = 0,
) -> R:
    """Reduce a store (computes); arguments are those of :func:`plan_reduction`.

    Parameters
    ----------
    store
        The cells and genes.
    reducer
        What is done to them.
    layer, transform, totals_of, measured_only
        As there.
    client
        A Dask client: its workers do it.
    threads
        That do it where there is no client; as many as there are processors by default.

    Raises
    ------
    ClusterError
        The cluster has other versions, or the connection to its scheduler was lost: at once where it was killed, after
        Dask's own time limit (``distributed.comm.timeouts.tcp``: 30 s) where it is silent. Workers that die are no
        error as long as others come, and do not die of the same blocks.
    """
    if threads < 0:
        raise SpecError(f"expected a number of threads, or 0 for one per processor, got {threads}")
    if client is not None:
        check_cluster(client)
        with cluster_errors(client, _AGAIN):
            threads = max(1, sum(client.nthreads().values()))
    threads = threads or len(os.sched_getaffinity(0))
    transform = resolve_transform(totals_of or store, transform, layer=layer, client=client, threads=threads)
    options: dict[str, Any] = {
        "layer": layer,
        "transform": transform,
        "totals_of": totals_of,
        "measured_only": measured_only,
    }
    plan = plan_reduction(store, reducer.columns, threads=threads, **options)
    if not plan.tasks:
        nothing: Any = (0, store.n_vars)
        empty = MemoryBlock(CSR(nothing, dtype=plan.reading.dtype), store.empty_obs[list(reducer.columns)])
        return reducer.finalise(reducer.combine([reducer.block(empty)]))
    if client is not None:
        with cluster_errors(client, _AGAIN):
            return _on_cluster(reducer, plan, client)
    return reducer.finalise(_on_threads(reducer, plan, threads))


def resolve_transform(
    store: Store, transform: Transform, *, layer: str | None, client: Client | None, threads: int
) -> Transform:
    """The transform with a number in place of the median of the cells' totals, for which they are read (computes)."""
    from daodask.analysis.cells import CellStatistics

    if not isinstance(transform, Normalise) or transform.target_sum is not None:
        return transform
    whole = replace(store, selection=replace(store.selection, genes=None))
    counted = whole if transform.totals == "all" else store
    totals = compute(counted, CellStatistics(), layer=layer, client=client, threads=threads)["sum"]
    # As scanpy takes it: of cells that have a count.
    positive = totals[totals > 0]
    return replace(transform, target_sum=float(np.median(positive)) if len(positive) else 1.0)


def _reduce_task(reducer: Reducer[P, Any], reading: Reading, blocks: Sequence[BlockAddress]) -> P:
    return fold(reducer, [part for block in blocks for part in StoredBlock(reading, block).by_study()])


def _on_threads(reducer: Reducer[P, Any], plan: Plan, threads: int) -> P:
    partials: list[P] = []
    for partial in _in_order(lambda task: _reduce_task(reducer, plan.reading, task), plan.tasks, threads):
        partials.append(partial)
        if len(partials) == _FAN_IN:
            partials = [reducer.combine(partials)]
    return reducer.combine(partials)


def _in_order(function: Callable[[Any], P], tasks: Sequence[Any], threads: int) -> Iterator[P]:
    if threads == 1:
        yield from map(function, tasks)
        return
    with ThreadPoolExecutor(threads, "daodask-reduce") as executor:
        yield from executor.map(function, tasks)


def _on_cluster(reducer: Reducer[P, R], plan: Plan, client: Client) -> R:
    """A task for each run of blocks, and a tree of tasks that combine; what is done with is released on the way."""
    token, address = os.urandom(8).hex(), scheduler_address(client)
    shared, keys = f"share-plan-{token}", [f"reduce-blocks-{token}-{i}" for i in range(len(plan.tasks))]
    # What all tasks need is one node of the graph, and travels once to each worker.
    graph: dict[str, Any] = {shared: (_together, reducer, plan.reading)}
    for key, blocks in zip(keys, plan.tasks, strict=True):
        graph[key] = (on_worker, _shared_task, shared, list(blocks))
    level = 0
    while level == 0 or len(keys) > 1:
        level += 1
        groups = [keys[i : i + _FAN_IN] for i in range(0, len(keys), _FAN_IN)]
        keys = [f"combine-parts-{token}-{level}-{i}" for i in range(len(groups))]
        graph |= {key: (_combine_task, shared, group) for key, group in zip(keys, groups, strict=True)}
    final = f"finalise-{token}"
    graph[final] = (_final_task, shared, keys[0])
    future = client.get(graph, final, sync=False)
    require_connection(client, address, f"start a cluster, and {_AGAIN}")
    result: R = future.result()
    return result


def _together(reducer: Reducer[P, Any], reading: Reading) -> tuple[Reducer[P, Any], Reading]:
    return reducer, reading


def _shared_task(shared: tuple[Reducer[P, Any], Reading], blocks: Sequence[BlockAddress]) -> P:
    return _reduce_task(*shared, blocks)


def _combine_task(shared: tuple[Reducer[P, Any], Reading], partials: Sequence[P]) -> P:
    return shared[0].combine(partials)


def _final_task(shared: tuple[Reducer[P, R], Reading], partial: P) -> R:
    return shared[0].finalise(partial)


# -- functions of the user's on each block -----------------------------------------------------------------------------


def map_blocks(
    store: Store,
    fn: Callable[[CSR, pd.DataFrame, pd.DataFrame], Any],
    *,
    obs: Sequence[str] | None = None,
    layer: str | None = None,
    transform: Normalise | None = None,
    meta: Any = None,
) -> list[Delayed] | dd.DataFrame | da.Array:
    """Apply a function to each block of a store: X, obs and var of the same cells (lazy).

    Parameters
    ----------
    store
        The cells and genes.
    fn
        Called with X (CSR, ``(cells, genes)``), obs (indexed by row numbers in the store) and var of a block.
    obs
        Columns that obs has; all by default, none are read with ``()``.
    layer
        The layer to read in place of ``X``.
    transform
        Of the values of X, such as :class:`~daodask.Normalise`.
    meta
        What ``fn`` returns, without a row: a DataFrame, or an array of as many dimensions, of which the first is cells.

    Returns
    -------
    list of Delayed, dask DataFrame or dask Array
        A piece for each block of ``store.X``, in order. Without ``meta`` a list; with a DataFrame one of dask's, of
        unknown divisions; with an array one of dask's, with a row for each cell.

    Raises
    ------
    UnknownNameError
        There is no such obs column or layer.
    SpecError
        ``meta`` is neither a DataFrame nor an array; or values that are no counts are to be normalised, or by the
        median of their totals, which is not known block by block.

    Examples
    --------
    >>> def depth(X, obs, var):
    ...     return np.asarray(X.sum(axis=1)).ravel()
    >>> daodask.map_blocks(store, depth, obs=(), meta=np.empty(0, "f4"))  # doctest: +SKIP
    """
    if isinstance(transform, Normalise) and transform.target_sum is None:
        raise SpecError("expected a target_sum: the median of totals is not known block by block; give a number")
    plan = plan_reduction(store, store.obs_columns if obs is None else obs, layer=layer, transform=transform)
    import dask

    shared = dask.delayed((fn, plan.reading, store.var), pure=False, traverse=False)
    call = dask.delayed(_map_task, pure=False, traverse=False)
    blocks = [call(shared, block, dask_key_name=f"map-{os.urandom(8).hex()}") for block in store.blocks]
    if meta is None:
        return blocks
    if isinstance(meta, pd.DataFrame):
        import dask.dataframe as dd

        frame: dd.DataFrame = (
            dd.from_delayed(blocks, meta=meta, verify_meta=False) if blocks else dd.from_pandas(meta, npartitions=1)
        )
        return frame
    if not isinstance(meta, np.ndarray):
        raise SpecError(f"expected meta to be a DataFrame or an array without a row, got {type(meta).__name__}")
    import dask.array as da

    shape = meta.shape[1:]
    pieces = [
        da.from_delayed(piece, shape=(block.n_obs, *shape), dtype=meta.dtype, meta=meta[:0])
        for piece, block in zip(blocks, store.blocks, strict=True)
    ]
    array: da.Array = da.concatenate(pieces) if pieces else da.from_array(meta[:0])
    return array


def _map_task(shared: tuple[Callable[..., Any], Reading, pd.DataFrame], address: BlockAddress) -> Any:
    fn, reading, var = shared
    block = StoredBlock(reading, address)
    return fn(block.X, block.obs, var)
