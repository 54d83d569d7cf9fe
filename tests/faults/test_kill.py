"""``kill -9`` of the client, of workers and of the scheduler, at random instants, in processes of their own.

After each: the store opens at its last snapshot, the same build finishes the rest without repeating a finished block,
and what is there then is, byte for byte, what an undisturbed build makes. ``-m soak`` does it dozens of times.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import pytest
import yaml
from distributed.core import Status

import daodask
from daodask.build import tasks
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata

if TYPE_CHECKING:
    from distributed import Client

HERE = Path(__file__).parent
SIZES = {"one": 60, "two": 45, "three": 30}
#: Between the writes of a process that is to be killed: a build has about 90 of them.
PAUSE = 0.005

#: What takes longer than a test may.
SOAK = [pytest.mark.soak, pytest.mark.timeout(3600)]
#: How often: in every run, and with ``-m soak``.
FEW_AND_MANY = [pytest.param(4, id="few"), pytest.param(40, id="many", marks=SOAK)]


class Server:
    """The process that forks those that build, see processes.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(daodask.__file__).parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "processes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._answer() == {"ready": True}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _say(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def start(self, spec: Path, url: Path, scheduler: str | None = None) -> int:
        self._say({"spec": str(spec), "url": str(url), "scheduler": scheduler, "pause": PAUSE})
        return int(self._answer()["child"])

    def end(self) -> tuple[int, str]:
        """Exit code of the last one started, and the error that it told."""
        self._say({})
        answer, error = self._answer(), ""
        if "error" in answer:
            error, answer = answer["error"], self._answer()
        return answer["ended"], error

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a build file of three studies, with several blocks and shards each."""
    folder = tmp_path_factory.mktemp("kill")
    first = 0
    for name, size in SIZES.items():
        coordinate_adata(size, first=first).write_h5ad(folder / f"{name}.h5ad")
        first += size
    document = {
        "features": {"name": "genes", "reference": "union"},
        "layout": {"block_rows": 12, "chunk_rows": 4, "shard_bytes": 4096},
        "studies": [{"id": name, "source": f"{name}.h5ad", "obsm": ["*"]} for name in SIZES],
    }
    (folder / "atlas.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    document["studies"] = document["studies"][:1]
    (folder / "first.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "atlas.yaml"


def contents(store: Path) -> dict[str, bytes]:
    """Every file but the snapshots, which tell the time."""
    paths = (p for p in store.rglob("*") if p.is_file() and p.parent.name != "snapshots")
    return {str(p.relative_to(store)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def begun(spec: Path) -> Path:
    """Return a store with the first study in it; tests copy it."""
    store = spec.parent / "begun"
    assert daodask.build_store(spec.parent / "first.yaml", store, progress=False).ok
    return store


@pytest.fixture(scope="module")
def whole(spec: Path, begun: Path) -> dict[str, bytes]:
    """Return the files of an undisturbed build of all three."""
    store = spec.parent / "whole"
    shutil.copytree(begun, store)
    assert daodask.build_store(spec, store, progress=False).ok
    return contents(store)


def receipts(store: Path) -> set[tuple[str, int]]:
    """Blocks that are done."""
    paths = (store / "scratch").glob("*/receipts/block-*.json")
    return {(p.parts[-3].split(".")[0], int(p.stem.removeprefix("block-"))) for p in paths}


BLOCKS = {(name, block) for name in ("two", "three") for block in range(-(-SIZES[name] // 12))}


def check_last_snapshot(store: Path, begun: Path) -> bool:
    """Check that nothing of the last snapshot is missing; whether the killed build had committed."""
    found = daodask.open_store(store)
    assert found.snapshot.number in (1, 2)
    assert [d.id for d in found.snapshot.datasets] == (
        ["one", "two", "three"] if found.snapshot.number == 2 else ["one"]
    )
    before = contents(begun)
    assert {p: data for p, data in contents(store).items() if p in before} == before
    assert found.to_anndata().obs_names.tolist() == [f"cell{i}" for i in range(found.n_obs)]
    return found.snapshot.number == 2


def check_resumption(store: Path, spec: Path, whole: dict[str, bytes], staged: list[tuple[str, int]]) -> None:
    """Run the same build again: it does what is left, and no more, and comes to the same bytes."""
    done = receipts(store)
    committed = daodask.open_store(store).snapshot.number == 2
    staged.clear()
    report = daodask.build_store(spec, store, progress=False)
    assert report.ok
    assert sorted(staged) == ([] if committed else sorted(BLOCKS - done))
    assert contents(store) == whole
    assert daodask.validate_store(store).ok
    assert {p.name for p in store.iterdir()} == {"snapshots", "features", "datasets"}


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list of the blocks that this process stages."""
    seen: list[tuple[str, int]] = []
    stage = tasks._stage_block

    def counted(job: Any, source: Any, block: int) -> Any:
        seen.append((job.scratch.name.split(".")[0], block))
        return stage(job, source, block)

    monkeypatch.setattr(tasks, "_stage_block", counted)
    return seen


