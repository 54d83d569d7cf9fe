"""Few genes of many cells: read from a matrix's copy by gene, where that takes fewer bytes than its rows.

The copy holds, of each block of rows, its CSC (``daodask/format/SPEC.md``, section 5.9): a gene of a block is one run
of elements. Runs are gathered as rows are, and put back into rows at the end, so that nobody sees the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from daodask.arrays import Array, open_array, take
from daodask.errors import CorruptStoreError
from daodask.format.manifest import DatasetInfo
from daodask.format.spec import BY_GENE
from daodask.gather import csr_of, gather_runs
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Int64Array

Float64Array = npt.NDArray[np.float64]

__all__ = ["GeneCopy", "copies_of", "read_genes", "read_totals"]

#: Bytes of a column number among rows, of a row number by gene, of a bound, and of a chunk's place in both indexes.
_COLUMN_BYTES: Final = 4
_ROW_BYTES: Final = 2
_BOUND_BYTES: Final = 4
_PLACE_BYTES: Final = 2 * 16
#: Rows that are decoded for a single one of them, where rows lie far apart.
_ROWS_A_CHUNK: Final = 32
#: Bytes that come in the time of another request, with as many side by side as there are: 100 MB/s, 64 in 40 ms.
_REQUEST_BYTES: Final = 2**16
_CHECK: Final = "check the store with daodask validate"


@dataclass(frozen=True, slots=True)
class GeneCopy:
    """What a snapshot says of a matrix that is stored by gene, too: what it takes to read it either way.

    Parameters
    ----------
    matrix
        ``"X"`` or ``"layers/<name>"``.
    n_obs, n_vars, nnz
        Rows, columns and non-zeros of the matrix.
    itemsize
        Bytes of a value.
    block_rows
        Rows of a block, of all but the last one.
    chunk_length
        Elements of an inner chunk of the copy.
    """

    matrix: str
    n_obs: int
    n_vars: int
    nnz: int
    itemsize: int
    block_rows: int
    chunk_length: int

    def bytes_by_row(self, n_rows: int, span: int) -> int:
        """Bytes, before compression, to decode for so many rows among ``span`` neighbouring ones."""
        decoded = min(span, n_rows * _ROWS_A_CHUNK)
        return int(self.nnz / self.n_obs * decoded) * (self.itemsize + _COLUMN_BYTES)

    def bytes_by_gene(self, n_genes: int, n_blocks: int) -> int:
        """Bytes, before compression, to read and decode for so many genes of so many blocks; requests cost some, too.

        Of each block these are the bounds of all genes, the places of all chunks, and of each gene a run with what its
        first and last chunk hold besides.
        """
        nnz = self.nnz / self.n_obs * self.block_rows
        fixed = (self.n_vars + 1) * _BOUND_BYTES + nnz / self.chunk_length * _PLACE_BYTES
        run = (nnz / max(1, self.n_vars) + self.chunk_length) * (self.itemsize + _ROW_BYTES)
        return int(n_blocks * (fixed + n_genes * (run + 2 * _REQUEST_BYTES)))

    def pays(self, n_genes: int, rows: Int64Array | range) -> bool:
        """Whether so many genes of these increasing rows are read for fewer bytes than the rows are."""
        if not len(rows):
            return False
        by_row = self.bytes_by_row(len(rows), int(rows[-1]) - int(rows[0]) + 1)
        return self.bytes_by_gene(n_genes, len(self.blocks_of(rows))) < by_row

    def blocks_of(self, rows: Int64Array | range) -> Int64Array:
        """Numbers of the blocks that increasing rows are in."""
        if isinstance(rows, range):
            return np.arange(rows.start // self.block_rows, -(-rows.stop // self.block_rows), dtype=np.int64)
        return np.unique(rows // self.block_rows)


def copies_of(info: DatasetInfo, n_vars: int) -> tuple[GeneCopy, ...]:
    """The copies by gene that a dataset has."""
    if len(info.blocks) < 2:
        return ()
    return tuple(
        GeneCopy(m.name, info.n_obs, n_vars, m.nnz, np.dtype(m.dtype).itemsize, info.blocks[1], m.by_gene)
        for m in info.matrices
        if m.by_gene
    )


def read_genes(dataset: StoreLocation, copy: GeneCopy, rows: Int64Array, genes: Int64Array, dtype: str) -> CSR:
    """Some genes of some rows (computes).

    Parameters
    ----------
    dataset
        The dataset's directory.
    copy
        What to read.
    rows
        Rows of the dataset, increasing.
    genes
        Columns to keep, in their order, none of them twice.
    dtype
        Of the values.

    Returns
    -------
    csr_matrix
        ``(len(rows), len(genes))``, as :func:`~daodask.gather.gather_csr` makes it.

    Raises
    ------
    CorruptStoreError
        The copy is damaged.
    """
    where, blocks = dataset / BY_GENE, copy.blocks_of(rows)
    order = np.argsort(genes)
    low, high = _runs(open_array(where, f"{copy.matrix}/indptr"), copy, blocks, genes[order])
    shard = _shard_length(open_array(where, f"{copy.matrix}/data"))
    if ((low < 0) | (high < low) | (high > shard)).any():
        raise CorruptStoreError(f"{where}/{copy.matrix}: expected bounds that rise up to {shard}; {_CHECK}")
    # Runs come by number, as they are stored, and go to where their genes are asked for.
    lengths = np.empty_like(low)
    lengths[:, order] = high - low
    ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
    begins = (ends - lengths)[:, order]
    nnz = int(lengths.sum())
    values, of_row = np.empty(nnz, dtype=dtype), np.empty(nnz, dtype=np.int32)
    first = blocks[:, None] * shard
    outs = ((f"{copy.matrix}/data", values), (f"{copy.matrix}/indices", of_row))
    gather_runs(where, outs, (low + first).ravel(), (high + first).ravel(), begins.ravel())
    parts = list(_in_rows(copy, rows, blocks, lengths, of_row, values))
    whole = parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr", dtype=dtype)
    return csr_of(whole.data, whole.indices, whole.indptr, (len(rows), len(genes)))


def read_totals(dataset: StoreLocation, copy: GeneCopy, rows: Int64Array) -> Float64Array:
    """Sums over all genes of increasing rows of the dataset; of counts they are exact (computes)."""
    return take(open_array(dataset / BY_GENE, f"{copy.matrix}/totals"), rows)


def _runs(indptr: Array, copy: GeneCopy, blocks: Int64Array, genes: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Bounds, within its block, of each gene of each block, ``(blocks, genes)``."""
    begins = blocks[:, None] * (copy.n_vars + 1) + genes
    both = np.unique(np.concatenate([begins.ravel(), begins.ravel() + 1]))
    found = take(indptr, both).astype(np.int64) if len(both) else both
    return found[np.searchsorted(both, begins)], found[np.searchsorted(both, begins + 1)]


