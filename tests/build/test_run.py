"""Builds as a whole: alike on every runner and file system, all or nothing per study, resumable at any write."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask
from daodask.build import tasks
from daodask.build.genes import DROP_REASONS
from daodask.build.report import StudyReport
from daodask.errors import FeatureSpaceError, SpecError
from daodask.snapshots import latest_snapshot
from daodask.storage import StoreLocation

if TYPE_CHECKING:
    from distributed import Client

pytestmark = pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")

NUMBER = itertools.count()
#: Of each study several blocks, and of the larger ones several chunks and shards.
LAYOUT = {"block_rows": 16, "chunk_rows": 4, "shard_bytes": 4096}


def study(seed: int, n_obs: int, n_vars: int, first_gene: int = 0) -> anndata.AnnData:
    """Some cells; ``obs.index`` is the same in all studies as far as they are as long."""
    random = np.random.default_rng(seed)
    X = random.poisson(0.7, (n_obs, n_vars)) * random.choice([1, 1, 300], (n_obs, n_vars))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(
                random.choice(["B", "T", "NK é"], n_obs), categories=["B", "T", "NK é", "none"]
            ),
            "depth": X.sum(axis=1),
            "score": np.where(random.random(n_obs) < 0.2, np.nan, random.random(n_obs)),
            "doublet": random.random(n_obs) < 0.5,
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(index=[f"gene{first_gene + i}" for i in range(n_vars)])
    adata = anndata.AnnData(sp.csr_matrix(X.astype(np.float32)), obs=obs, var=var)
    adata.obsm["X_pca"] = random.random((n_obs, 5)).astype(np.float32)
    adata.layers["log"] = sp.csr_matrix(np.log1p(X).astype(np.float32))
    adata.uns["title"] = f"study {seed}"
    return adata


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of studies, each in another encoding."""
    folder = tmp_path_factory.mktemp("studies")
    for name, adata, encode in (
        ("csr", study(1, 60, 100), sp.csr_matrix),
        ("csc", study(2, 33, 80, first_gene=50), sp.csc_matrix),
        ("dense", study(3, 20, 60, first_gene=20), lambda X: X.toarray()),
        ("empty", study(4, 0, 30), sp.csr_matrix),
    ):
        adata.X = encode(adata.X)
        adata.write_h5ad(folder / f"{name}.h5ad", compression="gzip")
    negative = study(5, 20, 30)
    negative.X.data[-1] = -1
    negative.write_h5ad(folder / "negative.h5ad")
    return folder


def spec(sources: Mapping[str, Any], reference: str = "union", **top: Any) -> dict[str, Any]:
    own = {"layers": {"log": "layers/log"}, "obsm": ["X_*"]}
    return {
        "features": {"name": "own", "reference": reference},
        "X": {"kind": "counts"},
        "obs": {"cell_type": {"required": True}},
        "keep": ["depth", "score", "doublet"],
        "layout": LAYOUT,
        "studies": [{"id": name, "source": source, **own} for name, source in sources.items()],
        **top,
    }


def of_files(files: Path, *names: str, **top: Any) -> dict[str, Any]:
    return spec({name: files / f"{name}.h5ad" for name in names}, **top)


def all_files(location: StoreLocation) -> dict[str, bytes]:
    """Every file below a store, by its path."""
    fs, root = location.fs, location.path
    if not fs.exists(root):
        return {}
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in sorted(fs.find(root))}


def digests(location: StoreLocation) -> dict[str, str]:
    """SHA-256 of every file of a store but the snapshots, which have the time and the place."""
    files = all_files(location)
    return {p: hashlib.sha256(data).hexdigest() for p, data in files.items() if not p.startswith("snapshots/")}


def local(tmp_path: Path) -> StoreLocation:
    return StoreLocation.parse(tmp_path / f"store{next(NUMBER)}")


IN_MEMORY: list[StoreLocation] = []


