"""Where the commands work: a local Dask cluster, a running one, or this process."""

from __future__ import annotations

import contextlib
import json
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
        Address of a running cluster to use instead, or the path of the file (``*.json``) in which its scheduler says
        where it is (``dask scheduler --scheduler-file``). Certificates for ``tls://`` are those of Dask's
        configuration: ``distributed.comm.tls.ca-file``, ``….client.cert``, ``….client.key``, or the environment's
        ``DASK_DISTRIBUTED__COMM__TLS__CA_FILE``, ``…__CLIENT__CERT``, ``…__CLIENT__KEY``.

    Raises
    ------
    ClusterError
        No scheduler answers at the address, or not to these certificates.
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

    address = _address(scheduler)
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"expected a Dask scheduler at {address}, none answered in {_CONNECT_SECONDS} s ({error}); give its "
            f"address as the scheduler prints it, such as tcp://10.0.0.5:8786, or tls:// with certificates of the "
            f"authority that the cluster trusts"
        ) from error
    except TypeError as error:  # what distributed raises without certificates
        raise ClusterError(
            f"expected certificates for {address} in Dask's configuration ({error}); set distributed.comm.tls.ca-file, "
            f"distributed.comm.tls.client.cert and distributed.comm.tls.client.key there, or in the environment "
            f"DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on"
        ) from error
    with client:
        yield client


def _address(scheduler: str) -> str:
    """An address as it is; of a scheduler file, what it says."""
    if not scheduler.endswith(".json"):
        return scheduler
    try:
        with open(scheduler, encoding="utf-8") as file:
            return str(json.load(file)["address"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ClusterError(
            f"expected a scheduler file at {scheduler}, as `dask scheduler --scheduler-file` writes it "
            f"({type(error).__name__}: {error}); start the scheduler first"
        ) from error


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
