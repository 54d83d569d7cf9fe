"""Progress as it is added up and shown: in a terminal, in a notebook, in a log."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import daodask
from daodask.drive import Progress
from daodask.errors import SpecError
from daodask.progress import Bars, Lines, Row, StageTimes, Tracker, View, open_progress, view_html
from daodask.testing import coordinate_adata

#: Two studies, the larger of which fails, as `drive` tells of them.
CALLS = [
    ("big", "inspect", 0, 1),
    ("small", "inspect", 0, 1),
    ("big", "inspect", 1, 1),
    ("small", "inspect", 1, 1),
    ("big", "stage", 0, 3),
    ("small", "stage", 0, 1),
    ("big", "stage", 1, 3),
    ("small", "stage", 1, 1),
    ("small", "write", 0, 2),
    ("small", "write", 1, 2),
    ("small", "write", 2, 2),
    ("small", "check", 0, 1),
    ("small", "check", 1, 1),
    ("big", "failed", 0, 0),
]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(calls: list[tuple[str, str, int, int]], to: Progress, clock: Clock, seconds: float = 1.0) -> None:
    for call in calls:
        to(*call)
        clock.now += seconds


# -- adding up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "percent", "rows", "ended"),
    [
        (0, 0, [], 0),
        (2, 0, [Row("big", "inspect", 0, 1), Row("small", "inspect", 0, 1)], 0),
        (4, 2, [Row("big", "inspect", 1, 1), Row("small", "inspect", 1, 1)], 0),
        # The big study weighs three blocks and the small one one; staging ends at 62 %.
        (7, 17, [Row("big", "stage", 1, 3), Row("small", "stage", 0, 1)], 0),
        (8, 32, [Row("big", "stage", 1, 3), Row("small", "stage", 1, 1)], 0),
        (13, 53, [Row("big", "stage", 1, 3)], 1),
        (14, 100, [], 2),
    ],
)
def test_what_is_done(calls: int, percent: int, rows: list[Row], ended: int) -> None:
    clock = Clock()
    tracker = Tracker(clock)
    told(CALLS[:calls], tracker.update, clock)
    view = tracker.view()
    assert (view.percent, list(view.rows), view.ended, view.elapsed) == (percent, rows, ended, float(calls))


def test_a_rate_and_the_time_that_is_left() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    told(CALLS[:8], tracker.update, clock, 15.0)
    view = tracker.view()
    assert view.summary() == "0/2 studies · 0.0333 tasks/s · 2:00, ~4:15 left"
    assert View(0.5, (), 0, 0, 1, 1, 9, 3725.0, 3600.0).summary() == (
        "1/1 study · 0.00242 tasks/s · 1:02:05, ~1:00:00 left"
    )


def test_only_so_many_studies_are_shown() -> None:
    tracker = Tracker()
    for i in range(1200):
        tracker.update(f"study{i}", "stage", 0, 4)
    for i in range(40):
        tracker.update(f"study{i}", "stage", 1, 4)
    view = tracker.view()
    assert [row.study for row in view.rows] == [f"study{i}" for i in range(10)]
    assert view.others() == "… 30 running, 1,160 waiting more"
    for i in range(38):
        tracker.update(f"study{i}", "check", 4, 4)
    few = tracker.view()
    assert [row.study for row in few.rows] == ["study38", "study39", *(f"study{i}" for i in range(40, 48))]
    assert few.others() == "… 1,152 waiting more"


STAGES = ("inspect", "transpose", "stage", "write", "check")


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_it_never_goes_back_and_ends_at_all_of_it(sizes: list[int], random: Any) -> None:
    ways = []
    for number, size in enumerate(sizes):
        totals = {"inspect": 1, "transpose": size // 3, "stage": size, "write": 2 * size + 1, "check": 1}
        ways.append(
            [(f"s{number}", s, done, n) for s, n in totals.items() if n for done in range(n + 1)],
        )
    tracker, seen = Tracker(), [0.0]
    while any(ways):
        way = random.choice([w for w in ways if w])
        tracker.update(*way.pop(0))
        seen.append(tracker.view().fraction)
    assert seen == sorted(seen)
    assert tracker.view().percent == 100


def test_times_of_stages() -> None:
    clock, inner = Clock(), []
    times = StageTimes(lambda *call: inner.append(call), clock)
    told(CALLS, times, clock)
    assert inner == CALLS
    assert times.seconds("big") == {"inspect": 2.0, "stage": 2.0}
    assert times.seconds("small") == {"inspect": 2.0, "stage": 2.0, "write": 2.0, "check": 1.0}
    assert times.seconds("other") == {}


# -- a log ---------------------------------------------------------------------------------------------------------


def test_lines() -> None:
    clock, stream = Clock(), io.StringIO()
    at = itertools.count()
    lines = Lines(stream, Tracker(clock), lambda: datetime(2026, 3, 1, 9, 30, next(at), tzinfo=UTC))
    told(CALLS, lines, clock)
    assert stream.getvalue().splitlines() == [
        "2026-03-01 09:30:00   1 %  big: inspect 1/1",
        "2026-03-01 09:30:01   2 %  small: inspect 1/1",
        "2026-03-01 09:30:02  32 %  small: stage 1/1",
        "2026-03-01 09:30:03  52 %  small: write 2/2",
        "2026-03-01 09:30:04  53 %  small: check 1/1",
        "2026-03-01 09:30:05 100 %  big: failed",
    ]


def test_a_long_stage_has_a_line_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, Tracker(clock), lambda: datetime(2026, 3, 1, tzinfo=UTC))
    told([("one\nline", "stage", done, 100) for done in range(101)], lines, clock)
    shown = [line.partition("stage ")[2] for line in stream.getvalue().splitlines()]
    assert shown == [*(f"{n}/100" for n in range(11, 100, 11)), "100/100"]
    assert "one\\nline: stage" in stream.getvalue()


# -- a terminal ----------------------------------------------------------------------------------------------------


def _drawn(bars: Bars, width: int = 100) -> list[str]:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, highlight=False).print(bars)
    return [re.sub(r"[━╸╺]+", "━", line).rstrip() for line in stream.getvalue().splitlines()]


def test_bars() -> None:
    clock = Clock()
    bars = Bars(Tracker(clock))
    told(CALLS[:8], bars, clock, 15.0)
    assert [re.sub(r" {2,}", "  ", line) for line in _drawn(bars)] == [
        "━  32 %  0/2 studies · 0.0333 tasks/s · 2:00, ~4:15 left",
        "  big  stage  ━  1/3",
        "  small  stage  ━  1/1",
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_bars_of_many_studies_stay_a_few_lines(width: int) -> None:
    bars = Bars()
    for i in range(500):
        bars(f"study with a very long name that goes on and on, number {i} [bold]", "stage", i % 3, 4)
    drawn = _drawn(bars, width)
    assert max(map(len, drawn)) <= width
    if width > 40:
        assert len(drawn) == 12
        assert drawn[-1] == "  … 323 running, 167 waiting more"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_clean_again_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with open_progress() as progress:
        assert isinstance(progress, Bars)
        progress("pbmc", "stage", 1, 4)
    shown = terminal.getvalue()
    assert "pbmc" in shown
    # The cursor is hidden and shown again, and the last thing that is drawn is removed.
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert shown.rstrip().endswith("\x1b[2K")


# -- a notebook ----------------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Make this a notebook, and return what its displays are told: content, and whether it takes another's place."""
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    publisher = CapturingDisplayPublisher()
    monkeypatch.setattr(shell, "display_pub", publisher)
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    yield publisher.outputs
    InteractiveShell.clear_instance()


