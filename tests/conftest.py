"""What all tests share."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clusters import local_cluster
from hypothesis import settings
from servers import BUCKET, KINDS, MissingError, Servers

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

    from daodask.storage import StoreLocation

# Before any file system is imported, and for every process that a test starts.
_SERVERS = Servers()
os.environ.update(_SERVERS.environment)
_NUMBER = itertools.count()

# How long one example takes tells of the machine's load and of what is compiled first; the limit is pytest-timeout's.
settings.register_profile("daodask", deadline=None)
settings.load_profile("daodask")


def pytest_unconfigure() -> None:
    """Stop the servers, and give up the ports that were kept for them."""
    _SERVERS.close()
    # What is frozen at the end counts as a leak for packages that look for theirs.
    gc.unfreeze()


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real studies: ``$DAODASK_DATA``, or ``shared/data`` beside the repository."""
    stated = os.environ.get("DAODASK_DATA")
    folder = Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real studies at {folder}: set DAODASK_DATA to a folder that has them")
    return folder.resolve()


@pytest.fixture(scope="session")
def servers() -> Servers:
    """Return servers of buckets, which start when they are asked for: ``servers.address("gcs")``."""
    return _SERVERS


@pytest.fixture(scope="session")
def place(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StoreLocation]:
    """Return what makes an empty place: ``place("local")``, or ``memory``, ``gcs``, ``s3``, ``seaweed``."""
    from daodask.storage import StoreLocation

    def make(kind: str) -> StoreLocation:
        name = f"place{next(_NUMBER)}"
        if kind == "local":
            return StoreLocation.parse(tmp_path_factory.mktemp("place") / name)
        if kind == "memory":
            return StoreLocation.parse(f"memory://{name}")
        try:
            address = servers.address(kind)
        except MissingError as missing:
            pytest.skip(str(missing))
        # Where SeaweedFS is, is said by argument; the other two are found by the environment.
        options = {"endpoint_url": address} if kind == "seaweed" else {}
        return StoreLocation.parse(f"{'gs' if kind == 'gcs' else 's3'}://{BUCKET}/{name}", options)

    return make


@pytest.fixture(params=["local", "memory", *KINDS])
def location(request: pytest.FixtureRequest, place: Callable[[str], StoreLocation]) -> Iterator[StoreLocation]:
    """Return an empty place of each kind that a store may be in."""
    made = place(request.param)
    yield made
    if request.param == "memory":  # the more there is in memory, the slower fsspec is
        made.remove()


@pytest.fixture(scope="module", autouse=True)
def _empty_memory() -> Iterator[None]:
    """Leave nothing in fsspec's memory to the next module, which has places of the same names."""
    yield
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module", autouse=True)
def _known_garbage() -> Iterator[None]:
    """Spare later collections of garbage what is there: half a million objects, which took a fifth of the time."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Run two workers, each a process of its own, for as long as the tests run."""
    with local_cluster(2) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """Connect to the cluster for one test, in which it is what dask computes on; later tests don't see it."""
    from distributed import Client

    with Client(cluster) as connected:
        yield connected