@pytest.fixture
def copies(tmp_path: Path, begun: Path) -> Callable[[], Path]:
    numbers = iter(range(1000))

    def copy() -> Path:
        store = tmp_path / f"store{next(numbers)}"
        shutil.copytree(begun, store)
        return store

    return copy


# -- the client --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [pytest.param(8, id="few"), pytest.param(60, id="many", marks=SOAK)])
def test_a_client_that_does_the_work(
    times: int,
    server: Server,
    spec: Path,
    begun: Path,
    whole: dict[str, bytes],
    copies: Callable[[], Path],
    staged: list[tuple[str, int]],
) -> None:
    undisturbed = copies()
    began = time.monotonic()
    server.start(spec, undisturbed)
    assert server.end() == (0, "")
    seconds = time.monotonic() - began
    assert contents(undisturbed) == whole
    instants, killed, resumed = random.Random(1), 0, 0  # noqa: S311
    for k in range(times):
        store = copies()
        child = server.start(spec, store)
        # One in each of so many equal parts of the time that it takes.
        time.sleep(seconds * (k + instants.random()) / times)
        os.kill(child, signal.SIGKILL)
        killed += server.end() == (-signal.SIGKILL, "")
        check_last_snapshot(store, begun)
        resumed += bool(receipts(store))
        check_resumption(store, spec, whole, staged)
    assert killed > times / 2
    assert resumed > 0


def test_a_client_of_a_cluster(
    client: Client,
    server: Server,
    spec: Path,
    begun: Path,
    whole: dict[str, bytes],
    copies: Callable[[], Path],
    staged: list[tuple[str, int]],
) -> None:
    for delay in (0.2, 0.5):
        store = copies()
        child = server.start(spec, store, client.scheduler.address)
        until(lambda store=store: bool(receipts(store)), 60)
        time.sleep(delay * random.Random(delay).random())  # noqa: S311
        os.kill(child, signal.SIGKILL)
        server.end()
        # What workers are at they finish, for nobody.
        until(lambda: not any(client.run(executing).values()), 60)
        check_last_snapshot(store, begun)
        check_resumption(store, spec, whole, staged)


def executing(dask_worker: Any) -> int:
    return len(dask_worker.state.executing)


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- workers -----------------------------------------------------------------------------------------------------------


class Killer(threading.Thread):
    """Kills a random worker of a cluster at random instants, leaving the nannies time to start others."""

    def __init__(self, client: Client, seed: int, most: int) -> None:
        super().__init__()
        self._client, self._most, self._over = client, most, threading.Event()
        self._random = random.Random(seed)  # noqa: S311
        self.killed = 0

    def run(self) -> None:
        while self.killed < self._most and not self._over.wait(0.02 + 0.2 * self._random.random()):
            if living := self._living():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._random.choice(living), signal.SIGKILL)
                    self.killed += 1

    def _living(self) -> list[int]:
        """Of workers that their nannies know to be up.

        A nanny gives up for good where its worker dies while it starts. Who asks workers themselves waits half a minute
        for one that has just been killed.
        """
        processes = [nanny.process for nanny in self._client.cluster.workers.values()]
        running = [process.pid for process in processes if process and process.status is Status.running]
        return sorted(pid for pid in running if pid)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.killed


