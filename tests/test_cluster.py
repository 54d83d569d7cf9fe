"""Where the commands find a cluster, what it is given to do, and how that is looked at."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dask.utils import key_split
from distributed.diagnostics.plugin import SchedulerPlugin

import daodask
from daodask import BatchLoader, _performance
from daodask._cluster import _address, open_client
from daodask.analysis.run import plan_reduction
from daodask.batches.schedule import Shuffled
from daodask.cli import main
from daodask.errors import ClusterError, DependencyError, SpecError
from daodask.format.spec import Layout
from daodask.store import Store
from daodask.testing import coordinate_adata, random_store
from daodask.testing.described import described_store

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

# -- where it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://10.0.0.5:8786", "tls://10.0.0.5:8786", "10.0.0.5:8786", "inproc://1/2/3"])
def test_an_address_is_taken_as_it_is(address):
    assert _address(address) == address


def test_a_scheduler_file_leads_to_its_scheduler(client, tmp_path):
    path = str(tmp_path / "scheduler.json")
    client.write_scheduler_file(path)
    with open_client(scheduler=path) as found:
        assert found.scheduler.address == client.scheduler.address


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "FileNotFoundError"), ("", "JSONDecodeError"), ('{"id": 1}', "KeyError"), ("[1]", "TypeError")],
)
def test_a_scheduler_file_that_is_none_is_an_error_of_ours(tmp_path, text, problem):
    path = tmp_path / "scheduler.json"
    if text is not None:
        path.write_text(text)
    message = rf"expected a scheduler file at {path}, as `dask scheduler --scheduler-file` writes it \({problem}: "
    with pytest.raises(ClusterError, match=message), open_client(scheduler=str(path)):
        pass


# -- tasks, by the names that a dashboard shows ------------------------------------------------------------------------


class Tasks(SchedulerPlugin):
    """Which tasks were given to workers."""

    name = "tasks"

    def __init__(self) -> None:
        self._keys: set[Any] = set()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish == "processing":
            self._keys.add(key)

    def taken(self) -> dict[str, int]:
        """How many of each name since this was asked last."""
        keys, self._keys = self._keys, set()
        return dict(Counter(key_split(key) for key in keys))


@pytest.fixture
def tasks(cluster: LocalCluster) -> Iterator[Tasks]:
    plugin: Any = Tasks()
    cluster.scheduler.add_plugin(plugin)
    yield plugin
    cluster.scheduler.remove_plugin(plugin.name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store of 200 cells in 14 blocks."""
    return random_store(tmp_path_factory.mktemp("cluster") / "store", (100, 100))


