"""Removing datasets, and the log of who did what."""

from __future__ import annotations

import getpass
import itertools
import json
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import daodask
from daodask.cli import main
from daodask.errors import StoreNotFoundError, UnknownNameError
from daodask.snapshots import author, read_snapshot, snapshot_numbers
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata, coordinate_counts, random_store

NUMBER = itertools.count()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreLocation]:
    """Return a store of three studies, of 4, 0 and 3 cells."""
    monkeypatch.setenv("DAODASK_AUTHOR", "ada@lovelace")
    location = StoreLocation.parse(f"memory://history-{next(NUMBER)}")
    random_store(location, (4, 0, 3), n_vars=5, block_rows=3)
    yield location
    location.remove()


# -- removing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "left", "rows"),
    [
        ("study0", ["study1", "study2"], [4, 5, 6]),
        (["study1"], ["study0", "study2"], [0, 1, 2, 3, 4, 5, 6]),
        (["study2", "study0", "study2"], ["study1"], []),
        (["study0", "study1", "study2"], [], []),
    ],
)
def test_removing(store: StoreLocation, gone: str | list[str], left: list[str], rows: list[int]) -> None:
    before = {file.path for file in store.files()}
    snapshot = daodask.remove_datasets(store, gone)
    assert (snapshot.number, [d.id for d in snapshot.datasets]) == (2, left)
    assert {file.path for file in store.files()} == before | {"snapshots/00000002.json"}
    opened = daodask.open_store(store)
    assert opened.X.compute().toarray().tolist() == coordinate_counts(rows, 5).toarray().tolist()
    assert opened.to_anndata().obs_names.tolist() == [f"cell{r}" for r in rows]
    assert daodask.validate_store(store).ok
    assert daodask.open_store(store, snapshot=1).n_obs == 7


def test_labels_keep_their_codes(store: StoreLocation) -> None:
    before = read_snapshot(store).features[0].obs
    daodask.remove_datasets(store, "study0")
    after = {column.name: column for column in read_snapshot(store).features[0].obs}
    assert [after[c.name].categories[: len(c.categories)] for c in before] == [c.categories for c in before]


def test_columns_that_only_they_had_go(store: StoreLocation) -> None:
    more = coordinate_adata(2, 5, first=7)
    more.obs["own"] = 1.5
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "keep": "all",
        "studies": [{"id": "more", "source": more, "layers": {"half": "layers/half"}, "obsm": ["*"]}],
    }
    assert daodask.build_store(spec, store, progress=False).ok
    assert "own" in [c.name for c in read_snapshot(store).features[0].obs]
    daodask.remove_datasets(store, "more")
    assert read_snapshot(store).features == read_snapshot(store, 1).features


