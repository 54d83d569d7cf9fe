"""Shuffled builds: every cell once, with all that it has, and the way back is in obs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import daodask
from daodask.build.permutation import permutation
from daodask.build.shuffling import ShuffleSpec
from daodask.errors import SpecError
from daodask.snapshots import latest_snapshot
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata
from daodask.vacuum import plan_vacuum
from daodask.validate import validate_store

if TYPE_CHECKING:
    from distributed import Client

pytestmark = [
    pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning"),
    # anndata asks pandas for an option that pandas 3 deprecates.
    pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated:DeprecationWarning"),
]

NUMBER = itertools.count()
LAYOUT = {"block_rows": 16, "chunk_rows": 4, "shard_bytes": 4096}
ACROSS = {"kind": "global", "dataset_rows": 60}


@pytest.fixture
def memory() -> Iterator[StoreLocation]:
    """Return a place for stores that the test's end removes."""
    location = StoreLocation.parse(f"memory://shuffle-{next(NUMBER)}")
    yield location
    location.remove()


def spec(shuffle: Any, *studies: Any, **top: Any) -> dict[str, Any]:
    """Return a build of studies called s0, s1, …; those that are ``None`` are left out."""
    own = {"layers": {"half": "layers/half"}, "obsm": ["*"]}
    return {
        "features": {"name": "genes", "reference": "union"},
        "keep": "all",
        "layout": LAYOUT,
        "shuffle": shuffle,
        "studies": [{"id": f"s{i}", "source": s, **own} for i, s in enumerate(studies) if s is not None],
        **top,
    }


def two_studies() -> tuple[anndata.AnnData, anndata.AnnData]:
    """Return two studies that differ in dtypes, labels and columns, as studies do."""
    first, second = coordinate_adata(90), coordinate_adata(33, first=90)
    first.obs["age"] = np.arange(90, dtype=np.int8)
    second.obs["age"] = np.arange(33) / 2
    second.obs["cell_type"] = second.obs["cell_type"].cat.rename_categories({"B cell": "plasma cell"})
    second.obs["only_here"] = [f"text {i}" for i in range(33)]
    second.X *= 1000  # beyond 16 bits
    second.obsm["place"] = second.obsm["place"].astype(np.float64) + 1e-9
    return first, second


def content(location: StoreLocation) -> anndata.AnnData:
    """Return all cells of a store in the order of their origin, with neither that nor what a dataset is called."""
    adata = daodask.open_store(location).to_anndata()
    keys = [c for c in ("source_dataset", "source_row") if c in adata.obs]
    if keys == ["source_row"]:
        keys = ["dataset", "source_row"]
    if keys:
        adata = adata[adata.obs.reset_index(drop=True).sort_values(keys).index.to_numpy()].copy()
        adata.obs["dataset"] = adata.obs[keys[0]]
    adata.obs = adata.obs.drop(columns=["source_dataset", "source_row"], errors="ignore")
    return adata


def assert_same(found: anndata.AnnData, wanted: anndata.AnnData) -> None:
    # What is missing of a text is None or NaN, as the text is one or a label.
    plain = [a.obs.astype(object).where(a.obs.notna(), None) for a in (found, wanted)]
    pd.testing.assert_frame_equal(*plain)
    for name in ("age", "n_counts", "row", "odd"):
        if name in wanted.obs:
            assert found.obs[name].dtype == wanted.obs[name].dtype
    for matrix, other in ((found.X, wanted.X), (found.layers["half"], wanted.layers["half"])):
        assert matrix.dtype == other.dtype
        assert (matrix != other).nnz == 0
    np.testing.assert_array_equal(found.obsm["place"], wanted.obsm["place"])


def files(location: StoreLocation) -> dict[str, bytes]:
    root = f"{location.path}/"
    found = {path.removeprefix(root): location.fs.cat_file(path) for path in sorted(location.fs.find(root))}
    return {path: data for path, data in found.items() if not path.startswith("snapshots/")}


@pytest.mark.parametrize("shuffle", ["within", {"kind": "within", "seed": 5}, "global", ACROSS])
def test_sorting_by_origin_restores_the_unshuffled_build(memory: StoreLocation, shuffle: Any) -> None:
    assert daodask.build_store(spec("none", *two_studies()), memory / "plain").ok
    report = daodask.build_store(spec(shuffle, *two_studies()), memory / "shuffled")
    assert report.ok, str(report)
    assert [s.n_obs for s in report.studies] == [90, 33]
    assert_same(content(memory / "shuffled"), content(memory / "plain"))
    assert validate_store(memory / "shuffled").ok
    assert not (memory / "shuffled/scratch").list()
    named = {d.path for d in daodask.open_store(memory / "shuffled").snapshot.datasets}
    assert {f"datasets/{name}" for name in (memory / "shuffled/datasets").list()} == named


