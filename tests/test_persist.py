"""Stores in memory: the same cells and genes, without another read."""

from __future__ import annotations

import pickle

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed import wait
from hypothesis import given, settings
from hypothesis import strategies as st

import daodask
from daodask.errors import UnknownNameError
from daodask.sparse import CSRBlock
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store
from daodask.testing.recording import Request, recording

SIZES, N_VARS = (70, 0, 33), 32
N_OBS = sum(SIZES)
COUNTS = coordinate_counts(np.arange(N_OBS), N_VARS).toarray()
BASES = {
    "all": (np.arange(N_OBS), list(range(N_VARS))),
    "cells": (np.arange(3, N_OBS, 2), list(range(N_VARS))),
    "genes": (np.arange(N_OBS), [4, 30, 0, 17]),
    "both": (np.array([0, 1, 2, 40, 66, 69, 70, 71, 102]), [4, 30, 0, 17]),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    random_store("memory://persist/store", SIZES)
    return daodask.open_store("recording://persist/store")


@pytest.fixture(scope="module")
def held(store: Store) -> dict[str, Store]:
    made = {}
    for name, (rows, genes) in BASES.items():
        chosen = store[rows] if len(genes) == N_VARS else store[rows, genes]
        with dask.config.set(scheduler="threads"):
            made[name] = chosen.persist(layers=["half"], obsm=["place"])
    return made


def is_of(store: Store, rows: np.ndarray, genes: list[int]) -> None:
    X = store.X.compute(scheduler="synchronous")
    assert isinstance(X, CSRBlock)
    np.testing.assert_array_equal(X.toarray(), COUNTS[np.ix_(rows, genes)])
    assert store.X.chunks[0] == tuple(block.n_obs for block in store.blocks) or not len(rows)
    np.testing.assert_array_equal(store.layers["half"].compute().toarray(), COUNTS[np.ix_(rows, genes)] / 2)
    np.testing.assert_array_equal(store.obsm["place"].compute()[:, 0], rows)
    obs = store.obs.compute()
    assert obs.index.tolist() == obs["row"].tolist() == rows.tolist()


@settings(max_examples=25)
@given(st.sampled_from(sorted(BASES)), st.data())
def test_subsets_are_taken_from_memory(held, which, data):
    rows, genes = BASES[which]
    kept = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True, min_size=1).map(sorted))
    columns = data.draw(st.lists(st.sampled_from(range(len(genes))), unique=True, min_size=1))
    with recording() as requests:
        narrowed = held[which][kept, columns]
        is_of(narrowed, rows[kept], [genes[c] for c in columns])
    assert not requests


@pytest.mark.parametrize("which", sorted(BASES))
def test_what_is_held_is_not_read_again(held, store, which):
    rows, genes = BASES[which]
    with recording() as requests:
        is_of(held[which], rows, genes)
        assert held[which].X.sum().compute() == COUNTS[np.ix_(rows, genes)].sum()
        odd = rows[rows % 2 == 1]
        is_of(held[which][rows % 2 == 1], odd, genes)
        assert held[which].obs["n_counts"].max().compute() == COUNTS[rows].sum(axis=1).max()
    assert not requests
    lazy = held[which].obs
    assert lazy.known_divisions
    assert lazy.dtypes.equals(store.obs.dtypes)
    pd.testing.assert_frame_equal(lazy.compute(), store.obs.compute().loc[rows])


def test_what_is_not_held_is_read(held, store):
    some = held["cells"]
    with recording() as requests:
        found = replace_selection(some, store)
        is_of(found, np.arange(N_OBS), list(range(N_VARS)))
    assert requests
    np.testing.assert_array_equal(
        replace_selection(held["genes"], store[:, [5, 0]]).X.compute().toarray(), COUNTS[:, [5, 0]]
    )
    is_of(some[:0], np.arange(0), list(range(N_VARS)))


def replace_selection(store: Store, other: Store) -> Store:
    from dataclasses import replace

    return replace(store, selection=other.selection)


