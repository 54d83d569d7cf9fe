"""Where time goes: phases within phases, and reports that say so while receipts don't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daodask import build_store
from daodask.build import phases
from daodask.build.phases import PHASES, Stopwatch, sum_phases
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes where a test says so."""
    now = [0.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])
    return now


def test_a_phase_stops_the_one_around_it(seconds: list[float]) -> None:
    clock = Stopwatch()
    with clock("encode"):
        seconds[0] += 1
        with clock("read"):
            seconds[0] += 10
        seconds[0] += 100
    seconds[0] += 1000
    with clock("read"):
        seconds[0] += 10_000
    assert clock.seconds == {"encode": 101, "read": 10_010}


def test_making_values_is_not_using_them(seconds: list[float]) -> None:
    clock, made = Stopwatch(), []

    def values() -> object:
        for value in range(3):
            seconds[0] += 1
            yield value
        seconds[0] += 1

    for value in clock.each("read", values()):
        seconds[0] += 10
        made.append(value)
    assert made == [0, 1, 2]
    assert clock.seconds == {"read": 4}


def test_an_error_ends_a_phase(seconds: list[float]) -> None:
    clock = Stopwatch()

    def fail() -> None:
        with clock("write"):
            seconds[0] += 1
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    seconds[0] += 10
    assert clock.seconds == {"write": 1}


def test_sums() -> None:
    parts = [{"read": 1.0, "map": 2.0}, {}, {"read": 4.0, "write": 8.0}]
    assert sum_phases(parts) == {"read": 5, "map": 2, "encode": 0, "write": 8}
    assert sum_phases([]) == dict.fromkeys(PHASES, 0.0)


def test_reports_have_phases_and_receipts_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts: list[bytes] = []
    write = StoreLocation.write

    def seen(location: StoreLocation, data: bytes, **options: bool) -> None:
        if "/receipts/" in location.url:
            receipts.append(data)
        write(location, data, **options)

    monkeypatch.setattr(StoreLocation, "write", seen)
    coordinate_adata(30, 4).write_h5ad(tmp_path / "a.h5ad")
    studies = [{"id": "a", "source": str(tmp_path / "a.h5ad")}]
    spec = {"features": {"name": "all", "reference": "union"}, "studies": studies}
    first, second = (build_store(spec, tmp_path / name).studies[0] for name in ("one", "two"))
    assert set(first.phases) == set(PHASES)
    assert min(first.phases.values()) > 0
    assert first.phases != second.phases
    assert first == second
    assert len(receipts) == 8
    assert receipts[:4] == receipts[4:]
    assert not any("seconds" in json.loads(data) for data in receipts)
