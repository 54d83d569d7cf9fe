"""What befalls a cluster while it reads or builds: workers killed, frozen and cut off, the scheduler killed.

Scheduler and workers are processes of their own, see forge.py. After each fault the result is that of an undisturbed
run, with each cell in it once, or an error of ours within a stated time. ``-m soak`` does it more often.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import pytest
import yaml
from clusters import local_cluster

import daodask
from daodask import BatchLoader
from daodask.batches.schedule import Shuffled
from daodask.errors import ClusterError
from daodask.runners import DaskRunner, Task
from daodask.store import Store
from daodask.testing import coordinate_adata, coordinate_counts, random_store

if TYPE_CHECKING:
    from distributed import Client

#: Nothing here may take longer, whatever else the machine does.
pytestmark = pytest.mark.timeout(120)

SIZES = {"one": 60, "two": 45, "three": 30}
N_OBS, N_VARS = 640, 32
#: Of each read and each write of a worker.
PAUSE = 0.02


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store of 54 blocks."""
    return random_store(tmp_path_factory.mktemp("faults") / "store", (400, 0, 240), block_rows=12)


# -- what a cluster is asked to do -------------------------------------------------------------------------------------


def loader(store: Store, client: Client, **options: Any) -> BatchLoader:
    schedule = Shuffled(run_rows=4, window_rows=20)
    return BatchLoader(store, 10, schedule=schedule, obs=["row"], seed=3, client=client, **options)


def epoch(store: Store, client: Client) -> pd.DataFrame:
    """Return all that an epoch hands out, in its order."""
    batches = list(loader(store, client))
    values = pd.DataFrame(np.concatenate([b.X.toarray() for b in batches]))
    row = pd.concat([b.obs["row"] for b in batches]).to_numpy()
    return values.assign(index=np.concatenate([b.index for b in batches]), row=row)


def mean_var(store: Store, client: Client) -> pd.DataFrame:
    return daodask.mean_var(store, client=client)


def pseudobulk(store: Store, client: Client) -> pd.DataFrame:
    found = daodask.pseudobulk(store, "odd", client=client)
    return found.to_df().assign(n_cells=found.obs["n_cells"].to_numpy())


def lazy_sum(store: Store, client: Client) -> pd.DataFrame:
    sums: Any = client.compute(store.X.sum(axis=0)).result()
    return pd.DataFrame({"sum": np.asarray(sums).ravel()})


