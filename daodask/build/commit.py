"""The end of a build: one commit of what is built, study by study beside what others committed, and tidying up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daodask.build.known import known_study
from daodask.build.plan import BuildPlan, Recipe, StudyPlan, with_datasets
from daodask.errors import ClusterError, CommitError, DaodaskError, FeatureSpaceError, SelectionError
from daodask.format.features import FeatureSpace
from daodask.format.manifest import DatasetInfo, Snapshot
from daodask.format.spec import CHECKSUMS, DATASETS, SCRATCH, feature_path
from daodask.snapshots import commit_snapshot, latest_snapshot
from daodask.storage import StoreLocation

__all__ = ["Committed", "commit_datasets", "is_resumable", "tidy_up"]


@dataclass(frozen=True)
class Committed:
    """What became of the datasets of a build.

    Parameters
    ----------
    snapshot
        The newest one afterwards; number 0 where there is no store.
    wrote
        Whether this build committed it.
    refused
        Per study what does not go together with what other builders have committed since the plan was made.
    """

    snapshot: Snapshot
    wrote: bool = False
    refused: Mapping[str, DaodaskError] = field(default_factory=dict)

    def names(self, recipe: Recipe) -> bool:
        """Whether the snapshot has a study as this build would make it, whoever has made it."""
        known = known_study(self.snapshot, recipe.study.id)
        return known is not None and known.fingerprint == recipe.fingerprint


def commit_datasets(plan: BuildPlan, datasets: Sequence[DatasetInfo]) -> Committed:
    """Commit datasets of which all files are written; those that can't be in any more are refused one by one.

    Raises
    ------
    CommitError
        The snapshot can't be written.
    """
    location = plan.location
    if not datasets:
        return Committed(_newest(location))
    planned = {p.id: p for p in plan.studies}
    spaces = {s.features.name: s.features for s in plan.spaces if s.features.name in {d.features for d in datasets}}
    refused: dict[str, DaodaskError] = {}
    wrote = False

    def change(newest: Snapshot) -> Snapshot:
        nonlocal wrote
        refused.clear()
        left = replace(newest, datasets=tuple(d for d in newest.datasets if d.id not in plan.gone))
        changed = _merge(left if plan.gone else newest, spaces, datasets, planned, refused)
        wrote = changed is not newest and changed is not left
        return changed if wrote else newest

    try:
        unnamed = _unnamed(spaces.values(), _newest(location))
        for space in unnamed:
            # Written though it may be there: it is named by its content, and a vacuum spares what is new.
            (location / feature_path(space.hash)).write(space.to_parquet())
        snapshot = commit_snapshot(location, change, message=f"build: {', '.join(d.id for d in datasets)}")
        for space in unnamed:
            if not (location / feature_path(space.hash)).exists():  # a vacuum was just before the snapshot
                (location / feature_path(space.hash)).write(space.to_parquet())
    except DaodaskError:
        raise
    except OSError as error:
        raise CommitError(
            f"{location}: the next snapshot can't be written: {error}; the store is at its last snapshot, and what is "
            f"built is kept: run the same build again, and it goes on from there"
        ) from error
    return Committed(snapshot, wrote, refused)


def _newest(location: StoreLocation) -> Snapshot:
    return latest_snapshot(location) or Snapshot(0, "", "")


def _unnamed(spaces: Iterable[FeatureSpace], snapshot: Snapshot) -> list[FeatureSpace]:
    named = {space.hash for space in snapshot.features}
    return [space for space in spaces if space.hash not in named]


def _merge(
    newest: Snapshot,
    spaces: Mapping[str, FeatureSpace],
    datasets: Sequence[DatasetInfo],
    planned: Mapping[str, StudyPlan],
    refused: dict[str, DaodaskError],
) -> Snapshot:
    """The newest snapshot with those of the datasets that go into it; why the others don't is left in ``refused``."""
    fresh = []
    for dataset in datasets:
        there, base = newest.dataset.get(dataset.id), planned[dataset.id].known if dataset.id in planned else None
        if there is None or (base is not None and there.fingerprint == base.fingerprint):
            fresh.append(dataset)
        elif there.fingerprint != dataset.fingerprint:
            refused[dataset.id] = CommitError(
                f"another builder has meanwhile committed another dataset {dataset.id!r} (snapshot {newest.number}); "
                f"build again with --replace (replace=True) to put this one in its place, or give it another id"
            )
    if not fresh:
        return newest
    with contextlib.suppress(SelectionError, FeatureSpaceError):
        return with_datasets(newest, [spaces[n] for n in dict.fromkeys(d.features for d in fresh)], fresh)
    changed = newest
    for dataset in fresh:
        try:
            changed = with_datasets(changed, [spaces[dataset.features]], [dataset])
        except (SelectionError, FeatureSpaceError) as error:
            refused[dataset.id] = error
    return changed


# -- tidying up ----------------------------------------------------------------------------------------------------


def is_resumable(error: Exception) -> bool:
    """Whether the machine failed and not the study (a full disk, a lost connection), so that a build can go on later.

    A file that is not found is none of these: something removed what a receipt says is there.
    """
    if isinstance(error, DaodaskError):
        return isinstance(error, ClusterError | CommitError)
    return isinstance(error, OSError | MemoryError) and not isinstance(error, FileNotFoundError)


def tidy_up(plan: BuildPlan, results: Mapping[str, Any], committed: Committed) -> None:
    """Remove what nobody needs: the scratch of what is in the store, and every trace of what can't come into it.

    What can't be removed stays until somebody vacuums the store.
    """
    scratch = set((plan.location / SCRATCH).list())
    for study in plan.studies:
        recipe = study.recipe
        if recipe is None or study.action in ("refused", "failed"):
            continue
        result = committed.refused.get(study.id) or results.get(study.id)
        error = result if isinstance(result, Exception) and not committed.names(recipe) else None
        if error is not None and is_resumable(error):
            continue
        with contextlib.suppress(OSError):
            if recipe.scratch_path.rpartition("/")[2] in scratch:
                (plan.location / recipe.scratch_path).remove()
            if error is not None:
                _remove_unfinished(plan.location / recipe.dataset_path)
    for directory in (SCRATCH, DATASETS):
        (plan.location / directory).remove_if_empty()


def _remove_unfinished(dataset: StoreLocation) -> None:
    """Remove a dataset unless it has its checksums, as one that a snapshot names, or soon will, has them."""
    if not (dataset / CHECKSUMS).exists():
        dataset.remove()
