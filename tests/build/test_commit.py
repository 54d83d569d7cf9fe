"""The end of a build: what other builders committed meanwhile, sources that change, and what is left behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import pytest

import daodask
from daodask.build import tasks
from daodask.snapshots import latest_snapshot
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata


@pytest.fixture(params=["local", "memory", "gcs"])
def store(request: pytest.FixtureRequest, place: Callable[[str], StoreLocation]) -> Iterator[StoreLocation]:
    location = place(request.param)
    yield location
    if request.param == "memory":
        location.remove()


def study(first: int, n_vars: int = 5) -> anndata.AnnData:
    return coordinate_adata(7, n_vars, first=first)


def spec(sources: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {
        "features": {"name": "genes", "reference": "union"},
        "keep": ["row", "extra"],
        "layout": {"block_rows": 3, "chunk_rows": 1, "shard_bytes": 2048},
        "studies": [{"id": name, "source": source, "obsm": ["*"]} for name, source in sources.items()],
        **top,
    }


def build(store: StoreLocation, replace: bool = False, **sources: Any) -> daodask.BuildReport:
    return daodask.build_store(spec(sources), store, replace=replace, progress=False)


def statuses(report: daodask.BuildReport) -> dict[str, str]:
    return {s.id: s.status for s in report.studies}


def firsts(store: StoreLocation, snapshot: int | None = None) -> dict[str, int]:
    """Number of the first row of each dataset, which tells its content."""
    obs = daodask.open_store(store, snapshot=snapshot).to_anndata().obs
    return {str(k): int(v) for k, v in obs.groupby("dataset", observed=True)["row"].min().items()}


def digests(store: StoreLocation, *, below: str = "") -> dict[str, str]:
    names = [f.path for f in store.files() if f.path.startswith(below) and not f.path.startswith("snapshots")]
    return {name: hashlib.sha256((store / name).read()).hexdigest() for name in names}


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return what lets somebody else have a turn just before the next snapshot is created."""
    create = StoreLocation.create

    def by(turn: Callable[[], object]) -> None:
        def late(location: StoreLocation, data: bytes) -> bool:
            if "/snapshots/" in location.url:
                monkeypatch.setattr(StoreLocation, "create", create)
                turn()
            return create(location, data)

        monkeypatch.setattr(StoreLocation, "create", late)

    return by


# -- other builders ----------------------------------------------------------------------------------------------------

MEANWHILE = "another builder has meanwhile committed another dataset 'a' (snapshot {}); build again with --replace"


def test_of_two_contents_of_one_id_the_first_wins(store: StoreLocation, overtaken: Any) -> None:
    overtaken(lambda: build(store, a=study(100), c=study(200)))
    report = build(store, a=study(0), b=study(300))
    assert statuses(report) == {"a": "refused", "b": "built"}
    assert report.studies[0].reason.startswith(MEANWHILE.format(1))
    assert firsts(store) == {"a": 100, "c": 200, "b": 300}
    assert (report.snapshot, report.committed, report.ok) == (2, True, False)
    # What was built is kept, so that it has only to be put there where that is wanted.
    again = build(store, replace=True, a=study(0), b=study(300))
    assert statuses(again) == {"a": "replaced", "b": "unchanged"}
    assert firsts(store) == {"a": 0, "c": 200, "b": 300}
    assert daodask.validate_store(store).ok


def test_of_two_replacements_the_first_wins(store: StoreLocation, overtaken: Any) -> None:
    build(store, a=study(0))
    overtaken(lambda: build(store, replace=True, a=study(100)))
    report = build(store, replace=True, a=study(200))
    assert statuses(report) == {"a": "refused"}
    assert report.studies[0].reason.startswith(MEANWHILE.format(2))
    assert (report.snapshot, report.committed) == (2, False)
    assert firsts(store) == {"a": 100}


def test_the_same_content_is_there_once_and_nobody_fails(store: StoreLocation, overtaken: Any) -> None:
    overtaken(lambda: build(store, a=study(0)))
    report = build(store, a=study(0))
    assert statuses(report) == {"a": "unchanged"}
    assert (report.snapshot, report.committed, report.ok) == (1, False, True)
    assert report.studies[0].n_obs == 7
    assert daodask.validate_store(store).ok


def test_what_was_removed_meanwhile_is_put_back_by_who_replaces_it(store: StoreLocation, overtaken: Any) -> None:
    build(store, a=study(0), b=study(50))
    overtaken(lambda: daodask.remove_datasets(store, "a"))
    assert statuses(build(store, replace=True, a=study(100))) == {"a": "replaced"}
    assert firsts(store) == {"b": 50, "a": 100}