def memory() -> StoreLocation:
    """Return a place for a store that the test's end removes: the more there is in memory, the slower fsspec is."""
    IN_MEMORY.append(StoreLocation.parse(f"memory://run-{next(NUMBER)}"))
    return IN_MEMORY[-1]


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    yield
    while IN_MEMORY:
        IN_MEMORY.pop().remove()


def studies_of(report: daodask.BuildReport) -> list[StudyReport]:
    return list(report.studies)


def statuses(report: daodask.BuildReport) -> dict[str, str]:
    return {s.id: s.status for s in report.studies}


def datasets_of(location: StoreLocation, number: int | None = None) -> list[str]:
    return [d.id for d in daodask.open_store(location, snapshot=number).snapshot.datasets]


FOUR = ("csr", "csc", "dense", "empty")
#: What a report says of genes and counts.
SUMS = ("id", "status", "n_obs", "genes_matched", "genes_summed", "genes_padded", "genes_dropped", "counts_kept")


@pytest.fixture(scope="module")
def reference(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[daodask.BuildReport, StoreLocation]:
    """Return what the serial runner makes on a local disk: all other ways must come to the same."""
    location = local(tmp_path_factory.mktemp("reference"))
    return daodask.build_store(of_files(files, *FOUR), location), location


# -- what a build makes -----------------------------------------------------------------------------------------------


def test_a_build(files: Path, reference: tuple[daodask.BuildReport, StoreLocation]) -> None:
    report, location = reference
    assert statuses(report) == dict.fromkeys(FOUR, "built")
    assert (report.ok, report.committed, report.snapshot) == (True, True, 1)
    parts = {p.split("/")[0] for p in all_files(location)}
    assert parts == {"snapshots", "features", "datasets"}
    assert sum("/X/data/c/" in p for p in digests(location)) > 3
    store = daodask.open_store(location)
    oracles = [anndata.read_h5ad(files / f"{name}.h5ad") for name in FOUR]
    found = store.to_anndata()
    assert found.obs_names.tolist() == [name for oracle in oracles for name in oracle.obs_names]
    for name, oracle in zip(FOUR, oracles, strict=True):
        rows = (found.obs["dataset"] == name).to_numpy()
        at = found.var_names.get_indexer(oracle.var_names)
        for values, expected in ((found.X, oracle.X), (found.layers["log"], oracle.layers["log"])):
            whole = np.zeros((oracle.n_obs, len(store.var)), np.float32)
            whole[:, at] = expected.toarray() if sp.issparse(expected) else expected
            np.testing.assert_array_equal(values[rows].toarray(), whole)
        np.testing.assert_array_equal(found.obsm["X_pca"][rows], oracle.obsm["X_pca"])
        for column in oracle.obs:
            assert found.obs[column][rows].tolist() == pytest.approx(oracle.obs[column].tolist(), nan_ok=True, abs=0)
        expected_report = StudyReport(
            id=name,
            status="built",
            n_obs=oracle.n_obs,
            genes_matched=oracle.n_vars,
            genes_padded=130 - oracle.n_vars,
            genes_dropped=dict.fromkeys(DROP_REASONS.values(), 0),
            counts_total=float(oracle.X.sum()),
            counts_kept=float(oracle.X.sum()),
        )
        found_report = next(s for s in report.studies if s.id == name)
        assert {n: getattr(found_report, n) for n in SUMS} == {n: getattr(expected_report, n) for n in SUMS}


def test_checksums_are_those_of_the_files(reference: tuple[daodask.BuildReport, StoreLocation]) -> None:
    _, location = reference
    found = digests(location)
    for dataset in daodask.open_store(location).snapshot.datasets:
        listed = json.loads((location / dataset.path / "checksums.json").read())
        own = {p.removeprefix(f"{dataset.path}/"): d for p, d in found.items() if p.startswith(f"{dataset.path}/")}
        assert own.pop("checksums.json") == dataset.checksum
        assert {path: entry["sha256"] for path, entry in listed.items()} == own
        assert sum(entry["size"] for entry in listed.values()) == dataset.nbytes


@pytest.mark.parametrize(
    ("how", "genes"),
    [("union", [f"gene{i}" for i in [*range(130)]]), ("intersection", [f"gene{i}" for i in range(50, 80)])],
)
def test_the_studies_own_genes(files: Path, how: str, genes: list[str]) -> None:
    location = memory()
    assert daodask.build_store(of_files(files, "csr", "csc", "dense", reference=how), location).ok
    store = daodask.open_store(location)
    assert store.var_names.tolist() == genes
    found = store.to_anndata()
    for name in ("csr", "csc", "dense"):
        oracle = anndata.read_h5ad(files / f"{name}.h5ad")
        shared = [g for g in genes if g in oracle.var_names]
        expected = np.asarray(oracle.to_df()[shared])
        rows = (found.obs["dataset"] == name).to_numpy()
        np.testing.assert_array_equal(found.X[rows].toarray()[:, [genes.index(g) for g in shared]], expected)
        assert store.measured[name].tolist() == [g in shared for g in genes]


@pytest.mark.parametrize(
    ("largest", "stored"), [(3, "float32"), (2**24, "float32"), (2**24 + 1, "float64"), (2**53, "float64")]
)
def test_counts_may_be_kept_as_floats(largest: int, stored: str) -> None:
    adata = study(1, 3, 4)
    adata.X = sp.csr_matrix(np.full((3, 4), largest, np.int64))
    location = memory()
    assert daodask.build_store(spec({"a": adata}, X={"kind": "counts", "dtype": "float32"}), location).ok
    store = daodask.open_store(location)
    matrix = store.snapshot.dataset["a"].matrix["X"]
    assert (matrix.kind, matrix.dtype) == ("counts", stored)
    dataset = anndata.read_zarr((location / store.snapshot.dataset["a"].path).zarr_store())
    assert dataset.X.dtype == stored
    assert dataset.X.toarray().tolist() == [[largest] * 4] * 3


@pytest.mark.parametrize("value", [np.inf, 1e300, 2.0**53 + 2])
def test_what_no_integer_holds_stays_a_float(value: float) -> None:
    adata = anndata.AnnData(sp.csr_matrix(np.array([[value, 1.0], [0.0, 2.0]])))
    bare = {"features": {"name": "own", "reference": "union"}, "X": {"kind": "other"}}
    location = memory()
    assert daodask.build_store({**bare, "studies": [{"id": "a", "source": adata}]}, location).ok
    assert daodask.open_store(location).to_anndata().X.toarray().tolist() == [[value, 1.0], [0.0, 2.0]]


@pytest.mark.parametrize(
    ("values", "missing", "expected"),
    [
        (pd.array([1, None, 3], dtype="Int64"), 0.5, [1.0, 0.5, 3.0]),
        (pd.array([1, None, 3], dtype="Int64"), 2, [1, 2, 3]),
        (pd.array([1.5, None, 3], dtype="Float64"), 0.5, [1.5, 0.5, 3.0]),
        (pd.array([True, None, False], dtype="boolean"), False, [True, False, False]),
    ],
)
def test_what_is_missing_is_filled(values: Any, missing: float, expected: list[float]) -> None:
    adata, location = study(1, 3, 4), memory()
    adata.obs["c"] = values
    schema = {"c": {"required": True, "missing": missing}}
    assert daodask.build_store(spec({"a": adata}, obs=schema), location).ok
    assert daodask.open_store(location).to_anndata().obs["c"].tolist() == expected


# -- every runner, every file system ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_runners_and_file_systems_agree(
    files: Path, tmp_path: Path, reference: tuple[daodask.BuildReport, StoreLocation], threads: int, where: str
) -> None:
    location = local(tmp_path) if where == "local" else memory()
    report = daodask.build_store(of_files(files, *FOUR), location, threads=threads)
    assert studies_of(report) == studies_of(reference[0])
    assert digests(location) == digests(reference[1])
    assert datasets_of(location) == list(FOUR)


