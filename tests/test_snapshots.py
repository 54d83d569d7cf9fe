"""Committing: numbers without gaps, no change lost, old snapshots as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from daodask import __version__
from daodask.errors import CommitError, FormatVersionError, StoreNotFoundError
from daodask.format.manifest import DatasetInfo, Snapshot
from daodask.snapshots import commit_snapshot, latest_snapshot, read_snapshot, snapshot_numbers
from daodask.storage import StoreLocation


def adding(name: str) -> object:
    dataset = DatasetInfo(name, f"datasets/{name}.0", "f", 0, (0,), ())
    return lambda newest: replace(newest, datasets=(*newest.datasets, dataset))


def ids(snapshot: Snapshot | None) -> list[str]:
    assert snapshot is not None
    return [d.id for d in snapshot.datasets]


def test_a_store_begins_with_number_1(location: StoreLocation) -> None:
    assert latest_snapshot(location) is None
    first = commit_snapshot(location, adding("a"), message="hello")
    assert (first.number, first.message, first.written_by) == (1, "hello", f"daodask {__version__}")
    assert datetime.fromisoformat(first.created).utcoffset() == timedelta(0)
    assert (location / "snapshots").list() == ("00000001.json",)
    assert latest_snapshot(location) == first


def test_old_snapshots_stay_as_they_were(location: StoreLocation) -> None:
    committed = [commit_snapshot(location, adding(name)) for name in "abc"]
    assert snapshot_numbers(location) == (1, 2, 3)
    assert [read_snapshot(location, n) for n in (1, 2, 3)] == committed
    assert ids(read_snapshot(location)) == ["a", "b", "c"]
    assert ids(read_snapshot(location, 1)) == ["a"]


def test_committers_at_once_all_succeed(location: StoreLocation) -> None:
    # moto and SeaweedFS take long to let many race.
    n = 5 if location.url.startswith("s3://") else 20
    with ThreadPoolExecutor(n) as threads:
        committed = list(threads.map(lambda i: commit_snapshot(location, adding(f"d{i}")), range(n)))
    assert sorted(s.number for s in committed) == list(range(1, n + 1))
    assert snapshot_numbers(location) == tuple(range(1, n + 1))
    assert sorted(ids(read_snapshot(location))) == sorted(f"d{i}" for i in range(n))
    for snapshot in committed:
        assert read_snapshot(location, snapshot.number) == snapshot
        assert len(snapshot.datasets) == snapshot.number


def test_a_change_that_fails_commits_nothing(location: StoreLocation) -> None:
    with pytest.raises(ZeroDivisionError):
        commit_snapshot(location, lambda _: replace(_, number=1 // 0))
    assert snapshot_numbers(location) == ()


def test_losing_every_race_is_an_error(location: StoreLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreLocation, "create", lambda *_: False)
    with pytest.raises(CommitError, match="lost 100 races for the next snapshot"):
        commit_snapshot(location, adding("a"))


@pytest.mark.parametrize(
    "name",
    ["3.json", "0000003.json", "000000003.json", "00000003.json.tmp", ".00000003.json.ab.tmp", "٠٠٠٠٠٠٠٣.json", "x"],
)
def test_other_files_are_no_snapshots(name: str, location: StoreLocation) -> None:
    commit_snapshot(location, adding("a"))
    (location / "snapshots" / name).write(b"{}")
    assert snapshot_numbers(location) == (1,)
    assert commit_snapshot(location, adding("b")).number == 2


def test_numbers_beyond_eight_digits(location: StoreLocation) -> None:
    (location / "snapshots/99999999.json").write(Snapshot(99_999_999, "", "").to_json())
    assert commit_snapshot(location, adding("a")).number == 100_000_000
    assert snapshot_numbers(location) == (99_999_999, 100_000_000)


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "study.h5ad").write_bytes(b"x")
    for path in ("absent", "study.h5ad", "."):
        with pytest.raises(StoreNotFoundError, match=r"expected a daodask store at .*build one with `daodask build`"):
            read_snapshot(StoreLocation.parse(tmp_path / path))


def test_a_number_that_is_not_there_lists_those_there_are(location: StoreLocation) -> None:
    for name in "ab":
        commit_snapshot(location, adding(name))
    for number in (0, 3):
        with pytest.raises(StoreNotFoundError, match=rf"has no snapshot {number}; it has 1 to 2: \(1, 2\)"):
            read_snapshot(location, number)


def test_nobody_commits_onto_a_newer_format(location: StoreLocation) -> None:
    commit_snapshot(location, adding("a"))
    (location / "snapshots/00000002.json").write(b'{"format": 2, "written_by": "daodask 9"}')
    with pytest.raises(
        FormatVersionError, match=r"00000002\.json: written by a newer daodask: daodask 9 uses format 2"
    ):
        commit_snapshot(location, adding("b"))
    assert ids(read_snapshot(location, 1)) == ["a"]


def test_a_change_of_nothing_commits_nothing(location: StoreLocation) -> None:
    first = commit_snapshot(location, adding("a"))
    assert commit_snapshot(location, lambda newest: newest) == first
    assert snapshot_numbers(location) == (1,)


def test_a_snapshot_that_a_vacuum_removed_is_told_apart(location: StoreLocation) -> None:
    for name in "abc":
        commit_snapshot(location, adding(name))
    for number in (1, 2):
        (location / f"snapshots/0000000{number}.json").remove()
        with pytest.raises(StoreNotFoundError, match=rf"snapshot {number} of .* is gone: `daodask vacuum"):
            read_snapshot(location, number)
    with pytest.raises(StoreNotFoundError, match=r"has no snapshot 0; it has 3 to 3"):
        read_snapshot(location, 0)
    assert commit_snapshot(location, adding("d")).number == 4


def test_who_committed_is_kept(location: StoreLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAODASK_AUTHOR", "ada@lovelace")
    assert commit_snapshot(location, adding("a")).author == "ada@lovelace"
    assert read_snapshot(location).author == "ada@lovelace"
