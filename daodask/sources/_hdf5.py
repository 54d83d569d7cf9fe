"""HDF5 as h5ad and 10x files use it: opening, errors that say which file, and compressed sparse groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np
import scipy.sparse as sp

from daodask.errors import SourceError
from daodask.sources._matrix import as_csr, plain_numbers
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Int64Array

_CACHED_BLOCK = 2 * 2**20


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


@contextlib.contextmanager
def reading(location: StoreLocation, what: str) -> Iterator[None]:
    """Turn what h5py raises on damaged or foreign files into an error that names the file and the part."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # The network's fault, not the file's: whoever retries must be able to tell.
    except (OSError, KeyError, RuntimeError) as error:
        reason = error.args[-1] if error.args else type(error).__name__
        raise SourceError(
            f"expected a whole HDF5 file at {location}, but {what} can't be read: {reason}; "
            "check that it is one, that its transfer was completed and that nobody is still writing it"
        ) from error


@dataclass(frozen=True, slots=True)
class CompressedGroup:
    """A compressed sparse matrix in an HDF5 group, by its major axis (rows of CSR, columns of CSC).

    Parameters
    ----------
    group
        The group with ``data``, ``indices`` and ``indptr``.
    major, minor
        The declared length of each axis.
    where
        The file, for messages.
    """

    group: h5py.Group
    major: int
    minor: int
    where: StoreLocation

    def read(self, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of the major axis as CSR, checked against the declared shape (computes)."""
        with reading(self.where, f"{self.group.name} rows {start} to {stop}"):
            indptr = self._offsets(start, stop)
            first, last = int(indptr[0]), int(indptr[-1])
            data = plain_numbers(self.group["data"][first:last])
            indices = self.group["indices"][first:last]
        self._check_indices(indices, start, stop)
        return sp.csr_matrix((data, indices, indptr - first), shape=(stop - start, self.minor))

    def read_transposed(self) -> CSR:
        """The whole matrix with its axes swapped: CSC in the file, CSR in memory (computes)."""
        return as_csr(self.read(0, self.major).T)

    def _offsets(self, start: int, stop: int) -> Int64Array:
        """The part of ``indptr`` that bounds the rows. The blocks of a matrix together check all of it."""
        lengths = {name: self.group[name].shape[0] for name in ("data", "indices", "indptr")}
        if lengths["indptr"] != self.major + 1:
            raise self._corrupt(f"{self.major + 1} offsets in indptr", f"{lengths['indptr']}")
        if lengths["data"] != lengths["indices"]:
            raise self._corrupt("as many data as indices", f"{lengths['data']} and {lengths['indices']}")
        ends = [int(self.group["indptr"][i]) for i in (0, self.major)]
        if ends != [0, lengths["data"]]:
            raise self._corrupt(f"indptr from 0 to {lengths['data']}", f"{ends[0]} to {ends[1]}")
        indptr: Int64Array = self.group["indptr"][start : stop + 1].astype(np.int64)
        if np.any(np.diff(indptr) < 0) or indptr[0] < 0 or indptr[-1] > lengths["data"]:
            raise self._corrupt("an indptr that never decreases", f"one that does within rows {start} to {stop}")
        return indptr

    def _check_indices(self, indices: AnyArray, start: int, stop: int) -> None:
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= self.minor):
            found = f"{indices.min()} to {indices.max()} within rows {start} to {stop}"
            raise self._corrupt(f"indices within 0 and {self.minor - 1}", found)

    def _corrupt(self, expected: str, got: str) -> SourceError:
        return SourceError(
            f"expected {expected} in {self.group.name} of {self.where}, got {got}; "
            "the file is damaged: write or download it again"
        )
