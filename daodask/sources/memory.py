"""An AnnData in memory as a source."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from daodask.errors import SourceError
from daodask.sources._matrix import (
    as_csr,
    check_rows,
    dense_rows,
    no_such,
    plain_facts,
    two_dimensional,
    with_text_names,
)
from daodask.sources.base import Fingerprint
from daodask.sources.fingerprint import fingerprint_arrays
from daodask.types import CSR, AnyArray, Label

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MemorySource"]

_WHERE = "this AnnData"


class MemorySource:
    """A study that is an AnnData held in memory. It can be pickled, and then carries its data along.

    Parameters
    ----------
    adata
        Its matrices are dense or sparse arrays of any format. A CSC matrix is converted to CSR once, when a block of it
        is first read, and both are kept.

    Raises
    ------
    SourceError
        The AnnData is backed by a file.
    """

    def __init__(self, adata: AnnData) -> None:
        if adata.isbacked:
            raise SourceError(
                f"expected an AnnData in memory, got one backed by {adata.filename}; pass the path of its file instead"
            )
        # A view would be cut anew at each access.
        self._adata = adata.copy() if adata.is_view else adata
        self._matrices: dict[str, AnyArray | CSR] = {}
        self._convert = threading.Lock()

    def __reduce__(self) -> tuple[type[MemorySource], tuple[AnnData]]:
        return MemorySource, (self._adata,)

    def __repr__(self) -> str:
        return f"MemorySource(AnnData of {self._adata.n_obs} x {self._adata.n_vars})"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self._adata.n_obs)

    @property
    def matrix_names(self) -> tuple[str, ...]:
        """The matrices that there are, as :meth:`read_matrix` takes them."""
        found = [name for name, holder in (("X", self._adata), ("raw", self._adata.raw)) if _has_x(holder)]
        # Newer versions of anndata list X among the layers, under no name.
        return (*found, *(f"layers/{name}" for name in self._adata.layers if name is not None))

    def obs(self) -> pd.DataFrame:
        """All cell metadata."""
        return with_text_names(self._adata.obs.copy())

    def var(self, matrix: str) -> pd.DataFrame:
        """Gene metadata of a matrix."""
        self._check_matrix(matrix)
        return with_text_names((self._adata.raw if matrix == "raw" else self._adata).var.copy())

    def uns(self) -> Mapping[str, Label]:
        """Those entries of ``uns`` that are one string, number or boolean."""
        return plain_facts(self._adata.uns)

    @property
    def obsm_names(self) -> tuple[str, ...]:
        """Names of the dense arrays per cell; data frames and sparse arrays are not among them."""
        return tuple(name for name, array in self._adata.obsm.items() if _is_dense(array))

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of ``"X"``, ``"raw"`` or ``"layers/<name>"``.

        Raises
        ------
        SourceError
            There is no such matrix, or it is neither a dense nor a sparse array in memory.
        """
        check_rows(start, stop, self.n_obs)
        rows = self._matrix(matrix)[start:stop]
        return rows if isinstance(rows, sp.csr_matrix) else dense_rows(rows)

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows ``[start, stop)`` of a dense array per cell, 2-D."""
        check_rows(start, stop, self.n_obs)
        if name not in self.obsm_names:
            raise no_such("a dense array in obsm named", name, _WHERE, self.obsm_names)
        return two_dimensional(np.array(self._adata.obsm[name][start:stop]))

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the content. All of it is read each time, as nothing tells when an array was written to."""
        arrays = {name: self._array(name) for name in self.matrix_names}
        arrays |= {f"obsm/{name}": self._adata.obsm[name] for name in self.obsm_names}
        frames = {"obs": self.obs()} | {f"var of {name}": self.var(name) for name in ("X", "raw") if name in arrays}
        found = fingerprint_arrays(arrays, frames, sorted(self.uns().items()))
        return known if known == found else found

    def _check_matrix(self, matrix: str) -> None:
        if matrix not in self.matrix_names:
            raise no_such("a matrix", matrix, _WHERE, self.matrix_names)

    def _array(self, matrix: str) -> Any:
        """A matrix as the AnnData has it."""
        self._check_matrix(matrix)
        if matrix.startswith("layers/"):
            return self._adata.layers[matrix.removeprefix("layers/")]
        return self._adata.raw.X if matrix == "raw" else self._adata.X

    def _matrix(self, matrix: str) -> AnyArray | CSR:
        """A matrix in a form that has row ranges."""
        with self._convert:
            if matrix not in self._matrices:
                self._matrices[matrix] = _by_rows(matrix, self._array(matrix))
        return self._matrices[matrix]


def _by_rows(matrix: str, array: Any) -> AnyArray | CSR:
    if sp.issparse(array):
        return as_csr(array)
    if isinstance(array, np.ndarray):
        return array
    raise SourceError(
        f"expected {matrix} of {_WHERE} as a numpy or scipy.sparse array, got {type(array).__name__}; "
        "load it into memory before"
    )


def _has_x(holder: Any) -> bool:
    return holder is not None and holder.X is not None


def _is_dense(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.ndim in (1, 2) and array.dtype.kind in "biuf"
