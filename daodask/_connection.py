"""What Dask says of a scheduler and of workers that were lost, in our words; and what it does not say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from daodask.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client, KilledWorker

__all__ = ["cluster_errors", "lost_workers", "require_connection", "scheduler_address"]


def scheduler_address(client: Client) -> str:
    """Where the scheduler is; to be asked for while there is one."""
    return str(client.scheduler.address) if client.scheduler is not None else "an unknown address"


def require_connection(client: Client, address: str, advice: str, cause: Exception | None = None) -> None:
    """Say so where the scheduler is gone; also after each submission, as Dask never ends a task sent to nobody.

    Parameters
    ----------
    client, address
        Of the cluster, and where its scheduler was.
    advice
        What to do, as a message ends.
    cause
        What was raised, if something was.

    Raises
    ------
    ClusterError
        The connection is lost: Dask is trying to connect again, or has given up.
    """
    if getattr(cause, "reason", "") == "scheduler-connection-lost" or client.status != "running":
        raise ClusterError(f"lost the connection to the Dask scheduler at {address}; {advice}") from cause


def lost_workers(name: str, error: KilledWorker | CancelledError, advice: str) -> ClusterError:
    """The error for a task that took its workers with it."""
    found = ClusterError(
        f"every worker that tried {name!r} died, or was killed for the memory it took ({error}); {advice}"
    )
    found.__cause__ = error
    return found


@contextlib.contextmanager
def cluster_errors(client: Client, again: str) -> Iterator[None]:
    """Raise errors of ours for what befalls a cluster while it reads.

    Parameters
    ----------
    client
        Of the cluster.
    again
        What to do once there is a cluster again, as a message ends.

    Raises
    ------
    ClusterError
        The connection to the scheduler was lost, workers died of a task, or somebody cancelled it.
    """
    from distributed import KilledWorker
    from distributed.client import ClosedClientError

    address = scheduler_address(client)
    try:
        yield
    except KilledWorker as error:
        raise lost_workers(str(error.task), error, f"give workers more memory, and {again}") from error
    except CancelledError as error:
        require_connection(client, address, f"start a cluster, and {again}", error)
        raise ClusterError(
            f"expected tasks to run until they are done, they were cancelled ({error}); {again}"
        ) from error
    except (OSError, ClosedClientError) as error:
        require_connection(client, address, f"start a cluster, and {again}", error)
        raise
