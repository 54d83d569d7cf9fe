"""Runners: the same tasks one after another, on threads, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DaskRunner", "Outcome", "Runner", "SerialRunner", "Task", "ThreadRunner", "open_runner"]


@dataclass(frozen=True, slots=True)
class Task:
    """A function and its arguments; ``name`` reads well in a dashboard (``stage-block``)."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: its result or its error. ``tag`` is what it was submitted with."""

    tag: object
    result: Any = None
    error: Exception | None = None


class Runner(Protocol):
    """Runs tasks; more may be submitted while outcomes are being taken."""

    def submit(self, tag: object, task: Task) -> None:
        """Take a task on."""
        ...

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes as they come, until nothing submitted is left."""
        ...

    def share(self, value: Any) -> Any:
        """A stand-in for a large argument of many tasks, so that it travels once."""
        ...


def _run(tag: object, task: Task) -> Outcome:
    try:
        return Outcome(tag, task.function(*task.arguments))
    except Exception as error:  # noqa: BLE001  the error is the outcome; who submitted the task decides what it means
        return Outcome(tag, error=error)


@dataclass
class SerialRunner:
    """The reference: one task after another, in the order submitted."""

    _pending: deque[tuple[object, Task]] = field(default_factory=deque)

    def submit(self, tag: object, task: Task) -> None:
        """Take a task on."""
        self._pending.append((tag, task))

    def outcomes(self) -> Iterator[Outcome]:
        """Run what is pending, one at a time."""
        while self._pending:
            yield _run(*self._pending.popleft())

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value


@dataclass
class ThreadRunner:
    """Threads of this process; a context manager, as they must end."""

    threads: int
    _pool: ThreadPoolExecutor = field(init=False)
    _done: queue.SimpleQueue[Outcome] = field(default_factory=queue.SimpleQueue)
    _open: int = 0

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="daodask")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, tag: object, task: Task) -> None:
        """Take a task on."""
        self._open += 1
        self._pool.submit(lambda: self._done.put(_run(tag, task)))

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes as threads finish."""
        while self._open:
            outcome = self._done.get()
            self._open -= 1
            yield outcome

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value


class DaskRunner:
    """Tasks on a Dask cluster; results are small receipts, gathered as they complete and released at once.

    A task whose worker dies is run again elsewhere by the scheduler; one that raises is not, as it would raise again.
    """

    def __init__(self, client: Client) -> None:
        from distributed import as_completed

        self._client = client
        self._completed = as_completed(with_results=False, raise_errors=False, loop=client.loop)
        self._tags: dict[str, object] = {}
        self._count = 0

    def submit(self, tag: object, task: Task) -> None:
        """Take a task on."""
        self._count += 1
        # A key of its own each time: a task of an earlier build with the same arguments must run again, as what it
        # wrote may be gone.
        key = f"{task.name}-{id(self):x}-{self._count}"
        future = self._client.submit(task.function, *task.arguments, key=key, pure=False)
        self._tags[key] = tag
        self._completed.add(future)

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes as workers finish."""
        for future in self._completed:
            tag = self._tags.pop(future.key)
            # Where the result was lost with its worker, this waits for the task to have run again.
            outcome = _run(tag, Task("gather", future.result))
            future.release()
            yield outcome

    def share(self, value: Any) -> Any:
        """A future of the value on every worker of now, as what only one had would be lost with it."""
        return self._client.scatter(value, hash=False, broadcast=True)


@contextlib.contextmanager
def open_runner(client: Client | None, threads: int = 1) -> Iterator[Runner]:
    """The runner for these arguments: a cluster's where there is a client, else threads where there are several."""
    if client is not None:
        yield DaskRunner(client)
    elif threads > 1:
        with ThreadRunner(threads) as runner:
            yield runner
    else:
        yield SerialRunner()
