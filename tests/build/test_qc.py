"""Quality of cells: scanpy as oracle, and what of it reaches obs, parquet and the snapshot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import daodask
from daodask.build.qc import BlockQuality, QCColumn, QCRange, QCSpec, gene_masks, join_ranges, qc_columns
from daodask.build.spec import load_spec
from daodask.errors import SpecError, StreamlineError
from daodask.format.manifest import ColumnSummary
from daodask.storage import StoreLocation

ALL = QCSpec(True, True, {"pct_mt": ("MT-*",)})


def spec(qc: Any, **changes: Any) -> dict[str, Any]:
    return {
        "features": {"name": "x", "reference": "union"},
        "studies": [{"id": "a", "source": "a.h5ad"}],
        "qc": qc,
        **changes,
    }


# -- the build file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qc", "made", "names"),
    [
        (None, QCSpec(), ()),
        (False, QCSpec(), ()),
        (True, QCSpec(True, True, mitochondrial=True), ("n_counts", "n_genes", "pct_mt")),
        ({"n_counts": True}, QCSpec(True), ("n_counts",)),
        ({"n_genes": True, "pct": True}, QCSpec(False, True, mitochondrial=True), ("n_genes", "pct_mt")),
        (
            {"pct": {"pct_mt": "MT-*", "pct_ribo": ["RPS*", "RPL*"]}},
            QCSpec(pct={"pct_mt": ("MT-*",), "pct_ribo": ("RPS*", "RPL*")}),
            ("pct_mt", "pct_ribo"),
        ),
    ],
)
def test_what_to_measure(qc: Any, made: QCSpec, names: tuple[str, ...]) -> None:
    (study,) = load_spec(spec(qc)).studies
    assert (study.qc, study.qc.names) == (made, names)


def test_a_study_overrides_the_top_level() -> None:
    studies = [{"id": "a", "source": "a.h5ad", "qc": False}, {"id": "b", "source": "b.h5ad"}]
    first, second = load_spec(spec(True, studies=studies)).studies
    assert (first.qc.names, second.qc.names) == ((), ("n_counts", "n_genes", "pct_mt"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (spec("yes"), "qc: expected a mapping with n_counts, n_genes, pct, got 'yes'"),
        (spec({}), "qc: expected something to measure, got none"),
        (spec({"ncounts": True}), "qc: unknown key 'ncounts'; did you mean 'n_counts'?"),
        (spec({"n_counts": 1}), "qc.n_counts: expected true or false, got 1"),
        (spec({"pct": {"pct_mt": 5}}), "qc.pct.pct_mt: expected text or a list of texts"),
        (spec({"pct": {"a/b": "MT-*"}}), "qc.pct: expected the name of a column"),
        (spec({"pct": {"n_counts": "MT-*"}}), "qc.pct: expected the name of a column"),
        (spec({"pct": {"dataset": "MT-*"}}), "qc.pct: expected the name of a column"),
        (spec(True, obs={"n_counts": {}}), "studies[0]: expected 'n_counts' from obs: or from qc:, got both"),
        (
            spec(True, studies=[{"id": "a", "source": "a.h5ad", "obs": {"pct_mt": "percent_mito"}}]),
            "studies[0]: expected 'pct_mt' from obs: or from qc:, got both",
        ),
    ],
)
def test_mistakes(document: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match="^" + re.escape(message)):
        load_spec(document)


# -- which genes ------------------------------------------------------------------------------------------------------


def test_genes_go_by_name_or_symbol() -> None:
    names, symbols = ["ENSG1", "MT-CO1", "mt-x", "ENSG2"], ["MT-ND1", "", "", "CD3E"]
    two = QCSpec(pct={"mt": ("MT-*",), "cd": ("CD*", "mt-?")})
    assert gene_masks(two, names, symbols, "").tolist() == [[True, True, False, False], [False, False, True, True]]
    assert gene_masks(QCSpec(True), names, symbols, "").shape == (0, 4)


@pytest.mark.parametrize(
    ("organism", "mask"),
    [
        ("Homo sapiens", [True, False, False, False]),
        ("Mus musculus", [False, True, False, False]),
        ("Rattus norvegicus", [False, False, True, False]),
        ("Danio rerio", [False, True, False, False]),
    ],
)
def test_mitochondrial_genes_by_organism(organism: str, mask: list[bool]) -> None:
    names = ["MT-CO1", "mt-Co1", "Mt-co1", "MTRNR2L1"]
    assert gene_masks(QCSpec(mitochondrial=True), names, [""] * 4, organism).tolist() == [mask]


@pytest.mark.parametrize(("organism", "got"), [("", "an unknown one"), ("Sus scrofa", "Sus scrofa")])
def test_organisms_whose_mitochondrial_genes_have_no_prefix(organism: str, got: str) -> None:
    with pytest.raises(StreamlineError, match=rf"qc: expected Homo sapiens, .*, got {got}; say which genes they are"):
        gene_masks(QCSpec(mitochondrial=True), ["MT-CO1"], [""], organism)


# -- measuring --------------------------------------------------------------------------------------------------------


def measured(matrix: sp.csr_matrix, masks: list[list[bool]], *bounds: int) -> BlockQuality:
    quality = BlockQuality(qc_columns(ALL, "counts"), np.array(masks, dtype=bool))
    for start, stop in zip((0, *bounds), (*bounds, matrix.shape[0]), strict=True):
        quality.add(matrix[start:stop])
    return quality


def test_measures() -> None:
    matrix = sp.csr_matrix(np.array([[1, 2, 0, 5], [0, 0, 0, 0], [0, 3, 0, 0]], dtype=np.float32))
    quality = measured(matrix, [[False, True, True, False]], 1)
    np.testing.assert_array_equal(quality.values, [[8, 0, 3], [3, 0, 1], [25, np.nan, 100]])
    assert quality.ranges == (QCRange(0, 8, 0), QCRange(0, 3, 0), QCRange(25, 100, 1))


def test_a_share_of_genes_that_a_study_lacks_is_missing() -> None:
    quality = measured(sp.csr_matrix(np.ones((2, 3))), [[False] * 3])
    assert np.isnan(quality.values[2]).all()
    assert quality.ranges[2] == QCRange(None, None, 2)


def test_zeros_and_repeated_entries() -> None:
    block = sp.csr_matrix((np.array([1, 0, 2, 4], np.int32), [1, 0, 1, 2], [0, 3, 4]), shape=(2, 3))
    quality = measured(block, [[False, True, False]])
    np.testing.assert_array_equal(quality.values, [[3, 4], [1, 1], [100, 0]])
    assert block.data.tolist() == [1, 0, 2, 4]


def test_sums_beyond_what_float32_holds() -> None:
    row = np.array([[2**24, 1, 1, 1]], dtype=np.float32)
    np.testing.assert_array_equal(measured(sp.csr_matrix(row), [[False] * 4]).values[0], [2**24 + 3])


def test_ranges_of_blocks_are_joined() -> None:
    columns = (QCColumn("n_counts", "int64"), QCColumn("pct_mt", "float64", 0))
    blocks = [
        (QCRange(3, 9, 0), QCRange(None, None, 2)),
        (QCRange(1, 4, 0), QCRange(0.5, 2.5, 0)),
        (QCRange(None, None, 0), QCRange(None, None, 0)),
    ]
    assert join_ranges(columns, blocks) == (
        ColumnSummary("n_counts", "int64", 0, low=1, high=9),
        ColumnSummary("pct_mt", "float64", 2, low=0.5, high=2.5),
    )
    assert [type(c.low) for c in join_ranges(columns, blocks)] == [int, float]
    assert join_ranges(columns, []) == (ColumnSummary("n_counts", "int64"), ColumnSummary("pct_mt", "float64"))


def by_scanpy(matrix: Any, mask: Any) -> pd.DataFrame:
    sc = pytest.importorskip("scanpy")
    var = pd.DataFrame({"mt": mask}, index=[f"g{i}" for i in range(len(mask))])
    adata = anndata.AnnData(sp.csr_matrix(matrix, dtype=np.float64), var=var)
    obs, _ = sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False)
    return obs


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.sampled_from([0, 0, 1, 3, 0.5])
    ),
    st.integers(0, 5),
    st.integers(0, 6),
)
def test_as_scanpy_does(dense: Any, n_mt: int, cut: int) -> None:
    mask = np.arange(dense.shape[1]) < max(1, n_mt)
    oracle = by_scanpy(dense, mask)
    values = measured(sp.csr_matrix(dense), [mask.tolist()], min(cut, len(dense))).values
    np.testing.assert_array_equal(values[0], oracle["total_counts"])
    np.testing.assert_array_equal(values[1], oracle["n_genes_by_counts"])
    np.testing.assert_array_equal(values[2], oracle["pct_counts_mt"])


# -- a store ----------------------------------------------------------------------------------------------------------


def atlas(data: Path, qc: Any, **study: Any) -> dict[str, Any]:
    genes = data / "genes"
    return {
        "features": {
            "name": "human",
            "reference": genes / "genes_homo_sapiens.csv.gz",
            "biotypes": ["protein_coding"],
        },
        "layout": {"block_rows": 1000},
        "qc": qc,
        "studies": [{"id": "pbmc", "source": data / "studies" / "pbmc_facs_zheng17.h5ad", **study}],
    }


def test_a_real_study(data: Path, tmp_path: Path) -> None:
    pct = {"pct_mt": "MT-*", "pct_ribo": ["RPS*", "RPL*"], "pct_none": "nothing*"}
    document = atlas(data, {"n_counts": True, "n_genes": True, "pct": pct}, keep=["n_*"])
    report = daodask.build_store(document, tmp_path / "store")
    assert report.ok, report
    source = anndata.read_h5ad(data / "studies" / "pbmc_facs_zheng17.h5ad")
    table = pd.read_csv(data / "genes" / "genes_homo_sapiens.csv.gz", header=None, keep_default_na=False)
    symbols = dict(zip(table[0].str.replace(r"\.\d+", "", regex=True), table[1], strict=True))
    # Over all genes of the source, mitochondrial RNAs that are not protein-coding too.
    named = pd.Series([str(symbols.get(name, "")) for name in source.var_names])
    store = daodask.open_store(tmp_path / "store")
    obs = store.obs.compute()
    oracle = by_scanpy(source.X, named.str.startswith("MT-").to_numpy())
    np.testing.assert_array_equal(obs["n_counts"], oracle["total_counts"])
    np.testing.assert_array_equal(obs["n_genes"], oracle["n_genes_by_counts"])
    np.testing.assert_array_equal(obs["pct_mt"], oracle["pct_counts_mt"])
    ribosomal = named.str.startswith(("RPS", "RPL")).to_numpy()
    np.testing.assert_array_equal(obs["pct_ribo"], by_scanpy(source.X, ribosomal)["pct_counts_mt"])
    assert obs["pct_none"].isna().all()
    assert [str(obs[c].dtype) for c in ("n_counts", "n_genes", "pct_mt")] == ["int64", "int32", "float64"]
    # The snapshot knows their ranges, and parquet has them.
    (info,) = store.snapshot.datasets
    for name in ("n_counts", "n_genes", "pct_mt", "pct_ribo"):
        column = info.column[name]
        assert (column.low, column.high, column.n_missing) == (obs[name].min(), obs[name].max(), 0)
    assert info.column["pct_none"] == ColumnSummary("pct_none", "float64", source.n_obs)
    parquet = pq.read_table(tmp_path / "store" / info.path / "obs.parquet").to_pandas()
    np.testing.assert_array_equal(parquet["pct_mt"], obs["pct_mt"])
    assert len(store.subset("pct_mt < 2 and n_counts > 1000")) == int(
        ((oracle["pct_counts_mt"] < 2) & (oracle["total_counts"] > 1000)).sum()
    )
    assert daodask.validate_store(tmp_path / "store").ok
    assert len(store.subset("n_counts > 1e9")) == 0
    assert daodask.build_store(document, tmp_path / "store").studies[0].status == "unchanged"
    document["qc"] = {"n_counts": True}
    assert daodask.build_store(document, tmp_path / "store").studies[0].status == "refused"


COUNTS = np.array([[1, 0, 3], [0, 0, 0], [4, 4, 0]], dtype=np.float32)


def made(tmp_path: Path, qc: Any, adata: anndata.AnnData, **study: Any) -> daodask.Store:
    location = StoreLocation.parse(tmp_path / "store")
    document = spec(qc, studies=[{"id": "a", "source": adata, **study}], layout={"block_rows": 2})
    report = daodask.build_store(document, location)
    assert report.ok, report
    return daodask.open_store(location)


def small() -> anndata.AnnData:
    names = ["MT-CO1", "CD3E", "HLA-A"]
    obs = pd.DataFrame({"n_counts": [7, 7, 7], "other": [1, 2, 3]}, index=list("abc"))
    return anndata.AnnData(sp.csr_matrix(COUNTS), obs, pd.DataFrame({"symbol": ["x", "MT-2", "y"]}, index=names))


def test_standard_columns_over_kept_ones(tmp_path: Path) -> None:
    store = made(tmp_path, True, small(), keep="all", uns={"organism": "human"})
    obs = store.obs.compute()
    assert obs["n_counts"].tolist() == [4, 0, 8]
    assert obs["n_genes"].tolist() == [2, 0, 2]
    assert obs["other"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(obs["pct_mt"], [25, np.nan, 50])
    assert daodask.validate_store(tmp_path / "store").ok


def test_symbols_of_the_study(tmp_path: Path) -> None:
    store = made(tmp_path, {"pct": {"pct_mt": "MT-?"}}, small(), genes={"symbols": "symbol"})
    np.testing.assert_array_equal(store.obs["pct_mt"].compute(), [0, np.nan, 50])


def test_sums_of_what_is_no_count_are_floats(tmp_path: Path) -> None:
    adata = small()
    adata.X = sp.csr_matrix(COUNTS / 8)
    obs = made(tmp_path, {"n_counts": True}, adata, X={"kind": "normalised"}).obs.compute()
    assert obs["n_counts"].tolist() == [0.5, 0, 1]


def test_an_unknown_organism_is_refused(tmp_path: Path) -> None:
    report = daodask.build_store(spec(True, studies=[{"id": "a", "source": small()}]), tmp_path / "store")
    assert report.studies[0].status == "refused"
    assert "qc: expected Homo sapiens" in report.studies[0].reason
