"""What there is to see while studies are worked on: bars in a terminal, a display in Jupyter, lines in a log.

All three show the same :class:`View`, which a :class:`Tracker` makes of what :data:`~daodask.drive.Progress` is told.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, TypeAlias

from daodask._format import human_count, one_line, shorten
from daodask.drive import Progress
from daodask.errors import SpecError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["ProgressLike", "Row", "StageTimes", "Tracker", "View", "open_progress"]

#: What ``progress=`` takes: a function, or where to show: ``"auto"``, ``True`` (a log too), ``False``.
ProgressLike: TypeAlias = "Progress | Literal['auto'] | bool | None"

#: How far a study is, from 0 to 1, when a stage of it is done; one that isn't here takes it no further.
_ENDS: Final[Mapping[str, float]] = {
    "inspect": 0.02,
    "list": 0.02,
    "transpose": 0.3,
    "count": 0.3,
    "stage": 0.62,
    "write": 0.97,
    "check": 1.0,
    "copy": 1.0,
    "pass": 1.0,
}
_MOST_ROWS: Final = 10
_NAME_WIDTH: Final = 32
#: Seconds between two lines on the same stage of the same study.
_LINE_SECONDS: Final = 10.0
#: Seconds between two updates of a notebook's display.
_DISPLAY_SECONDS: Final = 0.25


@contextlib.contextmanager
def open_progress(progress: ProgressLike = "auto") -> Iterator[Progress | None]:
    """What to call as tasks finish, for as long as the context is open.

    Parameters
    ----------
    progress
        A function, which is called as it is; ``"auto"``: a display in Jupyter, bars where stderr is a terminal, and
        nothing elsewhere; ``True``: there, lines on stderr; ``False`` or ``None``: nothing.

    Raises
    ------
    SpecError
        It is none of these.
    """
    if progress is None or progress is False:
        yield None
    elif callable(progress):
        yield progress
    elif progress is not True and progress != "auto":
        raise SpecError(f"progress: expected a function, 'auto', True or False, got {progress!r}")
    elif _in_notebook():
        with _Display().opened() as display:
            yield display
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield bars
    else:
        yield Lines(sys.stderr) if progress is True else None


# -- what is known -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A study on its way: ``done`` of ``total`` tasks of a stage."""

    study: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class View:
    """What is shown.

    Parameters
    ----------
    fraction
        Of the whole, from 0 to 1; studies weigh as many as they have tasks.
    rows
        Some of the studies on their way, those that were begun first.
    running, waiting, ended, studies
        Studies with a finished task in their stage, those without one, those that are through, and all.
    tasks
        Finished tasks.
    elapsed, left
        Seconds since the first call, and about how many there will be; ``None`` before anything tells.
    """

    fraction: float
    rows: tuple[Row, ...]
    running: int
    waiting: int
    ended: int
    studies: int
    tasks: int
    elapsed: float
    left: float | None

    @property
    def percent(self) -> int:
        """Of the whole, rounded down: 100 is all."""
        return int(100 * self.fraction + 1e-9)

    def summary(self) -> str:
        """How far it is, in words: ``"3/11 studies · 4.2 tasks/s · 0:12, ~0:30 left"``."""
        rate = f"{self.tasks / self.elapsed:.3g} tasks/s" if self.tasks and self.elapsed >= 1 else ""
        left = f", ~{_clock(self.left)} left" if self.left is not None else ""
        studies = "studies" if self.studies != 1 else "study"
        of = f"{human_count(self.ended)}/{human_count(self.studies)} {studies}"
        return " · ".join(part for part in (of, rate, f"{_clock(self.elapsed)}{left}") if part)

    def others(self) -> str:
        """What the rows leave out; empty where that is nothing."""
        shown = len(self.rows)
        running = max(0, self.running - shown)
        waiting = self.waiting - max(0, shown - self.running)
        parts = [f"{human_count(n)} {word}" for n, word in ((running, "running"), (waiting, "waiting")) if n]
        return f"… {', '.join(parts)} more" if parts else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class _Study:
    """Where a study is; ``reached`` is the part of its way that its earlier stages were."""

    stage: str = ""
    done: int = 0
    total: int = 0
    weight: int = 1
    reached: float = 0.0
    ended: bool = False

    @property
    def fraction(self) -> float:
        if self.ended:
            return 1.0
        end = max(self.reached, _ENDS.get(self.stage, 0.0))
        return self.reached + (end - self.reached) * (self.done / self.total if self.total else 0.0)

    def update(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.reached = self.fraction
        self.stage, self.done, self.total = stage, done, total
        self.weight = max(self.weight, total)
        self.ended = not total or (done == total and _ENDS.get(stage) == 1.0)


@dataclass
class Tracker:
    """Adds up what it is told, per study and over all; safe to be looked at from another thread."""

    clock: Callable[[], float] = time.monotonic
    _studies: dict[str, _Study] = field(default_factory=dict)
    _begun: dict[str, None] = field(default_factory=dict)
    _tasks: dict[tuple[str, str], int] = field(default_factory=dict)
    _start: float | None = None
    _furthest: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, study: str, stage: str, done: int, total: int) -> None:
        """Take in one call of :data:`~daodask.drive.Progress`."""
        with self._lock:
            if self._start is None:
                self._start = self.clock()
            self._studies.setdefault(study, _Study()).update(stage, done, total)
            self._tasks[study, stage] = done
            if done:
                self._begun[study] = None

    def view(self) -> View:
        """What there is to show now."""
        with self._lock:
            return self._view()

    def _view(self) -> View:
        going = {name: s for name, s in self._studies.items() if not s.ended}
        running = [name for name in self._begun if name in going and going[name].done]
        waiting = [name for name in going if not going[name].done]
        weight = sum(s.weight for s in self._studies.values())
        fraction = sum(s.weight * s.fraction for s in self._studies.values()) / weight if weight else 0.0
        # Tasks that only turn up on the way make a study weigh more; what was said to be done stays so.
        fraction = self._furthest = max(fraction, self._furthest)
        elapsed = 0.0 if self._start is None else self.clock() - self._start
        return View(
            fraction=fraction,
            rows=tuple(
                Row(name, going[name].stage, going[name].done, going[name].total)
                for name in (*running, *waiting)[:_MOST_ROWS]
            ),
            running=len(running),
            waiting=len(waiting),
            ended=len(self._studies) - len(going),
            studies=len(self._studies),
            tasks=sum(self._tasks.values()),
            elapsed=elapsed,
            left=elapsed * (1 - fraction) / fraction if fraction > 0.05 else None,
        )


