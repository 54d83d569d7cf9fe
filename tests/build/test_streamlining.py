"""Rules of the build file on whole builds: genes by list and override, which matrix, what its values may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask

TABLE = b"""\
ENSG00000000001,AAA,1,1,protein_coding
ENSG00000000002,BBB,1,1,protein_coding
ENSG00000000003,TWIN,1,1,protein_coding
ENSG00000000004,TWIN,1,1,protein_coding
"""


def study(values: Any, genes: list[str] | None = None) -> anndata.AnnData:
    names = genes or [f"g{i}" for i in range(values.shape[1])]
    obs = pd.DataFrame(index=[f"c{i}" for i in range(values.shape[0])])
    return anndata.AnnData(values, obs, pd.DataFrame(index=names))


def build(tmp_path: Path, source: Any, features: dict[str, Any] | None = None, **keys: Any) -> daodask.BuildReport:
    space = {"name": "x", "reference": "union", **(features or {})}
    return daodask.build_store({"features": space, "studies": [{"id": "a", "source": source, **keys}]}, tmp_path / "s")


def stored(tmp_path: Path) -> list[list[float]]:
    return [row.tolist() for row in daodask.open_store(tmp_path / "s").to_anndata().X.toarray()]


# -- genes ------------------------------------------------------------------------------------------------------------

ONE_CELL = sp.csr_matrix(np.array([[1, 2, 4, 8]], dtype=np.float32))


def test_an_exact_list(tmp_path: Path) -> None:
    report = build(
        tmp_path, study(ONE_CELL, ["HLA-A", "HLA-A-1", "HLA-B", "ERCC-00002"]), {"reference": ["HLA-B", "C", "HLA-A"]}
    )
    assert report.ok, report
    assert stored(tmp_path) == [[4, 0, 1]]
    assert daodask.open_store(tmp_path / "s").var_names.tolist() == ["HLA-B", "C", "HLA-A"]
    (found,) = report.studies
    assert (found.genes_matched, found.genes_padded, found.counts_kept) == (2, 1, 5)
    assert {reason: n for reason, n in found.genes_dropped.items() if n} == {"unknown": 1, "spike-in": 1}


def test_a_list_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("HLA-B\nHLA-A\n")
    report = build(tmp_path, study(ONE_CELL, ["HLA-A", "x", "HLA-B", "y"]), {"reference": tmp_path / "genes.txt"})
    assert report.ok, report
    assert stored(tmp_path) == [[4, 1]]


def test_ambiguous_names_are_reported_and_settled(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(TABLE)
    features, names = {"reference": tmp_path / "table.csv"}, ["AAA", "TWIN", "old", "BBB"]
    document = {"features": {"name": "x", **features}, "studies": [{"id": "a", "source": study(ONE_CELL, names)}]}
    plan = repr(daodask.plan_build(document, tmp_path / "s"))
    told = "a: 1 names stand for several genes and are dropped: TWIN (ENSG00000000003 or ENSG00000000004)"
    assert told in plan
    report = build(tmp_path, study(ONE_CELL, names), features)
    candidates = {"TWIN": ("ENSG00000000003", "ENSG00000000004")}
    assert report.studies[0].genes_ambiguous == candidates
    assert json.loads(report.to_json())["studies"][0]["genes_ambiguous"] == {n: [*ids] for n, ids in candidates.items()}
    assert stored(tmp_path) == [[1, 8, 0, 0]]
    # What the store says of it later is the same.
    again = build(tmp_path, study(ONE_CELL, names), features)
    assert (again.studies[0].status, again.studies[0].genes_ambiguous) == ("unchanged", candidates)
    settled = {"overrides": {"TWIN": "ENSG00000000004", "old": "BBB", "AAA": None}, "ambiguous": "error"}
    report = build(tmp_path / "settled", study(ONE_CELL, names), features, genes=settled)
    assert report.ok, report
    assert stored(tmp_path / "settled") == [[0, 12, 0, 2]]
    refused = build(tmp_path / "refused", study(ONE_CELL, names), features, genes={"ambiguous": "error"})
    assert "got 1 that stand for several: 'TWIN' (ENSG00000000003 or ENSG00000000004)" in refused.studies[0].reason


# -- which matrix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "value"),
    [("raw|X", 3), ("layers/counts|raw|X", 5), ("layers/absent|X", 7), ("X|raw", 7), ("layers/absent|raw", 3)],
)
def test_the_first_matrix_that_is_there(layer: str, value: int, tmp_path: Path) -> None:
    adata = study(sp.csr_matrix(np.full((2, 2), 3.0)))
    adata.raw = adata.copy()
    adata.layers["counts"] = sp.csr_matrix(np.full((2, 2), 5.0))
    adata.X = sp.csr_matrix(np.full((2, 2), 7.0))
    adata.write_h5ad(tmp_path / "a.h5ad")
    report = build(tmp_path, tmp_path / "a.h5ad", layer=layer)
    assert report.ok, report
    assert stored(tmp_path) == [[value] * 2] * 2


def test_no_matrix_is_there(tmp_path: Path) -> None:
    report = build(tmp_path, study(ONE_CELL), layer="raw|layers/absent")
    assert report.studies[0].status == "failed"


# -- what its values may be -------------------------------------------------------------------------------------------

F32, F64, NAN, INF = np.float32, np.float64, np.nan, np.inf


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "result"),
    [
        ([1, 65535], F32, "counts", "uint16"),
        ([1, 65536], F32, "counts", "uint32"),
        ([1, 2**24], F32, "counts", "uint32"),
        ([1, 2**24 + 2], F32, "counts", "uint32"),
        ([1, 2**24 + 1], F64, "counts", "uint32"),
        ([1, 2**32 - 1], F64, "counts", "uint32"),
        ([1, 2**32], np.int64, "counts", "uint64"),
        ([1, 2**53], F64, "counts", "uint64"),
        ([1, 2**53], np.int64, "counts", "uint64"),
        ([1, 2**53 + 1], np.int64, "counts", "expected counts up to 9007199254740992"),
        ([1, 2**53 + 2], F64, "counts", "expected counts up to 9007199254740992"),
        ([1, 1.5], F32, "counts", "expected counts (integral, non-negative, finite), got 1.5"),
        ([1, 2**23 + 0.5], F64, "counts", "expected counts (integral, non-negative, finite), got 8388608.5"),
        ([1, -1], np.int32, "counts", "expected counts (integral, non-negative, finite), got -1"),
        ([1, NAN], F32, "counts", "got nan"),
        ([1, INF], F32, "counts", "got inf"),
        ([1.5, -2.5], F32, "normalised", "float32"),
        ([0.1, 2.0], F64, "normalised", "float64"),
        ([0.5, 2.0], F64, "normalised", "float32"),
        ([1, 2], F32, "normalised", "uint16"),
        ([1, NAN], F32, "normalised", "expected finite values, got nan"),
        ([1, -INF], F64, "normalised", "expected finite values, got -inf"),
        ([1, NAN], F32, "other", "float32"),
        ([1, INF], F32, "other", "float32"),
        ([-1, 2], np.int8, "other", "float32"),
        ([-1, 2**24 + 1], np.int64, "other", "float64"),
        ([1, 2**53], np.int64, "other", "uint64"),
        ([-(2**53), 1], np.int64, "other", "float32"),
        ([1, 2**53 + 1], np.int64, "other", "expected values that float64 holds exactly"),
        ([-(2**53) - 1, 1], np.int64, "normalised", "expected values that float64 holds exactly"),
        ([-(2**63), 1], np.int64, "other", "expected values that float64 holds exactly"),
    ],
)
def test_kinds(values: list[float], dtype: Any, kind: str, result: str, tmp_path: Path) -> None:
    report = build(tmp_path, study(sp.csr_matrix(np.array([values], dtype=dtype))), X={"kind": kind})
    if " " in result:
        assert report.studies[0].status == "refused"
        assert result in report.studies[0].reason
        return
    assert report.ok, report
    store = daodask.open_store(tmp_path / "s")
    (info,) = store.snapshot.datasets
    assert (info.matrix["X"].kind, info.matrix["X"].dtype) == (kind, result)
    # Read as it is stored.
    (path,) = (tmp_path / "s").glob("datasets/*")
    found = anndata.io.read_elem(_opened(path)["X"])
    np.testing.assert_array_equal(found.toarray(), np.array([values], dtype=dtype))


def _opened(path: Path) -> Any:
    import zarr

    return zarr.open_group(path, mode="r")


def test_normalised_values_are_refused_unless_declared(data: Path, tmp_path: Path) -> None:
    file = data / "studies" / "pbmc_stim_counts_layer.h5ad"
    refused = build(tmp_path, file)
    assert "expected counts (integral, non-negative, finite)" in refused.studies[0].reason
    assert "declare X: {kind: normalised}, or read the counts from another layer" in refused.studies[0].reason
    assert build(tmp_path, file, X={"kind": "normalised"}).ok
    assert build(tmp_path / "counts", file, layer="layers/counts").ok
