"""A selection into one AnnData zarr group of format v3, sharded: tasks write shards side by side, here or on a cluster.

Two passes over the rows: the first counts non-zeros (of all genes from the row bounds alone), the second reads, cuts
and encodes what each shard holds. Nothing is kept in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daodask.drive import Steps
from daodask.export.content import Content, Matrix
from daodask.export.rows import Rows, bounds, cut, read_dense, read_rows, row_lengths
from daodask.format.chunks import encode_shard, shard_bounds, shard_key
from daodask.format.codecs import Codec
from daodask.format.groups import CSRLayout, ObsmLayout, encode_group
from daodask.format.spec import Layout
from daodask.runners import Task
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.types import Int64Array

__all__ = ["Written", "export_zarr"]

_ROOT = "zarr.json"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: bytes, non-zeros of X, and the file that makes a group of the others, which is yet to be."""

    nbytes: int
    nnz: int
    root: bytes


@dataclass(frozen=True, slots=True)
class _Shard:
    """Elements ``[start, stop)`` of a matrix as shard ``number``; ``first`` is the element where its rows begin."""

    number: int
    start: int
    stop: int
    first: int


def export_zarr(target: StoreLocation, store: Store, content: Content, layout: Layout, genes: Any) -> Steps[Written]:
    """Write all files of the group but its root metadata.

    Parameters
    ----------
    target
        Directory of the group.
    store, content
        What to write.
    layout
        How to cut and compress it; shards of this many bytes bound the memory of a task.
    genes
        The selected genes, or what the runner made of them.
    """
    runs = [cut(store, *run) for run in bounds(store.n_obs, layout.block_rows)]
    n_stored_vars = store.selection.n_stored_vars
    counted: list[list[Int64Array]] = yield (
        "count",
        [Task("count-values", _count, (rows, content.matrices, n_stored_vars, genes)) for rows in runs],
    )
    indptr = {m.name: _indptr(counted, i) for i, m in enumerate(content.matrices)}
    layouts = [_lay_out(m, indptr[m.name], content, layout) for m in content.matrices]
    tasks = [
        task
        for cutting in layouts
        for task in _shard_tasks(target, store, cutting, indptr[cutting.name], layout, genes)
    ]
    chunk_rows = min(layout.block_rows, max(1, store.n_obs))
    tasks += [
        Task("encode-obsm", _write_obsm, (target, array, number, rows, chunk_rows, layout.codec))
        for array in content.obsm
        for number, rows in enumerate(runs)
    ]
    sizes: list[int] = yield "write", tasks
    files = _small_files(store, content, layouts, indptr, layout, chunk_rows)
    root = files.pop(_ROOT)
    for path, data in files.items():
        (target / path).write(data)
    return Written(sum(sizes) + sum(map(len, files.values())) + len(root), int(indptr["X"][-1]), root)


def _count(rows: Rows, matrices: Sequence[Matrix], n_stored_vars: int, genes: Int64Array | None) -> list[Int64Array]:
    """Non-zeros of each row of each matrix."""
    if genes is None:
        return [row_lengths(rows, m.name) for m in matrices]
    read = (read_rows(rows, m.name, n_stored_vars, genes, m.dtype) for m in matrices)
    return [np.diff(csr.indptr).astype(np.int64) for csr in read]


def _indptr(counted: Sequence[Sequence[Int64Array]], matrix: int) -> Int64Array:
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *(run[matrix] for run in counted)]), dtype=np.int64)


def _lay_out(matrix: Matrix, indptr: Int64Array, content: Content, layout: Layout) -> CSRLayout:
    """Cutting of a matrix; its values and its column numbers are cut alike, so that one task reads for both."""
    nnz, n_obs = int(indptr[-1]), len(indptr) - 1
    chunk = layout.chunk_length(nnz, n_obs)
    itemsize = max(np.dtype(matrix.dtype).itemsize, np.dtype(content.index_dtype).itemsize)
    shard = layout.shard_length(chunk, nnz, itemsize)
    return CSRLayout(matrix.name, (n_obs, matrix.width), nnz, matrix.dtype, content.index_dtype, chunk, shard, shard)


def _shard_tasks(
    target: StoreLocation,
    store: Store,
    cutting: CSRLayout,
    indptr: Int64Array,
    layout: Layout,
    genes: Any,
) -> Iterator[Task]:
    for number, (start, stop) in enumerate(shard_bounds(cutting.nnz, cutting.data_shard)):
        first = int(np.searchsorted(indptr, start, side="right")) - 1
        last = int(np.searchsorted(indptr, stop, side="left"))
        shard = _Shard(number, start, stop, int(indptr[first]))
        rows = cut(store, first, last)
        n_stored_vars = store.selection.n_stored_vars
        yield Task("encode-shard", _write_shard, (target, rows, cutting, shard, n_stored_vars, genes, layout.codec))


def _write_shard(
    target: StoreLocation,
    rows: Rows,
    cutting: CSRLayout,
    shard: _Shard,
    n_stored_vars: int,
    genes: Int64Array | None,
    codec: str,
) -> int:
    """Write a shard of values and the one of their column numbers; how many bytes they have."""
    csr = read_rows(rows, cutting.name, n_stored_vars, genes, cutting.data_dtype)
    part = slice(shard.start - shard.first, shard.stop - shard.first)
    written = 0
    values = {"data": csr.data[part], "indices": csr.indices[part].astype(cutting.index_dtype, copy=False)}
    for what, array in values.items():
        encoded = encode_shard(array, cutting.chunk_length, cutting.data_shard, Codec.named(codec).of(what))
        (target / f"{cutting.name}/{what}/{shard_key(shard.number)}").write(encoded)
        written += len(encoded)
    return written


def _write_obsm(target: StoreLocation, array: Matrix, number: int, rows: Rows, chunk_rows: int, codec: str) -> int:
    values = read_dense(rows, array.name, array.width, array.dtype)
    whole = np.zeros((chunk_rows, max(1, array.width)), dtype=array.dtype)
    whole[: len(values), : array.width] = values
    encoded = Codec.named(codec).encode(whole)
    (target / f"obsm/{array.name}/c/{number}/0").write(encoded)
    return len(encoded)


def _small_files(
    store: Store,
    content: Content,
    layouts: Sequence[CSRLayout],
    indptr: dict[str, Int64Array],
    layout: Layout,
    chunk_rows: int,
) -> dict[str, bytes]:
    return encode_group(
        obs=content.obs,
        var=content.var,
        uns=content.uns,
        matrices=tuple(layouts),
        indptr=indptr,
        obsm=tuple(ObsmLayout(a.name, (store.n_obs, a.width), a.dtype, chunk_rows) for a in content.obsm),
        codec=Codec.named(layout.codec),
    )
