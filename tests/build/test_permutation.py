"""Permutations: each row once, the same whoever works it out, and none likelier than another."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from daodask.build.permutation import Permutation, permutation
from daodask.errors import SpecError


@st.composite
def blocks(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows of input and of output blocks, some of them empty, of the same sum."""
    inputs = tuple(draw(st.lists(st.integers(0, 30), min_size=1, max_size=9)))
    cuts = sorted(draw(st.lists(st.integers(0, sum(inputs)), max_size=8)))
    return inputs, tuple(b - a for a, b in itertools.pairwise([0, *cuts, sum(inputs)]))


@given(sizes=blocks(), seed=st.integers(0, 2**64))
def test_every_row_is_at_one_place(sizes: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    inputs, outputs = sizes
    plan = Permutation(inputs, outputs, seed)
    counts = np.array([plan.counts(block) for block in range(len(inputs))])
    assert counts.sum(axis=1).tolist() == list(inputs)
    assert counts.sum(axis=0).tolist() == list(outputs)
    assert sorted(permutation(inputs, outputs, seed).tolist()) == list(range(sum(inputs)))
    assert permutation(inputs, outputs, seed).tolist() == permutation(inputs, outputs, seed).tolist()


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((4,), (4,)), ((2, 2), (2, 2)), ((1, 2, 1), (3, 1)), ((1, 3), (1, 1, 2))]
)
def test_no_permutation_is_likelier_than_another(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    n_seeds = 2400
    found = Counter(tuple(permutation(inputs, outputs, seed).tolist()) for seed in range(n_seeds))
    assert len(found) == 24
    # The seeds are fixed: this either holds or not. By chance it would not for one permutation scheme in a thousand.
    assert scipy.stats.chisquare(list(found.values())).pvalue > 0.001


def test_where_rows_go_does_not_depend_on_where_they_are() -> None:
    inputs, outputs, n_seeds = (7, 5, 9, 3), (10, 6, 8), 1500
    places = np.array([np.argsort(permutation(inputs, outputs, seed)) for seed in range(n_seeds)])
    for row in range(sum(inputs)):
        counts = np.bincount(places[:, row], minlength=sum(outputs))
        assert scipy.stats.chisquare(counts).pvalue > 0.0001, row
    # Neighbours stay neighbours as often as any two rows do.
    kept = np.mean(np.diff(places, axis=1) == 1)
    assert kept == pytest.approx(1 / 24, abs=4 * np.sqrt(1 / 24 / (n_seeds * 23)))


def test_a_task_of_very_many_rows_holds_a_block_and_a_number_per_block() -> None:
    n_blocks = 6000
    plan = Permutation((16_384,) * n_blocks, (16_384,) * n_blocks, seed=3)
    rows, bounds = plan.rows(1234)
    assert (len(rows), len(bounds), bounds[-1]) == (16_384, n_blocks + 1, 16_384)
    counts = np.diff(bounds)
    # Each output block gets 2.7 rows on average, as many as a Poisson process would bring.
    assert counts.var() == pytest.approx(16_384 / n_blocks, rel=0.1)


def test_more_rows_than_can_be_drawn_are_refused() -> None:
    with pytest.raises(SpecError, match="expected fewer than 1,000,000,000 cells"):
        Permutation((10**9,), (10**9,), 0)
    with pytest.raises(ValueError, match="expected as many rows as there are, 3, got 4"):
        Permutation((3,), (4,), 0)
