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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd

from daodask.buffers import release_buffers, reused_empty
from daodask.build.cell_names import cell_names
from daodask.build.matrices import map_block
from daodask.build.phases import Stopwatch
from daodask.build.plan import StudyFacts
from daodask.build.qc import BlockQuality, QCColumn
from daodask.build.receipts import (
    BlockReceipt,
    FileReceipt,
    FilesReceipt,
    MatrixReceipt,
    PartsReceipt,
    ScratchFile,
    with_receipt,
    write_file,
    write_scratch,
)
from daodask.build.runs import Runs
from daodask.build.schema import SchemaColumn
from daodask.build.spec import StudySpec
from daodask.build.staging import StagedMatrix
from daodask.build.streamline import streamline_obs, summarise
from daodask.build.transpose import Transposition
from daodask.errors import CorruptStoreError, SourceError
from daodask.format.chunks import shard_key, shard_parts
from daodask.format.codecs import Codec
from daodask.format.groups import CSRLayout, ObsmLayout, encode_group, encode_obs_parquet
from daodask.format.manifest import ObsmInfo
from daodask.format.spec import VAR_MEASURED, Layout
from daodask.sources import Fingerprint, PartedSource, Parts, Source, SourceAddress, open_source
from daodask.sources.fingerprint import stamp_of
from daodask.storage import StoreLocation, is_temporary
from daodask.types import CSR, AnyArray, BoolArray, Int64Array

__all__ = [
    "Frames",
    "MatrixJob",
    "Piece",
    "Shard",
    "StudyJob",
    "check_files",
    "inspect_study",
    "obsm_chunk_rows",
    "stage_block",
    "staged_indptr",
    "transpose_parts",
    "write_encoded",
    "write_frames",
    "write_gene_map",
    "write_obsm_rows",
    "write_qc_masks",
    "write_shard",
]

#: Staged values that are read at a time.
_READ_VALUES: Final = 2**21

R = TypeVar("R", BlockReceipt, FilesReceipt, PartsReceipt)

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
    if isinstance(address, SourceAddress) and address.location.is_local:
        facts = _local_facts(address, study, schema, known)
    else:
        source = open_source(address)
        # Taken first and looked at again last, so that it is that of what is read in between.
        fingerprint = source.fingerprint(known)
        facts = _facts(source, study, schema, lambda: fingerprint)
    _check_unchanged(address, facts.fingerprint)
    return facts


def _local_facts(
    address: SourceAddress, study: StudySpec, schema: tuple[SchemaColumn, ...], known: Fingerprint | None
) -> StudyFacts:
    """All of a local file is read for its fingerprint, without the GIL: so beside what is read of its metadata."""
    stamp = stamp_of(address)
    with ThreadPoolExecutor(1, "daodask-fingerprint") as aside:
        taken = aside.submit(lambda: open_source(address).fingerprint(known))
        facts = _facts(open_source(address), study, schema, taken.result)
    if stamp_of(address) != stamp:
        raise _changed(address)
    return facts


def _facts(
    source: Source, study: StudySpec, schema: tuple[SchemaColumn, ...], fingerprint: Callable[[], Fingerprint]
) -> StudyFacts:
    obs = source.obs()
    cell_names(obs.index, study.obs_names, study.id)
    matrix = _first_matrix(source, study.matrix)
    matrices = [matrix, *study.layers.values()]
    return StudyFacts(
        n_obs=source.n_obs,
        genes={matrix: _gene_names(source, matrix, study.genes) for matrix in matrices},
        columns=summarise(streamline_obs(obs, study.obs, schema, study.keep, study.id, study.qc.names)),
        obsm=tuple(_obsm_info(source, name) for name in _chosen(source.obsm_names, study.obsm)),
        uns={**source.uns(), **study.uns},
        organisms=obs[[c for c in _ORGANISM_COLUMNS if c in obs]].drop_duplicates(),
        parts=_parts(source, matrices),
        matrix=matrix,
        symbols=_gene_names(source, matrix, study.names.symbols) if study.names.symbols else (),
        fingerprint=fingerprint(),
    )


def _check_unchanged(address: SourceAddress | Source, known: Fingerprint) -> None:
    """Refuse what was read of a file that is no longer the one that the build began with.

    Of a source in memory only its owner could say that without reading all of it.
    """
    if isinstance(address, SourceAddress) and open_source(address).fingerprint(known) != known:
        raise _changed(address)