def _shard_length(data: Array) -> int:
    """Elements that there is room for in a block."""
    if data.spec is None:
        raise CorruptStoreError(f"{data.where}: expected an array as SPEC.md has it; {_CHECK}")
    return data.spec.shard_length


def _in_rows(
    copy: GeneCopy, rows: Int64Array, blocks: Int64Array, lengths: Int64Array, of_row: AnyArray, values: AnyArray
) -> Iterator[CSR]:
    """The selected rows of each block."""
    ends = np.cumsum(lengths.sum(axis=1))
    for number, (block, (start, stop)) in enumerate(zip(blocks.tolist(), pairwise([0, *ends.tolist()]), strict=True)):
        first = block * copy.block_rows
        n_rows = min(copy.block_rows, copy.n_obs - first)
        within = of_row[start:stop]
        if len(within) and not 0 <= within.min() <= within.max() < n_rows:
            raise CorruptStoreError(f"expected rows below {n_rows} in block {block} of {copy.matrix} by gene; {_CHECK}")
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[number])])
        by_gene = sp.csc_matrix((values[start:stop], within, bounds), shape=(n_rows, lengths.shape[1]))
        cut = np.searchsorted(rows, [first, first + n_rows])
        yield _selected(by_gene.tocsr(), rows[cut[0] : cut[1]] - first)


def _selected(matrix: CSR, rows: Int64Array) -> CSR:
    if len(rows) == matrix.shape[0]:
        return matrix
    chosen: CSR = matrix[rows]
    return chosen
