"""Highly variable genes, principal components and markers: equal to scanpy's and scikit-learn's on the same cells."""

from __future__ import annotations

import warnings
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.decomposition import PCA

import daodask
from daodask.analysis.blocks import MemoryBlock
from daodask.analysis.markers import _adjust
from daodask.analysis.ranks import BinnedRanks, gene_ranges
from daodask.errors import SelectionError, SpecError, UnknownNameError
from daodask.store import Store

# scanpy 1.12 asks pandas 3.1 for what that deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated:DeprecationWarning"),
]


def loaded(store: Store, *, log: bool = True) -> anndata.AnnData:
    """The same cells in memory, in float64; normalised by scanpy as reductions do by default."""
    adata = store.to_anndata()
    adata.X = adata.X.astype(np.float64)
    adata.obs_names = [f"row{i}" for i in range(adata.n_obs)]
    if log:
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    return adata


# -- highly variable genes ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`n_top_genes` > number of normalized dispersions:UserWarning")
@pytest.mark.parametrize("batch_key", [None, "plate"])
@pytest.mark.parametrize("flavor", ["seurat", "seurat_v3", "seurat_v3_paper"])
@pytest.mark.parametrize("n_top_genes", [None, 7])
def test_highly_variable_genes_are_those_of_scanpy(atlas, flavor, batch_key, n_top_genes):
    store = atlas[:, :-1]  # ranks of genes that do not vary, all the same, are by chance
    options: dict[str, Any] = {"flavor": flavor, "n_top_genes": n_top_genes, "batch_key": batch_key}
    if flavor != "seurat":
        options |= {"span": 0.9, "n_top_genes": n_top_genes or 10}  # few genes for a local regression
    adata = labelled(loaded(store, log=flavor == "seurat"), "plate")
    expected = sc.pp.highly_variable_genes(adata, inplace=False, **options)
    found = daodask.highly_variable_genes(store, **options)
    assert set(found.columns) == set(expected.columns) - {"mean_bin"}
    assert found["highly_variable"].sum() == (expected["highly_variable"].sum())
    assert found["highly_variable"].dtype == bool
    for column in found.columns.drop("gene_name", errors="ignore"):
        ours, theirs = found[column].astype(float), expected.loc[found.index, column].astype(float)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=column)


def test_highly_variable_genes_of_stored_logarithms_and_on_each_runner(atlas, runner):
    adata = loaded(atlas)
    expected = sc.pp.highly_variable_genes(adata, n_top_genes=9, inplace=False)
    stored = daodask.highly_variable_genes(atlas, n_top_genes=9, layer="lognorm", transform=None, **runner)
    found = daodask.highly_variable_genes(atlas, n_top_genes=9, **runner)
    for frame, rtol in ((stored, 1e-4), (found, 1e-9)):
        assert frame["highly_variable"].tolist() == expected["highly_variable"].tolist()
        np.testing.assert_allclose(frame["dispersions_norm"], expected["dispersions_norm"], rtol=rtol, atol=rtol)
    v3 = daodask.highly_variable_genes(atlas, flavor="seurat_v3", n_top_genes=9, span=0.9, **runner)
    assert v3["highly_variable"].sum() == 9


