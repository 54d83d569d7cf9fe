"""Obs columns of cells from anywhere in a store, as cheap as their counts: codes and numbers straight from zarr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from daodask.arrays import open_array, take
from daodask.batches.schedule import Labels
from daodask.blocks import BlockAddress, empty_obs, read_obs
from daodask.format.manifest import DatasetInfo, ObsColumn
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.types import AnyArray, Int64Array
from daodask.waiting import side_by_side

__all__ = ["Rows", "read_columns", "read_labels"]

#: Some rows of one part: its number, where they go in the result, and their row numbers in the dataset, in order; a row
#: that goes to several places is there as often.
Rows = tuple[int, Int64Array, Int64Array]


def read_columns(store: Store, rows: Sequence[Rows], columns: Sequence[str], index: Int64Array) -> pd.DataFrame:
    """Obs columns of rows, in the order of their places, in the store's shared dtypes (computes).

    Parameters
    ----------
    store
        Whose parts ``rows`` speaks of.
    rows
        Their places are together ``0 … len(index) - 1``.
    columns
        Names of obs columns.
    index
        Row numbers in the store: the index of the result.
    """
    schema = {c.name: c for c in store.obs_schema}
    values: dict[str, Any] = {}
    for name in columns:
        column = schema.get(name)
        if name == "dataset":
            values[name] = _dataset_column(store, rows, len(index))
        elif column is None or column.dtype == "string" or (column.nullable and column.dtype != "category"):
            values[name] = _from_parquet(store, rows, name, len(index))
        elif column.dtype == "category":
            codes = _codes(store, rows, column, len(index))
            values[name] = pd.Categorical.from_codes(codes, dtype=_dtype(store, name), validate=False)
        else:
            values[name] = _numbers(store, rows, column, len(index))
    return pd.DataFrame(values, index=pd.Index(index, dtype=np.int64), copy=False)


def read_labels(store: Store, column: str) -> Labels:
    """Labels of all selected cells, which reads the whole column (computes)."""
    pieces = [
        store.read_part_obs(number, [column])[column].reset_index(drop=True)
        for number, part in enumerate(store.selection.parts)
        if part.n_obs
    ]
    values = pd.concat(pieces, ignore_index=True) if pieces else empty_obs(store.obs_schema, ())[column]
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype("category")
    return Labels(tuple(values.cat.categories), values.cat.codes.to_numpy().astype(np.int64))


def _dtype(store: Store, name: str) -> pd.CategoricalDtype:
    dtype = store.obs_dtypes[name]
    if not isinstance(dtype, pd.CategoricalDtype):
        raise TypeError(f"obs column {name!r} is {dtype}, not categorical")
    return dtype


def _dataset_column(store: Store, rows: Sequence[Rows], n: int) -> pd.Categorical:
    codes = np.empty(n, dtype=np.int64)
    for number, place, _ in rows:
        codes[place] = number
    return pd.Categorical.from_codes(codes, dtype=_dtype(store, "dataset"), validate=False)


def _codes(store: Store, rows: Sequence[Rows], column: ObsColumn, n: int) -> Int64Array:
    """Codes of a categorical in the store's categories."""
    codes = np.full(n, -1, dtype=np.int64)
    position = {label: code for code, label in enumerate(column.categories)}
    known = [(n, place, local) for n, place, local in rows if column.name in store.dataset_infos[n].column]
    for (number, place, _), own in zip(known, _taken(store, known, f"obs/{column.name}/codes"), strict=True):
        summary = store.dataset_infos[number].column[column.name]
        # -1, a cell without a label, looks up the last entry.
        lookup = np.array([*(position[label] for label in summary.categories), -1], dtype=np.int64)
        codes[place] = lookup[own]
    return codes


def _numbers(store: Store, rows: Sequence[Rows], column: ObsColumn, n: int) -> AnyArray:
    values = np.empty(n, dtype=column.dtype)
    for (_, place, _), own in zip(rows, _taken(store, rows, f"obs/{column.name}"), strict=True):
        values[place] = own
    return values


def _taken(store: Store, rows: Sequence[Rows], path: str) -> list[AnyArray]:
    """Elements of an array of each dataset at its rows."""
    arrays = [(_directory(store, store.dataset_infos[number]), local) for number, _, local in rows]
    return side_by_side(lambda of: take(open_array(of[0], path), of[1]), arrays, remote=not store.location.is_local)


def _from_parquet(store: Store, rows: Sequence[Rows], name: str, n: int) -> Any:
    """Text, and numbers with missing values: whole row groups are decoded for them."""
    pieces, order = [], np.empty(n, dtype=np.int64)
    start = 0
    for number, place, local in rows:
        info, part = store.dataset_infos[number], store.selection.parts[number]
        distinct, which = np.unique(local, return_inverse=True)
        bounds = int(distinct[0]), int(distinct[-1]) + 1
        block = BlockAddress(_directory(store, info), info.id, part.offset, *bounds, distinct)
        pieces.append(read_obs(block, store.obs_schema, store.dataset_ids, [name])[name])
        order[place] = start + which
        start += len(distinct)
    return pd.concat(pieces).iloc[order].array


def _directory(store: Store, info: DatasetInfo) -> StoreLocation:
    return store.location / info.path
