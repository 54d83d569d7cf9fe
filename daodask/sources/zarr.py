"""AnnData zarr groups of versions 2 and 3, local or remote, read by row blocks."""

from __future__ import annotations

import zlib
from functools import partial
from typing import Any, Final

import numpy as np
import zarr

from daodask.errors import SourceError
from daodask.format.codecs import without_delta_warning
from daodask.sources import _guard
from daodask.sources._anndata import AnnDataSource
from daodask.sources._checked_store import CheckedStore
from daodask.sources._compressed import CompressedGroup
from daodask.storage import StoreLocation
from daodask.types import AnyArray

__all__ = ["ZARR_ERRORS", "ZarrSource", "open_zarr"]

#: What zarr-python and its codecs raise on damage: they have no error of their own for most of it.
ZARR_ERRORS: Final = (
    OSError,
    KeyError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    zlib.error,
)
#: Elements that one byte of a file may stand for: compressors of runs pack more than deflate does.
_MOST_PACKED: Final = 2**16
#: Arrays up to this size are taken as they are declared: their files need not be listed.
_SMALL_BYTES: Final = 2**26


class ZarrSource(AnnDataSource):
    """A study in an AnnData zarr group; see :class:`~daodask.sources._anndata.AnnDataSource` for how it is read.

    Consolidated metadata is used where it is there. In a sparse matrix an absent chunk counts as lost: zarr would read
    it as zeros.

    Parameters
    ----------
    location
        The group's directory, or any URL under which a file system shows one.

    Raises
    ------
    SourceError
        There is no zarr group, or it is not an AnnData.
    """

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location, open_zarr(location), partial(_reading, location))

    def _is_stored(self, array: Any) -> bool:
        return bool(array.nbytes <= _SMALL_BYTES or array.nbytes <= _MOST_PACKED * array.nbytes_stored())

    def _compressed_group(self, group: Any, major: int, minor: int) -> CompressedGroup:
        return CompressedGroup(group, major, minor, self.location, self._reading, self._take)

    def _take(self, array: Any, start: int, stop: int) -> AnyArray:
        """Elements of an array of a sparse matrix, of which no chunk may be absent that can't have been all zeros."""
        values = np.asarray(array[start:stop])
        length = (array.shards or array.chunks)[0]
        for number in range(start // length, -(-stop // length)):
            first, last = max(number * length, start), min((number + 1) * length, stop)
            if values[first - start : last - start].any() or self._may_be_zeros(array, first, last):
                continue
            path = f"{array.path}/{array.metadata.encode_chunk_key((number,))}"
            if not (self.location / path).exists():
                raise SourceError(
                    f"expected {path} in {self.location}, with elements {first} to {last} of a sparse matrix, "
                    "found none; restore the file"
                )
        return values

    def _may_be_zeros(self, array: Any, first: int, last: int) -> bool:
        """Whether elements may all be zero: offsets, and the first gene (or cell) of rows with no other value."""
        name = array.path.rpartition("/")
        if name[2] != "indices":
            return bool(name[2] == "indptr")
        indptr = np.asarray(self._root[f"{name[0]}/indptr"][:])
        return int(np.diff(np.clip(indptr, first, last)).max(initial=0)) <= 1


def open_zarr(location: StoreLocation) -> zarr.Group:
    """Open a zarr group for reading.

    Raises
    ------
    SourceError
        Nothing is there, or no zarr group.
    """
    if not location.exists():
        raise SourceError(f"expected a zarr group at {location}, found nothing; check the path")
    with _reading(location, "the group"), without_delta_warning():
        return zarr.open_group(CheckedStore(location.zarr_store()), mode="r")


def _reading(location: StoreLocation, what: str) -> Any:
    return _guard.reading(location, what, "zarr group", ZARR_ERRORS)
