"""Sums, means and variances of blocks in memory: no store, no scheduler."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from daodask.analysis.blocks import MemoryBlock
from daodask.analysis.groups import block_groups, group_frame, group_names, sorted_keys
from daodask.analysis.moments import GroupMoments, Moments, join
from daodask.analysis.reductions import fold

ALL = GroupMoments(("group",), squares=True)


def block(values: Any, labels: Any = None, measured: Any = None) -> MemoryBlock:
    X = sp.csr_matrix(np.asarray(values))
    obs = pd.DataFrame({"group": list(labels or ["a"] * X.shape[0])})
    return MemoryBlock(X, obs, None if measured is None else np.asarray(measured))


def test_two_groups_of_three_genes():
    found = ALL.block(block([[1, 0, 2], [3, 0, 0], [5, 0, 7]], ["a", "b", "a"])).reorder([("a",), ("b",), ("c",)])
    np.testing.assert_array_equal(found.n_cells, [2, 1, 0])
    np.testing.assert_array_equal(found.total, [[6, 0, 9], [3, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found.mean, [[3, 0, 4.5], [3, 0, 0], [np.nan] * 3])
    np.testing.assert_array_equal(found.var(), [[8, 0, 12.5], [np.nan] * 3, [np.nan] * 3])
    np.testing.assert_array_equal(found.var(ddof=0), [[4, 0, 6.25], [0, 0, 0], [np.nan] * 3])
    np.testing.assert_array_equal(found.n_nonzero, [[2, 0, 2], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found.fraction, [[1, 0, 1], [1, 0, 0], [np.nan] * 3])


def test_only_the_studies_that_measured_a_gene_count():
    """The example of the docs: 4 and 2 counts in one study, two padded zeros in another; and a gene of nobody's."""
    blocks = [block([[4, 0], [2, 0]], measured=[True, False]), block([[0, 0], [0, 0]], measured=[False, False])]
    found = fold(GroupMoments(squares=True), blocks)
    np.testing.assert_array_equal(found.mean, [[3, np.nan]])
    np.testing.assert_array_equal(found.var(), [[2, np.nan]])
    np.testing.assert_array_equal(found.total, [[6, np.nan]])
    np.testing.assert_array_equal(found.n_nonzero, [[2, np.nan]])
    padded = fold(GroupMoments(squares=True), [block([[4, 0], [2, 0]]), block([[0, 0], [0, 0]])])
    np.testing.assert_allclose(padded.mean, [[1.5, 0]], rtol=1e-15)
    np.testing.assert_allclose(padded.var(), [[11 / 3, 0]], rtol=1e-15)


@pytest.mark.parametrize("offset", [1e6, 1e9, -1e9])
def test_a_large_mean_does_not_drown_the_variance(offset):
    """Sums of squares would: of 1e18, doubles know the 128th part of nothing."""
    values = offset + np.random.default_rng(0).normal(size=(4000, 3))
    expected = np.var(values - offset, axis=0, ddof=1)
    found = fold(GroupMoments(squares=True), [block(part) for part in np.array_split(values, 7)])
    np.testing.assert_allclose(found.var()[0], expected, rtol=1e-6)
    assert (np.abs((values**2).mean(axis=0) - values.mean(axis=0) ** 2 - expected) > 1e-6 * expected).all()


def test_a_gene_that_does_not_vary_has_no_variance():
    values = np.full((1000, 2), 0.1) * [1, 3]
    assert (fold(GroupMoments(squares=True), [block(part) for part in np.array_split(values, 3)]).var() < 1e-30).all()


tables = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(0, 60_000), min_size=4, max_size=4), min_size=n, max_size=n),
        st.lists(st.sampled_from(["a", "b", None]), min_size=n, max_size=n),
        st.lists(st.integers(0, n), max_size=5),
    )
)