def of_build(n_obs: int, row_values: int, layout: Layout) -> dict[str, int]:
    """Tasks of one study of counts: values take two bytes, indices four."""
    nnz = n_obs * row_values
    lengths = [layout.shard_length(layout.chunk_length(nnz, n_obs), nnz, itemsize) for itemsize in (2, 4)]
    shards = sum(-(-nnz // length) for length in lengths)
    blocks = len(layout.block_bounds(n_obs)) - 1
    return {"inspect-study": 1, "stage-block": blocks, "encode-shard": shards, "write-frames": 1, "check-files": 1}


def test_tasks_of_a_build(client: Client, tasks: Tasks, tmp_path: Path) -> None:
    studies = [{"id": f"s{i}", "source": coordinate_adata(100, 32, first=100 * i, density=1)} for i in range(2)]
    layout = Layout(block_rows=16, shard_bytes=4096)
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "X": {"kind": "counts"},
        "layout": {"block_rows": 16, "shard_bytes": 4096},
        "studies": studies,
    }
    assert daodask.build_store(spec, tmp_path / "store", client=client, progress=False).ok
    found = tasks.taken()
    assert found == {"inspect-study": 2, "stage-block": 14, "encode-shard": 12, "write-frames": 2, "check-files": 2}
    assert found == {name: 2 * n for name, n in of_build(100, 32, layout).items()}


def test_tasks_of_a_build_per_million_cells() -> None:
    """With the default layout, for cells of 2,048 non-zeros: what deploy/README.md says."""
    million = of_build(10**6, 2048, Layout())
    assert million == {"inspect-study": 1, "stage-block": 62, "encode-shard": 47, "write-frames": 1, "check-files": 1}


@pytest.mark.parametrize("scan", [daodask.mean_var, lambda s, **o: daodask.pseudobulk(s, "cell_type", **o)])
def test_tasks_of_a_scan(client: Client, tasks: Tasks, store: Store, scan: Callable[..., Any]) -> None:
    scan(store, client=client)
    # Four for each of the two threads.
    assert tasks.taken() == {"share-plan": 1, "reduce-blocks": 8, "combine-parts": 1, "finalise": 1}
    scan(store[:40], client=client)
    assert tasks.taken() == {"share-plan": 1, "reduce-blocks": 3, "combine-parts": 1, "finalise": 1}


@pytest.mark.parametrize(
    ("n_datasets", "n_obs", "frac", "threads", "expected"),
    [
        (1, 10**6, None, 64, 61),  # a task a block where there are many threads, but for a last one of few cells
        (1, 10**6, None, 2, 8),
        (100, 10**6, None, 64, 256),
        (100, 10**6, None, 2, 96),  # a task has up to a million cells
        (100, 10**6, 0.01, 2, 8),
    ],
)
def test_tasks_of_a_scan_of_a_large_store(
    n_datasets: int, n_obs: int, frac: float | None, threads: int, expected: int
) -> None:
    url = f"memory://tasks-{uuid.uuid4().hex}"
    described_store(url, n_datasets, n_obs, block_rows=16384)
    store = daodask.open_store(url)
    cells = store if frac is None else store.sample(frac=frac, seed=0)
    assert len(plan_reduction(cells, threads=threads).tasks) == expected


def test_tasks_of_an_epoch(client: Client, tasks: Tasks, store: Store) -> None:
    assert len(list(BatchLoader(store, 10, schedule=Shuffled(run_rows=4, window_rows=40), client=client))) == 20
    assert tasks.taken() == {"share-request": 1, "read-window": 5}


def test_tasks_of_lazy_collections(client: Client, tasks: Tasks, store: Store) -> None:
    client.compute(store.X).result()
    assert tasks.taken() == {"read-x": 14, "genes-read-x": 1, "finalize-hlgfinalizecompute": 1}
    # One percent of the cells at random, for which all blocks are read, is few tasks of many of them.
    url = f"memory://few-{uuid.uuid4().hex}"
    described_store(url, 10, 10**6, block_rows=16384)
    whole = daodask.open_store(url)
    assert (whole.X.npartitions, whole.sample(frac=0.01, seed=0).X.npartitions) == (620, 10)


# -- a report of what it did -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    coordinate_adata(30).write_h5ad(folder / "one.h5ad")
    path = folder / "atlas.yaml"
    path.write_text("{features: {name: genes, reference: union}, studies: [{id: one, source: one.h5ad}]}")
    return path


def test_a_performance_report(client: Client, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bokeh", reason="draws the report: pip install daodask[report]")
    page = tmp_path / "report.html"
    where = ["--scheduler", client.scheduler.address, "--performance-report", str(page)]
    assert main(["build", str(spec), str(tmp_path / "store"), "--quiet", *where]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Task Stream" in text
    assert "stage-block" in text
    # Another build has one of its own.
    other = tmp_path / "other.html"
    assert daodask.build_store(spec, tmp_path / "other", client=client, progress=False, performance_report=other).ok
    assert "stage-block" in other.read_text(encoding="utf-8")


def test_a_performance_report_needs_a_cluster_and_bokeh(
    client: Client, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["build", str(spec), str(tmp_path / "store"), "--performance-report", str(tmp_path / "report.html")]
    assert main([*asked, "--workers", "0", "--quiet"]) == 2
    assert "expected a Dask cluster, as a performance report is of one, got none; give" in capsys.readouterr().err
    with pytest.raises(SpecError, match="expected a Dask cluster"):
        daodask.build_store(spec, tmp_path / "store", performance_report="report.html", progress=False)
    # The scheduler of this cluster is in this process.
    monkeypatch.setattr(_performance.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"needs bokeh where the scheduler runs; install daodask\[report\] there"):
        daodask.build_store(spec, tmp_path / "store", client=client, performance_report="report.html", progress=False)
    assert not (tmp_path / "store").exists()
