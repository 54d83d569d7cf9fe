"""Who is drawn and who goes where: exact numbers, the same for the same seed, and as good as random."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.errors import SelectionError
from daodask.sampling import (
    Cells,
    apportion,
    cell_keys,
    deal_cells,
    deal_groups,
    label_key,
    parse_fractions,
    smallest,
)


def test_keys_never_change() -> None:
    # A training run that was split last year is split alike: these numbers are part of the interface.
    assert cell_keys(0, "pbmc", np.array([0, 1, 2**40])).tolist() == [
        15780793319829200587,
        8798354802186790418,
        12962903559961531729,
    ]
    assert label_key(0, ("D1", None, 2)) == 17635061801781751326
    assert cell_keys(0, "pbmc", np.array([5, 3])).tolist() == cell_keys(0, "pbmc", np.arange(6))[[5, 3]].tolist()


def test_keys_are_as_good_as_random() -> None:
    keys = np.concatenate([cell_keys(s, d, np.arange(20_000)) for s in (0, 1) for d in ("a", "b")])
    assert len(np.unique(keys)) == 80_000
    counts = np.bincount((keys >> np.uint64(58)).astype(int), minlength=64)
    # Chi-squared with 63 degrees of freedom: 120 is beyond all that chance brings.
    assert ((counts - 1250) ** 2 / 1250).sum() < 120
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.01
    one, other = cell_keys(0, "a", np.arange(20_000)), cell_keys(0, "b", np.arange(20_000))
    assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([50, 30, 20], 10, [5, 3, 2]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([7, 2, 1], 5, [4, 1, 0]),
        ([999, 1], 10, [10, 0]),
        ([0, 4], 3, [0, 3]),
        ([Fraction(1, 3)] * 3, 10, [4, 3, 3]),
        ([Fraction("0.7"), Fraction("0.2"), Fraction("0.1")], 10, [7, 2, 1]),
        ([], 0, []),
        ([0], 0, [0]),
    ],
)
def test_apportioning(weights: list[Any], total: int, expected: list[int]) -> None:
    assert apportion(weights, total) == expected


def test_equal_remainders_go_by_their_keys() -> None:
    assert apportion([1, 1, 1], 2, [3, 1, 2]) == [0, 1, 1]
    assert apportion([1, 1, 2], 2, [3, 1, 2]) == [0, 1, 1]


@given(st.lists(st.integers(0, 10**12), min_size=1), st.data())
def test_apportioned_numbers_are_exact_and_near(weights: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(weights)))
    numbers = apportion(weights, total)
    assert sum(numbers) == total
    for number, weight in zip(numbers, weights, strict=True):
        assert abs(Fraction(weight * total, max(sum(weights), 1)) - number) < 1
        assert 0 <= number <= weight


@st.composite
def strata(draw: st.DrawFn) -> list[Cells]:
    cells = []
    for number, size in enumerate(draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))):
        codes = np.array(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)), dtype=np.int32)
        rows = None if draw(st.booleans()) else np.sort(np.random.default_rng(size).permutation(100)[:size])
        cells.append(Cells(f"d{number}", rows, codes))
    return cells


@given(strata(), st.data(), st.sampled_from([0.0, 0.5, 6.0]))
def test_the_smallest_keys_of_each_stratum(cells: list[Cells], data: st.DataObject, slack: float) -> None:
    keys = np.concatenate([c.keys(3) for c in cells])
    codes = np.concatenate([c.codes for c in cells])
    sizes = np.bincount(codes, minlength=4)
    quotas = [data.draw(st.integers(0, int(size))) for size in sizes]
    expected = [np.flatnonzero(codes == s)[np.argsort(keys[codes == s])][:q] for s, q in enumerate(quotas)]
    found = smallest(cells, quotas, 3, slack=slack)
    assert found.tolist() == sorted(np.concatenate(expected).tolist())
    assert found.dtype == np.int64


def test_each_cell_is_drawn_as_often_as_any_other() -> None:
    cells = [Cells("a", None, np.zeros(30, int)), Cells("b", np.arange(100, 120), np.zeros(20, int))]
    drawn = np.bincount(np.concatenate([smallest(cells, [10], seed) for seed in range(2000)]), minlength=50)
    # Of each cell 400 are expected, with a standard deviation of 18.
    assert (abs(drawn - 400) < 90).all()


# -- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({"train": 0.8, "val": 0.2}, ["4/5", "1/5"]),
        ({"a": 0.7, "b": 0.2, "c": 0.1}, ["7/10", "1/5", "1/10"]),
        ({"all": 1}, ["1"]),
        ({"a": np.float64(0.5), "b": 0.5}, ["1/2", "1/2"]),
    ],
)
def test_shares_are_as_they_are_written(fractions: dict[str, float], expected: list[str]) -> None:
    assert [str(share) for share in parse_fractions(fractions).values()] == expected


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({}, "expected the share of each part, such as"),
        ([0.8, 0.2], "expected the share of each part, such as .* got \\[0.8, 0.2\\]"),
        ({"a": 0.8, "b": 0.1}, "expected shares that add up to 1, got 0.9; name a part for the rest as well"),
        ({"a": 0.8, "b": 0.3}, "expected shares that add up to 1, got 1.1"),
        ({"a": 1, "b": 0}, "part 'b': expected a share above 0 and at most 1, got 0"),
        ({"a": 1.5, "b": -0.5}, "part 'a': expected a share above 0 and at most 1, got 1.5"),
        ({"a": float("nan")}, "got nan"),
        ({"a": "0.8", "b": 0.2}, "got '0.8'"),
        ({"a": True}, "got True"),
    ],
)
def test_shares_that_are_none(fractions: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        parse_fractions(fractions)


def test_thirds_are_near_enough() -> None:
    assert len(parse_fractions({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})) == 3


@given(strata(), st.integers(1, 4), st.integers(0, 5))
def test_cells_are_dealt_exactly(cells: list[Cells], n_parts: int, seed: int) -> None:
    n = sum(len(c) for c in cells)
    shares = [Fraction(i + 1, n_parts * (n_parts + 1) // 2) for i in range(n_parts)]
    numbers = apportion(shares, n)
    if not all(numbers):
        with pytest.raises(SelectionError, match=f"expected a cell for each part, got .* cells of {n}"):
            deal_cells(cells, shares, seed)
        return
    parts = deal_cells(cells, shares, seed)
    assert [len(part) for part in parts] == numbers
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    keys = np.concatenate([c.keys(seed) for c in cells])
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    for before, after in pairwise(parts):
        assert keys[before].max() < keys[after].min()


def test_groups_that_are_dealt() -> None:
    halves = [Fraction(1, 2)] * 2
    assert deal_groups([5, 5, 5, 5], halves, [1, 2, 3, 4]) == [0, 1, 0, 1]
    assert deal_groups([5, 5, 5, 5], halves, [4, 3, 2, 1]) == [1, 0, 1, 0]
    assert deal_groups([100, 1, 1], halves, [1, 2, 3]) == [0, 1, 1]
    # The small part has a group even if the others would need it more.
    assert deal_groups([10, 10, 10], [Fraction("0.98"), Fraction("0.02")], [1, 2, 3]) == [0, 0, 1]
    with pytest.raises(SelectionError, match="expected at least a group for each part, got 1 groups for 2 parts"):
        deal_groups([7], halves, [1])


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2**64 - 1)), min_size=1, max_size=30),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_each_part_has_a_group_and_no_part_much_more_than_its_share(
    groups: list[tuple[int, int]], weights: list[int]
) -> None:
    sizes, keys = [size for size, _ in groups], [key for _, key in groups]
    shares = [Fraction(w, sum(weights)) for w in weights]
    if len(groups) < len(weights):
        return
    parts = deal_groups(sizes, shares, keys)
    assert set(parts) == set(range(len(weights)))
    for part, share in enumerate(shares):
        own = [size for size, p in zip(sizes, parts, strict=True) if p == part]
        assert sum(own) - share * sum(sizes) < max(sizes) or len(own) == 1
