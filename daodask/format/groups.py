"""A dataset's AnnData zarr group as files in memory: everything but the shards, in the order of their paths.

Making the small files here and writing them with one call each keeps every file system alike, gives digests for free
and makes them the same to the byte wherever a build runs.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from daodask.format.codecs import Codec, without_delta_warning
from daodask.format.spec import BY_GENE, OBS_NAMES

__all__ = ["CSRLayout", "GeneLayout", "ObsmLayout", "encode_group", "encode_obs_parquet"]


@dataclass(frozen=True, slots=True)
class GeneLayout:
    """Cutting of a matrix by gene: of each block of rows its CSC, in a shard of its own.

    ``row_dtype`` is that of the row numbers within a block, ``bound_dtype`` that of the bounds of genes in it,
    ``total_rows`` the rows of a chunk of totals.
    """

    block_rows: int
    n_blocks: int
    chunk_length: int
    shard_length: int
    row_dtype: str
    bound_dtype: str
    total_rows: int


@dataclass(frozen=True, slots=True)
class CSRLayout:
    """Shape and cutting of one CSR matrix; ``name`` is ``"X"`` or ``"layers/<name>"``."""

    name: str
    shape: tuple[int, int]
    nnz: int
    data_dtype: str
    index_dtype: str
    chunk_length: int
    data_shard: int
    index_shard: int
    by_gene: GeneLayout | None = None

    def arrays(self) -> tuple[tuple[str, str, int], ...]:
        """Path, dtype and shard length of the two arrays that are as long as there are non-zeros."""
        return (
            (f"{self.name}/data", self.data_dtype, self.data_shard),
            (f"{self.name}/indices", self.index_dtype, self.index_shard),
        )


@dataclass(frozen=True, slots=True)
class ObsmLayout:
    """Shape of a dense array per cell; its chunks are the rows of a block."""

    name: str
    shape: tuple[int, int]
    dtype: str
    chunk_rows: int


_METADATA = "zarr.json"

#: Elements of an indptr chunk, which a run of rows from anywhere decodes: 32 kB before compression.
_INDPTR_CHUNK = 4_096
#: Elements of an obs chunk, where a dataset has more cells than that; most columns are codes of one or two bytes.
_OBS_CHUNK = 65_536
#: Chunks that hold nothing but zeros are written too: an absent one is then always a loss, and never read as data. zarr
#: knows that for the whole process alone, so that one group is encoded at a time.
_ALL_CHUNKS = {"array.write_empty_chunks": True}
_ENCODING = threading.Lock()
#: Elements of a file of indptr or of an obs column.
_ROW_SHARD = 2**20


def encode_group(
    *,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: Mapping[str, Any],
    matrices: tuple[CSRLayout, ...],
    indptr: Mapping[str, np.ndarray[tuple[int], np.dtype[np.int64]]],
    obsm: tuple[ObsmLayout, ...],
    codec: Codec,
) -> dict[str, bytes]:
    """Files of the group by path, sorted: metadata, obs, var, uns and indptr, but no shard of data or indices.

    The root carries consolidated metadata, so that opening the dataset is one request and the parquet file beside the
    group's members is never taken for one.
    """
    import zarr
    from zarr.storage import MemoryStore

    buffers: dict[str, Any] = {}
    with _ENCODING, zarr.config.set(_ALL_CHUNKS):
        root = zarr.open_group(MemoryStore(buffers), mode="w", zarr_format=3)
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        _create_frames(root, obs, var, uns)
        for name in ("layers", "obsm"):
            root.create_group(name, attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
        for matrix in matrices:
            _create_csr(root, matrix, indptr[matrix.name], codec)
        for array in obsm:
            _create_obsm(root, array, codec)
    files = {path: buffers[path].to_bytes() for path in sorted(buffers)}
    by_gene = _encode_by_gene(tuple(m for m in matrices if m.by_gene is not None), codec)
    return {**files, _METADATA: _consolidated(files), **by_gene}


def _encode_by_gene(matrices: tuple[CSRLayout, ...], codec: Codec) -> dict[str, bytes]:
    """Metadata of the group of matrices by gene: one of its own, as an AnnData has no member of that kind."""
    import zarr
    from zarr.storage import MemoryStore

    if not matrices:
        return {}
    buffers: dict[str, Any] = {}
    with _ENCODING:
        root = zarr.open_group(MemoryStore(buffers), mode="w", zarr_format=3)
        for matrix in matrices:
            _create_by_gene(root, matrix, codec)
    files = {path: buffers[path].to_bytes() for path in sorted(buffers)}
    return {f"{BY_GENE}/{path}": data for path, data in {**files, _METADATA: _consolidated(files)}.items()}


def _create_by_gene(root: Any, matrix: CSRLayout, codec: Codec) -> None:
    cut = matrix.by_gene
    if cut is None:
        return
    attributes = {"shape": list(matrix.shape), "block_rows": cut.block_rows}
    group = root.create_group(matrix.name, attributes=attributes)
    length = (cut.n_blocks * cut.shard_length,)
    for name, dtype in (("data", matrix.data_dtype), ("indices", cut.row_dtype)):
        _create_array(group, name, length, dtype, (cut.chunk_length,), (cut.shard_length,), codec)
    bounds = matrix.shape[1] + 1
    _create_array(group, "indptr", (cut.n_blocks * bounds,), cut.bound_dtype, (bounds,), None, codec)
    _create_array(group, "totals", matrix.shape[:1], "float64", (cut.total_rows,), None, codec)


def _consolidated(files: Mapping[str, bytes]) -> bytes:
    """The root's metadata with that of all its members in it, as zarr-python consolidates it."""
    suffix = f"/{_METADATA}"
    members = {path.removesuffix(suffix): json.loads(files[path]) for path in files if path.endswith(suffix)}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    return json.dumps({**json.loads(files[_METADATA]), "consolidated_metadata": consolidated}, indent=2).encode()


