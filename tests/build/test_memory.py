"""A worker's memory is set by the block and not by the study, and one study is the work of all workers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import local_cluster
from distributed import Client

import daodask
from daodask.build import tasks
from daodask.sources import _anndata, _parts
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata
from daodask.testing.large import large_study

#: Of a worker's process: a third is what it imports, and it stops taking tasks at four fifths.
LIMIT = 900_000_000


def spec(source: Any, **layout: Any) -> dict[str, Any]:
    return {
        "features": {"name": "genes", "reference": "union"},
        "layout": layout,
        "studies": [{"id": "large", "source": source}],
    }


@pytest.fixture(scope="module")
def limited() -> Iterator[Client]:
    """Connect to two workers that are killed where they take more memory than the limit."""
    with local_cluster(2, memory_limit=LIMIT) as cluster, Client(cluster) as client:
        yield client


def build_on(client: Client, source: Path, store: Path, **keys: Any) -> str:
    """Build without losing a worker; return the digest of all files of the dataset."""
    processes = client.run(os.getpid)
    report = daodask.build_store(spec(source) | keys, store, client=client)
    assert report.ok, str(report)
    assert client.run(os.getpid) == processes
    (dataset,) = daodask.open_store(store).snapshot.datasets
    return dataset.checksum


def test_a_matrix_by_columns_is_never_held_whole(limited: Client, tmp_path: Path) -> None:
    """Half a gigabyte as CSR, of which a conversion holds three times as much."""
    digests = {
        kind: build_on(limited, large_study(tmp_path, kind, 8, n_vars=20_480, row_values=2048), tmp_path / kind)
        for kind in ("csr", "csc")
    }
    assert digests["csc"] == digests["csr"]


def test_workers_that_did_tasks_of_one_kind_do_others(limited: Client, tmp_path: Path) -> None:
    """What is kept for tasks of one kind is not in the way of another's."""
    source = large_study(tmp_path, "csc", 8, n_vars=20_480, row_values=2048)
    for number, keys in enumerate(({"shuffle": "within"}, {"layout": {"by_gene": ["X"]}}, {"shuffle": "global"})):
        build_on(limited, source, tmp_path / str(number), **keys)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_studies_several_times_larger_than_a_worker(limited: Client, tmp_path: Path) -> None:
    """2.1 GB as CSR, 10.7 GB as a dense array."""
    digests = {}
    for kind in ("csr", "csc", "dense"):
        source = large_study(tmp_path, kind, 32, n_vars=20_480, row_values=2048)
        digests[kind] = build_on(limited, source, tmp_path / kind)
        source.unlink()
    assert digests["csc"] == digests["dense"] == digests["csr"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_text_larger_than_a_worker(limited: Client, tmp_path: Path) -> None:
    """0.8 GB as CSR; its values are on a line each, 25 million to a gigabyte of text."""
    digest = build_on(limited, large_study(tmp_path, "mtx", 12, n_vars=20_480, row_values=2048), tmp_path / "mtx")
    assert digest == build_on(
        limited, large_study(tmp_path, "csr", 12, n_vars=20_480, row_values=2048), tmp_path / "csr"
    )


@pytest.mark.parametrize("step", ["transpose_parts", "stage_block"])
def test_tasks_of_one_study_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Two tasks of the step wait for each other: were they not handed out together, both would wait in vain."""
    import scipy.sparse as sp

    for module in (_parts, _anndata):
        monkeypatch.setattr(module, "PART_VALUES", 500)
    adata = coordinate_adata(90)
    adata.X = sp.csc_matrix(adata.X)
    adata.write_h5ad(tmp_path / "csc.h5ad")
    meeting, original, met = threading.Barrier(2, timeout=60), getattr(tasks, f"_{step}"), []

    def waiting(*arguments: Any) -> Any:
        if len(met) < 2:
            met.append(meeting.wait())
        return original(*arguments)

    monkeypatch.setattr(tasks, f"_{step}", waiting)
    location = StoreLocation.parse(tmp_path / "store")
    assert daodask.build_store(spec(tmp_path / "csc.h5ad", block_rows=45), location, threads=2).ok
    assert sorted(met[:2]) == [0, 1]
