"""An AnnData on disk, as a tree of groups and arrays: what h5ad files and zarr groups have in common."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import OldFormatWarning
from anndata._io.specs.registry import IORegistryError  # it has no public name
from anndata.io import read_elem

from daodask.errors import SourceError
from daodask.sources._compressed import CompressedGroup
from daodask.sources._dense import DenseMatrix
from daodask.sources._guard import Reading
from daodask.sources._matrix import check_rows, no_such, plain_facts, two_dimensional, with_text_names
from daodask.sources._parts import PART_VALUES, number_of_parts, rows_of_parts
from daodask.sources.base import Coordinates, Fingerprint, Parts
from daodask.sources.fingerprint import fingerprint_location
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Label

__all__ = ["AnnDataSource"]

#: A group or an array of h5py or zarr: groups are mappings of names to nodes, both have attributes.
_Node: TypeAlias = Any

#: Encodings of what may be one plain value; old versions wrote none.
_FACTS: Final = ("", "array", "string", "string-array", "numeric-scalar")
#: The group of a data frame of anndata 0.7 that is no column.
_OLD_CATEGORIES: Final = "__categories"

_quiet = threading.Lock()


class AnnDataSource:
    """A study in the AnnData layout, of any of its versions.

    CSR and dense matrices are read by row ranges. A CSC matrix has no row ranges: one that fits a part is converted to
    CSR when rows of it are first read, and kept; a larger one is read in parts, all of them for any rows.

    Parameters
    ----------
    location
        The file or directory.
    root
        Its top group, opened.
    reading
        Guards what the library does.

    Raises
    ------
    SourceError
        It has no obs or no var.
    """

    def __init__(self, location: StoreLocation, root: _Node, reading: Reading) -> None:
        self.location = location
        self._root = root
        self._reading = reading
        self._converted: tuple[str, CSR] = "", sp.csr_matrix((0, 0))
        self._convert = threading.Lock()
        #: What was found to be sound, as it is read in many runs of rows.
        self._sparse: dict[str, tuple[CompressedGroup, str]] = {}
        with reading("the list of its parts"):
            parts = sorted(root.keys())
        if not {"obs", "var"} <= set(parts):
            raise SourceError(
                f"expected an AnnData with obs and var at {location}, got one with {parts or 'nothing'}; "
                "if it is of another format, say which: format: 10x (of Cell Ranger), loom, …"
            )
        self._n_obs = self._frame_length("obs")

    def __reduce__(self) -> tuple[type[AnnDataSource], tuple[StoreLocation]]:
        return type(self), (self.location,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location.url!r})"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self._n_obs

    @cached_property
    def matrix_names(self) -> tuple[str, ...]:
        """The matrices that there are, as :meth:`read_matrix` takes them."""
        with self._reading("the list of matrices"):
            found = [name for name, path in (("X", "X"), ("raw", "raw/X"), ("raw", "raw.X")) if path in self._root]
            return (*found, *(f"layers/{name}" for name in self._root.get("layers", {})))

    def obs(self) -> pd.DataFrame:
        """All cell metadata (computes)."""
        return self._frame("obs")

    def var(self, matrix: str) -> pd.DataFrame:
        """Gene metadata of a matrix (computes)."""
        return self._frame(self._var_path(matrix))

    def uns(self) -> Mapping[str, Label]:
        """Those entries of ``uns`` that are one string, number or boolean."""
        with self._reading("/uns"), _old_encodings():
            group = self._root.get("uns", {})
            # Where obs is a record array, its categories are here; a list of one looks like a fact.
            not_facts = "_categories" if _is_array(self._root["obs"]) else ()
            nodes = {name: group[name] for name in group if not name.endswith(not_facts)}
            return plain_facts({name: read_elem(node) for name, node in nodes.items() if _is_fact(node)})

    @cached_property
    def obsm_names(self) -> tuple[str, ...]:
        """Names of the dense arrays per cell; data frames and sparse arrays are not among them."""
        with self._reading("/obsm"):
            node = self._root.get("obsm", {})
            if _is_array(node):
                return tuple(name for name in node.dtype.names or () if node.dtype[name].base.kind in "biuf")
            return tuple(name for name in node if _is_dense(node[name]))

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of ``"X"``, ``"raw"`` or ``"layers/<name>"`` (computes).

        Raises
        ------
        SourceError
            There is no such matrix, or its content does not fit its declared shape.
        """
        check_rows(start, stop, self.n_obs)
        if matrix not in self._sparse:
            node = self._matrix_node(matrix)
            if _is_array(node):
                self._check_shape(matrix, node.shape)
                self._check_numbers(matrix, node)
                with self._reading(f"{node.name} rows {start} to {stop}"):
                    return DenseMatrix.of(node).rows(start, stop)
            self._sparse[matrix] = self._compressed(matrix, node)
        compressed, kind = self._sparse[matrix]
        return compressed.read(start, stop) if kind == "csr" else self._read_transposed(matrix, compressed, start, stop)

    def matrix_parts(self, matrix: str) -> Parts | None:
        """How a matrix that is CSC is cut into parts; ``None`` where it is of another kind, or fits one part.

        Raises
        ------
        SourceError
            There is no such matrix, or its content does not fit its declared shape.
        """
        node = self._matrix_node(matrix)
        if _is_array(node):
            return None
        compressed, kind = self._compressed(matrix, node)
        if kind == "csr" or compressed.n_values <= PART_VALUES:
            return None
        return Parts(number_of_parts(compressed.n_values), compressed.dtype)

    def read_parts(self, matrix: str, start: int, stop: int) -> Iterator[Coordinates]:
        """Parts ``[start, stop)`` of a CSC matrix: runs of its values, column by column (computes each).

        Raises
        ------
        SourceError
            The content does not fit the declared shape.
        """
        compressed, _ = self._compressed(matrix, self._matrix_node(matrix))
        n_values = compressed.n_values
        for part in range(start, stop):
            first = part * PART_VALUES
            columns, rows, values = compressed.read_values(first, min(first + PART_VALUES, n_values))
            yield Coordinates(rows, columns, values)

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows ``[start, stop)`` of a dense array per cell, 2-D (computes).

        Raises
        ------
        SourceError
            There is no such array, or it does not have the rows of obs.
        """
        check_rows(start, stop, self.n_obs)
        if name not in self.obsm_names:
            raise no_such("a dense array in obsm named", name, self.location, self.obsm_names)
        node = self._root["obsm"]
        array = node if _is_array(node) else node[name]
        if array.shape[0] != self.n_obs:
            raise self._damaged(f"{self.n_obs} rows in /obsm/{name}, as there are cells", f"{array.shape[0]}")
        with self._reading(f"/obsm/{name}"):
            rows = array[start:stop]
        return two_dimensional(np.asarray(rows[name] if _is_array(node) else rows))

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the content; ``known`` is returned where size and stamp are still the same."""
        return fingerprint_location(self.location, known)

    # -- matrices --------------------------------------------------------------------------------------------------

    def _matrix_path(self, matrix: str) -> str:
        """Where a matrix is in the tree."""
        if matrix not in self.matrix_names:
            raise no_such("a matrix", matrix, self.location, self.matrix_names)
        if matrix == "raw":
            return "raw/X" if "raw/X" in self._root else "raw.X"
        return matrix

    def _matrix_node(self, matrix: str) -> _Node:
        path = self._matrix_path(matrix)
        with self._reading(f"/{path}"):
            return self._root[path]

    def _compressed(self, matrix: str, group: _Node) -> tuple[CompressedGroup, str]:
        """A sparse matrix, and whether it is ``csr`` or ``csc``."""
        kind, shape = _sparse_encoding(group)
        if kind not in ("csr", "csc"):
            raise SourceError(f"expected {matrix} of {self.location} as csr, csc or dense, got {kind or 'a group'}")
        self._check_shape(matrix, shape)
        with self._reading(group.name):
            self._check_numbers(matrix, group["data"])
        major, minor = shape if kind == "csr" else shape[::-1]
        return self._compressed_group(group, major, minor), kind

    def _compressed_group(self, group: _Node, major: int, minor: int) -> CompressedGroup:
        return CompressedGroup(group, major, minor, self.location, self._reading)

    def _read_transposed(self, matrix: str, compressed: CompressedGroup, start: int, stop: int) -> CSR:
        number = number_of_parts(compressed.n_values)
        if number > 1:
            parts = self.read_parts(matrix, 0, number)
            return rows_of_parts(parts, start, stop, compressed.major, compressed.dtype)
        with self._convert:
            if self._converted[0] != matrix:
                parts = self.read_parts(matrix, 0, 1)
                whole = rows_of_parts(parts, 0, self.n_obs, compressed.major, compressed.dtype)
                self._converted = matrix, whole
            return self._converted[1][start:stop]

    def _check_shape(self, matrix: str, shape: tuple[int, ...]) -> None:
        expected = (self.n_obs, self._frame_length(self._var_path(matrix)))
        if tuple(shape) != expected:
            raise self._damaged(
                f"{matrix} to have the {expected[0]} cells of obs and the {expected[1]} genes of its var",
                f"shape {tuple(shape)}",
            )

    def _check_numbers(self, matrix: str, array: _Node) -> None:
        if array.dtype.kind not in "biuf":
            raise SourceError(
                f"expected {matrix} of {self.location} to be a matrix of numbers, got values of type {array.dtype}; "
                "convert them before"
            )

    # -- frames ----------------------------------------------------------------------------------------------------

    def _var_path(self, matrix: str) -> str:
        path = self._matrix_path(matrix)
        return path.removesuffix("X") + "var" if matrix == "raw" else "var"

    def _frame(self, path: str) -> pd.DataFrame:
        length = self._frame_length(path)
        with self._reading(f"/{path}"), _old_encodings():
            node = self._root[path]
            if not _is_array(node):
                self._check_columns(path, node, length)
                return with_text_names(self._decoded(node))
            # As anndata does, which knows categories for obs and var but not for raw.var.
            categories = self._root.get("uns", {}) if path in ("obs", "var") else {}
            return with_text_names(_record_frame(node, categories))

    def _decoded(self, group: _Node) -> pd.DataFrame:
        try:
            frame: pd.DataFrame = read_elem(group)
        except IORegistryError as error:
            reason = str(error).strip().splitlines()[0]
            raise SourceError(
                f"expected {group.name} of {self.location} in encodings that anndata reads, but {reason}; "
                "write it with a released anndata, or install a newer one here"
            ) from error
        return frame

    def _frame_length(self, path: str) -> int:
        """Rows of an encoded data frame, without reading it."""
        with self._reading(f"/{path}"):
            array = _index_array(self._root[path])
            length = int(array.shape[0])
            if not self._is_stored(array):
                raise self._damaged(f"the names of {length} rows in /{path}, as declared", "next to none")
        return length

    def _check_columns(self, path: str, group: _Node, length: int) -> None:
        """Refuse columns of another length before they are read: it may be any."""
        for name in set(group) - {_OLD_CATEGORIES}:
            column = group[name]
            arrays = [column] if _is_array(column) else [column[k] for k in ("codes", "values", "mask") if k in column]
            for array in arrays:
                if array.shape[:1] != (length,):
                    raise self._damaged(f"{length} values in /{path}/{name}, as there are rows", f"{array.shape}")

    def _is_stored(self, array: _Node) -> bool:
        """Whether an array takes as much space as its declared length needs at least."""
        raise NotImplementedError

    def _damaged(self, expected: str, got: str) -> SourceError:
        return SourceError(
            f"expected {expected} in {self.location}, got {got}; the file is damaged: write or download it again"
        )


