"""Figures of pictures against pandas and scanpy, and pictures that are drawn of them."""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import daodask
from daodask.build.depth import bin_start
from daodask.errors import DependencyError, SelectionError, UnknownNameError
from daodask.plot import _with_others, composition_counts, depth_histogram, gene_figures
from daodask.testing import random_store
from daodask.testing.recording import recording

plt = pytest.importorskip("matplotlib.pyplot")

SIZES = (70, 0, 33)


@pytest.fixture(scope="module")
def url() -> str:
    name = f"plot-{uuid.uuid4().hex}"
    random_store(f"memory://{name}", SIZES)
    return f"recording://{name}"


@pytest.fixture(scope="module")
def store(url: str) -> daodask.Store:
    return daodask.open_store(url)


@pytest.fixture(autouse=True, scope="module")
def headless():
    before = plt.get_backend()
    plt.switch_backend("agg")
    yield
    plt.switch_backend(before)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def text(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna(), "(missing)").astype(str)


def crossed(store: daodask.Store, by: str, split: str | None) -> dict[tuple[str, str], int]:
    """What pandas counts."""
    obs = store.obs.compute()
    groups = ["all"] * len(obs) if split is None else text(obs[split])
    return dict(Counter(zip(groups, text(obs[by]), strict=True)))


# -- composition -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "split"),
    [
        ("cell_type", None),
        ("dataset", None),
        ("odd", None),
        ("cell_type", "dataset"),
        ("dataset", "cell_type"),
        ("cell_type", "odd"),
        ("odd", "cell_type"),
        ("score", "odd"),
    ],
)
@pytest.mark.parametrize("rows", [slice(None), slice(5, 80, 2)], ids=["whole", "in part"])
def test_composition_counts_as_pandas_does(store: daodask.Store, by: str, split: str | None, rows: slice) -> None:
    cells = store[rows]
    found = composition_counts(cells, by, split, progress=None)
    assert {key: n for key, n in found.stack().items() if n} == crossed(cells, by, split)
    assert (found.dtypes == np.int64).all()
    totals = found[[c for c in found.columns if c != "(missing)"]].sum()
    assert totals.is_monotonic_decreasing
    assert "(missing)" not in found.columns[:-1]


def test_composition_of_whole_datasets_reads_nothing(store: daodask.Store) -> None:
    with recording() as requests:
        found = composition_counts(store, "cell_type", "dataset")
        composition_counts(store, "dataset", "cell_type")
        composition_counts(store, "cell_type")
        store.plot.composition("cell_type", split="dataset")
    assert requests == []
    assert list(found.index) == ["study0", "study2"]
    assert list(found.columns[-1:]) == ["(missing)"]


def test_composition_of_no_cell(store: daodask.Store) -> None:
    assert composition_counts(store[:0], "cell_type").shape == (1, 0)
    assert composition_counts(store[:0], "cell_type", "odd").shape == (0, 0)
    store[:0].plot.composition("cell_type")
    store[:0].plot.composition("cell_type", "odd")


def test_groups_are_in_the_order_of_categories(store: daodask.Store) -> None:
    found = composition_counts(store, "odd", "cell_type")
    known = next(c.categories for c in store.obs_schema if c.name == "cell_type")
    assert list(found.index) == [*known, "(missing)"]


def test_rare_labels_go_together() -> None:
    table = pd.DataFrame({"a": [5, 1], "b": [1, 1], "c": [3, 3], "d": [1, 0], "(missing)": [9, 9]})
    assert _with_others(table, 2).to_dict("list") == {
        "a": [5, 1],
        "c": [3, 3],
        "(others)": [2, 1],
        "(missing)": [9, 9],
    }
    assert _with_others(table, 4).equals(table)


# -- depth -------------------------------------------------------------------------------------------------------------


def binned(values: np.ndarray) -> list[int]:
    """By numpy, of positive values."""
    edges = [0.0, *(bin_start(k) for k in range(1, 80))]
    return np.trim_zeros(np.histogram(values, edges)[0], "b").tolist()


@pytest.mark.parametrize("column", [None, "n_counts"])
@pytest.mark.parametrize("genes", [slice(None), slice(0, 9)], ids=["all genes", "nine genes"])
def test_depth_is_numpys_histogram(store: daodask.Store, column: str | None, genes: slice) -> None:
    cells = store[3:90, genes]
    adata = cells.to_anndata()
    values = adata.obs["n_counts"].to_numpy() if column else np.asarray(adata.X.sum(axis=1)).ravel()
    found = depth_histogram(cells, column=column)
    assert found["all"].tolist() == binned(values)
    assert found.index[:3].tolist() == [0.0, 1.0, 10**0.1]
    by_dataset = depth_histogram(cells, "cell_type", column=column)
    assert by_dataset.sum(axis=1).tolist() == found["all"].tolist()
    labels = text(adata.obs["cell_type"])
    for label, histogram in by_dataset.items():
        assert np.trim_zeros(histogram.to_numpy(), "b").tolist() == binned(values[(labels == label).to_numpy()])


def test_depth_that_obs_has_reads_no_matrix(store: daodask.Store) -> None:
    with recording() as requests:
        store.plot.depth(by="cell_type")
    assert {r.name for r in requests if r.kind == "read"} == {"obs.parquet"}
    with recording() as requests:
        depth_histogram(store[:, :3])
    assert any("/X/" in r.path for r in requests)


