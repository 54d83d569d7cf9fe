"""Stop anywhere, go on from there: the batches that were missing, and no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daodask
from daodask import BatchLoader
from daodask.batches.schedule import Balanced, Full, Grouped, Schedule, Sequential, Shuffled
from daodask.errors import StateError
from daodask.store import Store
from daodask.testing import random_store

N_OBS = 103


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "store"
    random_store(path, (70, 0, 33))
    return path


@pytest.fixture(scope="module")
def store(url: Path) -> Store:
    return daodask.open_store(url)


SCHEDULES: list[Schedule] = [
    Sequential(window_rows=30),
    Shuffled(run_rows=4, window_rows=30),
    Shuffled(run_rows=1, window_rows=1000),
    Balanced("cell_type", run_rows=3, window_rows=30),
    Balanced("cell_type", replacement=False, window_rows=20),
    Grouped("cell_type", window_rows=40),
    Full(),
]


def batches(loader: BatchLoader) -> list[tuple[list[int], list[float]]]:
    """Cells and values of what is left of an epoch."""
    return [(batch.index.tolist(), batch.X.data.tolist()) for batch in loader]


def make(store: Store, schedule: Schedule | str, **changes: Any) -> BatchLoader:
    return BatchLoader(store, **{"batch_size": 10, "schedule": schedule, "seed": 4, **changes})


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_batches_after_any_position_come_again_elsewhere(store, schedule, drop_last):
    loader = make(store, schedule, drop_last=drop_last)
    loader.epoch = 2
    epoch = iter(loader)
    states, made = [loader.state_dict()], []
    for batch in epoch:
        made.append((batch.index.tolist(), batch.X.data.tolist()))
        states.append(loader.state_dict())
    after = loader.state_dict()
    following = batches(loader)
    assert [state["batches_done"] for state in states] == list(range(len(made) + 1))
    for done, state in enumerate(states):
        other = make(store, schedule, drop_last=drop_last)
        other.load_state_dict(json.loads(json.dumps(state)))
        assert other.state_dict() == state
        assert other.epoch == 2
        assert batches(other) == made[done:]
        # The pass after that is the next epoch, and a state of it loads as well.
        if done in (0, 1, len(made)):
            assert batches(other) == following
    assert after == {**states[0], "epoch": 3, "batches_done": 0}


def test_a_state_of_a_state(store):
    loader = make(store, SCHEDULES[1])
    whole = batches(make(store, SCHEDULES[1]))
    for done in (2, 3, 7):
        # Each loader goes on from the one before, and is left after a few batches.
        epoch = iter(loader)
        while loader.state_dict()["batches_done"] < done:
            next(epoch)
        later = make(store, SCHEDULES[1])
        later.load_state_dict(loader.state_dict())
        loader = later
    assert batches(loader) == whole[7:]


def test_a_state_is_plain(store):
    state = make(store, "shuffled").state_dict()
    assert state == json.loads(json.dumps(state))
    assert state.keys() == {"epoch", "batches_done", "world_size", "fingerprint"}
    assert (state["epoch"], state["batches_done"], state["world_size"]) == (0, 0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"batch_size": 11},
        {"drop_last": True},
        {"schedule": "sequential"},
        {"schedule": Shuffled(run_rows=4, window_rows=31)},
        {"schedule": Balanced("cell_type", {"B cell": 2})},
        {"layer": "half"},
    ],
    ids=str,
)
def test_the_state_of_another_loader_is_refused(store, change):
    state = make(store, SCHEDULES[1]).state_dict()
    with pytest.raises(StateError, match="expected the state of a loader over the same cells with the same batch_size"):
        make(store, **{"schedule": SCHEDULES[1], **change}).load_state_dict(state)


@pytest.mark.parametrize("rows", [slice(1, None), slice(0, 102), slice(0, None, 2), slice(0, 70)], ids=str)
def test_the_state_of_other_cells_is_refused(store, rows):
    state = make(store, SCHEDULES[1]).state_dict()
    other = make(store[rows], SCHEDULES[1])
    with pytest.raises(StateError, match="the same cells"):
        other.load_state_dict(state)
    with pytest.raises(StateError, match="the same cells"):
        make(store, SCHEDULES[1]).load_state_dict(other.state_dict())


@pytest.mark.parametrize("state", [{}, {"epoch": 1}])
def test_what_is_no_state_is_refused(store, state):
    with pytest.raises(StateError, match=r"expected what state_dict\(\) of a loader returns"):
        make(store, "shuffled").load_state_dict(state)


def test_what_a_batch_brings_may_be_another(store):
    """Genes, obs columns and form of X don't decide which cells come."""
    loader = make(store, SCHEDULES[1])
    next(iter(loader))
    other = make(store[:, [3, 5]], SCHEDULES[1], obs=["row"], dense=True, measured=True, memory="100MiB", threads=1)
    other.load_state_dict(loader.state_dict())
    rest = batches(make(store, SCHEDULES[1]))[1:]
    assert [batch.index.tolist() for batch in other] == [rows for rows, _ in rest]