@contextlib.contextmanager
def _old_encodings() -> Iterator[None]:
    """Read old files without anndata's advice to rewrite them, which is for those who own them."""
    # Warning filters belong to the process: the lock keeps threads from restoring each other's.
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore", OldFormatWarning)
        yield


def _is_array(node: _Node) -> bool:
    return hasattr(node, "dtype")


def _record_frame(node: _Node, categories: Mapping[str, Any]) -> pd.DataFrame:
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


def _index_array(node: _Node) -> _Node:
    """The array that has a value per row of an encoded data frame."""
    while not _is_array(node):
        # A frame leads to its index: an array, or a group where it is encoded as a nullable or categorical one.
        index = _text(node.attrs.get("_index", "_index"))
        node = node[next((name for name in (index, "values", "codes") if name in node), index)]
    return node


def _sparse_encoding(group: _Node) -> tuple[str, tuple[int, ...]]:
    """Kind (``csr``, ``csc`` or another encoding's name) and shape, in today's words or those before 0.7."""
    kind = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", ""))
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape", ()))
    return _text(kind).removesuffix("_matrix"), tuple(int(n) for n in shape)


def _text(attribute: str | bytes) -> str:
    """An attribute as a string; writers in other languages leave fixed-length ones, which come as bytes."""
    return attribute.decode() if isinstance(attribute, bytes) else str(attribute)


def _is_dense(node: _Node) -> bool:
    return _is_array(node) and node.ndim in (1, 2) and node.dtype.kind in "biuf"


def _is_fact(node: _Node) -> bool:
    """One value, which old versions wrote as an array of length one."""
    return _is_array(node) and node.size == 1 and _text(node.attrs.get("encoding-type", "")) in _FACTS
