"""Compiled loops, free of the GIL: decoded chunks are scattered, still in cache, to where their rows belong.

Indices are unsigned in the innermost loops: without a sign there is no wrap-around to check, and the loops vectorise.
Compilation is cached on disk, so that only the first run on a machine pays for it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np

from daodask import _intrinsics
from daodask._intrinsics import LANES, is_wide, note_wanted, prefetch, stream

__all__ = [
    "accumulate",
    "count_columns",
    "count_selected",
    "gather_selected",
    "place_rows",
    "row_sums",
    "scatter",
    "scatter_dense",
    "transpose_rows",
    "whole_numbers",
]

F = TypeVar("F", bound=Callable[..., Any])


#: Of the modules whose functions are compiled into those of others.
_CALLED: Final = hashlib.sha256(
    "".join(map(inspect.getsource, (_intrinsics, sys.modules[__name__]))).encode()
).hexdigest()[:16]


def compiled(function: F) -> F:
    """Compile a function, to run without the GIL; compiled code is kept on disk.

    numba takes what it kept as long as the function's own file is the same. After an upgrade that would be code with
    the former version of what it calls in other files, so that it is kept by the content of those as well.
    """
    name = function.__qualname__
    # Which is a part of the name of the file that it is kept in.
    function.__qualname__ = f"{name}-{_CALLED}"
    dispatcher: Any = numba.njit(nogil=True, cache=True, boundscheck=False)(function)
    function.__qualname__ = dispatcher.__qualname__ = name
    return cast(F, dispatcher)


@compiled
def accumulate(values: Any) -> None:
    """Put the sum of all elements until it in place of each, as its dtype overflows."""
    as_value = values.dtype.type
    total = as_value(0)
    for k in range(np.uint64(len(values))):
        total = as_value(total + values[k])
        values[k] = total


@compiled
def scatter(src: Any, src_start: int, low: Any, high: Any, dst: Any, out: Any, past_cache: bool) -> None:
    """Copy rows' elements out of a chunk: row r has elements ``[low[r], high[r])`` and goes to ``out[dst[r]:]``.

    Parameters
    ----------
    src, src_start
        Decoded values, and the element that the first of them is.
    low, high
        Element bounds of each row, increasing; parts outside of the chunk are left to other calls.
    dst
        Where in ``out`` each row's first element goes.
    past_cache
        Whether ``out`` is so large that what is written is gone from the cache before it is read. A
        :func:`~daodask._intrinsics.fence` has to follow then.
    """
    src_stop = src_start + len(src)
    for r in range(np.searchsorted(high, src_start, side="right"), len(low)):
        first = max(low[r], src_start)
        last = min(high[r], src_stop)
        if low[r] >= src_stop:
            break
        if past_cache and r + 1 < len(low):
            _prefetch_ends(out, np.uint64(dst[r + 1]), np.uint64(high[r + 1] - low[r + 1]))
        if first < last:
            n = np.uint64(last - first)
            a = np.uint64(first - src_start)
            b = np.uint64(dst[r] + first - low[r])
            _copy_run(src, a, out, b, n, past_cache)


@compiled
def _prefetch_ends(out: Any, b: Any, n: Any) -> None:
    """Ask for the lines at both ends of ``out[b : b + n]``, which are not written as a whole.

    Else each is waited for, as long as it takes to write a quarter of a row.
    """
    prefetch(out, b)
    prefetch(out, b + n)


@compiled
def _copy_run(src: Any, a: Any, out: Any, b: Any, n: Any, past_cache: bool) -> None:
    """``out[b : b + n] = src[a : a + n]``: past the cache whole lines of it, and what is around them as usual."""
    lanes: Any = np.uint64(LANES)
    element = np.uint64(out.ctypes.data) // np.uint64(out.itemsize) + b
    head: Any = min(n, (lanes - element % lanes) % lanes) if past_cache else n
    whole = head + (n - head) // lanes * lanes
    for k in range(head):
        out[b + k] = src[a + k]
    for k in range(head, whole, lanes):
        stream(out, b + k, src, a + k)
    for k in range(whole, n):
        out[b + k] = src[a + k]


@compiled
def scatter_dense(
    columns: Any,
    values: Any,
    src_start: int,
    low: Any,
    high: Any,
    place: Any,
    lookup: Any,
    room: Any,
    out: Any,
    past_cache: bool,
) -> int:
    """Put rows' values of a pair of chunks into a dense array.

    A row is made in cache, and copied to its place when it is complete: most of it is zeros, which are written once.

    Parameters
    ----------
    columns, values, src_start
        Decoded chunks, and the element that the first of each is.
    low, high, place
        Element bounds of each row, increasing, and the row of ``out`` that it becomes. Chunks come in order, and with
        the same room, as a row may go on in the next.
    lookup
        Three: whether a column is wanted, as bits of uint32 and once more as a byte each, and which one it becomes.
        The first two have one more entry than there are columns, which is true, for all columns that there should not
        be, and the bits 32 words after it.
    room
        Pair: for 32 more numbers than a chunk has elements, and for a row of ``out``.
    out, past_cache
        The rows one after another, and as of :func:`scatter`.

    Returns
    -------
    int
        How many elements are of columns that there should not be: none of a sound matrix.
    """
    found, row = room
    width = np.uint64(len(row))
    src_stop = src_start + len(columns)
    strange = 0
    for r in range(np.searchsorted(high, src_start, side="right"), len(low)):
        if low[r] >= src_stop:
            break
        # Otherwise it is the same row once more.
        if r == 0 or low[r] != low[r - 1] or high[r] != high[r - 1]:
            if low[r] >= src_start:
                row[:] = 0
            part = slice(max(low[r], src_start) - src_start, max(low[r], min(high[r], src_stop)) - src_start)
            strange += _put_wanted(columns[part], values[part], lookup, found, row)
        if past_cache and r + 1 < len(low):
            _prefetch_ends(out, np.uint64(place[r + 1]) * width, width)
        if high[r] <= src_stop:
            _copy_run(row, np.uint64(0), out, np.uint64(place[r]) * width, width, past_cache)
    return strange


@compiled
def _put_wanted(columns: Any, values: Any, lookup: Any, found: Any, row: Any) -> int:
    """Put the values of wanted columns into a row; how many are of columns that there should not be.

    Where few columns are wanted most values are not, in no order that a processor could foresee: first it is noted
    without a branch which are, then these alone are put down.
    """
    words, wanted, target = lookup
    beyond: Any = np.uint32(len(target))
    lanes: Any = np.uint64(LANES)
    length = np.uint64(len(columns))
    whole = length // lanes * lanes if is_wide() else np.uint64(0)
    strange = 0
    n: Any = np.uint64(0)
    for k in range(np.uint64(0), whole, lanes):
        n = note_wanted(columns, k, words, beyond, found, n)
    for k in range(whole, length):
        found[n] = k
        n += np.uint64(wanted[min(np.uint32(columns[k]), beyond)])
    for i in range(n):
        k = found[i]
        column = np.uint32(columns[k])
        if column < beyond:
            row[target[column]] = values[k]
        else:
            strange += 1
    return strange


@compiled
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


@compiled
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


# -- building: a study's columns onto those of the feature space -------------------------------------------------------

#: Position of the only set bit of a 64-bit word, by its product with a de Bruijn sequence.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_POSITION = np.zeros(64, dtype=np.uint8)
for _bit in range(64):
    _BIT_POSITION[((0x03F79D71B4CB0A89 << _bit) & (2**64 - 1)) >> 58] = _bit


@compiled
def whole_numbers(values: Any, most: Any) -> tuple[bool, int, int]:
    """Whether all values are whole numbers from 0 to ``most``, a value of their dtype below 2**31; largest and sum."""
    as_value = values.dtype.type
    # Of the values' own dtype: with a plain 0 the loop would compute in float64.
    zero = as_value(0)
    strange: Any = np.int32(0)
    largest: Any = np.int32(0)
    total: Any = 0
    for k in range(len(values)):
        value = values[k]
        # Written so that NaN, which compares false, is strange.
        inside = (value >= zero) & (value <= most)
        whole = np.int32(value if inside else zero)
        strange |= np.int32(as_value(whole) != value)
        largest = max(largest, whole)
        total += whole
    return strange == 0, largest, total


@compiled
def place_rows(
    columns: Any, values: Any, indptr: Any, lookup: Any, ascending: bool, sums: Any, words: Any, out: Any
) -> tuple[int, bool, bool]:
    """Put rows of a CSR block onto other columns: sorted, added up where several meet, without zeros.

    A row whose columns come in order is written as it is, and faster where nothing of it is left out. Another is added
    up in ``sums`` while ``words`` notes which columns it has, 64 to a word, and is read off in their order: both stay
    in cache, and nothing is sorted.

    Parameters
    ----------
    columns, values, indptr
        The block, in any order within a row; columns as uint32.
    lookup
        New column per column, the number of new columns for one that is dropped. It has one more entry than there are
        columns, one above that number, for all columns that there should not be.
    ascending
        Whether kept columns keep their order, so that it is worth trying without sorting.
    sums, words
        Zeros, and zeros again afterwards: an entry for each number that ``lookup`` holds, a bit for each.
    out
        Columns, values, row bounds and the largest allowed value: the arrays have room for all elements of the block.

    Returns
    -------
    tuple
        Elements written; whether there are columns that there should not be; and whether a sum is larger than allowed,
        so that what was written is of no use.
    """
    out_columns, out_values, out_indptr, allowed = out
    # Without a sign, as an index that may be negative has to be looked at.
    n: Any = np.uint64(0)
    strange, exceeded = False, False
    out_indptr[0] = 0
    whole = ascending
    for r in range(len(indptr) - 1):
        row = slice(indptr[r], indptr[r + 1])
        source, target = (columns[row], values[row], lookup), (out_columns[n:], out_values[n:])
        length = np.uint64(len(source[0]))
        n_columns = lookup.dtype.type(len(sums) - 2)
        # Rows are much like the one before.
        whole = whole and _place_whole(source, n_columns, target)
        if whole:
            n += length
        else:
            written, in_order, odd = np.uint64(0), False, False
            if ascending:
                written, in_order, odd = _place_in_order(source, n_columns, target)
                whole = in_order and written == length
            if not in_order:
                written, odd, above = _place_sums(source, n_columns, sums, words, allowed, target)
                exceeded |= above
            strange |= odd
            n += written
        out_indptr[r + 1] = n
    return n, strange, exceeded


@compiled
def _place_whole(source: Any, n_columns: Any, target: Any) -> bool:
    """Put a row down with all its elements; whether that was right, as none is dropped, zero or out of order.

    One thing a loop, so that each becomes instructions for many elements.
    """
    (columns, values, lookup), (out_columns, out_values) = source, target
    beyond, largest, length = np.uint32(len(lookup) - 1), np.uint32(0), np.uint64(len(columns))
    for k in range(length):
        column = lookup[min(columns[k], beyond)]
        largest = max(largest, column)
        out_columns[k] = column
    if largest >= n_columns:
        return False
    n_zeros, n_disordered = np.uint32(0), np.uint32(0)
    for k in range(length):
        out_values[k] = values[k]
        n_zeros += np.uint32(values[k] == 0)
    for k in range(np.uint64(1), length):
        n_disordered += np.uint32(out_columns[k] <= out_columns[k - np.uint64(1)])
    return bool(n_zeros + n_disordered == 0)


@compiled
def _place_in_order(source: Any, n_columns: Any, target: Any) -> tuple[Any, bool, bool]:
    """Put a row's elements down but for those dropped or zero: how many, if in order, and if any is strange."""
    (columns, values, lookup), (out_columns, out_values) = source, target
    beyond, zero, one = np.uint32(len(lookup) - 1), values.dtype.type(0), lookup.dtype.type(1)
    n: Any = np.uint64(0)
    in_order, strange = True, False
    following = lookup.dtype.type(0)
    for k in range(np.uint64(len(columns))):
        column = lookup[min(columns[k], beyond)]
        value = values[k]
        kept = (column < n_columns) & (value != zero)
        in_order &= (not kept) | (column >= following)
        following = column + one if kept else following
        strange |= column > n_columns
        out_columns[n] = column
        out_values[n] = value
        n += np.uint64(kept)
    return n, in_order, strange