def test_another_number_of_ranks_goes_on_at_the_next_epoch(store):
    loaders = [make(store, SCHEDULES[1], rank=rank, world_size=2) for rank in range(2)]
    epochs = [iter(loader) for loader in loaders]
    for epoch in epochs:
        next(epoch)
    state = loaders[0].state_dict()
    assert state == loaders[1].state_dict()
    for world_size in (1, 3):
        with pytest.raises(
            StateError, match=f"expected world_size 2, which the epoch was begun with, got {world_size}"
        ):
            make(store, SCHEDULES[1], world_size=world_size).load_state_dict(state)
    # The same number goes on, each rank with its own part.
    for rank, epoch in enumerate(epochs):
        again = make(store, SCHEDULES[1], rank=rank, world_size=2)
        again.load_state_dict(state)
        assert [b.index.tolist() for b in again] == [b.index.tolist() for b in epoch]
    state = loaders[0].state_dict()
    assert (state["epoch"], state["batches_done"]) == (1, 0)
    ranks = [make(store, SCHEDULES[1], rank=rank, world_size=3) for rank in range(3)]
    for loader in ranks:
        loader.load_state_dict(state)
        assert loader.epoch == 1
    seen = [row for loader in ranks for rows, _ in batches(loader) for row in rows]
    assert set(seen) == set(range(N_OBS))
    assert len(seen) < N_OBS + 3
    # So does an epoch that is begun anew.
    anew = make(store, SCHEDULES[1])
    anew.load_state_dict({**state, "batches_done": 0, "epoch": 0})
    assert batches(anew) == batches(make(store, SCHEDULES[1]))


def test_a_pass_after_one_that_was_left_is_a_new_epoch(store):
    loader = make(store, SCHEDULES[1])
    whole = batches(make(store, SCHEDULES[1]))
    for batch in loader:
        assert batch.index.tolist() == whole[0][0]
        break
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches_done"], loader.epoch) == (0, 1, 1)
    second = batches(loader)
    assert sorted(row for rows, _ in second for row in rows) == list(range(N_OBS))
    assert second != whole
    assert loader.epoch == 2


def test_of_two_passes_at_once_the_newest_has_the_state(store):
    loader = make(store, SCHEDULES[1])
    first = iter(loader)
    next(first), next(first)
    second = iter(loader)
    next(second)
    state = loader.state_dict()
    assert (state["epoch"], state["batches_done"]) == (1, 1)
    rest = [batch.index.tolist() for batch in first]
    assert loader.state_dict() == state
    assert len(rest) == len(loader) - 2
    other = make(store, SCHEDULES[1])
    other.load_state_dict(state)
    assert [b.index.tolist() for b in second] == [b.index.tolist() for b in other]


def test_a_copy_goes_on_at_the_same_place(store):
    loader = make(store, SCHEDULES[3])
    epoch = iter(loader)
    next(epoch)
    copied = loader.copy(obs=["row"])
    assert copied.state_dict() == loader.state_dict()
    assert copied.obs == ("row",)
    assert len(copied) == len(loader)


# -- kill -9 -----------------------------------------------------------------------------------------------------------

TRAINER = """
import json, os, sys, time
from pathlib import Path
import daodask
from daodask.batches.schedule import Shuffled

url, folder = sys.argv[1], Path(sys.argv[2])
loader = daodask.BatchLoader(daodask.open_store(url), 2, schedule=Shuffled(run_rows=4, window_rows=30), seed=11)
checkpoint = folder / "checkpoint.json"
trained = []
if checkpoint.exists():
    saved = json.loads(checkpoint.read_text())
    trained = saved["trained"]
    loader.load_state_dict(saved["loader"])
print("ready", flush=True)
while loader.epoch < 2:
    for batch in loader:
        # The work of a step, and then a checkpoint: both of them or, as far as anybody sees, neither.
        trained.append([batch.index.tolist(), float(batch.X.sum())])
        (folder / "new").write_text(json.dumps({"trained": trained, "loader": loader.state_dict()}))
        os.replace(folder / "new", checkpoint)
        time.sleep(0.005)
(folder / "done").touch()
"""


def test_a_training_that_is_killed_again_and_again_sees_what_an_undisturbed_one_sees(url, store, tmp_path):
    generator = np.random.default_rng()
    kills = 0
    while not (tmp_path / "done").exists():
        with subprocess.Popen(
            [sys.executable, "-c", TRAINER, os.fspath(url), os.fspath(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if kills < 4:
                time.sleep(generator.uniform(0, 0.5))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            else:
                assert process.wait() == 0
    trained = json.loads((tmp_path / "checkpoint.json").read_text())["trained"]
    undisturbed = BatchLoader(store, 2, schedule=Shuffled(run_rows=4, window_rows=30), seed=11)
    expected = [[batch.index.tolist(), float(batch.X.sum())] for _ in range(2) for batch in undisturbed]
    assert kills > 0
    assert trained == expected