def test_rows_are_where_the_permutation_says(memory: StoreLocation) -> None:
    assert daodask.build_store(spec({**ACROSS, "seed": 3}, *two_studies()), memory).ok
    store = daodask.open_store(memory)
    assert store.datasets["n_obs"].tolist() == [41, 41, 41]
    blocks = (16, 16, 16, 16, 16, 10, 16, 16, 1)
    assert store.to_anndata().obs["row"].tolist() == permutation(blocks, (16, 16, 9) * 3, 3).tolist()


def test_datasets_have_cells_of_all_studies_and_say_of_which(memory: StoreLocation) -> None:
    assert daodask.build_store(spec(ACROSS, *two_studies()), memory).ok
    datasets = daodask.open_store(memory).snapshot.datasets
    (name,) = {d.id.rpartition("_")[0] for d in datasets}
    assert [d.id for d in datasets] == [f"{name}_{i}" for i in range(3)]
    assert name.startswith("shuffled_")
    for dataset in datasets:
        columns = {c.name: c for c in dataset.columns}
        assert columns["source_dataset"].categories == ("s0", "s1")
        assert all(columns["source_dataset"].counts)
        # Labels of all studies, in one order everywhere.
        assert columns["cell_type"].categories == ("B cell", "T cell", "Größenzelle", "plasma cell")
        assert columns["age"].dtype == "float64"


def test_which_genes_each_study_measured(memory: StoreLocation) -> None:
    one = coordinate_adata(20)[:, :20].copy()
    other = coordinate_adata(20, first=20)[:, 10:].copy()
    assert daodask.build_store(spec("global", one, other), memory).ok
    (dataset,) = daodask.open_store(memory).snapshot.datasets
    with memory.fs.open((memory / dataset.path / "measured.parquet").path, "rb") as file:
        measured = pq.read_table(file).to_pydict()
    assert measured == {"s0": [True] * 20 + [False] * 12, "s1": [False] * 10 + [True] * 22}
    store = daodask.open_store(memory)
    # Of the dataset as a whole: no value is of a gene that it did not measure.
    assert store.measured.to_numpy().all()
    for selected in (store, store[::3, [3, 15, 30]]):
        genes = [0, *range(1, 32)] if selected is store else [3, 15, 30]
        for batch in daodask.BatchLoader(selected, batch_size=7, obs=["row"], measured=True, seed=0):
            wanted = [np.array(measured[f"s{row // 20}"])[genes] for row in batch.obs["row"]]
            np.testing.assert_array_equal(batch.measured_per_cell, wanted)


def test_another_seed_is_another_order_of_the_same_cells(memory: StoreLocation) -> None:
    orders = []
    for seed in (0, 1):
        location = memory / str(seed)
        assert daodask.build_store(spec({"kind": "global", "seed": seed}, *two_studies()), location).ok
        orders.append(daodask.open_store(location).to_anndata().obs["row"].tolist())
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(123))


# -- building on -----------------------------------------------------------------------------------------------------


def statuses(report: daodask.BuildReport) -> dict[str, str]:
    return {s.id: s.status for s in report.studies}


@pytest.mark.parametrize("shuffle", ["within", ACROSS])
def test_a_repeated_build_does_nothing(memory: StoreLocation, shuffle: Any) -> None:
    assert daodask.build_store(spec(shuffle, *two_studies()), memory).ok
    before = files(memory)
    again = daodask.build_store(spec(shuffle, *two_studies()), memory)
    assert (statuses(again), again.committed) == ({"s0": "unchanged", "s1": "unchanged"}, False)
    assert [s.n_obs for s in again.studies] == [90, 33]
    assert files(memory) == before


def test_studies_added_later_are_a_further_dataset(memory: StoreLocation) -> None:
    first, second = two_studies()
    assert daodask.build_store(spec("global", first), memory).ok
    report = daodask.build_store(spec("global", first, second), memory)
    assert statuses(report) == {"s0": "unchanged", "s1": "built"}
    origins = [c.categories for d in latest_snapshot(memory).datasets for c in d.columns if c.name == "source_dataset"]
    assert origins == [("s0",), ("s1",)]