@pytest.mark.parametrize("flavor", ["seurat", "seurat_v3"])
def test_variance_of_the_cells_of_studies_that_measured_a_gene(partial, flavor, runner):
    """Genes 0 to 19 are of the first study alone, 30 to 38 of the second, 39 is never seen, and 0 always."""
    options: dict[str, Any] = {"flavor": flavor, "n_top_genes": 10, "span": 0.9}
    found = daodask.highly_variable_genes(partial, measured_only=True, **options, **runner)
    adata = partial.to_anndata()
    first = (adata.obs["dataset"] == "first").to_numpy()
    values = adata.X.toarray().astype(np.float64)
    if flavor == "seurat":
        values = values / values.sum(axis=1, keepdims=True) * 1e4
    cells = [first if j < 20 else ~first if j >= 30 else np.full(len(first), True) for j in range(40)]
    order = [int(name.removeprefix("gene")) for name in partial.var_names]
    own = {j: values[cells[j], column] for column, j in enumerate(order)}
    for j in range(39):
        row = found.loc[f"gene{j}"]
        mean, var = own[j].mean(), own[j].var(ddof=1)
        if flavor == "seurat":
            np.testing.assert_allclose(row["means"], np.log1p(mean), rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(row["dispersions"], np.log(var / mean) if var > 0 else np.nan, rtol=1e-6)
        else:
            np.testing.assert_allclose(row[["means", "variances"]].astype(float), [mean, var], rtol=1e-6)
    assert found["highly_variable"].sum() == 10
    padded = daodask.highly_variable_genes(partial, **options)
    assert not np.allclose(found["means"], padded["means"])


@pytest.mark.parametrize("n_top_genes", [None, 10])
def test_variance_in_each_study_of_the_genes_that_it_measured(partial, n_top_genes):
    options: dict[str, Any] = {"batch_key": "dataset", "n_top_genes": n_top_genes}
    found = daodask.highly_variable_genes(partial, measured_only=True, **options)
    alone = {
        name: daodask.highly_variable_genes(partial.subset(dataset=name), **options) for name in ("first", "second")
    }
    columns = ["means", "dispersions", "dispersions_norm"]
    genes = [f"gene{j}" for j in range(39)]
    for part, expected in ((genes[:20], alone["first"]), (genes[30:], alone["second"])):
        pd.testing.assert_frame_equal(found.loc[part, columns], expected.loc[part, columns])
    both = found.loc[genes[20:30], "means"]
    np.testing.assert_allclose(both, (alone["first"]["means"] + alone["second"]["means"]).loc[both.index] / 2)
    assert (found["highly_variable_intersection"] <= (found["highly_variable_nbatches"] > 0)).all()
    assert found.loc[genes[:20], "highly_variable_intersection"].any() == (n_top_genes is not None)


def test_a_gene_that_no_study_measured_is_not_taken(partial):
    first = partial.subset(dataset="first")
    found = daodask.highly_variable_genes(first, measured_only=True, n_top_genes=100)
    unknown = [f"gene{j}" for j in range(30, 40)]
    assert found.loc[unknown, ["means", "dispersions", "dispersions_norm"]].isna().all(axis=None)
    assert not found.loc[unknown, "highly_variable"].any()


def test_an_unknown_flavor_is_refused(atlas):
    with pytest.raises(SpecError, match="did you mean 'seurat_v3'"):
        daodask.highly_variable_genes(atlas, flavor="seurat_v33")


# -- principal components ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["all", "genes", "cells"])
def test_components_are_those_of_scikit_learn(atlas, which, runner):
    genes = None if which != "genes" else ["gene7", "gene3", "gene20", "gene0", "gene11"]
    store = atlas[::3] if which == "cells" else atlas
    adata = loaded(store)
    X = (adata if genes is None else adata[:, genes]).X.toarray()
    expected = PCA(4, svd_solver="full").fit(X)
    found = daodask.pca(store, 4, genes=genes, **runner)
    assert found.loadings.index.tolist() == list(store.var_names if genes is None else genes)
    np.testing.assert_allclose(found.variance, expected.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(found.variance_ratio, expected.explained_variance_ratio_, rtol=1e-10)
    signs = np.sign((found.loadings.to_numpy() * expected.components_.T).sum(axis=0))
    np.testing.assert_allclose(found.loadings * signs, expected.components_.T, atol=1e-9)
    assert (found.loadings.max() >= -found.loadings.min()).all()
    scores = found.scores(store, **runner)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores * signs, expected.transform(X), atol=1e-4)
    # Of other cells, or of genes in another order: the genes are found by name.
    np.testing.assert_array_equal(found.scores(store[3:30][:, ::-1]), scores[3:30])


def test_components_of_genes_that_all_measured_of_cells_that_were_shuffled(partial, partial_shuffled):
    found, wanted = (daodask.pca(s, 3, measured_only=True) for s in (partial_shuffled, partial))
    assert found.loadings.index.tolist() == wanted.loadings.index.tolist() == [f"gene{j}" for j in range(20, 30)]
    np.testing.assert_allclose(found.variance, wanted.variance, rtol=1e-9)
    first = partial_shuffled.subset(source_dataset="first")
    assert daodask.pca(first, 3, measured_only=True).loadings.index.tolist() == [f"gene{j}" for j in range(30)]


def test_components_of_genes_that_all_measured(partial):
    both = [f"gene{j}" for j in range(20, 30)]
    found = daodask.pca(partial, 3, measured_only=True)
    assert found.loadings.index.tolist() == both
    expected = daodask.pca(partial, 3, genes=both)
    pd.testing.assert_frame_equal(found.loadings, expected.loadings)
    np.testing.assert_array_equal(found.scores(partial), expected.scores(partial))
    some = daodask.pca(partial, 3, genes=["gene25", "gene3", "gene21", "gene39", "gene28"], measured_only=True)
    assert some.loadings.index.tolist() == ["gene25", "gene21", "gene28"]
    # One of the studies measured more.
    first = partial.subset(dataset="first")
    assert daodask.pca(first, 3, measured_only=True).loadings.index.tolist() == [f"gene{j}" for j in range(30)]
    # Padded zeros tell the studies apart; what both measured does less so.
    share = {only: share_between(daodask.pca(partial, 1, measured_only=only), partial) for only in (False, True)}
    assert share[False] > share[True]
    with pytest.raises(SpecError, match="expected 1 to 1 components of 1 genes and"):
        daodask.pca(partial, 2, genes=["gene3", "gene25", "gene39"], measured_only=True)


def share_between(found, store):
    """Of the variance along the first component, that between studies."""
    score = pd.Series(found.scores(store)[:, 0])
    means = score.groupby(store.obs["dataset"].compute().to_numpy().astype(str)).transform("mean")
    return means.var() / score.var()


def test_components_of_dense_and_of_sparse_products_are_the_same(atlas, monkeypatch):
    from daodask.analysis import pca

    found = []
    for share in (0.0, 1.1):
        monkeypatch.setattr(pca, "_DENSE", share)
        found.append(daodask.pca(atlas[:, ::-1], 3, threads=1).loadings)
    np.testing.assert_allclose(found[0], found[1], atol=1e-10)


def test_scanpy_finds_the_components_where_it_looks(atlas):
    variable = daodask.highly_variable_genes(atlas, n_top_genes=9)["highly_variable"]
    adata = loaded(atlas)
    sc.pp.pca(adata, 3, mask_var=variable.to_numpy(), svd_solver="arpack")
    expected = adata.obsm.pop("X_pca"), adata.varm.pop("PCs"), adata.uns.pop("pca")
    found = daodask.pca(atlas, 3, genes=variable)
    found.add_to(adata, found.scores(atlas))
    signs = np.sign((adata.varm["PCs"] * expected[1]).sum(axis=0))
    np.testing.assert_allclose(adata.varm["PCs"] * signs, expected[1], atol=1e-5)
    np.testing.assert_allclose(adata.obsm["X_pca"] * signs, expected[0], atol=1e-3)
    np.testing.assert_allclose(adata.uns["pca"]["variance_ratio"], expected[2]["variance_ratio"], rtol=1e-5)
    sc.pl.pca_loadings(adata, components="1,2", show=False)
    assert "3 principal components of" in repr(found)


@pytest.mark.parametrize("n", [0, 41])
def test_as_many_components_as_there_can_be(atlas, n):
    with pytest.raises(SpecError, match=f"expected 1 to 40 components of 40 genes and 208 cells, got {n}"):
        daodask.pca(atlas, n)
    with pytest.raises(SpecError, match="expected 1 to 2 "):
        daodask.pca(atlas[:3], 3)


# -- markers -----------------------------------------------------------------------------------------------------------


def labelled(adata: anndata.AnnData, column: str) -> anndata.AnnData:
    adata.obs[column] = adata.obs[column].astype("category").cat.remove_unused_categories()
    return adata


def compare(found: pd.DataFrame, expected: pd.DataFrame, rtol: float = 1e-5) -> None:
    """Gene by gene: which of tied ones comes first, nobody says. scanpy's scores and changes are float32."""
    keys = [c for c in ("group", "names") if c in expected]
    assert set(found.columns) == set(expected.columns)
    found, expected = (f.astype(dict.fromkeys(keys, str)).set_index(keys).sort_index() for f in (found, expected))
    assert found.index.equals(expected.index)
    for column in expected.columns:
        # scanpy 1.12 has means to the last bit otherwise than 1.11; a change of nothing by nothing is 0.
        np.testing.assert_allclose(found[column], expected[column], rtol=rtol, atol=2e-5, err_msg=column)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pandas.errors.PerformanceWarning")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("t-test", {}),
        ("t-test", {"reference": "T cell", "pts": True}),
        ("t-test", {"groups": ["B cell", "T cell"], "corr_method": "bonferroni"}),
        ("t-test_overestim_var", {"pts": True}),
        ("wilcoxon", {}),
        ("wilcoxon", {"tie_correct": True, "pts": True}),
        ("wilcoxon", {"tie_correct": True, "reference": "NK cell"}),
        ("wilcoxon", {"groups": ["T cell"], "reference": "B cell"}),
    ],
)
def test_markers_are_those_of_scanpy(atlas, method, options):
    """Of stored logarithms, so that both rank the very same values."""
    adata = labelled(loaded(atlas, log=False), "cell_type")
    adata.X = adata.layers["lognorm"].astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(adata, "cell_type", method=method, **options)
    found = daodask.rank_genes_groups(atlas, "cell_type", method=method, layer="lognorm", transform=None, **options)
    expected = sc.get.rank_genes_groups_df(adata, None)
    if "group" not in expected:
        expected.insert(0, "group", found.params["groupby"] and next(iter(found.groups)))
    compare(found.to_frame(), expected)
    for name, frame in found.groups.items():
        theirs = sc.get.rank_genes_groups_df(adata, name)
        np.testing.assert_allclose(frame["scores"], theirs["scores"], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("method", ["t-test", "wilcoxon"])
def test_markers_of_counts_normalised_on_the_way(atlas, method, runner):
    adata = labelled(loaded(atlas), "plate")
    adata.obs["plate"] = adata.obs["plate"].cat.rename_categories(str)
    sc.tl.rank_genes_groups(adata, "plate", method=method, tie_correct=True)
    found = daodask.rank_genes_groups(atlas, "plate", method=method, tie_correct=True, **runner)
    # Values that are the same are tied here, and a last bit apart in scanpy: some ranks differ by a half.
    compare(found.to_frame(), sc.get.rank_genes_groups_df(adata, None), rtol=1e-5 if method == "t-test" else 0.05)


@pytest.mark.parametrize("memory", [1, 20_000, "1GiB"])
def test_ranks_are_exact_however_few_genes_are_ranked_at_a_time(atlas, memory, runner):
    kinds = atlas.subset(cell_type=["B cell", "T cell"])
    found = daodask.rank_genes_groups(
        kinds, "cell_type", method="wilcoxon", tie_correct=True, transform=None, memory=memory, **runner
    ).to_frame("B cell")
    adata = loaded(kinds, log=False)
    own = (adata.obs["cell_type"] == "B cell").to_numpy()
    X = adata.X.toarray()
    for gene, score, p in found[["names", "scores", "pvals"]].itertuples(index=False):
        values = X[:, adata.var_names.get_loc(gene)]
        if len(np.unique(values)) > 1:
            expected = stats.mannwhitneyu(values[own], values[~own], use_continuity=False, method="asymptotic")
            np.testing.assert_allclose(p, expected.pvalue, rtol=1e-10)
        else:
            assert (score, p) == (0, 1)


def test_padded_zeros_are_no_sign_of_a_group(partial):
    """The studies' groups differ in a gene that one of them did not measure, unless that is known."""
    found = daodask.rank_genes_groups(partial, "plate", measured_only=True).to_frame("1").set_index("names")
    adata = loaded(partial)
    first = adata[(adata.obs["dataset"] == "first").to_numpy(), "gene3"]
    own = (first.obs["plate"] == 1).to_numpy()
    values = first.X.toarray().ravel()
    expected = stats.ttest_ind(values[own], values[~own], equal_var=False)
    np.testing.assert_allclose(found.loc["gene3", ["scores", "pvals"]], expected, rtol=1e-9)


def wilcoxon(store: Store, **options: Any) -> pd.DataFrame:
    found = daodask.rank_genes_groups(store, "cell_type", method="wilcoxon", **options).to_frame()
    return found.sort_values(["group", "names"], ignore_index=True)


@pytest.mark.parametrize("options", [{}, {"tie_correct": True}, {"reference": "NK cell", "tie_correct": True}])
@pytest.mark.parametrize("memory", ["1GiB", 9000])
def test_ranks_of_values_that_no_two_share_a_bin_are_exact(atlas, options, memory, runner):
    """Counts are whole numbers, and fewer than there are bins."""
    options = {"transform": None, **options}
    found = wilcoxon(atlas, bins=200, memory=memory, **options, **runner)
    pd.testing.assert_frame_equal(found, wilcoxon(atlas, **options), rtol=1e-12)


def test_ranks_in_bins_are_nearly_those_of_values(atlas):
    exact = wilcoxon(atlas)["scores"]
    errors = [np.abs(wilcoxon(atlas, bins=bins)["scores"] - exact).max() for bins in (4, 30, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.2
    assert errors[2] < 0.01


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-1, 0, 1]), st.integers(1, 30), st.integers(0, 6))
def test_binned_ranks_are_scipys(seed, reference, n_obs, shift):
    """Whole numbers from below zero, across it, or above it, in bins of their own."""
    generator = np.random.default_rng(seed)
    values = generator.integers(-3, 4, size=(n_obs, 2)) + generator.choice([-shift, 0, shift])
    values[generator.random(values.shape) < 0.4] = 0
    labels = generator.choice(["a", "b", "c"], n_obs)
    keys = (("a",), ("b",), ("c",))
    sizes = np.tile([[np.sum(labels == key)] for (key,) in keys], 2).astype(float)
    seen = [column[column != 0] for column in values.T]
    least, most = (np.array([pick(s) if len(s) else 0.0 for s in seen]) for pick in (np.min, np.max))
    reducer = BinnedRanks("group", keys, sizes, reference, least.astype(float), most.astype(float), 25)
    parts = [slice(0, n_obs // 2), slice(n_obs // 2, n_obs)]
    blocks = [
        MemoryBlock(sp.csr_matrix(values[p].astype(np.float64)), pd.DataFrame({"group": labels[p]})) for p in parts
    ]
    found = reducer.finalise(reducer.combine([reducer.block(b) for b in blocks]))
    for number, (key,) in enumerate(keys):
        rows = np.full(n_obs, True) if reference < 0 else (labels == key) | (labels == keys[reference][0])
        if number == reference:
            continue
        for gene in range(2):
            ranks = stats.rankdata(values[rows, gene])
            np.testing.assert_allclose(found.sums[number, gene], ranks[labels[rows] == key].sum())
            ties = np.unique(values[rows, gene], return_counts=True)[1].astype(float)
            np.testing.assert_allclose(found.ties[number, gene], (ties**3 - ties).sum())


@pytest.mark.parametrize("options", [{}, {"tie_correct": True}, {"reference": 2}, {"memory": 2000}, {"bins": 200}])
def test_ranks_of_the_cells_of_studies_that_measured_a_gene(partial, options, runner):
    """Genes 0 to 19 are of the first study alone, 30 to 39 of the second, those between of both."""

    def of(store: Store, **more: Any) -> pd.DataFrame:
        found = daodask.rank_genes_groups(store, "plate", method="wilcoxon", transform=None, **options, **more)
        return found.to_frame("1").set_index("names")[["scores", "logfoldchanges", "pvals"]]

    found, padded = of(partial, measured_only=True, **runner), of(partial)
    alone = {name: of(partial.subset(dataset=name)) for name in ("first", "second")}
    genes = [f"gene{j}" for j in range(40)]
    for part, expected in ((genes[:20], alone["first"]), (genes[20:30], padded), (genes[30:], alone["second"])):
        pd.testing.assert_frame_equal(found.loc[part], expected.loc[part], rtol=1e-9)
    assert not np.allclose(found.loc[genes[:20]], padded.loc[genes[:20]])


def test_a_table_for_scanpys_plots(atlas):
    import matplotlib as mpl

    mpl.use("agg")
    found = daodask.rank_genes_groups(atlas, "cell_type", n_genes=5, pts=True)
    assert found.groups["B cell"]["scores"].is_monotonic_decreasing
    assert len(found.to_frame()) == 15
    assert found.to_frame(["T cell", "B cell"])["group"].tolist() == ["T cell"] * 5 + ["B cell"] * 5
    adata = labelled(loaded(atlas), "cell_type")
    found.add_to(adata)
    theirs = sc.get.rank_genes_groups_df(adata, "T cell")
    assert theirs["names"].tolist() == found.groups["T cell"]["names"].tolist()
    sc.pl.rank_genes_groups(adata, n_genes=3, show=False)
    mpl.pyplot.close("all")
    assert repr(found).startswith("t-test of cell_type against rest\n  B cell: gene")


def test_genes_by_their_absolute_score(atlas):
    found = daodask.rank_genes_groups(atlas, "cell_type", rankby_abs=True).groups["T cell"]["scores"]
    assert found.abs().is_monotonic_decreasing
    assert (found < 0).any()


def test_corrections():
    pvals = np.array([0.01, 0.04, 0.03, 0.005, 0.9])
    np.testing.assert_allclose(_adjust(pvals, "benjamini-hochberg"), stats.false_discovery_control(pvals))
    np.testing.assert_allclose(_adjust(pvals, "bonferroni"), [0.05, 0.2, 0.15, 0.025, 1])


@pytest.mark.parametrize(
    ("nnz", "most", "ranges"),
    [
        ([], 10, []),
        ([3, 3, 3], 6, [(0, 2), (2, 3)]),
        ([9, 1, 1], 2, [(0, 1), (1, 3)]),
        ([0, 0, 0], 0, [(0, 3)]),
    ],
)
def test_ranges_of_genes(nnz, most, ranges):
    assert gene_ranges(np.array(nnz, dtype=float), most) == ranges


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groupby": "dataset"}, SelectionError, "'study2' of dataset has 1"),
        ({"groups": ["B cel"]}, UnknownNameError, "did you mean 'B cell'"),
        ({"groups": "B cell"}, SpecError, "write \\['B cell'\\]"),
        ({"reference": "Z"}, UnknownNameError, "no selected cell has cell_type = 'Z'"),
        ({"method": "logreg"}, SpecError, "got 'logreg'"),
        ({"bins": 100}, SpecError, "at least 2 bins, with method='wilcoxon', got 100 with 't-test'"),
        ({"bins": 1, "method": "wilcoxon"}, SpecError, "at least 2 bins"),
        ({"groups": ["B cell"], "reference": "B cell"}, SelectionError, "at least two groups"),
    ],
)
def test_comparisons_that_can_not_be_made(atlas, options, error, message):
    with pytest.raises(error, match=message):
        daodask.rank_genes_groups(atlas, **{"groupby": "cell_type", **options})