@pytest.fixture
def patient() -> Iterator[None]:
    """Let nannies be: 15 s after a worker died Dask ends that of its name, if the next one is away at that moment."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}):
        yield


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("times", FEW_AND_MANY)
@pytest.mark.parametrize("where", ["files", "memory"])
def test_workers(
    times: int,
    where: str,
    client: Client,
    spec: Path,
    begun: Path,
    whole: dict[str, bytes],
    copies: Callable[[], Path],
    staged: list[tuple[str, int]],
) -> None:
    killed = 0
    for k in range(times // 2):
        store = copies()
        what: Any = spec
        if where == "memory":
            what = yaml.safe_load(spec.read_text(encoding="utf-8"))
            firsts = {"one": 0, "two": 60, "three": 105}
            for study in what["studies"]:
                study["source"] = coordinate_adata(SIZES[study["id"]], first=firsts[study["id"]])
            store = store.with_name(f"{store.name}-memory")
        client.run(slowed, 4 * PAUSE)
        killer = Killer(client, seed=k, most=2)
        killer.start()
        report = daodask.build_store(what, store, client=client, progress=False)
        killed += killer.stop()
        assert report.ok, report
        found = daodask.open_store(store)
        assert found.to_anndata().obs_names.tolist() == [f"cell{i}" for i in range(sum(SIZES.values()))]
        assert daodask.validate_store(store).ok
        if where == "files":
            # A killed writer may leave half a file where another builder's scratch was; nothing else is different.
            assert contents(store) == whole
    assert killed > 0
    until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2, 60)
    client.run(unslowed)


def slowed(pause: float) -> None:
    """Make a worker wait before each write, until it is killed or restarted."""
    from daodask.storage import StoreLocation

    write = StoreLocation.write
    if write.__name__ == "slow_write":
        return

    def slow_write(location: StoreLocation, data: bytes, **options: bool) -> None:
        time.sleep(pause)
        write(location, data, **options)

    slow_write.quick = write  # type: ignore[attr-defined]
    StoreLocation.write = slow_write  # type: ignore[method-assign]


def unslowed() -> None:
    from daodask.storage import StoreLocation

    StoreLocation.write = getattr(StoreLocation.write, "quick", StoreLocation.write)  # type: ignore[method-assign]


# -- the scheduler -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster_of_processes(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a scheduler and a worker as ``dask scheduler`` and ``dask worker`` start them."""
    told = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    environment = {**os.environ, "PYTHONPATH": str(Path(daodask.__file__).parents[1])}
    dask = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--scheduler-file", str(told), "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        env=environment,
        **quiet,
    )
    worker = subprocess.Popen(
        [
            *dask,
            "worker",
            "--scheduler-file",
            str(told),
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--death-timeout",
            "60",
        ],
        env=environment,
        **quiet,
    )
    try:
        until(told.exists, 60)
        yield json.loads(told.read_text(encoding="utf-8"))["address"], scheduler
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "delay", [0.0, pytest.param(0.3, marks=pytest.mark.soak), pytest.param(1, marks=pytest.mark.soak)]
)
def test_the_scheduler(
    delay: float,
    cluster_of_processes: tuple[str, subprocess.Popen[bytes]],
    server: Server,
    spec: Path,
    begun: Path,
    whole: dict[str, bytes],
    copies: Callable[[], Path],
    staged: list[tuple[str, int]],
) -> None:
    address, scheduler = cluster_of_processes
    store = copies()
    server.start(spec, store, address)
    until(lambda: bool(receipts(store)), 120)
    time.sleep(delay)
    scheduler.kill()
    killed = time.monotonic()
    code, error = server.end()
    # The connection breaks at once; Dask's own limit, for a scheduler that is silent, is 30 s.
    assert time.monotonic() - killed < 30
    if code:
        assert code == 2
        assert re.match(
            rf"ClusterError: lost the connection to the Dask scheduler at {address}; what is finished is kept", error
        )
    assert check_last_snapshot(store, begun) == (code == 0)
    time.sleep(0.5)  # the worker, which is alone now, finishes what it is at
    check_resumption(store, spec, whole, staged)