@compiled
def _place_sums(
    source: Any, n_columns: Any, sums: Any, words: Any, allowed: Any, target: Any
) -> tuple[Any, bool, bool]:
    """Add a row's elements up by column, put the sums down: how many, if a column is strange, or a sum too large."""
    (columns, values, lookup), (out_columns, out_values) = source, target
    beyond = np.uint32(len(lookup) - 1)
    n: Any = np.uint64(0)
    strange, exceeded = False, False
    for k in range(np.uint64(len(columns))):
        column = lookup[min(columns[k], beyond)]
        sums[column] += sums.dtype.type(values[k])
        words[column >> np.uint32(6)] |= np.uint64(1) << np.uint64(column & np.uint32(63))
    for w in range(len(words)):
        word = words[w]
        words[w] = np.uint64(0)
        start = np.uint64(w) << np.uint64(6)
        while word:
            rest = word & (word - np.uint64(1))
            column = start + np.uint64(_BIT_POSITION[((word ^ rest) * _DE_BRUIJN) >> np.uint64(58)])
            word = rest
            total = sums[column]
            sums[column] = 0
            if column < n_columns:
                exceeded |= total > allowed
                out_columns[n] = column
                out_values[n] = total
                n += np.uint64(total != 0)
            else:
                strange |= column > n_columns
    return n, strange, exceeded


