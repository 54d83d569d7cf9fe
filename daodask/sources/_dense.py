"""Dense matrices as sparse rows, tile by tile: no more than a tile is ever there in dense form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import scipy.sparse as sp

from daodask.sources._matrix import dense_rows
from daodask.types import CSR, AnyArray

__all__ = ["DenseMatrix"]

#: Bytes of a tile. Finding its non-zeros takes up to five times that, where all of it is.
_TILE_BYTES: Final = 2**25


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """A matrix of cells x genes that is stored dense, in chunks.

    Tiles are cut along chunk bounds, so that a chunk is read once per block: over the rows where a band of chunks is no
    larger than a tile, else over the columns.

    Parameters
    ----------
    read
        Gives the values of a slice of rows and one of columns.
    n_vars
        Columns.
    dtype
        Of the values.
    chunks
        Rows and columns that are read together.
    """

    read: Callable[[slice, slice], AnyArray]
    n_vars: int
    dtype: np.dtype[Any]
    chunks: tuple[int, int]

    @classmethod
    def of(cls, array: Any) -> DenseMatrix:
        """Of an h5py or zarr array of cells x genes."""
        return cls(lambda rows, columns: array[rows, columns], array.shape[1], array.dtype, _chunks(array))

    @classmethod
    def transposed(cls, array: Any) -> DenseMatrix:
        """Of an h5py or zarr array of genes x cells."""
        return cls(lambda rows, columns: array[columns, rows].T, array.shape[0], array.dtype, _chunks(array)[::-1])

    def rows(self, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` (computes)."""
        band = max(1, self.n_vars) * self.dtype.itemsize * self.chunks[0]
        if band <= _TILE_BYTES or start == stop:
            step = max(1, _TILE_BYTES // max(1, band)) * self.chunks[0]
            cuts = _cuts(start, stop, step)
            return _stacked(sp.vstack, [self._tile(slice(*cut), slice(0, self.n_vars)) for cut in cuts])
        width = _TILE_BYTES // ((stop - start) * self.dtype.itemsize) // self.chunks[1] * self.chunks[1]
        cuts = _cuts(0, self.n_vars, max(width, self.chunks[1]))
        return _stacked(sp.hstack, [self._tile(slice(start, stop), slice(*cut)) for cut in cuts])

    def _tile(self, rows: slice, columns: slice) -> CSR:
        return dense_rows(np.asarray(self.read(rows, columns)))


def _chunks(array: Any) -> tuple[int, int]:
    """Rows and columns of a chunk; of what is not chunked, a row."""
    n_rows, n_columns = array.chunks or (1, array.shape[1])
    return max(1, n_rows), max(1, n_columns)


def _cuts(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Bounds between ``start`` and ``stop``, cut at multiples of ``step``; one pair at least."""
    inner = range((start // step + 1) * step, stop, step)
    return pairwise([start, *inner, stop])


def _stacked(stack: Callable[..., CSR], tiles: list[CSR]) -> CSR:
    return tiles[0] if len(tiles) == 1 else stack(tiles, format="csr")