@pytest.mark.parametrize("ids", ["study", ["study0", "study9"]])
def test_what_is_not_there_can_not_be_removed(store: StoreLocation, ids: str | list[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"has no dataset 'study9?'; did you mean 'study\d'\?"):
        daodask.remove_datasets(store, ids)
    assert snapshot_numbers(store) == (1,)


def test_nothing_to_remove_commits_nothing(store: StoreLocation) -> None:
    assert daodask.remove_datasets(store, []).number == 1
    assert snapshot_numbers(store) == (1,)


def test_no_store_is_made_by_removing(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        daodask.remove_datasets(tmp_path / "none", [])
    assert not (tmp_path / "none").exists()


# -- the log -----------------------------------------------------------------------------------------------------------


def replaced(store: StoreLocation) -> None:
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "studies": [{"id": i, "source": coordinate_adata(2, 5, first=f)} for i, f in (("study2", 20), ("new", 30))],
    }
    assert daodask.build_store(spec, store, replace=True, progress=False).ok


def test_a_log(store: StoreLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAODASK_AUTHOR", "grace@hopper")
    daodask.remove_datasets(store, "study0", message="consent withdrawn")
    replaced(store)
    log = daodask.read_log(store)
    assert [
        (e.snapshot, e.author, e.message, e.n_datasets, e.n_obs, e.added, e.removed, e.replaced) for e in log.entries
    ] == [
        (3, "grace@hopper", "build: study2, new", 3, 4, ("new",), (), ("study2",)),
        (2, "grace@hopper", "consent withdrawn", 2, 3, (), ("study0",), ()),
        (1, "ada@lovelace", "build: study0, study1, study2", 3, 7, ("study0", "study1", "study2"), (), ()),
    ]
    for entry in log.entries:
        assert entry.written_by == f"daodask {daodask.__version__}"
        assert datetime.fromisoformat(entry.created).utcoffset() == timedelta(0)
    times = [datetime.fromisoformat(e.created).strftime("%Y-%m-%d %H:%M UTC") for e in log.entries]
    assert repr(log) == (
        f"{store}\n\n"
        f"snapshot 3, {times[0]}, grace@hopper, daodask {daodask.__version__}\n"
        "  build: study2, new\n  holds 3 datasets, 4 cells\n  added: new\n  replaced: study2\n\n"
        f"snapshot 2, {times[1]}, grace@hopper, daodask {daodask.__version__}\n"
        "  consent withdrawn\n  holds 2 datasets, 3 cells\n  removed: study0\n\n"
        f"snapshot 1, {times[2]}, ada@lovelace, daodask {daodask.__version__}\n"
        "  build: study0, study1, study2\n  holds 3 datasets, 7 cells\n  added: study0, study1, study2"
    )
    assert json.loads(log.to_json())["entries"][1] == {
        "snapshot": 2,
        "created": log.entries[1].created,
        "author": "grace@hopper",
        "written_by": f"daodask {daodask.__version__}",
        "message": "consent withdrawn",
        "n_datasets": 2,
        "n_obs": 3,
        "added": [],
        "removed": ["study0"],
        "replaced": [],
    }


def test_a_log_after_a_vacuum(store: StoreLocation) -> None:
    replaced(store)
    daodask.plan_vacuum(store, grace="0", keep_snapshots=1).run()
    (entry,) = daodask.read_log(store).entries
    assert (entry.snapshot, entry.n_datasets, entry.added, entry.removed, entry.replaced) == (2, 4, None, None, None)
    assert "nothing can be said" in repr(daodask.read_log(store))


def test_who_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAODASK_AUTHOR", raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "engine")
    assert author() == "ada@engine"

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert author() == "4711@engine"
    monkeypatch.setenv("DAODASK_AUTHOR", "the curators")
    assert author() == "the curators"


# -- the commands ------------------------------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DAODASK_AUTHOR", "ada@lovelace")
    url = str(tmp_path / "store")
    random_store(url, (4, 0, 3), n_vars=5, block_rows=3)
    assert main(["remove", url, "study0", "study1", "--message", "why not"]) == 0
    expected = f"{url}: snapshot 2 committed without study0, study1; earlier snapshots have them still\n"
    assert capsys.readouterr().out == expected
    assert main(["log", url]) == 0
    assert capsys.readouterr().out == f"{daodask.read_log(url)}\n"
    assert main(["log", url, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(e["snapshot"], e["author"], e["message"]) for e in shown["entries"]] == [
        (2, "ada@lovelace", "why not"),
        (1, "ada@lovelace", "build: study0, study1, study2"),
    ]
    before = {p for p in Path(url).rglob("*") if p.is_file()}
    for arguments in ([], ["--dry-run"]):
        assert main(["vacuum", url, "--keep-snapshots", "1", "--grace", "0", *arguments]) == 0
        assert capsys.readouterr().out.endswith("\nnothing was removed: --delete does it\n")
    assert {p for p in Path(url).rglob("*") if p.is_file()} == before
    assert main(["vacuum", url, "--keep-snapshots", "1", "--delete"]) == 0
    assert capsys.readouterr().out == f"{url}: 0 files, 0 B, removed\n"
    assert main(["vacuum", url, "--keep-snapshots", "1", "--grace", "0", "--delete"]) == 0
    assert "removed\n  snapshot" in capsys.readouterr().out
    assert sorted(p.name.split(".")[0] for p in (Path(url) / "datasets").iterdir()) == ["study2"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["remove", "URL", "study7"], 2, "has no dataset 'study7'; did you mean"),
        (["remove", "URL-none", "study0"], 3, "expected a daodask store at"),
        (["log", "URL-none"], 3, "expected a daodask store at"),
        (["vacuum", "URL-none"], 3, "expected a daodask store at"),
        (["vacuum", "URL", "--grace", "soon"], 2, "grace: expected a time such as 7d, 12h or 0, got 'soon'"),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")
    random_store(url, (2,), n_vars=3, block_rows=3)
    assert main([a.replace("URL", url) for a in arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"daodask {arguments[0]}: ")
    assert message in shown.err


@pytest.mark.parametrize("arguments", [["--keep-snapshots", "0"], ["--dry-run", "--delete"], ["--keep-snapshots", "x"]])
def test_usage(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["vacuum", str(tmp_path), *arguments])
    assert end.value.code == 2
