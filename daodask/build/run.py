"""Running a build: look at the studies, plan, let the workers stage and write, commit once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daodask.build.genes import GeneLookup, feature_space, read_reference, read_synonyms
from daodask.build.plan import BuildPlan, Space, StudyFacts, StudyPlan, make_plan, with_datasets
from daodask.build.receipts import BlockReceipt, FileReceipt, FilesReceipt
from daodask.build.report import BuildReport, StudyReport
from daodask.build.runners import DaskRunner, Runner, SerialRunner, Task, ThreadRunner
from daodask.build.spec import BuildSpec, FeatureSpec, StudySpec, load_spec
from daodask.build.tasks import (
    Frames,
    MatrixJob,
    Piece,
    Shard,
    StudyJob,
    inspect_study,
    stage_block,
    write_frames,
    write_gene_map,
    write_shard,
)
from daodask.errors import DaodaskError, StreamlineError
from daodask.format.chunks import shard_bounds
from daodask.format.groups import CSRLayout
from daodask.format.manifest import DatasetInfo, MatrixInfo, Snapshot
from daodask.format.spec import CHECKSUMS, exact_integer_dtype, feature_path, index_dtype
from daodask.snapshots import commit_snapshot, latest_snapshot
from daodask.sources import Fingerprint, SourceAddress
from daodask.storage import StoreLocation

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Progress", "build_store", "plan_build"]

#: Called with a study's id, what is being done to it, and how many of how many tasks of that are done.
Progress: TypeAlias = Callable[[str, str, int, int], None]

#: What a study goes through: yields tasks to run side by side, receives their results in order.
Steps: TypeAlias = Generator[tuple[str, Sequence[Task]], list[Any], Any]

SpecLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | BuildSpec"


def build_store(
    spec: SpecLike,
    url: str | os.PathLike[str] | StoreLocation,
    *,
    client: Client | None = None,
    threads: int = 1,
    replace: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Streamline studies into a store, in parallel; commit once, all or nothing per study (computes).

    A build that was cut off goes on where it stopped when it is started again with the same spec; one that is complete
    does nothing but say so.

    Parameters
    ----------
    spec
        A build file (path or URL), a dict of the same shape, or what :func:`load_spec` returns.
    url
        Where the store is or will be: a local path or any fsspec URL. What is there stays.
    client
        A Dask client; its workers do the work. Without one it is done here.
    threads
        Threads to work with where there is no client; 1 is one task after another.
    replace
        Put studies that changed in the place of the datasets of the same id; without it they are refused.
    options
        fsspec options for the store. Leave credentials to the environment, as these options travel to workers.
    progress
        Called as tasks finish.

    Returns
    -------
    BuildReport
        Per study what became of it. A study that is refused or fails leaves nothing behind, and the others are committed.

    Raises
    ------
    SpecError
        The build file says something that can't be meant.
    FeatureSpaceError
        The store has a feature space of the same name with other genes.
    """
    began = time.monotonic()
    with _runner(client, threads) as runner:
        plan = _plan(spec, url, options, runner, replace, progress)
        jobs = {p.study.id: _build_study(plan, p, runner) for p in plan.todo}
        results = _drive(jobs, runner, progress)
        return _finish(plan, results, began)


