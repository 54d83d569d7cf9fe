"""Schedules are pure: what they say of an epoch depends on its seed and number, and each cell comes exactly once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daodask.batches.schedule import Cells, Epoch, Schedule, Sequential, Shuffled, Window, named_schedule
from daodask.errors import SpecError

sizes = st.integers(0, 500)
batch_sizes = st.integers(1, 70)
seeds = st.integers(0, 2**63 - 1)
schedules = st.builds(Sequential, window_rows=st.integers(1, 200)) | st.builds(
    Shuffled, run_rows=st.integers(1, 80), window_rows=st.integers(1, 200)
)


def windows(schedule: Schedule, n_obs: int, batch_size: int = 1, seed: int = 0, number: int = 0) -> list[Window]:
    return list(schedule.windows(Cells(n_obs), batch_size, Epoch(seed, number)))


def order(schedule: Schedule, n_obs: int, batch_size: int = 1, seed: int = 0, number: int = 0) -> list[int]:
    """Positions in the order in which an epoch hands them out."""
    return [p for w in windows(schedule, n_obs, batch_size, seed, number) for p in w.positions.tolist()]


def batch_lengths(found: list[Window]) -> list[int]:
    return [len(w.positions[bounds]) for w in found for bounds in w.batches()]


@given(schedule=schedules, n_obs=sizes, batch_size=batch_sizes, seed=seeds, number=st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_every_cell_comes_exactly_once_in_exact_batches(schedule, n_obs, batch_size, seed, number):
    found = windows(schedule, n_obs, batch_size, seed, number)
    assert sorted(p for w in found for p in w.positions.tolist()) == list(range(n_obs))
    assert all(w.positions.dtype == np.int64 for w in found)
    assert [w.number for w in found] == list(range(len(found)))
    whole, rest = divmod(n_obs, batch_size)
    assert batch_lengths(found) == [batch_size] * whole + [rest] * bool(rest)
    for window in found:
        stretches = list(window.batches())
        assert len(stretches) == window.n_batches > 0
        assert [s.start for s in stretches] == [0, *(s.stop for s in stretches[:-1])]
        assert stretches[-1].stop == len(window.positions)


@given(schedule=schedules, n_obs=sizes, batch_size=batch_sizes)
@settings(max_examples=50, deadline=None)
def test_a_window_is_about_as_large_as_asked_for(schedule, n_obs, batch_size):
    lengths = [len(w.positions) for w in windows(schedule, n_obs, batch_size)]
    assert all(length <= max(batch_size, schedule.window_rows + batch_size / 2) for length in lengths)
    assert len(set(lengths[:-1])) <= 1


@given(schedule=schedules, n_obs=sizes, batch_size=batch_sizes, seed=seeds, number=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_an_epoch_is_the_same_whoever_makes_it(schedule, n_obs, batch_size, seed, number):
    once = windows(schedule, n_obs, batch_size, seed, number)
    np.random.seed(3)  # noqa: NPY002 - the global state is what must not matter
    again = schedule.windows(Cells(n_obs), batch_size, Epoch(seed, number))
    other = schedule.windows(Cells(n_obs), batch_size, Epoch(seed, number + 1))
    # Made in turns with another epoch's, and every second one only.
    made = [window for window, _ in itertools.zip_longest(again, other)]
    for a, b in zip(once[::2], made[::2], strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert list(a.batches()) == list(b.batches())


@given(n_obs=st.integers(30, 500), run_rows=st.integers(1, 10), window_rows=st.integers(1, 600), seed=seeds)
@settings(max_examples=50, deadline=None)
def test_another_epoch_or_seed_is_another_order(n_obs, run_rows, window_rows, seed):
    schedule = Shuffled(run_rows, window_rows)
    orders = [order(schedule, n_obs, 10, s, e) for s, e in [(seed, 0), (seed, 1), (seed + 1, 0), (seed + 1, 1)]]
    assert len({tuple(o) for o in orders}) == 4


@given(n_obs=sizes, batch_size=batch_sizes, window_rows=st.integers(1, 200), seed=seeds, number=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_sequential_is_store_order(n_obs, batch_size, window_rows, seed, number):
    assert order(Sequential(window_rows), n_obs, batch_size, seed, number) == list(range(n_obs))


@given(
    n_obs=st.integers(1, 500), run_rows=st.integers(1, 60), window_rows=st.integers(1, 200), number=st.integers(0, 9)
)
@settings(max_examples=100, deadline=None)
def test_a_window_is_read_in_few_runs(n_obs, run_rows, window_rows, number):
    for window in windows(Shuffled(run_rows, window_rows), n_obs, 8, number=number):
        rows = np.sort(window.positions)
        runs = 1 + int(np.count_nonzero(np.diff(rows) > 1))
        # Runs are cut at both ends of a window and of the selection.
        assert runs <= len(rows) // run_rows + 4


def test_runs_start_at_another_phase_in_every_epoch():
    schedule = Shuffled(run_rows=16, window_rows=64)
    starts = set()
    for number in range(60):
        for window in windows(schedule, 1024, 16, number=number):
            rows = np.sort(window.positions)
            starts |= set((rows[1:][np.diff(rows) > 1] % 16).tolist())
    assert starts == set(range(16))


def test_known_orders():
    assert [w.positions.tolist() for w in windows(Sequential(4), 7, 2)] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [len(w.positions) for w in windows(Shuffled(window_rows=100), 70, 30)] == [70]
    assert [len(w.positions) for w in windows(Shuffled(window_rows=50), 100, 30)] == [60, 40]
    assert windows(Shuffled(), 0, 4) == windows(Sequential(), 0, 4) == []
    assert order(Shuffled(), 1, 4) == [0]
    (only,) = windows(Sequential(), 3, 100)
    assert list(only.batches()) == [slice(0, 3)]


@pytest.mark.parametrize("window_rows", [10, 30, 1000])
def test_single_cells_come_in_uniform_order(window_rows):
    n_obs, batch_size, epochs = 60, 10, 1500
    schedule = Shuffled(run_rows=1, window_rows=window_rows)
    in_batch = np.zeros((n_obs, n_obs // batch_size))
    together = neighbours = 0
    for number in range(epochs):
        found = np.array(order(schedule, n_obs, batch_size, seed=7, number=number))
        batch = np.empty(n_obs, np.int64)
        batch[found] = np.arange(n_obs) // batch_size
        in_batch[np.arange(n_obs), batch] += 1
        together += int(np.count_nonzero(batch[:-1] == batch[1:]))
        neighbours += int(np.count_nonzero(np.diff(found) == 1))
    expected = epochs * batch_size / n_obs
    chi_square = float(((in_batch - expected) ** 2 / expected).sum())
    # 59 * 5 degrees of freedom: mean 295, standard deviation 24.
    assert 295 - 5 * 24 < chi_square < 295 + 5 * 24
    # Neighbours are in one batch as often as any two cells are, and follow on each other as often.
    assert together / (epochs * (n_obs - 1)) == pytest.approx((batch_size - 1) / (n_obs - 1), rel=0.05)
    assert neighbours / epochs == pytest.approx((n_obs - 1) / n_obs, rel=0.1)


def test_a_window_mixes_its_runs():
    """A batch of a window of eight runs has cells of nearly all of them."""
    schedule = Shuffled(run_rows=64, window_rows=512)
    for window in windows(schedule, 4096, 64):
        for bounds in window.batches():
            assert len(np.unique(window.positions[bounds] // 64)) >= 6


def test_schedules_by_name():
    assert named_schedule("shuffled") == Shuffled()
    assert named_schedule("sequential") == Sequential()
    own = Shuffled(run_rows=1)
    assert named_schedule(own) is own
    assert isinstance(own, Schedule)
    with pytest.raises(SpecError, match="unknown schedule 'shufled'; did you mean 'shuffled'?"):
        named_schedule("shufled")
