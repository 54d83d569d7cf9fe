"""From what blocks turned out to hold to the arrays of a dataset: shapes, dtypes, what a shard is made of. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from daodask.build.by_gene import GeneBlock, write_gene_block
from daodask.build.matrices import staged_index
from daodask.build.receipts import BlockReceipt, FileReceipt
from daodask.build.tasks import MatrixJob, Piece, Shard, StudyJob, obsm_chunk_rows, write_shard
from daodask.format.chunks import shard_bounds
from daodask.format.groups import CSRLayout, GeneLayout
from daodask.format.manifest import MatrixInfo
from daodask.format.spec import block_row_dtype, exact_integer_dtype, index_dtype, served_dtype
from daodask.runners import Task
from daodask.types import Int64Array

__all__ = [
    "checksums_of",
    "encode_tasks",
    "final_dtype",
    "lay_out",
    "matrix_info",
    "pieces_of",
    "shards_of",
]


def lay_out(job: StudyJob, matrix: MatrixJob, staged: Sequence[BlockReceipt]) -> CSRLayout:
    """Shape and cutting of a matrix, of what its staged blocks turned out to hold."""
    receipts = [block.matrices[matrix.name] for block in staged]
    nnz = sum(r.nnz for r in receipts)
    dtype = final_dtype(matrix, staged)
    chunk = job.layout.chunk_length(nnz, job.n_obs)
    indices = index_dtype(nnz, job.n_vars)
    return CSRLayout(
        name=matrix.name,
        shape=(job.n_obs, job.n_vars),
        nnz=nnz,
        data_dtype=dtype.name,
        index_dtype=indices.name,
        chunk_length=chunk,
        data_shard=job.layout.shard_length(chunk, nnz, dtype.itemsize),
        index_shard=job.layout.shard_length(chunk, nnz, indices.itemsize),
        by_gene=_lay_out_by_gene(job, [r.nnz for r in receipts]) if job.layout.is_by_gene(matrix.name) else None,
    )


def _lay_out_by_gene(job: StudyJob, nnz: Sequence[int]) -> GeneLayout:
    """Cutting by gene of a matrix of which each block has so many non-zeros."""
    most, layout = max(nnz, default=0), job.layout
    return GeneLayout(
        block_rows=layout.block_rows,
        n_blocks=len(nnz),
        chunk_length=layout.gene_chunk_length(most),
        shard_length=layout.gene_shard_length(most),
        row_dtype=block_row_dtype(layout.block_rows).name,
        bound_dtype=index_dtype(most, 0).name,
        total_rows=obsm_chunk_rows(job),
    )


def final_dtype(matrix: MatrixJob, staged: Sequence[BlockReceipt]) -> np.dtype[Any]:
    """The smallest dtype that holds every block exactly; the smallest float where floats are asked for."""
    receipts = [block.matrices[matrix.name] for block in staged]
    if not all(r.integral for r in receipts):
        return np.result_type(*(np.dtype(r.dtype) for r in receipts))
    largest = max((r.largest for r in receipts), default=0.0)
    exact = exact_integer_dtype(int(largest))
    return served_dtype(exact, largest) if matrix.floats else exact


def shards_of(layout: CSRLayout, staged: Sequence[BlockReceipt]) -> Iterator[Shard]:
    """The shards of a matrix, each with the pieces of staged blocks that it is made of."""
    receipts = [block.matrices[layout.name] for block in staged]
    bounds = np.cumsum([0, *(r.nnz for r in receipts)], dtype=np.int64)
    index = staged_index(layout.shape[1]).name
    for path, dtype, length in layout.arrays():
        is_data = path.endswith("/data")
        for number, (start, stop) in enumerate(shard_bounds(layout.nnz, length)):
            pieces = tuple(pieces_of(bounds, start, stop))
            dtypes = tuple(receipts[p.block].dtype if is_data else index for p in pieces)
            yield Shard(layout.name, path, number, dtype, dtypes, layout.chunk_length, length, pieces)


def encode_tasks(job: StudyJob, layouts: Sequence[CSRLayout], staged: Sequence[BlockReceipt]) -> list[Task]:
    """The tasks that write all matrices, by rows and by gene."""
    # The largest first, so that no worker is left alone with it at the end.
    shards = sorted((s for layout in layouts for s in shards_of(layout, staged)), key=lambda s: s.nbytes, reverse=True)
    by_gene = [block for layout in layouts for block in _gene_blocks_of(layout, staged)]
    return [
        *(Task("encode-shard", write_shard, (job, shard)) for shard in shards),
        *(Task("encode-genes", write_gene_block, (job, block)) for block in by_gene),
    ]


def _gene_blocks_of(layout: CSRLayout, staged: Sequence[BlockReceipt]) -> Iterator[GeneBlock]:
    """The blocks of a matrix to store by gene, if it is to be."""
    cut = layout.by_gene
    if cut is None:
        return
    for block, receipt in enumerate(staged):
        found = receipt.matrices[layout.name]
        yield GeneBlock(layout.name, block, found.nnz, layout.data_dtype, found.dtype, cut)


def pieces_of(bounds: Int64Array, start: int, stop: int) -> Iterator[Piece]:
    """Which elements of which blocks make up ``[start, stop)``."""
    first = int(np.searchsorted(bounds, start, side="right")) - 1
    for block in range(first, len(bounds) - 1):
        low, high = int(bounds[block]), int(bounds[block + 1])
        if low >= stop:
            return
        if high > low:
            yield Piece(block, max(start, low) - low, min(stop, high) - low)


def checksums_of(files: Iterable[FileReceipt]) -> bytes:
    """Size and SHA-256 of each file, as the dataset keeps them."""
    entries = {f.path: {"size": f.size, "sha256": f.sha256} for f in files}
    return json.dumps(entries, sort_keys=True, indent=0).encode()


def matrix_info(layout: CSRLayout, kind: str, staged: Sequence[BlockReceipt]) -> MatrixInfo:
    """What a snapshot says of a matrix; ``kind`` is that of X, what layers are is told by their values."""
    receipts = [block.matrices[layout.name] for block in staged]
    integral = all(r.integral for r in receipts)
    found = kind if layout.name == "X" else "counts" if integral else "other"
    largest = max((r.largest for r in receipts), default=0.0)
    by_gene = layout.by_gene.chunk_length if layout.by_gene is not None else 0
    return MatrixInfo(layout.name, found, layout.data_dtype, layout.nnz, largest, by_gene)
