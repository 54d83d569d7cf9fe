"""Blocks that are kept: no request for what was read before, never more than the budget, and safe to hand out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import daodask
from daodask.caching import BlockCache
from daodask.errors import SpecError
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store
from daodask.testing.recording import Request, recording

SIZES, N_VARS = (70, 0, 33), 32
N_OBS = sum(SIZES)
COUNTS = coordinate_counts(np.arange(N_OBS), N_VARS).toarray()


@pytest.fixture(scope="module")
def store() -> Store:
    random_store("memory://caching", SIZES)
    return daodask.open_store("recording://caching")


@pytest.fixture
def kept() -> Iterator[BlockCache]:
    found = daodask.cache("64MiB")
    yield found
    daodask.cache(0)
    found.clear()


@pytest.fixture(autouse=True)
def on_threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads"):
        yield


def of_cells(requests: list[Request]) -> list[Request]:
    return [request for request in requests if "/datasets/" in f"/{request.path}"]


def results(store: Store) -> list[np.ndarray]:
    """Of what somebody does in a day with the same cells."""
    return [
        store.X.sum(axis=0).compute(),
        (store.X > 1000).sum(axis=1).compute(),
        store.X[5:60].compute().toarray(),
        store.layers["half"].max(axis=0).compute(),
        store.obsm["place"].compute(),
        store.obs["n_counts"].compute().to_numpy(),
        store.obs.compute().notna().to_numpy(),
        store.to_anndata(lazy=True).X.mean(axis=0).compute(),
    ]


@pytest.mark.parametrize("rows", [np.arange(N_OBS), np.arange(1, N_OBS, 3)])
@pytest.mark.parametrize("genes", [slice(None), [4, 30, 0]])
def test_what_was_read_is_not_read_again(store, kept, rows, genes):
    chosen = store[rows, genes]
    first = results(chosen)
    assert kept.misses == len(kept) > 10
    with recording() as requests:
        again = results(chosen)
        chosen.X.var(axis=1).compute()
    # to_anndata loads obs, as one frame per dataset and not as blocks.
    assert {request.name for request in of_cells(requests)} <= {"obs.parquet"}
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again[0], COUNTS[rows][:, genes].sum(axis=0))
    assert kept.misses == len(kept)


def test_reads_tell_apart_what_differs(store, kept):
    for chosen, expected in (
        (store, COUNTS),
        (store[:, [1, 0]], COUNTS[:, [1, 0]]),
        (store[:, [0, 1]], COUNTS[:, [0, 1]]),
        (store[::2], COUNTS[::2]),
        (store[1::2], COUNTS[1::2]),
    ):
        for _ in range(2):
            np.testing.assert_array_equal(chosen.X.compute().toarray(), expected)
            np.testing.assert_array_equal(chosen.layers["half"].compute().toarray(), expected / 2)
            assert chosen.obs["row"].compute().tolist() == chosen.selection.store_rows.tolist()
    assert isinstance(store.obs["obs_names"].dtype, pd.StringDtype)
    with dask.config.set({"dataframe.convert-string": False}):
        assert store.obs["obs_names"].compute().dtype == object


def test_it_is_off_at_first_and_can_be_turned_off(store):
    found = daodask.cache()
    assert repr(found) == '<daodask cache> off; daodask.cache("2GiB") turns it on'
    assert "in memory" not in repr(store)
    for _ in range(2):
        with recording() as requests:
            store.X.sum().compute()
        assert of_cells(requests)
    assert daodask.cache("1MiB") is found
    store.X.sum().compute()
    assert len(found) > 0
    assert daodask.cache(0) is found
    assert (len(found), found.nbytes) == (0, 0)
    found.clear()


def test_it_shows_itself(store, kept):
    store.X.sum().compute()
    n = len(store.blocks)
    assert repr(kept).startswith(f"<daodask cache> {n} blocks, ")
    assert repr(kept).endswith(f"of 64 MiB; 0 found, {n} read")
    assert f"in memory cache of {kept.summary()}" in repr(store)
    assert f"cache of {kept.summary()}" in store._repr_html_()
    assert "X, obs persisted" in repr(store[:20].persist())


def test_what_is_kept_can_not_be_changed(store, kept):
    for _ in range(2):
        block = store.X.to_delayed()[0, 0].compute()  # as dask's tasks have it: not put together with others
        with pytest.raises(ValueError, match="read-only"):
            block.data[0] = 7
        block.data = block.data * 2  # of this block alone
        obs = store.obs.partitions[0].compute()
        obs["row"] = -1
    np.testing.assert_array_equal(store.X.compute().toarray(), COUNTS)
    assert store.obs["row"].compute().tolist() == list(range(N_OBS))
    daodask.cache(0)
    store.X.to_delayed()[0, 0].compute().data[0] = 7


def test_a_budget_that_is_small_is_kept(store, kept):
    store.X.blocks[0].compute()
    one = kept.nbytes
    kept.resize(3 * one)
    for _ in range(2):
        store.X.sum().compute()
        assert 0 < kept.nbytes <= 3 * one
    kept.resize(one // 2)
    assert (len(kept), kept.nbytes) == (0, 0)
    np.testing.assert_array_equal(store.X.compute().toarray(), COUNTS)


@pytest.mark.parametrize("memory", ["much", "2 potatoes", -1, [1]])
def test_budgets_that_are_none(memory):
    with pytest.raises(SpecError, match="expected a size"):
        daodask.cache(memory)
    assert daodask.cache().most_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=60), st.integers(0, 100))
def test_the_last_used_that_fit_are_kept(asked, most_bytes):
    found, sizes = BlockCache(most_bytes), dict(asked)
    model: list[int] = []
    for key, _ in asked:
        assert found.take(key, lambda key=key: key, lambda key: sizes[key]) == key
        if most_bytes:
            model = [*(k for k in model if k != key), key]
            while sum(sizes[k] for k in model) > most_bytes:
                model.pop(0)
        assert found.nbytes == sum(sizes[k] for k in model) <= most_bytes
        assert len(found) == len(model)
    assert found.hits + found.misses == len(asked)


def test_threads(store, kept):
    gc.collect()
    kept.resize(3_000)
    expected = COUNTS.sum(axis=0)
    with ThreadPoolExecutor(8) as threads:
        for total in threads.map(lambda _: store.X.sum(axis=0).compute(scheduler="synchronous"), range(24)):
            np.testing.assert_array_equal(total, expected)
    assert kept.hits + kept.misses == 24 * len(store.blocks)
    assert kept.nbytes == sum(size for _, size in kept._blocks.values()) <= 3_000
