"""A dataset of a daodask store as a source: to merge stores, or to lay one out anew."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp

from daodask.arrays import open_array
from daodask.errors import CorruptStoreError, SourceError, StoreNotFoundError
from daodask.format.spec import CHECKSUMS, VAR_MEASURED
from daodask.sources.base import Fingerprint
from daodask.sources.download import origin_of
from daodask.sources.fingerprint import stamp_location
from daodask.sources.zarr import ZarrSource
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, BoolArray

__all__ = ["DaoSource"]

_CHECKED: Final = "the dataset is damaged: check its store with `daodask validate`"


class DaoSource(ZarrSource):
    """One dataset of a daodask store, as it is stored there.

    Its genes are those that its study measured: what a dataset did not measure is no observation of zero, and must not
    become one on another feature space.

    Parameters
    ----------
    location
        The dataset's directory.

    Raises
    ------
    SourceError
        There is no such dataset, or it is none of a daodask store.
    """

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        if not (location / CHECKSUMS).exists():
            raise SourceError(
                f"expected a dataset of a daodask store at {location}, got a zarr group without {CHECKSUMS}; "
                "if it is another AnnData, say format: zarr"
            )

    def var(self, matrix: str) -> pd.DataFrame:
        """The genes that the study measured, without the column that says so (computes)."""
        return super().var(matrix)[self._measured].drop(columns=VAR_MEASURED)

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of ``"X"`` or ``"layers/<name>"``, of the measured genes (computes)."""
        rows = super().read_matrix(matrix, start, stop)
        measured = self._measured
        if measured.all():
            return rows
        if not measured[rows.indices].all():
            raise SourceError(
                f"expected values of measured genes alone in {matrix} of {self.location}, got some of others within "
                f"rows {start} to {stop}; {_CHECKED}"
            )
        column = np.cumsum(measured, dtype=rows.indices.dtype) - 1
        return sp.csr_matrix((rows.data, column[rows.indices], rows.indptr), shape=(stop - start, int(measured.sum())))

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the content: the checksum of the list of all files with their checksums, which alone is read."""
        where = origin_of(self.location) / CHECKSUMS
        stamp = stamp_location(where)
        try:
            listed = where.read()
            size = sum(int(file["size"]) for file in json.loads(listed).values())
        except (StoreNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"expected the sizes of its files in {where}; {_CHECKED}") from error
        if known is not None and (known.size, known.stamp) == (size, stamp):
            return known
        return Fingerprint(size, stamp, hashlib.sha256(listed).hexdigest())

    @cached_property
    def _measured(self) -> BoolArray:
        """Whether each gene of the feature space was measured."""
        var = super().var("X")
        if VAR_MEASURED not in var or var[VAR_MEASURED].dtype != np.bool_:
            raise SourceError(f"expected the boolean column {VAR_MEASURED!r} in var of {self.location}; {_CHECKED}")
        return var[VAR_MEASURED].to_numpy()

    def _take(self, array: Any, start: int, stop: int) -> AnyArray:
        """Elements straight from the bytes of the shards, in which no chunk may be absent and each has its checksum."""
        try:
            return open_array(self.location, array.path).read(start, stop)
        except CorruptStoreError as error:
            raise SourceError(f"{error}; {_CHECKED}") from error
