"""Running a build: look at the studies, plan, let the workers stage and write, commit once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from daodask.build.genes import GeneLookup, feature_space, read_reference, read_synonyms
from daodask.build.plan import BuildPlan, Recipe, Space, StudyFacts, StudyPlan, make_plan, with_datasets
from daodask.build.report import BuildReport, StudyReport
from daodask.build.spec import BuildSpec, FeatureSpec, StudySpec, load_spec
from daodask.build.steps import build_study
from daodask.build.tasks import inspect_study
from daodask.drive import Progress, Steps, drive
from daodask.errors import DaodaskError, SpecError, StoreNotFoundError, StreamlineError
from daodask.format.manifest import DatasetInfo, Snapshot
from daodask.format.spec import feature_path
from daodask.runners import Runner, Task, open_runner
from daodask.snapshots import commit_snapshot, latest_snapshot
from daodask.sources import Fingerprint, SourceAddress
from daodask.storage import StoreLocation

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["build_store", "plan_build"]

Result: TypeAlias = "tuple[DatasetInfo, StudyReport] | Exception"
Results: TypeAlias = Mapping[str, Result]
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
        Per study what became of it. A study that is refused or fails leaves nothing behind, and the others are
        committed.

    Raises
    ------
    SpecError
        The build file says something that can't be meant.
    FeatureSpaceError
        The store has a feature space of the same name with other genes.
    """
    began = time.monotonic()
    with open_runner(client, threads) as runner:
        checked = _checked(spec)
        sources = _shared_sources(checked, runner)
        plan = _plan(checked, StoreLocation.parse(url, options), sources, runner, replace, progress)
        jobs = {r.study.id: build_study(plan, r, sources[r.study.id]) for r in plan.todo}
        results = drive(jobs, runner, progress)
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
    with open_runner(client, threads) as runner:
        checked = _checked(spec)
        sources = _shared_sources(checked, runner)
        return _plan(checked, StoreLocation.parse(url, options), sources, runner, replace, progress)


# -- planning ------------------------------------------------------------------------------------------------------


def _checked(spec: SpecLike) -> BuildSpec:
    return spec if isinstance(spec, BuildSpec) else load_spec(spec)


def _shared_sources(spec: BuildSpec, runner: Runner) -> dict[str, Any]:
    """What tasks open, per study: its address; a source in memory travels to the cluster once, not with each task."""
    return {s.id: s.source if isinstance(s.source, SourceAddress) else runner.share(s.source) for s in spec.studies}


def _plan(
    spec: BuildSpec,
    location: StoreLocation,
    sources: Mapping[str, Any],
    runner: Runner,
    replace_changed: bool,
    progress: Progress | None,
) -> BuildPlan:
    snapshot = latest_snapshot(location)
    facts = drive({s.id: _look(s, spec, sources[s.id], snapshot) for s in spec.studies}, runner, progress)
    spaces = [_make_space(f, spec, facts) for f in spec.features]
    made = [space for space in spaces if space is not None]
    return make_plan(location, spec, made, facts, snapshot, replace_changed=replace_changed)


def _look(study: StudySpec, spec: BuildSpec, source: Any, snapshot: Snapshot | None) -> Steps[StudyFacts]:
    known = snapshot.dataset.get(study.id) if snapshot else None
    arguments = (source, study.without_source, spec.schema, _fingerprint_of(known) if known else None)
    (facts,) = yield "inspect", [Task("inspect-study", inspect_study, arguments)]
    return cast(StudyFacts, facts)


def _fingerprint_of(dataset: DatasetInfo) -> Fingerprint:
    return Fingerprint(*(dataset.source[name] for name in ("size", "stamp", "digest")))


def _make_space(spec: FeatureSpec, build: BuildSpec, facts: Mapping[str, StudyFacts | Exception]) -> Space | None:
    """The feature space; ``None`` where the studies' own names make it and none of them could be looked at."""
    given = spec.reference
    reference = read_reference(_read_table(given, spec, "reference")) if isinstance(given, StoreLocation) else None
    synonyms = read_synonyms(_read_table(spec.synonyms, spec, "synonyms")) if spec.synonyms else None
    looked_at = [(s, facts[s.id]) for s in build.studies if s.features == spec.name]
    names = [f.genes[s.matrix] for s, f in looked_at if isinstance(f, StudyFacts)]
    if reference is None and looked_at and not names:
        return None
    features = feature_space(spec, reference, names)
    return Space(spec, features, GeneLookup.build(features, reference, synonyms))


def _read_table(location: StoreLocation, spec: FeatureSpec, key: str) -> bytes:
    try:
        return location.read()
    except StoreNotFoundError as error:  # of a table that the build file names, not of a store
        raise SpecError(f"features {spec.name!r}: {key}: {error}") from error


# -- the end -------------------------------------------------------------------------------------------------------


def _finish(plan: BuildPlan, results: Results, began: float) -> BuildReport:
    built = [result[0] for result in results.values() if not isinstance(result, Exception)]
    snapshot = _commit(plan, built) if built else None
    for recipe in plan.todo:
        _clear(plan, recipe, results[recipe.study.id], snapshot)
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
        # Named by its content: where it is there already, it is the same.
        (plan.location / feature_path(space.hash)).create(space.to_parquet())
    message = f"build: {', '.join(d.id for d in datasets)}"
    return commit_snapshot(plan.location, lambda newest: with_datasets(newest, spaces, datasets), message=message)


def _clear(plan: BuildPlan, recipe: Recipe, result: Result, snapshot: Snapshot | None) -> None:
    """Remove what nobody needs: the scratch of a built study, and every trace of one that was refused or failed.

    Where the machine failed and not the study (a full disk, a lost connection) all is kept, as the next build goes on
    from it.
    """
    if isinstance(result, OSError) and not isinstance(result, DaodaskError):
        return
    (plan.location / recipe.scratch_path).remove()
    named = {d.path for d in (snapshot or latest_snapshot(plan.location) or Snapshot(0, "", "")).datasets}
    if isinstance(result, Exception) and recipe.dataset_path not in named:
        (plan.location / recipe.dataset_path).remove()


def _study_report(planned: StudyPlan, results: Results) -> StudyReport:
    if planned.action in ("refused", "failed"):
        return StudyReport(planned.id, planned.action, planned.reason)
    if planned.action == "unchanged":
        return StudyReport.from_facts(planned.id, "unchanged", planned.known_report)
    result = results[planned.id]
    if isinstance(result, StreamlineError):
        return StudyReport(planned.id, "refused", str(result))
    if isinstance(result, Exception):
        return StudyReport(planned.id, "failed", str(result) or type(result).__name__)
    _, report = result
    return replace(report, status="replaced") if planned.action == "replace" else report
