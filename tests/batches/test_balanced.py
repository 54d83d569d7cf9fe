"""By label: as often as weights say, or each group as a batch of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daodask import BatchLoader
from daodask.batches.schedule import Balanced, Cells, Epoch, Grouped, Labels, Schedule
from daodask.errors import SpecError, UnknownNameError
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store

CATEGORIES = ("B", "T", "NK", "never")
#: Of 1 000 cells 700, 200 and 50 have a label, and 50 have none.
CODES = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, -1], [700, 200, 50, 50])).astype(np.int64)
CELLS = Cells(len(CODES), {"kind": Labels(CATEGORIES, CODES)})


def drawn(schedule: Schedule, number: int = 0, seed: int = 5, batch_size: int = 10) -> np.ndarray:
    windows = schedule.windows(CELLS, batch_size, Epoch(seed, number))
    return np.concatenate([np.empty(0, np.int64), *(w.positions for w in windows)])


def chi_square(found: np.ndarray, shares: Any) -> float:
    expected = np.asarray(shares) * found.sum()
    assert found[expected == 0].sum() == 0
    return float(((found - expected)[expected > 0] ** 2 / expected[expected > 0]).sum())


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ("group", [1 / 3, 1 / 3, 1 / 3]),
        ("cell", [700 / 950, 200 / 950, 50 / 950]),
        ({"B": 1, "T": 1, "NK": 1}, [1 / 3, 1 / 3, 1 / 3]),
        ({"B": 1, "T": 3}, [1 / 4, 3 / 4, 0]),
        ({"NK": 0.5, "B": 1.5, "T": 0}, [3 / 4, 0, 1 / 4]),
    ],
)
def test_labels_come_as_often_as_their_weights_say(weights, shares):
    schedule = Balanced("kind", weights, run_rows=1)
    found = np.concatenate([drawn(schedule, number) for number in range(20)])
    assert len(found) == 20 * 950
    # At most two degrees of freedom: above 13.8 by chance in one of 1 000 seeds.
    assert chi_square(np.bincount(CODES[found], minlength=3), shares) < 13.8


@pytest.mark.parametrize("run_rows", [1, 16, 300])
def test_cells_of_a_label_are_drawn_alike(run_rows):
    schedule = Balanced("kind", run_rows=run_rows)
    times = np.zeros(len(CODES))
    for number in range(400):
        np.add.at(times, drawn(schedule, number), 1)
    for code in range(3):
        own = times[np.equal(CODES, code)]
        # Cells of a run come together, which makes counts vary more, and none of them preferred.
        assert np.abs(own / own.mean() - 1).max() < 0.4 * np.sqrt(run_rows) ** 0.5
    assert times[CODES < 0].sum() == 0


def test_batches_are_mixed_as_the_epoch_is():
    schedule = Balanced("kind", run_rows=4, window_rows=400)
    counts = [np.bincount(CODES[drawn(schedule, number)[:100]], minlength=3) for number in range(50)]
    assert np.mean(counts, axis=0) == pytest.approx([100 / 3] * 3, rel=0.1)
    assert np.min(counts) > 5


@given(
    weights=st.sampled_from(["group", "cell"])
    | st.dictionaries(st.sampled_from(CATEGORIES[:3]), st.floats(0.01, 100), min_size=1),
    run_rows=st.integers(1, 60),
    number=st.integers(0, 99),
)
@settings(max_examples=100)
def test_without_replacement_each_cell_comes_at_most_once(weights, run_rows, number):
    schedule = Balanced("kind", weights, replacement=False, run_rows=run_rows)
    found = drawn(schedule, number)
    assert set(Counter(found.tolist()).values()) == {1}
    counts = np.bincount(CODES[found], minlength=3)
    sizes = np.array([700, 200, 50])
    named = dict.fromkeys(CATEGORIES[:3], 1) if weights == "group" else weights
    share = sizes.astype(float) if weights == "cell" else np.array([named.get(c, 0.0) for c in CATEGORIES[:3]])
    share = share / share.sum()
    # The scarcest label is used up, and the others come in proportion, to the nearest cell.
    total = min(sizes[share > 0] / share[share > 0])
    np.testing.assert_allclose(counts, total * share, atol=0.5 + 1e-6)
    assert any(counts[share > 0] == sizes[share > 0])


def test_without_replacement_by_cell_is_every_labelled_cell_once():
    found = drawn(Balanced("kind", "cell", replacement=False))
    assert sorted(found.tolist()) == np.flatnonzero(CODES >= 0).tolist()


def test_epochs_and_seeds_differ_and_are_the_same_again():
    schedule = Balanced("kind")
    draws = [drawn(schedule, number, seed).tolist() for number, seed in ((0, 5), (1, 5), (0, 6))]
    assert len({tuple(d) for d in draws}) == 3
    assert drawn(Balanced("kind")).tolist() == draws[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"T": 1, "mono": 2}, "weights: no selected cell has kind = 'mono'"),
        ({"T": 1, "never": 2}, "weights: no selected cell has kind = 'never'"),
        ({"T": -1, "B": 2}, "weights: expected numbers of at least 0"),
        ({"T": 0}, "and one above it"),
        ({}, "and one above it"),
        ({"T": float("nan")}, "weights: expected numbers"),
        ("groups", "weights: expected 'group', 'cell', or a weight per label, got 'groups'"),
    ],
)
def test_weights_that_can_t_be_meant(weights, message):
    with pytest.raises(SpecError) as caught:
        drawn(Balanced("kind", weights))
    assert message in str(caught.value)


def test_a_label_of_a_single_cell_is_drawn_as_often_as_others():
    codes = np.array([0] * 99 + [1], dtype=np.int64)
    rare = Cells(100, {"kind": Labels(("a", "b"), codes)})
    (window,) = Balanced("kind", run_rows=1).windows(rare, 100, Epoch(0, 0))
    assert np.bincount(codes[window.positions])[1] in range(30, 71)


# -- of a store --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("balanced") / "store", (70, 0, 33))


def check(batch: Any) -> None:
    expected = coordinate_counts(batch.index, 32).toarray()
    np.testing.assert_array_equal(batch.X if isinstance(batch.X, np.ndarray) else batch.X.toarray(), expected)
    np.testing.assert_array_equal(batch.obs["row"], batch.index)
    assert batch.obs["note"].tolist() == [f"note {row}" for row in batch.index]


@pytest.mark.parametrize("dense", [False, True])
def test_cells_that_come_again_and_again_are_the_same_cells(store, dense):
    weights = {"study0": 1, "study2": 50}
    schedule = Balanced("dataset", weights, run_rows=1)
    batches = list(BatchLoader(store, 40, schedule=schedule, obs=["row", "note", "dataset"], dense=dense))
    assert [len(batch) for batch in batches] == [40, 40, 23]
    for batch in batches:
        check(batch)
    times = Counter(row for batch in batches for row in batch.index.tolist())
    assert max(times.values()) > 3
    assert sum(count for row, count in times.items() if row >= 70) > 90


@pytest.mark.parametrize("dense", [False, True])
def test_a_batch_is_a_whole_group(store, dense):
    loader = BatchLoader(
        store, 7, schedule=Grouped("cell_type", window_rows=40), obs=["cell_type", "row", "note"], dense=dense
    )
    rows = np.arange(103)
    groups = {
        name: rows[(rows % 7 != 6) & (rows % 3 == code)].tolist()
        for code, name in enumerate(("B cell", "T cell", "Größenzelle"))
    }
    orders = []
    for _ in range(8):
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        for batch in batches:
            check(batch)
            (label,) = set(batch.obs["cell_type"])
            assert batch.index.tolist() == groups[label]
        orders.append(tuple(batch.obs["cell_type"].iloc[0] for batch in batches))
    assert len(set(orders)) > 1


def test_groups_of_numbers_and_booleans(store):
    batches = list(BatchLoader(store[:20], schedule=Grouped("odd", shuffle=False), obs=["row", "note"]))
    assert [batch.index.tolist() for batch in batches] == [list(range(0, 20, 2)), list(range(1, 20, 2))]
    batches = list(BatchLoader(store[60:], schedule=Balanced("score", "cell", replacement=False), obs=["row", "note"]))
    assert sorted(row for b in batches for row in b.index.tolist()) == [r for r in range(60, 103) if r % 5 != 4]


def test_labels_are_those_of_the_selection(store):
    part = store.subset(cell_type=["B cell", "T cell"])
    loader = BatchLoader(part, 10, schedule=Balanced("cell_type", {"Größenzelle": 1}))
    with pytest.raises(SpecError, match="no selected cell has cell_type = 'Größenzelle'; known: 'B cell', 'T cell'"):
        len(loader)
    # Looking at it reads nothing, and so says nothing of it either.
    assert repr(loader).startswith("<BatchLoader: batches of 10 out of")


def test_a_column_that_there_is_not_is_refused_at_once(store):
    for schedule in (Balanced("celltype"), Grouped("celltype")):
        with pytest.raises(UnknownNameError, match="did you mean 'cell_type'?"):
            BatchLoader(store, schedule=schedule)


def test_cells_without_a_label_make_no_batch(store):
    unlabelled = store[np.arange(6, 103, 7)]
    for schedule in (Balanced("cell_type"), Grouped("cell_type")):
        loader = BatchLoader(unlabelled, schedule=schedule)
        assert len(loader) == 0
        assert list(loader) == []
