"""Stores as xarray Datasets: aligned, lazy, selected and grouped as pandas would."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr
from dask.callbacks import Callback

import daodask
from daodask.errors import UnknownNameError
from daodask.sparse import CSRBlock
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store

SIZES, N_VARS = (70, 0, 33), 32
COUNTS = coordinate_counts(np.arange(sum(SIZES)), N_VARS).toarray().astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("xarray") / "store", SIZES)


def values(array: xr.DataArray) -> np.ndarray:
    found = array.data.compute() if hasattr(array.data, "compute") else array.data
    return found.toarray() if sp.issparse(found) else np.asarray(found)


@pytest.mark.parametrize("dense", [False, True])
def test_what_a_dataset_has(store, dense):
    computed: list[Any] = []
    with Callback(pretask=lambda key, *_: computed.append(key)):
        made = store.to_xarray(dense=dense)
    assert not computed
    assert dict(made.sizes) == {"obs": 103, "var": 32, "place_dim": 2}
    assert set(made.data_vars) == {"X", "half", "place"}
    assert made["X"].dims == made["half"].dims == ("obs", "var")
    assert isinstance(made["X"].data._meta, np.ndarray if dense else CSRBlock)
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


@pytest.mark.parametrize("dense", [False, True])
def test_selecting(store, dense):
    made = store.to_xarray(dense=dense)
    np.testing.assert_array_equal(values(made.isel(obs=slice(5, 90, 3), var=[3, 1])["X"]), COUNTS[5:90:3][:, [3, 1]])
    np.testing.assert_array_equal(values(made.sel(var=["gene7", "gene2"])["half"]), COUNTS[:, [7, 2]] / 2)
    np.testing.assert_array_equal(values(made.sel(obs=[4, 100])["X"]), COUNTS[[4, 100]])
    b_cells = np.flatnonzero(made["cell_type"].values == "B cell")
    found = made.isel(obs=b_cells)
    np.testing.assert_array_equal(values(found["X"]), COUNTS[b_cells])
    assert set(found["cell_type"].values) == {"B cell"}
    narrowed = store[10:60, ["gene9", "gene4"]].to_xarray(obs=["odd"], dense=dense)
    np.testing.assert_array_equal(values(narrowed["X"]), COUNTS[10:60][:, [9, 4]])
    assert narrowed["obs"].values.tolist() == list(range(10, 60))
    assert "cell_type" not in narrowed.coords
    assert dict(store[:0].to_xarray(dense=dense).sizes) == {"obs": 0, "var": 32, "place_dim": 2}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("by", ["cell_type", "odd", "dataset"])
@pytest.mark.parametrize("func", ["mean", "sum", "max"])
def test_groups_are_those_of_pandas(store, by, func, dense):
    made = store.to_xarray(obs=[by], dense=dense)
    found = getattr(made["X"].groupby(by), func)().compute()
    labels = store.obs.compute()[by].reset_index(drop=True).astype(object)  # xarray sorts labels
    expected = getattr(pd.DataFrame(COUNTS).groupby(labels, observed=True), func)()
    assert found.dims == (by, "var")
    assert found[by].values.tolist() == expected.index.tolist()
    np.testing.assert_allclose(values(found), expected.to_numpy(), rtol=1e-5)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("func", ["sum", "mean", "max", "min", "var", "std"])
@pytest.mark.parametrize("dim", ["obs", "var"])
def test_reducing(store, func, dim, dense):
    found = getattr(store.to_xarray(obs=[], dense=dense)["X"], func)(dim).compute()
    assert isinstance(found.data, np.ndarray)
    np.testing.assert_allclose(found.data, getattr(COUNTS, func)(axis=0 if dim == "obs" else 1), rtol=1e-5)


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