@settings(max_examples=80)
@given(tables, st.sampled_from([np.float64, np.float32, np.uint16, np.int64]), st.booleans())
def test_blocks_and_trees_of_any_shape_come_to_the_same(table, dtype, dropna):
    rows, labels, cuts = table
    values = np.array(rows).astype(dtype)
    reducer = GroupMoments(("group",), squares=True, dropna=dropna)
    bounds = [0, *sorted(cuts), len(values)]
    parts = [reducer.block(block(values[a:b].reshape(-1, 4), labels[a:b])) for a, b in itertools.pairwise(bounds)]
    found = join([join(parts[: len(parts) // 2]), join(parts[len(parts) // 2 :])]) if len(parts) > 1 else parts[0]
    # pandas can't group what is missing where that is all there is.
    named = pd.Series(labels, dtype=object).where(lambda s: s.notna(), None if dropna else "missing")
    expected = pd.DataFrame(values.astype(np.float64)).groupby(named)
    keys = [(None if k == "missing" else k,) for k in expected.sum().index]
    assert set(keys) == set(found.keys)
    found = found.reorder(keys)
    np.testing.assert_array_equal(found.total, expected.sum().to_numpy())  # whole numbers: exact
    np.testing.assert_array_equal(found.n_cells, expected.size().to_numpy())
    np.testing.assert_allclose(found.var(), expected.var().to_numpy(), rtol=1e-9, atol=1e-3)


def test_the_others_of_each_group_are_all_other_cells():
    values = np.random.default_rng(1).poisson(2, (60, 5)).astype(float)
    labels = list("abcd" * 15)
    found = ALL.block(block(values, labels))
    others = found.others()
    for i, (name,) in enumerate(found.keys):
        rest = values[np.array(labels) != name]
        assert others.n_cells[i] == 45
        np.testing.assert_allclose(others.mean[i], rest.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(others.var()[i], rest.var(axis=0, ddof=1), rtol=1e-13)
    alone = Moments(found.keys[:1], found.n_cells[:1], found.n[:1], found.sums[:1], found.squares[:1]).others()
    assert np.isnan(alone.mean).all()
    assert alone.n_cells.tolist() == [0]


# -- groups ------------------------------------------------------------------------------------------------------------

OBS = pd.DataFrame(
    {
        "type": pd.Categorical(["T", None, "B", "T"], categories=["T", "NK", "B"]),
        "plate": [2, 1, 2, 10],
        "day": [0.5, np.nan, np.nan, 0.5],
    }
)


@pytest.mark.parametrize(
    ("by", "dropna", "codes", "keys"),
    [
        ((), True, [0, 0, 0, 0], [()]),
        (("type",), True, [0, -1, 1, 0], [("T",), ("B",)]),
        (("type",), False, [0, 2, 1, 0], [("T",), ("B",), (None,)]),
        (("plate",), True, [0, 1, 0, 2], [(2,), (1,), (10,)]),
        (("type", "day"), True, [0, -1, -1, 0], [("T", 0.5)]),
        (("day", "type"), False, [0, 2, 1, 0], [(0.5, "T"), (None, "B"), (None, None)]),
    ],
)
def test_groups_of_a_block(by, dropna, codes, keys):
    found, labels = block_groups(OBS, by, dropna=dropna)
    assert list(labels) == keys
    assert found.tolist() == codes


def test_groups_come_in_the_order_of_categories_then_of_values_what_is_missing_last():
    dtypes = OBS.dtypes
    assert sorted_keys([("B",), (None,), ("T",)], ["type"], dtypes, observed=True) == [("T",), ("B",), (None,)]
    assert sorted_keys([(10,), (2,), (1,)], ["plate"], dtypes, observed=True) == [(1,), (2,), (10,)]
    every = [("T", 1), ("T", 2), ("NK", 1), ("NK", 2), ("B", 1), ("B", 2)]
    assert sorted_keys([("T", 2), ("B", 1)], ["type", "plate"], dtypes, observed=False) == every


def test_names_of_groups_do_not_repeat():
    assert group_names([("a_b", "c"), ("a", "b_c"), (None, 1), ()]) == ["a_b_c", "a_b_c-1", "nan_1", "all"]


def test_labels_keep_their_dtypes():
    frame = group_frame([("T", 1, None), (None, 2, 0.5)], ["type", "plate", "day"], OBS.dtypes)
    assert frame["type"].dtype == OBS["type"].dtype
    assert frame["plate"].dtype == np.int64
    assert frame["day"].tolist()[1] == 0.5
    assert frame["day"].isna().tolist() == [True, False]
