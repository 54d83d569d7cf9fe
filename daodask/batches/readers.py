"""Windows read ahead: on threads of this process, or as tasks of a Dask cluster. Both deliver them in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from daodask._connection import cluster_errors, require_connection, scheduler_address
from daodask._environment import check_cluster
from daodask.batches.schedule import Window
from daodask.batches.window import Request, make_batches
from daodask.buffers import BufferPool
from daodask.runners import in_flight, on_worker
from daodask.store import Store
from daodask.work_sharing import WorkSharingPool

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ClusterReader", "LocalReader", "Reader"]


class Reader(Protocol):
    """Turns windows into batches."""

    def read(self, store: Store, windows: Iterator[Window], request: Request) -> Iterator[list[Any]]:
        """The batches of each window, in the order of the windows."""
        ...


@dataclass(frozen=True)
class LocalReader:
    """Reads with threads of this process.

    Parameters
    ----------
    read_ahead
        Windows that are read, or wait, beside the one that is being consumed; with 0 a window is read when it is asked
        for.
    threads
        That decode; as many as there are processors by default.
    pool
        Memory of windows that are done with.
    """

    read_ahead: int
    pool: BufferPool
    threads: int = 0

    def read(self, store: Store, windows: Iterator[Window], request: Request) -> Iterator[list[Any]]:
        """The batches of each window; threads end with the iterator."""
        threads = self.threads or len(os.sched_getaffinity(0))
        # While one window is decoded, the next is planned and the one before is cut into batches. More than two at once
        # would only make each of them late, but for windows that wait for a bucket.
        most = min(2, threads, self.read_ahead) if store.location.is_local else self.read_ahead
        with WorkSharingPool(threads, max(1, most), "daodask-decode") as workers:

            def make(window: Window) -> list[Any]:
                return make_batches(store, window, request, workers if threads > 1 else None, self.pool)

            if not self.read_ahead:
                yield from map(make, windows)
                return
            with ThreadPoolExecutor(most, "daodask-window") as ahead:
                yield from in_flight(windows, lambda window: ahead.submit(make, window), self.read_ahead + 1)


#: Windows in flight for each thread of the cluster: one that is being read and one that waits for it.
_TASKS_PER_THREAD = 2
#: What to do where an epoch was ended by the cluster.
_AGAIN = (
    "iterate again, or save state_dict() and load it into a loader of another client, to go on after the last batch"
)


@dataclass(frozen=True)
class ClusterReader:
    """Reads with tasks of a Dask cluster, a bounded number in flight; a task whose worker dies is run again elsewhere.

    Parameters
    ----------
    client
        Of the cluster.
    most_windows
        Windows in flight at most; by default two for each thread that the cluster has at the time.
    """

    client: Client
    most_windows: int = 0

    def read(self, store: Store, windows: Iterator[Window], request: Request) -> Iterator[list[Any]]:
        """The batches of each window; what was consumed is released on the cluster.

        Raises
        ------
        ClusterError
            The connection to the scheduler was lost: at once where it was killed, after Dask's own time limit
            (``distributed.comm.timeouts.tcp``: 30 s) where it is silent. Workers that die are no error as long as
            others come, and do not die of the same window.
        """
        check_cluster(self.client)
        with cluster_errors(self.client, _AGAIN):
            yield from self._read(store, windows, request)

    def _read(self, store: Store, windows: Iterator[Window], request: Request) -> Iterator[list[Any]]:
        address = scheduler_address(self.client)
        # A task and not scattered data, as it is run again where all workers that have its result are gone.
        shared = self.client.submit(_shared, store, request, key=f"share-request-{os.urandom(8).hex()}")
        pending: deque[Any] = deque()
        depth = since = 0
        try:
            for window in windows:
                # Workers come and go, and each look at them is a request.
                since, depth = (since + 1, depth) if since < depth else (1, self._depth())
                arguments = _window_task, shared, window
                pending.append(self.client.submit(on_worker, *arguments, key=_key(window), pure=False))
                require_connection(self.client, address, f"start a cluster, and {_AGAIN}")
                while len(pending) >= depth:
                    yield self._take(pending)
            while pending:
                yield self._take(pending)
        finally:
            if self.client.status == "running":
                self.client.cancel(list(pending), force=True)
            shared.release()

    def _depth(self) -> int:
        return self.most_windows or max(1, _TASKS_PER_THREAD * sum(self.client.nthreads().values()))

    def _take(self, pending: deque[Any]) -> list[Any]:
        future = pending.popleft()
        try:
            batches: list[Any] = future.result()
        finally:
            future.release()
        return batches


def _shared(store: Store, request: Request) -> tuple[Store, Request]:
    return store, request


def _key(window: Window) -> str:
    return f"read-window-{os.urandom(8).hex()}-{window.number}"


def _window_task(shared: tuple[Store, Request], window: Window) -> list[Any]:
    store, request = shared
    return make_batches(store, window, request)
