"""Ranks share an epoch: all get as many batches, no cell twice but for padding, none left out, and each epoch anew."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from daodask.batches.schedule import (
    Balanced,
    Cells,
    Epoch,
    Full,
    Grouped,
    Labels,
    Schedule,
    Sequential,
    Shuffled,
    Window,
    most_rows,
    n_batches,
)

N_LABELS = 7

small = st.integers(1, 60)
exact = st.builds(Sequential, window_rows=small) | st.builds(Shuffled, run_rows=small, window_rows=small)
balanced = st.builds(
    Balanced,
    by=st.just("kind"),
    weights=st.sampled_from(["group", "cell"]),
    replacement=st.booleans(),
    run_rows=st.integers(1, 20),
    window_rows=small,
)
grouped = st.builds(Grouped, by=st.just("kind"), shuffle=st.booleans(), window_rows=small)
by_cell = exact | st.just(Full())
schedules = by_cell | balanced | grouped

sizes = st.integers(0, 200)
worlds = st.integers(1, 9)
batch_sizes = st.integers(1, 40)
epochs = st.integers(0, 50)


def cells(n_obs: int, seed: int = 0) -> Cells:
    """Cells with labels, of which some are rare, and one cell in eight without any."""
    generator = np.random.default_rng(seed)
    codes = np.minimum(generator.geometric(0.4, n_obs) - 1, N_LABELS - 1)
    codes[generator.random(n_obs) < 1 / 8] = -1
    return Cells(n_obs, {"kind": Labels(tuple("abcdefg"), codes.astype(np.int64))})


def of_ranks(
    schedule: Schedule, found: Cells, batch_size: int, world_size: int, number: int = 0, *, drop_last: bool = False
) -> list[list[Window]]:
    """The windows of each rank."""
    return [
        list(schedule.windows(found, batch_size, Epoch(3, number, rank, world_size, drop_last)))
        for rank in range(world_size)
    ]


def batches(windows: list[Window]) -> list[list[int]]:
    return [window.positions[bounds].tolist() for window in windows for bounds in window.batches()]


def handed_out(ranks: list[list[Window]]) -> list[int]:
    return [cell for windows in ranks for batch in batches(windows) for cell in batch]


@given(
    schedule=schedules, n_obs=sizes, batch_size=batch_sizes, world_size=worlds, number=epochs, drop_last=st.booleans()
)
@settings(max_examples=300)
def test_every_rank_gets_as_many_batches_as_was_foreseen(schedule, n_obs, batch_size, world_size, number, drop_last):
    found = cells(n_obs)
    ranks = of_ranks(schedule, found, batch_size, world_size, number, drop_last=drop_last)
    foreseen = n_batches(schedule, found, batch_size, Epoch(3, number, 0, world_size, drop_last))
    assert [len(batches(windows)) for windows in ranks] == [foreseen] * world_size
    largest = max((len(w.positions) for windows in ranks for w in windows), default=0)
    if isinstance(schedule, Grouped):
        assert largest <= most_rows(schedule, found, batch_size, Epoch(3, number, 0, world_size, drop_last))
    elif largest:
        # What drop_last leaves out of an only window was counted.
        most = most_rows(schedule, found, batch_size, Epoch(3, number, 0, world_size, drop_last))
        assert largest <= most < largest + (batch_size if drop_last else 1)
    for windows in ranks:
        assert [w.number for w in windows] == list(range(len(windows)))
        assert all(w.bounds[0] == 0 and w.bounds[-1] == len(w.positions) for w in windows)
        assert all(batches(windows))


@given(schedule=by_cell, n_obs=sizes, batch_size=batch_sizes, world_size=worlds, number=epochs)
@settings(max_examples=300)
def test_ranks_are_disjoint_but_for_padding_and_together_the_epoch(schedule, n_obs, batch_size, world_size, number):
    ranks = of_ranks(schedule, cells(n_obs), batch_size, world_size, number)
    times = Counter(handed_out(ranks))
    assert sorted(times) == list(range(n_obs))
    assert times.total() - n_obs == -n_obs % world_size < world_size
    # Padding repeats no cell more often than it must.
    if n_obs:
        assert max(times.values()) <= 1 + -(-(world_size - 1) // n_obs)
    # Ranks differ in no more than nothing: each hands out the same number of cells.
    assert len({len(handed_out([windows])) for windows in ranks}) == 1


@given(schedule=by_cell, n_obs=sizes, batch_size=batch_sizes, world_size=worlds, number=epochs)
@settings(max_examples=200)
def test_drop_last_pads_nothing_and_has_whole_batches_alone(schedule, n_obs, batch_size, world_size, number):
    ranks = of_ranks(schedule, cells(n_obs), batch_size, world_size, number, drop_last=True)
    times = Counter(handed_out(ranks))
    assert all(count == 1 for count in times.values())
    lengths = {len(batch) for windows in ranks for batch in batches(windows)}
    if isinstance(schedule, Full):
        assert lengths == ({n_obs // world_size} - {0})
    else:
        assert lengths <= {batch_size}
        # No more is left out than what fills no batch of a rank.
        assert len(times) == n_obs // world_size // batch_size * batch_size * world_size


@given(schedule=balanced, n_obs=sizes, batch_size=batch_sizes, world_size=worlds, number=epochs)
@settings(max_examples=200)
def test_balanced_ranks_are_one_draw(schedule, n_obs, batch_size, world_size, number):
    found = cells(n_obs)
    times = Counter(handed_out(of_ranks(schedule, found, batch_size, world_size, number)))
    alone = Counter(handed_out(of_ranks(schedule, found, batch_size, 1, number)))
    padding = times - alone
    assert not alone - times
    assert padding.total() == -alone.total() % world_size
    assert all(found.labels["kind"].codes[cell] >= 0 for cell in times)
    if schedule.replacement:
        assert alone.total() == int((found.labels["kind"].codes >= 0).sum())
    else:
        assert set(alone.values()) <= {1}


@given(schedule=grouped, n_obs=sizes, world_size=worlds, number=epochs, drop_last=st.booleans())
@settings(max_examples=200)
def test_grouped_ranks_have_each_group_once_but_for_padding(schedule, n_obs, world_size, number, drop_last):
    found = cells(n_obs)
    codes = found.labels["kind"].codes
    groups = {label: np.flatnonzero(codes == label).tolist() for label in range(N_LABELS) if (codes == label).any()}
    ranks = of_ranks(schedule, found, 5, world_size, number, drop_last=drop_last)
    seen: Counter[int] = Counter()
    for windows in ranks:
        for batch in batches(windows):
            label = int(codes[batch[0]])
            assert batch == groups[label]
            seen[label] += 1
    if drop_last:
        assert set(seen.values()) <= {1}
        assert len(seen) == len(groups) // world_size * world_size
    else:
        assert set(seen) == set(groups)
        assert seen.total() - len(groups) == -len(groups) % world_size


# So many cells that no rank has padding alone, and runs so short that no two epochs agree by chance.
@given(
    schedule=st.sampled_from([Sequential(), Shuffled(run_rows=1), Full()]),
    n_obs=st.integers(81, 300),
    world_size=st.integers(2, 9),
    number=epochs,
)
@settings(max_examples=100)
def test_a_rank_has_other_cells_in_the_next_epoch(schedule, n_obs, world_size, number):
    found = cells(n_obs)
    for this, following in zip(
        of_ranks(schedule, found, 5, world_size, number),
        of_ranks(schedule, found, 5, world_size, number + 1),
        strict=True,
    ):
        assert set(handed_out([this])) != set(handed_out([following]))


@given(n_obs=st.integers(1, 60), world_size=st.integers(2, 9))
@settings(max_examples=100)
def test_what_padding_repeats_rotates_over_the_epochs(n_obs, world_size):
    assume(n_obs % world_size)
    found = cells(n_obs)
    repeated = [Counter(handed_out(of_ranks(Sequential(), found, 4, world_size, number))) for number in range(n_obs)]
    # Over as many epochs as there are cells each was padding as often as any other.
    times = Counter({cell: sum(count[cell] - 1 for count in repeated) for cell in range(n_obs)})
    assert len(set(times.values())) == 1
    assert min(times.values()) > 0


@given(world_size=st.integers(2, 9), shuffle=st.booleans())
def test_what_padding_of_groups_repeats_rotates(world_size, shuffle):
    found = cells(400)
    assume(N_LABELS % world_size)
    codes = found.labels["kind"].codes
    padding: Counter[int] = Counter()
    for number in range(60):
        ranks = of_ranks(Grouped("kind", shuffle), found, 1, world_size, number)
        seen = Counter(int(codes[batch[0]]) for windows in ranks for batch in batches(windows))
        padding += seen - Counter(range(N_LABELS))
    assert set(padding) == set(range(N_LABELS))


@pytest.mark.parametrize("schedule", [Sequential(), Shuffled(), Full(), Grouped("kind"), Balanced("kind")])
@pytest.mark.parametrize("drop_last", [False, True])
def test_no_cell_is_no_batch(schedule: Any, drop_last: bool):
    for world_size in (1, 3):
        assert of_ranks(schedule, cells(0), 4, world_size, drop_last=drop_last) == [[]] * world_size


def test_known_shares():
    found = cells(7)
    assert [handed_out([w]) for w in of_ranks(Sequential(), found, 2, 3)] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    # The shares move on by a rank, and padding by a world.
    assert [handed_out([w]) for w in of_ranks(Sequential(), found, 2, 3, 1)] == [[3, 4, 5], [6, 3, 4], [0, 1, 2]]
    dropped = of_ranks(Sequential(), found, 2, 3, drop_last=True)
    assert [batches(w) for w in dropped] == [[[0, 1]], [[2, 3]], [[4, 5]]]
