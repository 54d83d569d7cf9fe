"""Random studies: what a source reads is what anndata has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from daodask.sources.base import Source
from daodask.sources.h5ad import H5adSource
from daodask.sources.memory import MemorySource
from daodask.storage import StoreLocation

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=4)
ENCODINGS = st.sampled_from([sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array, np.asarray])
DTYPES = st.sampled_from(["f4", "f8", "i4", "u2", "i8", "?"])


def names(size: int) -> st.SearchStrategy[list[str]]:
    return st.lists(NAMES, min_size=size, max_size=size, unique=True)


def values(size: int, elements: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=size, max_size=size)


@st.composite
def matrices(draw: st.DrawFn, n_obs: int, n_vars: int) -> Any:
    # Mostly zeros, so that empty rows are frequent.
    flat = draw(values(n_obs * n_vars, st.sampled_from([0, 0, 0, 1, 2, 300])))
    dense = np.array(flat, dtype=draw(DTYPES)).reshape(n_obs, n_vars)
    return draw(ENCODINGS)(dense)


@st.composite
def frames(draw: st.DrawFn, size: int) -> pd.DataFrame:
    missing = st.none()
    columns = {
        "category": pd.Categorical(draw(values(size, missing | st.sampled_from(["ä", "b", "細"])))),
        "ordered": pd.Categorical(draw(values(size, missing | st.integers(0, 2))), categories=[2, 0, 1], ordered=True),
        "boolean": np.array(draw(values(size, st.booleans())), dtype=bool),
        "text": np.array(draw(values(size, NAMES)), dtype=object),
        "number": np.array(draw(values(size, st.floats(width=32))), dtype=np.float32),
        "whole": pd.array(draw(values(size, missing | st.integers(-5, 5))), dtype="Int64"),
        "maybe": pd.array(draw(values(size, missing | st.booleans())), dtype="boolean"),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(columns)), unique=True))
    return pd.DataFrame({name: columns[name] for name in chosen}, index=pd.Index(draw(names(size)), dtype="str"))


@st.composite
def studies(draw: st.DrawFn) -> anndata.AnnData:
    n_obs, n_vars, n_raw = draw(st.integers(0, 6)), draw(st.integers(0, 5)), draw(st.integers(1, 7))
    obs = draw(frames(n_obs))
    adata = anndata.AnnData(draw(matrices(n_obs, n_vars)), obs=obs, var=draw(frames(n_vars)))
    adata.layers["ebene"] = draw(matrices(n_obs, n_vars))
    if draw(st.booleans()):
        adata.raw = anndata.AnnData(draw(matrices(n_obs, n_raw)), obs=obs, var=draw(frames(n_raw)))
    if draw(st.booleans()):
        adata.obsm["X_pca"] = np.array(draw(values(n_obs * 2, st.floats(0, 1)))).reshape(n_obs, 2)
    return adata


def rows_of(adata: anndata.AnnData, matrix: str) -> Any:
    array = {"X": adata.X, "layers/ebene": adata.layers["ebene"], "raw": getattr(adata.raw, "X", None)}[matrix]
    return array.toarray() if sp.issparse(array) else array


def check(source: Source, oracle: anndata.AnnData, cut: st.DataObject) -> None:
    assert source.n_obs == oracle.n_obs
    start = cut.draw(st.integers(0, oracle.n_obs), label="start")
    stop = cut.draw(st.integers(start, oracle.n_obs), label="stop")
    assert_frame_equal(source.obs(), oracle.obs)
    for matrix in ("X", "layers/ebene") + (("raw",) if oracle.raw is not None else ()):
        assert_frame_equal(source.var(matrix), oracle.raw.var if matrix == "raw" else oracle.var)
        rows, expected = source.read_matrix(matrix, start, stop), rows_of(oracle, matrix)
        assert isinstance(rows, sp.csr_matrix)
        assert rows.shape == (stop - start, expected.shape[1])
        assert rows.dtype == expected.dtype
        np.testing.assert_array_equal(rows.toarray(), expected[start:stop])
    assert source.obsm_names == tuple(oracle.obsm)
    for name in source.obsm_names:
        np.testing.assert_array_equal(source.read_obsm(name, start, stop), oracle.obsm[name][start:stop])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(adata=studies(), cut=st.data())
def test_memory(adata: anndata.AnnData, cut: st.DataObject) -> None:
    check(MemorySource(adata), adata, cut)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(adata=studies(), compression=st.sampled_from([None, "gzip", "lzf"]), cut=st.data())
def test_h5ad(
    tmp_path_factory: pytest.TempPathFactory, adata: anndata.AnnData, compression: Any, cut: st.DataObject
) -> None:
    path: Path = tmp_path_factory.mktemp("h5ad") / "study.h5ad"
    adata.write_h5ad(path, compression=compression)
    check(H5adSource(StoreLocation.parse(path)), anndata.read_h5ad(path), cut)
