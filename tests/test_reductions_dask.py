"""Dask's own reductions and products of what a store hands out: those of numpy on the same values, dense."""

from __future__ import annotations

import contextlib
import pickle
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import anndata
import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daodask.sparse import CSCBlock, CSRBlock, as_block, plain
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store

SIZES, N_VARS = (70, 0, 33), 32
COUNTS = coordinate_counts(np.arange(sum(SIZES)), N_VARS).toarray().astype(np.float32)
REDUCTIONS = ["sum", "mean", "max", "min", "var", "std", "any", "all"]
AXES = [None, 0, 1, -1, (0, 1), (1,)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("reductions") / "store", SIZES)


def blocks_of(values: np.ndarray, bounds: list[int], kind: Any = as_block) -> da.Array:
    """A dask array of blocks of these values, cut at these rows."""
    meta = kind(sp.csr_matrix((0, 0), dtype=values.dtype))
    ends = [*sorted(bounds), len(values)]
    pieces = [
        da.from_delayed(
            dask.delayed(kind)(sp.csr_matrix(values[a:b])), (b - a, values.shape[1]), values.dtype, meta=meta
        )
        for a, b in zip([0, *ends], ends, strict=False)
        if b > a
    ]
    return da.concatenate(pieces)


def computed(lazy: da.Array) -> Any:
    """The value, of the shape and dtype that dask has announced; dense."""
    value = lazy.compute(scheduler="synchronous")
    assert np.shape(value) == lazy.shape
    assert value.dtype == lazy.dtype
    return value