def test_a_changed_study_takes_the_place_of_the_old_only_when_asked(memory: StoreLocation) -> None:
    first, second = two_studies()
    changed = first.copy()
    changed.X *= 2
    assert daodask.build_store(spec(ACROSS, first, second), memory).ok
    before = files(memory)
    report = daodask.build_store(spec(ACROSS, changed, second), memory)
    assert statuses(report) == {"s0": "refused", "s1": "unchanged"}
    assert "build with --replace" in report.studies[0].reason
    alone = daodask.build_store(spec(ACROSS, changed), memory, replace=True)
    assert statuses(alone) == {"s0": "refused"}
    assert "shuffled together with those of s1, which this build does not have" in alone.studies[0].reason
    assert files(memory) == before
    replaced = daodask.build_store(spec(ACROSS, changed, second), memory, replace=True)
    assert statuses(replaced) == {"s0": "replaced", "s1": "replaced"}
    assert daodask.build_store(spec("none", changed, second), memory / "plain").ok
    assert_same(content(memory), content(memory / "plain"))


def test_nothing_is_replaced_where_not_all_can_be(memory: StoreLocation) -> None:
    first, second = two_studies()
    assert daodask.build_store(spec(ACROSS, first, second), memory).ok
    before = [d.id for d in latest_snapshot(memory).datasets]
    negative = second.copy()
    negative.X.data[0] = -1
    report = daodask.build_store(spec(ACROSS, first, negative), memory, replace=True)
    assert statuses(report) == {"s0": "unchanged", "s1": "refused"}
    assert [d.id for d in latest_snapshot(memory).datasets] == before


def test_a_refused_study_is_left_out(memory: StoreLocation) -> None:
    first, second = two_studies()
    second.X.data[0] = -1
    assert statuses(daodask.build_store(spec("global", first, second), memory)) == {"s0": "built", "s1": "refused"}
    assert daodask.open_store(memory).n_obs == 90
    assert not (memory / "scratch").list()


def test_from_unshuffled_to_shuffled_needs_to_be_asked_for(memory: StoreLocation) -> None:
    assert daodask.build_store(spec("none", *two_studies()), memory).ok
    assert statuses(daodask.build_store(spec("global", *two_studies()), memory)) == {"s0": "refused", "s1": "refused"}
    report = daodask.build_store(spec("global", *two_studies()), memory, replace=True)
    assert statuses(report) == {"s0": "replaced", "s1": "replaced"}
    assert daodask.open_store(memory).n_obs == 123
    # And a study of a shuffled dataset is not added a second time.
    assert statuses(daodask.build_store(spec("none", two_studies()[0]), memory)) == {"s0": "refused"}


# -- refusals --------------------------------------------------------------------------------------------------------


