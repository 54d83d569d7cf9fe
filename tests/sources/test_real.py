"""Real files: every encoding opens, every study reads block by block to the matrix that anndata and scanpy read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from pandas.testing import assert_frame_equal

from daodask.sources import detect_format, open_source
from daodask.sources.base import Source, SourceAddress
from daodask.sources.h5ad import H5adSource
from daodask.storage import StoreLocation

# Name, cells, genes of X and of raw, matrices, columns of obs, dense arrays per cell.
_REDUCED = ("X_pca", "X_umap")
FORMATS = [
    ("10x_pbmc68k_reduced.2018.h5ad", 724, 221, 2956, ("X", "raw"), 5, _REDUCED),
    ("10x_pbmc68k_reduced.current.h5ad", 700, 765, 765, ("X", "raw"), 8, _REDUCED),
    ("10x_pbmc68k_reduced.v0.5.h5ad", 700, 765, 765, ("X", "raw"), 8, _REDUCED),
    ("anndata_v0.7.0.h5ad", 30, 20, 40, ("X", "raw", "layers/array", "layers/sparse"), 5, ("array",)),
    ("anndata_v0.7.8.h5ad", 30, 20, 40, ("X", "raw", "layers/array", "layers/sparse"), 5, ("array",)),
    ("pbmc-small-x-csc.1a47f8.h5ad", 80, 20, 0, ("X",), 7, ()),
    ("pbmc-small-x-csr.50cb4e.h5ad", 80, 20, 0, ("X",), 7, ()),
    ("pbmc-small-x-dense.1e5540.h5ad", 80, 20, 0, ("X",), 7, ()),
    ("pbmc-small.1e912f.h5ad", 80, 20, 230, ("X", "raw"), 7, ("X_pca", "X_tsne")),
    ("pbmc-small.842fc1.h5ad", 80, 20, 230, ("X", "raw"), 7, ("X_pca", "X_tsne")),
]
# Name, cells, genes of the matrix, the matrix that has counts, their total, and the first cell and gene.
STUDIES = [
    ("kang18_8k.h5ad", 8684, 2511, "X", 11171820, "AAACATACATTTCC-1", "ENSG00000188976"),
    ("liver_bcells_cellxgene_v5.h5ad", 146, 33387, "raw", 403135, "C41_AAGCCGCGTACATGTC", "ENSG00000000003"),
    ("mouse_heart_1k_v2.10x.h5", 712, 31053, "X", 5851495, "AAAGATGAGATATGGT-1", "ENSMUSG00000051951"),
    ("pancreas_endocrinogenesis.h5ad", 3696, 2000, "layers/unspliced", 1770009, "AAACCTGAGAGGGATA", "Prkacb"),
    ("paul15_myeloid_dense.h5ad", 2660, 3004, "X", 5178636, "W31105", "0610007L01Rik"),
    ("pbmc_1k_v2_mtx", 996, 33538, "X", 3524098, "AAACCTGAGCGCTCCA-1", "ENSG00000243485"),
    ("pbmc_facs_zheng17.h5ad", 3874, 16791, "X", 7675054, "CGTGATGATTTCAC-1-b_cells", "ENSG00000237683"),
    ("pbmc_frozen_donorA_dense.h5ad", 2896, 13939, "X", 6485285, "frozen_pbmc_donor_a_AAACATTGCACTAG", "AL627309.1"),
    ("pbmc_stim_counts_layer.h5ad", 2000, 9015, "layers/counts", 3081827, "TCGCAAGAGCGATT-1", "LINC00115"),
    ("sc_celseq2.h5ad", 274, 28204, "X", 10321416, "A1", "ENSG00000281131"),
    ("sc_dropseq.h5ad", 225, 15127, "X", 5830998, "CELL_000001", "ENSG00000223849"),
]


def opened(path: Path) -> Source:
    location = StoreLocation.parse(path)
    return open_source(SourceAddress(location, detect_format(location)))


def in_blocks(source: Source, matrix: str, size: int) -> sp.csr_matrix:
    bounds = range(0, source.n_obs, size)
    return sp.vstack([source.read_matrix(matrix, i, min(i + size, source.n_obs)) for i in bounds], format="csr")


def assert_same(found: sp.csr_matrix, expected: Any) -> None:
    expected = sp.csr_matrix(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found != expected).nnz == 0


def assert_reads_like(source: Source, oracle: anndata.AnnData, size: int) -> None:
    assert_frame_equal(source.obs(), oracle.obs)
    assert_frame_equal(source.var("X"), oracle.var)
    assert_same(in_blocks(source, "X", size), oracle.X)
    for name in (name for name in oracle.layers if name is not None):
        assert_same(in_blocks(source, f"layers/{name}", size), oracle.layers[name])
    if oracle.raw is not None:
        assert_frame_equal(source.var("raw"), oracle.raw.var)
        assert_same(in_blocks(source, "raw", size), oracle.raw.X)
    for name in source.obsm_names:
        np.testing.assert_array_equal(source.read_obsm(name, 3, 9), oracle.obsm[name][3:9])
    assert set(source.obsm_names) == {name for name, array in oracle.obsm.items() if isinstance(array, np.ndarray)}


@pytest.mark.parametrize("name", [name for name, *_ in FORMATS])
@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning", "ignore:Moving element:FutureWarning")
def test_every_encoding(data: Path, name: str) -> None:
    oracle = anndata.read_h5ad(data / "formats" / name)
    assert_reads_like(opened(data / "formats" / name), oracle, size=37)


@pytest.mark.parametrize(("name", "n_obs", "n_vars", "n_raw", "matrices", "n_columns", "obsm"), FORMATS)
def test_what_old_encodings_hold_is_read_without_a_warning(
    data: Path,
    name: str,
    n_obs: int,
    n_vars: int,
    n_raw: int,
    matrices: tuple[str, ...],
    n_columns: int,
    obsm: tuple[str, ...],
) -> None:
    source = opened(data / "formats" / name)
    assert isinstance(source, H5adSource)
    assert (source.n_obs, source.matrix_names, source.obsm_names) == (n_obs, matrices, obsm)
    assert source.obs().shape == (n_obs, n_columns)
    for matrix in matrices:
        width = n_raw if matrix == "raw" else n_vars
        assert len(source.var(matrix)) == width
        assert source.read_matrix(matrix, 0, n_obs).shape == (n_obs, width)
    assert all(isinstance(value, str | int | float | bool) for value in source.uns().values())


@pytest.mark.parametrize(("name", "n_obs", "n_vars", "matrix", "total", "cell", "gene"), STUDIES)
def test_every_study(
    data: Path, name: str, n_obs: int, n_vars: int, matrix: str, total: int, cell: str, gene: str
) -> None:
    source = opened(data / "studies" / name)
    blocks = [source.read_matrix(matrix, i, min(i + 700, n_obs)) for i in range(0, n_obs, 700)]
    assert sum(int(block.sum(dtype=np.float64)) for block in blocks) == total
    assert {block.shape[1] for block in blocks} == {n_vars}
    assert (source.n_obs, len(source.obs()), len(source.var(matrix))) == (n_obs, n_obs, n_vars)
    assert (source.obs().index[0], source.var(matrix).index[0]) == (cell, gene)


@pytest.mark.parametrize("name", [name for name, *_ in STUDIES if name.endswith(".h5ad")])
def test_every_h5ad_study_as_anndata_reads_it(data: Path, name: str) -> None:
    oracle = anndata.read_h5ad(data / "studies" / name)
    assert_reads_like(opened(data / "studies" / name), oracle, size=1024)


def test_10x_hdf5_as_scanpy_reads_it(data: Path) -> None:
    sc = scanpy()
    path = data / "studies" / "mouse_heart_1k_v2.10x.h5"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        oracle = sc.read_10x_h5(path)
    source = opened(path)
    assert_same(in_blocks(source, "X", 100).astype(np.float32), oracle.X)
    assert source.obs().index.tolist() == oracle.obs_names.tolist()
    assert source.var("X").index.tolist() == oracle.var["gene_ids"].tolist()
    assert source.var("X")["symbol"].tolist() == oracle.var_names.tolist()
    facts = {"chemistry_description": "Single Cell 3' v2", "filetype": "matrix", "version": 2, "genome": "mm10"}
    assert source.uns() == facts


def test_mtx_as_scanpy_reads_it(data: Path) -> None:
    sc = scanpy()
    path = data / "studies" / "pbmc_1k_v2_mtx"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        oracle = sc.read_10x_mtx(path, var_names="gene_ids")
    source = opened(path)
    assert_same(in_blocks(source, "X", 100).astype(np.float32), oracle.X)
    assert source.obs().index.tolist() == oracle.obs_names.tolist()
    assert source.var("X").index.tolist() == oracle.var_names.tolist()
    assert source.var("X")["symbol"].tolist() == oracle.var["gene_symbols"].tolist()
    assert set(source.var("X")["feature_type"]) == {"Gene Expression"}


def scanpy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("scanpy")
