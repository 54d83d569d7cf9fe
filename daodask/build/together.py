"""The second half of a build that shuffles studies together: once all are built, their cells become shared datasets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from daodask.build.commit import Committed, is_resumable
from daodask.build.plan import BuildPlan, Recipe, group_path
from daodask.build.report import StudyReport
from daodask.build.shuffled import shuffle_together
from daodask.drive import Progress, drive
from daodask.errors import BuildError
from daodask.format.manifest import DatasetInfo
from daodask.format.spec import DATASETS, SCRATCH
from daodask.runners import Runner

__all__ = ["Groups", "shuffle_groups"]

Result: TypeAlias = "tuple[DatasetInfo, StudyReport] | Exception"


@dataclass(frozen=True, eq=False)
class Groups:
    """What became of the studies that are shuffled together, by the group's path as if it were one dataset.

    ``shuffled`` has the datasets of a group, or the error that ended it.
    """

    members: Mapping[str, Sequence[Recipe]]
    shuffled: Mapping[str, Sequence[DatasetInfo] | Exception]

    @property
    def datasets(self) -> list[DatasetInfo]:
        """All datasets that were made."""
        return [d for made in self.shuffled.values() if not isinstance(made, Exception) for d in made]

    def settled(self, results: Mapping[str, Result]) -> dict[str, Result]:
        """The results of the studies: of one that was built, but whose group was not shuffled, the error of that."""
        ends = {r.study.id: self.shuffled[path] for path, recipes in self.members.items() for r in recipes}
        failed = {study: end for study, end in ends.items() if isinstance(end, Exception)}
        return {study: failed.get(study, result) for study, result in results.items()}

    def attributed(self, committed: Committed) -> Committed:
        """The commit with what was refused of shared datasets said of each of their studies."""
        refused = dict(committed.refused)
        for path, made in self.shuffled.items():
            ids = [d.id for d in made] if not isinstance(made, Exception) else []
            for error in [committed.refused[i] for i in ids if i in committed.refused][:1]:
                refused |= {r.study.id: error for r in self.members[path]}
        return replace(committed, refused=refused)

    def tidy_up(self, plan: BuildPlan) -> None:
        """Remove what a group left in scratch, unless the next build goes on from there."""
        for path, made in self.shuffled.items():
            if not (isinstance(made, Exception) and is_resumable(made)):
                with contextlib.suppress(OSError):
                    (plan.location / path.replace(DATASETS, SCRATCH, 1)).remove()


def shuffle_groups(plan: BuildPlan, results: Mapping[str, Result], runner: Runner, progress: Progress | None) -> Groups:
    """Shuffle what was built, all studies of a feature space together.

    A study that was refused is left out. One that failed with the machine is waited for, as is any that is to take the
    place of cells that are in the store: what is in it now stays until all of that can be replaced.
    """
    members = {group_path(recipes): recipes for recipes in _groups(plan, results)}
    waiting = {path: _missing(plan, results, recipes) for path, recipes in members.items()}
    jobs = {
        path.rpartition("/")[2].partition(".")[0]: shuffle_together(
            plan, recipes, [_dataset(results, r) for r in recipes]
        )
        for path, recipes in members.items()
        if waiting[path] is None
    }
    done = drive(jobs, runner, progress)
    ended = {path: waiting[path] or done[path.rpartition("/")[2].partition(".")[0]] for path in members}
    return Groups(members, ended)


def _groups(plan: BuildPlan, results: Mapping[str, Result]) -> Iterator[list[Recipe]]:
    for space in plan.spaces:
        built = [r for r in plan.todo if r.space is space and not isinstance(results[r.study.id], Exception)]
        if built:
            yield built


def _dataset(results: Mapping[str, Result], recipe: Recipe) -> DatasetInfo:
    result = results[recipe.study.id]
    if isinstance(result, Exception):
        raise result
    return result[0]


def _missing(plan: BuildPlan, results: Mapping[str, Result], recipes: Sequence[Recipe]) -> Exception | None:
    """Why a group can't be shuffled yet."""
    space = recipes[0].space
    for recipe in plan.todo:
        result = results[recipe.study.id]
        if recipe.space is space and isinstance(result, Exception) and is_resumable(result):
            return result
    built = {r.study.id for r in recipes}
    for dataset, studies in plan.gone.items():
        absent = [s for s in studies if s not in built]
        if absent and built & set(studies):
            return BuildError(
                f"the cells of {', '.join(absent)} can't be built again, so that {dataset!r} stays as it is; mend "
                f"them, or remove it and build without them"
            )
    return None
