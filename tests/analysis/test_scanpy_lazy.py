"""scanpy's functions for dask on ``to_anndata(lazy=True)``, unchanged: what they make of the same cells in memory.

Not for dask in scanpy 1.11.5 and 1.12.4, whatever its blocks are: ``tl.rank_genes_groups(method="wilcoxon")``,
``pp.regress_out``, ``pp.combat``, ``pp.downsample_counts``, ``tl.score_genes`` and ``get.obs_df``; in 1.11 neither
``get.aggregate`` nor ``pp.highly_variable_genes(flavor="seurat_v3")``. daodask has the first and the last two: see
test_genes.py and test_pseudobulk.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import dask.array as da
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

import daodask
from daodask.sparse import CSRBlock
from daodask.store import Store

# scanpy 1.12 asks pandas 3.1 for what that deprecates; the others are of scanpy 1.11 and anndata 0.12.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated:DeprecationWarning"),
]

#: Of float32 sums, which are not added up in the same order.
CLOSE = {"rtol": 2e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def made(atlas: Store) -> Store:
    return atlas


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two real studies on the genes that they share."""
    listed = [("pbmc_facs", "pbmc_facs_zheng17.h5ad"), ("celseq2", "sc_celseq2.h5ad")]
    studies = [
        {"id": name, "source": data / "studies" / file, "obs": {"cell_type": {"value": name}}} for name, file in listed
    ]
    spec = {
        "features": {"name": "human", "reference": "intersection"},
        "obs": {"cell_type": {}},
        "layout": {"block_rows": 128},
        "studies": studies,
    }
    report = daodask.build_store(spec, tmp_path_factory.mktemp("real") / "store")
    assert report.ok, report
    return daodask.open_store(report.url)


@pytest.fixture(params=["made", "real"])
def cells(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


def named(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs_names = [f"row{i}" for i in range(adata.n_obs)]
    return adata


def pipeline(adata: anndata.AnnData) -> anndata.AnnData:
    """As in scanpy's own tutorials, and not a word of dask."""
    adata.var["first"] = np.arange(adata.n_vars) < 10
    sc.pp.calculate_qc_metrics(adata, qc_vars=["first"], percent_top=None, inplace=True)
    sc.pp.filter_cells(adata, min_genes=8)
    sc.pp.filter_genes(adata, min_cells=3)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=min(500, adata.n_vars // 2))
    sc.pp.pca(adata, n_comps=5, mask_var="highly_variable")
    return adata


def loaded(values: Any) -> np.ndarray:
    values = values.compute() if isinstance(values, da.Array) else values
    return values.toarray() if sp.issparse(values) else np.asarray(values)


def test_scanpys_pipeline_runs_on_blocks_as_it_is(cells):
    lazy, expected = pipeline(named(cells.to_anndata(lazy=True))), pipeline(named(cells.to_anndata()))
    assert type(expected.X) is sp.csr_matrix
    assert isinstance(lazy.X, da.Array)
    assert isinstance(lazy.X._meta, CSRBlock)
    assert 0 < lazy.n_vars < cells.n_vars
    assert lazy.obs_names.equals(expected.obs_names)
    assert lazy.var_names.equals(expected.var_names)
    np.testing.assert_allclose(loaded(lazy.X), loaded(expected.X), **CLOSE)
    np.testing.assert_array_equal(loaded(lazy.layers["counts"]), loaded(expected.layers["counts"]))
    for ours, theirs in ((lazy.obs, expected.obs), (lazy.var, expected.var)):
        assert ours.columns.equals(theirs.columns)
        numbers = theirs.select_dtypes("number").columns
        assert len(numbers) >= 4
        for column in numbers:
            np.testing.assert_allclose(ours[column], theirs[column], **CLOSE, err_msg=column)
    assert (lazy.var["highly_variable"] == expected.var["highly_variable"]).all()
    found, components = loaded(lazy.obsm["X_pca"]), expected.obsm["X_pca"]
    signs = np.sign((found * components).sum(axis=0))
    np.testing.assert_allclose(found * signs, components, atol=1e-3 * np.abs(components).max())
