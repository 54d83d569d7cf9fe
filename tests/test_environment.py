"""A cluster with other versions is found before a job starts, and the message says what differs and where."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import local_cluster

import daodask
from daodask import _environment
from daodask._environment import check_cluster, compare_versions
from daodask.errors import ClusterError, ClusterVersionError
from daodask.testing import coordinate_adata, random_store

HERE = {
    "python": "3.11.7.final.0",
    "daodask": "0.1.0",
    "anndata": "0.12.19",
    "dask": "2026.8.0",
    "distributed": "2026.8.0",
    "numcodecs": "0.16.5",
    "numpy": "2.4.6",
    "pandas": "2.3.3",
    "zarr": "3.1.6",
    "scipy": "1.17.0",
    "h5py": None,
}
A, B = "tcp://10.0.0.1:1", "tcp://10.0.0.2:1"

TABLE = [
    ("all the same", {}, [], []),
    ("another patch release", {"numpy": "2.4.1", "python": "3.11.2.final.0", "zarr": "3.1.0"}, [], []),
    ("not compared", {"toolz": "0.1", "h5py": "3.1.0"}, [], []),
    ("another Python", {"python": "3.13.1.final.0"}, [f"python 3.11.7 here and 3.13.1 at {A}"], []),
    ("another daodask", {"daodask": "0.1.1"}, [f"daodask 0.1.0 here and 0.1.1 at {A}"], []),
    ("no daodask", {"daodask": None}, [f"daodask 0.1.0 here and none at {A}"], []),
    ("another minor release", {"zarr": "3.2.0"}, [f"zarr 3.1.6 here and 3.2.0 at {A}"], []),
    ("2.10 is not 2.1", {"numpy": "2.40.0"}, [f"numpy 2.4.6 here and 2.40.0 at {A}"], []),
    ("one to be warned of", {"scipy": "1.16.3"}, [], [f"scipy 1.17.0 here and 1.16.3 at {A}"]),
    (
        "two",
        {"distributed": "2025.9.1", "anndata": None},
        [f"anndata 0.12.19 here and none at {A}", f"distributed 2026.8.0 here and 2025.9.1 at {A}"],
        [],
    ),
]


@pytest.mark.parametrize(("there", "wrong", "other"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_versions_are_compared_as_far_as_they_matter(there, wrong, other):
    assert compare_versions(HERE, {A: HERE | there, B: HERE}) == (wrong, other)


def test_workers_with_the_same_version_are_named_together():
    there = {f"tcp://10.0.0.{n}:1": HERE | {"zarr": "3.2.0" if n < 5 else "3.0.8"} for n in range(6)} | {"dead": {}}
    assert compare_versions(HERE, there)[0] == [
        "zarr 3.1.6 here and 3.2.0 at tcp://10.0.0.0:1, tcp://10.0.0.1:1, tcp://10.0.0.2:1 and 2 more",
        "zarr 3.1.6 here and 3.0.8 at tcp://10.0.0.5:1",
    ]


class Cluster:
    """As much of a client as the comparison takes; counts how often all workers are asked."""

    def __init__(self, *workers: str, **there: str | None) -> None:
        self.workers, self.there, self.asked = list(workers), there, 0

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(self.workers, 2)

    def get_versions(self, packages: list[str]) -> dict[str, Any]:
        self.asked += 1
        told = {"packages": HERE | self.there}
        return {
            "client": {"packages": HERE},
            "scheduler": {"packages": HERE},
            "workers": dict.fromkeys(self.workers, told),
        }


def test_workers_are_asked_once_and_again_when_there_are_new_ones():
    cluster = Cluster()
    for workers, asked in [([], 1), ([], 2), ([A], 3), ([A], 3), ([A, B], 4), ([B], 4), ([A, B], 4)]:
        cluster.workers = workers
        check_cluster(cluster)
        assert cluster.asked == asked


def test_a_difference_is_an_error_each_time():
    cluster = Cluster(A, zarr="3.2.0")
    for asked in (1, 2):
        with pytest.raises(
            ClusterVersionError, match="got zarr 3.1.6 here and 3.2.0 at tcp.*install the same on both sides"
        ):
            check_cluster(cluster)
        assert cluster.asked == asked


def test_what_is_worth_a_warning_is_warned_of_once():
    cluster = Cluster(A, scipy="1.16.3")
    with pytest.warns(UserWarning, match="the cluster and this process differ in scipy 1.17.0 here and 1.16.3 at tcp"):
        check_cluster(cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_cluster(cluster)


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Any]:
    """A cluster of one worker, a process that says it has another zarr."""
    from distributed import Client

    folder = tmp_path / "packages" / "zarr-2.18.7.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 2.18.7\n")
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(folder.parent), str(root)])
    with (
        local_cluster(0) as cluster,
        Client(cluster) as client,
    ):
        command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--no-nanny", "--nthreads", "1"]
        worker = subprocess.Popen(
            [*command, "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--local-directory", str(tmp_path)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            client.wait_for_workers(1, timeout=60)
            yield client
        finally:
            worker.terminate()
            worker.wait(20)


def test_every_way_into_a_cluster_is_guarded(impostor, tmp_path):
    store = random_store(tmp_path / "store", (20,))
    study = {"id": "a", "source": coordinate_adata(8)}
    ways = {
        "build": lambda: daodask.build_store(
            {"features": {"name": "genes", "reference": "union"}, "studies": [study]}, tmp_path / "new", client=impostor
        ),
        "validate": lambda: daodask.validate_store(tmp_path / "store", client=impostor),
        "batches": lambda: next(iter(daodask.BatchLoader(store, 4, client=impostor))),
        "export": lambda: daodask.export_store(store, tmp_path / "out.h5ad", client=impostor),
    }
    (worker,) = impostor.nthreads()
    for way, run in ways.items():
        with pytest.raises(ClusterVersionError, match=rf"zarr 3\.\S+ here and 2\.18\.7 at {worker};"):
            run()
        assert not (tmp_path / "new").exists(), way
        assert not (tmp_path / "out.h5ad").exists(), way


def test_a_cluster_like_this_process_is_taken(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_cluster(client)
    assert _environment._CHECKED[client] == frozenset(client.nthreads())


def test_a_scheduler_that_is_gone_is_an_error_of_ours():
    class Gone(Cluster):
        def nthreads(self) -> dict[str, int]:
            raise OSError("closed")

    with pytest.raises(ClusterError, match=r"it does not answer \(closed\)"):
        check_cluster(Gone())