def test_a_cluster_agrees(
    files: Path, tmp_path: Path, reference: tuple[daodask.BuildReport, StoreLocation], client: Client
) -> None:
    seen: list[tuple[str, str, int, int]] = []
    location = local(tmp_path)
    report = daodask.build_store(
        of_files(files, *FOUR), location, client=client, progress=lambda *args: seen.append(args)
    )
    assert studies_of(report) == studies_of(reference[0])
    assert digests(location) == digests(reference[1])
    assert datasets_of(location) == list(FOUR)
    assert {(s, stage) for s, stage, done, total in seen if done == total} == {
        *((name, "inspect") for name in FOUR),
        *((name, "stage") for name in FOUR[:3]),
        *((name, "write") for name in FOUR),
        *((name, "check") for name in FOUR),
    }


def test_a_source_in_memory_travels_to_the_cluster(tmp_path: Path, client: Client) -> None:
    sources = {"a": study(1, 40, 30), "b": study(2, 10, 30)}
    here, there = memory(), local(tmp_path)
    daodask.build_store(spec(sources), here)
    report = daodask.build_store(spec(sources), there, client=client)
    assert report.ok
    assert digests(there) == digests(here)
    assert statuses(daodask.build_store(spec(sources), there, client=client)) == {"a": "unchanged", "b": "unchanged"}


