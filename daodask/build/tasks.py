"""What workers do in a build: look at a study, stage a block, write a shard, write the frames.

Every task takes addresses and small values, and returns a receipt. What it writes is named by the study's fingerprint,
so that running a task again, or twice at once, writes the same bytes to the same place.

A block is first *staged*: streamlined and laid down raw below ``scratch/``. Only when all blocks of a study are staged
is it known how many non-zeros come before each, and what the smallest exact dtype is; shards are then cut across block
bounds.
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from daodask.build.plan import StudyFacts
from daodask.build.receipts import BlockReceipt, FileReceipt, FilesReceipt, MatrixReceipt, with_receipt, write_file
from daodask.build.spec import SchemaColumn, StudySpec
from daodask.build.streamline import map_block, streamline_obs, summarise
from daodask.errors import SourceError
from daodask.format.chunks import encode_shard, shard_key
from daodask.format.codecs import Codec
from daodask.format.groups import CSRLayout, ObsmLayout, encode_group, encode_obs_parquet
from daodask.format.manifest import ObsmInfo
from daodask.format.spec import VAR_MEASURED, Layout
from daodask.sources import Fingerprint, Source, SourceAddress, open_source
from daodask.storage import StoreLocation
from daodask.types import AnyArray, Int64Array

__all__ = [
    "STAGED_INDEX",
    "Frames",
    "MatrixJob",
    "Piece",
    "Shard",
    "StudyJob",
    "inspect_study",
    "stage_block",
    "write_frames",
    "write_gene_map",
    "write_shard",
]

#: Dtype of column numbers in scratch.
STAGED_INDEX = "int32"

_ORGANISM_COLUMNS = ("organism", "organism_ontology_term_id")


def inspect_study(
    address: SourceAddress | Source, study: StudySpec, schema: tuple[SchemaColumn, ...], known: Fingerprint | None
) -> StudyFacts:
    """Look at a study's metadata, and read its content only as far as its fingerprint needs it.

    Raises
    ------
    SourceError, StreamlineError
        It can't be read, or its obs is not what the build file says.
    """
    source = open_source(address)
    obs = source.obs()
    matrices = [study.matrix, *study.layers.values()]
    return StudyFacts(
        n_obs=source.n_obs,
        genes={matrix: _gene_names(source, matrix, study.genes) for matrix in matrices},
        columns=summarise(streamline_obs(obs, study.obs, schema, study.keep, study.id)),
        obsm=tuple(_obsm_info(source, name) for name in _chosen(source.obsm_names, study.obsm)),
        uns={**source.uns(), **study.uns},
        organisms=obs[[c for c in _ORGANISM_COLUMNS if c in obs]].drop_duplicates(),
        fingerprint=source.fingerprint(known),
    )


def _gene_names(source: Source, matrix: str, where: str) -> tuple[str, ...]:
    var = source.var(matrix)
    if where == "index":
        return tuple(map(str, var.index))
    if where not in var:
        raise SourceError(
            f"genes: {where}: var has no such column; it has {', '.join(map(str, var.columns)) or 'none'}"
        )
    return tuple(map(str, var[where]))


def _chosen(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def _obsm_info(source: Source, name: str) -> ObsmInfo:
    first = source.read_obsm(name, 0, min(1, source.n_obs))
    return ObsmInfo(name, first.dtype.name, first.shape[1])


@dataclass(frozen=True, slots=True)
class MatrixJob:
    """A matrix to make: its name in the store, where it is in the source, and what its values are.

    ``floats`` asks for a floating dtype where whole numbers would be stored as integers.
    """

    name: str
    source: str
    kind: str
    floats: bool = False


@dataclass(frozen=True, slots=True)
class StudyJob:
    """Everything that the tasks of one study share; small, as it is in each of them."""

    scratch: StoreLocation
    dataset: StoreLocation
    matrices: tuple[MatrixJob, ...]
    obsm: tuple[ObsmInfo, ...]
    blocks: tuple[int, ...]
    n_vars: int
    layout: Layout

    @property
    def n_obs(self) -> int:
        """Cells of the study."""
        return self.blocks[-1]

    @property
    def codec(self) -> Codec:
        """Compressor of all its arrays."""
        return Codec.named(self.layout.codec)

    def staged(self, block: int, matrix: str, what: str) -> StoreLocation:
        """Where ``data``, ``indices`` or row ``lengths`` of a staged block are, raw and little-endian."""
        return self.scratch / f"{matrix}/{block:06d}.{what}"

    def gene_map(self, matrix: str) -> StoreLocation:
        """Where the map of the source's genes is."""
        return self.scratch / f"genes/{matrix}.npy"

    def receipt(self, name: str) -> StoreLocation:
        """Where a task leaves its receipt."""
        return self.scratch / f"receipts/{name}.json"


def write_gene_map(job: StudyJob, source_matrix: str, target: AnyArray) -> None:
    """Leave a gene map where the block tasks read it, so that it is not in each of them."""
    buffer = io.BytesIO()
    np.save(buffer, target)
    job.gene_map(source_matrix).write(buffer.getvalue())


# -- staging -------------------------------------------------------------------------------------------------------


def stage_block(job: StudyJob, address: SourceAddress | Source, block: int) -> BlockReceipt:
    """Read, streamline and stage one block of rows of every matrix; its obsm rows go straight into the dataset."""
    return with_receipt(
        job.receipt(f"block-{block:06d}"), BlockReceipt, lambda: _stage_block(job, open_source(address), block)
    )


