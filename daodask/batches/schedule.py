"""Schedules: pure functions from (cells, batch size, epoch) to the windows of one rank, and the batches in each.

A schedule speaks of positions among the selected cells, ``0 … n_obs - 1``; where their bytes are is the reader's
matter. The same epoch always gives the same windows, whoever reads them, and any window can be made without those
before it being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from daodask.errors import SpecError, suggest
from daodask.types import AnyArray, Int64Array, Label

__all__ = [
    "Balanced",
    "Cells",
    "Epoch",
    "Full",
    "Grouped",
    "Labels",
    "Schedule",
    "Sequential",
    "Shuffled",
    "Window",
    "most_rows",
    "n_batches",
    "named_schedule",
    "stable_repr",
]

#: Cells of a window where nothing else is asked for: 16 384 cells of 2 000 non-zeros are 260 MB.
DEFAULT_WINDOW_ROWS: Final = 16_384


@dataclass(frozen=True, slots=True)
class Epoch:
    """Everything that randomness and the share of a rank depend on.

    With ``drop_last`` all ranks leave out what does not fill their last batch, and nothing is padded.
    """

    seed: int
    number: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    def generator(self, *stream: int) -> np.random.Generator:
        """A generator of its own for each stream of each epoch, the same on every rank."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.number, *stream])))


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Values of an obs column: ``categories``, and each selected cell's position in them, -1 where it has none."""

    categories: tuple[Label, ...]
    codes: Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The selected cells, as far as a schedule may know them: how many, and the labels that it asked for."""

    n_obs: int
    labels: Mapping[str, Labels] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Cells held in memory at a time.

    Parameters
    ----------
    number
        Which of the rank's windows in the epoch.
    positions
        Selected cells, in the order in which batches hand them out.
    bounds
        Where in ``positions`` the batches begin and end: ``(0, …, len(positions))``.
    """

    number: int
    positions: Int64Array
    bounds: tuple[int, ...]

    @property
    def n_batches(self) -> int:
        """Batches cut out of the window."""
        return len(self.bounds) - 1

    def batches(self) -> Iterator[slice]:
        """Each batch's part of the window."""
        for start, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            yield slice(start, stop)


@runtime_checkable
class Schedule(Protocol):
    """Decides what each batch holds. Any object with these two is one.

    It may also have ``n_batches(cells, batch_size, epoch)``, the number of one rank's batches in an epoch, and
    ``most_rows(cells, batch_size, epoch)``, the cells of the largest of its windows, where these are known without
    making the windows.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Obs columns whose labels it needs; reading them is the only thing that is read before an epoch."""
        ...

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of one rank in an epoch, in order."""
        ...


# -- shares and windows ------------------------------------------------------------------------------------------------

Take: TypeAlias = Callable[[Int64Array], Int64Array]


def _window_rows(target: int, batch_size: int) -> int:
    """The multiple of the batch size next to the target, so that no batch spans two windows."""
    return max(1, round(target / batch_size)) * batch_size


def _share(n: int, epoch: Epoch) -> tuple[int, int]:
    """A rank's part ``[start, stop)`` of a stream of ``n``: as long for all ranks, running over the end where padded.

    The part that a rank has moves on with every epoch, also where the stream itself is not random.
    """
    length = n // epoch.world_size if epoch.drop_last else -(-n // epoch.world_size)
    turn = (epoch.rank + epoch.number) % epoch.world_size
    return turn * length, (turn + 1) * length


def _stretch(start: int, stop: int, n: int, epoch: Epoch) -> Int64Array:
    """Elements ``[start, stop)`` of a stream of ``n``, with padding for those that are beyond its end."""
    stream = np.arange(start, stop, dtype=np.int64)
    beyond = stream >= n
    # Less than world_size elements are padding; which ones they repeat changes with the epoch.
    stream[beyond] = (stream[beyond] - n + epoch.number * epoch.world_size) % n
    return stream


def _cut(n: int, batch_size: int, window_rows: int, epoch: Epoch, take: Take, *, shuffle: bool) -> Iterator[Window]:
    """Windows of a rank's share of a stream, whose elements ``take`` gives."""
    start, stop = _share(n, epoch)
    rows = _window_rows(window_rows, batch_size)
    for number, low in enumerate(range(start, stop, rows) if n else ()):
        positions = take(_stretch(low, min(low + rows, stop), n, epoch))
        if shuffle:
            positions = epoch.generator(1, epoch.rank, number).permutation(positions)
        whole = len(positions) // batch_size * batch_size
        last = () if whole == len(positions) or epoch.drop_last else (len(positions),)
        bounds = (*range(0, whole + 1, batch_size), *last)
        if len(bounds) > 1:
            yield Window(number, positions[: bounds[-1]], bounds)


