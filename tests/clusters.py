"""Dask clusters on this machine for tests, without a dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import LocalCluster

__all__ = ["local_cluster"]


def local_cluster(n_workers: int, **options: Any) -> LocalCluster:
    """Start workers of one thread, each a process of its own; ``options`` are those of ``distributed.LocalCluster``."""
    from distributed import LocalCluster

    # The HTTP server, which can't be left out, is on any free port: a taken one is a warning.
    quiet = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    return LocalCluster(n_workers=n_workers, threads_per_worker=1, processes=True, **quiet, **options)