def check_all_cells(job: Callable[..., Any], found: pd.DataFrame) -> None:
    """Check that each cell is in the result, and once."""
    counts = coordinate_counts(np.arange(N_OBS), N_VARS).toarray()
    if job is epoch:
        assert sorted(found["index"]) == list(range(N_OBS))
        assert found["row"].tolist() == found["index"].tolist()
        np.testing.assert_array_equal(found[list(range(N_VARS))], counts[found["index"]])
    elif job is mean_var:
        assert (found["n_cells"] == N_OBS).all()
        np.testing.assert_allclose(found["mean"], counts.mean(axis=0))
    elif job is pseudobulk:
        assert found["n_cells"].tolist() == [N_OBS // 2, N_OBS // 2]
        np.testing.assert_array_equal(
            found.drop(columns="n_cells"), [counts[::2].sum(axis=0), counts[1::2].sum(axis=0)]
        )
    else:
        np.testing.assert_array_equal(found["sum"], counts.sum(axis=0))


READS = pytest.mark.parametrize("job", [mean_var, pseudobulk, lazy_sum, epoch])


# -- workers that are killed -------------------------------------------------------------------------------------------


class Killer(threading.Thread):
    """Kills a random worker at random instants, and starts another in its place as a nanny does."""

    def __init__(self, cluster: Any, seed: int, most: int) -> None:
        super().__init__()
        self._cluster, self._most, self._over = cluster, most, threading.Event()
        self._random = random.Random(seed)  # noqa: S311
        self.killed = 0

    def run(self) -> None:
        while self.killed < self._most and not self._over.wait(0.05 + 0.25 * self._random.random()):
            self._cluster.kill(self._random.choice(self._cluster.workers))
            self.killed += 1
            self._cluster.add(pause=PAUSE)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self.join()


@READS
@pytest.mark.parametrize(
    "times",
    [pytest.param(2, id="few"), pytest.param(40, id="many", marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
)
def test_workers_killed_while_they_read(store, start_cluster, times, job):
    cluster, killed = start_cluster(2, pause=PAUSE), 0
    with cluster.connected() as client:
        expected = job(store, client)
        check_all_cells(job, expected)
        for seed in range(times // 2):
            with Killer(cluster, seed, most=2) as killer:
                found = job(store, client)
            killed += killer.killed
            pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert killed >= times // 2


def test_a_window_that_kills_its_workers_is_an_error_of_ours(store, start_cluster):
    cluster = start_cluster(1, {"distributed.scheduler.allowed-failures": 0})
    with cluster.connected() as client:
        with pytest.raises(
            ClusterError, match="every worker that tried 'read-window-.*' died, or was killed for the me"
        ):
            list(loader(store, client, fn=lambda batch: os._exit(1)))
        cluster.add()
        check_all_cells(epoch, epoch(store, client))


# -- the scheduler is killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [mean_var, epoch])
def test_the_scheduler_killed_while_workers_read(store, start_cluster, job):
    """The connection breaks at once; Dask's own limit, for a scheduler that is silent, is 30 s."""
    cluster = start_cluster(2, pause=5 * PAUSE)

    def go_on() -> None:
        while True:
            job(store, client)

    with cluster.connected() as client:
        killer = threading.Timer(0.5, cluster.kill, [cluster.scheduler])
        killer.start()
        began = time.monotonic()
        with pytest.raises(
            ClusterError, match=f"lost the connection to the Dask scheduler at {cluster.address}; start"
        ):
            go_on()
        assert time.monotonic() - began < 30


def test_what_is_asked_of_a_scheduler_that_is_gone(store, start_cluster, wait_for):
    """Dask takes a task for nobody, and waits for ever: we do not."""
    cluster = start_cluster(1)
    with cluster.connected(timeout=3) as client:
        batches = iter(loader(store, client))
        next(batches)
        runner = DaskRunner(client)
        cluster.kill(cluster.scheduler)
        wait_for(lambda: client.status != "running")
        began = time.monotonic()
        with pytest.raises(ClusterError, match="lost the connection .* save state_dict.. and load it into"):
            list(batches)
        with pytest.raises(ClusterError, match="lost the connection .* what is finished is kept: start a cluster"):
            runner.submit("tag", Task("sum", sum, ([1],)))
        with pytest.raises(ClusterError, match="expected the Dask scheduler to say what is installed"):
            mean_var(store, client)
        assert time.monotonic() - began < 30


def test_tasks_that_somebody_cancels(store, start_cluster):
    cluster = start_cluster(1, pause=PAUSE)
    with cluster.connected() as client, cluster.connected() as other:
        batches = iter(loader(store, client))
        next(batches)
        other.restart(wait_for_workers=False)
        with pytest.raises(
            ClusterError, match="tasks to run until they are done, they were cancelled .*scheduler-restart"
        ):
            list(batches)


# -- builds ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a build file of three studies, with several blocks and shards each."""
    folder, first = tmp_path_factory.mktemp("studies"), 0
    for name, size in SIZES.items():
        coordinate_adata(size, 64, first=first, density=1).write_h5ad(folder / f"{name}.h5ad")
        first += size
    document = {
        "features": {"name": "genes", "reference": "union"},
        "layout": {"block_rows": 12, "chunk_rows": 4, "shard_bytes": 4096},
        "studies": [{"id": name, "source": f"{name}.h5ad", "obsm": ["*"]} for name in SIZES],
    }
    (folder / "atlas.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "atlas.yaml"


def contents(store: Path) -> dict[str, bytes]:
    """Every file but the snapshots, which tell the time."""
    paths = (p for p in store.rglob("*") if p.is_file() and p.parent.name != "snapshots")
    return {str(p.relative_to(store)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def whole(spec: Path) -> dict[str, bytes]:
    """Return the files of an undisturbed build."""
    store = spec.parent / "whole"
    assert daodask.build_store(spec, store, progress=False).ok
    return contents(store)


def check_built(store: Path, whole: dict[str, bytes]) -> None:
    assert contents(store) == whole
    assert {p.name for p in store.iterdir()} == {"snapshots", "features", "datasets"}
    assert daodask.validate_store(store).ok
    found = daodask.open_store(store)
    assert found.snapshot.number == 1
    assert found.to_anndata().obs_names.tolist() == [f"cell{i}" for i in range(sum(SIZES.values()))]


@contextmanager
def building(spec: Path, store: Path, client: Client) -> Iterator[Any]:
    """Build beside what is done within, at whose end the build has ended well."""
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(daodask.build_store, spec, store, client=client, progress=False)
        yield built
        report = built.result(60)
        assert report.ok, report


#: Where a worker is when it is frozen: before, or within, the first write of a file of such a path.
MOMENTS = [
    ("/receipts/block-", "before"),  # all of a block is staged, and nobody knows
    ("/X/data/c/", "before"),  # a shard is encoded
    ("/X/indices/c/", "half"),  # a shard has a temporary name
]


def test_workers_frozen_past_their_time_and_woken_after_the_build(spec, whole, start_cluster, tmp_path, wait_for):
    """The scheduler gives them up after worker-ttl; what they write when they wake up is of no consequence."""
    cluster, store = start_cluster(), tmp_path / "store"
    marks = [tmp_path / f"mark{i}" for i in range(len(MOMENTS))]
    workers = [cluster.add(held=[*m, str(mark)])[0] for m, mark in zip(MOMENTS, marks, strict=True)]
    frozen: set[int] = set()

    def all_frozen() -> bool:
        for worker, mark in zip(workers, marks, strict=True):
            if worker not in frozen and mark.exists():
                cluster.freeze(worker)
                frozen.add(worker)
        return len(frozen) == len(workers)

    with cluster.connected() as client:
        with building(spec, store, client):
            wait_for(all_frozen)
            began = time.monotonic()
            cluster.add()
        assert time.monotonic() - began < 30
        check_built(store, whole)
        assert not any(Path(f"{mark}.done").exists() for mark in marks)

        snapshot = (store / "snapshots" / "00000001.json").read_bytes()
        for worker in workers:
            cluster.wake(worker)
        for mark in marks:
            wait_for(Path(f"{mark}.done").exists)
        wait_for(lambda: len(client.nthreads()) == 1)
        assert (store / "snapshots" / "00000001.json").read_bytes() == snapshot
        late = {path: data for path, data in contents(store).items() if path not in whole}
        assert {path: data for path, data in contents(store).items() if path in whole} == whole
        # Of the scratch of the build, which is gone, a late writer leaves what no snapshot names.
        assert {path.split("/")[0] for path in late} <= {"scratch"}
        assert daodask.validate_store(store).ok
        daodask.plan_vacuum(store, grace="0").run()
        check_built(store, whole)


def test_workers_that_come_and_go_while_they_build(spec, whole, start_cluster, tmp_path, wait_for):
    """One after another is added and retired, as adaptive scaling does it."""
    cluster, store, left = start_cluster(1, pause=PAUSE), tmp_path / "store", 0
    with cluster.connected() as client, building(spec, store, client) as built:
        for more in (2, 1, 1, 0):
            time.sleep(0.1)
            (old, *_) = cluster.workers
            cluster.add(more, pause=PAUSE)
            left += not built.done()
            client.retire_workers([cluster.address_of(old)], close_workers=True)
            cluster.kill(old)
    assert left > 1
    check_built(store, whole)


def test_workers_that_come_and_go_during_an_epoch(store, start_cluster):
    """More windows are in flight when more workers are there."""
    cluster, in_flight = start_cluster(1, pause=PAUSE / 4), []
    with cluster.connected() as client:
        expected = list(loader(store, client))
        found = []
        for batch in loader(store, client):
            found.append(batch)
            in_flight.append(sum(key.startswith("read-window") for key in client.futures))
            if len(found) == 5:
                cluster.add(2, pause=PAUSE / 4)
            if len(found) == 40:
                gone = cluster.workers[:2]
                client.retire_workers([cluster.address_of(pid) for pid in gone], close_workers=True)
    assert max(in_flight[:5]) <= 2 < max(in_flight[10:40]) <= 6
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.index.tolist() == b.index.tolist()
        assert (a.X != b.X).nnz == 0


@pytest.mark.soak
def test_a_cluster_that_scales_itself_while_it_builds(spec, whole, tmp_path):
    from distributed import Client

    with local_cluster(0, silence_logs=50) as local, Client(local) as client:
        local.adapt(minimum=0, maximum=3, interval="100ms", wait_count=1, target_duration="50ms")
        for number in range(3):
            store = tmp_path / f"store{number}"
            assert daodask.build_store(spec, store, client=client, progress=False).ok
            check_built(store, whole)


# -- little memory -----------------------------------------------------------------------------------------------------

#: Spill by what results take, of which there is little, and not by what the process takes.
SPILLING = {f"distributed.worker.memory.{at}": False for at in ("spill", "pause", "terminate")}


@pytest.mark.parametrize("job", [pseudobulk, lazy_sum, epoch])
def test_results_that_do_not_fit_into_memory_are_spilled(store, start_cluster, job):
    cluster = start_cluster(2, SPILLING, memory_limit=1024)

    def written(dask_worker: Any) -> float:
        return float(dask_worker.data.cumulative_metrics["disk-write", "count"])

    with cluster.connected() as client:
        held = store.persist(client=client) if job is lazy_sum else store
        check_all_cells(job, job(held, client))
        assert min(client.run(written).values()) > 1


def test_batches_say_how_large_they_are(store):
    from dask.sizeof import sizeof

    for dense in (False, True):
        batches = list(BatchLoader(store, 40, schedule="sequential", obs=["row"], dense=dense))
        X = 40 * N_VARS * 4 if dense else batches[0].X.nnz * 8 + 41 * 4
        # Beside X two int64 for each cell: row and index, which obs has too.
        assert 0 <= sizeof(batches[0]) - (X + 40 * 24) < 200
        assert sizeof(batches) >= 16 * 40 * 24


# -- a link that is cut ------------------------------------------------------------------------------------------------

#: Dask gives a silent connection up after so long (30 s by default): a worker that is cut off may be asked before
#: worker-ttl has passed.
SILENT = {"distributed.comm.timeouts.tcp": "12s", "distributed.comm.timeouts.connect": "5s"}


class Link:
    """A worker in a network namespace of its own, and the pair of devices that leads there."""

    def __init__(self, cluster: Any, network: str, folder: str, **worker: Any) -> None:
        self.device, inside = f"dao{network.replace('.', '')}h", f"dao{network.replace('.', '')}w"
        address = f"{network}2"
        self.worker = cluster.begin(alone=[inside, f"{address}/30"], local_directory=folder, host=address, **worker)
        answer = cluster.says(self.worker)
        if "refused" in answer:
            pytest.skip(f"no network namespace may be made here: {answer['refused']}")
        # Kept here, as with the last process in it the namespace would go, and the devices and the address at this end.
        self._namespace = os.open(f"/proc/{self.worker}/ns/net", os.O_RDONLY)
        there = f"--net=/proc/{os.getpid()}/fd/{self._namespace}"
        self._inside = ["nsenter", there, "ip", "link", "set", inside]
        ip("link", "add", self.device, "type", "veth", "peer", "name", inside, "netns", str(self.worker))
        ip("address", "add", f"{network}1/30", "dev", self.device)
        ip("link", "set", self.device, "up")
        assert "address" in cluster.says(self.worker)

    def cut(self) -> None:
        subprocess.run([*self._inside, "down"], check=True)

    def mend(self) -> None:
        subprocess.run([*self._inside, "up"], check=True)

    def remove(self) -> None:
        ip("link", "delete", self.device)
        os.close(self._namespace)


def ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True)


@pytest.fixture
def linked(start_cluster, tmp_path):
    """Return a cluster of one worker here and one behind a link, and the link."""
    if any(shutil.which(program) is None for program in ("ip", "nsenter")):
        pytest.skip("ip (iproute2) and nsenter (util-linux) are not installed here")
    # Of the addresses that are set aside for trying out devices.
    network = f"198.{18 + secrets.randbelow(2)}.{secrets.randbelow(256)}."
    cluster = start_cluster(0, SILENT, scheduler={"host": "0.0.0.0"})  # noqa: S104  on the device that is made next, too
    cluster.address = f"tcp://{network}1:{cluster.address.rpartition(':')[2]}"
    link = Link(cluster, network, str(tmp_path), pause=PAUSE)
    cluster.add(1, pause=PAUSE, host=f"{network}1")
    yield cluster, link
    link.remove()


def test_the_link_to_a_worker_is_cut_during_an_epoch(store, linked, wait_for):
    """With windows on it that were not fetched."""
    cluster, link = linked
    with cluster.connected() as client:
        expected = list(loader(store, client))
        assert len(client.nthreads()) == 2
        began, found = time.monotonic(), []
        for batch in loader(store, client):
            found.append(batch)
            if len(found) == 10:
                link.cut()
        # The worker's time to live, or that of a silent connection to it: for what was there, and what was on its way.
        assert time.monotonic() - began < 40
        assert [b.index.tolist() for b in found] == [b.index.tolist() for b in expected]
        wait_for(lambda: len(client.nthreads()) == 1)


def test_the_link_to_a_worker_is_cut_and_mended_while_it_builds(spec, whole, linked, tmp_path, wait_for):
    """The worker goes on, writes to the disk that it shares with the other, and comes back."""
    cluster, link = linked
    store = tmp_path / "store"
    with cluster.connected() as client:
        assert len(client.nthreads()) == 2
        began = time.monotonic()
        with building(spec, store, client):
            wait_for(lambda: any((store / "scratch").glob("*/receipts/block-*.json")))
            link.cut()
        assert time.monotonic() - began < 40
        link.mend()
        wait_for(lambda: len(client.nthreads()) == 1)
        check_built(store, whole)