def _changed(address: SourceAddress) -> SourceError:
    return SourceError(
        f"expected {address.location} to stay as it is while it is read, but it was changed; build again when nobody "
        f"writes to it any more"
    )


def _first_matrix(source: Source, names: str) -> str:
    """The first of several matrices that the source has; the last, whose absence is an error then, without a look."""
    *first, last = names.split("|")
    for name in first:
        try:
            source.var(name)
            source.read_matrix(name, 0, 0)
        except SourceError:
            continue
        return name
    return last


def _gene_names(source: Source, matrix: str, where: str) -> tuple[str, ...]:
    var = source.var(matrix)
    if where == "index":
        return tuple(map(str, var.index))
    if where not in var:
        raise SourceError(
            f"genes: {where}: var has no such column; it has {', '.join(map(str, var.columns)) or 'none'}"
        )
    return tuple(map(str, var[where]))


def _parts(source: Source, matrices: Iterable[str]) -> dict[str, Parts]:
    """How those matrices are cut that have no row ranges."""
    if not isinstance(source, PartedSource):
        return {}
    found = {matrix: source.matrix_parts(matrix) for matrix in matrices}
    return {matrix: parts for matrix, parts in found.items() if parts is not None}


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
    fingerprint: Fingerprint
    transpositions: Mapping[str, Transposition] = field(default_factory=dict)
    qc: tuple[QCColumn, ...] = ()

    @property
    def runs(self) -> Runs:
        """How blocks are cut into what a task holds at a time."""
        return Runs(self.n_obs, self.layout.block_rows)

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
        return self.scratch / _staged_path(block, matrix, what)

    def read_staged(self, piece: Piece, matrix: str, what: str, dtype: np.dtype[Any]) -> Iterator[tuple[int, AnyArray]]:
        """Elements of a staged array, as many at a time as a task holds, and the number of the first of them."""
        path = _staged_path(piece.block, matrix, what)
        for start in range(piece.start, piece.stop, _READ_VALUES):
            stop = min(start + _READ_VALUES, piece.stop)
            data = self.scratch.read_ranges([(path, start * dtype.itemsize, stop * dtype.itemsize)])
            yield start, data.view(dtype)

    def stage(self, block: int, matrix: str, what: str, parts: Sequence[memoryview]) -> ScratchFile:
        """Write them."""
        return write_scratch(self.scratch, _staged_path(block, matrix, what), parts)

    def gene_map(self, matrix: str) -> StoreLocation:
        """Where the map of the source's genes is."""
        return self.scratch / f"genes/{matrix}.npy"

    @property
    def qc_masks(self) -> StoreLocation:
        """Where it is said which source genes each percentage of ``qc`` is over."""
        return self.scratch / "genes/qc.npy"


def _staged_path(block: int, matrix: str, what: str) -> str:
    return f"{matrix}/{block:06d}.{what}"


def _receipt_of(
    job: StudyJob, name: str, kind: type[R], address: SourceAddress | Source, work: Callable[[Source], R]
) -> R:
    """The receipt of work on the source: left only where that was all the while what the study's fingerprint says."""

    def checked() -> R:
        receipt = work(open_source(address))
        _check_unchanged(address, job.fingerprint)
        return receipt

    return with_receipt(job.scratch, name, kind, checked)


def write_gene_map(job: StudyJob, source_matrix: str, target: AnyArray) -> None:
    """Leave a gene map where the block tasks read it, so that it is not in each of them."""
    _write_array(job.gene_map(source_matrix), target)


def write_qc_masks(job: StudyJob, masks: BoolArray) -> None:
    """Leave the masks of ``qc`` there likewise."""
    _write_array(job.qc_masks, masks)


