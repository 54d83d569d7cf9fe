"""The steps of building one study: stage its blocks, lay the arrays out, write shards and frames."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from daodask.build.depth import Depth
from daodask.build.layouts import checksums_of, encode_tasks, lay_out, matrix_info
from daodask.build.phases import sum_phases
from daodask.build.plan import BuildPlan, Recipe
from daodask.build.qc import join_ranges
from daodask.build.receipts import BlockReceipt, FileReceipt, FilesReceipt, write_file
from daodask.build.report import StudyReport
from daodask.build.runs import Runs
from daodask.build.spec import StudySpec
from daodask.build.tasks import (
    Frames,
    MatrixJob,
    StudyJob,
    check_files,
    stage_block,
    transpose_parts,
    write_frames,
    write_gene_map,
    write_qc_masks,
)
from daodask.build.transpose import Transposition
from daodask.drive import Steps
from daodask.format.groups import CSRLayout
from daodask.format.manifest import DatasetInfo
from daodask.format.spec import CHECKSUMS
from daodask.runners import Task
from daodask.sources import Fingerprint, SourceAddress

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
    if job.qc:
        write_qc_masks(job, recipe.qc_masks)
    if job.transpositions:
        yield "transpose", list(_transposing(job, source))
    blocks = range(len(job.blocks) - 1)
    staged: list[BlockReceipt] = yield "stage", [Task("stage-block", stage_block, (job, source, b)) for b in blocks]
    layouts = tuple(lay_out(job, m, staged) for m in job.matrices)
    framing = Task("write-frames", write_frames, (job, source, _frames(plan, recipe, layouts)))
    written: list[FilesReceipt] = yield "write", [framing, *encode_tasks(job, layouts, staged)]
    files = [f for block in staged for f in block.files] + [f for task in written for f in task.files]
    checksums = checksums_of(files)
    # Before the look at all of them: a dataset that has them is not removed by another builder that fails.
    files_and_sums = [*files, write_file(job.dataset, CHECKSUMS, checksums)]
    yield "check", [Task("check-files", check_files, (job.dataset, files_and_sums))]
    report = _report(recipe, staged, sum_phases([*(r.seconds for r in staged), *(r.seconds for r in written)]))
    return _dataset_info(recipe, _path(plan, recipe), layouts, staged, files, checksums, report), report


def _path(plan: BuildPlan, recipe: Recipe) -> str:
    """Where the dataset is built, below the store's URL."""
    return recipe.dataset_path if plan.shuffle.kind == "none" else recipe.unshuffled_path


def _transposing(job: StudyJob, source: Any) -> Iterator[Task]:
    """A task per part of the matrices that have no row ranges, but one for all where a part follows from the last."""
    for matrix, transposition in job.transpositions.items():
        parts = transposition.parts
        step = parts.number if parts.sequential else 1
        for start in range(0, parts.number, step):
            yield Task("transpose-parts", transpose_parts, (job, source, matrix, start, start + step))


def _study_job(plan: BuildPlan, recipe: Recipe) -> StudyJob:
    study = recipe.study
    layers = [MatrixJob(f"layers/{name}", source, "other") for name, source in study.layers.items()]
    return StudyJob(
        scratch=plan.location / recipe.scratch_path,
        dataset=plan.location / _path(plan, recipe),
        matrices=(MatrixJob("X", study.matrix, study.kind, floats=bool(study.dtype)), *layers),
        obsm=recipe.facts.obsm,
        blocks=recipe.blocks,
        n_vars=len(recipe.space.features),
        # What will be shuffled is read by rows alone.
        layout=plan.layout if plan.shuffle.kind == "none" else replace(plan.layout, by_gene=()),
        fingerprint=recipe.facts.fingerprint,
        transpositions=_transpositions(plan, recipe),
        qc=recipe.qc,
    )


def _transpositions(plan: BuildPlan, recipe: Recipe) -> dict[str, Transposition]:
    runs = Runs(recipe.facts.n_obs, plan.layout.block_rows)
    scratch = plan.location / recipe.scratch_path
    return {
        matrix: Transposition(scratch, f"exchange/{matrix}", parts, runs, len(recipe.facts.genes[matrix]))
        for matrix, parts in recipe.facts.parts.items()
    }


def _frames(plan: BuildPlan, recipe: Recipe, layouts: tuple[CSRLayout, ...]) -> Frames:
    return Frames(
        study=recipe.study.without_source,
        schema=plan.schema,
        var=recipe.space.features.var,
        measured=recipe.genes[recipe.study.matrix].measured,
        uns=recipe.facts.uns,
        matrices=layouts,
    )


def _report(recipe: Recipe, staged: Sequence[BlockReceipt], phases: Mapping[str, float]) -> StudyReport:
    genes = recipe.genes[recipe.study.matrix]
    return StudyReport(
        id=recipe.study.id,
        status="built",
        n_obs=recipe.facts.n_obs,
        genes_matched=genes.matched,
        genes_summed=genes.summed,
        genes_padded=genes.padded,
        genes_dropped=dict(genes.dropped),
        genes_ambiguous=dict(genes.ambiguous),
        counts_total=sum(block.matrices["X"].total for block in staged),
        counts_kept=sum(block.matrices["X"].kept for block in staged),
        depth=Depth.sum(block.matrices["X"].depth for block in staged),
        phases=phases,
    )


def _dataset_info(
    recipe: Recipe,
    path: str,
    layouts: Sequence[CSRLayout],
    staged: Sequence[BlockReceipt],
    files: Sequence[FileReceipt],
    checksums: bytes,
    report: StudyReport,
) -> DatasetInfo:
    facts, study = recipe.facts, recipe.study
    return DatasetInfo(
        id=study.id,
        path=path,
        features=recipe.space.features.name,
        n_obs=facts.n_obs,
        blocks=recipe.blocks,
        matrices=tuple(matrix_info(layout, study.kind, staged) for layout in layouts),
        obsm=facts.obsm,
        columns=(*facts.columns, *join_ranges(recipe.qc, [block.matrices["X"].qc for block in staged])),
        uns=dict(facts.uns),
        checksum=hashlib.sha256(checksums).hexdigest(),
        nbytes=sum(f.size for f in files),
        fingerprint=recipe.fingerprint,
        source={"url": _source_url(study), **_fingerprint_fields(facts.fingerprint)},
        report=report.facts(),
    )


def _source_url(study: StudySpec) -> str:
    return study.source.location.url if isinstance(study.source, SourceAddress) else "memory"


def _fingerprint_fields(fingerprint: Fingerprint) -> dict[str, Any]:
    return {"size": fingerprint.size, "stamp": fingerprint.stamp, "digest": fingerprint.digest}