def test_depth_without_a_value_is_left_out(store: daodask.Store) -> None:
    found = depth_histogram(store, column="score")
    assert found["all"].sum() == store.obs["score"].count().compute()


def test_depth_of_no_cell(store: daodask.Store) -> None:
    assert depth_histogram(store[:0]).to_numpy().sum() == 0
    store[:0].plot.depth()


@pytest.mark.parametrize("column", ["cell_type", "note", "dataset", "odd"])
def test_depth_is_of_numbers(store: daodask.Store, column: str) -> None:
    with pytest.raises(SelectionError, match=f"expected a column of numbers, '{column}' is "):
        depth_histogram(store, column=column)


# -- genes -------------------------------------------------------------------------------------------------------------


def test_gene_figures_are_scanpys(store: daodask.Store) -> None:
    genes = ["gene7", "gene2", "gene30"]
    adata = store.to_anndata()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    plot = sc.pl.dotplot(adata, genes, groupby="cell_type", show=False, return_fig=True)
    found = gene_figures(store, genes, "cell_type")
    groups = list(found.mean.index)
    np.testing.assert_allclose(found.mean, plot.dot_color_df.loc[groups, genes], rtol=1e-5)
    np.testing.assert_allclose(found.fraction, plot.dot_size_df.loc[groups, genes], rtol=1e-6)
    assert found.n_cells.to_dict() == adata.obs["cell_type"].value_counts().to_dict()
    assert list(found.mean.columns) == genes


def test_genes_without_a_transform_are_as_stored(store: daodask.Store) -> None:
    raw = gene_figures(store[:50], "gene3", "odd", transform=None)
    adata = store[:50, ["gene3"]].to_anndata()
    values = pd.Series(adata.X.toarray().ravel(), index=adata.obs["odd"].astype(str))
    expected = values.groupby(level=0).mean()
    assert raw.mean["gene3"].to_dict() == pytest.approx(expected.to_dict())


def test_genes_are_read_in_one_pass(store: daodask.Store) -> None:
    told: list[tuple[str, str, int, int]] = []
    gene_figures(store, ["gene3"], "cell_type", progress=lambda *call: told.append(call))
    n = len(store.blocks)
    assert told == [("genes", "pass", done, n) for done in range(1, n + 1)]


def test_a_cluster_finds_the_same(tmp_path: Path, client) -> None:
    store = random_store(tmp_path / "store", (40, 33))
    here, there = (gene_figures(store, ["gene3", "gene4"], "cell_type", client=c) for c in (None, client))
    pd.testing.assert_frame_equal(here.mean, there.mean)
    pd.testing.assert_frame_equal(here.fraction, there.fraction)
    depths = [depth_histogram(store[:, :9], "cell_type", client=c) for c in (None, client)]
    pd.testing.assert_frame_equal(*depths)
    store.plot.genes(["gene3"], by="cell_type", client=client)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_where_they_are_asked_for(store: daodask.Store, tmp_path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(14, 10), layout="constrained")
    drawn = [
        store.plot.composition("cell_type", ax=axes[0, 0]),
        store.plot.composition("cell_type", split="dataset", ax=axes[0, 1]),
        store.plot.depth("cell_type", ax=axes[1, 0]),
        store.plot.genes([f"gene{j}" for j in range(8)], by="cell_type", ax=axes[1, 1]),
    ]
    assert drawn == list(axes.ravel())
    figure.savefig(tmp_path / "pictures.png")
    assert [ax.get_xlabel() for ax in drawn] == ["cells", "share of cells", "n_counts", ""]
    widths = [bar.get_width() for bar in drawn[0].patches]
    assert widths == composition_counts(store, "cell_type").iloc[0].tolist()
    by_row = np.array([bar.get_width() for bar in drawn[1].patches]).reshape(-1, 2)
    np.testing.assert_allclose(by_row.sum(axis=0), 1)
    dots = drawn[3].collections[0]
    found = gene_figures(store, [f"gene{j}" for j in range(8)], "cell_type")
    np.testing.assert_allclose(dots.get_sizes(), 150 * found.fraction.to_numpy().ravel())
    np.testing.assert_allclose(dots.get_array(), found.mean.to_numpy().ravel())


def test_a_figure_is_made_where_none_is_given(store: daodask.Store) -> None:
    assert store.plot.genes("gene1", by="odd").figure is not store.plot.depth().figure


@pytest.mark.parametrize(
    "draw",
    [
        lambda store: store.plot.composition("cel_type"),
        lambda store: store.plot.composition("odd", split="cel_type"),
        lambda store: store.plot.depth("cel_type"),
        lambda store: store.plot.genes(["gene1"], by="cel_type"),
    ],
)
def test_an_unknown_column_names_the_nearest(store: daodask.Store, draw) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cell_type'"):
        draw(store)
    with pytest.raises(SelectionError, match="leave split= away"):
        store.plot.composition("odd", "odd")


def test_without_matplotlib_there_are_figures_and_a_hint(store: daodask.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (lambda p: p.composition("odd"), lambda p: p.depth(), lambda p: p.genes("gene1", by="odd")):
        with recording() as requests, pytest.raises(DependencyError, match=r"pip install 'daodask\[plot\]'"):
            draw(store.plot)
        assert requests == []
    assert composition_counts(store, "odd").to_numpy().sum() == sum(SIZES)