def test_a_notebook_has_one_display_that_is_updated(notebook: list[dict[str, Any]]) -> None:
    with open_progress() as progress:
        assert progress is not None
        for call in CALLS:
            progress(*call)
    first, *others = notebook
    assert not first.get("update")
    assert others
    assert all(other["update"] for other in others)
    assert len({output["transient"]["display_id"] for output in notebook}) == 1
    assert notebook[-1]["data"]["text/plain"].startswith("100 %  2/2 studies")
    assert 'aria-valuenow="100"' in notebook[-1]["data"]["text/html"]
    assert len(notebook) < len(CALLS)  # not one for each call


def test_a_notebook_in_which_nothing_happens_shows_nothing(notebook: list[dict[str, Any]]) -> None:
    with open_progress():
        pass
    assert notebook == []


def test_html_is_escaped() -> None:
    view = View(0.5, (Row("<b>&", "<i>", 1, 2),), 1, 0, 0, 1, 1, 1.0, None)
    shown = view_html(view)
    assert "&lt;b&gt;&amp;" in shown
    assert "&lt;i&gt;" in shown
    assert "<b>&" not in shown


# -- what is chosen ------------------------------------------------------------------------------------------------


def test_a_plain_script_shows_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for quiet in ("auto", False, None):
        with open_progress(quiet) as progress:  # type: ignore[arg-type]
            assert progress is None
    with open_progress(True) as progress:
        assert progress is not None
        progress("pbmc", "stage", 4, 4)
    assert stream.getvalue().endswith("62 %  pbmc: stage 4/4\n")


def test_a_function_is_called_as_it_is() -> None:
    def own(study: str, stage: str, done: int, total: int) -> None: ...

    with open_progress(own) as progress:
        assert progress is own


def test_anything_else_is_an_error() -> None:
    with (
        pytest.raises(SpecError, match="progress: expected a function, 'auto', True or False, got 'yes'"),
        open_progress(
            "yes"  # type: ignore[arg-type]
        ),
    ):
        pass


def test_a_build_tells_how_each_study_ends(tmp_path: Path) -> None:
    good, bad = coordinate_adata(40), coordinate_adata(8)
    bad.X = bad.layers["half"]
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "layout": {"block_rows": 16},
        "studies": [{"id": "good", "source": good}, {"id": "bad", "source": bad}],
    }
    calls: list[tuple[str, str, int, int]] = []
    report = daodask.build_store(spec, tmp_path / "store", progress=lambda *call: calls.append(call))
    assert [s.status for s in report.studies] == ["built", "refused"]
    assert [c[1:] for c in calls if c[0] == "good" and c[1] == "stage"] == [("stage", n, 3) for n in range(4)]
    assert calls[-1] == ("good", "check", 1, 1)
    assert [c for c in calls if not c[3]] == [("bad", "failed", 0, 0)]
    assert set(report.studies[0].seconds) == {"inspect", "stage", "write", "check"}
    again: list[tuple[str, str, int, int]] = []
    daodask.build_store(spec, tmp_path / "store", progress=lambda *call: again.append(call))
    assert ("good", "unchanged", 0, 0) in again
