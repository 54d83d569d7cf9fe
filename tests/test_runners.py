"""Runners are alike: each task has one outcome, its result or its error, and tasks may follow from outcomes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from clusters import LIMIT, fill, fill_up, local_cluster

from daodask.errors import ClusterError
from daodask.runners import Outcome, Runner, Task, open_runner

if TYPE_CHECKING:
    from distributed import Client

KINDS = ("serial", "threads", "cluster")


@pytest.fixture(params=KINDS)
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    client = request.getfixturevalue("client") if request.param == "cluster" else None
    with open_runner(client, threads=2 if request.param == "threads" else 1) as opened:
        yield opened


def halve(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def told(outcome: Outcome) -> tuple[object, object, str]:
    return outcome.tag, outcome.result, repr(outcome.error) if outcome.error else ""


def test_one_outcome_a_task(runner: Runner) -> None:
    for number in range(5):
        runner.submit(("tag", number), Task("halve", halve, (number,)))
    assert sorted(map(told, runner.outcomes())) == [
        (("tag", 0), 0, ""),
        (("tag", 1), None, "ValueError('1 is odd')"),
        (("tag", 2), 1, ""),
        (("tag", 3), None, "ValueError('3 is odd')"),
        (("tag", 4), 2, ""),
    ]
    assert list(runner.outcomes()) == []


def test_tasks_may_follow_from_outcomes(runner: Runner) -> None:
    runner.submit(0, Task("halve", halve, (64,)))
    seen = []
    for outcome in runner.outcomes():
        seen.append(outcome.result)
        if outcome.error is None:
            runner.submit(len(seen), Task("halve", halve, (outcome.result,)))
    assert seen == [32, 16, 8, 4, 2, 1, None]
    runner.submit("again", Task("halve", halve, (2,)))
    assert [told(o) for o in runner.outcomes()] == [("again", 1, "")]


def test_shared_values(runner: Runner) -> None:
    shared = runner.share([1, 2, 3])
    for tag in range(3):
        runner.submit(tag, Task("sum", sum, (shared, tag)))
    assert sorted(told(o) for o in runner.outcomes()) == [(0, 6, ""), (1, 7, ""), (2, 8, "")]


def test_serial_runs_in_order_and_only_when_asked() -> None:
    done: list[int] = []
    with open_runner(None) as runner:
        for number in range(3):
            runner.submit(number, Task("append", done.append, (number,)))
        assert done == []
        next(iter(runner.outcomes()))
        assert done == [0]


def test_threads_end_with_their_runner() -> None:
    with open_runner(None, threads=2) as runner:
        for tag in range(20):
            runner.submit(tag, Task("sleep", time.sleep, (0.01,)))
    assert not [t for t in threading.enumerate() if t.name.startswith("daodask-task")]


def ends(what: type[BaseException]) -> None:
    raise what("now")


@pytest.mark.parametrize("what", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["serial", "threads"])
def test_what_ends_a_process_ends_the_outcomes(kind: str, what: type[BaseException]) -> None:
    with open_runner(None, threads=2 if kind == "threads" else 1) as runner:
        runner.submit("tag", Task("ends", ends, (what,)))
        with pytest.raises(what, match="now"):
            list(runner.outcomes())


def test_a_shared_value_that_is_lost_with_its_workers_is_sent_again(client: Client) -> None:
    with open_runner(client) as runner:
        shared = runner.share([1, 2, 3])
        runner.submit("before", Task("sum", sum, (shared,)))
        assert [told(o) for o in runner.outcomes()] == [("before", 6, "")]
        before = client.run(os.getpid)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        for tag in range(4):
            runner.submit(tag, Task("sum", sum, (shared, tag)))
        assert sorted(told(o) for o in runner.outcomes()) == [(tag, 6 + tag, "") for tag in range(4)]
    while len(set(client.scheduler_info(n_workers=-1)["workers"]) - set(before)) < 2:
        time.sleep(0.05)


def dies(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_its_workers_is_told_in_our_words(client: Client) -> None:
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    before = set(client.scheduler_info(n_workers=-1)["workers"])
    with open_runner(client) as runner:
        runner.submit("tag", Task("stage-block", dies, (0,)))
        (outcome,) = runner.outcomes()
    assert isinstance(outcome.error, ClusterError)
    assert "every worker that tried 'stage-block' died, or was killed for the memory it took" in str(outcome.error)
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 3))
    while len(client.scheduler_info(n_workers=-1)["workers"]) < 2 or before <= set(
        client.scheduler_info(n_workers=-1)["workers"]
    ):
        time.sleep(0.05)


def test_a_shared_value_that_is_lost_while_it_is_sent_is_sent_again(client: Client) -> None:
    with open_runner(client) as runner:
        shared = runner.share([1, 2, 3])
        runner.submit("before", Task("sum", sum, (shared,)))
        assert [o.result for o in runner.outcomes()] == [6]
        client.cancel([shared.copy], force=True)
        # What the client says of a copy that was lost while another worker was still waited for.
        shared.copy._state.finish()
        assert shared.copy.status == "finished"
        for tag in (1, 2):
            runner.submit(tag, Task("sum", sum, (shared, tag)))
        assert {o.tag: (o.result, o.error) for o in runner.outcomes()} == {1: (7, None), 2: (8, None)}


@pytest.mark.parametrize("error", [OSError("closed"), KeyError("tcp://127.0.0.1:1")], ids=type)
def test_a_worker_that_dies_while_it_is_sent_a_shared_value(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    scatter, errors = client.scatter, [error, error]

    def scattered(*arguments: object, **options: object) -> object:
        if errors:
            raise errors.pop()
        return scatter(*arguments, **options)

    monkeypatch.setattr(client, "scatter", scattered)
    with open_runner(client) as runner:
        runner.submit("sum", Task("sum", sum, (runner.share([1, 2, 3]),)))
        assert [told(o) for o in runner.outcomes()] == [("sum", 6, "")]
    assert errors == []


def test_a_result_that_is_lost_with_its_worker_is_made_again(client: Client) -> None:
    with open_runner(client) as runner:
        for tag in range(8):
            runner.submit(tag, Task("halve", halve, (2 * tag,)))
        while any(future.status != "finished" for future in client.futures.values()):
            time.sleep(0.05)
        before = client.run(os.getpid)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        assert sorted(told(o) for o in runner.outcomes()) == [(tag, tag, "") for tag in range(8)]
    # Whoever comes next finds two living workers.
    while len(set(client.scheduler_info(n_workers=-1)["workers"]) - set(before)) < 2:
        time.sleep(0.05)


def test_a_worker_short_of_memory_keeps_none_for_the_next_task() -> None:
    """It takes no more tasks where it has four fifths of its limit, and so would stand still."""
    from distributed import Client

    with (
        local_cluster(1, memory_limit=LIMIT) as cluster,
        Client(cluster) as client,
        open_runner(client) as runner,
    ):
        idle = client.submit(fill, 0, 0).result()
        runner.submit("fill", Task("fill", fill_up, (idle,)))
        (outcome,) = runner.outcomes()
        assert 0.8 * LIMIT < outcome.result < 0.95 * LIMIT
        runner.submit("next", Task("halve", halve, (2,)))
        assert [told(o) for o in runner.outcomes()] == [("next", 1, "")]
