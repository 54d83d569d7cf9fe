"""Selections against plain numpy: what is kept, in which blocks it is read, and where a row is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.errors import SelectionError
from daodask.selection import Part, Selection


@dataclass(frozen=True)
class Case:
    """A selection and the row numbers in the store that it must show."""

    sizes: tuple[int, ...]
    block_rows: int
    rows: np.ndarray
    selection: Selection


def selection_of(sizes: tuple[int, ...], block_rows: int) -> Selection:
    offsets = np.cumsum([0, *sizes]).tolist()
    bounds = [(*range(0, size, block_rows), size) if size else (0,) for size in sizes]
    return Selection(tuple(Part(f"d{i}", b, offsets[i]) for i, b in enumerate(bounds)), 5)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A few small datasets, narrowed up to three times by random masks or positions."""
    sizes = tuple(draw(st.lists(st.integers(0, 40), max_size=5)))
    block_rows = draw(st.integers(1, 12))
    selection, rows = selection_of(sizes, block_rows), np.arange(sum(sizes))
    for _ in range(draw(st.integers(0, 3))):
        share = draw(st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0]))
        seed = draw(st.integers(0, 2**32 - 1))
        mask = np.random.default_rng(seed).random(len(rows)) < share
        selection = selection.take(mask if draw(st.booleans()) else np.flatnonzero(mask))
        rows = rows[mask]
    return Case(sizes, block_rows, rows, selection)


@given(cases())
def test_rows_are_those_that_numpy_keeps(case: Case) -> None:
    selection = case.selection
    assert selection.store_rows.tolist() == case.rows.tolist()
    assert selection.n_obs == len(case.rows)
    offsets = np.cumsum([0, *case.sizes])
    counts = [int(np.count_nonzero((case.rows >= a) & (case.rows < b))) for a, b in pairwise(offsets)]
    assert [p.n_obs for p in selection.parts] == counts
    assert selection.bounds.tolist() == np.cumsum([0, *counts]).tolist()
    assert selection.datasets == tuple(f"d{i}" for i, n in enumerate(counts) if n)


@given(cases())
def test_blocks_read_each_selected_row_once_in_order(case: Case) -> None:
    parts, blocks = case.selection.parts, case.selection.blocks()
    read = []
    for block in blocks:
        part = parts[block.part]
        local = np.arange(block.start, block.stop) if block.rows is None else block.rows
        assert block.n_obs == len(local) > 0
        assert 0 <= block.start <= local[0] <= local[-1] < block.stop <= part.n_stored
        assert {block.start, block.stop} <= set(part.bounds)
        assert (block.rows is None) == (part.rows is None)
        read.append(local + part.offset)
    assert np.concatenate([np.empty(0, int), *read]).tolist() == case.rows.tolist()


@given(cases())
def test_sparse_blocks_go_together_and_never_beyond_the_size_of_one(case: Case) -> None:
    blocks = case.selection.blocks()
    assert all(b.n_obs <= case.block_rows for b in blocks)
    for left, right in pairwise(blocks):
        if left.part == right.part and left.rows is not None and right.rows is not None:
            # Joining the next stored block as well would have been too much.
            following = next(b for b in case.selection.parts[left.part].bounds if b > left.stop)
            assert left.n_obs + np.count_nonzero(right.rows < following) > case.block_rows


@given(cases(), st.data())
def test_positions_are_spread_over_their_parts(case: Case, data: st.DataObject) -> None:
    n = case.selection.n_obs
    drawn = data.draw(st.lists(st.integers(0, n - 1), unique=True)) if n else []
    positions = np.array(sorted(drawn), dtype=np.int64)
    spread = list(case.selection.spread(positions))
    assert [part for part, _, _ in spread] == sorted({part for part, _, _ in spread})
    assert [i for _, where, _ in spread for i in range(n)[where]] == list(range(len(positions)))
    for part, where, rows in spread:
        assert (rows + case.selection.parts[part].offset).tolist() == case.rows[positions[where]].tolist()
        assert (rows < case.sizes[part]).all()


@given(cases(), st.data())
def test_masks_per_part(case: Case, data: st.DataObject) -> None:
    selection = case.selection
    generator = np.random.default_rng(0)
    masks = tuple(data.draw(st.sampled_from([True, False, generator.random(p.n_obs) < 0.5])) for p in selection.parts)
    whole = [np.broadcast_to(m, p.n_obs) for p, m in zip(selection.parts, masks, strict=True)]
    whole = np.concatenate([np.empty(0, bool), *whole])
    assert selection.with_part_masks(masks).store_rows.tolist() == case.rows[whole].tolist()


def test_sparse_rows_of_neighbouring_blocks_are_one_block() -> None:
    # Blocks of 10: rows 3, 12, 25 fit one read; a dataset's end ends it.
    selection = selection_of((40, 20), 10).take(np.array([3, 12, 25, 41, 59]))
    found = [(b.part, b.start, b.stop, b.rows.tolist() if b.rows is not None else None) for b in selection.blocks()]
    assert found == [(0, 0, 40, [3, 12, 25]), (1, 0, 20, [1, 19])]


def test_whole_datasets_keep_their_stored_blocks() -> None:
    selection = selection_of((25, 0, 10), 10)
    assert [(b.part, b.start, b.stop, b.rows) for b in selection.blocks()] == [
        (0, 0, 10, None),
        (0, 10, 20, None),
        (0, 20, 25, None),
        (2, 0, 10, None),
    ]


