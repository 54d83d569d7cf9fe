"""Runners: the same tasks one after another, on threads, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

from daodask._connection import lost_workers, require_connection, scheduler_address
from daodask._environment import check_cluster
from daodask.buffers import release_buffers
from daodask.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = [
    "DaskRunner",
    "Outcome",
    "Runner",
    "SerialRunner",
    "Task",
    "ThreadRunner",
    "in_flight",
    "on_worker",
    "open_runner",
]

T = TypeVar("T")


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
    _done: queue.SimpleQueue[Outcome | BaseException] = field(default_factory=queue.SimpleQueue)
    _open: int = 0

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="daodask-task")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, tag: object, task: Task) -> None:
        """Take a task on."""
        self._open += 1
        self._pool.submit(self._work, tag, task)

    def _work(self, tag: object, task: Task) -> None:
        try:
            self._done.put(_run(tag, task))
        except BaseException as error:  # noqa: BLE001  raised again where somebody waits for it
            self._done.put(error)

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes as threads finish; what ends a process (``SystemExit``, an interrupt) is raised here."""
        while self._open:
            outcome = self._done.get()
            self._open -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value


@dataclass(eq=False)
class _Shared:
    """A large argument: the value, which stays here, and its copy on the cluster, which dies with the workers."""

    value: Any
    copy: Future[Any] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether no worker has it (any more)."""
        return self.copy is None or self.copy.status != "finished"


#: A task is sent again so many times where what it shares with others was lost with the workers that had it.
_MOST_TRIES: Final = 10


#: What to do where the scheduler, or workers, were lost.
_KEPT: Final = "what is finished is kept: start a cluster and run the same build again, and it goes on from there"
_SMALLER: Final = "give workers more memory or smaller blocks (layout: block_rows), and run the same build again"


@dataclass(eq=False)
class _Sent:
    """A task on the cluster, and how often it was sent."""

    tag: object
    task: Task
    tries: int = 1
    copies: tuple[Future[Any] | None, ...] = ()

    @property
    def shared(self) -> list[_Shared]:
        """Its large arguments."""
        return [a for a in self.task.arguments if isinstance(a, _Shared)]

    def forget_copies(self) -> None:
        """Have its large arguments sent again, unless they were since: of some that are lost Dask says they are there.

        Where all workers that have one die while another is still waited for, the client hears of the loss first.
        """
        for shared, copy in zip(self.shared, self.copies, strict=True):
            if shared.copy is copy:
                shared.copy = None


class DaskRunner:
    """Tasks on a Dask cluster; results are small receipts, gathered as they complete and released at once.

    A task whose worker dies is run again elsewhere by the scheduler; one that raises is not, as it would raise again.
    Shared values that die with their workers are sent again from here, with the tasks that need them.
    """

    def __init__(self, client: Client) -> None:
        from distributed import as_completed

        self._client = client
        self._address = scheduler_address(client)
        self._completed = as_completed(with_results=False, raise_errors=False, loop=client.loop)
        self._sent: dict[str, _Sent] = {}
        self._count = 0

    def submit(self, tag: object, task: Task) -> None:
        """Take a task on."""
        self._send(_Sent(tag, task))

    def _send(self, sent: _Sent) -> None:
        self._count += 1
        # A key of its own each time: a task of an earlier build with the same arguments must run again, as what it
        # wrote may be gone.
        key = f"{sent.task.name}-{id(self):x}-{self._count}"
        self._sent[key] = sent
        arguments = [self._copy(a) if isinstance(a, _Shared) else a for a in sent.task.arguments]
        sent.copies = tuple(shared.copy for shared in sent.shared)
        future = self._client.submit(on_worker, sent.task.function, *arguments, key=key, pure=False)
        self._check_connection()
        self._completed.add(future)

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes as workers finish.

        Raises
        ------
        ClusterError
            The connection to the scheduler was lost: at once where it was killed, after Dask's own time limit
            (``distributed.comm.timeouts``: 30 s) where it is silent.
        """
        from distributed.client import FutureCancelledError

        for future in self._completed:
            sent = self._sent.pop(future.key)
            # Where the result was lost with its worker, this waits for the task to have run again.
            outcome = _run(sent.tag, Task("gather", future.result))
            if outcome.error is not None:
                self._check_connection(outcome.error)
            future.release()
            if isinstance(outcome.error, FutureCancelledError) and sent.shared and sent.tries < _MOST_TRIES:
                sent.tries += 1
                sent.forget_copies()
                self._send(sent)
            else:
                yield _of_ours(outcome, sent.task)

    def share(self, value: Any) -> Any:
        """A stand-in for the value, which travels once to every worker of then, when the first task needs it."""
        return _Shared(value)

    def _copy(self, shared: _Shared) -> Future[Any]:
        """The value on the cluster, for which this waits until there is a worker, as a task does."""
        for _ in range(_MOST_TRIES):
            if shared.copy is not None and not shared.is_lost:
                return shared.copy
            try:
                self._client.wait_for_workers(1)
                # In a list, as the elements of a value that is one would be scattered one by one.
                (shared.copy,) = self._client.scatter([shared.value], hash=False, broadcast=True)
            except (OSError, KeyError) as error:  # a worker died while it got its copy; the scheduler misses its name
                self._check_connection(error)
        raise ClusterError(
            f"expected workers that live long enough to be sent {shared.value!r:.80}, {_MOST_TRIES} times they died; "
            f"give them more memory, or write it to a file and build from that"
        )

    def _check_connection(self, error: Exception | None = None) -> None:
        require_connection(self._client, self._address, _KEPT, error)


def _of_ours(outcome: Outcome, task: Task) -> Outcome:
    """The outcome, with what Dask says of lost workers in our words."""
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    if isinstance(outcome.error, KilledWorker | FutureCancelledError):
        return Outcome(outcome.tag, error=lost_workers(task.name, outcome.error, _SMALLER))
    return outcome


#: Part of the memory at which Dask gives a worker no more tasks, above which buffers are not kept.
_MOST_KEPT: Final = 0.9


def on_worker(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a task of a Dask worker, and keep no buffers for the next one if that is short of memory.

    A worker with more than four fifths of its ``memory_limit`` takes no tasks until it has less, and what is kept goes
    only when another task asks for memory: it would stand still for ever.
    """
    try:
        return function(*arguments)
    finally:
        _relieve_worker()


def _relieve_worker() -> None:
    from distributed import get_worker

    worker = get_worker()
    memory = worker.memory_manager
    if memory.memory_limit and memory.memory_pause_fraction:
        most = _MOST_KEPT * memory.memory_pause_fraction * memory.memory_limit
        if worker.monitor.get_process_memory() > most:
            release_buffers()


def in_flight(items: Iterable[T], submit: Callable[[T], Any], most: int) -> Iterator[Any]:
    """Results of what is submitted for each item, in the order of the items; futures are no more than ``most`` at once.

    What is still under way where the iteration ends is cancelled.
    """
    pending: deque[Any] = deque()
    try:
        for item in items:
            pending.append(submit(item))
            if len(pending) >= most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@contextlib.contextmanager
def open_runner(client: Client | None, threads: int = 1) -> Iterator[Runner]:
    """The runner for these arguments: a cluster's where there is a client, else threads where there are several."""
    if client is not None:
        check_cluster(client)
        yield DaskRunner(client)
    elif threads > 1:
        with ThreadRunner(threads) as runner:
            yield runner
    else:
        yield SerialRunner()
