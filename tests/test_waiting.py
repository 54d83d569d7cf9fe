"""Waiting side by side: all results, in order or as they come, and nothing begun that nobody waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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


def test_who_asks_first_is_served_first() -> None:
    begun: list[str] = []
    gate, full = threading.Event(), threading.Barrier(17, timeout=30)

    def fetch(name: str) -> None:
        begun.append(name)
        if len(begun) <= 16:
            full.wait()
        gate.wait(30)

    queued = threading.Event()

    def items() -> Iterator[str]:
        yield from "a" * 40
        queued.set()

    with ThreadPoolExecutor(2) as askers:
        first = askers.submit(lambda: list(as_fetched(fetch, items())))
        full.wait()
        assert queued.wait(30)
        second = askers.submit(lambda: list(as_fetched(fetch, [*"b" * 40])))
        gate.set()
        assert len(first.result()) == len(second.result()) == 40
    # The 16 that were let through at once note themselves in any order, with the next.
    assert "b" not in begun[: 40 - 16]
    assert "a" not in begun[40 + 16 :]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_fetches() -> None:
    assert len(list(as_fetched(abs, range(20)))) == 20
    child = os.fork()
    if not child:
        os._exit(len(list(as_fetched(abs, range(20)))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 20
