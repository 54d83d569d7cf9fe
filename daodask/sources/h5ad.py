"""h5ad files, from the record arrays of anndata 0.5 to today's encodings, read by row blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

from daodask.sources._anndata import AnnDataSource
from daodask.sources._compressed import CompressedGroup
from daodask.sources._direct import read_elements
from daodask.sources._hdf5 import is_stored, open_hdf5, reading
from daodask.storage import StoreLocation

__all__ = ["H5adSource"]


class H5adSource(AnnDataSource):
    """A study in an h5ad file; see :class:`~daodask.sources._anndata.AnnDataSource` for how it is read.

    Parameters
    ----------
    location
        The file. A local one is opened by its path, a remote one through a file object that fetches what is read.

    Raises
    ------
    SourceError
        There is no file, it is truncated or not HDF5, or it is HDF5 but not an h5ad file.
    """

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location, open_hdf5(location), partial(reading, location))

    def _compressed_group(self, group: Any, major: int, minor: int) -> CompressedGroup:
        return CompressedGroup(group, major, minor, self.location, self._reading, read_elements)

    def _is_stored(self, array: Any) -> bool:
        return is_stored(array)
