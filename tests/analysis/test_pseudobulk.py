"""Pseudobulk, means and reductions of stores: equal to pandas, numpy and scanpy on the same cells, on every runner."""

from __future__ import annotations

import operator
from functools import partial as bind
from functools import reduce as fold
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from clusters import LIMIT, fill, fill_up, local_cluster
from dask.callbacks import Callback

import daodask
from daodask import Normalise, Reduction
from daodask.analysis.run import plan_reduction
from daodask.errors import SpecError, UnknownNameError
from daodask.store import Store

# scanpy 1.12 asks pandas 3.1 for what that deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated:DeprecationWarning"),
]

N_OBS = 208
FUNCS = ["sum", "mean", "var", "nnz"]


def loaded(store: Store) -> anndata.AnnData:
    """The same cells in memory, in float64, under names of their own."""
    adata = store.to_anndata()
    adata.X = adata.X.astype(np.float64)
    adata.obs_names = [f"row{i}" for i in range(adata.n_obs)]
    return adata


def subsets(store: Store) -> dict[str, Store]:
    return {
        "all": store,
        "cells": store[np.arange(3, store.n_obs, 2)],
        "few": store[[5, 60, 131, 200]],
        "genes": store[:, [30, 2, 17, 0]],
        "query": store.subset("plate > 1", dataset=["study0", "study3"])[:, ::-1],
    }