def test_a_cluster_reports_what_fails(files: Path, tmp_path: Path, client: Client) -> None:
    location = local(tmp_path)
    report = daodask.build_store(of_files(files, "negative", "absent", "dense"), location, client=client)
    assert statuses(report) == {"negative": "refused", "absent": "failed", "dense": "built"}
    assert [p for p in digests(location) if "negative" in p or "absent" in p or p.startswith("scratch")] == []


# -- plans ------------------------------------------------------------------------------------------------------------

PLAN = """\
build into {url}, now at snapshot none
feature space 'own': 130 genes
layout: blocks of 16 cells, lz4, shards of 0 MiB

study   action  cells  blocks  genes matched  padded  dropped
------  ------  -----  ------  -------------  ------  -------
dense   build      20       2             60      70        0
csc     build      33       3             80      50        0
empty   build       0       0             30     100        0
absent  failed

absent: failed: expected a study at {folder}/absent.h5ad, found nothing; check the path"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_plan_writes_nothing(files: Path, tmp_path: Path, threads: int) -> None:
    location = local(tmp_path)
    plan = daodask.plan_build(of_files(files, "dense", "csc", "empty", "absent"), location, threads=threads)
    assert repr(plan) == PLAN.format(url=location.url, folder=files)
    assert not os.path.exists(location.path)


def test_a_plan_of_what_is_there_writes_nothing(files: Path) -> None:
    location = memory()
    daodask.build_store(of_files(files, "dense"), location)
    before = all_files(location)
    plan = daodask.plan_build(of_files(files, "dense"), location)
    assert [(s.id, s.action) for s in plan.studies] == [("dense", "unchanged")]
    assert plan.todo == ()
    assert plan.snapshot == 1
    assert all_files(location) == before


# -- again, and changed ------------------------------------------------------------------------------------------------


def test_again_does_nothing_but_say_so(files: Path, reference: tuple[daodask.BuildReport, StoreLocation]) -> None:
    first, location = reference
    before = all_files(location)
    report = daodask.build_store(of_files(files, *FOUR), location)
    assert statuses(report) == dict.fromkeys(FOUR, "unchanged")
    assert (report.ok, report.committed, report.snapshot) == (True, False, 1)
    assert all_files(location) == before
    for again, built in zip(report.studies, first.studies, strict=True):
        assert (again.n_obs, again.genes_matched, again.counts_kept) == (
            built.n_obs,
            built.genes_matched,
            built.counts_kept,
        )


def test_another_place_and_time_is_no_change(files: Path, tmp_path: Path) -> None:
    location = memory()
    daodask.build_store(of_files(files, "dense"), location)
    copied = tmp_path / "elsewhere.h5ad"
    copied.write_bytes((files / "dense.h5ad").read_bytes())
    assert statuses(daodask.build_store(spec({"dense": copied}), location)) == {"dense": "unchanged"}


def changed(adata: anndata.AnnData) -> anndata.AnnData:
    other = adata.copy()
    other.X[0, 0] += 1
    return other


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_changed_study_is_refused_or_replaces(tmp_path: Path, where: str) -> None:
    location = local(tmp_path) if where == "local" else memory()
    first, second = study(1, 20, 30), study(2, 10, 30)
    daodask.build_store(spec({"a": first, "b": second}), location)
    before = all_files(location)
    refused = daodask.build_store(spec({"a": changed(first), "b": second}), location)
    assert statuses(refused) == {"a": "refused", "b": "unchanged"}
    assert re.search("already has a dataset 'a', made from another content.*replace=True", refused.studies[0].reason)
    assert all_files(location) == before
    replaced = daodask.build_store(spec({"a": changed(first), "b": second}), location, replace=True)
    assert statuses(replaced) == {"a": "replaced", "b": "unchanged"}
    assert (replaced.committed, replaced.snapshot) == (True, 2)
    assert datasets_of(location) == ["a", "b"]
    for number, expected in ((1, first), (2, changed(first)), (None, changed(first))):
        cells = daodask.open_store(location, snapshot=number).subset(dataset="a").to_anndata()
        np.testing.assert_array_equal(cells.X.toarray(), expected.X.toarray())
    # Going back is a change too, and finds its files where they were.
    again = daodask.build_store(spec({"a": first, "b": second}), location, replace=True)
    assert (statuses(again), again.snapshot) == ({"a": "replaced", "b": "unchanged"}, 3)
    assert {p: d for p, d in all_files(location).items() if p in before} == before


@pytest.mark.parametrize(
    "change",
    [
        {"keep": ["depth"]},
        {"layout": {**LAYOUT, "block_rows": 5}},
        {"layout": {**LAYOUT, "codec": "zstd"}},
        {"obs": {"cell_type": {"required": True, "missing": "unknown"}}},
        {"X": {"kind": "counts", "dtype": "float32"}},
        {"X": {"kind": "other"}},
    ],
)
def test_another_spec_is_a_change(change: dict[str, Any]) -> None:
    location, adata = memory(), study(1, 8, 5)
    daodask.build_store(spec({"a": adata}), location)
    assert statuses(daodask.build_store(spec({"a": adata}, **change), location)) == {"a": "refused"}
    assert statuses(daodask.build_store(spec({"a": adata}, **change), location, replace=True)) == {"a": "replaced"}


def test_other_genes_under_the_same_name(files: Path) -> None:
    location = memory()
    daodask.build_store(of_files(files, "dense"), location)
    before = all_files(location)
    with pytest.raises(FeatureSpaceError, match=r"feature space 'own' has other genes \(60, .*than the build's \(130"):
        daodask.build_store(of_files(files, *FOUR), location)
    assert all_files(location) == before


# -- all or nothing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_the_good_ones_go_in_and_the_others_leave_no_trace(
    files: Path, tmp_path: Path, threads: int, where: str
) -> None:
    location = local(tmp_path) if where == "local" else memory()
    report = daodask.build_store(of_files(files, "negative", "dense", "absent"), location, threads=threads)
    assert statuses(report) == {"negative": "refused", "dense": "built", "absent": "failed"}
    negative, _, absent = report.studies
    assert "expected counts (integral, non-negative, finite), got -1.0 in row" in negative.reason
    assert absent.reason == f"expected a study at {files}/absent.h5ad, found nothing; check the path"
    assert not report.ok
    (dataset,) = daodask.open_store(location).snapshot.datasets
    found = all_files(location)
    assert {p.split("/")[0] for p in found} == {"snapshots", "features", "datasets"}
    assert {p.split("/")[1] for p in found if p.startswith("datasets/")} == {dataset.path.removeprefix("datasets/")}
    # Without the other two it would have been the same, but for the features, as the refused study's genes are known.
    alone = local(tmp_path) if where == "local" else memory()
    daodask.build_store(of_files(files, "dense"), alone)
    assert daodask.open_store(alone).snapshot.dataset["dense"].report["counts_kept"] == dataset.report["counts_kept"]


@pytest.mark.parametrize("names", [("negative",), ("absent",), ("negative", "absent")])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_nothing_good_is_no_store(files: Path, tmp_path: Path, names: tuple[str, ...], where: str) -> None:
    location = local(tmp_path) if where == "local" else memory()
    report = daodask.build_store(of_files(files, *names), location)
    assert {s.status for s in report.studies} <= {"refused", "failed"}
    assert (report.committed, report.snapshot) == (False, 0)
    assert all_files(location) == {}


@pytest.mark.parametrize(
    ("here", "there", "reason"),
    [
        ([1, 2], ["x", "y"], "obs column 'c' is int64 in 'a' but string in 'b'; map one"),
        ([1, 2], pd.Categorical(["x", "y"]), "obs column 'c' is int64 in 'a' but category of str in 'b'"),
        ([True, False], [1.5, 2.0], "obs column 'c' is bool in 'a' but float64 in 'b'"),
        (pd.Categorical([1, 2]), pd.Categorical(["x", "y"]), "category of int in 'a' but category of str in 'b'"),
        (np.array([2**63, 1], np.uint64), [-1, 1], "obs column 'c' is uint64 in 'a' but int64 in 'b'"),
    ],
)
def test_columns_that_do_not_go_together(here: Any, there: Any, reason: str) -> None:
    pair = {"a": study(1, 2, 4), "b": study(2, 2, 4)}
    for adata, values in zip(pair.values(), (here, there), strict=True):
        adata.obs["c"] = np.array(values) if isinstance(values, list) else values
    together = memory()
    report = daodask.build_store(spec(pair, keep="all"), together)
    assert statuses(report) == {"a": "built", "b": "refused"}
    assert reason in report.studies[1].reason
    one_by_one = memory()
    assert daodask.build_store(spec({"a": pair["a"]}, keep="all"), one_by_one).ok
    later = daodask.build_store(spec({"b": pair["b"]}, keep="all"), one_by_one)
    assert (statuses(later), later.studies[0].reason) == ({"b": "refused"}, report.studies[1].reason)
    assert datasets_of(together) == datasets_of(one_by_one) == ["a"]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("_index", "keep: the source has a column '_index', a name that every store uses itself"),
        ("obs_names", "keep: the source has a column 'obs_names', a name that every store uses itself"),
        ("dataset", "obs: {source_dataset: {from: dataset}}"),
        ("a/b", "expected column names without '/', got 'a/b'"),
    ],
)
def test_column_names_that_can_not_be(column: str, reason: str) -> None:
    adata = study(1, 3, 4)
    adata.obs[column] = 1
    location = memory()
    report = daodask.build_store(spec({"a": adata}, keep="all"), location)
    assert statuses(report) == {"a": "refused"}
    assert reason in report.studies[0].reason
    assert all_files(location) == {}


def test_facts_under_a_path_are_no_facts() -> None:
    adata, location = study(1, 3, 4), memory()
    adata.uns = {"title": "t", "a/b": 1, "score": np.nan}
    assert daodask.build_store(spec({"a": adata}), location).ok
    assert daodask.open_store(location).uns == {"a": {"title": "t", "score": None}}
    with pytest.raises(SpecError, match=r"studies\[0\].uns: expected keys without '/', got 'a/b'"):
        daodask.load_spec({**spec({}), "studies": [{"id": "a", "source": adata, "uns": {"a/b": 1}}]})


# -- crashes -----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """Ends the process, as far as any code can see."""


class Saboteur:
    """Counts what is written and crashes at the ``last`` time, before or after the bytes are there."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int | None, *, after: bool = False) -> None:
        self.writes = 0
        self.staged: list[tuple[str, int]] = []
        write, create, stage = StoreLocation.write, StoreLocation.create, tasks._stage_block
        lock = threading.Lock()

        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(location: StoreLocation, data: bytes, **options: bool) -> Any:
                with lock:
                    self.writes += 1
                    now = self.writes == last
                if now and not after:
                    raise Crash
                result = function(location, data, **options)
                if now:
                    raise Crash
                return result

            return run

        def counted(job: Any, source: Any, block: int) -> Any:
            self.staged.append((job.scratch.name.split(".")[0], block))
            return stage(job, source, block)

        patch.setattr(StoreLocation, "write", guarded(write))
        patch.setattr(StoreLocation, "create", guarded(create))
        patch.setattr(tasks, "_stage_block", counted)


