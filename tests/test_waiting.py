"""Waiting side by side: all results, in order or as they come, and nothing begun that nobody waits for."""

from __future__ import annotations

import threading
import time

import pytest

from daodask.waiting import as_fetched, side_by_side


@pytest.mark.parametrize("n", [0, 1, 2, 40])
@pytest.mark.parametrize("remote", [True, False])
def test_results_are_in_order(n: int, remote: bool) -> None:
    assert side_by_side(lambda i: i * i, range(n), remote=remote) == [i * i for i in range(n)]
    assert sorted(as_fetched(lambda i: i * i, range(n))) == sorted(i * i for i in range(n))


def test_what_is_remote_is_waited_for_at_once() -> None:
    # A barrier that lets nobody through before all are there.
    barrier = threading.Barrier(16, timeout=30)
    side_by_side(lambda _: barrier.wait(), range(16), remote=True)
    assert {*as_fetched(lambda _: barrier.wait(), range(16))} == {*range(16)}


def test_what_is_local_is_done_here() -> None:
    assert {*side_by_side(lambda _: threading.get_ident(), range(5), remote=False)} == {threading.get_ident()}


def test_an_error_ends_it() -> None:
    begun = []

    def fetch(number: int) -> int:
        begun.append(number)
        time.sleep(0.001)
        if number == 3:
            raise OSError("lost")
        return number

    with pytest.raises(OSError, match="lost"):
        list(as_fetched(fetch, range(10_000)))
    assert len(begun) < 10_000
    with pytest.raises(OSError, match="lost"):
        side_by_side(fetch, range(10), remote=True)


def test_who_stops_waiting_stops_it() -> None:
    begun = []
    results = as_fetched(lambda number: (begun.append(number), time.sleep(0.001)), range(10_000))
    next(results)
    results.close()
    assert len(begun) < 10_000