def of_cells(requests: list[Request]) -> list[Request]:
    """Requests for matrices and metadata of cells."""
    return [request for request in requests if "/datasets/" in f"/{request.path}"]


@pytest.mark.parametrize("which", sorted(BASES))
def test_loading_takes_all_of_it_from_memory(held, store, which):
    rows, genes = BASES[which]
    odd = rows[rows % 2 == 1]
    read = store[odd] if len(genes) == N_VARS else store[odd, genes]
    expected, whole = read.to_anndata(), (store[rows]).to_anndata().obs
    with recording() as requests:
        adata = held[which][rows % 2 == 1].to_anndata()
        lazy = held[which].to_anndata(lazy=True)
        with xr.set_options(use_flox=False):
            made = held[which][:, ["gene4"]].to_xarray(obs=["odd"])["X"].groupby("odd").mean().compute()
    assert not of_cells(requests)
    assert (adata.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, expected.obs)
    pd.testing.assert_frame_equal(lazy.obs, whole)
    means = [COUNTS[rows[rows % 2 == k], 4].mean() for k in (0, 1) if (rows % 2 == k).any()]
    np.testing.assert_allclose(made.data.ravel(), means, rtol=1e-6)


@pytest.mark.parametrize("which", ["all", "cells"])
def test_conditions_and_counts_take_obs_from_memory(held, store, which):
    rows, _ = BASES[which]
    plain = store[rows]

    def narrowed(one: Store) -> list[object]:
        return [
            one.subset("row > 20 and score < 0.9").selection.store_rows.tolist(),
            one.subset(lambda obs: obs["obs_names"].str.endswith("3"), columns=["obs_names"]).n_obs,
            one.subset(cell_type="B cell")[:10].value_counts("cell_type").to_dict(),
            one.value_counts("row").to_dict(),
            one.sample(frac=0.3, by="cell_type").selection.store_rows.tolist(),
        ]

    expected = narrowed(plain)
    with recording() as requests:
        assert narrowed(held[which]) == expected
    assert not of_cells(requests)


def test_a_copy_reads_the_store(held):
    copied = pickle.loads(pickle.dumps(held["both"]))  # noqa: S301 - it is our own
    assert copied.held is None
    rows, genes = BASES["both"]
    np.testing.assert_array_equal(copied.X.compute().toarray(), COUNTS[np.ix_(rows, genes)])


def test_a_layer_that_there_is_not(store):
    with pytest.raises(UnknownNameError, match="there is no layer 'hal'"):
        store.persist(layers=["hal"])


def test_in_a_clusters_memory(tmp_path, client):
    store = random_store(tmp_path / "store", SIZES).persist(client=client)
    wait([store.X, store.obs])
    # What is in memory is read no more, and so need not be there.
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    total = store[5:90:2][:, [1, 9]].X.sum(axis=0).compute()
    np.testing.assert_array_equal(total, COUNTS[5:90:2][:, [1, 9]].sum(axis=0))
    np.testing.assert_array_equal(store.X[60:80].compute().toarray(), COUNTS[60:80])
    assert store[10:20].obs["row"].compute().tolist() == list(range(10, 20))


def test_one_gene_costs_the_read_of_all_and_the_memory_of_one(store):
    """As the docs have it: values and columns of the selected cells are read and decoded, and one gene's are kept."""
    store.X.compute(scheduler="synchronous")  # reads where chunks are, which is kept
    read = {}
    for name, chosen in (("all", store), ("gene", store[:, "gene5"]), ("few", store[:10, "gene5"])):
        with recording() as requests:
            X = chosen.X.compute(scheduler="synchronous")
        read[name] = sum(r.n_bytes for r in requests if "/X/" in r.path)
        assert X.nnz == np.count_nonzero(COUNTS[: chosen.n_obs, [5] if chosen.n_vars == 1 else slice(None)])
    assert read["few"] < read["gene"] == read["all"]