def same(lazy: da.Array, expected: Any, rtol: float = 2e-5) -> None:
    value = computed(lazy)
    assert type(value) is np.ndarray or np.isscalar(value)
    assert type(lazy._meta) is np.ndarray
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-12)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Values of which many are zero, some negative, and where the rows are cut; with blocks that are all zero."""
    n_obs, n_vars = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64, np.uint16, np.int8]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.integers(0 if dtype is np.uint16 else -9, 10, (n_obs, n_vars))
    values[generator.random((n_obs, n_vars)) > draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    values[: draw(st.integers(0, n_obs))] *= draw(st.sampled_from([0, 1]))
    return values.astype(dtype), draw(st.lists(st.integers(0, n_obs), max_size=4))


@settings(max_examples=150)
@given(
    matrices(), st.sampled_from(REDUCTIONS), st.sampled_from(AXES), st.booleans(), st.sampled_from([None, np.float64])
)
def test_reductions_are_those_of_numpy(matrix, name, axis, keepdims, dtype):
    values, bounds = matrix
    options: dict[str, Any] = {"axis": axis, "keepdims": keepdims}
    if dtype is not None and name in ("sum", "mean", "var", "std"):
        options["dtype"] = dtype
    expected = getattr(values, name)(**options)
    lazy = getattr(blocks_of(values, bounds), name)(**options)
    assert lazy.dtype == expected.dtype
    same(lazy, expected)


@settings(max_examples=40)
@given(matrices(), st.sampled_from(["sum", "mean", "max", "min", "var"]), st.sampled_from(AXES), st.booleans())
def test_a_value_that_is_no_number_makes_what_it_is_part_of_none(matrix, name, axis, keepdims):
    values, bounds = matrix
    values = values.astype(np.float64)
    values[len(values) // 2, 0] = np.nan
    same(
        getattr(blocks_of(values, bounds), name)(axis=axis, keepdims=keepdims),
        getattr(values, name)(axis=axis, keepdims=keepdims),
    )


# dask says so of what has no number at all, whatever its chunks are.
@pytest.mark.filterwarnings("ignore:invalid value encountered in (scalar )?divide:RuntimeWarning")
@settings(max_examples=60)
@given(
    matrices(),
    st.sampled_from(["sum", "mean", "max", "min", "var", "std"]),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
)
def test_reductions_that_pass_over_what_is_no_number(matrix, name, axis, keepdims):
    values, bounds = matrix
    values = values.astype(np.float64)
    values[len(values) // 2, : values.shape[1] // 2] = np.nan
    with warnings.catch_warnings(action="ignore"):  # numpy warns of columns that have no number
        expected = getattr(np, f"nan{name}")(values, axis=axis, keepdims=keepdims)
    same(getattr(da, f"nan{name}")(blocks_of(values, bounds), axis=axis, keepdims=keepdims), expected)


@settings(max_examples=40)
@given(matrices(), st.sampled_from(REDUCTIONS), st.sampled_from([None, 0, 1]), st.booleans())
def test_the_transpose_reduces_too(matrix, name, axis, keepdims):
    values, bounds = matrix
    lazy = blocks_of(values, bounds).T
    assert isinstance(computed(lazy), CSCBlock)
    same(getattr(lazy, name)(axis=axis, keepdims=keepdims), getattr(values.T, name)(axis=axis, keepdims=keepdims))


@settings(max_examples=40)
@given(matrices(), st.sampled_from(["max", "sum", "var"]), st.sampled_from([0, 1]), st.data())
def test_selected_and_rechunked(matrix, name, axis, data):
    values, bounds = matrix
    n_obs, n_vars = values.shape
    rows = data.draw(st.lists(st.integers(0, n_obs - 1), min_size=1))
    genes = data.draw(st.lists(st.integers(0, n_vars - 1), min_size=1))
    lazy, expected = blocks_of(values, bounds)[rows][:, genes], values[rows][:, genes]
    found = computed(lazy)
    assert isinstance(found, CSRBlock)
    np.testing.assert_array_equal(found.toarray(), expected)
    same(getattr(lazy, name)(axis=axis), getattr(expected, name)(axis=axis))
    cut = lazy.rechunk((data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))))
    assert isinstance(computed(cut), CSRBlock)
    same(getattr(cut, name)(axis=axis), getattr(expected, name)(axis=axis))


@settings(max_examples=30)
@given(matrices())
def test_products(matrix):
    values, bounds = matrix
    lazy, n_vars = blocks_of(values, bounds), values.shape[1]
    values = values.astype(np.float64)
    W = np.random.default_rng(0).normal(size=(n_vars, 3))
    same(lazy @ W, values @ W)
    same(lazy @ sp.csr_matrix(W), values @ W)
    same(lazy @ sp.csc_array(W), values @ W)
    same(lazy @ W[:, 0], values @ W[:, 0])
    same(lazy @ da.from_array(W, chunks=2), values @ W)
    same(lazy.dot(W), values @ W)
    same(da.tensordot(lazy, W, axes=1), values @ W)
    same(da.tensordot(W, lazy, axes=((0,), (1,))), W.T @ values.T)
    same(W.T @ lazy.T, W.T @ values.T)
    if lazy.dtype.kind == "f":  # products of small integers overflow, as numpy's do
        same(lazy.T @ lazy, values.T @ values)


def test_elements(store):
    X = store.X
    totals = COUNTS.sum(axis=1, keepdims=True)
    same((X > 0).sum(axis=1), (COUNTS > 0).sum(axis=1))
    same((X != 0).sum(axis=0), (COUNTS != 0).sum(axis=0))
    same(np.log1p(X).mean(axis=0), np.log1p(COUNTS).mean(axis=0))
    same((X**2).sum(axis=0), (COUNTS**2).sum(axis=0))
    same((X / X.sum(axis=1, keepdims=True)).sum(axis=0), (COUNTS / totals).sum(axis=0))
    same((X * 2 + X - X / 2).max(axis=1), (COUNTS * 2.5).max(axis=1))
    same(np.multiply(X, np.arange(N_VARS)).sum(axis=1), (COUNTS * np.arange(N_VARS)).sum(axis=1))
    same(np.minimum(X, 100).max(axis=0), np.minimum(COUNTS, 100).max(axis=0))
    same(X - X.mean(axis=0), COUNTS - COUNTS.mean(axis=0))
    same(X - X.mean(axis=0, keepdims=True), COUNTS - COUNTS.mean(axis=0))
    same(X.mean(axis=0) - X, COUNTS.mean(axis=0) - COUNTS)
    for sparse in (X * 2, X / X.sum(axis=1, keepdims=True), np.sqrt(X), X.astype(np.int64), X > 1, -X, abs(X)):
        assert isinstance(sparse._meta, CSRBlock)
        assert isinstance(computed(sparse), CSRBlock)
    with pytest.raises(TypeError, match=r"say @ for the matrix product, or \.multiply\(\)"):
        computed(X * np.arange(N_VARS))
    with pytest.raises(TypeError):
        computed(np.exp(X))


def subsets(store: Store) -> dict[str, tuple[Store, np.ndarray]]:
    few, genes = np.array([0, 50, 69, 70, 102]), [3, 30, 0]
    return {
        "all": (store, COUNTS),
        "cells": (store[few], COUNTS[few]),
        "genes": (store[:, genes], COUNTS[:, genes]),
        "both": (store[20:90, genes], COUNTS[20:90][:, genes]),
        "a gene": (store[:, "gene5"], COUNTS[:, [5]]),
    }


@pytest.mark.parametrize("which", ["all", "cells", "genes", "both", "a gene"])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var", "std"])
def test_a_store_and_its_layers(store, which, name):
    chosen, expected = subsets(store)[which]
    for axis in (None, 0, 1):
        same(getattr(chosen.X, name)(axis=axis), getattr(expected, name)(axis=axis))
        same(getattr(chosen.layers["half"], name)(axis=axis), getattr(expected / 2, name)(axis=axis))


def test_a_store_without_a_cell_sums_to_nothing(store):
    nothing = store[:0].X
    same(nothing.sum(axis=0), np.zeros(N_VARS))
    same(nothing.sum(axis=1), np.zeros(0))
    assert computed(nothing.sum()) == 0
    assert isinstance(computed(nothing), CSRBlock)


@pytest.mark.parametrize("var", [da.var, da.nanvar])
def test_a_variance_does_not_make_a_block_dense(var):
    matrix = sp.random_array(
        (2000, 20_000), density=0.005, format="csr", dtype=np.float32, rng=np.random.default_rng(0)
    )
    block = as_block(sp.csr_matrix(matrix))
    X = da.from_delayed(dask.delayed(block, traverse=False), block.shape, block.dtype, meta=block[:0, :0])
    var(X, axis=0).compute(scheduler="synchronous")  # what is imported on the way is not meant
    for axis in (0, 1, None):
        tracemalloc.start()
        found = var(X, axis=axis).compute(scheduler="synchronous")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * block.data.nbytes < matrix.shape[0] * matrix.shape[1]
        expected = matrix.power(2).mean(axis=axis) - matrix.mean(axis=axis) ** 2
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_large_mean_does_not_drown_the_variance():
    values = 1e6 + np.random.default_rng(0).normal(size=(60, 3))
    same(blocks_of(values, [7, 30]).var(axis=0, ddof=1), values.var(axis=0, ddof=1), rtol=1e-9)


# -- the type ----------------------------------------------------------------------------------------------------------


def block(density: float = 0.3) -> CSRBlock:
    return as_block(sp.random(9, 5, density, "csr", np.float32, random_state=np.random.default_rng(1)))


def test_called_as_scipys_own_it_answers_as_scipys_do():
    ours, theirs = block(), plain(block())
    assert type(theirs) is sp.csr_matrix
    for name in ("sum", "mean", "max", "min"):
        for axis in (None, 0, 1):
            found, expected = getattr(ours, name)(axis=axis), getattr(theirs, name)(axis=axis)
            assert type(found).__mro__[-2] is type(expected).__mro__[-2]
            assert found.shape == expected.shape
            dense = [x.toarray() if sp.issparse(x) else x for x in (found, expected)]
            np.testing.assert_array_equal(*dense)
    assert ours.nnz == theirs.nnz
    assert ours.size == 45
    np.testing.assert_array_equal((ours @ ours.T).toarray(), (theirs @ theirs.T).toarray())
    np.testing.assert_array_equal(np.ones((2, 9)) @ ours, np.ones((2, 9)) @ theirs)


def test_it_shares_its_arrays_and_stays_what_it_is():
    matrix = sp.csr_matrix(np.eye(4, dtype=np.float32))
    made = as_block(matrix)
    assert np.shares_memory(made.data, matrix.data)
    assert np.shares_memory(plain(made).indices, matrix.indices)
    assert plain(matrix) is matrix
    pickled = pickle.loads(pickle.dumps(made))  # noqa: S301 - it is our own
    for kept in (made[1:3], made[:, [2, 0]], made.copy(), made.tocsc().tocsr(), made.T.T, pickled):
        assert type(kept) is CSRBlock
    assert type(made.T) is CSCBlock
    np.testing.assert_array_equal(pickled.toarray(), np.eye(4))
    with pytest.raises(ValueError, match="zero-size array"):
        made[:0].max(axis=0, keepdims=True)


def test_values_that_meet_at_one_place_are_one():
    twice = CSRBlock((np.array([2.0, -3.0, 4.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    assert twice.max(keepdims=False) == 4
    np.testing.assert_array_equal(twice.min(axis=1, keepdims=True), [[-1], [0]])
    np.testing.assert_array_equal(twice.all(axis=0), [False, False])


@pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated:DeprecationWarning")
@pytest.mark.parametrize("which", ["block", "transpose", "lazy", "lazy view"])
@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_anndata_writes_it_as_csr(store, tmp_path: Path, which, ending):
    small = COUNTS[:16]
    adata = anndata.AnnData({"block": store[:16].X.compute(), "transpose": store[:16].X.T.compute()}.get(which))
    if which.startswith("lazy"):
        adata = store.to_anndata(lazy=True)
        adata.obs_names = [f"row{i}" for i in range(adata.n_obs)]
        adata, small = (adata[:16], small) if which.endswith("view") else (adata, COUNTS)
    elif which == "transpose":
        small = small.T
    target = tmp_path / f"out.{ending}"
    opened = h5py.File(target, "w") if ending == "h5ad" else zarr.open_group(target, mode="w", zarr_format=3)
    with contextlib.closing(opened) if ending == "h5ad" else contextlib.nullcontext():
        anndata.io.write_elem(opened, "/", adata)
    found = getattr(anndata, f"read_{ending}")(target).X
    assert type(found) is (sp.csc_matrix if which == "transpose" else sp.csr_matrix)
    np.testing.assert_array_equal(found.toarray(), small)


def test_what_is_loaded_is_scipys_own(store):
    for loaded in (store.to_anndata(), store[:10].to_anndata()):
        assert type(loaded.X) is sp.csr_matrix
        assert type(loaded.layers["half"]) is sp.csr_matrix


def test_across_a_cluster(store, client):
    X = store.X.persist()
    futures = client.compute(
        [X.sum(axis=0), X.var(axis=1), X.max(), X @ np.eye(N_VARS)[:, :2], X[5:40], X.T.mean(axis=0)]
    )
    sums, variances, largest, product, rows, means = client.gather(futures)
    np.testing.assert_allclose(sums, COUNTS.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variances, COUNTS.var(axis=1), rtol=1e-5)
    assert largest == COUNTS.max()
    np.testing.assert_allclose(product, COUNTS[:, :2])
    assert isinstance(rows, CSRBlock)
    np.testing.assert_array_equal(rows.toarray(), COUNTS[5:40])
    np.testing.assert_allclose(means, COUNTS.mean(axis=1), rtol=1e-5)
    depth = store.X.map_blocks(lambda block: block.sum(axis=1, keepdims=True), chunks=(store.X.chunks[0], (1,)))
    np.testing.assert_allclose(depth.compute(), COUNTS.sum(axis=1, keepdims=True), rtol=1e-5)
