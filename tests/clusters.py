"""Dask clusters on this machine for tests, without a dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from daodask.buffers import reused_empty

if TYPE_CHECKING:
    from distributed import LocalCluster

__all__ = ["LIMIT", "fill", "fill_up", "local_cluster"]

#: Memory of a worker that is to be short of it, in bytes.
LIMIT = 10**9
_BUFFER = 250 * 2**20
_BALLAST: list[np.ndarray] = []


def local_cluster(n_workers: int, **options: Any) -> LocalCluster:
    """Start workers of one thread, each a process of its own; ``options`` are those of ``distributed.LocalCluster``."""
    from distributed import LocalCluster

    # The HTTP server, which can't be left out, is on any free port: a taken one is a warning.
    quiet = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    return LocalCluster(n_workers=n_workers, threads_per_worker=1, processes=True, **quiet, **options)


def fill(ballast: int, buffer: int) -> int:
    """Keep some memory for good, and have some more kept for others; return what the process has."""
    _BALLAST.append(np.ones(ballast, np.uint8))
    reused_empty(buffer, np.uint8)[:] = 1
    return int(psutil.Process().memory_info().rss)


def fill_up(idle: int) -> int:
    """In a task on a worker that has ``idle`` bytes: all but what it must have left to be given another task."""
    return fill(int(0.83 * LIMIT) - idle - _BUFFER, _BUFFER)