def test_a_real_study(data, tmp_path):
    path = data / "studies" / "kang18_8k.h5ad"
    studies = [{"id": "kang", "source": str(path), "keep": "all"}]
    spec = {"features": {"name": "g", "reference": "union"}, "layout": {"block_rows": 1024}, "studies": studies}
    assert daodask.build_store(spec, tmp_path / "store", threads=2).ok
    store = daodask.open_store(tmp_path / "store")
    adata = labelled(loaded(store), "cluster_id")
    genes = sc.pp.highly_variable_genes(adata, n_top_genes=300, inplace=False)
    found = daodask.highly_variable_genes(store, n_top_genes=300)
    assert (found["highly_variable"] == genes["highly_variable"]).all()
    variance = PCA(10, svd_solver="full").fit(adata[:, found["highly_variable"]].X.toarray()).explained_variance_
    np.testing.assert_allclose(daodask.pca(store, 10, genes=found["highly_variable"]).variance, variance, rtol=1e-8)
    sc.tl.rank_genes_groups(adata, "cluster_id", n_genes=20)
    best = daodask.rank_genes_groups(store, "cluster_id", n_genes=20)
    for name, frame in best.groups.items():
        assert frame["names"].tolist() == sc.get.rank_genes_groups_df(adata, name)["names"].tolist()
