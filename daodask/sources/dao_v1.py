"""A dataset of the DAO format as sfaira wrote it: dense zarr, parquet and a pickle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import zarr

from daodask.errors import SourceError, StoreNotFoundError
from daodask.sources import _guard
from daodask.sources._dense import DenseMatrix
from daodask.sources._matrix import as_csr, check_rows, no_such, plain_facts, with_text_names
from daodask.sources._parts import PART_VALUES
from daodask.sources._unpickle import restricted_loads
from daodask.sources.base import Coordinates, Fingerprint, Parts
from daodask.sources.fingerprint import fingerprint_location
from daodask.sources.zarr import ZARR_ERRORS, open_zarr
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Int64Array, Label

__all__ = ["DaoV1Source"]

_OBS: Final = "parquet/obs.parquet"
_VAR: Final = "parquet/var.parquet"
_UNS: Final = "pickle/uns.pickle"
_X: Final = "zarr"

#: Where a shuffled dataset says at which row each row of the original is.
_PERMUTATION: Final = "permutation_original_data"


class DaoV1Source:
    """A dataset that sfaira's ``write_distributed_store`` left: ``zarr/X``, ``parquet/`` and ``pickle/``.

    Where the cells were shuffled on writing, they are put back: row i is what the stored row ``p[i]`` holds, p being
    the column ``permutation_original_data``, which is then no column of obs. The rows of a block are all over the
    stored matrix, so that a build reads it once in parts and transposes it, as one that is compressed by columns;
    ``read_matrix`` reads the bands of chunks that hold a row it wants, one at a time, and keeps nothing else of them.

    Parameters
    ----------
    location
        The dataset's directory, local or remote.

    Raises
    ------
    SourceError
        A part is missing, or the parts don't go together.
    """

    def __init__(self, location: StoreLocation) -> None:
        self.location = location
        self._reading = partial(_reading, location)
        group = open_zarr(location / _X)
        with self._reading(f"{_X}/X"):
            array = group["X"]
            if not isinstance(array, zarr.Array) or array.ndim != 2 or array.dtype.kind not in "biuf":
                raise SourceError(f"expected a dense matrix of numbers in {location / _X}/X, got {array}")
        self._array = array
        self._n_obs, self._n_vars = (self._length(name) for name in (_OBS, _VAR))
        if array.shape != (self._n_obs, self._n_vars):
            raise SourceError(
                f"expected X of {location} to have the {self._n_obs} cells of {_OBS} and the {self._n_vars} genes of "
                f"{_VAR}, got shape {array.shape}; the files don't belong together or one is damaged"
            )

    def __reduce__(self) -> tuple[type[DaoV1Source], tuple[StoreLocation]]:
        return DaoV1Source, (self.location,)

    def __repr__(self) -> str:
        return f"DaoV1Source({self.location.url!r})"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self._n_obs

    @property
    def matrix_names(self) -> tuple[str, ...]:
        """The one matrix that there is."""
        return ("X",)

    def obs(self) -> pd.DataFrame:
        """All cell metadata, in the original order (computes)."""
        frame = self._table(_OBS)
        restored = frame if self._rows is None else frame.iloc[self._rows]
        return with_text_names(restored.drop(columns=_PERMUTATION, errors="ignore"))

    def var(self, matrix: str) -> pd.DataFrame:
        """Gene metadata (computes)."""
        self._check_matrix(matrix)
        return with_text_names(self._table(_VAR))

    def uns(self) -> Mapping[str, Label]:
        """Those entries of the pickle that are one string, number or boolean; none where there is no pickle.

        Raises
        ------
        SourceError
            It names anything but plain values and arrays; see :func:`~daodask.sources._unpickle.restricted_loads`.
        """
        file = self.location / _UNS
        try:
            content = file.read()
        except StoreNotFoundError:
            return {}
        facts = restricted_loads(content, file)
        if not isinstance(facts, Mapping):
            raise SourceError(f"expected a dict in the pickle {file}, got {type(facts).__name__}; restore the file")
        return plain_facts(facts)

    @property
    def obsm_names(self) -> tuple[str, ...]:
        """There are no arrays per cell."""
        return ()

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of ``"X"``, in the original order (computes).

        Raises
        ------
        SourceError
            Another matrix was asked for, or it can't be read.
        """
        self._check_matrix(matrix)
        check_rows(start, stop, self.n_obs)
        with self._reading(f"X rows {start} to {stop}"):
            if self._rows is None:
                return DenseMatrix.of(self._array).rows(start, stop)
            return self._permuted(self._rows[start:stop])

    def matrix_parts(self, matrix: str) -> Parts | None:
        """How the matrix of shuffled cells is cut into parts; ``None`` where rows are in order, or all fit one part."""
        self._check_matrix(matrix)
        if self._rows is None or self._n_obs * self._n_vars <= PART_VALUES:
            return None
        return Parts(-(-self._n_obs // self._band), DenseMatrix.of(self._array).rows(0, 0).dtype.name)

    def read_parts(self, matrix: str, start: int, stop: int) -> Iterator[Coordinates]:
        """Parts ``[start, stop)``: runs of the stored rows, each with the row of the original that it is (computes)."""
        self._check_matrix(matrix)
        original = np.arange(self._n_obs) if self._rows is None else np.argsort(self._rows)
        for part in range(start, stop):
            first = part * self._band
            last = min(first + self._band, self._n_obs)
            with self._reading(f"X rows {first} to {last} as stored"):
                rows = DenseMatrix.of(self._array).rows(first, last)
            yield Coordinates(np.repeat(original[first:last], np.diff(rows.indptr)), rows.indices, rows.data)

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Refused, as there are none."""
        check_rows(start, stop, self.n_obs)
        raise no_such("a dense array in obsm named", name, self.location, ())

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of all its files; ``known`` is returned where size and stamp are still the same."""
        return fingerprint_location(self.location, known)

    @cached_property
    def _rows(self) -> Int64Array | None:
        """The stored row of each row of the original; ``None`` where they are the same."""
        with self._parquet(_OBS) as file:
            if _PERMUTATION not in file.schema_arrow.names:
                return None
            rows = file.read([_PERMUTATION])[_PERMUTATION].to_numpy()
        if rows.dtype.kind not in "iu" or not np.array_equal(np.sort(rows), np.arange(self._n_obs)):
            raise SourceError(
                f"expected {_PERMUTATION} in {_OBS} of {self.location} to have each number below {self._n_obs} once, "
                f"got {rows[:5]} …; the file is damaged: restore it"
            )
        return np.asarray(rows, dtype=np.int64)

    @property
    def _band(self) -> int:
        """Stored rows to read at a time: whole chunks of about as many values as a part has, zeros among them.

        Of chunks that have more each is decoded several times: memory goes before time.
        """
        chunk = int(self._array.chunks[0])
        rows = max(1, PART_VALUES // max(1, self._n_vars))
        return max(1, rows // chunk * chunk or rows)

    def _permuted(self, wanted: Int64Array) -> CSR:
        """Stored rows in the order wanted, each band of them read once."""
        order = np.argsort(wanted, kind="stable")
        increasing = wanted[order]
        dense = DenseMatrix.of(self._array)
        picked = [dense.rows(0, 0)]
        for rows in np.split(
            increasing, np.flatnonzero(np.diff(increasing // min(self._band, self._array.chunks[0]))) + 1
        ):
            if len(rows):
                first = int(rows[0])
                picked.append(dense.rows(first, int(rows[-1]) + 1)[rows - first])
        return as_csr(sp.vstack(picked, format="csr")[np.argsort(order)])

    def _check_matrix(self, matrix: str) -> None:
        if matrix != "X":
            raise no_such("a matrix", matrix, self.location, ("X",))

    # -- parquet ---------------------------------------------------------------------------------------------------

    def _length(self, name: str) -> int:
        with self._parquet(name) as file:
            return int(file.metadata.num_rows)

    def _table(self, name: str) -> pd.DataFrame:
        with self._parquet(name) as file:
            frame: pd.DataFrame = file.read().to_pandas()
            return frame

    @contextlib.contextmanager
    def _parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        where = self.location / name
        if not where.exists():
            raise SourceError(
                f"expected {name} in {self.location}, found none; a dataset of DAO v1 has {_X}, {_OBS} and {_VAR}"
            )
        with self._reading(name), where.fs.open(where.path, "rb") as handle, pq.ParquetFile(handle) as file:
            yield file


def _reading(location: StoreLocation, what: str) -> AbstractContextManager[None]:
    return _guard.reading(location, what, "dataset of DAO v1", (*ZARR_ERRORS, pa.ArrowException))
