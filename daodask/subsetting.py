"""Which cells of a store meet conditions: decided by the snapshot where it can, read where it can't.

What is known of a dataset from the snapshot comes first, then the statistics of the row groups in its ``obs.parquet``;
cells are looked at last, in the columns that are still in question.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd

from daodask.binding import Binding, known_columns
from daodask.blocks import BlockAddress, read_obs
from daodask.errors import CorruptStoreError, SelectionError
from daodask.format.manifest import DatasetInfo
from daodask.format.spec import OBS_NAMES
from daodask.parquet import parquet_metadata
from daodask.predicates import All, Extent, Not, Predicate, on_column, parse_query
from daodask.row_groups import row_group_bounds, row_group_extents
from daodask.selection import Selection
from daodask.types import AnyArray, BoolArray, Int64Array

if TYPE_CHECKING:
    from daodask.store import Store

__all__ = ["PLAN_THREADS", "CellFunction", "Missing", "Rows", "dataset_extents", "narrow", "row_positions"]

#: A function of a partition of obs that says which of its cells are meant.
CellFunction: TypeAlias = Callable[[pd.DataFrame], Any]
#: A mask over the selected cells, or increasing positions of some; of numpy, pandas or dask, or a list.
Rows: TypeAlias = Sequence[int] | Sequence[bool] | AnyArray | pd.Series | pd.Index
Missing: TypeAlias = Literal["error", "ignore"]

#: Columns that each store has, and in which each cell has a value.
_OWN: Final = {name: Extent(missing=False) for name in ("dataset", OBS_NAMES)}

#: Threads that read obs columns to plan a subset; the reads wait for storage more than they compute.
PLAN_THREADS: Final = 8


def narrow(
    store: Store,
    conditions: Sequence[str | CellFunction | Rows | None],
    equal: Mapping[str, object],
    exclude: Mapping[str, object],
    *,
    columns: Collection[str] | None,
    missing: Missing,
) -> Selection:
    """The cells of a store that meet every condition, see :meth:`daodask.Store.subset` (computes)."""
    if missing not in ("error", "ignore"):
        raise SelectionError(f'expected missing="error" or "ignore", got {missing!r}')
    predicates: list[Predicate] = [on_column(column, value) for column, value in equal.items()]
    predicates += [Not(on_column(column, value)) for column, value in exclude.items()]
    predicates += [parse_query(text) for text in conditions if isinstance(text, str)]
    functions = [f for f in conditions if callable(f)]
    binding = Binding(known_columns(store.obs_schema, store.dataset_ids), strict=missing == "error")
    named = _named_columns(store, columns, functions, binding)
    condition = binding.bind(All(tuple(predicates)))
    selection = store.selection
    for rows in conditions:
        if not isinstance(rows, str) and not callable(rows) and rows is not None:
            selection &= store.selection.take(row_positions(rows, store.selection))
    selection = _meeting(replace(store, selection=selection), condition)
    for function in functions:
        selection = _chosen(replace(store, selection=selection), function, named)
    return selection


def _named_columns(
    store: Store, columns: Collection[str] | None, functions: Sequence[CellFunction], binding: Binding
) -> list[str]:
    """The columns that functions are handed."""
    if columns is None:
        return list(store.obs_columns)
    if not functions:
        raise SelectionError("columns= says what a function is handed; pass one, or leave columns= away")
    if isinstance(columns, str):
        raise SelectionError(f"columns: expected a list of names, got {columns!r}; write [{columns!r}]")
    return [name for name in dict.fromkeys(columns) if binding.require(name) is not None]


# -- rows ----------------------------------------------------------------------------------------------------------


def row_positions(rows: object, selection: Selection) -> Int64Array | BoolArray:
    """Rows as somebody indexes them, as positions among the selected ones, or as a mask over them.

    Raises
    ------
    SelectionError
        They are of another kind, or carry an index that is not that of the cells.
    """
    if isinstance(rows, slice):
        if (rows.step or 1) < 0:
            raise SelectionError(f"rows stay in store order: expected a slice with a positive step, got {rows}")
        return np.arange(selection.n_obs, dtype=np.int64)[rows]
    if isinstance(rows, int | np.integer):
        return np.array([rows], dtype=np.int64)
    if isinstance(rows, str):
        raise SelectionError(
            f"expected rows as slice, mask or positions, got {rows!r}; use subset() for labels, [:, genes] for genes"
        )
    if hasattr(rows, "__dask_graph__"):
        rows = rows.compute()  # type: ignore[attr-defined]
    if isinstance(rows, pd.Series):
        _require_index(rows, selection)
    return _as_plain(rows)


def _require_index(values: pd.Series, selection: Selection) -> None:
    """A mask that carries row numbers carries those of the cells: one of other cells is a mistake."""
    is_mask = pd.api.types.is_bool_dtype(values.dtype) and len(values) == selection.n_obs
    if is_mask and pd.api.types.is_integer_dtype(values.index.dtype):
        numbers = values.index.to_numpy()
        by_position = np.array_equal(numbers, np.arange(len(numbers)))
        if not by_position and not np.array_equal(numbers, selection.store_rows):
            raise SelectionError(
                "expected a mask whose index is the store's row numbers in order, as in obs, got other numbers; "
                "bring it into that order, or pass .to_numpy()"
            )


def _as_plain(values: Any) -> AnyArray:
    """As numpy has it; a boolean that is missing is not true."""
    if isinstance(getattr(values, "dtype", None), pd.BooleanDtype):
        return np.asarray(values.to_numpy(dtype=bool, na_value=False))
    return np.asarray(values)


# -- conditions ----------------------------------------------------------------------------------------------------


def _meeting(store: Store, condition: Predicate) -> Selection:
    """The cells that meet a condition."""
    return _with_masks(store, lambda number: _part_mask(store, number, condition))


def _with_masks(store: Store, mask: Callable[[int], BoolArray | bool]) -> Selection:
    """The selected cells that a mask per part keeps; parts without a selected cell aren't looked at."""
    parts = store.selection.parts
    numbers = [n for n, part in enumerate(parts) if part.n_obs]
    with ThreadPoolExecutor(PLAN_THREADS) as threads:
        decided = dict(zip(numbers, threads.map(mask, numbers), strict=True))
    return store.selection.with_part_masks(tuple(decided.get(n, True) for n in range(len(parts))))


