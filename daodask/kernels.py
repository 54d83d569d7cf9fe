"""Compiled loops, free of the GIL: decoded chunks are scattered, still in cache, to where their rows belong.

Indices are unsigned in the innermost loops: without a sign there is no wrap-around to check, and the loops vectorise.
Compilation is cached on disk, so that only the first run on a machine pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

__all__ = ["count_selected", "gather_selected", "scatter", "scatter_dense"]

F = TypeVar("F", bound=Callable[..., Any])


def _jit(function: F) -> F:
    return cast(F, numba.njit(nogil=True, cache=True, boundscheck=False)(function))


@_jit
def scatter(src: Any, src_start: int, low: Any, high: Any, dst: Any, out: Any) -> None:
    """Copy rows' elements out of a chunk: row r has elements ``[low[r], high[r])`` and goes to ``out[dst[r]:]``.

    Parameters
    ----------
    src, src_start
        Decoded values, and the element that the first of them is.
    low, high
        Element bounds of each row, increasing; parts outside of the chunk are left to other calls.
    dst
        Where in ``out`` each row's first element goes.
    """
    src_stop = src_start + len(src)
    for r in range(np.searchsorted(high, src_start, side="right"), len(low)):
        first = max(low[r], src_start)
        last = min(high[r], src_stop)
        if low[r] >= src_stop:
            break
        if first < last:
            n = np.uint64(last - first)
            a = np.uint64(first - src_start)
            b = np.uint64(dst[r] + first - low[r])
            for k in range(n):
                out[b + k] = src[a + k]


@_jit
def scatter_dense(
    columns: Any, values: Any, src_start: int, low: Any, high: Any, place: Any, lookup: Any, row: Any, out: Any
) -> int:
    """Put rows' values of a pair of chunks into a dense array.

    A row is filled in ``row``, which stays in cache, and copied out whole when its last element was there; what a
    chunk ends with is there still when the next chunk comes. ``row`` has two more entries than ``out`` has columns,
    zero as all others between rows, so that there is no branch in the innermost loop.

    Parameters
    ----------
    columns, values, src_start
        Decoded chunks, and the element that the first of each is.
    low, high, place
        Element bounds of each row, increasing, and the row of ``out`` that it becomes.
    lookup
        Entry of ``row`` per column; the last but one for columns that are not wanted. It has one more entry than there
        are columns, the last, for all columns that there should not be.

    Returns
    -------
    int
        How many rows have such columns: none of a sound matrix.
    """
    src_stop = src_start + len(columns)
    beyond = np.uint32(len(lookup) - 1)
    width = out.shape[1]
    strange = 0
    for r in range(np.searchsorted(high, src_start, side="right"), len(low)):
        if low[r] >= src_stop:
            break
        if r > 0 and low[r] == low[r - 1] and high[r] == high[r - 1]:
            # The same row once more: what was filled of it is gone when it is complete.
            if high[r] <= src_stop:
                out[place[r], :] = out[place[r - 1], :]
            continue
        first = max(low[r], src_start) - src_start
        last = min(high[r], src_stop) - src_start
        for k in range(np.uint64(first), np.uint64(max(first, last))):
            row[lookup[min(np.uint32(columns[k]), beyond)]] = values[k]
        if high[r] <= src_stop:
            strange += row[width + 1] != 0
            out[place[r], :] = row[:width]
            row[:] = 0
    return strange


@_jit
def count_selected(indices: Any, indptr: Any, lookup: Any, counts: Any) -> int:
    """Number of elements per row whose column is selected; returns how many are of no column at all."""
    n_vars = np.uint64(len(lookup))
    strange = 0
    for r in range(len(indptr) - 1):
        n = 0
        for k in range(indptr[r], indptr[r + 1]):
            column = np.uint64(indices[k])
            if column < n_vars:
                n += lookup[column] >= 0
            else:
                strange += 1
        counts[r] = n
    return strange


@_jit
def gather_selected(
    indices: Any, data: Any, indptr: Any, lookup: Any, out_indptr: Any, out_indices: Any, out_data: Any
) -> None:
    """Keep elements of selected columns, under their new column numbers, row by row; columns were checked before."""
    for r in range(len(indptr) - 1):
        n = out_indptr[r]
        for k in range(indptr[r], indptr[r + 1]):
            target = lookup[indices[k]]
            if target >= 0:
                out_indices[n] = target
                out_data[n] = data[k]
                n += 1