def plan_build(
    spec: SpecLike,
    url: str | os.PathLike[str] | StoreLocation,
    *,
    client: Client | None = None,
    threads: int = 1,
    replace: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> BuildPlan:
    """Say what :func:`build_store` would do; looks at the studies' metadata and writes nothing (computes).

    Takes the parameters of :func:`build_store`.

    Returns
    -------
    BuildPlan
        Frozen and printable.
    """
    with _runner(client, threads) as runner:
        return _plan(spec, url, options, runner, replace, progress)


@contextlib.contextmanager
def _runner(client: Client | None, threads: int) -> Iterator[Runner]:
    if client is not None:
        yield DaskRunner(client)
    elif threads > 1:
        with ThreadRunner(threads) as runner:
            yield runner
    else:
        yield SerialRunner()


# -- planning -----------------------------------------------------------------------------------------------------------


def _plan(
    spec: SpecLike,
    url: str | os.PathLike[str] | StoreLocation,
    options: Mapping[str, Any] | None,
    runner: Runner,
    replace_changed: bool,
    progress: Progress | None,
) -> BuildPlan:
    checked = spec if isinstance(spec, BuildSpec) else load_spec(spec)
    location = StoreLocation.parse(url, options)
    snapshot = latest_snapshot(location)
    shared = _share_open_sources(checked, runner)
    facts = _drive({s.id: _look(s, checked, snapshot) for s in shared.studies}, runner, progress)
    spaces = [_make_space(f, shared, facts) for f in shared.features]
    return make_plan(location, shared, spaces, facts, snapshot, replace_changed=replace_changed)


def _share_open_sources(spec: BuildSpec, runner: Runner) -> BuildSpec:
    """Sources in memory travel to the cluster once, not with each task."""
    studies = tuple(
        s if isinstance(s.source, SourceAddress) else replace(s, source=runner.share(s.source)) for s in spec.studies
    )
    return replace(spec, studies=studies)


def _look(study: StudySpec, spec: BuildSpec, snapshot: Snapshot | None) -> Steps:
    known = snapshot.dataset.get(study.id) if snapshot else None
    fields_ = {k: known.source[k] for k in ("size", "stamp", "digest")} if known else None
    fingerprint = Fingerprint(**fields_) if fields_ else None
    (facts,) = yield "inspect", [Task("inspect-study", inspect_study, (study, spec.schema, fingerprint))]
    return facts


def _make_space(spec: FeatureSpec, build: BuildSpec, facts: Mapping[str, StudyFacts | Exception]) -> Space:
    reference = read_reference(spec.reference.read()) if isinstance(spec.reference, StoreLocation) else None
    synonyms = read_synonyms(spec.synonyms.read()) if spec.synonyms else None
    looked_at = [(s, facts[s.id]) for s in build.studies if s.features == spec.name]
    names = [f.genes[s.matrix] for s, f in looked_at if isinstance(f, StudyFacts)]
    features = feature_space(spec, reference, names)
    return Space(spec, features, GeneLookup.build(features, reference, synonyms))


# -- one study ----------------------------------------------------------------------------------------------------------


def _build_study(plan: BuildPlan, planned: StudyPlan, runner: Runner) -> Steps:
    """Stage all blocks, lay the arrays out, write shards and frames; returns the dataset's entry and its report."""
    job = _study_job(plan, planned)
    for matrix, genes in planned.genes.items():
        write_gene_map(job, matrix, genes.target)
    blocks = range(len(job.blocks) - 1)
    staged: list[BlockReceipt] = yield "stage", [Task("stage-block", stage_block, (job, b)) for b in blocks]
    layouts = tuple(_lay_out(job, m, staged) for m in job.matrices)
    shards = [shard for layout in layouts for shard in _shards(layout, staged)]
    tasks = [Task("encode-shard", write_shard, (job, s)) for s in shards]
    frames = runner.share(_frames(plan, planned, layouts))
    written: list[FilesReceipt] = yield "write", [*tasks, Task("write-frames", write_frames, (job, frames))]
    files = [f for receipt in (*staged, *written) for f in receipt.files]
    report = _report(planned, staged)
    return _dataset_info(plan, planned, layouts, staged, files, report), report


def _study_job(plan: BuildPlan, planned: StudyPlan) -> StudyJob:
    study = planned.study
    layers = [MatrixJob(f"layers/{name}", source, "other") for name, source in study.layers.items()]
    return StudyJob(
        source=study.source,
        scratch=plan.location / planned.scratch_path,
        dataset=plan.location / planned.dataset_path,
        matrices=(MatrixJob("X", study.matrix, study.kind), *layers),
        obsm=planned.facts.obsm,
        blocks=planned.blocks,
        n_vars=len(planned.space.features),
        layout=plan.layout,
    )


def _lay_out(job: StudyJob, matrix: MatrixJob, staged: Sequence[BlockReceipt]) -> CSRLayout:
    """Shape and cutting of a matrix, of what its staged blocks turned out to hold."""
    receipts = [block.matrices[matrix.name] for block in staged]
    nnz = sum(r.nnz for r in receipts)
    dtype = _final_dtype(matrix, staged)
    chunk = job.layout.chunk_length(nnz, job.n_obs)
    indices = index_dtype(job.n_vars)
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
    """The smallest dtype that holds every block exactly."""
    receipts = [block.matrices[matrix.name] for block in staged]
    if all(r.integral for r in receipts):
        return exact_integer_dtype(int(max((r.largest for r in receipts), default=0)))
    return np.result_type(*(np.dtype(r.dtype) for r in receipts))


def _shards(layout: CSRLayout, staged: Sequence[BlockReceipt]) -> Iterator[Shard]:
    receipts = [block.matrices[layout.name] for block in staged]
    bounds = np.cumsum([0, *(r.nnz for r in receipts)])
    for path, dtype, length in layout.arrays():
        is_data = path.endswith("/data")
        for number, (start, stop) in enumerate(shard_bounds(layout.nnz, length)):
            pieces = tuple(_pieces(bounds, start, stop))
            dtypes = tuple(receipts[p.block].dtype if is_data else layout.index_dtype for p in pieces)
            yield Shard(layout.name, path, number, dtype, dtypes, layout.chunk_length, length, pieces)


def _pieces(bounds: Any, start: int, stop: int) -> Iterator[Piece]:
    """Which elements of which blocks make up ``[start, stop)``."""
    first = int(np.searchsorted(bounds, start, side="right")) - 1
    for block in range(first, len(bounds) - 1):
        low, high = int(bounds[block]), int(bounds[block + 1])
        if low >= stop:
            return
        if high > low:
            yield Piece(block, max(start, low) - low, min(stop, high) - low)


def _frames(plan: BuildPlan, planned: StudyPlan, layouts: tuple[CSRLayout, ...]) -> Frames:
    return Frames(
        study=planned.study,
        schema=plan.schema,
        var=planned.space.features.var,
        measured=planned.genes[planned.study.matrix].measured,
        uns=planned.facts.uns,
        matrices=layouts,
    )


def _report(planned: StudyPlan, staged: Sequence[BlockReceipt]) -> StudyReport:
    genes = planned.genes[planned.study.matrix]
    return StudyReport(
        id=planned.study.id,
        status="replaced" if planned.action == "replace" else "built",
        n_obs=planned.facts.n_obs,
        genes_matched=genes.matched,
        genes_summed=genes.summed,
        genes_padded=genes.padded,
        genes_dropped=dict(genes.dropped),
        counts_total=sum(block.matrices["X"].total for block in staged),
        counts_kept=sum(block.matrices["X"].kept for block in staged),
    )


def _dataset_info(
    plan: BuildPlan,
    planned: StudyPlan,
    layouts: Sequence[CSRLayout],
    staged: Sequence[BlockReceipt],
    files: Sequence[FileReceipt],
    report: StudyReport,
) -> DatasetInfo:
    checksums = _checksums(files)
    (plan.location / planned.dataset_path / CHECKSUMS).write(checksums)
    facts, study = planned.facts, planned.study
    return DatasetInfo(
        id=study.id,
        path=planned.dataset_path,
        features=planned.space.features.name,
        n_obs=facts.n_obs,
        blocks=planned.blocks,
        matrices=tuple(_matrix_info(layout, study, staged) for layout in layouts),
        obsm=facts.obsm,
        columns=facts.columns,
        uns=dict(facts.uns),
        checksum=hashlib.sha256(checksums).hexdigest(),
        nbytes=sum(f.size for f in files),
        fingerprint=planned.fingerprint,
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


# -- all studies at once ------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    """A study on its way: its steps, and the results of the tasks it waits for."""

    steps: Steps
    stage: str = ""
    results: list[Any] = field(default_factory=list)
    missing: int = 0


def _drive(
    jobs: Mapping[str, Steps], runner: Runner, progress: Progress | None
) -> dict[str, Any]:
    """Run the steps of all studies side by side; a study's result is what its steps return, or the error that ended it."""
    finished: dict[str, Any] = {}
    running = {study: _Running(steps) for study, steps in jobs.items()}
    for study in running:
        _advance(study, running[study], runner, finished)
    for outcome in runner.outcomes():
        study, position = outcome.tag  # type: ignore[misc]
        state = running[study]
        if study in finished:  # a task of a study that has already failed
            continue
        if outcome.error is not None:
            state.steps.close()
            finished[study] = outcome.error
            continue
        state.results[position] = outcome.result
        state.missing -= 1
        if progress is not None:
            progress(study, state.stage, len(state.results) - state.missing, len(state.results))
        if not state.missing:
            _advance(study, state, runner, finished)
    return finished


def _advance(study: str, state: _Running, runner: Runner, finished: dict[str, Any]) -> None:
    """Give a study the results it waited for, and submit the tasks it asks for next."""
    try:
        tasks: Sequence[Task] = ()
        while not tasks:  # a step may have nothing to run: a study without a cell has no block
            state.stage, tasks = state.steps.send(state.results if state.stage else None)  # type: ignore[arg-type]
            state.results = [None] * len(tasks)
    except StopIteration as stop:
        finished[study] = stop.value
        return
    except (DaodaskError, OSError) as error:
        finished[study] = error
        return
    state.missing = len(tasks)
    for position, task in enumerate(tasks):
        runner.submit((study, position), task)


# -- the end ------------------------------------------------------------------------------------------------------------


def _finish(plan: BuildPlan, results: Mapping[str, Any], began: float) -> BuildReport:
    built = {study: result for study, result in results.items() if not isinstance(result, Exception)}
    snapshot = _commit(plan, [info for info, _ in built.values()]) if built else None
    for study in plan.todo:
        _clear(plan, study, results[study.study.id], snapshot)
    return BuildReport(
        url=plan.location.url,
        snapshot=snapshot.number if snapshot else plan.snapshot,
        committed=snapshot is not None,
        studies=tuple(_study_report(p, results) for p in plan.studies),
        seconds=time.monotonic() - began,
    )


def _commit(plan: BuildPlan, datasets: Sequence[DatasetInfo]) -> Snapshot:
    used = {d.features for d in datasets}
    spaces = [s.features for s in plan.spaces if s.features.name in used]
    for space in spaces:
        (plan.location / feature_path(space.hash)).write(space.to_parquet())
    message = f"build: {', '.join(d.id for d in datasets)}"
    return commit_snapshot(plan.location, lambda newest: with_datasets(newest, spaces, datasets), message=message)


def _clear(plan: BuildPlan, planned: StudyPlan, result: Any, snapshot: Snapshot | None) -> None:
    """Remove what nobody needs: the scratch of a built study, and every trace of a refused one.

    The scratch of a study that failed for another reason (a full disk, a lost connection) is kept, as the next build goes
    on from it.
    """
    if isinstance(result, Exception) and not isinstance(result, DaodaskError):
        return
    (plan.location / planned.scratch_path).remove()
    named = {d.path for d in (snapshot or latest_snapshot(plan.location) or Snapshot(0, "", "")).datasets}
    if isinstance(result, Exception) and planned.dataset_path not in named:
        (plan.location / planned.dataset_path).remove()


def _study_report(planned: StudyPlan, results: Mapping[str, Any]) -> StudyReport:
    study = planned.study.id
    if planned.action in ("refused", "failed"):
        return StudyReport(study, planned.action, planned.reason)
    if planned.action == "unchanged":
        return StudyReport(study, "unchanged", **planned.known_report)
    result = results[study]
    if isinstance(result, StreamlineError):
        return StudyReport(study, "refused", str(result))
    if isinstance(result, Exception):
        return StudyReport(study, "failed", str(result) or type(result).__name__)
    return result[1]
