"""h5ad files, from the record arrays of anndata 0.5 to today's encodings, read by row blocks."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import h5py
import numpy as np
import pandas as pd
from anndata import OldFormatWarning
from anndata.io import read_elem

from daodask.errors import SourceError
from daodask.sources._hdf5 import CompressedGroup, open_hdf5, reading
from daodask.sources._matrix import (
    check_rows,
    dense_rows,
    no_such,
    plain_facts,
    two_dimensional,
    with_text_names,
)
from daodask.sources.base import Fingerprint
from daodask.sources.fingerprint import fingerprint_location
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Label

__all__ = ["H5adSource"]

_Node: TypeAlias = "h5py.Group | h5py.Dataset"

_quiet = threading.Lock()


class H5adSource:
    """A study in an h5ad file.

    CSR and dense matrices are read by row ranges, straight from the file. A CSC matrix has no row ranges: it is loaded
    whole when a block of it is first read, converted to CSR and kept, so that its memory is the matrix's and not the
    block's.

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
        self.location = location
        self._file = open_hdf5(location)
        self._converted: dict[str, CSR] = {}
        self._convert = threading.Lock()
        missing = [name for name in ("obs", "var") if name not in self._file]
        if missing:
            raise SourceError(
                f"expected an h5ad file with obs and var at {location}, got HDF5 with {sorted(self._file)}; "
                "if it is from Cell Ranger, say format: 10x"
            )
        with reading(location, "/obs"):
            self._n_obs = _frame_length(self._file["obs"])

    def __reduce__(self) -> tuple[type[H5adSource], tuple[StoreLocation]]:
        return H5adSource, (self.location,)

    def __repr__(self) -> str:
        return f"H5adSource({self.location.url!r})"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self._n_obs

    @property
    def matrix_names(self) -> tuple[str, ...]:
        """The matrices that the file has, as :meth:`read_matrix` takes them."""
        found = [name for name, path in (("X", "X"), ("raw", "raw/X"), ("raw", "raw.X")) if path in self._file]
        return (*found, *(f"layers/{name}" for name in self._file.get("layers", ())))

    def obs(self) -> pd.DataFrame:
        """All cell metadata (computes)."""
        return self._frame("obs")

    def var(self, matrix: str) -> pd.DataFrame:
        """Gene metadata of a matrix (computes)."""
        return self._frame(self._var_path(matrix))

    def uns(self) -> Mapping[str, Label]:
        """Those entries of ``uns`` that are one string, number or boolean."""
        group = self._file.get("uns", {})
        # Where obs is a record array, its categories are here; a list of one looks like a fact.
        not_facts = "_categories" if isinstance(self._file["obs"], h5py.Dataset) else ()
        with reading(self.location, "/uns"), _old_encodings():
            found = {k: read_elem(v) for k, v in group.items() if _holds_one(v) and not k.endswith(not_facts)}
        return plain_facts(found)

    @property
    def obsm_names(self) -> tuple[str, ...]:
        """Names of the dense arrays per cell; data frames and sparse arrays are not among them."""
        node = self._file.get("obsm", {})
        if isinstance(node, h5py.Dataset):
            return tuple(name for name in node.dtype.names or () if node.dtype[name].base.kind in "biuf")
        return tuple(name for name, array in node.items() if _is_dense(array))

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of ``"X"``, ``"raw"`` or ``"layers/<name>"`` (computes).

        Raises
        ------
        SourceError
            There is no such matrix, or its content does not fit its declared shape.
        """
        check_rows(start, stop, self.n_obs)
        node = self._file[self._matrix_path(matrix)]
        if isinstance(node, h5py.Dataset):
            self._check_shape(matrix, node.shape)
            with reading(self.location, f"{node.name} rows {start} to {stop}"):
                return dense_rows(node[start:stop])
        return self._read_sparse(matrix, node, start, stop)

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows ``[start, stop)`` of a dense array per cell, 2-D (computes)."""
        check_rows(start, stop, self.n_obs)
        if name not in self.obsm_names:
            raise no_such("a dense array in obsm named", name, self.location, self.obsm_names)
        node = self._file["obsm"]
        with reading(self.location, f"/obsm/{name}"):
            rows = node.fields(name)[start:stop] if isinstance(node, h5py.Dataset) else node[name][start:stop]
        return two_dimensional(rows)

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the file's content; ``known`` is returned where size and stamp are still the same."""
        return fingerprint_location(self.location, known)

    def _matrix_path(self, matrix: str) -> str:
        """Where a matrix is in the file."""
        if matrix not in self.matrix_names:
            raise no_such("a matrix", matrix, self.location, self.matrix_names)
        if matrix == "raw":
            return "raw/X" if "raw/X" in self._file else "raw.X"
        return matrix

    def _var_path(self, matrix: str) -> str:
        path = self._matrix_path(matrix)
        return path.removesuffix("X") + "var" if matrix == "raw" else "var"

    def _frame(self, path: str) -> pd.DataFrame:
        with reading(self.location, f"/{path}"), _old_encodings():
            node = self._file[path]
            if isinstance(node, h5py.Group):
                return with_text_names(read_elem(node))
            # As anndata does, which knows categories for obs and var but not for raw.var.
            categories = self._file.get("uns", {}) if path in ("obs", "var") else {}
            return with_text_names(_record_frame(node, categories))

    def _read_sparse(self, matrix: str, group: h5py.Group, start: int, stop: int) -> CSR:
        kind, shape = _sparse_encoding(group)
        if kind not in ("csr", "csc"):
            raise SourceError(f"expected {matrix} of {self.location} as csr, csc or dense, got {kind or 'a group'}")
        self._check_shape(matrix, shape)
        n_obs, n_vars = shape
        if kind == "csr":
            return CompressedGroup(group, n_obs, n_vars, self.location).read(start, stop)
        with self._convert:
            if matrix not in self._converted:
                self._converted[matrix] = CompressedGroup(group, n_vars, n_obs, self.location).read_transposed()
        return self._converted[matrix][start:stop]

    def _check_shape(self, matrix: str, shape: tuple[int, ...]) -> None:
        path = self._var_path(matrix)
        with reading(self.location, f"/{path}"):
            expected = (self.n_obs, _frame_length(self._file[path]))
        if tuple(shape) != expected:
            raise SourceError(
                f"expected {matrix} of {self.location} to have the {expected[0]} cells of obs and the {expected[1]} "
                f"genes of its var, got shape {tuple(shape)}; the file is damaged: write or download it again"
            )