@pytest.fixture
def sabotage() -> Iterator[Callable[..., Saboteur]]:
    """Return what makes a saboteur; a new one takes the place of the one before."""
    with pytest.MonkeyPatch.context() as patch:

        def make(last: int | None = None, *, after: bool = False) -> Saboteur:
            patch.undo()
            return Saboteur(patch, last, after=after)

        yield make


def small(sources: dict[str, anndata.AnnData]) -> dict[str, Any]:
    """Several blocks and shards, and few files beside them."""
    few = {**spec(sources, keep=[]), "layout": {"block_rows": 3, "chunk_rows": 1, "shard_bytes": 2048}}
    return {**few, "studies": [{"id": name, "source": source, "obsm": ["X_*"]} for name, source in sources.items()]}


BLOCKS = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]


@pytest.mark.parametrize(("after", "begun"), [(False, True), (True, False)])
def test_a_crash_at_any_write(sabotage: Callable[..., Saboteur], after: bool, begun: bool) -> None:
    sources = {"a": study(1, 8, 200), "b": study(2, 5, 200)}
    whole = memory()
    if begun:
        daodask.build_store(small({"earlier": study(3, 2, 200)}), whole)
    beginning = all_files(whole)
    before = latest_snapshot(whole)
    counting = sabotage()
    daodask.build_store(small(sources), whole)
    assert sorted(counting.staged) == BLOCKS
    wanted, commit = digests(whole), counting.writes
    assert commit > 50
    for k in range(1, commit + 1):
        location = memory()
        for path, data in beginning.items():
            location.fs.pipe_file((location / path).path, data)
        crashed = sabotage(k, after=after)
        with pytest.raises(Crash):
            daodask.build_store(small(sources), location)
        committed = k == commit and after
        if committed:
            assert datasets_of(location) == [*(["earlier"] if begun else []), "a", "b"]
        else:
            assert latest_snapshot(location) == before
        receipts = {
            (path.split("/")[1].split(".")[0], int(path[-len("000000.json") : -len(".json")]))
            for path in all_files(location)
            if re.match(r"scratch/[^/]+/receipts/block-\d+\.json", path)
        }
        resumed = sabotage()
        report = daodask.build_store(small(sources), location)
        assert report.ok
        assert set(statuses(report).values()) == ({"unchanged"} if committed else {"built"})
        # A block that was done, and said so, is not done again; any other one is.
        assert sorted(resumed.staged) == ([] if committed else sorted(set(BLOCKS) - receipts))
        assert len(receipts) >= len(crashed.staged) - 1
        assert {p: d for p, d in digests(location).items() if not p.startswith("scratch/")} == wanted
        assert [p for p in all_files(location) if p.startswith("scratch/")] == [] or committed
        assert datasets_of(location) == [*(["earlier"] if begun else []), "a", "b"]
        location.remove()


