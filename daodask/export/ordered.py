"""Work side by side, results one after another: a bounded number of them at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from daodask._connection import cluster_errors
from daodask._environment import check_cluster
from daodask.runners import in_flight, on_worker

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["in_order"]

R = TypeVar("R")


def in_order(
    function: Callable[..., R], arguments: Sequence[tuple[Any, ...]], *, client: Client | None = None, threads: int = 1
) -> Iterator[R]:
    """Results of calls in the order of their arguments (computes).

    Parameters
    ----------
    function, arguments
        What is called, once with each of the arguments.
    client
        Of a cluster that does it: two calls for each of its threads are under way, and their results come here.
    threads
        Of this process, where there is no client: one call more than threads is under way or waits to be taken.
    """
    if client is not None:
        check_cluster(client)
        with cluster_errors(client, "export again"):
            depth = max(1, 2 * sum(client.nthreads().values()))
            yield from in_flight(arguments, partial(_send, client, function), depth)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="daodask-export") as pool:
        yield from in_flight(arguments, lambda a: pool.submit(function, *a), threads + 1)


def _send(client: Client, function: Callable[..., R], arguments: tuple[Any, ...]) -> Future[R]:
    """A task named by its function, as a dashboard shows it."""
    key = f"{function.__name__}-{os.urandom(8).hex()}"
    return client.submit(on_worker, function, *arguments, key=key, pure=False)
