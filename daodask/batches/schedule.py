"""Schedules: pure functions from (number of cells, batch size, epoch) to the rows of each window and its batches.

A schedule speaks of positions among the selected cells, ``0 … n_obs - 1``; where their bytes are is the reader's
matter. The same epoch always gives the same windows, whoever reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np

from daodask.errors import SpecError, suggest
from daodask.types import Int64Array

__all__ = ["Epoch", "Schedule", "Sequential", "Shuffled", "Window", "named_schedule"]


@dataclass(frozen=True, slots=True)
class Epoch:
    """Everything that randomness depends on."""

    seed: int
    number: int

    def generator(self, *stream: int) -> np.random.Generator:
        """A generator of its own for each stream of each epoch: windows can be made in any order."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.number, *stream])))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Cells held in memory at a time.

    Parameters
    ----------
    number
        Which window of the epoch.
    positions
        Selected cells, in the order in which batches hand them out.
    batch_size
        Cells of each batch; the last batch of an epoch's last window may be smaller.
    """

    number: int
    positions: Int64Array
    batch_size: int

    def batches(self) -> Iterator[slice]:
        """Bounds of each batch within the window."""
        for start in range(0, len(self.positions), self.batch_size):
            yield slice(start, min(start + self.batch_size, len(self.positions)))


@runtime_checkable
class Schedule(Protocol):
    """Decides what each batch holds."""

    def windows(self, n_obs: int, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of an epoch, in order. All but the last have whole batches only."""
        ...


def _window_rows(target: int, batch_size: int) -> int:
    """The multiple of the batch size next to the target, so that no batch spans two windows."""
    return max(1, round(target / batch_size)) * batch_size


@dataclass(frozen=True, slots=True)
class Sequential:
    """Cells in store order."""

    window_rows: int = 16_384

    def windows(self, n_obs: int, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of an epoch, the same in each."""
        rows = _window_rows(self.window_rows, batch_size)
        for number, start in enumerate(range(0, n_obs, rows)):
            yield Window(number, np.arange(start, min(start + rows, n_obs), dtype=np.int64), batch_size)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Runs of neighbouring cells from anywhere in the selection, pooled in windows and shuffled there.

    Parameters
    ----------
    run_rows
        Cells of a run; 1 is exact random order, more reads fewer places and mixes less.
    window_rows
        Cells of a window; more mixes better and needs more memory.

    Notes
    -----
    Runs start at another phase in every epoch, so that the same neighbours don't always come together.
    """

    run_rows: int = 64
    window_rows: int = 16_384

    def windows(self, n_obs: int, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of an epoch: each selected cell exactly once."""
        if not n_obs:
            return
        generator = epoch.generator()
        phase = int(generator.integers(self.run_rows))
        starts = np.arange(-phase, n_obs, self.run_rows, dtype=np.int64)
        starts = generator.permutation(starts[starts + self.run_rows > 0])
        stops = np.minimum(starts + self.run_rows, n_obs)
        starts = np.maximum(starts, 0)
        ends = np.cumsum(stops - starts)
        rows = _window_rows(self.window_rows, batch_size)
        for number, low in enumerate(range(0, n_obs, rows)):
            stream = np.arange(low, min(low + rows, n_obs), dtype=np.int64)
            run = np.searchsorted(ends, stream, side="right")
            positions = stops[run] - (ends[run] - stream)
            yield Window(number, epoch.generator(number).permutation(positions), batch_size)


_NAMED: Final[dict[str, Callable[[], Schedule]]] = {"sequential": Sequential, "shuffled": Shuffled}


def named_schedule(schedule: str | Schedule) -> Schedule:
    """A schedule by name, or the one given.

    Raises
    ------
    SpecError
        There is no schedule of that name.
    """
    if not isinstance(schedule, str):
        return schedule
    if schedule not in _NAMED:
        raise SpecError(f"unknown schedule {schedule!r}; {suggest(schedule, _NAMED)}")
    return _NAMED[schedule]()
