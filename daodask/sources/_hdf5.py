"""HDF5 as h5ad, loom and 10x files use it: opening, errors that say which file, and what is really stored."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import h5py

from daodask.errors import SourceError
from daodask.sources import _guard
from daodask.storage import StoreLocation

__all__ = ["check_stored", "is_stored", "open_hdf5", "reading"]

_CACHED_BLOCK: Final = 2 * 2**20
#: What h5py raises on damage: of its own accord, and where strings, types or attributes are not what they should be.
_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, OverflowError)
#: More than deflate, which reaches 1032, or lzf can pack into a byte; a file has headers, too.
_MOST_PACKED: Final = 4096


def open_hdf5(location: StoreLocation) -> h5py.File:
    """Open a file for reading: by its path where it is local, else through a file object that fetches blocks.

    Raises
    ------
    SourceError
        There is no file, or it is not a whole HDF5 file.
    """
    if not location.exists():
        raise SourceError(f"expected an HDF5 file at {location}, found nothing; check the path")
    with reading(location, "the file"):
        if location.is_local:
            return h5py.File(location.path, "r")
        # Blocks in an LRU, as HDF5 goes back and forth between several arrays.
        file = location.fs.open(location.path, "rb", block_size=_CACHED_BLOCK, cache_type="blockcache")
        return h5py.File(file, "r")


def reading(location: StoreLocation, what: str) -> AbstractContextManager[None]:
    """Turn what h5py raises on damaged or foreign files into an error that names the file and the part."""
    return _guard.reading(location, what, "HDF5 file", _ERRORS)


def is_stored(array: h5py.Dataset) -> bool:
    """Whether an array takes as much space as its length needs at least: what was never written reads as zeros."""
    return bool(array.nbytes <= _MOST_PACKED * (array.id.get_storage_size() + _MOST_PACKED))


def check_stored(location: StoreLocation, *arrays: h5py.Dataset) -> None:
    """Refuse arrays that will be read whole and declare more than the file can hold.

    Raises
    ------
    SourceError
        One does.
    """
    for array in arrays:
        if not is_stored(array):
            raise SourceError(
                f"expected {array.shape} values in {array.name} of {location}, as declared, "
                f"got {array.id.get_storage_size()} bytes; the file is damaged: write or download it again"
            )
