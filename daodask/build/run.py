"""Running a build: look at the studies, plan, let the workers stage and write, commit once."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from daodask._performance import performance_report as recorded
from daodask._version import __version__
from daodask.build.commit import Committed, commit_datasets, is_resumable, tidy_up
from daodask.build.genes import GeneLookup, feature_space, gene_list, read_reference, read_synonyms
from daodask.build.known import known_study
from daodask.build.plan import BuildPlan, Space, StudyFacts, StudyPlan, make_plan
from daodask.build.report import BuildReport, StudyReport
from daodask.build.shuffled import build_shuffled
from daodask.build.spec import BuildSpec, FeatureSpec, StudySpec, load_spec
from daodask.build.tasks import inspect_study
from daodask.build.together import Groups, shuffle_groups
from daodask.drive import Progress, Steps, drive
from daodask.errors import BuildError, DaodaskError, SpecError, StoreNotFoundError, StreamlineError
from daodask.format.features import FeatureSpace
from daodask.format.manifest import DatasetInfo, Snapshot
from daodask.progress import ProgressLike, StageTimes, open_progress
from daodask.runners import Runner, Task, open_runner
from daodask.snapshots import latest_snapshot
from daodask.sources import Fingerprint, SourceAddress
from daodask.storage import StoreLocation

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["build_store", "plan_build"]

Result: TypeAlias = "tuple[DatasetInfo, StudyReport] | Exception"
Results: TypeAlias = Mapping[str, Result]
#: Libraries that decide what is read and written.
_LIBRARIES = ("anndata", "dask", "h5py", "numcodecs", "numpy", "pandas", "pyarrow", "scipy", "zarr")
SpecLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | BuildSpec"


def build_store(
    spec: SpecLike,
    url: str | os.PathLike[str] | StoreLocation,
    *,
    client: Client | None = None,
    threads: int = 1,
    replace: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: ProgressLike = "auto",
    performance_report: str | os.PathLike[str] | None = None,
) -> BuildReport:
    """Streamline studies into a store, in parallel; commit once, all or nothing per study (computes).

    A build that was cut off goes on where it stopped when it is started again with the same spec; one that is complete
    does nothing but say so.

    A task takes up to 512 MB beside what its process has imported, for blocks of 16,384 cells of 2,000 non-zeros,
    whatever a study's size and however it is stored; cell metadata alone is read whole, at about 0.5 GB for a million
    cells and ten columns, or 0.8 GB where it is shuffled (tests/benchmarks/bench_build_memory.py).

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
        fsspec options for the store. Credentials are refused, as these travel to workers: leave them to the
        environment.
    progress
        ``"auto"``: a display in Jupyter, bars in a terminal, nothing elsewhere; ``True``: elsewhere lines on stderr, as
        for a log; ``False``: nothing. Or a function of study, stage, tasks done and tasks in all
        (:data:`daodask.drive.Progress`).
    performance_report
        Where to write Dask's report of what the cluster did (``*.html``: task stream, profile, bandwidths), at the end.
        Needs a ``client``, and bokeh where its scheduler runs (``daodask[report]``).

    Returns
    -------
    BuildReport
        Per study what became of it. A study that is refused or fails leaves nothing behind, and the others are
        committed; where the machine failed and not the study (a full disk, lost workers) what is finished is kept.

    Raises
    ------
    SpecError
        The build file says something that can't be meant.
    FeatureSpaceError
        The store has a feature space of the same name with other genes.
    ClusterError
        The connection to the scheduler was lost. Workers that die are no error as long as others come.
    CommitError
        The snapshot can't be written. The store is at its last one, and the same build goes on from there.
    """
    began = time.monotonic()
    with (
        open_runner(client, threads) as runner,
        recorded(client, performance_report),
        open_progress(progress) as shown,
    ):
        times = StageTimes(shown)
        checked = _checked(spec)
        sources = _shared_sources(checked, runner)
        plan = _plan(checked, StoreLocation.parse(url, options), sources, runner, replace, times)
        jobs = {r.study.id: build_shuffled(plan, r, sources[r.study.id]) for r in plan.todo}
        for study in plan.studies:
            if study.id not in jobs and shown is not None:
                shown(study.id, study.action, 0, 0)
        results = drive(jobs, runner, times)
        groups = shuffle_groups(plan, results, runner, times) if plan.shuffle.across else None
        return _finish(plan, results, groups, times, began)


def plan_build(
    spec: SpecLike,
    url: str | os.PathLike[str] | StoreLocation,
    *,
    client: Client | None = None,
    threads: int = 1,
    replace: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: ProgressLike = "auto",
) -> BuildPlan:
    """Say what :func:`build_store` would do; looks at the studies' metadata and writes nothing (computes).

    Takes the parameters of :func:`build_store`, but for the performance report.

    Returns
    -------
    BuildPlan
        Frozen and printable.
    """
    with open_runner(client, threads) as runner, open_progress(progress) as shown:
        checked = _checked(spec)
        sources = _shared_sources(checked, runner)
        return _plan(checked, StoreLocation.parse(url, options), sources, runner, replace, shown)


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
    known = known_study(snapshot, study.id)
    arguments = (source, study.without_source, spec.schema, _fingerprint_of(known) if known else None)
    (facts,) = yield "inspect", [Task("inspect-study", inspect_study, arguments)]
    return cast(StudyFacts, facts)


def _fingerprint_of(dataset: DatasetInfo) -> Fingerprint:
    return Fingerprint(*(dataset.source[name] for name in ("size", "stamp", "digest")))


def _make_space(spec: FeatureSpec, build: BuildSpec, facts: Mapping[str, StudyFacts | Exception]) -> Space | None:
    """The feature space; ``None`` where the studies' own names make it and none of them could be looked at."""
    given = spec.reference
    if isinstance(given, FeatureSpace):
        return Space(spec, given, GeneLookup.build(given))
    reference = gene_list(given) if isinstance(given, tuple) else None
    if isinstance(given, StoreLocation):
        reference = read_reference(_read_table(given, spec, "reference"))
    synonyms = read_synonyms(_read_table(spec.synonyms, spec, "synonyms")) if spec.synonyms else None
    looked_at = [(s, facts[s.id]) for s in build.studies if s.features == spec.name]
    names = [f.genes[f.matrix or s.matrix] for s, f in looked_at if isinstance(f, StudyFacts)]
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