# -- a terminal ----------------------------------------------------------------------------------------------------


@dataclass
class Bars:
    """Rows for a terminal: one over all, and one for each of a few studies."""

    tracker: Tracker = field(default_factory=Tracker)

    def __call__(self, study: str, stage: str, done: int, total: int) -> None:
        self.tracker.update(study, stage, done, total)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        view = self.tracker.view()
        overall = Table.grid(padding=(0, 2))
        summary = Text(view.summary(), no_wrap=True, overflow="ellipsis")
        overall.add_row(ProgressBar(total=1.0, completed=view.fraction, width=22), f"{view.percent:3d} %", summary)
        studies = Table.grid(padding=(0, 2))
        for row in view.rows:
            name = Text(shorten(row.study, _NAME_WIDTH), no_wrap=True, overflow="ellipsis")
            bar = ProgressBar(total=max(1, row.total), completed=row.done, width=20)
            studies.add_row("", name, Text(row.stage, style="dim"), bar, Text(_of(row), justify="right"))
        others = [Text(f"  {view.others()}", style="dim")] if view.others() else []
        return Group(overall, studies, *others)


def _of(row: Row) -> str:
    return f"{human_count(row.done)}/{human_count(row.total)}"


@contextlib.contextmanager
def _bars() -> Iterator[Bars]:
    from rich.console import Console
    from rich.live import Live

    bars = Bars()
    console = Console(file=sys.stderr, markup=False, highlight=False)
    # Gone at the end: what was done is in the report.
    with Live(get_renderable=bars.__rich__, console=console, transient=True, refresh_per_second=5):
        yield bars


# -- a notebook ----------------------------------------------------------------------------------------------------


