"""Stores as xarray Datasets: aligned, lazy, selected and grouped as pandas would."""

from __future__ import annotations

import sys
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sparse
import xarray as xr
from dask.callbacks import Callback

import daodask
from daodask.convert import BlockKind
from daodask.errors import DependencyError, SpecError, UnknownNameError
from daodask.sparse import CSRBlock
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store

SIZES, N_VARS = (70, 0, 33), 32
COUNTS = coordinate_counts(np.arange(sum(SIZES)), N_VARS).toarray().astype(np.float32)
BLOCKS = {"csr": CSRBlock, "coo": sparse.COO, "dense": np.ndarray}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("xarray") / "store", SIZES)


def values(array: xr.DataArray) -> np.ndarray:
    found = array.data.compute() if hasattr(array.data, "compute") else array.data
    if isinstance(found, sparse.COO):
        return found.todense()
    return found.toarray() if sp.issparse(found) else np.asarray(found)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_what_a_dataset_has(store, blocks):
    computed: list[Any] = []
    with Callback(pretask=lambda key, *_: computed.append(key)):
        made = store.to_xarray(blocks=blocks)
    assert not computed
    assert dict(made.sizes) == {"obs": 103, "var": 32, "place_dim": 2}
    assert set(made.data_vars) == {"X", "half", "place"}
    assert made["X"].dims == made["half"].dims == ("obs", "var")
    assert isinstance(made["X"].data._meta, BLOCKS[blocks])
    np.testing.assert_array_equal(values(made["X"]), COUNTS)
    np.testing.assert_array_equal(values(made["half"]), COUNTS / 2)
    np.testing.assert_array_equal(values(made["place"])[:, 0], np.arange(103))
    np.testing.assert_array_equal(made["obs"], np.arange(103))
    assert made["var"].values.tolist() == store.var_names.tolist()
    obs = store.obs.compute()
    for name in obs.columns:
        assert made[name].dims == ("obs",)
        expected = obs[name].astype(object).where(obs[name].notna(), None)
        found = pd.Series(made[name].values, index=obs.index).astype(object)
        assert found.where(found.notna(), None).tolist() == expected.tolist()
    assert made["n_counts"].dtype == np.int64
    assert made["score"].dtype == np.float64
    assert made["odd"].dtype == bool
    assert set(made.attrs["datasets"]) == {"study0", "study2"}


@pytest.mark.parametrize("blocks", BLOCKS)
def test_selecting(store, blocks):
    made = store.to_xarray(blocks=blocks)
    np.testing.assert_array_equal(values(made.isel(obs=slice(5, 90, 3), var=[3, 1])["X"]), COUNTS[5:90:3][:, [3, 1]])
    np.testing.assert_array_equal(values(made.sel(var=["gene7", "gene2"])["half"]), COUNTS[:, [7, 2]] / 2)
    np.testing.assert_array_equal(values(made.sel(obs=[4, 100])["X"]), COUNTS[[4, 100]])
    b_cells = np.flatnonzero(made["cell_type"].values == "B cell")
    found = made.isel(obs=b_cells)
    np.testing.assert_array_equal(values(found["X"]), COUNTS[b_cells])
    assert set(found["cell_type"].values) == {"B cell"}
    narrowed = store[10:60, ["gene9", "gene4"]].to_xarray(obs=["odd"], blocks=blocks)
    np.testing.assert_array_equal(values(narrowed["X"]), COUNTS[10:60][:, [9, 4]])
    assert narrowed["obs"].values.tolist() == list(range(10, 60))
    assert "cell_type" not in narrowed.coords
    assert dict(store[:0].to_xarray(blocks=blocks).sizes) == {"obs": 0, "var": 32, "place_dim": 2}


def is_grouped_as_by_pandas(store: Store, by: str, func: str, blocks: BlockKind) -> None:
    made = store.to_xarray(obs=[by], blocks=blocks)
    found = getattr(made["X"].groupby(by), func)().compute()
    labels = store.obs.compute()[by].reset_index(drop=True).astype(object)  # xarray sorts labels
    grouped = pd.DataFrame(COUNTS).groupby(labels, observed=True)
    expected = getattr(grouped, func)(**({"ddof": 0} if func in ("var", "std") else {}))
    assert found.dims == (by, "var")
    assert found[by].values.tolist() == expected.index.tolist()
    np.testing.assert_allclose(values(found), expected.to_numpy(), rtol=1e-5)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("by", ["cell_type", "odd", "dataset"])