def _part_mask(store: Store, number: int, condition: Predicate) -> BoolArray | bool:
    """The selected cells of a part that meet a condition, by what the snapshot says, if it says enough."""
    left = condition.prune(dataset_extents(store.dataset_infos[number], condition.columns))
    return left if isinstance(left, bool) else _looked_at(store, number, left)


def _looked_at(store: Store, number: int, condition: Predicate) -> BoolArray:
    """The same, by what the footer of obs says of row groups, and by the cells of those where that is too little."""
    part, info = store.selection.parts[number], store.dataset_infos[number]
    if store.held is not None:
        return condition.evaluate(store.read_part_obs(number, sorted(condition.columns)))
    dataset = store.location / info.path
    metadata = parquet_metadata(dataset / "obs.parquet")
    bounds = row_group_bounds(metadata)
    if bounds[-1] != info.n_obs:
        raise CorruptStoreError(
            f"{dataset}/obs.parquet: expected the {info.n_obs} cells of the snapshot, got {bounds[-1]}; restore it"
        )
    cuts = bounds if part.rows is None else np.searchsorted(part.rows, bounds).tolist()
    extents = row_group_extents(metadata, condition.columns - _OWN.keys())
    mask, unsure = np.zeros(part.n_obs, dtype=bool), np.zeros(part.n_obs, dtype=bool)
    for low, high, known in zip(cuts[:-1], cuts[1:], extents, strict=True):
        left = condition.prune(known | _OWN)
        mask[low:high] = left is True
        unsure[low:high] = not isinstance(left, bool)
    looked_at = part.take(np.flatnonzero(unsure).astype(np.int64))
    if looked_at.n_obs:
        block = BlockAddress(dataset, info.id, part.offset, 0, info.n_obs, looked_at.rows)
        obs = read_obs(block, store.obs_schema, store.dataset_ids, sorted(condition.columns))
        mask[unsure] = condition.evaluate(obs)
    return mask


def dataset_extents(info: DatasetInfo, columns: Collection[str]) -> dict[str, Extent]:
    """What the snapshot knows of those of these columns in which some cell of a dataset has a value."""
    found = {name: info.column[name] for name in columns if name in info.column}
    extents = {name: Extent.of(column) for name, column in found.items() if column.n_missing < info.n_obs}
    return extents | _OWN | {"dataset": Extent(frozenset({info.id}), missing=False)}


# -- functions -----------------------------------------------------------------------------------------------------


def _chosen(store: Store, function: CellFunction, columns: list[str]) -> Selection:
    """The cells that a function of a partition of obs says."""
    turn = threading.Lock()
    blocks = store.blocks

    def choose(number: int) -> BoolArray:
        obs = store.read_block_obs(blocks[number], columns)
        # Reading is done side by side; a function that somebody passes need not be made for that.
        with turn:
            return _checked(function(obs), obs)

    with ThreadPoolExecutor(PLAN_THREADS) as threads:
        if store.held is None:
            # Several threads would ask for the same footer at once.
            footers = dict.fromkeys(block.dataset / "obs.parquet" for block in blocks)
            list(threads.map(parquet_metadata, footers))
        masks = list(threads.map(choose, range(len(blocks))))
    return store.selection.take(np.concatenate([np.zeros(0, bool), *masks]))


def _checked(mask: Any, obs: pd.DataFrame) -> BoolArray:
    """What a function has returned, as a mask over the rows that it was handed."""
    if isinstance(mask, pd.Series) and not mask.index.equals(obs.index):
        raise SelectionError(
            "expected a mask with the index of the obs that the function was handed, in its order, got another index"
        )
    values = _as_plain(mask)
    if values.dtype != bool or values.shape != (len(obs),):
        raise SelectionError(
            f"expected a function that returns a boolean per cell, {len(obs)} of them, got {values.dtype} "
            f"{values.shape} from a {type(mask).__name__}; return a mask such as obs['n_counts'] > 500"
        )
    return values