def test_a_column_that_does_not_go_with_what_is_new_refuses_its_study_alone(
    store: StoreLocation, overtaken: Any
) -> None:
    text, number = study(0), study(100)
    text.obs["extra"], number.obs["extra"] = "x", 1
    overtaken(lambda: build(store, theirs=text))
    report = build(store, mine=number, other=study(200))
    assert statuses(report) == {"mine": "refused", "other": "built"}
    assert "obs column 'extra' is string in 'theirs' but int64 in 'mine'" in report.studies[0].reason
    assert list(firsts(store)) == ["theirs", "other"]


def test_other_genes_under_the_name_of_the_feature_space(store: StoreLocation, overtaken: Any) -> None:
    overtaken(lambda: build(store, theirs=study(0, n_vars=6)))
    report = build(store, mine=study(100))
    assert statuses(report) == {"mine": "refused"}
    assert report.studies[0].reason == (
        "the store meanwhile has a feature space 'genes' with other genes; name yours anew"
    )
    assert (report.snapshot, report.committed) == (1, False)
    assert firsts(store) == {"theirs": 0}


def test_builders_of_the_same_at_once(tmp_path: Path) -> None:
    store, alone = StoreLocation.parse(tmp_path / "store"), StoreLocation.parse(tmp_path / "alone")
    reports: list[daodask.BuildReport] = []
    sources = {"a": study(0), "b": study(50)}
    builders = [threading.Thread(target=lambda: reports.append(build(store, **sources))) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(reports) == 4
    # One may find the scratch gone that another, who was done, has removed; then it says so, and the next one is right.
    assert any(report.ok for report in reports)
    assert {s.status for report in reports for s in report.studies} <= {"built", "unchanged", "failed"}
    assert statuses(build(store, **sources)) == {"a": "unchanged", "b": "unchanged"}
    build(alone, **sources)
    daodask.plan_vacuum(store, grace="0").run()
    assert digests(store) == digests(alone)


# -- sources that change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("n_vars", [5, 6])
def test_a_source_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, n_vars: int
) -> None:
    store, path = StoreLocation.parse(tmp_path / "store"), tmp_path / "a.h5ad"
    study(0).write_h5ad(path)
    before = path.read_bytes()
    stage = tasks._stage_block

    def changing(job: Any, source: Any, number: int) -> Any:
        receipt = stage(job, source, number)
        if "/a." in job.dataset.url and number == block:
            os.unlink(path)
            study(100, n_vars).write_h5ad(path)
        return receipt

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_stage_block", changing)
        report = build(store, a=path, b=study(50))
    assert statuses(report) == {"a": "failed", "b": "built"}
    assert report.studies[0].reason == (
        f"expected {path} to stay as it is while it is read, but it was changed; build again when nobody writes to it "
        f"any more"
    )
    assert list(firsts(store)) == ["b"]
    assert [f.path for f in store.files() if "/a." in f.path] == []
    # As it was: what is built is of the old content through and through.
    path.write_bytes(before)
    assert statuses(build(store, a=path, b=study(50))) == {"a": "built", "b": "unchanged"}
    assert firsts(store) == {"b": 50, "a": 0}


@pytest.mark.parametrize("when", ["before its obs is read", "after"])
def test_a_source_that_changes_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    store, path = StoreLocation.parse(tmp_path / "store"), tmp_path / "a.h5ad"
    study(0).write_h5ad(path)
    look = tasks._facts

    def changed() -> None:
        # At once: there is never no file, whenever another thread looks.
        study(100, 6).write_h5ad(tmp_path / "other.h5ad")
        os.replace(tmp_path / "other.h5ad", path)

    def changing(source: Any, spec: Any, *others: Any) -> Any:
        if spec.id == "a" and when != "after":
            changed()
        facts = look(source, spec, *others)
        if spec.id == "a" and when == "after":
            changed()
        return facts

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_facts", changing)
        report = build(store, a=path, b=study(50))
    assert statuses(report) == {"a": "failed", "b": "built"}
    assert f"expected {path} to stay as it is" in report.studies[0].reason
    assert firsts(store) == {"b": 50}


