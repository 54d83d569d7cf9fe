"""AnnData in memory."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from daodask.errors import SourceError
from daodask.sources.base import Source
from daodask.sources.memory import MemorySource

COUNTS = np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3], [0, 0, 4]], dtype=np.int32)
ENCODINGS = [sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array, np.asarray]


def study(encode: Callable[[Any], Any] = sp.csr_matrix) -> anndata.AnnData:
    adata = anndata.AnnData(
        encode(COUNTS),
        obs=pd.DataFrame({"type": pd.Categorical(["a", None, "b", "a"])}, index=list("wxyz")),
        var=pd.DataFrame(index=["g1", "g2", "g3"]),
        obsm={"X_pca": np.arange(8.0).reshape(4, 2)},
        uns={"title": "T", "n": np.int64(3), "list": [1]},
    )
    adata.raw = adata.copy()
    adata.layers["twice"] = encode(COUNTS * 2)
    return adata


@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("matrix", ["X", "raw", "layers/twice"])
def test_rows(encode: Callable[[Any], Any], matrix: str) -> None:
    source = MemorySource(study(encode))
    rows = source.read_matrix(matrix, 2, 4)
    assert isinstance(rows, sp.csr_matrix)
    assert rows.dtype == np.int32
    assert rows.toarray().tolist() == ([[2, 0, 6], [0, 0, 8]] if matrix == "layers/twice" else [[1, 0, 3], [0, 0, 4]])


def test_values() -> None:
    source = MemorySource(study())
    assert isinstance(source, Source)
    assert source.n_obs == 4
    assert source.matrix_names == ("X", "raw", "layers/twice")
    assert source.obs().index.tolist() == list("wxyz")
    assert source.var("raw").index.tolist() == ["g1", "g2", "g3"]
    assert source.uns() == {"title": "T", "n": 3}
    assert source.obsm_names == ("X_pca",)
    assert source.read_obsm("X_pca", 3, 4).tolist() == [[6, 7]]


def test_what_is_handed_out_is_not_the_anndatas_own() -> None:
    adata = study()
    source = MemorySource(adata)
    obs = source.obs()
    obs["type"] = "changed"
    source.read_matrix("X", 0, 4).data[:] = 9
    source.read_obsm("X_pca", 0, 4)[:] = 9
    assert adata.obs["type"].tolist()[0] == "a"
    assert adata.X.sum() == 10
    assert adata.obsm["X_pca"].sum() == 28


def test_a_view() -> None:
    with warnings.catch_warnings():
        # anndata sets an option that pandas 3.1 deprecates; that a source does not warn is part of the test.
        warnings.filterwarnings("ignore", "The 'mode.chained_assignment' option")
        view = study()[[2, 0]]
    source = MemorySource(view)
    assert source.read_matrix("X", 0, 2).toarray().tolist() == [[1, 0, 3], [0, 2, 0]]
    assert source.obs().index.tolist() == ["y", "w"]


@pytest.mark.parametrize("encode", ENCODINGS)
def test_pickled(encode: Callable[[Any], Any]) -> None:
    source = MemorySource(study(encode))
    source.read_matrix("X", 0, 4)
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert copy.read_matrix("X", 0, 4).toarray().tolist() == COUNTS.tolist()
    assert copy.fingerprint() == source.fingerprint()


def test_what_is_not_there() -> None:
    source = MemorySource(anndata.AnnData(COUNTS))
    with pytest.raises(SourceError, match="expected a matrix 'raw' in this AnnData, which has 'X'"):
        source.read_matrix("raw", 0, 1)
    with pytest.raises(SourceError, match="expected a matrix 'layers/x'"):
        source.var("layers/x")
    with pytest.raises(SourceError, match="expected row bounds within 0 and 4"):
        source.read_matrix("X", 0, 5)


def test_a_backed_anndata_is_refused(tmp_path: Path) -> None:
    study().write_h5ad(tmp_path / "study.h5ad")
    backed = anndata.read_h5ad(tmp_path / "study.h5ad", backed="r")
    with pytest.raises(SourceError, match=r"got one backed by .*study\.h5ad; pass the path"):
        MemorySource(backed)
    backed.file.close()


def test_a_lazy_matrix_is_refused() -> None:
    import dask.array as da

    source = MemorySource(anndata.AnnData(da.from_array(COUNTS)))
    with pytest.raises(SourceError, match=r"as a numpy or scipy.sparse array, got Array; load it"):
        source.read_matrix("X", 0, 1)