def _finish(plan: BuildPlan, results: Results, groups: Groups | None, times: StageTimes, began: float) -> BuildReport:
    built = [result[0] for result in results.values() if not isinstance(result, Exception)]
    committed = commit_datasets(plan, built if groups is None else groups.datasets)
    if groups is not None:
        results, committed = groups.settled(results), groups.attributed(committed)
        groups.tidy_up(plan)
    tidy_up(plan, results, committed)
    return BuildReport(
        url=plan.location.url,
        snapshot=committed.snapshot.number,
        committed=committed.wrote,
        studies=tuple(replace(_study_report(p, results, committed), seconds=times.seconds(p.id)) for p in plan.studies),
        seconds=time.monotonic() - began,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        genes={s.features.name: len(s.features) for s in plan.spaces},
        schema=tuple(c.name for c in plan.schema),
        versions={"daodask": __version__, **{name: version(name) for name in _LIBRARIES}},
    )


def _study_report(planned: StudyPlan, results: Results, committed: Committed) -> StudyReport:
    if planned.recipe is None or planned.action in ("refused", "failed"):
        return StudyReport(planned.id, planned.action, planned.reason)
    if planned.action == "unchanged" and planned.known is not None:
        return StudyReport.of_dataset(planned.known, "unchanged")
    result = committed.refused.get(planned.id) or results[planned.id]
    if isinstance(result, Exception) and not committed.names(planned.recipe):
        return StudyReport(planned.id, *_end(result, refused=planned.id in committed.refused))
    own = committed.snapshot.dataset.get(planned.id)
    dataset = own or known_study(committed.snapshot, planned.id)
    if dataset is None:
        raise BuildError(f"expected the cells of {planned.id!r} in snapshot {committed.snapshot.number}, got none")
    # Another builder may have been quicker with the same.
    if isinstance(result, Exception) or (own and result[0] is not own):
        return StudyReport.of_dataset(dataset, "unchanged")
    report = StudyReport.of_dataset(dataset, "replaced" if planned.action == "replace" else "built")
    return replace(report, phases=result[1].phases)


def _end(error: Exception, *, refused: bool) -> tuple[str, str]:
    """Status and reason of a study that is not in the store."""
    if refused or isinstance(error, StreamlineError):
        return "refused", str(error)
    reason = str(error) or type(error).__name__
    if is_resumable(error) and not isinstance(error, DaodaskError):
        reason = f"{reason}; what is finished is kept: build again when that is mended, and it goes on from there"
    return "failed", reason