def _count(n: int, batch_size: int, epoch: Epoch) -> int:
    """Batches of a rank's share of a stream."""
    start, stop = _share(n, epoch)
    return (stop - start) // batch_size if epoch.drop_last else -(-(stop - start) // batch_size)


def _most(n: int, batch_size: int, window_rows: int, epoch: Epoch) -> int:
    """Cells of the largest window of a rank's share of a stream."""
    start, stop = _share(n, epoch)
    return min(_window_rows(window_rows, batch_size), stop - start)


@dataclass(frozen=True, slots=True)
class Sequential:
    """Cells in store order."""

    window_rows: int = DEFAULT_WINDOW_ROWS

    @property
    def columns(self) -> tuple[str, ...]:
        """None."""
        return ()

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of one rank, the same cells in the same order in each epoch of one rank."""
        return _cut(cells.n_obs, batch_size, self.window_rows, epoch, lambda stream: stream, shuffle=False)

    def n_batches(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Batches of one rank in an epoch."""
        return _count(cells.n_obs, batch_size, epoch)

    def most_rows(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Cells of the largest window."""
        return _most(cells.n_obs, batch_size, self.window_rows, epoch)


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
    window_rows: int = DEFAULT_WINDOW_ROWS

    @property
    def columns(self) -> tuple[str, ...]:
        """None."""
        return ()

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of one rank: over all ranks each selected cell exactly once, but for padding."""
        order = _run_order(cells.n_obs, self.run_rows, epoch.generator(0))
        return _cut(cells.n_obs, batch_size, self.window_rows, epoch, order, shuffle=True)

    def n_batches(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Batches of one rank in an epoch."""
        return _count(cells.n_obs, batch_size, epoch)

    def most_rows(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Cells of the largest window."""
        return _most(cells.n_obs, batch_size, self.window_rows, epoch)


def _run_order(n: int, run_rows: int, generator: np.random.Generator) -> Take:
    """A random order of ``0 … n - 1`` in which runs stay together; only the runs' starts are held in memory."""
    phase = int(generator.integers(run_rows))
    starts = np.arange(-phase, n, run_rows, dtype=np.int64)
    starts = generator.permutation(starts[starts + run_rows > 0])
    stops = np.minimum(starts + run_rows, n)
    ends = np.cumsum(stops - np.maximum(starts, 0))

    def take(stream: Int64Array) -> Int64Array:
        run = np.searchsorted(ends, stream, side="right")
        positions: Int64Array = stops[run] - (ends[run] - stream)
        return positions

    return take


@dataclass(frozen=True, slots=True)
class Full:
    """All cells of a rank as one batch, in store order; what fits into memory, for evaluation."""

    @property
    def columns(self) -> tuple[str, ...]:
        """None."""
        return ()

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """One window of one batch; ``batch_size`` is passed over."""
        start, stop = _share(cells.n_obs, epoch)
        n = max(1, stop - start)
        return _cut(cells.n_obs, n, n, epoch, lambda stream: stream, shuffle=False)

    def n_batches(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """One, or none where there is no cell."""
        return min(1, self.most_rows(cells, batch_size, epoch))

    def most_rows(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Cells of the rank."""
        start, stop = _share(cells.n_obs, epoch)
        return stop - start


# -- by label ----------------------------------------------------------------------------------------------------------


def _groups(cells: Cells, column: str) -> list[Int64Array]:
    """Positions of the cells of each label that any cell has, in order of the categories."""
    codes = cells.labels[column].codes
    order = np.argsort(codes, kind="stable").astype(np.int64)
    bounds = np.searchsorted(codes[order], np.arange(len(cells.labels[column].categories) + 1))
    return [order[a:b] for a, b in pairwise(bounds.tolist()) if b > a]


def _sizes(cells: Cells, column: str) -> dict[Label, int]:
    """Cells of each label that any cell has, in order of the categories."""
    labels = cells.labels[column]
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.categories)).tolist()
    return {label: count for label, count in zip(labels.categories, counts, strict=True) if count}


@dataclass(frozen=True, slots=True)
class Grouped:
    """Each batch is all cells of one label (a donor, a sample); cells without a label are left out.

    Parameters
    ----------
    by
        The obs column.
    shuffle
        Whether groups come in another order in each epoch.
    window_rows
        Small groups are read together up to this many cells; a larger one is a window of its own.
    """

    by: str
    shuffle: bool = True
    window_rows: int = DEFAULT_WINDOW_ROWS

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.by,)

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of one rank: over all ranks each group once, but for padding; ``batch_size`` is passed over."""
        groups = _groups(cells, self.by)
        if not groups:
            return
        order = epoch.generator(0).permutation(len(groups)) if self.shuffle else np.arange(len(groups))
        pooled: list[Int64Array] = []
        number = 0
        for place in _stretch(*_share(len(groups), epoch), len(groups), epoch):
            group = groups[order[place]]
            if pooled and sum(map(len, pooled)) + len(group) > self.window_rows:
                yield _pool(number, pooled)
                number, pooled = number + 1, []
            pooled.append(group)
        if pooled:
            yield _pool(number, pooled)

    def n_batches(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Groups of one rank in an epoch."""
        return _count(len(_sizes(cells, self.by)), 1, epoch)

    def most_rows(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Cells of the largest window, as far as these are known before groups are put into an order."""
        sizes = _sizes(cells, self.by).values()
        return max(min(self.window_rows, sum(sizes)), max(sizes, default=0))


def _pool(number: int, groups: list[Int64Array]) -> Window:
    bounds = np.cumsum([0, *map(len, groups)]).tolist()
    return Window(number, np.concatenate(groups), tuple(bounds))


@dataclass(frozen=True, slots=True)
class Balanced:
    """Random batches in which labels come as often as their weights say; cells without a label are left out.

    Parameters
    ----------
    by
        The obs column.
    weights
        ``"group"``: each label alike; ``"cell"``: each cell alike; or a weight per label, relative to each other, and
        0 for those not named.
    replacement
        With it an epoch has as many cells as the selection, and cells of rare labels come several times. Without it
        each cell comes at most once, and the epoch ends when the scarcest label, by its weight, is used up.
    run_rows
        Neighbouring cells of one label that come together; 1 is exact.
    window_rows
        Cells of a window.
    """

    by: str
    weights: Literal["group", "cell"] | Mapping[Label, float] = "group"
    replacement: bool = True
    run_rows: int = 16
    window_rows: int = DEFAULT_WINDOW_ROWS

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.by,)

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """The windows of one rank; all ranks together are one draw."""
        groups = _groups(cells, self.by)
        shares = self._shares(_sizes(cells, self.by))
        draw = self._with_replacement if self.replacement else self._without_replacement
        stream = draw(groups, shares, epoch.generator(0)) if groups else np.empty(0, np.int64)
        return _cut(len(stream), batch_size, self.window_rows, epoch, lambda i: stream[i], shuffle=True)

    def n_batches(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Batches of one rank in an epoch."""
        return _count(self._n_drawn(cells), batch_size, epoch)

    def most_rows(self, cells: Cells, batch_size: int, epoch: Epoch) -> int:
        """Cells of the largest window."""
        return _most(self._n_drawn(cells), batch_size, self.window_rows, epoch)

    def _n_drawn(self, cells: Cells) -> int:
        """Cells of an epoch."""
        sizes = _sizes(cells, self.by)
        shares = self._shares(sizes)
        return sum(sizes.values()) if self.replacement else sum(_quotas(list(sizes.values()), shares))

    def _shares(self, sizes: Mapping[Label, int]) -> AnyArray:
        """Probability of each label."""
        if self.weights == "group":
            weights = np.ones(len(sizes))
        elif self.weights == "cell":
            weights = np.array(list(sizes.values()), dtype=float)
        elif isinstance(self.weights, Mapping):
            unknown = next((label for label in self.weights if label not in sizes), None)
            if unknown is not None:
                raise SpecError(f"weights: no selected cell has {self.by} = {unknown!r}; {suggest(unknown, sizes)}")
            weights = np.array([self.weights.get(label, 0.0) for label in sizes], dtype=float)
        else:
            raise SpecError(f"weights: expected 'group', 'cell', or a weight per label, got {self.weights!r}")
        if not np.all(np.isfinite(weights)) or np.any(weights < 0) or (len(weights) and not weights.sum()):
            raise SpecError(f"weights: expected numbers of at least 0, and one above it, got {self.weights!r}")
        shares: AnyArray = weights / weights.sum() if len(weights) else weights
        return shares

    def _with_replacement(
        self, groups: list[Int64Array], shares: AnyArray, generator: np.random.Generator
    ) -> Int64Array:
        sizes = np.array([len(g) for g in groups], dtype=np.int64)
        n_runs = -(-int(sizes.sum()) // self.run_rows)
        chosen = generator.choice(len(groups), size=n_runs, p=shares)
        first = (generator.random(n_runs) * sizes[chosen]).astype(np.int64)
        # A run goes on at the label's first cell where it passes the last one: every cell is as likely as any other.
        within = (first[:, None] + np.arange(self.run_rows)) % sizes[chosen][:, None]
        offsets = np.cumsum([0, *sizes])[:-1]
        drawn: Int64Array = np.concatenate(groups)[(within + offsets[chosen][:, None]).ravel()]
        return drawn[: sizes.sum()]

    def _without_replacement(
        self, groups: list[Int64Array], shares: AnyArray, generator: np.random.Generator
    ) -> Int64Array:
        runs: list[Int64Array] = []
        for group, quota in zip(groups, _quotas([len(g) for g in groups], shares), strict=True):
            order = _run_order(len(group), self.run_rows, generator)
            chosen = group[order(np.arange(quota, dtype=np.int64))]
            runs += np.split(chosen, range(self.run_rows, len(chosen), self.run_rows))
        return np.concatenate([runs[i] for i in generator.permutation(len(runs))])


def _quotas(sizes: list[int], shares: AnyArray) -> list[int]:
    """Cells of each label, by its share, of which there are as many as the scarcest label allows."""
    total = min((size / share for size, share in zip(sizes, shares, strict=True) if share), default=0.0)
    return [round(total * share) for share in shares.tolist()]


# -- by name -----------------------------------------------------------------------------------------------------------

_NAMED: Final[dict[str, Callable[[], Schedule]]] = {"sequential": Sequential, "shuffled": Shuffled, "full": Full}


def named_schedule(schedule: str | Schedule) -> Schedule:
    """A schedule by name, or the one given.

    Raises
    ------
    SpecError
        There is no schedule of that name, or what was given is none.
    """
    if isinstance(schedule, str):
        if schedule not in _NAMED:
            raise SpecError(
                f"unknown schedule {schedule!r}; {suggest(schedule, _NAMED)}; Balanced(by=…) and Grouped(by=…) are "
                f"given as objects"
            )
        return _NAMED[schedule]()
    if not isinstance(schedule, Schedule):
        raise SpecError(f"expected the name of a schedule or an object with columns and windows(), got {schedule!r}")
    for name in ("run_rows", "window_rows"):
        if getattr(schedule, name, 1) < 1:
            raise SpecError(f"expected {name} of at least 1, got {schedule}")
    return schedule


def most_rows(schedule: Schedule, cells: Cells, batch_size: int, epoch: Epoch) -> int:
    """Cells of the largest window of a rank; windows are made, one after another, where the schedule can't tell."""
    known = getattr(schedule, "most_rows", None)
    if known is not None:
        return int(known(cells, batch_size, epoch))
    return max((len(window.positions) for window in schedule.windows(cells, batch_size, epoch)), default=0)


def n_batches(schedule: Schedule, cells: Cells, batch_size: int, epoch: Epoch) -> int:
    """Batches of a rank; windows are made, one after another, where the schedule can't tell."""
    known = getattr(schedule, "n_batches", None)
    if known is not None:
        return int(known(cells, batch_size, epoch))
    return sum(window.n_batches for window in schedule.windows(cells, batch_size, epoch))


def stable_repr(schedule: Schedule) -> str:
    """Text that is the same in every process, also of an object whose repr is its address."""
    kind = type(schedule)
    return f"{kind.__module__}.{kind.__qualname__}" if kind.__repr__ is object.__repr__ else repr(schedule)