def _in_notebook() -> bool:
    """Whether this is a Jupyter kernel: IPython that has one. Where it is not imported, it can't be."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


@dataclass
class _Display:
    """One display of a notebook's cell, updated in its place and at most a few times a second."""

    tracker: Tracker = field(default_factory=Tracker)
    _handle: Any = None
    _shown: float = float("-inf")

    @contextlib.contextmanager
    def opened(self) -> Iterator[_Display]:
        try:
            yield self
        finally:
            if self._handle is not None:
                self._show()

    def __call__(self, study: str, stage: str, done: int, total: int) -> None:
        self.tracker.update(study, stage, done, total)
        now = self.tracker.clock()
        if now - self._shown >= _DISPLAY_SECONDS:
            self._shown = now
            self._show()

    def _show(self) -> None:
        from IPython.display import display

        view = self.tracker.view()
        content = {"text/plain": f"{view.percent} %  {view.summary()}", "text/html": view_html(view)}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


_BAR: Final = "height:8px;border-radius:4px;background:rgba(128,140,155,.28);overflow:hidden"
_FILL: Final = "display:block;height:100%;border-radius:4px;background:#2a8ca3"
_GRID: Final = "display:grid;gap:2px 14px;align-items:center;"


def view_html(view: View) -> str:
    """The view as HTML that reads on light and dark pages, as it takes their colour of text."""
    rows = "".join(
        f'<span title="{escape(one_line(r.study))}">{escape(shorten(r.study, _NAME_WIDTH))}</span>'
        f'<span style="opacity:.7">{escape(r.stage)}</span>'
        f"{_bar_html(r.done / r.total if r.total else 0.0)}<span>{_of(r)}</span>"
        for r in view.rows
    )
    studies = (
        f'<div style="{_GRID}grid-template-columns:max-content max-content 160px max-content;margin:4px 0 0 12px">'
        f"{rows}</div>"
    )
    others = f'<div style="margin-left:12px;opacity:.7">{escape(view.others())}</div>' if view.others() else ""
    return (
        '<div style="font:13px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums;max-width:900px" '
        f'role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{view.percent}">'
        f'<div style="{_GRID}grid-template-columns:280px max-content 1fr">{_bar_html(view.fraction)}'
        f"<b>{view.percent} %</b><span>{escape(view.summary())}</span></div>"
        f"{studies if rows else ''}{others}</div>"
    )


def _bar_html(fraction: float) -> str:
    return f'<span style="{_BAR}"><i style="{_FILL};width:{100 * fraction:.4g}%"></i></span>'


# -- a log ---------------------------------------------------------------------------------------------------------


@dataclass
class Lines:
    """A line when a study has done a stage, and now and then in between, with time and share of the whole."""

    stream: TextIO
    tracker: Tracker = field(default_factory=Tracker)
    now: Callable[[], datetime] = lambda: datetime.now().astimezone()
    _last: dict[tuple[str, str], float] = field(default_factory=dict)

    def __call__(self, study: str, stage: str, done: int, total: int) -> None:
        self.tracker.update(study, stage, done, total)
        at = self.tracker.clock()
        if done == total or at - self._last.setdefault((study, stage), at) > _LINE_SECONDS:
            self._last[study, stage] = at
            tasks = f" {human_count(done)}/{human_count(total)}" if total else ""
            percent = self.tracker.view().percent
            self.stream.write(f"{self.now():%Y-%m-%d %H:%M:%S} {percent:3d} %  {one_line(study)}: {stage}{tasks}\n")
            self.stream.flush()


# -- times ---------------------------------------------------------------------------------------------------------


@dataclass
class StageTimes:
    """Passes calls on, and notes when each stage of each study began and when its latest task ended."""

    inner: Progress | None = None
    clock: Callable[[], float] = time.monotonic
    _bounds: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)

    def __call__(self, study: str, stage: str, done: int, total: int) -> None:  # noqa: D102  as the class says
        now = self.clock()
        if total:
            stages = self._bounds.setdefault(study, {})
            stages[stage] = (stages.get(stage, (now, now))[0], now)
        if self.inner is not None:
            self.inner(study, stage, done, total)

    def seconds(self, study: str) -> dict[str, float]:
        """Wall time of each stage of a study that had a task, in order."""
        return {stage: stop - start for stage, (start, stop) in self._bounds.get(study, {}).items()}
