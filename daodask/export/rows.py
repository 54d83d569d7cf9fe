"""Rows of a selection by their position in it: what tasks of an export read, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from daodask.arrays import open_array, take
from daodask.blocks import BlockAddress, read_obsm
from daodask.gather import RowGroup, gather_csr
from daodask.store import Store
from daodask.types import CSR, AnyArray, Int64Array

__all__ = ["Rows", "bounds", "cut", "read_dense", "read_rows", "row_lengths"]

#: Consecutive rows of a selection, in pieces of datasets.
Rows = tuple[BlockAddress, ...]


def bounds(n_obs: int, block_rows: int) -> list[tuple[int, int]]:
    """Runs of ``block_rows`` positions, the last one of what is left."""
    return [(start, min(start + block_rows, n_obs)) for start in range(0, n_obs, block_rows)]


def cut(store: Store, start: int, stop: int) -> Rows:
    """The selected cells at positions ``[start, stop)``: nothing is read, and no other cell is looked at."""
    return tuple(_cut(store, start, stop))


def _cut(store: Store, start: int, stop: int) -> Iterator[BlockAddress]:
    selection = store.selection
    first = int(np.searchsorted(selection.bounds, start, side="right")) - 1
    for number in range(max(0, first), len(selection.parts)):
        part, offset = selection.parts[number], int(selection.bounds[number])
        if offset >= stop:
            return
        low, high = max(start - offset, 0), min(stop - offset, part.n_obs)
        if low >= high:
            continue
        rows = None if part.rows is None else part.rows[low:high]
        begin, end = (low, high) if rows is None else (int(rows[0]), int(rows[-1]) + 1)
        info = store.dataset_infos[number]
        yield BlockAddress(store.location / info.path, info.id, part.offset, begin, end, rows)


def read_rows(rows: Rows, name: str, n_stored_vars: int, genes: Int64Array | None, dtype: str) -> CSR:
    """A matrix of these rows (computes).

    Parameters
    ----------
    rows
        As :func:`cut` makes them.
    name
        ``"X"`` or ``"layers/<name>"``.
    n_stored_vars
        Genes of the feature space.
    genes
        Columns to keep, in their order; ``None`` for all.
    dtype
        Of the values.
    """
    groups, place = [], 0
    for block in rows:
        groups.append(RowGroup(block.dataset, block.local_rows, np.arange(place, place + block.n_obs)))
        place += block.n_obs
    return gather_csr(groups, name, n_stored_vars, genes=genes, dtype=dtype)


def row_lengths(rows: Rows, name: str) -> Int64Array:
    """Stored non-zeros of each row, of all genes: nothing but the row bounds is read (computes)."""
    lengths = [np.empty(0, np.int64)]
    for block in rows:
        indptr = open_array(block.dataset, f"{name}/indptr")
        if block.rows is None:
            lengths.append(np.diff(indptr.read(block.start, block.stop + 1)).astype(np.int64))
        else:
            lengths.append((take(indptr, block.rows + 1) - take(indptr, block.rows)).astype(np.int64))
    return np.concatenate(lengths)


def read_dense(rows: Sequence[BlockAddress], name: str, width: int, dtype: str) -> AnyArray:
    """A dense array per cell of these rows, 2-D (computes)."""
    empty = np.empty((0, width), dtype=dtype)
    whole: AnyArray = np.concatenate([empty, *(read_obsm(block, name, dtype) for block in rows)])
    return whole
