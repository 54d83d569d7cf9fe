"""Matrices by gene: of each block of rows its CSC, made of what is staged of that block alone.

As a block is transposed on its own, memory is that of one block, and no task waits for another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from daodask.buffers import reused_empty
from daodask.build.matrices import staged_index
from daodask.build.phases import Stopwatch
from daodask.build.receipts import FilesReceipt, with_receipt, write_file
from daodask.build.tasks import Piece, StudyJob, write_encoded
from daodask.format.chunks import shard_key
from daodask.format.groups import GeneLayout
from daodask.format.spec import BY_GENE
from daodask.types import AnyArray, Int64Array

__all__ = ["GeneBlock", "write_gene_block"]


@dataclass(frozen=True, slots=True)
class GeneBlock:
    """A block of a matrix to store by gene: its non-zeros, the dtypes of its values as stored and as staged."""

    matrix: str
    block: int
    nnz: int
    dtype: str
    staged_dtype: str
    layout: GeneLayout


def write_gene_block(job: StudyJob, block: GeneBlock) -> FilesReceipt:
    """Transpose a staged block, and write its values, rows, bounds and totals, each with one request."""
    name = f"{BY_GENE}-{block.matrix.replace('/', '-')}-{block.block:06d}"
    return with_receipt(job.scratch, name, FilesReceipt, lambda: _write_gene_block(job, block))


def _write_gene_block(job: StudyJob, block: GeneBlock) -> FilesReceipt:
    clock, cut = Stopwatch(), block.layout
    with clock("map"):
        found = _transposed(job, block)
    written = []
    for name, array in (("data", found.values), ("indices", found.rows)):
        if not block.nnz:
            break
        lengths = cut.chunk_length, cut.shard_length
        written.append(write_encoded(job, _array(block, name), block.block, [array], lengths, clock))
    totals = np.zeros(cut.total_rows)
    totals[: len(found.totals)] = found.totals
    for name, array in (("indptr", found.bounds.astype(cut.bound_dtype)), ("totals", totals)):
        with clock("write"):
            path = f"{_array(block, name)}/{shard_key(block.block)}"
            written.append(write_file(job.dataset, path, job.codec.encode(array)))
    return FilesReceipt(tuple(written), clock.seconds)


def _array(block: GeneBlock, name: str) -> str:
    return f"{BY_GENE}/{block.matrix}/{name}"


@dataclass(frozen=True, slots=True, eq=False)
class _Genes:
    """A block by gene: bounds of each gene; rows within the block, increasing in each gene; values; sum of each row."""

    bounds: Int64Array
    rows: AnyArray
    values: AnyArray
    totals: AnyArray


def _transposed(job: StudyJob, block: GeneBlock) -> _Genes:
    from daodask.kernels import count_columns, transpose_rows

    bounds = np.zeros(job.n_vars + 1, dtype=np.int64)
    for _, columns in _staged(job, block, "indices"):
        count_columns(columns, bounds[1:])
    np.cumsum(bounds, out=bounds)
    lengths = np.frombuffer(job.staged(block.block, block.matrix, "lengths").read(), dtype=np.int64)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    out = reused_empty(block.nnz, block.layout.row_dtype), reused_empty(block.nnz, block.dtype)
    ends, totals, row = bounds[:-1].copy(), np.zeros(len(lengths)), 0
    pieces = zip(_staged(job, block, "indices"), _staged(job, block, "data"), strict=True)
    for (first, columns), (_, data) in pieces:
        row = transpose_rows(columns, data.astype(block.dtype, copy=False), first, indptr, row, ends, totals, out)
    return _Genes(bounds, *out, totals)


def _staged(job: StudyJob, block: GeneBlock, what: str) -> Iterator[tuple[int, AnyArray]]:
    """First element and values of each piece of a staged array."""
    dtype = staged_index(job.n_vars) if what == "indices" else np.dtype(block.staged_dtype)
    return job.read_staged(Piece(block.block, 0, block.nnz), block.matrix, what, dtype)