def _stage_block(job: StudyJob, source: Source, block: int) -> BlockReceipt:
    bounds = job.blocks[block], job.blocks[block + 1]
    matrices = {m.name: _stage_matrix(job, source, m, block, bounds) for m in job.matrices}
    return BlockReceipt(matrices, tuple(_write_obsm(job, source, o, block, bounds) for o in job.obsm))


def _stage_matrix(
    job: StudyJob, source: Source, matrix: MatrixJob, block: int, bounds: tuple[int, int]
) -> MatrixReceipt:
    target = np.load(io.BytesIO(job.gene_map(matrix.source).read()))
    mapped = map_block(source.read_matrix(matrix.source, *bounds), target, job.n_vars, matrix.kind)
    csr = mapped.matrix
    job.staged(block, matrix.name, "data").write(csr.data.tobytes())
    job.staged(block, matrix.name, "indices").write(csr.indices.astype(STAGED_INDEX).tobytes())
    job.staged(block, matrix.name, "lengths").write(np.diff(csr.indptr).astype(np.int64).tobytes())
    integral = csr.dtype.kind == "u" or _are_whole(csr.data)
    return MatrixReceipt(
        csr.nnz, csr.dtype.name, integral, float(mapped.largest), float(mapped.total), float(mapped.kept)
    )


def _are_whole(values: AnyArray) -> bool:
    """Whether they are non-negative whole numbers of which a float has every one."""
    return bool(np.all((values >= 0) & (values <= 2**53) & (values == np.floor(values))))


def _write_obsm(job: StudyJob, source: Source, array: ObsmInfo, block: int, bounds: tuple[int, int]) -> FileReceipt:
    rows = source.read_obsm(array.name, *bounds)
    whole = np.zeros((_obsm_chunk_rows(job), max(1, array.width)), dtype=array.dtype)
    whole[: len(rows), : array.width] = rows
    return write_file(job.dataset, f"obsm/{array.name}/c/{block}/0", job.codec.encode(whole))


def _obsm_chunk_rows(job: StudyJob) -> int:
    return min(job.layout.block_rows, max(1, job.n_obs))


# -- shards --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements ``[start, stop)`` of a staged block's array."""

    block: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard to write: number ``number`` of the array at ``path``, out of these pieces of staged blocks."""

    matrix: str
    path: str
    number: int
    dtype: str
    staged_dtypes: tuple[str, ...]
    chunk_length: int
    shard_length: int
    pieces: tuple[Piece, ...]


def write_shard(job: StudyJob, shard: Shard) -> FilesReceipt:
    """Put a shard together from staged blocks, encode it and write it with one request."""
    name = f"{shard.path.replace('/', '-')}-{shard.number:06d}"
    return with_receipt(job.receipt(name), FilesReceipt, lambda: _write_shard(job, shard))


def _write_shard(job: StudyJob, shard: Shard) -> FilesReceipt:
    what = shard.path.rpartition("/")[2]
    parts = [
        _read_staged(job.staged(piece.block, shard.matrix, what), np.dtype(dtype), piece).astype(shard.dtype)
        for piece, dtype in zip(shard.pieces, shard.staged_dtypes, strict=True)
    ]
    encoded = encode_shard(np.concatenate(parts), shard.chunk_length, shard.shard_length, job.codec)
    return FilesReceipt((write_file(job.dataset, f"{shard.path}/{shard_key(shard.number)}", encoded),))


def _read_staged(location: StoreLocation, dtype: np.dtype[Any], piece: Piece) -> AnyArray:
    data = location.read_range(piece.start * dtype.itemsize, piece.stop * dtype.itemsize)
    return np.frombuffer(data, dtype=dtype)


# -- frames --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """What the small files of a dataset are made from."""

    study: StudySpec
    schema: tuple[SchemaColumn, ...]
    var: pd.DataFrame
    measured: AnyArray
    uns: Mapping[str, Any]
    matrices: tuple[CSRLayout, ...]


def write_frames(job: StudyJob, address: SourceAddress | Source, frames: Frames) -> FilesReceipt:
    """Write obs, var, uns, indptr and all metadata, and obs again as parquet."""
    return with_receipt(job.receipt("frames"), FilesReceipt, lambda: _write_frames(job, open_source(address), frames))


def _write_frames(job: StudyJob, source: Source, frames: Frames) -> FilesReceipt:
    study = frames.study
    obs = streamline_obs(source.obs(), study.obs, frames.schema, study.keep, study.id)
    rows = _obsm_chunk_rows(job)
    files = encode_group(
        obs=obs,
        var=frames.var.assign(**{VAR_MEASURED: frames.measured}),
        uns=frames.uns,
        matrices=frames.matrices,
        indptr={m.name: _indptr(job, m.name) for m in frames.matrices},
        obsm=tuple(ObsmLayout(o.name, (job.n_obs, o.width), o.dtype, rows) for o in job.obsm),
        codec=job.codec,
    )
    files["obs.parquet"] = encode_obs_parquet(obs, job.layout.block_rows)
    return FilesReceipt(tuple(write_file(job.dataset, path, data) for path, data in files.items()))


def _indptr(job: StudyJob, matrix: str) -> Int64Array:
    blocks: Sequence[int] = range(len(job.blocks) - 1)
    lengths = [np.frombuffer(job.staged(b, matrix, "lengths").read(), dtype=np.int64) for b in blocks]
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]), dtype=np.int64)