@contextlib.contextmanager
def _old_encodings() -> Iterator[None]:
    """Read old files without anndata's advice to rewrite them, which is for those who own them."""
    # Warning filters belong to the process: the lock keeps threads from restoring each other's.
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore", OldFormatWarning)
        yield


def _record_frame(node: h5py.Dataset, categories: Mapping[str, Any]) -> pd.DataFrame:
    """The data frame in a record array of anndata before 0.7, whose categories are elsewhere in the file."""
    frame = pd.DataFrame(read_elem(node))
    frame = frame.set_index(frame.columns[0])
    for name in frame.columns:
        key, codes = f"{name}_categories", frame[name]
        if key in categories and codes.dtype.kind in "iu":
            values: Any = np.atleast_1d(read_elem(categories[key]))
            # Columns of the same name in obs and var had one list of categories: it can be the other's.
            if (codes < len(values)).all():
                frame[name] = pd.Categorical.from_codes(codes.to_numpy(), values)
    return frame


def _frame_length(node: _Node) -> int:
    """Rows of an encoded data frame, without reading it."""
    while isinstance(node, h5py.Group):
        # A frame leads to its index: an array, or a group where it is encoded as a nullable or categorical one.
        index = _text(node.attrs.get("_index", "_index"))
        node = node[next((name for name in (index, "values", "codes") if name in node), index)]
    return int(node.shape[0])


def _sparse_encoding(group: h5py.Group) -> tuple[str, tuple[int, ...]]:
    """Kind (``csr``, ``csc`` or another encoding's name) and shape, in today's words or those before 0.7."""
    kind = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", ""))
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape", ()))
    return _text(kind).removesuffix("_matrix"), tuple(int(n) for n in shape)


def _text(attribute: str | bytes) -> str:
    """An attribute as a string; writers in other languages leave fixed-length ones, which come as bytes."""
    return attribute.decode() if isinstance(attribute, bytes) else str(attribute)


def _is_dense(node: _Node) -> bool:
    return isinstance(node, h5py.Dataset) and node.ndim in (1, 2) and node.dtype.kind in "biuf"


def _holds_one(node: _Node) -> bool:
    """One value, which old versions wrote as an array of length one."""
    return isinstance(node, h5py.Dataset) and node.size == 1
