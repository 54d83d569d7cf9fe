"""The steps of building one study: stage its blocks, lay the arrays out, write shards and frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from daodask.build.plan import BuildPlan, Recipe
from daodask.build.receipts import BlockReceipt, FileReceipt, FilesReceipt
from daodask.build.report import StudyReport
from daodask.build.spec import StudySpec
from daodask.build.tasks import (
    STAGED_INDEX,
    Frames,
    MatrixJob,
    Piece,
    Shard,
    StudyJob,
    stage_block,
    write_frames,
    write_gene_map,
    write_shard,
)
from daodask.drive import Steps
from daodask.format.chunks import shard_bounds
from daodask.format.groups import CSRLayout
from daodask.format.manifest import DatasetInfo, MatrixInfo
from daodask.format.spec import CHECKSUMS, exact_integer_dtype, index_dtype, served_dtype
from daodask.runners import Task
from daodask.sources import Fingerprint, SourceAddress
from daodask.types import Int64Array

__all__ = ["build_study"]


def build_study(plan: BuildPlan, recipe: Recipe, source: Any) -> Steps[tuple[DatasetInfo, StudyReport]]:
    """Build one study.

    Parameters
    ----------
    source
        Its address, or what the runner made of a source in memory.

    Returns
    -------
    tuple
        The dataset's entry in the snapshot and what streamlining did.
    """
    job = _study_job(plan, recipe)
    for matrix, genes in recipe.genes.items():
        write_gene_map(job, matrix, genes.target)
    blocks = range(len(job.blocks) - 1)
    staged: list[BlockReceipt] = yield "stage", [Task("stage-block", stage_block, (job, source, b)) for b in blocks]
    layouts = tuple(_lay_out(job, m, staged) for m in job.matrices)
    shards = [shard for layout in layouts for shard in _shards(layout, staged)]
    tasks = [Task("encode-shard", write_shard, (job, s)) for s in shards]
    frames = _frames(plan, recipe, layouts)
    written: list[FilesReceipt] = yield "write", [*tasks, Task("write-frames", write_frames, (job, source, frames))]
    files = [f for block in staged for f in block.files] + [f for task in written for f in task.files]
    report = _report(recipe, staged)
    return _dataset_info(plan, recipe, layouts, staged, files, report), report


def _study_job(plan: BuildPlan, recipe: Recipe) -> StudyJob:
    study = recipe.study
    layers = [MatrixJob(f"layers/{name}", source, "other") for name, source in study.layers.items()]
    return StudyJob(
        scratch=plan.location / recipe.scratch_path,
        dataset=plan.location / recipe.dataset_path,
        matrices=(MatrixJob("X", study.matrix, study.kind, floats=bool(study.dtype)), *layers),
        obsm=recipe.facts.obsm,
        blocks=recipe.blocks,
        n_vars=len(recipe.space.features),
        layout=plan.layout,
    )


def _lay_out(job: StudyJob, matrix: MatrixJob, staged: Sequence[BlockReceipt]) -> CSRLayout:
    """Shape and cutting of a matrix, of what its staged blocks turned out to hold."""
    receipts = [block.matrices[matrix.name] for block in staged]
    nnz = sum(r.nnz for r in receipts)
    dtype = _final_dtype(matrix, staged)
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
    )


def _final_dtype(matrix: MatrixJob, staged: Sequence[BlockReceipt]) -> np.dtype[Any]:
    """The smallest dtype that holds every block exactly; the smallest float where floats are asked for."""
    receipts = [block.matrices[matrix.name] for block in staged]
    if not all(r.integral for r in receipts):
        return np.result_type(*(np.dtype(r.dtype) for r in receipts))
    largest = max((r.largest for r in receipts), default=0.0)
    exact = exact_integer_dtype(int(largest))
    return served_dtype(exact, largest) if matrix.floats else exact


def _shards(layout: CSRLayout, staged: Sequence[BlockReceipt]) -> Iterator[Shard]:
    receipts = [block.matrices[layout.name] for block in staged]
    bounds = np.cumsum([0, *(r.nnz for r in receipts)], dtype=np.int64)
    for path, dtype, length in layout.arrays():
        is_data = path.endswith("/data")
        for number, (start, stop) in enumerate(shard_bounds(layout.nnz, length)):
            pieces = tuple(_pieces(bounds, start, stop))
            dtypes = tuple(receipts[p.block].dtype if is_data else STAGED_INDEX for p in pieces)
            yield Shard(layout.name, path, number, dtype, dtypes, layout.chunk_length, length, pieces)


def _pieces(bounds: Int64Array, start: int, stop: int) -> Iterator[Piece]:
    """Which elements of which blocks make up ``[start, stop)``."""
    first = int(np.searchsorted(bounds, start, side="right")) - 1
    for block in range(first, len(bounds) - 1):
        low, high = int(bounds[block]), int(bounds[block + 1])
        if low >= stop:
            return
        if high > low:
            yield Piece(block, max(start, low) - low, min(stop, high) - low)


def _frames(plan: BuildPlan, recipe: Recipe, layouts: tuple[CSRLayout, ...]) -> Frames:
    return Frames(
        study=recipe.study.without_source,
        schema=plan.schema,
        var=recipe.space.features.var,
        measured=recipe.genes[recipe.study.matrix].measured,
        uns=recipe.facts.uns,
        matrices=layouts,
    )


def _report(recipe: Recipe, staged: Sequence[BlockReceipt]) -> StudyReport:
    genes = recipe.genes[recipe.study.matrix]
    return StudyReport(
        id=recipe.study.id,
        status="built",
        n_obs=recipe.facts.n_obs,
        genes_matched=genes.matched,
        genes_summed=genes.summed,
        genes_padded=genes.padded,
        genes_dropped=dict(genes.dropped),
        counts_total=sum(block.matrices["X"].total for block in staged),
        counts_kept=sum(block.matrices["X"].kept for block in staged),
    )


def _dataset_info(
    plan: BuildPlan,
    recipe: Recipe,
    layouts: Sequence[CSRLayout],
    staged: Sequence[BlockReceipt],
    files: Sequence[FileReceipt],
    report: StudyReport,
) -> DatasetInfo:
    checksums = _checksums(files)
    (plan.location / recipe.dataset_path / CHECKSUMS).write(checksums)
    facts, study = recipe.facts, recipe.study
    return DatasetInfo(
        id=study.id,
        path=recipe.dataset_path,
        features=recipe.space.features.name,
        n_obs=facts.n_obs,
        blocks=recipe.blocks,
        matrices=tuple(_matrix_info(layout, study, staged) for layout in layouts),
        obsm=facts.obsm,
        columns=facts.columns,
        uns=dict(facts.uns),
        checksum=hashlib.sha256(checksums).hexdigest(),
        nbytes=sum(f.size for f in files),
        fingerprint=recipe.fingerprint,
        source={"url": _source_url(study), **_fingerprint_fields(facts.fingerprint)},
        report=report.facts(),
    )


def _checksums(files: Iterable[FileReceipt]) -> bytes:
    entries = {f.path: {"size": f.size, "sha256": f.sha256} for f in files}
    return json.dumps(entries, sort_keys=True, indent=0).encode()


def _matrix_info(layout: CSRLayout, study: StudySpec, staged: Sequence[BlockReceipt]) -> MatrixInfo:
    receipts = [block.matrices[layout.name] for block in staged]
    integral = all(r.integral for r in receipts)
    kind = study.kind if layout.name == "X" else "counts" if integral else "other"
    return MatrixInfo(layout.name, kind, layout.data_dtype, layout.nnz, max((r.largest for r in receipts), default=0.0))


def _source_url(study: StudySpec) -> str:
    return study.source.location.url if isinstance(study.source, SourceAddress) else "memory"


def _fingerprint_fields(fingerprint: Fingerprint) -> dict[str, Any]:
    return {"size": fingerprint.size, "stamp": fingerprint.stamp, "digest": fingerprint.digest}
