"""Where the commands work: a local Dask cluster, a running one, or this process."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daodask.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["default_workers", "open_client"]

_CONNECT_SECONDS = 15


def default_workers() -> int:
    """One worker per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def open_client(workers: int | None = None, threads: int = 1, scheduler: str | None = None) -> Iterator[Client | None]:
    """A client of the cluster to work on, closed at the end, as is the cluster where it was started here.

    Parameters
    ----------
    workers
        Processes of a local cluster, by default one per core; 0 starts none, and the client is ``None``.
    threads
        Threads of each worker.
    scheduler
        Address of a running cluster to use instead.

    Raises
    ------
    ClusterError
        No scheduler answers at the address.
    """
    if scheduler is not None:
        with _connect(scheduler) as client:
            yield client
    elif workers == 0:
        yield None
    else:
        with _local(default_workers() if workers is None else workers, threads) as client:
            yield client


@contextlib.contextmanager
def _connect(scheduler: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"expected a Dask scheduler at {scheduler}, none answered in {_CONNECT_SECONDS} s ({error}); give its "
            f"address as the scheduler prints it, such as tcp://10.0.0.5:8786"
        ) from error
    with client:
        yield client


@contextlib.contextmanager
def _local(workers: int, threads: int) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    with (
        # What workers spill is not left in the directory that the command was called from.
        tempfile.TemporaryDirectory(prefix="daodask-workers-", ignore_cleanup_errors=True) as scratch,
        dask.config.set({"temporary-directory": scratch}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            # No dashboard; the HTTP server, which can't be left out, is on any free port and on this machine alone.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            local_directory=scratch,
            silence_logs=logging.CRITICAL,  # what fails is in the report, with its reason
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
