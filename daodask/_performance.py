"""Dask's own report of where a cluster's time went."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daodask.errors import DependencyError, SpecError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["performance_report"]


@contextlib.contextmanager
def performance_report(client: Client | None, path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Record what a cluster does within, and write it down at the end; an error leaves no report.

    Parameters
    ----------
    client
        Of the cluster.
    path
        Of the page (``*.html``, path or URL); ``None`` for no report.

    Raises
    ------
    SpecError
        There is no cluster.
    DependencyError
        The scheduler, which draws the report, has no bokeh.
    """
    if path is None:
        yield
        return
    if client is None:
        raise SpecError(
            "expected a Dask cluster, as a performance report is of one, got none; give client= (on the command line "
            "--scheduler or --workers), or no performance report"
        )
    if not client.run_on_scheduler(_has_bokeh):
        raise DependencyError(
            "a performance report needs bokeh where the scheduler runs; install daodask[report] there"
        )
    import distributed

    with client.as_current():
        report = distributed.performance_report(os.fspath(path))
        report.__enter__()
        yield
        report.__exit__(None, None, None)


def _has_bokeh() -> bool:
    return importlib.util.find_spec("bokeh") is not None
