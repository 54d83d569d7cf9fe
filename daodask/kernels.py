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
    columns: Any, values: Any, src_start: int, low: Any, high: Any, place: Any, lookup: Any, out: Any
) -> int:
    """Put rows' values of a pair of chunks into a dense array: column c goes to ``lookup[c]``, if that is not -1.

    Returns how many columns there are no such entries for: a matrix that is sound has none.
    """
    src_stop = src_start + len(columns)
    n_vars = np.uint64(len(lookup))
    strange = 0
    for r in range(np.searchsorted(high, src_start, side="right"), len(low)):
        if low[r] >= src_stop:
            break
        first = max(low[r], src_start) - src_start
        last = min(high[r], src_stop) - src_start
        row = out[place[r]]
        for k in range(np.uint64(first), np.uint64(max(first, last))):
            column = np.uint64(columns[k])
            if column < n_vars:
                target = lookup[column]
                if target >= 0:
                    row[np.uint64(target)] = values[k]
            else:
                strange += 1
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