def test_a_block_read_of_a_changed_source_has_no_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build is killed in the middle of a file that is being rewritten, and goes on when that is as it was."""
    store, path = StoreLocation.parse(tmp_path / "store"), tmp_path / "a.h5ad"
    study(0).write_h5ad(path)
    before, times = path.read_bytes(), os.stat(path)
    stage, check = tasks._stage_block, tasks._check_unchanged

    class Killed(BaseException):
        pass

    def changing(job: Any, source: Any, number: int) -> Any:
        if number == 1:
            os.unlink(path)
            study(100).write_h5ad(path)
            source = tasks.open_source(daodask.load_spec(spec({"a": path})).studies[0].source)
        return stage(job, source, number)

    def killed(*arguments: Any) -> None:
        try:
            check(*arguments)
        except tasks.SourceError as error:
            raise Killed from error

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_stage_block", changing)
        patch.setattr(tasks, "_check_unchanged", killed)
        with pytest.raises(Killed):
            build(store, a=path)
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert build(store, a=path).ok
    rows = daodask.open_store(store).to_anndata()
    assert rows.X.toarray().tolist() == study(0).X.toarray().tolist()


# -- what is left behind -----------------------------------------------------------------------------------------------


def test_scratch_that_a_crash_after_the_commit_left_is_cleared(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    create = StoreLocation.create

    def crashing(location: StoreLocation, data: bytes) -> bool:
        create(location, data)
        if "/snapshots/" in location.url:
            raise Crash
        return True

    with monkeypatch.context() as patch:
        patch.setattr(StoreLocation, "create", crashing)
        with pytest.raises(Crash):
            build(store, a=study(0))
    assert firsts(store) == {"a": 0}
    assert any(f.path.startswith("scratch/a.") for f in store.files())
    assert statuses(build(store, a=study(0))) == {"a": "unchanged"}
    assert {f.path.partition("/")[0] for f in store.files()} == {"snapshots", "features", "datasets"}


def test_no_empty_directories_stay(tmp_path: Path) -> None:
    negative = study(0)
    negative.X.data[-1] = -1
    store = StoreLocation.parse(tmp_path / "store")
    assert statuses(build(store, bad=negative)) == {"bad": "refused"}
    assert store.list() == ()
    assert statuses(build(store, bad=negative, good=study(50))) == {"bad": "refused", "good": "built"}
    assert store.list() == ("datasets", "features", "snapshots")
    empty = [directory for directory, folders, files in os.walk(store.path) if not folders and not files]
    assert empty == []


@pytest.mark.parametrize("what", ["X/data/c/0", "obs.parquet", "zarr.json", "obsm/place/c/1/0", "checksums.json"])
@pytest.mark.parametrize("how", ["removed", "cut"])
def test_what_is_not_there_as_it_was_written_is_not_committed(
    store: StoreLocation, monkeypatch: pytest.MonkeyPatch, what: str, how: str
) -> None:
    check = tasks.check_files

    def damaged(dataset: StoreLocation, files: Any) -> None:
        where = dataset / what
        where.fs.rm(where.path) if how == "removed" else where.fs.pipe_file(where.path, where.read()[:-1])
        check(dataset, files)

    with monkeypatch.context() as patch:
        patch.setattr("daodask.build.steps.check_files", damaged)
        report = build(store, a=study(0), b=study(50))
    assert statuses(report) == {"a": "failed", "b": "failed"}
    assert what in report.studies[0].reason
    assert "run the same build again" in report.studies[0].reason
    assert latest_snapshot(store) is None
    assert build(store, a=study(0), b=study(50)).ok
    assert daodask.validate_store(store).ok


def test_half_files_of_killed_writers_are_not_in_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, check = StoreLocation.parse(tmp_path / "store"), tasks.check_files

    def littered(dataset: StoreLocation, files: Any) -> None:
        (dataset / "X/data/c/.0.0123456789abcdef.tmp").write(b"half")
        check(dataset, files)

    monkeypatch.setattr("daodask.build.steps.check_files", littered)
    assert build(store, a=study(0)).ok
    assert [f.path for f in store.files() if f.path.endswith(".tmp")] == []


# -- adding ------------------------------------------------------------------------------------------------------------


def test_adding_writes_nothing_that_is_there(store: StoreLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    build(store, a=study(0), b=study(50))
    before = {f.path: f for f in store.files()}
    inodes = {path: os.stat(f"{store.path}/{path}").st_ino for path in before} if store.is_local else {}
    written: list[str] = []
    for name in ("write", "create", "remove"):
        method = getattr(StoreLocation, name)

        def recorded(location: StoreLocation, *data: bytes, _method: Any = method, **options: bool) -> Any:
            written.append(location.path.removeprefix(f"{store.path}/"))
            return _method(location, *data, **options)

        monkeypatch.setattr(StoreLocation, name, recorded)
    assert build(store, c=study(100), b=study(50)).ok
    assert build(store, replace=True, a=study(150)).ok
    daodask.remove_datasets(store, "c")
    assert len(written) > 50
    assert [path for path in written if any(p == path or p.startswith(f"{path}/") for p in before)] == []
    after = {f.path: f for f in store.files()}
    assert {path: after[path] for path in before} == before
    assert inodes == ({path: os.stat(f"{store.path}/{path}").st_ino for path in before} if store.is_local else {})


def test_a_feature_table_that_is_gone_is_written_again(tmp_path: Path) -> None:
    store = StoreLocation.parse(tmp_path / "store")
    build(store, a=study(0))
    shutil.rmtree(f"{store.path}/snapshots")
    shutil.rmtree(f"{store.path}/features")
    assert build(store, a=study(0)).ok
    assert daodask.validate_store(store).ok
