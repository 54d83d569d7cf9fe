"""What a store of 1,000 datasets and 100 million cells costs the client: requests and graphs are counted, not timed."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from dask._task_spec import convert_legacy_graph

import daodask
from daodask.testing.described import described_store
from daodask.testing.recording import recording

N_DATASETS, N_OBS, BLOCK_ROWS = 1_000, 100_000, 1_000
N_BLOCKS = N_DATASETS * N_OBS // BLOCK_ROWS


@pytest.fixture(scope="module")
def url() -> str:
    name = f"scale-{uuid.uuid4().hex}"
    described_store(f"memory://{name}", N_DATASETS, N_OBS, block_rows=BLOCK_ROWS)
    return f"recording://{name}"


@pytest.fixture(scope="module")
def store(url: str) -> daodask.Store:
    return daodask.open_store(url)


@pytest.fixture(scope="module")
def few(store: daodask.Store) -> daodask.Store:
    """One percent of the cells, at random."""
    return store.sample(frac=0.01, seed=1)


def kept_bytes(make: Callable[[], Any]) -> tuple[Any, int]:
    """What is made, and the memory that stays with it."""
    tracemalloc.start()
    try:
        made = make()
        return made, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def is_small(graph: Mapping[Any, Any]) -> None:
    """What a scheduler is sent, and what a worker is sent of it, by a tenth of the tasks."""
    some = {key: graph[key] for key in itertools.islice(graph, N_BLOCKS // 10)}
    assert len(pickle.dumps(some)) < 150 * len(some)
    tasks = convert_legacy_graph(some)
    assert max(len(pickle.dumps(tasks[key])) for key in itertools.islice(tasks, 0, None, 50)) < 1_000


def test_opening_is_a_listing_and_a_read_however_many_datasets(url: str) -> None:
    small = f"small-{uuid.uuid4().hex}"
    described_store(f"memory://{small}", 2, 10)
    asked = []
    for where in (f"recording://{small}", url):
        with recording() as requests:
            daodask.open_store(where)
        asked.append([request.kind for request in requests])
    assert asked[0] == asked[1]
    assert sorted(set(asked[1])) == ["list", "read"]
    assert asked[1].count("read") == 1


def test_counts_and_pruning_and_graphs_ask_for_nothing(store: daodask.Store, few: daodask.Store) -> None:
    with recording() as requests:
        counts = store.value_counts("label_1")
        assert (counts.sum(), counts["label 1"]) == (N_DATASETS * N_OBS, N_DATASETS * N_OBS // 5)
        assert store.subset(dataset="study0003").n_obs == N_OBS
        # Labels of a tenth of the datasets, and numbers of one and its neighbours, are none of the others'.
        assert store.subset("number_2 > 2000").n_obs == 0
        assert store.subset("number_2 >= 0").n_obs == store.n_obs
        for shown in (store, few):
            repr(shown), shown._repr_html_(), shown.datasets, shown.X, shown.obs
    assert requests == []


def test_the_graph_of_x_is_a_task_a_block(url: str) -> None:
    store = daodask.open_store(url)
    X, n_bytes = kept_bytes(lambda: store.X)
    assert X.shape == (N_DATASETS * N_OBS, 36_000)
    assert X.npartitions == N_BLOCKS
    assert len(X.__dask_graph__()) == N_BLOCKS + 1  # and the genes, which all tasks refer to
    assert n_bytes < 200e6
    is_small(dict(X.__dask_graph__()))


def test_the_graph_of_cells_at_random_is_no_larger_than_they_are(few: daodask.Store) -> None:
    X, n_bytes = kept_bytes(lambda: few.X)
    assert X.shape[0] == few.n_obs == 1_000_000
    # About 1,000 cells of each dataset are read in one task or two, as a task has no more than a stored block.
    assert N_DATASETS <= X.npartitions <= 2 * N_DATASETS
    assert n_bytes < 50e6


def test_the_dataframe_of_all_cells_is_a_partition_a_block(store: daodask.Store) -> None:
    obs, n_bytes = kept_bytes(lambda: store.obs)
    assert obs.npartitions == N_BLOCKS
    assert obs.divisions[:2] == (0, BLOCK_ROWS)
    assert obs.divisions[-1] == N_DATASETS * N_OBS - 1
    # As tasks, of which a tenth is made.
    graph, tenth = kept_bytes(lambda: obs.partitions[: N_BLOCKS // 10].optimize().__dask_graph__())
    assert len(graph) == N_BLOCKS // 10
    assert n_bytes + 10 * tenth < 200e6
    is_small(graph)


def test_names_of_graphs_tell_reads_apart(store: daodask.Store, few: daodask.Store) -> None:
    rows = few.selection.store_rows[:5]
    other = np.array([*rows[:4], rows[4] + 1])
    shown = [store, few, store[:1000], store[1000:2000], store[rows], store[other], store[:1000, [0]]]
    assert len({s.X.name for s in shown}) == len(shown)
    # Genes are no matter of obs.
    assert len({s.obs._name for s in shown}) == len(shown) - 1
    assert store[rows].X.name == store[rows].X.name
    assert store[rows].obs._name == store[rows].obs._name
