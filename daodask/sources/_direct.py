"""Elements of HDF5 arrays read past the library's lock, so that threads read and decompress side by side.

HDF5 lets one thread of a process in at a time, decompression included. Where an array is one-dimensional, in a local
file, of plain numbers and in chunks that are plain or deflated, HDF5 is only asked where chunks lie; the bytes are read
and decompressed here. Everything else is left to h5py.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import h5py
import numpy as np

from daodask.buffers import reused_empty
from daodask.types import AnyArray, Int64Array

__all__ = ["read_elements"]

_DEFLATE: Final = h5py.h5z.FILTER_DEFLATE
_SHUFFLE: Final = h5py.h5z.FILTER_SHUFFLE
#: Chunks smaller than this cost more to keep account of than to have read by HDF5.
_SMALLEST_CHUNK: Final = 2**14


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where a chunk is in the file, and the filters that it was not put through, as a mask."""

    offset: int
    size: int
    skipped: int


def read_elements(array: Any, start: int, stop: int) -> AnyArray:
    """Elements ``[start, stop)`` of a 1-D array of h5py (computes).

    Raises
    ------
    OSError
        A chunk is not in the file, or does not decompress to what it should be.
    """
    plan = _plan(_Identity.of(array)) if isinstance(array, h5py.Dataset) and stop > start else None
    if plan is None:
        values: AnyArray = array[start:stop]
        return values
    out = reused_empty(stop - start, plan.dtype)
    length = plan.length
    for first in range(start // length * length, stop, length):
        low, high = max(start, first), min(stop, first + length)
        target = out[low - start : high - start]
        chunk = _chunk(plan.table[first // length])
        if chunk is None:  # never written: it has what it is filled with
            target[:] = array[low:high]
        elif len(target) == length:
            _read_chunk(plan.descriptor, chunk, plan.filters, target)
        else:
            whole = np.empty(length, dtype=plan.dtype)
            _read_chunk(plan.descriptor, chunk, plan.filters, whole)
            target[:] = whole[low - first : high - first]
    return out


@dataclass(frozen=True, slots=True)
class _Identity:
    """An array that is open, equal where it is the same one of the same opened file; it does not keep that open."""

    file_number: int
    address: int
    array: Callable[[], Any] = field(compare=False)

    @classmethod
    def of(cls, array: h5py.Dataset) -> _Identity:
        # HDF5 numbers files as it opens them, and never uses a number twice.
        info = h5py.h5o.get_info(array.id)
        return cls(info.fileno, info.addr, weakref.ref(array))


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """How an array is read past HDF5.

    Parameters
    ----------
    descriptor
        HDF5's own of the file: a path may meanwhile lead to another one.
    dtype, length
        Of elements, and elements of a chunk.
    filters
        That chunks were put through, in order.
    table
        Offset, size and filter mask of each chunk, the offset -1 of one that was never written.
    """

    descriptor: int
    dtype: np.dtype[Any]
    length: int
    filters: tuple[int, ...]
    table: Int64Array


@lru_cache(maxsize=16)
def _plan(identity: _Identity) -> _Plan | None:
    """Found once for an open array, as HDF5 lets one thread ask at a time; ``None`` where it is left to HDF5."""
    array = identity.array()
    filters = _known_filters(array)
    if filters is None:
        return None
    return _Plan(array.file.id.get_vfd_handle(), array.dtype, array.chunks[0], filters, _chunk_table(array))


def _known_filters(array: h5py.Dataset) -> tuple[int, ...] | None:
    """The filters of chunks, ``None`` where an array is best left to HDF5."""
    if array.chunks is None or len(array.shape) != 1 or array.is_virtual:
        return None
    if array.file.driver != "sec2" or array.file.userblock_size or array.dtype.kind not in "iuf":
        return None
    # Without chunk_iter, which HDF5 has since 1.14, chunks can't be found quickly.
    if array.chunks[0] * array.dtype.itemsize < _SMALLEST_CHUNK or not hasattr(array.id, "chunk_iter"):
        return None
    properties = array.id.get_create_plist()
    filters = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    return filters if filters in ((), (_DEFLATE,), (_SHUFFLE, _DEFLATE)) else None


def _chunk_table(array: h5py.Dataset) -> Int64Array:
    """Asked for chunks one by one, HDF5 goes through its tree of all of them for each."""
    table = np.full((-(-array.shape[0] // array.chunks[0]), 3), -1, dtype=np.int64)

    def note(chunk: Any) -> None:
        table[chunk.chunk_offset[0] // array.chunks[0]] = chunk.byte_offset, chunk.size, chunk.filter_mask

    array.id.chunk_iter(note)
    return table


def _chunk(row: Int64Array) -> _Chunk | None:
    """A chunk of the table; ``None`` where it was never written."""
    offset, size, skipped = row.tolist()
    return None if offset < 0 else _Chunk(offset, size, skipped)


def _read_chunk(descriptor: int, chunk: _Chunk, filters: tuple[int, ...], out: AnyArray) -> None:
    """Read one chunk into ``out``, a whole chunk of the array's dtype."""
    applied = [f for i, f in enumerate(filters) if not chunk.skipped >> i & 1]
    target = out.view(np.uint8)
    if not applied:
        _check(chunk.size == target.nbytes and _fill(descriptor, target, chunk.offset), chunk)
        return
    packed = np.empty(chunk.size, dtype=np.uint8)
    _check(_fill(descriptor, packed, chunk.offset), chunk)
    plain = packed
    if _DEFLATE in applied:
        try:
            plain = np.frombuffer(zlib.decompress(packed.data, bufsize=target.nbytes), dtype=np.uint8)
        except zlib.error as error:
            raise OSError(f"a chunk can't be decompressed: {error}") from error
    _check(plain.nbytes == target.nbytes, chunk)
    if _SHUFFLE in applied:
        # First all first bytes of the elements, then all second ones, and so on.
        for byte, plane in enumerate(plain.reshape(out.itemsize, -1)):
            target[byte :: out.itemsize] = plane
    else:
        target[:] = plain


def _fill(descriptor: int, out: AnyArray, offset: int) -> bool:
    """Whether there were bytes in the file for all of it."""
    return os.preadv(descriptor, [out.data], offset) == len(out)


def _check(good: bool, chunk: _Chunk) -> None:
    if not good:
        raise OSError(f"expected a whole chunk at byte {chunk.offset}, got less or more")
