"""Windows read by a cluster: the same batches in the same order, whatever becomes of its workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from clusters import local_cluster

from daodask import BatchLoader
from daodask.batches.readers import ClusterReader
from daodask.batches.schedule import Balanced, Full, Grouped, Sequential, Shuffled
from daodask.batches.window import Batch
from daodask.store import Store
from daodask.testing import random_store

if TYPE_CHECKING:
    from distributed import Client

WINDOWS = Shuffled(run_rows=4, window_rows=20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("cluster") / "store", (170, 0, 133))


def assert_same_bytes(found: Any, expected: Any) -> None:
    arrays = [(b.X,) if isinstance(b.X, np.ndarray) else (b.X.data, b.X.indices, b.X.indptr) for b in (found, expected)]
    for a, b in zip(*arrays, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
    assert found.index.tobytes() == expected.index.tobytes()
    assert found.obs.equals(expected.obs)
    assert (found.obs.dtypes == expected.obs.dtypes).all()
    if expected.measured is not None:
        assert found.measured.tobytes() == expected.measured.tobytes()
        assert found.dataset.tobytes() == expected.dataset.tobytes()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "schedule",
    [WINDOWS, Sequential(30), Balanced("cell_type", window_rows=40), Grouped("cell_type", window_rows=10), Full()],
    ids=str,
)
def test_the_batches_are_those_of_this_process(store, client, schedule, dense):
    part = store.subset("row >= 11", exclude={"cell_type": "B cell"})[:, [7, 3, 30]]
    options: dict[str, Any] = {
        "schedule": schedule,
        "dense": dense,
        "obs": ["cell_type", "row", "note", "score"],
        "measured": True,
        "seed": 9,
    }
    local, remote = BatchLoader(part, 8, **options), BatchLoader(part, 8, client=client, **options)
    for _ in range(2):
        expected, found = list(local), list(remote)
        assert len(found) == len(expected) > 0
        for a, b in zip(found, expected, strict=True):
            assert_same_bytes(a, b)
    assert remote.state_dict() == local.state_dict()
    wait_until(lambda: not client.futures)


def wait_until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_epoch_goes_on_from_a_state_of_this_process(store, client):
    local = BatchLoader(store, 8, schedule=WINDOWS)
    epoch = iter(local)
    for _ in range(7):
        next(epoch)
    remote = BatchLoader(store, 8, schedule=WINDOWS, client=client)
    remote.load_state_dict(local.state_dict())
    for a, b in zip(remote, epoch, strict=True):
        assert_same_bytes(a, b)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_few_windows_are_in_flight(store, client, most):
    """As many as asked for, or two for each of the two threads of the cluster; results are let go once consumed."""
    loader = BatchLoader(store, 10, schedule=WINDOWS)
    in_all = len(list(loader._windows(0)))
    assert in_all == 16
    windows, asked = loader._windows(0), 0

    def counted() -> Iterator[Any]:
        nonlocal asked
        for window in windows:
            asked += 1
            yield window

    for done, _ in enumerate(ClusterReader(client, most).read(store, counted(), loader._request), start=1):
        assert asked == min(in_all, done - 1 + (most or 4))
        wait_until(lambda: sum(key.startswith("read-window") for key in client.futures) <= (most or 4) - 1)
    assert asked == done == in_all
    wait_until(lambda: not client.futures)


def test_leaving_an_epoch_cancels_what_is_under_way(store, client, tmp_path):
    marks = os.fspath(tmp_path)

    def slow(batch: Batch) -> int:
        time.sleep(0.2)
        with open(f"{marks}/{batch.index[0]}", "w"):
            pass
        return len(batch)

    loader = BatchLoader(store, 20, schedule=WINDOWS, client=client, fn=slow)
    for _ in loader:
        break
    wait_until(lambda: not client.futures)
    # Tasks that run do so to their end, whoever wants them.
    wait_until(lambda: not any(client.run(lambda dask_worker: len(dask_worker.state.executing)).values()))
    # The first, and those that had begun: not all sixteen.
    made = len(os.listdir(marks))
    assert made <= 6
    time.sleep(0.5)
    assert len(os.listdir(marks)) == made
    # The client is as good as before.
    assert sum(loader) == 303


def test_a_function_that_fails_on_the_cluster_fails_here(store, client):
    def failing(batch: Batch) -> None:
        raise ZeroDivisionError("on a worker")

    with pytest.raises(ZeroDivisionError, match="on a worker"):
        list(BatchLoader(store, 10, schedule=WINDOWS, client=client, fn=failing))
    wait_until(lambda: not client.futures)


@pytest.fixture
def mortal() -> Iterator[Client]:
    """A cluster of its own, whose nannies start workers again."""
    from distributed import Client

    with local_cluster(2, silence_logs=50) as cluster, Client(cluster) as connected:
        yield connected


def kill(client: Client, n: int) -> None:
    """Kill workers at once, without a word to anybody."""
    for pid in list(client.run(os.getpid).values())[:n]:
        os.kill(pid, signal.SIGKILL)


def test_an_epoch_survives_its_workers(store, mortal):
    expected = list(BatchLoader(store, 10, schedule=WINDOWS, obs=["row", "cell_type"], seed=2))
    found = []
    # Each of them once, and then both: nothing of what was sent to them is anywhere but with the scheduler.
    killings, threads = {4: 1, 12: 2}, threading.active_count()
    loader = BatchLoader(store, 10, schedule=WINDOWS, obs=["row", "cell_type"], seed=2, client=mortal)
    for batch in loader:
        found.append(batch)
        if len(found) in killings:
            kill(mortal, killings[len(found)])
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_same_bytes(a, b)
    wait_until(lambda: not mortal.futures)
    # Fewer than windows, of which none leaves one; some are Dask's own.
    assert threading.active_count() - threads < 10
