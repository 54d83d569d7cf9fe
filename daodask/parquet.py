"""Parts of parquet files as few requests: the end of the file, once, and then the wanted columns together.

A file object would ask for the size first, and then fetch blocks of megabytes for columns of kilobytes, one after
another.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from daodask.errors import CorruptStoreError
from daodask.storage import StoreLocation, coalesce

__all__ = ["parquet_metadata", "read_row_groups"]

#: Of a file's end, what is asked for: the footers of most obs tables. A longer one is a second request.
_END: Final = 2**16
#: What a parquet file ends with: the length of its footer, and a mark.
_TRAILER: Final = 8
_MARK: Final = b"PAR1"


@lru_cache(maxsize=4096)
def parquet_metadata(location: StoreLocation) -> pq.FileMetaData:
    """Footer of a file that never changes (computes once, in one or two requests).

    Raises
    ------
    CorruptStoreError
        There is no such file, or it is none of parquet.
    """
    if location.is_local:
        with _opened(location) as file:
            return pq.read_metadata(file)
    end = _end(location, _END)
    needed = int.from_bytes(end[-_TRAILER:-4], "little") + _TRAILER
    if end[-4:] == _MARK and needed > len(end):
        end = _end(location, needed)
    try:
        return pq.read_metadata(pa.BufferReader(end))
    except pa.ArrowInvalid as error:
        raise CorruptStoreError(f"expected a parquet file at {location}, got another: {error}; restore it") from error


def read_row_groups(location: StoreLocation, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Columns of row groups (computes, in as many requests as there are places where they lie)."""
    metadata = parquet_metadata(location)
    if location.is_local:
        with _opened(location) as file, pq.ParquetFile(file, metadata=metadata) as parquet:
            return parquet.read_row_groups(groups, columns=list(columns))
    ranges = coalesce(sorted((location.name, *bounds) for bounds in _bounds(metadata, groups, set(columns))))
    folder = StoreLocation(location.url.rpartition("/")[0], location.options)
    data = folder.read_ranges(ranges).data if ranges else memoryview(b"")
    with pq.ParquetFile(_Parts(ranges, data), metadata=metadata, pre_buffer=False) as parquet:
        return parquet.read_row_groups(groups, columns=list(columns))


def _opened(location: StoreLocation) -> io.BufferedReader:
    try:
        return open(location.path, "rb")
    except FileNotFoundError as error:
        raise CorruptStoreError(f"expected a file at {location}, found none; restore it") from error


def _end(location: StoreLocation, length: int) -> bytes:
    folder = StoreLocation(location.url.rpartition("/")[0], location.options)
    (end,) = folder.read_ends([location.name], length)
    if end is None:
        raise CorruptStoreError(f"expected a file at {location}, found none; restore it")
    return end


def _bounds(metadata: pq.FileMetaData, groups: Sequence[int], columns: set[str]) -> list[tuple[int, int]]:
    """Where the chunks of columns lie, dictionaries included."""
    found = []
    for group in groups:
        row_group = metadata.row_group(group)
        for number in range(metadata.num_columns):
            chunk = row_group.column(number)
            if chunk.path_in_schema.partition(".")[0] in columns:
                start = min(p for p in (chunk.dictionary_page_offset, chunk.data_page_offset) if p)
                found.append((start, start + chunk.total_compressed_size))
    return found


class _Parts(io.RawIOBase):
    """A file of which some ranges are here."""

    def __init__(self, ranges: Sequence[tuple[str, int, int]], data: memoryview) -> None:
        self._parts, position = [], 0
        for _, start, stop in ranges:
            self._parts.append((start, stop, data[position : position + stop - start]))
            position += stop - start
        self._size = max((stop for _, stop, _ in self._parts), default=0)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        for first, last, data in self._parts:
            if first <= self._at and stop <= last:
                found = bytes(data[self._at - first : stop - first])
                self._at = stop
                return found
        raise OSError(f"bytes {self._at} to {stop} of a parquet file were not fetched")