def test_a_crash_on_threads_and_on_a_disk(tmp_path: Path, sabotage: Callable[..., Saboteur]) -> None:
    sources = {"a": study(1, 8, 200), "b": study(2, 5, 200)}
    whole = local(tmp_path)
    counting = sabotage()
    daodask.build_store(small(sources), whole)
    writes, wanted = counting.writes, digests(whole)
    for k in (1, 7, writes // 2, writes - 1, writes):
        location = local(tmp_path)
        sabotage(k)
        with pytest.raises(Crash):
            daodask.build_store(small(sources), location)
        assert not [p for p in all_files(location) if p.endswith(".tmp")]
        sabotage()
        assert daodask.build_store(small(sources), location, threads=2).ok
        assert digests(location) == wanted


def spoil(path: Path, how: str) -> None:
    """Leave of a file what a machine without power may leave."""
    data = path.read_bytes()
    if how == "absent":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else data[:-1] if how == "short" else b"\0" * len(data))


@pytest.mark.parametrize("how", ["absent", "empty", "short", "zeros"])
def test_what_scratch_lost_with_the_machine_is_done_again(
    how: str, tmp_path: Path, sabotage: Callable[..., Saboteur]
) -> None:
    sources, whole = {"a": study(1, 8, 200), "b": study(2, 5, 200)}, local(tmp_path)
    counting = sabotage()
    daodask.build_store(small(sources), whole)
    location, wanted = local(tmp_path), digests(whole)
    sabotage(counting.writes)
    with pytest.raises(Crash):
        daodask.build_store(small(sources), location)
    (lost,) = Path(location.path).glob("scratch/a.*/X/000001.indices")
    spoil(lost, how)
    resumed = sabotage()
    assert daodask.build_store(small(sources), location).ok
    assert resumed.staged == [("a", 1)]
    assert digests(location) == wanted


