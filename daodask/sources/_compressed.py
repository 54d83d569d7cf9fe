"""Compressed sparse matrices in groups of three arrays, as HDF5 and zarr both hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from daodask.errors import SourceError
from daodask.sources._guard import Reading
from daodask.sources._matrix import plain_numbers
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Int64Array

__all__ = ["CompressedGroup"]


def _slice(array: Any, start: int, stop: int) -> AnyArray:
    values: AnyArray = array[start:stop]
    return values


@dataclass(frozen=True)
class CompressedGroup:
    """A compressed sparse matrix, by its major axis (rows of CSR, columns of CSC).

    Parameters
    ----------
    group
        The group of h5py or zarr with ``data``, ``indices`` and ``indptr``.
    major, minor
        The declared length of each axis.
    where
        The file, for messages.
    reading
        Guards what the library does.
    take
        Reads elements of an array of the group.
    """

    group: Any
    major: int
    minor: int
    where: StoreLocation
    reading: Reading
    take: Callable[[Any, int, int], AnyArray] = _slice

    def read(self, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of the major axis as CSR, checked against the declared shape (computes)."""
        with self.reading(f"{self.group.name} rows {start} to {stop}"):
            indptr = self._offsets(start, stop)
            first, last = int(indptr[0]), int(indptr[-1])
            data = plain_numbers(self.take(self._arrays["data"], first, last))
            indices = self.take(self._arrays["indices"], first, last)
            self._check_indices(indices, start, stop)
            return sp.csr_matrix((data, indices, indptr - first), shape=(stop - start, self.minor))

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        """The three, looked up once: HDF5 takes its time, and lets nobody else in meanwhile."""
        return {name: self.group[name] for name in ("data", "indices", "indptr")}

    @property
    def n_values(self) -> int:
        """Stored values."""
        with self.reading(self.group.name):
            return int(self._arrays["data"].shape[0])

    @property
    def dtype(self) -> str:
        """Of the values, as they are read."""
        with self.reading(self.group.name):
            return plain_numbers(self._arrays["data"][:0]).dtype.name

    def read_values(self, start: int, stop: int) -> tuple[AnyArray, AnyArray, AnyArray]:
        """Values ``[start, stop)`` as they are stored: major and minor number of each, and the values (computes)."""
        with self.reading(f"{self.group.name} values {start} to {stop}"):
            indptr = self._offsets(0, self.major)
            values = plain_numbers(self.take(self._arrays["data"], start, stop))
            indices = self.take(self._arrays["indices"], start, stop)
        self._check_indices(indices, *np.searchsorted(indptr, (start, stop), side="right").tolist())
        ends = np.clip(indptr, start, stop)
        return np.repeat(np.arange(self.major, dtype=np.int32), ends[1:] - ends[:-1]), indices, values

    def _offsets(self, start: int, stop: int) -> Int64Array:
        """The part of ``indptr`` that bounds the rows. The blocks of a matrix together check all of it."""
        n_values = self._n_bounded
        indptr: Int64Array = self.take(self._arrays["indptr"], start, stop + 1).astype(np.int64)
        longest = np.diff(indptr)
        if np.any(longest < 0) or indptr[0] < 0 or indptr[-1] > n_values:
            raise self._corrupt("an indptr that never decreases", f"one that does within rows {start} to {stop}")
        if longest.max(initial=0) > self.minor:
            # A row may have a place twice, but who asks for more values than there are places asks for any memory.
            raise self._corrupt(
                f"at most {self.minor} values in a row", f"{longest.max()} within rows {start} to {stop}"
            )
        return indptr

    @cached_property
    def _n_bounded(self) -> int:
        """Stored values, which the three arrays agree on."""
        lengths = {name: array.shape[0] for name, array in self._arrays.items()}
        if lengths["indptr"] != self.major + 1:
            raise self._corrupt(f"{self.major + 1} offsets in indptr", f"{lengths['indptr']}")
        if lengths["data"] != lengths["indices"]:
            raise self._corrupt("as many data as indices", f"{lengths['data']} and {lengths['indices']}")
        ends = [int(self.take(self._arrays["indptr"], i, i + 1)[0]) for i in (0, self.major)]
        if ends != [0, lengths["data"]]:
            raise self._corrupt(f"indptr from 0 to {lengths['data']}", f"{ends[0]} to {ends[1]}")
        return int(lengths["data"])

    def _check_indices(self, indices: AnyArray, start: int, stop: int) -> None:
        if indices.dtype.kind not in "iu":
            raise self._corrupt("whole numbers as indices", f"values of type {indices.dtype}")
        # Of signed numbers negative ones are very large without their sign: one look instead of two.
        unsigned = indices.view(indices.dtype.str.replace("i", "u"))
        if indices.size and int(unsigned.max()) >= self.minor:
            found = f"{indices.min()} to {indices.max()} within rows {start} to {stop}"
            raise self._corrupt(f"indices within 0 and {self.minor - 1}", found)

    def _corrupt(self, expected: str, got: str) -> SourceError:
        return SourceError(
            f"expected {expected} in {self.group.name} of {self.where}, got {got}; "
            "the file is damaged: write or download it again"
        )
