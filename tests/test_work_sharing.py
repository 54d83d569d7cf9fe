"""Calls are shared among those who wait, each is done once, and an error goes to whose call it was."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest

from daodask.work_sharing import WorkSharingPool


@pytest.mark.parametrize(("threads", "callers"), [(1, 1), (2, 1), (2, 2), (3, 2), (8, 1), (1, 3)])
@pytest.mark.parametrize("n_calls", [0, 1, 2, 50])
def test_each_call_is_done_once_before_its_caller_goes_on(threads: int, callers: int, n_calls: int) -> None:
    def run(caller: int) -> int:
        done: list[tuple[int, int]] = []
        pool.run(lambda who, number: done.append((who, number)), [(caller, i) for i in range(n_calls)])
        assert sorted(done) == [(caller, i) for i in range(n_calls)]
        return caller

    with WorkSharingPool(threads, callers, "test") as pool, ThreadPoolExecutor(callers) as others:
        for _ in range(20):
            assert list(others.map(run, range(callers))) == list(range(callers))


def test_who_waits_does_the_calls_of_others() -> None:
    """The first caller's last call is long: meanwhile the other's are done by both, and none by a third thread."""
    began, names = threading.Event(), []

    def long(_: Any) -> None:
        began.set()
        while len(names) < 4:
            time.sleep(0.001)

    def short(_: Any) -> None:
        names.append(threading.current_thread().name)

    with WorkSharingPool(2, 2, "helper") as pool, ThreadPoolExecutor(1, "first") as first:
        waiting = first.submit(pool.run, long, [(0,)])
        assert began.wait(30)
        pool.run(short, [(i,) for i in range(4)])
        waiting.result(30)
    assert names == [threading.current_thread().name] * 4


def test_threads_that_nobody_calls_on_help() -> None:
    together = threading.Barrier(3)
    with WorkSharingPool(3, 1, "helper") as pool:
        # Three calls that wait for one another: a single thread would stand still.
        pool.run(lambda _: together.wait(30), [(i,) for i in range(3)])


def test_an_error_ends_its_callers_calls_and_nobody_elses() -> None:
    done: list[int] = []

    def fail(number: int) -> None:
        if number == 2:
            raise ValueError("call 2")
        done.append(number)

    with WorkSharingPool(1, 1, "test") as pool:
        with pytest.raises(ValueError, match="call 2"):
            pool.run(fail, [(i,) for i in range(100)])
        assert done == [0, 1]
        pool.run(done.append, [(1_000,)])
        assert done == [0, 1, 1_000]


def test_nothing_runs_after_an_error_is_raised() -> None:
    """What the caller has is no longer written to: a call that is under way is waited for."""
    running, finished = threading.Event(), []

    def call(number: int) -> None:
        if number == 0:
            assert running.wait(30)
            raise ValueError("at once")
        running.set()
        time.sleep(0.1)
        finished.append(number)

    with WorkSharingPool(2, 1, "helper") as pool:
        with pytest.raises(ValueError, match="at once"):
            pool.run(call, [(i,) for i in range(3)])
        after = list(finished)
        time.sleep(0.3)
        assert finished == after
        assert after


def test_many_calls_cost_no_more_each_than_few() -> None:
    """Whether others are done is looked at once for each call, not for each pair of them."""
    looked = 0

    class Counted(Future[None]):
        def done(self) -> bool:
            nonlocal looked
            looked += 1
            return super().done()

    with WorkSharingPool(1, 1, "test") as pool, mock.patch("daodask.work_sharing.Future", Counted):
        pool.run(lambda _: None, [(i,) for i in range(1_000)])
    assert looked <= 3_000