@pytest.mark.parametrize("which", ["all", "cells", "few", "genes", "query"])
@pytest.mark.parametrize("by", [["cell_type"], ["dataset", "plate"], ["day", "odd", "cell_type"]])
def test_groups_are_those_of_pandas(atlas, by, which):
    store = subsets(atlas)[which]
    adata = loaded(store)
    expected = pd.DataFrame(adata.X.toarray()).groupby([adata.obs[c].reset_index(drop=True) for c in by], observed=True)
    found = daodask.pseudobulk(store, by, FUNCS)
    labels = expected.sum().index.to_frame(index=False)
    assert found.obs[by].astype(object).to_numpy().tolist() == labels.astype(object).to_numpy().tolist()
    assert all(found.obs[name].dtype == store.obs_dtypes[name] for name in by)
    assert found.obs["n_cells"].tolist() == expected.size().tolist()
    pd.testing.assert_frame_equal(found.var, store.var)
    np.testing.assert_array_equal(found.layers["sum"], expected.sum())
    np.testing.assert_allclose(found.layers["mean"], expected.mean(), rtol=1e-14)
    np.testing.assert_allclose(found.layers["var"], expected.var(), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(found.layers["nnz"], expected.agg(lambda s: (s != 0).sum()))


@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Group counts matches dof:RuntimeWarning")
def test_the_groups_of_scanpy(atlas, runner):
    adata = loaded(atlas)
    known = adata[adata.obs["cell_type"].notna()].copy()
    expected = sc.get.aggregate(known, ["dataset", "cell_type"], ["sum", "mean", "var", "count_nonzero"])
    found = daodask.pseudobulk(atlas, ["dataset", "cell_type"], FUNCS, **runner)
    order = [expected.obs_names.get_loc(name) for name in found.obs_names]
    assert sorted(order) == list(range(expected.n_obs))
    for ours, theirs in zip(FUNCS, ["sum", "mean", "var", "count_nonzero"], strict=True):
        values = expected.layers[theirs][order]
        values = values.toarray() if sp.issparse(values) else values
        # Where scanpy has one cell in a group, it has no variance, by one name or another.
        many = found.obs["n_cells"].to_numpy() > 1
        np.testing.assert_allclose(found.layers[ours][many], values[many], rtol=1e-9, atol=1e-12)


def test_each_runner_finds_the_same_sums_to_the_last_bit(atlas, runner):
    expected = daodask.pseudobulk(atlas, ["cell_type", "plate"], threads=1)
    found = daodask.pseudobulk(atlas, ["cell_type", "plate"], **runner)
    assert found.X.tobytes() == expected.X.tobytes()
    pd.testing.assert_frame_equal(found.obs, expected.obs)


def test_missing_labels_are_left_out_or_a_group_of_their_own(atlas):
    kept = daodask.pseudobulk(atlas, "cell_type", dropna=False)
    dropped = daodask.pseudobulk(atlas, "cell_type")
    assert dropped.obs["cell_type"].tolist() == ["B cell", "NK cell", "T cell"]
    assert kept.obs_names.tolist() == ["B cell", "NK cell", "T cell", "nan"]
    assert kept.obs["cell_type"].isna().tolist() == [False, False, False, True]
    assert kept.obs["n_cells"].sum() == N_OBS
    np.testing.assert_array_equal(kept.X[:3], dropped.X)
    np.testing.assert_array_equal(kept.X.sum(axis=0), daodask.reduce(atlas, "sum"))


def test_empty_groups_on_request(atlas):
    found = daodask.pseudobulk(atlas, ["cell_type", "plate"], ["sum", "mean"], observed=False)
    assert found.n_obs == 4 * 3
    empty = found[found.obs["cell_type"] == "never seen"]
    assert empty.obs["n_cells"].tolist() == [0, 0, 0]
    assert not empty.layers["sum"].any()
    assert np.isnan(empty.layers["mean"]).all()


def test_a_group_of_one_cell_has_no_variance(atlas):
    found = daodask.pseudobulk(atlas, "dataset", ["var", "mean"])
    one = found.obs["n_cells"].to_numpy() == 1
    assert one.tolist() == [False, True, False]
    assert np.isnan(found.layers["var"][one]).all()
    assert not np.isnan(found.layers["var"][~one]).any()
    assert not np.isnan(found.layers["mean"]).any()
    assert not daodask.pseudobulk(atlas, "dataset", "var", ddof=0).X[one].any()


def test_layers_and_sparse_results(atlas):
    expected = atlas.layers["lognorm"].compute().toarray().astype(np.float64)
    dataset = loaded(atlas).obs["dataset"].to_numpy()
    found = daodask.pseudobulk(atlas, "dataset", "mean", layer="lognorm")
    for name, row in zip(found.obs["dataset"], found.X, strict=True):
        np.testing.assert_allclose(row, expected[dataset == name].mean(axis=0), rtol=1e-12)
    sparse = daodask.pseudobulk(atlas, "cell_type", sparse=True).X
    assert isinstance(sparse, sp.csr_matrix)
    np.testing.assert_array_equal(sparse.toarray(), daodask.pseudobulk(atlas, "cell_type").X)


def test_padded_zeros_do_not_count(partial, runner):
    adata = loaded(partial)
    X, dataset = adata.X.toarray(), adata.obs["dataset"].to_numpy()
    found = daodask.pseudobulk(partial, "dataset", ["mean", "sum"], measured_only=True, **runner)
    assert np.isnan(found.layers["mean"][0]).nonzero()[0].tolist() == list(range(30, 40))
    assert np.isnan(found.layers["sum"][1]).nonzero()[0].tolist() == list(range(20))
    genes = daodask.mean_var(partial, measured_only=True, **runner)
    first, second = X[dataset == "first"], X[dataset == "second"]
    assert genes["n_cells"].tolist() == [30] * 20 + [51] * 10 + [21] * 10
    for of, rows in ((slice(0, 20), first), (slice(20, 30), X), (slice(30, 40), second)):
        np.testing.assert_allclose(genes["mean"].iloc[of], rows[:, of].mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(genes["var"].iloc[of], rows[:, of].var(axis=0, ddof=1), rtol=1e-12)
    plain = daodask.mean_var(partial, **runner)
    np.testing.assert_allclose(plain["mean"], X.mean(axis=0), rtol=1e-14)
    assert (plain["mean"][:20] < genes["mean"][:20]).sum() > 10
    least = daodask.reduce(partial, "min", measured_only=True, **runner)
    np.testing.assert_array_equal(least[:20], first[:, :20].min(axis=0))


def test_cells_that_were_shuffled_are_of_the_study_that_measured_them(partial, partial_shuffled, runner):
    assert len(partial_shuffled.datasets) == 1
    assert partial_shuffled.measured.to_numpy().all()
    for of in (daodask.mean_var, lambda s, **o: daodask.reduce(s, "min", **o).to_frame()):
        wanted, got = of(partial, measured_only=True), of(partial_shuffled, measured_only=True, **runner)
        np.testing.assert_allclose(got.to_numpy(), wanted.to_numpy(), rtol=1e-12)
    by_study = daodask.pseudobulk(partial_shuffled, "source_dataset", "mean", measured_only=True, **runner)
    wanted = daodask.pseudobulk(partial, "dataset", "mean", measured_only=True)
    np.testing.assert_allclose(by_study.X, wanted.X, rtol=1e-12)
    genes = partial_shuffled[:, 5:25]
    np.testing.assert_allclose(
        daodask.mean_var(genes, measured_only=True)["mean"],
        daodask.mean_var(partial[:, 5:25], measured_only=True)["mean"],
    )


def test_a_gene_that_nobody_measured_has_no_mean(partial):
    second = partial.subset(dataset="second")
    for func in ("sum", "mean", "var", "nnz", "fraction", "min", "max"):
        found = daodask.reduce(second, func, measured_only=True)
        assert found.isna().tolist() == [True] * 20 + [False] * 20, func


def test_group_means(atlas):
    found = daodask.group_means(atlas, "cell_type", transform=Normalise())
    assert found.index.tolist() == ["B cell", "NK cell", "T cell"]
    lognorm = pd.DataFrame(atlas.layers["lognorm"].compute().toarray(), columns=atlas.var_names)
    expected = lognorm.groupby(loaded(atlas).obs["cell_type"].reset_index(drop=True), observed=True).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # the layer is float32
    assert found.columns.equals(atlas.var_names)
    both = daodask.group_means(atlas, ["cell_type", "plate"])
    assert both.index.names == ["cell_type", "plate"]
    assert both.loc[("B cell", 2)].shape == (40,)


# -- reduce ------------------------------------------------------------------------------------------------------------

NUMPY = {
    "sum": np.sum,
    "mean": np.mean,
    "var": bind(np.var, ddof=1),
    "nnz": lambda X, axis: (X != 0).sum(axis=axis),
    "fraction": lambda X, axis: (X != 0).mean(axis=axis),
    "min": np.min,
    "max": np.max,
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("func", NUMPY)
def test_reductions_are_those_of_numpy(atlas, func, axis, runner):
    for store in [atlas, subsets(atlas)["query"]] if "client" in runner else subsets(atlas).values():
        X = loaded(store).X.toarray()
        found = daodask.reduce(store, func, axis, **runner)
        np.testing.assert_allclose(found, NUMPY[func](X, axis=axis), rtol=1e-12, atol=1e-13)
        rows = pd.Index(store.selection.store_rows)
        assert found.index.equals(store.var_names if axis == 0 else rows)
        assert found.dtype == np.float64


def test_a_reduction_of_ones_own(atlas, runner):
    deepest = Reduction(_deepest, _max_of_each, dict, columns=("plate",))
    adata = loaded(atlas)
    totals = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel())
    assert daodask.reduce(atlas, deepest, **runner) == totals.groupby(adata.obs["plate"].to_numpy()).max().to_dict()


def _deepest(X: Any, obs: pd.DataFrame, var: pd.DataFrame) -> dict[int, float]:
    assert list(obs.columns) == ["plate"]
    assert X.shape == (len(obs), len(var))
    return pd.Series(np.asarray(X.sum(axis=1)).ravel()).groupby(obs["plate"].to_numpy()).max().to_dict()


def _max_of_each(parts: list[dict[int, float]]) -> dict[int, float]:
    return {key: max(p[key] for p in parts if key in p) for key in fold(operator.or_, parts)}


def test_the_median_of_totals_is_what_scanpy_normalises_to(atlas, runner):
    adata = loaded(atlas)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    found = daodask.mean_var(atlas, transform=Normalise(target_sum=None), **runner)
    np.testing.assert_allclose(found["mean"], np.asarray(adata.X.mean(axis=0)).ravel(), rtol=1e-12)


def test_a_worker_short_of_memory_keeps_none_for_what_is_next(atlas):
    """It takes no more tasks where it has four fifths of its limit: already the parts would not be combined."""
    from distributed import Client

    with local_cluster(1, memory_limit=LIMIT) as cluster, Client(cluster) as client:
        # What is imported on the way is there from then on.
        daodask.reduce(atlas, "sum", client=client)
        idle = client.submit(fill, 0, 0).result()
        had = daodask.reduce(atlas[:1], Reduction(lambda X, obs, var: fill_up(idle), max, int), client=client)
        assert 0.8 * LIMIT < had < 0.95 * LIMIT
        assert daodask.reduce(atlas, "sum", client=client).tolist() == daodask.reduce(atlas, "sum").tolist()


# -- no cells, no genes ------------------------------------------------------------------------------------------------


def test_a_store_without_a_cell(atlas):
    nothing = atlas.subset(dataset="study1")
    assert nothing.n_obs == 0
    assert daodask.pseudobulk(nothing, ["cell_type", "plate"], FUNCS).shape == (0, 40)
    assert daodask.mean_var(nothing)["mean"].isna().all()
    assert daodask.reduce(nothing, "sum").tolist() == [0.0] * 40
    assert len(daodask.reduce(nothing, "sum", axis=1)) == 0
    assert daodask.reduce(nothing, Reduction(lambda X, obs, var: X.shape[0], sum, int)) == 0
    assert daodask.reduce(atlas[:, []], "sum", axis=1).tolist() == [0.0] * atlas.n_obs


# -- map_blocks --------------------------------------------------------------------------------------------------------


def _depth(X: Any, obs: pd.DataFrame, var: pd.DataFrame) -> np.ndarray:
    return np.asarray(X.sum(axis=1)).ravel()


def _labelled(X: Any, obs: pd.DataFrame, var: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"plate": obs["plate"], "depth": _depth(X, obs, var)}, index=obs.index)


def test_blocks_are_mapped_lazily(atlas, client):
    import dask

    tasks = []
    totals = np.asarray(loaded(atlas).X.sum(axis=1)).ravel()
    with Callback(pretask=lambda *a: tasks.append(a)):
        pieces = daodask.map_blocks(atlas, _depth, obs=())
        array = daodask.map_blocks(atlas, _depth, obs=(), meta=np.empty(0))
        frame = daodask.map_blocks(
            atlas, _labelled, obs=["plate"], meta=pd.DataFrame({"plate": [0], "depth": [0.0]})[:0]
        )
    assert not tasks
    assert len(pieces) == len(atlas.blocks) == frame.npartitions == array.numblocks[0]
    assert array.chunks == (atlas.X.chunks[0],)
    np.testing.assert_array_equal(np.concatenate(dask.compute(*pieces)), totals)
    np.testing.assert_array_equal(array.compute(scheduler="sync"), totals)
    np.testing.assert_array_equal(frame.compute()["depth"], totals)
    assert array.sum().compute() == totals.sum()


def test_mapped_blocks_are_transformed(atlas):
    import dask

    found = daodask.map_blocks(atlas[:, [3, 1]], lambda X, obs, var: (X, list(var.index)), transform=Normalise())
    values, names = zip(*dask.compute(*found, scheduler="sync"), strict=True)
    expected = atlas.layers["lognorm"].compute()[:, [3, 1]].toarray()
    np.testing.assert_allclose(sp.vstack(values).toarray(), expected, rtol=1e-5)
    assert names[0] == ["gene3", "gene1"]


# -- plans and refusals ------------------------------------------------------------------------------------------------


def test_tasks_are_few_and_even(atlas):
    plan = plan_reduction(atlas, threads=2)
    assert [b for task in plan.tasks for b in task] == list(atlas.blocks)
    assert len(plan.tasks) == 8
    cells = [sum(b.n_obs for b in task) for task in plan.tasks]
    assert max(cells) <= 3 * min(cells)
    assert repr(plan) == "X of 208 cells × 40 genes in 15 blocks, read by 8 tasks and combined in 1 step"
    assert plan_reduction(atlas, threads=100).depth == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: daodask.pseudobulk(s, "celltype"), UnknownNameError, "did you mean 'cell_type'"),
        (lambda s: daodask.pseudobulk(s, "plate", "median"), SpecError, "got 'median'"),
        (lambda s: daodask.pseudobulk(s, "plate", []), SpecError, "got none"),
        (lambda s: daodask.pseudobulk(s, "plate", layer="lognrm"), UnknownNameError, "did you mean 'lognorm'"),
        (lambda s: daodask.reduce(s, "sum", axis=2), SpecError, "got 2"),
        (lambda s: daodask.reduce(s, "sum", axis=1, measured_only=True), SpecError, "axis 0"),
        (lambda s: daodask.reduce(s, Reduction(_depth, sum, sum), axis=1), SpecError, "without axis"),
        (lambda s: daodask.reduce(s, "sum", threads=-1), SpecError, "got -1"),
        (lambda s: daodask.map_blocks(s, _depth, meta="float"), SpecError, "got str"),
        (lambda s: daodask.map_blocks(s, _depth, transform=Normalise(None)), SpecError, "target_sum"),
        (lambda s: daodask.mean_var(s, layer="lognorm", transform=Normalise()), SpecError, "to normalise"),
    ],
)
def test_what_can_not_be_meant_is_refused(atlas, call, error, message):
    with pytest.raises(error, match=message):
        call(atlas)


# -- real cells --------------------------------------------------------------------------------------------------------


def test_a_real_study(data, tmp_path):
    path = data / "studies" / "kang18_8k.h5ad"
    studies = [{"id": "kang", "source": str(path), "keep": "all"}]
    spec = {"features": {"name": "g", "reference": "union"}, "layout": {"block_rows": 1024}, "studies": studies}
    assert daodask.build_store(spec, tmp_path / "store", threads=2).ok
    store = daodask.open_store(tmp_path / "store")
    adata = anndata.read_h5ad(path)
    adata.X = sp.csr_matrix(adata.X).astype(np.float64)
    expected = sc.get.aggregate(adata, ["cluster_id", "sample_id"], ["sum", "var"])
    found = daodask.pseudobulk(store, ["cluster_id", "sample_id"], ["sum", "var"])
    genes, order = store.var_names, found.obs_names
    ours = expected[order, genes]
    np.testing.assert_array_equal(found.layers["sum"], ours.layers["sum"])
    np.testing.assert_allclose(found.layers["var"], ours.layers["var"], rtol=1e-8, atol=1e-12)
