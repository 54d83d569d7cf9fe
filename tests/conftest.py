"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

# How long one example takes tells of the machine's load and of what is compiled first; the limit is pytest-timeout's.
settings.register_profile("daodask", deadline=None)
settings.load_profile("daodask")


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real studies: ``$DAODASK_DATA``, or ``shared/data`` beside the repository."""
    stated = os.environ.get("DAODASK_DATA")
    folder = Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real studies at {folder}: set DAODASK_DATA to a folder that has them")
    return folder.resolve()


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Run two workers, each a process of its own, for as long as the tests run."""
    from distributed import LocalCluster

    # No dashboard; the HTTP server, which can't be left out, is on any free port: a taken one is a warning.
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": False},
    ) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """Connect to the cluster for one test, in which it is what dask computes on; later tests don't see it."""
    from distributed import Client

    with Client(cluster) as connected:
        yield connected