def test_what_can_not_be_shuffled_together(memory: StoreLocation) -> None:
    first, second = two_studies()
    bare = spec("global", first, second)
    del bare["studies"][1]["layers"]
    report = daodask.build_store(bare, memory)
    assert set(statuses(report).values()) == {"refused"}
    assert "to have the same layers, got ['X', 'layers/half'] in 's0' and ['X'] in 's1'" in report.studies[0].reason
    first.obs["source_row"] = 1
    report = daodask.build_store(spec("within", first), memory)
    assert "expected no obs column 'source_row' in 's0'" in report.studies[0].reason
    assert not memory.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("both", "shuffle"),
        (3, "shuffle: expected none, within, global, or a mapping"),
        ({"kind": "within", "seed": -1}, "shuffle.seed: expected a whole number of at least 0, got -1"),
        ({"kind": "within", "seed": True}, "shuffle.seed"),
        ({"kind": "within", "dataset_rows": 5}, "dataset_rows"),
        ({"seed": 5}, "kind"),
    ],
)
def test_what_can_not_be_meant(value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        daodask.build.spec.load_spec(spec(value, coordinate_adata(3)))


def test_what_the_build_file_says() -> None:
    def read(value: Any) -> ShuffleSpec:
        return daodask.build.spec.load_spec(spec(value, coordinate_adata(3))).shuffle

    assert read(None) == read("none") == ShuffleSpec("none", 0, 2**20)
    assert read("within") == ShuffleSpec("within")
    assert read({"kind": "global", "seed": 7, "dataset_rows": 100}) == ShuffleSpec("global", 7, 100)


# -- on every runner, and again after a crash ------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", ["within", ACROSS])
def test_threads_and_a_cluster_write_the_same_bytes(
    memory: StoreLocation, tmp_path: Any, client: Client, shuffle: Any
) -> None:
    location = StoreLocation.parse(tmp_path / "cluster")
    assert daodask.build_store(spec(shuffle, *two_studies()), memory / "serial").ok
    assert daodask.build_store(spec(shuffle, *two_studies()), memory / "threads", threads=3).ok
    assert daodask.build_store(spec(shuffle, *two_studies()), location, client=client).ok
    assert files(memory / "serial") == files(memory / "threads") == files(location)


class Crash(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("shuffle", ["within", ACROSS])
def test_a_crash_at_any_write_leaves_nothing_and_is_resumed(
    memory: StoreLocation, monkeypatch: pytest.MonkeyPatch, shuffle: Any
) -> None:
    studies = coordinate_adata(20), coordinate_adata(9, first=20)
    write = StoreLocation.write
    n_writes = 0

    def counting(where: StoreLocation, data: Any, **options: bool) -> None:
        nonlocal n_writes
        n_writes += 1
        if n_writes == crash_at:
            raise Crash
        write(where, data, **options)

    monkeypatch.setattr(StoreLocation, "write", counting)
    crash_at = 0
    assert daodask.build_store(spec(shuffle, *studies), memory / "whole").ok
    wanted, whole = files(memory / "whole"), n_writes
    for crash_at in range(1, whole + 1, 17):
        n_writes, location = 0, memory / f"crash{crash_at}"
        with pytest.raises(Crash):
            daodask.build_store(spec(shuffle, *studies), location)
        assert latest_snapshot(location) is None
        n_writes = whole  # no crash any more
        assert daodask.build_store(spec(shuffle, *studies), location).ok
        assert files(location) == wanted


@pytest.mark.parametrize("shuffle", ["within", ACROSS])
def test_what_a_crash_left_can_be_vacuumed(
    memory: StoreLocation, monkeypatch: pytest.MonkeyPatch, shuffle: Any
) -> None:
    earlier, studies = coordinate_adata(7, first=90), (coordinate_adata(20), coordinate_adata(9, first=20))
    write, n_writes, crash_at = StoreLocation.write, 0, 0

    def counting(where: StoreLocation, data: Any, **options: bool) -> None:
        nonlocal n_writes
        n_writes += 1
        if n_writes == crash_at:
            raise Crash
        write(where, data, **options)

    def begun(name: str) -> StoreLocation:
        assert daodask.build_store(spec("none", None, None, earlier), memory / name).ok
        return memory / name

    whole = begun("whole")
    monkeypatch.setattr(StoreLocation, "write", counting)
    assert daodask.build_store(spec(shuffle, *studies), whole).ok
    wanted, in_all = files(whole), n_writes
    for number, share in enumerate((0.2, 0.5, 0.8, 1)):
        crash_at = 0
        location = begun(f"crash{number}")
        before, n_writes, crash_at = files(location), 0, int(share * in_all)
        with pytest.raises(Crash):
            daodask.build_store(spec(shuffle, *studies), location)
        assert len(files(location)) > len(before)
        plan_vacuum(location, grace="0").run()
        assert files(location) == before
        assert daodask.build_store(spec(shuffle, *studies), location).ok
        assert files(location) == wanted


def test_a_disk_that_fails_is_waited_for(memory: StoreLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is the one study committed without the other, nor is what was built lost."""
    first, second = two_studies()
    write = StoreLocation.write

    def full(where: StoreLocation, data: Any, **options: bool) -> None:
        if "/s1." in where.url and "/receipts/" in where.url and "frames" in where.url:
            raise OSError(28, "No space left on device")
        write(where, data, **options)

    assert daodask.build_store(spec("global", first, second), memory / "whole").ok
    with monkeypatch.context() as patch:
        patch.setattr(StoreLocation, "write", full)
        report = daodask.build_store(spec("global", first, second), memory / "store")
    assert statuses(report) == {"s0": "failed", "s1": "failed"}
    assert latest_snapshot(memory / "store") is None
    assert daodask.build_store(spec("global", first, second), memory / "store").ok
    assert files(memory / "store") == files(memory / "whole")


# -- any sizes -------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    dataset_rows=st.integers(5, 60),
    shuffle=st.sampled_from(["within", "global"]),
    seed=st.integers(0, 2**32),
)
def test_any_sizes(sizes: list[int], dataset_rows: int, shuffle: str, seed: int) -> None:
    location = StoreLocation.parse(f"memory://shuffle-{next(NUMBER)}")
    how = {"kind": shuffle, "seed": seed, **({"dataset_rows": dataset_rows} if shuffle == "global" else {})}
    firsts = np.cumsum([0, *sizes])[:-1].tolist()
    studies = [coordinate_adata(n, first=first) for n, first in zip(sizes, firsts, strict=True)]
    report = daodask.build_store(spec(how, *studies), location)
    assert report.ok, str(report)
    found = content(location)
    assert found.obs["row"].tolist() == list(range(sum(sizes)))
    wanted = sp.vstack([s.X for s in studies], format="csr")
    assert (wanted != found.X).nnz == 0
    location.remove()