def test_all_rows_are_a_whole_dataset_again() -> None:
    selection = selection_of((5, 5), 2).take(np.ones(10, bool))
    assert [p.rows for p in selection.parts] == [None, None]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (
            np.array([3, 1]),
            "rows stay in store order: expected increasing row numbers without repeats; sort them first",
        ),
        (np.array([1, 1]), "without repeats"),
        (np.array([0, 10]), "row numbers go from 0 to 9, got 0 to 10"),
        (np.array([-11, 0]), "row numbers go from 0 to 9, got -11 to 0"),
        (np.ones(9, bool), "expected a mask of length 10, got shape"),
        (np.array([0.5]), "expected a 1-D array of row numbers or a mask, got float64"),
        (np.array([[1]]), "expected a 1-D array of row numbers or a mask"),
        (np.array(["a"]), "expected a 1-D array of row numbers or a mask"),
    ],
)
def test_positions_that_are_refused(positions: np.ndarray, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        selection_of((6, 4), 3).take(positions)


def test_negative_positions_count_from_the_end() -> None:
    assert selection_of((6, 4), 3).take(np.array([0, -1])).store_rows.tolist() == [0, 9]
    assert selection_of((6, 4), 3).take(np.array([])).n_obs == 0


def test_genes_are_taken_of_those_taken_before() -> None:
    selection = selection_of((3,), 3).take_genes(np.array([4, 0, 2])).take_genes(np.array([2, 0]))
    assert selection.genes is not None
    assert (selection.genes.tolist(), selection.n_vars) == ([2, 4], 2)
    with pytest.raises(SelectionError, match="a gene is selected twice"):
        selection.take_genes(np.array([0, 0]))


# -- and, or, not --------------------------------------------------------------------------------------------------


@st.composite
def subsets(draw: st.DrawFn) -> tuple[np.ndarray, Selection]:
    """A selection, and the same as a mask over all rows, made by masks, by and, or, not."""
    whole = selection_of((7, 0, 12, 1), 4)

    def masked(seed: int, share: float) -> tuple[np.ndarray, Selection]:
        mask = np.random.default_rng(seed).random(whole.n_obs) < share
        return mask, whole.take(mask)

    leaf = st.builds(masked, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    tree = st.recursive(
        leaf,
        lambda inner: (
            inner.map(lambda a: (~a[0], ~a[1]))
            | st.tuples(inner, inner).map(lambda ab: (ab[0][0] & ab[1][0], ab[0][1] & ab[1][1]))
            | st.tuples(inner, inner).map(lambda ab: (ab[0][0] | ab[1][0], ab[0][1] | ab[1][1]))
        ),
        max_leaves=6,
    )
    return draw(tree)


@given(subsets())
def test_selections_combine_as_masks_do(pair: tuple[np.ndarray, Selection]) -> None:
    mask, selection = pair
    assert selection.store_rows.tolist() == np.flatnonzero(mask).tolist()
    assert selection.store_rows.dtype == np.int64
    # What is selected as a whole is known to be.
    assert [p.rows is None for p in selection.parts] == [p.n_obs == p.n_stored for p in selection.parts]
    assert [b.rows is None for b in selection.blocks()] == [
        selection.parts[b.part].rows is None for b in selection.blocks()
    ]


@given(subsets(), subsets())
def test_the_laws_of_boolean_algebra(a: tuple[np.ndarray, Selection], b: tuple[np.ndarray, Selection]) -> None:
    def rows(selection: Selection) -> list[int]:
        return selection.store_rows.tolist()

    (_, x), (_, y) = a, b
    assert rows(~(x & y)) == rows(~x | ~y)
    assert rows(x & (x | y)) == rows(x) == rows(~~x)
    assert rows(x & y) == rows(y & x)
    assert rows(x | ~x) == list(range(20))
    assert rows(x & ~x) == []


def test_genes_stay() -> None:
    narrow = selection_of((6, 4), 3).take_genes(np.array([4, 0]))
    both = narrow.take(np.array([1, 2])) | narrow.take(np.array([2, 9]))
    assert both.genes is not None
    assert (both.genes.tolist(), both.store_rows.tolist()) == ([4, 0], [1, 2, 9])
    assert (~both).genes is narrow.genes
    in_order = selection_of((6, 4), 3).take_genes(np.arange(5))
    assert (in_order & selection_of((6, 4), 3)).n_vars == 5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (selection_of((6, 5), 3), "expected selections of the same store and snapshot, got two of other datasets"),
        (selection_of((6,), 3), "two of other datasets; open one store once, and narrow that one in different ways"),
        (
            selection_of((6, 4), 3).take_genes(np.array([0, 4])),
            r"same genes, got 2 and 2 genes that differ; .*\(a & b\)\[:, genes\]",
        ),
        (selection_of((6, 4), 3), "expected selections of the same genes, got 2 and 5 genes that differ"),
    ],
)
def test_selections_that_do_not_combine(other: Selection, message: str) -> None:
    narrow = selection_of((6, 4), 3).take_genes(np.array([4, 0]))
    with pytest.raises(SelectionError, match=message):
        narrow & other
    with pytest.raises(SelectionError, match=message):
        narrow | other


def test_a_selection_combines_with_selections_alone() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        selection_of((6, 4), 3) & np.ones(10, bool)
    with pytest.raises(TypeError, match="unsupported operand"):
        selection_of((6, 4), 3) | 3
