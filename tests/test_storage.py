"""Files written whole or not at all, and created by one of many."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from daodask.errors import StoreNotFoundError
from daodask.storage import StoreLocation

# -- the value -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/atlas/", "/data/atlas"),
        ("/", "/"),
        ("file:///data/atlas", "/data/atlas"),
        ("gs://bucket/atlas/", "gs://bucket/atlas"),
        ("s3://bucket", "s3://bucket"),
        ("memory://x", "memory://x"),
        ("relative", f"{os.getcwd()}/relative"),
        ("~/atlas", f"{os.path.expanduser('~')}/atlas"),
        (Path("/data/atlas"), "/data/atlas"),
    ],
)
def test_parse(url: Any, expected: str) -> None:
    location = StoreLocation.parse(url)
    assert location.url == str(location) == expected
    assert StoreLocation.parse(location) is location


def test_a_location_is_a_small_value() -> None:
    location = StoreLocation.parse("gs://b/a", {"token": "anon", "project": "p"})
    assert location == StoreLocation("gs://b/a", (("project", "p"), ("token", "anon")))
    assert {location: 1}[pickle.loads(pickle.dumps(location))] == 1  # noqa: S301
    assert (location / "x/y").url == "gs://b/a/x/y"
    assert (location / "x/y").options == location.options
    assert (location / "x/y").name == "y"


# -- reading and writing -------------------------------------------------------------------------------------------


def test_what_is_written_is_read(location: StoreLocation) -> None:
    file = location / "a/b.bin"
    assert not file.exists()
    for data in (b"0123456789", b"replaced", b""):
        file.write(data)
        assert file.read() == data
    file.write(b"0123456789")
    assert file.read_range(2, 5) == b"234"
    assert file.exists()
    assert (location / "a").list() == ("b.bin",)


@pytest.mark.parametrize("path", ["absent", "absent/deeper", "file/deeper"])
def test_reading_what_is_not_there(location: StoreLocation, path: str) -> None:
    (location / "file").write(b"x")
    with pytest.raises(StoreNotFoundError, match=f"expected a file at .*{path}, found none"):
        (location / path).read()


def test_reading_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="expected a file at"):
        StoreLocation.parse(tmp_path).read()


def test_listing(location: StoreLocation) -> None:
    for name in ("b", "a", "c/d"):
        (location / name).write(b"x")
    assert location.list() == ("a", "b", "c")
    assert (location / "absent").list() == ()


def test_listing_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "atlas.h5ad").write_bytes(b"x")
    assert StoreLocation.parse(tmp_path / "atlas.h5ad/snapshots").list() == ()


def test_removing(location: StoreLocation) -> None:
    (location / "a/b").write(b"x")
    (location / "a").remove()
    assert not (location / "a/b").exists()
    (location / "a").remove()


def test_a_zarr_store_is_rooted_there(location: StoreLocation) -> None:
    zarr.create_array(location.zarr_store(read_only=False), name="a", data=np.array([1, 2, 3]))
    assert (location / "a/zarr.json").exists()
    assert zarr.open_array(location.zarr_store(), path="a", mode="r")[:].tolist() == [1, 2, 3]


# -- the exclusive create ------------------------------------------------------------------------------------------


def test_a_file_is_created_once(location: StoreLocation) -> None:
    file = location / "snapshots/1.json"
    assert file.create(b"first") is True
    assert file.create(b"second") is False
    assert file.create(b"first again") is False
    assert file.read() == b"first"


def test_of_twenty_racing_threads_one_wins(location: StoreLocation) -> None:
    for attempt in range(1 if location.options else 10):  # SeaweedFS takes seconds to settle one
        file, start = location / f"{attempt}.json", Barrier(20)

        def race(number: int, file: StoreLocation = file, start: Barrier = start) -> int | None:
            start.wait()
            return number if file.create(str(number).encode()) else None

        with ThreadPoolExecutor(20) as threads:
            winners = [w for w in threads.map(race, range(20)) if w is not None]
        assert len(winners) == 1
        assert file.read() == str(winners[0]).encode()
    assert all(name.endswith(".json") for name in location.list())


class LostRace(fsspec.AbstractFileSystem):
    """A server that says of a lost race what s3fs does: a bare OSError."""

    protocol = "lostrace"
    cachable = False
    there: bytes | None = None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        assert mode == "create"
        raise OSError(412, "PreconditionFailed")

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        if self.there is None:
            raise FileNotFoundError(path)
        return self.there


@pytest.mark.parametrize(("there", "won"), [(b"mine", True), (b"another's", False)])
def test_who_is_there_decides_who_won(there: bytes, won: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("lostrace", LostRace, clobber=True)
    monkeypatch.setattr(LostRace, "there", there)
    assert StoreLocation("lostrace://x").create(b"mine") is won


def test_an_error_without_a_winner_is_an_error() -> None:
    fsspec.register_implementation("lostrace", LostRace, clobber=True)
    with pytest.raises(OSError, match="PreconditionFailed"):
        StoreLocation("lostrace://x").create(b"mine")


# -- crashes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "method"), [("replace", "write"), ("link", "create"), ("fsync", "write")])
def test_a_crash_leaves_nothing_visible(
    call: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    file = StoreLocation.parse(tmp_path / "snapshots/00000001.json")
    monkeypatch.setattr(os, call, crash)
    with pytest.raises(OSError, match="No space left"):
        getattr(file, method)(b"half")
    assert os.listdir(tmp_path / "snapshots") == []


def test_a_crash_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StoreLocation.parse(tmp_path / "a")
    file.write(b"before")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("crash")))
    with pytest.raises(OSError, match="crash"):
        file.write(b"after")
    assert file.read() == b"before"
    assert os.listdir(tmp_path) == ["a"]


# -- large local files -------------------------------------------------------------------------------------------------


def test_the_disk_begins_before_all_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daodask.storage._FLUSHED_BYTES", 10_000)
    begun, fsync = Event(), os.fsync
    sizes: list[int] = []

    def noted(descriptor: int) -> None:
        begun.set()
        fsync(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    def parts() -> Iterator[bytes]:
        for i in range(50):
            if i == 49:
                assert begun.wait(60)
            yield bytes([i]) * 9000

    monkeypatch.setattr(os, "fsync", noted)
    StoreLocation.parse(tmp_path / "file").write(parts())
    assert (tmp_path / "file").read_bytes() == b"".join(bytes([i]) * 9000 for i in range(50))
    assert sizes[-1] == 450_000


def test_a_disk_that_fails_meanwhile_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daodask.storage._FLUSHED_BYTES", 10_000)
    fsync, failed = os.fsync, []

    def fails_once(descriptor: int) -> None:
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, "the disk is broken")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once)
    with pytest.raises(OSError, match="broken"):
        StoreLocation.parse(tmp_path / "file").write(bytes([i]) * 9000 for i in range(50))
    assert list(tmp_path.iterdir()) == []