def _create_frames(root: Any, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any]) -> None:
    from anndata.io import write_elem

    for name, element in (("obs", obs), ("var", var), ("uns", dict(uns))):
        # Said here, not by anndata's settings: what is written must not depend on what the user set for other files,
        # and settings belong to the whole process, in which another thread may be writing too.
        cutting = {"chunks": (_OBS_CHUNK,), "shards": (_ROW_SHARD,)} if name == "obs" and len(obs) > _OBS_CHUNK else {}
        write_elem(root, name, element, dataset_kwargs={"shards": None, **cutting})


def _create_csr(root: Any, matrix: CSRLayout, indptr: Any, codec: Codec) -> None:
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)}
    group = root.create_group(matrix.name, attributes=attributes)
    for path, dtype, shard in matrix.arrays():
        _create_array(group, path.rpartition("/")[2], (matrix.nnz,), dtype, (matrix.chunk_length,), (shard,), codec)
    shard = min(_ROW_SHARD, -(-len(indptr) // _INDPTR_CHUNK) * _INDPTR_CHUNK)
    array = _create_array(group, "indptr", indptr.shape, matrix.index_dtype, (_INDPTR_CHUNK,), (shard,), codec)
    array[:] = indptr


def _create_obsm(root: Any, array: ObsmLayout, codec: Codec) -> None:
    rows, width = array.shape
    chunk = (max(1, min(array.chunk_rows, rows)), max(1, width))
    _create_array(root["obsm"], array.name, (rows, width), array.dtype, chunk, None, codec)


def _create_array(
    group: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    codec: Codec,
) -> Any:
    codec = codec.of(name)
    with without_delta_warning():
        return group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            filters=codec.zarr_filters(dtype),
            compressors=codec.zarr_compressors(),
            fill_value=0,
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )


def encode_obs_parquet(obs: pd.DataFrame, block_rows: int) -> bytes:
    """Obs as parquet: ``obs_names`` first, categoricals as dictionaries, a row group per block."""
    columns: dict[str, pa.Array] = {OBS_NAMES: pa.array(obs.index.astype(object), pa.string())}
    for name in obs.columns:
        columns[str(name)] = _arrow_column(obs[name])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=block_rows, compression="zstd")
    return buffer.getvalue()


def _arrow_column(values: pd.Series) -> pa.Array:
    if isinstance(values.dtype, pd.CategoricalDtype) and len(values.cat.categories) == 0:
        # pandas gives a category-less dictionary the value type null, which parquet readers differ on.
        return pa.array([None] * len(values), pa.dictionary(pa.int32(), pa.string()))
    # Text without a value to tell by, as in a study without a cell, would become a column of type null.
    array = pa.Array.from_pandas(values, type=pa.string() if values.dtype == object else None)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
