"""The steps of shuffling datasets: scatter their blocks, collect those of the outputs, write these as a study's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daodask.build.known import shared_source
from daodask.build.layouts import checksums_of, encode_tasks, lay_out, matrix_info
from daodask.build.plan import BuildPlan, Recipe, group_path
from daodask.build.receipts import BlockReceipt, FileReceipt, FramesReceipt, write_file
from daodask.build.report import StudyReport
from daodask.build.shuffle import (
    ShuffledFrames,
    ShuffleJob,
    collect_block,
    plan_shuffle,
    scatter_block,
    write_shuffled_frames,
)
from daodask.build.steps import build_study
from daodask.build.tasks import check_files
from daodask.drive import Steps
from daodask.format.manifest import DatasetInfo
from daodask.format.spec import CHECKSUMS, DATASETS, SCRATCH
from daodask.runners import Task

__all__ = ["build_shuffled", "shuffle_together"]


def build_shuffled(plan: BuildPlan, recipe: Recipe, source: Any) -> Steps[tuple[DatasetInfo, StudyReport]]:
    """Build one study and shuffle its cells, where the build says so; takes and returns what ``build_study`` does.

    What is built first stays in scratch, and goes with it.
    """
    dataset, report = yield from build_study(plan, recipe, source)
    if not plan.shuffle.within:
        return dataset, report
    target = _Target((dataset.id,), (recipe.dataset_path,), f"{recipe.scratch_path}/shuffle")
    (shuffled,) = yield from _shuffle(plan, [recipe], [dataset], target)
    made = replace(shuffled, fingerprint=dataset.fingerprint, source=dataset.source, report=dataset.report)
    return replace(made, uns=dataset.uns), report


def shuffle_together(
    plan: BuildPlan, recipes: Sequence[Recipe], datasets: Sequence[DatasetInfo]
) -> Steps[tuple[DatasetInfo, ...]]:
    """Shuffle the cells of studies on the same genes, each built into scratch, into datasets of equal size.

    Returns
    -------
    tuple of DatasetInfo
        Of the shuffled datasets.
    """
    n_obs = sum(d.n_obs for d in datasets)
    number = max(1, -(-n_obs // plan.shuffle.dataset_rows))
    path = group_path(recipes)
    name, _, token = path.rpartition("/")[2].rpartition(".")
    ids = tuple(f"{name}_{d}" if number > 1 else name for d in range(number))
    target = _Target(ids, tuple(f"{DATASETS}/{i}.{token}" for i in ids), path.replace(DATASETS, SCRATCH, 1))
    shuffled = yield from _shuffle(plan, recipes, datasets, target)
    return tuple(replace(d, fingerprint=f"{name}.{token}.{d.id}", source=shared_source(datasets)) for d in shuffled)


# -- the steps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """Ids of the datasets to make, their paths below the store, and that of scratch space."""

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    scratch: str


def _shuffle(
    plan: BuildPlan, recipes: Sequence[Recipe], datasets: Sequence[DatasetInfo], target: _Target
) -> Steps[tuple[DatasetInfo, ...]]:
    features = recipes[0].space.features
    job = plan_shuffle(
        [(plan.location / d.path, d) for d in datasets],
        [plan.location / path for path in target.paths],
        plan.location / target.scratch,
        layout=plan.layout,
        n_vars=len(features),
        seed=plan.shuffle.seed,
        origins=plan.shuffle.across,
    )
    measured = np.array([r.genes[r.study.matrix].measured for r in recipes])
    uns = _common([d.uns for d in datasets])
    yield "scatter", [Task("scatter-block", scatter_block, (job, b)) for b in range(len(job.sources))]
    targets = job.targets
    staged: list[BlockReceipt] = yield (
        "collect",
        [Task("collect-block", collect_block, (job, t)) for t in range(len(targets))],
    )
    outputs = [
        _Output(job, o, [r for r, (d, _) in zip(staged, targets, strict=True) if d == o])
        for o in range(len(target.ids))
    ]
    frames = [
        ShuffledFrames(i, features.var, measured, uns, o.layouts) for i, o in zip(target.ids, outputs, strict=True)
    ]
    written = yield "write", [task for o, f in zip(outputs, frames, strict=True) for task in o.writing(f)]
    remaining = iter(written)
    made = [o.take(remaining) for o in outputs]
    yield "check", [o.checking(files) for o, (files, _) in zip(outputs, made, strict=True)]
    return tuple(
        o.dataset(i, path, files, receipt, uns, datasets[0])
        for o, i, path, (files, receipt) in zip(outputs, target.ids, target.paths, made, strict=True)
    )


def _common(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts that are the same in all."""
    first, *others = facts
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


class _Output:
    """One dataset that is made: its job, and what its staged blocks hold."""

    def __init__(self, job: ShuffleJob, number: int, staged: Sequence[BlockReceipt]) -> None:
        self._shuffle = job
        self._number = number
        self._job = job.outputs[number]
        self._staged = staged
        self.layouts = tuple(lay_out(self._job, matrix, staged) for matrix in self._job.matrices)
        self._encoding = encode_tasks(self._job, self.layouts, staged)

    def writing(self, frames: ShuffledFrames) -> Iterator[Task]:
        """Tasks that write its files."""
        yield from self._encoding
        yield Task("write-frames", write_shuffled_frames, (self._shuffle, self._number, frames))

    def take(self, receipts: Iterator[Any]) -> tuple[list[FileReceipt], FramesReceipt]:
        """All its files, and the receipt of its frames, of the next results of :meth:`writing`."""
        files = [f for block in self._staged for f in block.files]
        files += [f for _ in self._encoding for f in next(receipts).files]
        frames: FramesReceipt = next(receipts)
        return [*files, *frames.files], frames

    def checking(self, files: Sequence[FileReceipt]) -> Task:
        """The task that looks whether all is there; writes the checksums."""
        listed = write_file(self._job.dataset, CHECKSUMS, checksums_of(files))
        return Task("check-files", check_files, (self._job.dataset, [*files, listed]))

    def dataset(
        self,
        dataset_id: str,
        path: str,
        files: Sequence[FileReceipt],
        frames: FramesReceipt,
        uns: Mapping[str, Any],
        first: DatasetInfo,
    ) -> DatasetInfo:
        """Its entry in the snapshot; ``first`` is of the datasets that it is made of."""
        kind = first.matrix["X"].kind
        return DatasetInfo(
            id=dataset_id,
            path=path,
            features=first.features,
            n_obs=self._job.n_obs,
            blocks=self._job.blocks,
            matrices=tuple(matrix_info(layout, kind, self._staged) for layout in self.layouts),
            obsm=self._job.obsm,
            columns=frames.columns,
            uns=dict(uns),
            checksum=hashlib.sha256(checksums_of(files)).hexdigest(),
            nbytes=sum(f.size for f in files),
        )
