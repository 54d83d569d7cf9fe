"""The loader: a re-iterable of mini-batches that can stop anywhere and go on from there."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.utils import parse_bytes

from daodask._format import human_bytes
from daodask.batches.columns import read_labels
from daodask.batches.measured import read_measured
from daodask.batches.plan import LoaderPlan, Mixing, mixing
from daodask.batches.readers import ClusterReader, LocalReader, Reader
from daodask.batches.schedule import (
    Cells,
    Epoch,
    Labels,
    Schedule,
    Window,
    most_rows,
    n_batches,
    named_schedule,
    stable_repr,
)
from daodask.batches.window import Batch, Request
from daodask.buffers import BufferPool
from daodask.errors import SpecError, StateError, UnknownNameError, suggest
from daodask.store import Store
from daodask.types import Int64Array

if TYPE_CHECKING:
    from distributed import Client

    from daodask.batches.jax import JaxBatches
    from daodask.batches.tensorflow import TensorFlowDataset
    from daodask.batches.torch import TorchBatches

__all__ = ["BatchLoader"]

_MOST_READ_AHEAD = 4
#: Windows whose batches a plan looks at.
_PLAN_WINDOWS = 4
_DTYPES = ("float32", "float64", "stored")
#: Arguments that are attributes of the same name.
_SAME_NAME = (
    "batch_size",
    "schedule",
    "obs",
    "seed",
    "dense",
    "dtype",
    "drop_last",
    "measured",
    "fn",
    "memory",
    "rank",
    "world_size",
    "client",
    "threads",
)
#: Of the index of a stored value, handed out.
_INDEX_BYTES = 4


class BatchLoader:
    """Mini-batches of a store's selected cells; each pass is a new epoch with a fresh order.

    Parameters
    ----------
    store
        The cells and genes to iterate over: any store, however subset.
    batch_size
        Cells per batch; only the last of an epoch may be smaller.
    schedule
        ``"shuffled"``, ``"sequential"``, ``"full"``, or an object such as ``Shuffled(run_rows=1)``, ``Balanced(by=…)``,
        ``Grouped(by=…)`` or one of your own with the two members of :class:`~daodask.batches.schedule.Schedule`.
    layer
        The layer to read in place of ``X``.
    obs
        Columns of obs that each batch brings.
    seed
        Together with the epoch's number it decides the order, on every machine.
    dense
        Hand out X as a dense array.
    dtype
        Of X: ``"float32"``, ``"float64"``, or ``"stored"`` for what is on disk (uint16 for most counts), which is half
        of the memory; arithmetic on it overflows silently. By default float32, but float64 where that would round a
        value.
    drop_last
        Leave out the last batch where it is smaller.
    measured
        Let batches tell which genes each cell's study measured.
    fn
        Applied to each batch where it is made, beside the consumer: on the reading thread, or on the cluster. What it
        returns is handed out.
    memory
        Budget for windows: bytes or a text such as ``"1GiB"``. It decides how many are read ahead. With a ``client``
        windows are in the memory of its workers, and this is passed over.
    rank, world_size
        Which of how many processes this is that share each epoch: all get as many batches.
    client
        A Dask client: windows are then read by its workers.
    threads
        That decode where there is no client; as many as there are processors by default.

    Raises
    ------
    UnknownNameError
        There is no such obs column or layer.
    SpecError
        Arguments that can't be meant, or a window that does not fit the memory.

    Examples
    --------
    >>> loader = daodask.BatchLoader(store, batch_size=4096, obs=["cell_type"])  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     batch.X, batch.obs["cell_type"], batch.index
    """

    def __init__(
        self,
        store: Store,
        batch_size: int = 4096,
        *,
        schedule: str | Schedule = "shuffled",
        layer: str | None = None,
        obs: Sequence[str] = (),
        seed: int = 0,
        dense: bool = False,
        dtype: str | None = None,
        drop_last: bool = False,
        measured: bool = False,
        fn: Callable[[Batch], Any] | None = None,
        memory: int | str = "1GiB",
        rank: int = 0,
        world_size: int = 1,
        client: Client | None = None,
        threads: int = 0,
    ) -> None:
        if batch_size < 1:
            raise SpecError(f"expected a batch_size of at least 1, got {batch_size}")
        if seed < 0:
            raise SpecError(f"expected a seed of at least 0, got {seed}")
        if not 0 <= rank < world_size:
            raise SpecError(f"expected a rank from 0 to {world_size - 1} (world_size {world_size}), got {rank}")
        if dtype not in (None, *_DTYPES):
            raise SpecError(f"expected a dtype out of {', '.join(_DTYPES)}, got {dtype!r}; {suggest(dtype, _DTYPES)}")
        if isinstance(obs, str):
            obs = [obs]
        if layer is not None:
            store.layers[layer]  # refuses a layer that some dataset lacks before anything is read
        self.store = store
        self.batch_size = batch_size
        self.schedule = named_schedule(schedule)
        self.obs = tuple(obs)
        self.matrix = "X" if layer is None else f"layers/{layer}"
        self.seed = seed
        self.dense = dense
        self.dtype = dtype
        self.drop_last = drop_last
        self.measured = measured
        self.fn = fn
        self.memory = int(parse_bytes(memory))
        self.rank = rank
        self.world_size = world_size
        self.client = client
        self.threads = threads
        self._state = _State()
        self._newest: object = None
        for column in (*self.obs, *self.schedule.columns):
            if column not in store.obs_columns:
                raise UnknownNameError(f"obs has no column {column!r}; {suggest(column, store.obs_columns)}")

    def copy(self, **changes: Any) -> BatchLoader:
        """A loader of the same cells with some arguments changed, at the same place."""
        arguments = {name: getattr(self, name) for name in _SAME_NAME}
        layer = None if self.matrix == "X" else self.matrix.removeprefix("layers/")
        loader = BatchLoader(self.store, **{"layer": layer, **arguments, **changes})
        loader._state = self._state
        if loader.schedule.columns == self.schedule.columns and "_cells" in self.__dict__:
            loader.__dict__["_cells"] = self._cells  # labels, which were read already
        return loader

    # -- iterating -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        state = self._state.next_pass()
        self._state, self._newest = state, object()
        windows, skipped = _after(self._windows(state.epoch), state.batches_done)
        return self._iterate(state, windows, skipped, self._newest)

    def _iterate(self, state: _State, windows: Iterator[Window], skipped: int, own: object) -> Iterator[Any]:
        """Batches of some windows but for the first few; the state moves on with each that is handed out."""
        for batches in self._reader.read(self.store, windows, self._request):
            remaining = deque(islice(batches, skipped, None))
            # The list would keep the window's memory until the next one is there.
            batches.clear()
            skipped = 0
            while remaining:
                state = replace(state, batches_done=state.batches_done + 1)
                # Of several passes at once only the newest is the one that a state speaks of.
                if self._newest is own:
                    self._state = state
                yield remaining.popleft()
        if self._newest is own:
            self._state = _State(state.epoch + 1)

    def __len__(self) -> int:
        return n_batches(self.schedule, self._cells, self.batch_size, self._epoch(self.epoch))

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next pass is, or goes on with."""
        return self._state.next_pass().epoch

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._state = _State(number)

    def _epoch(self, number: int) -> Epoch:
        return Epoch(self.seed, number, self.rank, self.world_size, self.drop_last)

    def _windows(self, epoch: int) -> Iterator[Window]:
        return iter(self.schedule.windows(self._cells, self.batch_size, self._epoch(epoch)))

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.store.n_obs, {column: self._labels(column) for column in self.schedule.columns})

    def _labels(self, column: str) -> Labels:
        return read_labels(self.store, column)

    @property
    def x_dtype(self) -> np.dtype[Any]:
        """Dtype of the values that batches have."""
        if self.dtype == "stored":
            return self.store.stored_dtype(self.matrix)
        return self.store.served_dtype(self.matrix) if self.dtype is None else np.dtype(self.dtype)

    @cached_property
    def _request(self) -> Request:
        measured = read_measured(self.store) if self.measured else None
        dtype = self.x_dtype.name
        return Request(self.matrix, self.obs, self.dense, dtype, measured, self.fn)

    @cached_property
    def _reader(self) -> Reader:
        if self.client is not None:
            return ClusterReader(self.client)
        return LocalReader(self._read_ahead, BufferPool(self.memory), self.threads)

    # -- memory --------------------------------------------------------------------------------------------------------

    @cached_property
    def _window_bytes(self) -> int:
        """Expected memory of the largest window."""
        rows = most_rows(self.schedule, self._cells, self.batch_size, self._epoch(self.epoch))
        itemsize = self.x_dtype.itemsize
        if self.dense:
            return rows * self.store.n_vars * itemsize
        stored = self.store.snapshot.dataset
        infos = [stored[i] for i in self.store.selection.datasets]
        n_obs = max(1, sum(i.n_obs for i in infos))
        elements = rows * sum(i.matrix[self.matrix].nnz for i in infos) / n_obs
        # Selected genes are picked out of all of them, and both are there for a moment.
        chosen = self.store.n_vars / max(1, self.store.selection.n_stored_vars)
        return int(elements * (itemsize + _INDEX_BYTES) * (1 if self.store.selection.genes is None else 1 + chosen))

    @cached_property
    def _read_ahead(self) -> int:
        """Windows beside the one that is consumed and the one that takes its place."""
        windows = self.memory // max(1, self._window_bytes + self._fetched_bytes)
        if windows < 2:
            raise SpecError(
                f"expected two windows within memory={human_bytes(self.memory)}, one to consume and one to read, got "
                f"about {human_bytes(self._window_bytes)} for each; give more memory, or a schedule with a smaller "
                f"window_rows"
            )
        return min(_MOST_READ_AHEAD, windows - 2)

    @cached_property
    def _fetched_bytes(self) -> int:
        """Expected memory of a window's chunks as they come from a bucket; of a local file one at a time is there."""
        if self.store.location.is_local:
            return 0
        rows = most_rows(self.schedule, self._cells, self.batch_size, self._epoch(self.epoch))
        infos = [self.store.snapshot.dataset[i] for i in self.store.selection.datasets]
        return rows * sum(i.nbytes for i in infos) // max(1, sum(i.n_obs for i in infos))

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: plain values, to be saved with a model's checkpoint.

        Taken while iterating, it counts the batches handed out; the batches after them come once more from a loader
        that it is loaded into, in this process or another.
        """
        return {
            "epoch": self._state.epoch,
            "batches_done": self._state.batches_done,
            "world_size": self.world_size,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next pass.

        Raises
        ------
        StateError
            The state is of another selection, schedule, seed or batch size; or it is from within an epoch that was
            shared by another number of ranks: such an epoch has to be ended, or begun anew, with as many ranks as
            before.
        """
        if not {"epoch", "batches_done", "world_size", "fingerprint"} <= state.keys():
            raise StateError(f"expected what state_dict() of a loader returns, got {dict(state)!r}")
        if state["fingerprint"] != self._fingerprint:
            raise StateError(
                "expected the state of a loader over the same cells with the same batch_size, schedule, seed and "
                "drop_last, got that of another; make the loader as the saved one was made"
            )
        if state["batches_done"] and state["world_size"] != self.world_size:
            raise StateError(
                f"expected world_size {state['world_size']}, which the epoch was begun with, got {self.world_size}; "
                f"end the epoch with as many ranks, or set batches_done to 0 to begin it anew"
            )
        self._state = _State(int(state["epoch"]), int(state["batches_done"]), fresh=True)

    @cached_property
    def _fingerprint(self) -> str:
        """SHA-256 of all that decides what the batches of an epoch are."""
        digest = hashlib.sha256()
        for text in (self.batch_size, stable_repr(self.schedule), self.seed, self.drop_last, self.matrix):
            digest.update(f"{text}|".encode())
        for part, info in zip(self.store.selection.parts, self.store.dataset_infos, strict=True):
            digest.update(f"{info.fingerprint}|{'all' if part.rows is None else ''}".encode())
            digest.update(b"" if part.rows is None else part.rows.tobytes())
        return digest.hexdigest()

    # -- looking -------------------------------------------------------------------------------------------------------

    def plan(self, mixing_by: str | Sequence[str] = "dataset") -> LoaderPlan:
        """What the next epoch will read, and how well its batches are mixed.

        Parameters
        ----------
        mixing_by
            Obs columns to measure mixing by; ``"dataset"`` needs no read, others are read (computes).
        """
        columns = [mixing_by] if isinstance(mixing_by, str) else list(mixing_by)
        first = list(islice(self._windows(self.epoch), _PLAN_WINDOWS))
        infos = [self.store.snapshot.dataset[i] for i in self.store.selection.datasets]
        share = self.store.n_obs / max(1, sum(i.n_obs for i in infos))
        in_all = len(self)
        per_window = max(1.0, float(np.mean([w.n_batches for w in first] or [1])))
        return LoaderPlan(
            schedule=self.schedule,
            n_obs=self.store.n_obs,
            n_batches=in_all,
            n_windows=math.ceil(in_all / per_window),
            window_bytes=self._window_bytes,
            read_ahead=self._read_ahead,
            memory=self.memory,
            runs=float(np.mean([_count_runs(w.positions) for w in first] or [0])),
            read_bytes=int(sum(i.nbytes for i in infos) * min(1.0, share) / self.world_size),
            mixing=tuple(self._mixing(column, first) for column in columns),
        )

    def _mixing(self, column: str, windows: Sequence[Window]) -> Mixing:
        if column == "dataset":
            sizes = [part.n_obs for part in self.store.selection.parts]
            labels = Labels(self.store.dataset_ids, np.repeat(np.arange(len(sizes), dtype=np.int64), sizes))
        else:
            labels = self._labels(column)
        return mixing(column, labels, windows, self.seed)

    def __repr__(self) -> str:
        n_obs, n_vars = self.store.shape
        return (
            f"<BatchLoader: {self._count} of {self.batch_size:,} out of {n_obs:,} cells x {n_vars:,} genes, "
            f"{self.schedule}, seed {self.seed}, next epoch {self.epoch}>"
        )

    @property
    def _count(self) -> str:
        # How many batches by label there are is known once the labels were read; looking at a loader reads nothing.
        return "batches" if self.schedule.columns else f"{len(self):,} batches"

    def _repr_html_(self) -> str:
        from daodask._html import card

        n_obs, n_vars = self.store.shape
        shared = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        facts = {
            "Cells": f"{n_obs:,} cells × {n_vars:,} genes, of snapshot {self.store.snapshot.number}",
            "Schedule": f"{self.schedule}, seed {self.seed}{shared}",
            "X": f"{self.matrix} as {self.x_dtype} {'arrays' if self.dense else 'CSR'}",
            "obs": ", ".join(self.obs),
            "Read by": "the workers of a cluster" if self.client is not None else "threads of this process",
            "Memory": "" if self.client is not None else f"a budget of {human_bytes(self.memory)}",
            "Next": f"epoch {self.epoch}, after {self._state.next_pass().batches_done:,} batches",
        }
        title = f"{self._count} of {self.batch_size:,} cells"
        return card("daodask.BatchLoader", title, repr(self), url=self.store.location.url, facts=facts)

    # -- adaptors ------------------------------------------------------------------------------------------------------

    def to_torch(self) -> TorchBatches:
        """A ``torch.utils.data.IterableDataset`` of these batches, for ``DataLoader(…, batch_size=None)``."""
        from daodask.batches.torch import TorchBatches

        return TorchBatches(self)

    def to_tf(self) -> TensorFlowDataset:
        """A ``tf.data.Dataset`` of these batches, with the signature of what it yields."""
        from daodask.batches.tensorflow import tensorflow_dataset

        return tensorflow_dataset(self)

    def to_jax(self) -> JaxBatches:
        """A re-iterable of dicts of jax arrays."""
        from daodask.batches.jax import JaxBatches

        return JaxBatches(self)


@dataclass(frozen=True, slots=True)
class _State:
    """An epoch and how many of its batches were handed out; ``fresh`` until a pass has begun from here."""

    epoch: int = 0
    batches_done: int = 0
    fresh: bool = True

    def next_pass(self) -> _State:
        """Where the next pass begins: here, or at a new epoch where this one was begun already."""
        return replace(self, fresh=False) if self.fresh else _State(self.epoch + 1, fresh=False)


def _after(windows: Iterator[Window], n_batches: int) -> tuple[Iterator[Window], int]:
    """The windows from the one on that has the batch of that number, and how many of its batches come before."""
    for window in windows:
        if n_batches < window.n_batches:
            return chain([window], windows), n_batches
        n_batches -= window.n_batches
    return iter(()), 0


def _count_runs(positions: Int64Array) -> int:
    return int(np.count_nonzero(np.diff(np.sort(positions)) > 1)) + 1
