"""Many studies side by side: each is a generator of steps, and one loop feeds them all from one runner."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar, cast

from daodask.errors import DaodaskError
from daodask.runners import Runner, Task

__all__ = ["Progress", "Steps", "drive"]

R = TypeVar("R")

#: Called with a study's id, what is being done to it, and how many of how many tasks of that are done: with 0 when they
#: are handed out, then as each is done. A study that ends early is told with how it ended, and 0 of 0.
Progress: TypeAlias = Callable[[str, str, int, int], None]

#: What a study goes through: yields the name of a step and tasks to run side by side, receives their results in order.
Steps: TypeAlias = Generator[tuple[str, Sequence[Task]], list[Any], R]


@dataclass
class _Running(Generic[R]):
    """A study on its way: its steps, and the results of the tasks it waits for."""

    steps: Steps[R]
    stage: str = ""
    results: list[Any] = field(default_factory=list)
    missing: int = 0


def drive(jobs: Mapping[str, Steps[R]], runner: Runner, progress: Progress | None = None) -> dict[str, R | Exception]:
    """Run the steps of all studies side by side.

    Returns
    -------
    dict
        Per study what its steps return, or the error that ended it: one study's failure is not another's.
    """
    finished: dict[str, R | Exception] = {}
    running = {study: _Running(steps) for study, steps in jobs.items()}
    for study, state in running.items():
        _advance(study, state, runner, finished, progress)
    for outcome in runner.outcomes():
        study, position = cast(tuple[str, int], outcome.tag)
        state = running[study]
        if study in finished:  # a task of a study that has already failed
            continue
        if outcome.error is not None:
            state.steps.close()
            finished[study] = outcome.error
            _tell_end(study, progress)
            continue
        state.results[position] = outcome.result
        state.missing -= 1
        if progress is not None:
            progress(study, state.stage, len(state.results) - state.missing, len(state.results))
        if not state.missing:
            _advance(study, state, runner, finished, progress)
    # In the order of the jobs, whichever ended first: the order of datasets in a store comes from here.
    return {study: finished[study] for study in jobs}


def _tell_end(study: str, progress: Progress | None) -> None:
    if progress is not None:
        progress(study, "failed", 0, 0)


def _advance(
    study: str, state: _Running[R], runner: Runner, finished: dict[str, R | Exception], progress: Progress | None
) -> None:
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
        _tell_end(study, progress)
        return
    state.missing = len(tasks)
    if progress is not None:
        progress(study, state.stage, 0, len(tasks))
    for position, task in enumerate(tasks):
        runner.submit((study, position), task)