def test_a_disk_that_fails_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, location, whole = {"a": study(1, 8, 200), "b": study(2, 5, 200)}, memory(), memory()
    daodask.build_store(small(sources), whole)
    write = StoreLocation.write

    def full(where: StoreLocation, data: bytes, **options: bool) -> None:
        if "/a." in where.url and "/X/data" in where.url and "datasets/" in where.url:
            raise OSError(28, "No space left on device")
        write(where, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StoreLocation, "write", full)
        report = daodask.build_store(small(sources), location)
    assert statuses(report) == {"a": "failed", "b": "built"}
    assert report.studies[0].reason == (
        "[Errno 28] No space left on device; what is finished is kept: build again when that is mended, and it goes on "
        "from there"
    )
    assert datasets_of(location) == ["b"]
    assert any(p.startswith("scratch/a.") for p in all_files(location))
    assert statuses(daodask.build_store(small(sources), location)) == {"a": "built", "b": "unchanged"}
    assert digests(location) == digests(whole)


# -- several builders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "memory"])
def test_builders_at_once_all_end_up_there(tmp_path: Path, where: str) -> None:
    location = local(tmp_path) if where == "local" else memory()
    sources = {f"s{i}": study(i, 5, 20) for i in range(6)}
    reports: dict[str, daodask.BuildReport] = {}

    def run(name: str) -> None:
        reports[name] = daodask.build_store(small({name: sources[name]}), location)

    builders = [threading.Thread(target=run, args=(name,)) for name in sources]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert {name: statuses(report) for name, report in reports.items()} == {n: {n: "built"} for n in sources}
    assert sorted(report.snapshot for report in reports.values()) == [1, 2, 3, 4, 5, 6]
    assert sorted(datasets_of(location)) == sorted(sources)
    assert len(all_files(location)) == len(digests(location)) + 6
    for name, adata in sources.items():
        cells = daodask.open_store(location).subset(dataset=name).to_anndata()
        np.testing.assert_array_equal(cells.X.toarray(), adata.X.toarray())


def test_the_loser_of_a_race_commits_next(monkeypatch: pytest.MonkeyPatch) -> None:
    location, create = memory(), StoreLocation.create

    def overtaken(where: StoreLocation, data: bytes) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(StoreLocation, "create", create)
            daodask.build_store(small({"b": study(2, 5, 20)}), location)
        monkeypatch.undo()
        return create(where, data)

    monkeypatch.setattr(StoreLocation, "create", overtaken)
    report = daodask.build_store(small({"a": study(1, 5, 20)}), location)
    assert (report.snapshot, statuses(report)) == (2, {"a": "built"})
    assert datasets_of(location, 1) == ["b"]
    assert datasets_of(location) == ["b", "a"]
