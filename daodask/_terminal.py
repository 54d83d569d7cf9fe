"""What the commands show in a terminal, and what they write where there is none."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["open_console", "show_progress"]

#: The shape of :data:`daodask.drive.Progress`.
Reporter: TypeAlias = Callable[[str, str, int, int], None]

#: Columns of text that goes to a file or a pipe: wide enough that no table is cut.
_PLAIN_WIDTH = 160
#: Seconds between two lines on the same stage of the same study.
_LINE_SECONDS = 10.0


def open_console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup in it, and nothing coloured on a guess."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, markup=False, highlight=False, width=None if stream.isatty() else _PLAIN_WIDTH)


@contextlib.contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Reporter | None]:
    """What to pass as ``progress=``: bars where stderr is a terminal, else lines; ``None`` where quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield _Stages(bars)
    else:
        yield _Lines(sys.stderr)


def _bars() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=open_console(stderr=True), transient=True)


@dataclass
class _Stages:
    """One bar per stage, over all studies: they go through the stages side by side, and may be many."""

    bars: Progress
    rows: dict[str, TaskID] = field(default_factory=dict)
    counts: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def __call__(self, study: str, stage: str, done: int, total: int) -> None:
        if stage not in self.rows:
            self.rows[stage] = self.bars.add_task(stage, total=None)
        counts = self.counts.setdefault(stage, {})
        counts[study] = done, total
        self.bars.update(
            self.rows[stage], completed=sum(d for d, _ in counts.values()), total=sum(t for _, t in counts.values())
        )


@dataclass
class _Lines:
    """A line when a study has done a stage, and now and then in between."""

    stream: TextIO
    last: dict[tuple[str, str], float] = field(default_factory=dict)

    def __call__(self, study: str, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self.last.setdefault((study, stage), now) > _LINE_SECONDS:
            self.last[study, stage] = now
            self.stream.write(f"{study}: {stage} {done:,}/{total:,}\n")
            self.stream.flush()