def _write_array(location: StoreLocation, array: AnyArray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    location.write(buffer.getvalue())


def _read_array(location: StoreLocation) -> AnyArray:
    array: AnyArray = np.load(io.BytesIO(location.read()))
    return array


# -- transposing -----------------------------------------------------------------------------------------------------


def transpose_parts(job: StudyJob, address: SourceAddress | Source, matrix: str, start: int, stop: int) -> PartsReceipt:
    """Read parts of a matrix that has no row ranges, and leave them where the blocks' tasks find their rows."""
    name = f"transpose-{matrix.replace('/', '-')}-{start:06d}"
    bounds = start, stop
    return _receipt_of(job, name, PartsReceipt, address, lambda source: _transpose_parts(job, source, matrix, *bounds))


def _transpose_parts(job: StudyJob, source: Source, matrix: str, start: int, stop: int) -> PartsReceipt:
    if not isinstance(source, PartedSource):
        raise SourceError(f"expected a source that reads {matrix} in parts, as it did before, got {source!r}")
    # Parts are sorted in memory of their own, which comes on top of what is kept for staging.
    release_buffers()
    n_values, files = 0, []
    for part, values in enumerate(source.read_parts(matrix, start, stop), start):
        files.append(job.transpositions[matrix].write(part, values))
        n_values += len(values.values)
    return PartsReceipt(tuple(range(start, stop)), n_values, tuple(files))


# -- staging -------------------------------------------------------------------------------------------------------


def stage_block(job: StudyJob, address: SourceAddress | Source, block: int) -> BlockReceipt:
    """Read, streamline and stage one block of rows of every matrix; its obsm rows go straight into the dataset."""
    name = f"block-{block:06d}"
    return _receipt_of(job, name, BlockReceipt, address, lambda source: _stage_block(job, source, block))


def _stage_block(job: StudyJob, source: Source, block: int) -> BlockReceipt:
    bounds, clock = (job.blocks[block], job.blocks[block + 1]), Stopwatch()
    staged = {m.name: _stage_matrix(job, source, m, block, clock) for m in job.matrices}
    return BlockReceipt(
        matrices={name: receipt for name, (receipt, _) in staged.items()},
        files=tuple(_write_obsm(job, source, o, block, bounds) for o in job.obsm),
        scratch=tuple(file for _, files in staged.values() for file in files),
        seconds=clock.seconds,
    )


def _stage_matrix(
    job: StudyJob, source: Source, matrix: MatrixJob, block: int, clock: Stopwatch
) -> tuple[MatrixReceipt, list[ScratchFile]]:
    target = _read_array(job.gene_map(matrix.source))
    quality = BlockQuality(job.qc, _read_array(job.qc_masks)) if job.qc and matrix.name == "X" else None
    staged = StagedMatrix(with_depth=matrix.name == "X")
    for rows in clock.each("read", _read_runs(job, source, matrix.source, block)):
        with clock("map"):
            staged.add(map_block(rows, target, job.n_vars, matrix.kind))
        if quality is not None:
            quality.add(rows)
    with clock("write"):
        files = [job.stage(block, matrix.name, what, data) for what, data in staged.arrays()]
    if quality is None:
        return staged.receipt(), files
    files.append(job.stage(block, matrix.name, "qc", [quality.values.data]))
    return replace(staged.receipt(), qc=quality.ranges), files


def _read_runs(job: StudyJob, source: Source, matrix: str, block: int) -> Iterator[CSR]:
    """Rows of a block, as many at a time as a task holds."""
    if matrix in job.transpositions:
        yield from job.transpositions[matrix].read(block)
    else:
        for run in job.runs.of_block(block):
            yield source.read_matrix(matrix, *job.runs.bounds(run))


def _write_obsm(job: StudyJob, source: Source, array: ObsmInfo, block: int, bounds: tuple[int, int]) -> FileReceipt:
    return write_obsm_rows(job, array, block, source.read_obsm(array.name, *bounds))


def write_obsm_rows(job: StudyJob, array: ObsmInfo, block: int, rows: AnyArray) -> FileReceipt:
    """Write the rows of a block, which are one chunk, into the dataset."""
    whole = np.zeros((obsm_chunk_rows(job), max(1, array.width)), dtype=array.dtype)
    whole[: len(rows), : array.width] = rows
    return write_file(job.dataset, f"obsm/{array.name}/c/{block}/0", job.codec.encode(whole))


def obsm_chunk_rows(job: StudyJob) -> int:
    """Rows of a chunk of obsm: a block."""
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

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return sum(piece.stop - piece.start for piece in self.pieces) * np.dtype(self.dtype).itemsize


def write_shard(job: StudyJob, shard: Shard) -> FilesReceipt:
    """Put a shard together from staged blocks, encode it and write it with one request."""
    name = f"{shard.path.replace('/', '-')}-{shard.number:06d}"
    return with_receipt(job.scratch, name, FilesReceipt, lambda: _write_shard(job, shard))


def _write_shard(job: StudyJob, shard: Shard) -> FilesReceipt:
    clock = Stopwatch()
    values = clock.each("read", _shard_values(job, shard))
    file = write_encoded(job, shard.path, shard.number, values, (shard.chunk_length, shard.shard_length), clock)
    return FilesReceipt((file,), clock.seconds)


def write_encoded(
    job: StudyJob, array: str, number: int, values: Iterable[AnyArray], lengths: tuple[int, int], clock: Stopwatch
) -> FileReceipt:
    """Write values as a shard of an array of the dataset, of that length of chunk and shard, while they are encoded."""
    with clock("write"):
        encoded = clock.each("encode", shard_parts(values, *lengths, job.codec.of(array)))
        return write_file(job.dataset, f"{array}/{shard_key(number)}", encoded)


def _shard_values(job: StudyJob, shard: Shard) -> Iterator[AnyArray]:
    """The values of a shard in its dtype, a few at a time."""
    what = shard.path.rpartition("/")[2]
    for piece, dtype in zip(shard.pieces, shard.staged_dtypes, strict=True):
        for _, staged in job.read_staged(piece, shard.matrix, what, np.dtype(dtype)):
            yield staged if staged.dtype == shard.dtype else _cast(staged, shard.dtype)


def _cast(values: AnyArray, dtype: str) -> AnyArray:
    cast = reused_empty(len(values), dtype)
    cast[:] = values
    return cast


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
    return _receipt_of(job, "frames", FilesReceipt, address, lambda source: _write_frames(job, source, frames))


def _write_frames(job: StudyJob, source: Source, frames: Frames) -> FilesReceipt:
    study = frames.study
    obs = streamline_obs(source.obs(), study.obs, frames.schema, study.keep, study.id, study.qc.names)
    obs = obs.assign(**_measured(job))
    obs.index = cell_names(obs.index, study.obs_names, study.id)
    rows = obsm_chunk_rows(job)
    files = encode_group(
        obs=obs,
        var=frames.var.assign(**{VAR_MEASURED: frames.measured}),
        uns=frames.uns,
        matrices=frames.matrices,
        indptr={m.name: staged_indptr(job, m.name) for m in frames.matrices},
        obsm=tuple(ObsmLayout(o.name, (job.n_obs, o.width), o.dtype, rows) for o in job.obsm),
        codec=job.codec,
    )
    files["obs.parquet"] = encode_obs_parquet(obs, job.layout.block_rows)
    return FilesReceipt(tuple(write_file(job.dataset, path, data) for path, data in files.items()))


def _measured(job: StudyJob) -> dict[str, AnyArray]:
    """What was measured of each cell, by obs column."""
    if not job.qc:
        return {}
    blocks = range(len(job.blocks) - 1)
    parts = [np.frombuffer(job.staged(b, "X", "qc").read()).reshape(len(job.qc), -1) for b in blocks]
    values = np.concatenate([np.empty((len(job.qc), 0)), *parts], axis=1)
    return {column.name: row.astype(column.dtype) for column, row in zip(job.qc, values, strict=True)}


def staged_indptr(job: StudyJob, matrix: str) -> Int64Array:
    """Row bounds of a matrix of which all blocks are staged."""
    blocks: Sequence[int] = range(len(job.blocks) - 1)
    lengths = [np.frombuffer(job.staged(b, matrix, "lengths").read(), dtype=np.int64) for b in blocks]
    return np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]), dtype=np.int64)


# -- the end -------------------------------------------------------------------------------------------------------


def check_files(dataset: StoreLocation, files: Sequence[FileReceipt]) -> None:
    """See that all files of a dataset are there as they were written, and that nothing else is.

    Half files of writers that were killed are removed: their names are those of nobody's work once all is written.

    Raises
    ------
    CorruptStoreError
        A file is absent or of another size. The receipts lie: what is in scratch must go.
    """
    there = {file.path: file.size for file in dataset.files()}
    for path in there:
        if is_temporary(path):
            (dataset / path).remove()
    for file in files:
        if there.get(file.path) != file.size:
            found = f"{there[file.path]} bytes" if file.path in there else "none"
            raise CorruptStoreError(
                f"expected a file of {file.size} bytes at {dataset / file.path}, found {found}: something removed or "
                f"changed what this build wrote; run the same build again"
            )
