"""loom files: HDF5 with a dense matrix of genes x cells, read by blocks of cells."""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, Final

import h5py
import numpy as np
import pandas as pd

from daodask.errors import SourceError
from daodask.sources._dense import DenseMatrix
from daodask.sources._hdf5 import check_stored, open_hdf5, reading
from daodask.sources._matrix import check_rows, no_such, plain_facts
from daodask.sources.base import Fingerprint
from daodask.sources.fingerprint import fingerprint_location
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Label

__all__ = ["LoomSource"]

#: Attributes that are taken for the names of cells and of genes: the first that is there. Ids go before symbols, as no
#: two genes share one.
_CELLS: Final = ("CellID", "obs_names", "cell_names", "Barcode", "barcode", "barcodes", "index")
_GENES: Final = ("Accession", "Gene", "var_names", "gene_names", "GeneName", "index")


class LoomSource:
    """A study in a loom file of any version.

    Attributes of one value per cell or gene are the columns of obs and var, those of numbers in several columns per
    cell are arrays in obsm. The matrix is read by tiles of the cells that are asked for, no more than one at a time.

    Parameters
    ----------
    location
        The file, local or remote.
    cells
        The column attribute with the cells' names. By default the first there is of ``CellID``, ``obs_names``,
        ``cell_names``, ``Barcode``, … The genes' names are those in ``Accession``, else in ``Gene``, ``var_names``, …;
        all of them are columns of var, too.

    Raises
    ------
    SourceError
        There is no file, it is truncated or not HDF5, or it is HDF5 of something else.
    """

    def __init__(self, location: StoreLocation, cells: str = "") -> None:
        self.location = location
        self._cells = cells
        self._file = open_hdf5(location)
        self._reading = partial(reading, location)
        with self._reading("/matrix"):
            matrix = self._file.get("matrix")
            if not isinstance(matrix, h5py.Dataset) or matrix.ndim != 2:
                raise SourceError(
                    f"expected a loom file with a matrix of genes x cells at {location}, got HDF5 with "
                    f"{sorted(self._file)}; if it is of another format, say which"
                )
            self._shape = matrix.shape
            self._check_axes(matrix)
        if cells and cells not in self._names("col_attrs"):
            raise no_such("a column attribute", cells, location, self._names("col_attrs"))

    def __reduce__(self) -> tuple[type[LoomSource], tuple[StoreLocation, str]]:
        return LoomSource, (self.location, self._cells)

    def __repr__(self) -> str:
        return f"LoomSource({self.location.url!r})"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self._shape[1])

    @cached_property
    def matrix_names(self) -> tuple[str, ...]:
        """The matrices that there are, as :meth:`read_matrix` takes them."""
        return ("X", *(f"layers/{name}" for name in self._names("layers")))

    def obs(self) -> pd.DataFrame:
        """All attributes of one value per cell (computes)."""
        return self._frame("col_attrs", self.n_obs, (self._cells,) if self._cells else _CELLS)

    def var(self, matrix: str) -> pd.DataFrame:
        """All attributes of one value per gene (computes)."""
        self._check_matrix(matrix)
        return self._frame("row_attrs", int(self._shape[0]), _GENES)

    def uns(self) -> Mapping[str, Label]:
        """Attributes of the file that are one string, number or boolean."""
        with self._reading("the attributes"):
            facts = {name: _unescaped(value) for name, value in self._file.attrs.items()}
            group = self._file.get("attrs", {})
            for name in group:
                if isinstance(group[name], h5py.Dataset) and group[name].size == 1:
                    facts[name] = _unescaped(group[name][()])
            return plain_facts(facts)

    @cached_property
    def obsm_names(self) -> tuple[str, ...]:
        """Names of the attributes of numbers in several columns per cell."""
        with self._reading("/col_attrs"):
            group = self._file.get("col_attrs", {})
            return tuple(n for n in self._names("col_attrs") if group[n].ndim == 2 and group[n].dtype.kind in "biuf")

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Cells ``[start, stop)`` of ``"X"`` (the file's ``matrix``) or ``"layers/<name>"`` (computes).

        Raises
        ------
        SourceError
            There is no such matrix, it has not the shape of the file's, or it can't be read.
        """
        self._check_matrix(matrix)
        check_rows(start, stop, self.n_obs)
        path = "matrix" if matrix == "X" else matrix
        with self._reading(f"/{path} cells {start} to {stop}"):
            node = self._file[path]
            if node.shape != self._shape:
                raise self._damaged(f"{self._shape} genes x cells in /{path}", f"{node.shape}")
            if node.dtype.kind not in "biuf":
                raise self._damaged(f"numbers in /{path}", f"values of type {node.dtype}")
            return DenseMatrix.transposed(node).rows(start, stop)

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows ``[start, stop)`` of an attribute of several columns per cell (computes)."""
        check_rows(start, stop, self.n_obs)
        if name not in self.obsm_names:
            raise no_such("a dense array in obsm named", name, self.location, self.obsm_names)
        with self._reading(f"/col_attrs/{name}"):
            node = self._file["col_attrs"][name]
            self._check_length(node, self.n_obs)
            return np.asarray(node[start:stop])

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the file's content; ``known`` is returned where size and stamp are still the same."""
        return fingerprint_location(self.location, known)

    def _names(self, group: str) -> tuple[str, ...]:
        with self._reading(f"/{group}"):
            return tuple(self._file.get(group, {}))

    def _check_matrix(self, matrix: str) -> None:
        if matrix not in self.matrix_names:
            raise no_such("a matrix", matrix, self.location, self.matrix_names)

    def _frame(self, path: str, length: int, names: tuple[str, ...]) -> pd.DataFrame:
        """Attributes of an axis by name; what has no names, which any frame needs, has empty ones."""
        with self._reading(f"/{path}"):
            group = self._file.get(path, {})
            columns = {}
            for name in group:
                self._check_length(group[name], length)
                if group[name].ndim == 1:
                    columns[name] = _values(group[name])
        chosen = next((name for name in names if name in columns), None)
        index = [""] * length if chosen is None else [str(name) for name in columns[chosen]]
        return pd.DataFrame(columns, index=pd.Index(index, dtype=object))

    def _check_axes(self, matrix: h5py.Dataset) -> None:
        """Refuse lengths that nothing but the matrix's own shape speaks for.

        How much of it is stored is only known by its many chunks, which lie all over the file, so that it is the last
        to be asked.
        """
        for path, length in (("row_attrs", self._shape[0]), ("col_attrs", self._shape[1])):
            attributes = self._file.get(path, {})
            for name in attributes:
                self._check_length(attributes[name], int(length))
                break
            else:
                check_stored(self.location, matrix)

    def _check_length(self, node: Any, length: int) -> None:
        if not isinstance(node, h5py.Dataset) or node.shape[:1] != (length,):
            got = node.shape if isinstance(node, h5py.Dataset) else "a group"
            raise self._damaged(f"{length} values in {node.name}, as /matrix is of shape {self._shape}", f"{got}")
        check_stored(self.location, node)

    def _damaged(self, expected: str, got: str) -> SourceError:
        return SourceError(
            f"expected {expected} in {self.location}, got {got}; the file is damaged: write or download it again"
        )


def _values(node: h5py.Dataset) -> AnyArray:
    """Values of an attribute; text as str, in which loom writes what is beyond ASCII as XML entities."""
    values = node[()]
    if values.dtype.kind not in "SO":
        return np.asarray(values)
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.tolist()]
    return np.array([html.unescape(t) for t in texts], dtype=object)


def _unescaped(value: Any) -> Any:
    """A fact of the file: text as str, an array of one value as the value."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return html.unescape(text) if isinstance(text, str) else text