@compiled
def row_sums(values: Any, indptr: Any, sums: Any) -> None:
    """Sum of each row's values, added up in the dtype of ``sums``."""
    as_sum = sums.dtype.type
    for r in range(len(sums)):
        total = as_sum(0)
        for k in range(np.uint64(indptr[r]), np.uint64(indptr[r + 1])):
            total += as_sum(values[k])
        sums[r] = total


@compiled
def count_columns(columns: Any, counts: Any) -> None:
    """Add the number of elements in each column."""
    for k in range(np.uint64(len(columns))):
        counts[np.uint64(columns[k])] += 1


@compiled
def transpose_rows(
    columns: Any, values: Any, first: int, indptr: Any, row: int, ends: Any, totals: Any, out: Any
) -> int:
    """Put elements of a CSR block to where they are in its CSC, in the order of their rows.

    Parameters
    ----------
    columns, values, first
        Some elements, and the number of the first of them.
    indptr
        Bounds of all rows.
    row
        A row that begins no later than these.
    ends
        Where the next element of each column goes; counts on.
    totals
        Of the rows; what their elements add up to is added.
    out
        Rows and values of all elements of the block.

    Returns
    -------
    int
        The row of the last of them.
    """
    out_rows, out_values = out
    r = np.uint64(row)
    element = np.uint64(first)
    for k in range(np.uint64(len(columns))):
        while np.uint64(indptr[r + np.uint64(1)]) <= element:
            r += np.uint64(1)
        column = np.uint64(columns[k])
        at = np.uint64(ends[column])
        ends[column] = at + np.uint64(1)
        out_rows[at] = r
        out_values[at] = values[k]
        totals[r] += np.float64(values[k])
        element += np.uint64(1)
    return int(r)