@pytest.mark.parametrize("func", ["mean", "sum", "max", "min", "var", "std"])
def test_groups_are_those_of_pandas(store, by, func, blocks):
    with xr.set_options(use_flox=False):
        is_grouped_as_by_pandas(store, by, func, blocks)


@pytest.mark.parametrize("blocks", ["coo", "dense"])
@pytest.mark.parametrize("by", ["cell_type", "odd", "dataset"])
@pytest.mark.parametrize("func", ["mean", "sum", "max", "min", "count"])
def test_groups_by_flox_are_those_of_pandas(store, by, func, blocks):
    pytest.importorskip("flox")
    is_grouped_as_by_pandas(store, by, func, blocks)


@pytest.mark.parametrize("by", ["cell_type", "dataset"])  # not sorted, and sorted: flox has a way for each
@pytest.mark.parametrize("func", ["mean", "max"])
def test_flox_is_told_that_it_can_not_group_csr(store, by, func):
    pytest.importorskip("flox")
    grouped = getattr(store.to_xarray(obs=[by])["X"].groupby(by), func)()
    with pytest.raises(TypeError, match=r"flox can't group; do it within xarray.set_options\(use_flox=False\)"):
        grouped.compute()


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("func", ["sum", "mean", "max", "min", "var", "std"])
@pytest.mark.parametrize("dim", ["obs", "var"])
def test_reducing(store, func, dim, blocks):
    found = getattr(store.to_xarray(obs=[], blocks=blocks)["X"], func)(dim).compute()
    assert isinstance(found.data, sparse.COO if blocks == "coo" else np.ndarray)
    np.testing.assert_allclose(values(found), getattr(COUNTS, func)(axis=0 if dim == "obs" else 1), rtol=1e-5)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_values_one_by_one(store, blocks):
    X = store.to_xarray(obs=[], blocks=blocks)["X"]
    np.testing.assert_allclose(values(np.log1p(X)), np.log1p(COUNTS), rtol=1e-6)
    np.testing.assert_array_equal(values(X / 2), COUNTS / 2)
    np.testing.assert_array_equal(values((X > 0).sum("obs")), (COUNTS > 0).sum(axis=0))


def test_blocks_that_there_are_not(store, monkeypatch):
    with pytest.raises(SpecError, match='expected blocks="csr", "coo" or "dense", got \'sparse\''):
        store.to_xarray(blocks="sparse")
    monkeypatch.setitem(sys.modules, "sparse", None)
    with pytest.raises(DependencyError, match=r"pip install 'daodask\[xarray\]'"):
        store.to_xarray(blocks="coo")


def test_names_that_are_taken(tmp_path):
    obs = pd.DataFrame({"X": [1, 2], "symbol": ["a", None], "half": [True, False]}, index=["c0", "c1"])
    counts = sp.csr_matrix(np.array([[1, 0], [0, 2]], dtype=np.float32))
    var = pd.DataFrame(index=["g0", "g1"])
    adata = anndata.AnnData(counts, obs=obs, var=var, layers={"half": counts / 2}, obsm={"half": np.eye(2)})
    study = {"id": "s", "source": adata, "layers": {"half": "layers/half"}, "obsm": ["*"]}
    report = daodask.build_store(
        {"features": {"name": "g", "reference": "union"}, "keep": "all", "studies": [study]}, tmp_path / "store"
    )
    made = daodask.open_store(report.url).to_xarray()
    assert {"X", "half", "obsm_half"} == set(made.data_vars)
    assert made["obsm_half"].dims == ("obs", "obsm_half_dim")
    assert made["obs_X"].values.tolist() == [1, 2]
    assert made["obs_half"].values.tolist() == [True, False]
    assert made["symbol"].dims == ("obs",)
    assert made["symbol"].values[0] == "a"
    assert pd.isna(made["symbol"].values[1])


def test_a_column_that_there_is_not(store):
    with pytest.raises(UnknownNameError, match="obs has no column 'cell_typ'; did you mean 'cell_type'"):
        store.to_xarray(obs=["cell_typ"])
