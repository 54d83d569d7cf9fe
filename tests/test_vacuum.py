"""Vacuuming: only what no kept snapshot names, only what is old, and only what is ours."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import daodask
from daodask.errors import FormatError, SpecError, StoreNotFoundError
from daodask.storage import StoreLocation, is_temporary
from daodask.testing import coordinate_adata
from daodask.vacuum import parse_duration, plan_vacuum

DAY = 86_400


def build(store: StoreLocation, *, replace: bool = False, **firsts: int) -> daodask.BuildReport:
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "layout": {"block_rows": 4, "chunk_rows": 1, "shard_bytes": 2048},
        "studies": [{"id": i, "source": coordinate_adata(6, 5, first=f)} for i, f in firsts.items()],
    }
    report = daodask.build_store(spec, store, replace=replace, progress=False)
    assert report.ok
    return report


def aged(store: StoreLocation, days: float, below: str = "") -> None:
    """Make everything there as old as that."""
    then = time.time() - days * DAY
    for directory, _, names in os.walk(f"{store.path}/{below}"):
        for path in (directory, *(f"{directory}/{name}" for name in names)):
            os.utime(path, (then, then))


def paths(store: StoreLocation) -> set[str]:
    return {file.path for file in store.files()}


def tops(store: StoreLocation) -> set[str]:
    return {"/".join(p.split("/")[:2]).split(".")[0] for p in paths(store)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StoreLocation:
    """Return a store of three snapshots: a and b; a replaced; b removed."""
    store = StoreLocation.parse(tmp_path_factory.mktemp("vacuum") / "store")
    build(store, a=0, b=10)
    build(store, replace=True, a=100)
    daodask.remove_datasets(store, "b")
    return store


@pytest.fixture
def store(template: StoreLocation, tmp_path: Path) -> StoreLocation:
    """Return a copy of it, 30 days old."""
    shutil.copytree(template.path, tmp_path / "store")
    location = StoreLocation.parse(tmp_path / "store")
    aged(location, 30)
    return location


@pytest.fixture(params=["memory", "gcs", "s3"])
def elsewhere(request: pytest.FixtureRequest, place: Callable[[str], StoreLocation]) -> Iterator[StoreLocation]:
    location = place(request.param)
    yield location
    if request.param == "memory":
        location.remove()


def kinds(plan: daodask.VacuumPlan) -> list[tuple[str, str]]:
    return [(item.kind, item.path.split(".")[0]) for item in plan.garbage]


# -- what goes, what stays ---------------------------------------------------------------------------------------------


def test_all_snapshots_are_kept_by_default(store: StoreLocation) -> None:
    before = paths(store)
    plan = plan_vacuum(store)
    assert (plan.garbage, plan.young, plan.newest, plan.nbytes) == ((), (), 3, 0)
    assert plan.run().removed == ()
    assert paths(store) == before


@pytest.mark.parametrize(
    ("keep", "snapshots", "datasets"),
    [
        (5, ["1", "2", "3"], ["a", "a", "b"]),
        (3, ["1", "2", "3"], ["a", "a", "b"]),
        (2, ["2", "3"], ["a", "b"]),
        (1, ["3"], ["a"]),
    ],
)
def test_older_snapshots_go_where_it_is_asked_for(
    store: StoreLocation, keep: int, snapshots: list[str], datasets: list[str]
) -> None:
    plan = plan_vacuum(store, keep_snapshots=keep)
    sizes = {file.path: file.size for file in store.files()}
    report = plan.run()
    assert report.removed == plan.garbage
    assert [name.lstrip("0").split(".")[0] for name in (store / "snapshots").list()] == snapshots
    assert [name.split(".")[0] for name in (store / "datasets").list()] == datasets
    gone = sizes.keys() - paths(store)
    assert plan.nbytes == report.nbytes == sum(sizes[path] for path in gone)
    assert sum(item.n_files for item in plan.garbage) == len(gone)
    assert daodask.open_store(store).to_anndata().obs_names.tolist() == [f"cell{r}" for r in range(100, 106)]
    assert daodask.validate_store(store).ok
    for number in range(1, 4 - len(snapshots)):
        with pytest.raises(
            StoreNotFoundError,
            match=rf"snapshot {number} of .* is gone: `daodask vacuum --keep-snapshots` removed those before "
            rf"{snapshots[0]}; it has {snapshots[0]} to 3",
        ):
            daodask.open_store(store, snapshot=number)


def test_a_snapshot_that_was_the_newest_not_long_ago_stays(store: StoreLocation) -> None:
    aged(store, 3, "snapshots/00000003.json")
    os.utime(f"{store.path}/snapshots/00000003.json", (time.time() - 3 * DAY,) * 2)
    assert kinds(plan_vacuum(store, keep_snapshots=1)) == [
        ("snapshot", "snapshots/00000001"),
        ("dataset", "datasets/a"),
    ]
    assert kinds(plan_vacuum(store, keep_snapshots=1, grace="2d")) == [
        ("snapshot", "snapshots/00000001"),
        ("snapshot", "snapshots/00000002"),
        ("dataset", "datasets/a"),
        ("dataset", "datasets/b"),
    ]


def leave_garbage(store: StoreLocation) -> dict[str, str]:
    """Leave what crashed builds leave, and return the kind of each by its path."""
    named = daodask.open_store(store).snapshot.datasets[0].path
    found = {
        "scratch/x.0123456789ab": "scratch",
        f"scratch/{named.partition('/')[2]}": "scratch",
        "datasets/x.0123456789ab": "dataset",
        f"features/{'0' * 32}.parquet": "features",
        "snapshots/.00000004.json.0123456789abcdef.tmp": "temporary",
        f"{named}/X/data/c/.0.0123456789abcdef.tmp": "temporary",
    }
    for path, kind in found.items():
        where = store / path if kind in ("features", "temporary") else store / path / "X/000000.data"
        where.write(b"12345")
    return found


def leave_foreign_files(store: StoreLocation) -> set[str]:
    """Leave what somebody else put there, of names that are nearly ours."""
    found = {
        "README.md",
        "notes/scratch/x.0123456789ab/y",
        "scratch/notes.txt",
        "scratch/.hidden.ab/x",
        "datasets/mine/data",
        "datasets/x.0123xyz/data",
        "datasets/x y.0123/data",
        "features/genes.parquet",
        f"features/{'0' * 31}.parquet",
        f"features/{'0' * 32}.csv",
        "snapshots/.x.tmp",
        "snapshots/00000001.json.bak",
    }
    for path in found:
        (store / path).write(b"mine")
    return found


@pytest.mark.parametrize("keep", [None, 1])
def test_garbage_goes_and_what_is_not_ours_stays(store: StoreLocation, keep: int | None) -> None:
    plan_vacuum(store, keep_snapshots=keep).run()
    whole = paths(store)
    foreign = leave_foreign_files(store)
    garbage = leave_garbage(store)
    aged(store, 30)
    plan = plan_vacuum(store, keep_snapshots=keep)
    assert {item.path: item.kind for item in plan.garbage} == garbage
    assert plan.nbytes == 5 * len(garbage)
    plan.run()
    assert paths(store) == whole | foreign
    assert daodask.validate_store(store).ok


def test_what_is_young_stays(store: StoreLocation) -> None:
    garbage = leave_garbage(store)
    plan = plan_vacuum(store)
    assert plan.garbage == ()
    assert {item.path for item in plan.young} == set(garbage)
    plan.run()
    assert set(garbage) <= paths(store) | {p.rsplit("/", 2)[0] for p in paths(store)}


def test_one_young_file_keeps_a_dataset_and_its_scratch(store: StoreLocation) -> None:
    leave_garbage(store)
    aged(store, 30)
    (store / "scratch/x.0123456789ab/receipts/block-000001.json").write(b"{}")
    assert {item.path for item in plan_vacuum(store).young} == {"scratch/x.0123456789ab", "datasets/x.0123456789ab"}


def test_empty_directories_of_killed_builders_go(store: StoreLocation) -> None:
    for path in ("scratch/x.0123", "datasets/x.0123/X/data"):
        os.makedirs(f"{store.path}/{path}")
    assert plan_vacuum(store).garbage == ()
    aged(store, 30)
    assert [(i.path, i.n_files) for i in plan_vacuum(store).garbage] == [("scratch/x.0123", 0), ("datasets/x.0123", 0)]
    plan_vacuum(store).run()
    assert (store / "scratch").exists() is False
    assert [name.split(".")[0] for name in (store / "datasets").list()] == ["a", "a", "b"]


def test_where_there_are_no_directories(elsewhere: StoreLocation) -> None:
    build(elsewhere, a=0)
    build(elsewhere, replace=True, a=100)
    (elsewhere / "scratch/x.0123/X/000000.data").write(b"12345")
    assert plan_vacuum(elsewhere, keep_snapshots=1).garbage == ()
    report = plan_vacuum(elsewhere, keep_snapshots=1, grace=timedelta(0)).run()
    assert [item.kind for item in report.removed] == ["snapshot", "scratch", "dataset"]
    assert tops(elsewhere) == {"snapshots/00000002", "datasets/a", next(p for p in tops(elsewhere) if "features" in p)}
    assert daodask.validate_store(elsewhere).ok


# -- beside builders ---------------------------------------------------------------------------------------------------


def test_what_was_committed_or_written_since_the_plan_is_spared(store: StoreLocation) -> None:
    plan_vacuum(store, keep_snapshots=1).run()
    leave_garbage(store)
    build(store, replace=True, a=0)
    daodask.remove_datasets(store, "a")
    aged(store, 30)
    plan = plan_vacuum(store, keep_snapshots=1)
    again = [item.path for item in plan.garbage if item.path.startswith("datasets/a.")]
    assert len(again) == 2
    (store / "scratch/x.0123456789ab/genes/X.npy").write(b"a builder goes on")
    build(store, a=0)
    aged(store, 30, "datasets")  # so that only the snapshot says so
    report = plan.run()
    named = daodask.open_store(store).snapshot.dataset["a"].path
    assert named in again
    assert {item.path for item in report.spared} == {named, "scratch/x.0123456789ab", "datasets/x.0123456789ab"}
    assert {item.path for item in report.removed} == {item.path for item in plan.garbage} - {
        item.path for item in report.spared
    }
    assert daodask.validate_store(store).ok


def test_a_builder_that_needs_an_old_feature_table_makes_it_young(store: StoreLocation) -> None:
    shutil.rmtree(f"{store.path}/snapshots")
    aged(store, 30)
    (table,) = (store / "features").list()
    build(store, a=0)
    assert time.time() - os.path.getmtime(f"{store.path}/features/{table}") < DAY


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("after", range(8))
def test_an_interrupted_one_leaves_a_whole_store_and_a_next_one_does_the_rest(
    store: StoreLocation, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.path + "-whole"
    shutil.copytree(store.path, whole)
    for location in (store, StoreLocation.parse(whole)):
        leave_garbage(location)
        aged(location, 30)
    wanted = plan_vacuum(whole, keep_snapshots=1).run()
    assert len(wanted.removed) == 10
    remove, numbers = StoreLocation.remove, itertools.count()

    def interrupted(location: StoreLocation) -> None:
        if next(numbers) == after:
            victim = next(iter(location.files()), None)
            if victim is not None:  # half of a directory is gone
                os.unlink(f"{location.path}/{victim.path}".rstrip("/"))
            raise Interrupted
        remove(location)

    plan = plan_vacuum(store, keep_snapshots=1)
    with monkeypatch.context() as patch:
        patch.setattr(StoreLocation, "remove", interrupted)
        with pytest.raises(Interrupted):
            plan.run()
    assert daodask.validate_store(store).ok
    assert daodask.open_store(store).to_anndata().n_obs == 6
    aged(store, 30)
    plan_vacuum(store, keep_snapshots=1).run()
    assert paths(store) == paths(StoreLocation.parse(whole))


def test_builds_go_on_after_a_vacuum(store: StoreLocation) -> None:
    plan_vacuum(store, keep_snapshots=1).run()
    assert build(store, b=10).snapshot == 4
    assert daodask.open_store(store).to_anndata().obs_names.tolist() == [
        *(f"cell{r}" for r in range(100, 106)),
        *(f"cell{r}" for r in range(10, 16)),
    ]


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_nothing_is_removed_where_a_snapshot_can_not_be_read(store: StoreLocation) -> None:
    (store / "snapshots/00000002.json").write(b"{}")
    with pytest.raises(FormatError):
        plan_vacuum(store)


def test_there_must_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "datasets/x.0123").mkdir(parents=True)
    with pytest.raises(StoreNotFoundError):
        plan_vacuum(tmp_path, grace="0")
    assert (tmp_path / "datasets/x.0123").exists()


@pytest.mark.parametrize("keep", [0, -1])
def test_the_newest_is_never_removed(store: StoreLocation, keep: int) -> None:
    with pytest.raises(SpecError, match="expected at least 1, as the newest is the store"):
        plan_vacuum(store, keep_snapshots=keep)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("7d", 7 * DAY),
        ("7", 7 * DAY),
        ("12h", 43_200),
        ("1.5 h", 5400),
        ("30m", 1800),
        ("90s", 90),
        ("2w", 14 * DAY),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1d", "7 days", "1y", "d", "1e3s", "nan"])
def test_no_durations(text: str) -> None:
    with pytest.raises(SpecError, match="grace: expected a time such as 7d, 12h or 0"):
        parse_duration(text)


def test_no_negative_time() -> None:
    with pytest.raises(SpecError, match="grace: expected no negative time"):
        parse_duration(timedelta(seconds=-1))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".a.0123456789abcdef.tmp", True),
        ("x/y/.00000001.json.0123456789abcdef.tmp", True),
        ("a.0123456789abcdef.tmp", False),
        (".a.0123456789abcde.tmp", False),
        (".0123456789abcdef.tmp", False),
        (".a.0123456789abcdef.tmp/x", False),
    ],
)
def test_names_of_half_files(path: str, expected: bool) -> None:
    assert is_temporary(path) is expected


# -- what it shows -----------------------------------------------------------------------------------------------------


def test_what_a_plan_shows(store: StoreLocation) -> None:
    leave_garbage(store)
    then = 1_700_000_000  # 2023-11-14 22:13:20 UTC
    for directory, _, names in os.walk(store.path):
        for name in names:
            os.utime(f"{directory}/{name}", (then, then))
    (store / "scratch/x.0123456789ab/y").write(b"123")
    lines = repr(plan_vacuum(store, grace="1w")).splitlines()
    assert lines[0] == f"{store}: 4 files, 20 B, to remove; the newest snapshot is 3"
    assert (
        lines[2]
        == f"  features         5 B        1 file  last written 2023-11-14 22:13 UTC  features/{'0' * 32}.parquet"
    )
    assert lines[5] == "left, as somebody wrote there within 1 w or it is in use again:"
    assert [line.split("  ")[-1] for line in lines[6:]] == ["scratch/x.0123456789ab", "datasets/x.0123456789ab"]
    assert repr(plan_vacuum(store).run()).startswith(f"{store}: 4 files, 20 B, removed\n  scratch")
