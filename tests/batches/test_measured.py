"""What else a loader tells and does: measured genes, a function on each batch, the memory it keeps within, its plan."""

from __future__ import annotations

import threading
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

import daodask
from daodask import BatchLoader
from daodask._format import human_bytes
from daodask.batches.plan import Mixing, mixing
from daodask.batches.schedule import (
    Balanced,
    Cells,
    Epoch,
    Full,
    Grouped,
    Labels,
    Sequential,
    Shuffled,
    named_schedule,
)
from daodask.batches.window import Batch
from daodask.errors import SpecError
from daodask.store import Store
from daodask.testing import coordinate_adata, coordinate_counts, random_store

N_OBS, N_VARS = 103, 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("measured") / "store", (70, 0, 33))


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three studies that measured genes 0 to 19, 10 to 31, and all of them."""
    studies = []
    for name, n, first, genes in (("a", 20, 0, slice(20)), ("b", 15, 20, slice(10, None)), ("c", 11, 35, slice(None))):
        whole = coordinate_adata(n, first=first)
        own = anndata.AnnData(whole.X[:, genes], whole.obs, whole.var.iloc[genes])
        studies.append({"id": name, "source": own})
    url = tmp_path_factory.mktemp("partial") / "store"
    spec = {"features": {"name": "genes", "reference": "union"}, "keep": "all", "studies": studies}
    assert daodask.build_store(spec, url).ok
    return daodask.open_store(url)


# -- measured ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("genes", [None, ["gene31", "gene5", "gene15"]])
def test_a_batch_tells_what_was_measured(partial, dense, genes):
    order = [f"gene{j}" for j in range(N_VARS)] if genes is None else genes
    store = partial[:, order]
    has = {"a": range(20), "b": range(10, 32), "c": range(32)}
    table = np.array([[int(g[4:]) in has[dataset] for g in order] for dataset in "abc"])
    cells = 0
    for batch in BatchLoader(store, 7, obs=["dataset"], dense=dense, measured=True):
        np.testing.assert_array_equal(batch.measured, table)
        assert batch.measured.dtype == bool
        assert ["abc"[d] for d in batch.dataset] == batch.obs["dataset"].tolist()
        np.testing.assert_array_equal(batch.measured_per_cell, table[batch.dataset])
        # Where a gene was not measured there is nothing.
        X = batch.X if dense else batch.X.toarray()
        assert not X[~batch.measured_per_cell].any()
        full = coordinate_counts(batch.index, N_VARS).toarray()[:, [int(g[4:]) for g in order]]
        np.testing.assert_array_equal(X, np.where(batch.measured_per_cell, full, 0))
        cells += len(batch)
    assert cells == 46


def test_a_dataset_without_a_selected_cell_keeps_its_row(partial):
    batches = list(BatchLoader(partial.subset(dataset=["a", "c"]), 10, measured=True))
    for batch in batches:
        assert batch.measured.shape == (3, N_VARS)
        assert not batch.measured[1].any()
        assert set(batch.dataset.tolist()) <= {0, 2}


def test_who_does_not_ask_is_not_told(partial):
    batch = next(iter(BatchLoader(partial, 7)))
    assert batch.measured is None
    assert batch.dataset is None
    with pytest.raises(ValueError, match="expected a batch of a loader with measured=True"):
        batch.measured_per_cell  # noqa: B018


# -- fn ----------------------------------------------------------------------------------------------------------------


def summary(batch: Batch) -> tuple[list[int], float, list[int]]:
    return batch.index.tolist(), float(batch.X.sum()), batch.obs["row"].tolist()


def test_a_function_is_applied_where_batches_are_made(store):
    threads = set()

    def noting(batch: Batch) -> Any:
        threads.add(threading.current_thread().name)
        return summary(batch)

    loader = BatchLoader(store, 10, obs=["row"], fn=noting, seed=3, schedule=Shuffled(4, 30))
    plain = BatchLoader(store, 10, obs=["row"], seed=3, schedule=Shuffled(4, 30))
    assert list(loader) == [summary(batch) for batch in plain]
    assert len(loader) == 11
    assert threading.main_thread().name not in threads
    assert all(name.startswith("daodask-window") for name in threads)


def test_a_function_is_applied_on_the_cluster(store, client):
    loader = BatchLoader(store, 10, obs=["row"], fn=summary, seed=3, schedule=Shuffled(4, 30))
    assert list(loader.copy(client=client)) == list(loader.copy())
    import os

    places = set(BatchLoader(store, 10, fn=lambda batch: os.getpid(), client=client))
    assert os.getpid() not in places


def test_a_function_that_fails_says_so(store):
    def failing(batch: Batch) -> None:
        raise ZeroDivisionError("in a function of one's own")

    with pytest.raises(ZeroDivisionError, match="of one's own"):
        list(BatchLoader(store, 10, fn=failing))
    with pytest.raises(ZeroDivisionError):
        next(iter(BatchLoader(store, 10, fn=failing)))
    assert not [t for t in threading.enumerate() if t.name.startswith(("daodask-decode", "daodask-window"))]


def test_a_column_may_be_added_to_a_batch(store):
    for batch in BatchLoader(store, 10, obs=["row"]):
        batch.obs["twice"] = 2 * batch.obs["row"]
        assert batch.obs["twice"].tolist() == (2 * batch.index).tolist()


# -- memory ------------------------------------------------------------------------------------------------------------


def window_bytes(store: Store, rows: int, *, dense: bool = False) -> int:
    if dense:
        return rows * store.n_vars * 4
    nnz = sum(info.matrix["X"].nnz for info in store.dataset_infos)
    return int(rows * nnz / N_OBS * 8)


SIZES = pd.Series(np.where(np.arange(N_OBS) % 7 == 6, -1, np.arange(N_OBS) % 3)).value_counts()


@pytest.mark.parametrize(
    ("schedule", "batch_size", "rows"),
    [
        (Sequential(window_rows=30), 10, 30),
        (Shuffled(window_rows=30), 20, 40),  # of the multiples of 20 one of the two that are nearest
        (Shuffled(window_rows=10_000), 10, N_OBS),
        (Shuffled(window_rows=1), 64, 64),
        (Balanced("cell_type", window_rows=30), 10, 30),
        (Balanced("cell_type", window_rows=10_000), 10, int(SIZES[[0, 1, 2]].sum())),
        (Grouped("cell_type", window_rows=10), 10, int(SIZES[[0, 1, 2]].max())),
        (Grouped("cell_type", window_rows=10_000), 10, int(SIZES[[0, 1, 2]].sum())),
        (Full(), 10, N_OBS),
    ],
    ids=str,
)
def test_a_plan_knows_the_largest_window(store, schedule, batch_size, rows):
    for dense in (False, True):
        plan = BatchLoader(store, batch_size, schedule=schedule, dense=dense).plan()
        assert plan.window_bytes == window_bytes(store, rows, dense=dense)
    windows = list(schedule.windows(cells(store, schedule), batch_size, Epoch(0, 0)))
    assert max(len(w.positions) for w in windows) <= rows


def cells(store: Store, schedule: Any) -> Cells:
    return BatchLoader(store, schedule=schedule)._cells


def test_a_schedule_of_one_s_own_is_measured(store):
    class Uneven:
        columns = ()

        def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Any:
            return Shuffled(window_rows=30).windows(cells, batch_size, epoch)

    assert BatchLoader(store, 10, schedule=Uneven()).plan().window_bytes == window_bytes(store, 30)


@pytest.mark.parametrize(("windows", "read_ahead"), [(2, 0), (3, 1), (4.5, 2), (6, 4), (100, 4)])
def test_memory_decides_how_many_windows_are_read_ahead(store, windows, read_ahead):
    memory = int(windows * window_bytes(store, 30, dense=True))
    loader = BatchLoader(store, 10, schedule=Shuffled(window_rows=30), dense=True, memory=memory)
    assert loader.plan().read_ahead == read_ahead
    assert loader.plan().memory == memory
    reads = Counting(loader)
    for done, _ in enumerate(loader, start=1):
        # The one that is consumed, and those that are ahead of it.
        assert reads.begun <= (done - 1) // 3 + 1 + (read_ahead + 1 if read_ahead else 0)
    assert reads.begun == 4


class Counting:
    """Counts the windows that a loader asks its schedule for."""

    def __init__(self, loader: BatchLoader) -> None:
        self.begun, inner = 0, loader.schedule
        outer = self

        class Counted:
            columns = inner.columns

            def windows(self, *arguments: Any) -> Any:
                for window in inner.windows(*arguments):
                    outer.begun += 1
                    yield window

            def most_rows(self, *arguments: Any) -> int:
                return int(inner.most_rows(*arguments))  # type: ignore[attr-defined]

        loader.schedule = Counted()


@pytest.mark.parametrize("schedule", [Shuffled(window_rows=30), Full(), Grouped("cell_type")], ids=str)
def test_two_windows_that_don_t_fit_are_refused_before_anything_is_read(store, schedule):
    loader = BatchLoader(store, 10, schedule=schedule, memory=3000, dense=True)
    for use in (loader.plan, lambda: next(iter(loader))):
        with pytest.raises(SpecError, match=r"expected two windows within memory=2.93 KiB, .* a smaller window_rows"):
            use()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "expected a seed of at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, r"expected a rank from 0 to 1 (world_size 2), got 2"),
        ({"rank": -1}, "expected a rank from 0 to 0"),
        ({"schedule": Shuffled(run_rows=0)}, "expected run_rows of at least 1, got Shuffled(run_rows=0"),
        ({"schedule": Sequential(window_rows=0)}, "expected window_rows of at least 1, got Sequential(window_rows=0"),
    ],
)
def test_what_cannot_be_meant_is_refused(store, arguments, message):
    with pytest.raises(SpecError) as caught:
        BatchLoader(store, **arguments)
    assert message in str(caught.value)


# -- plan and repr -----------------------------------------------------------------------------------------------------


def test_a_plan_in_words(store):
    loader = BatchLoader(store, 10, schedule=Shuffled(run_rows=4, window_rows=30), seed=1)
    plan = loader.plan(["dataset", "cell_type"])
    assert (plan.n_obs, plan.n_batches, plan.n_windows) == (N_OBS, 11, 4)
    by_dataset, by_type = plan.mixing
    assert repr(plan) == (
        "epoch of 11 batches in 4 windows, 103 cells\n"
        "  schedule  Shuffled(run_rows=4, window_rows=30)\n"
        f"  memory    {human_bytes(plan.window_bytes)} a window, 4 read ahead, budget 1 GiB\n"
        f"  reads     about {human_bytes(stored_bytes(store))}, {plan.runs:.0f} runs of rows a window\n"
        f"  mixing    dataset: {words(by_dataset)}\n"
        f"  mixing    cell_type: {words(by_type)}"
    )
    assert 5 < plan.runs < 12


def stored_bytes(store: Store) -> int:
    return sum(store.snapshot.dataset[i].nbytes for i in store.selection.datasets)


def words(found: Mixing) -> str:
    return f"{found.entropy:.2f} of {found.independent:.2f} bits a batch ({found.share:.1%})"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_plan_is_of_one_rank(store, world_size):
    loader = BatchLoader(store, 10, schedule=Sequential(window_rows=20), world_size=world_size)
    plan = loader.plan()
    assert plan.n_batches == len(loader) == len(list(loader))
    assert plan.n_windows == -(-plan.n_batches // 2)
    assert plan.read_bytes == pytest.approx(stored_bytes(store) / world_size, abs=1)


def test_looking_changes_nothing(store):
    loader = BatchLoader(store, 10, seed=2)
    state = loader.state_dict()
    loader.plan(["cell_type"]), repr(loader), len(loader)
    assert loader.state_dict() == state
    assert repr(loader) == (
        "<BatchLoader: 11 batches of 10 out of 103 cells x 32 genes, Shuffled(run_rows=64, window_rows=16384), seed 2, "
        "next epoch 0>"
    )
    next(iter(loader))
    assert repr(loader).endswith("next epoch 1>")


def test_an_empty_selection_has_a_plan(store):
    empty = store[:0]
    loader = BatchLoader(empty, 10)
    assert len(loader) == 0
    assert list(loader) == []
    plan = loader.plan()
    assert (plan.n_batches, plan.n_windows, plan.read_bytes) == (0, 0, 0)
    assert plan.mixing[0].share == 1


# -- mixing ------------------------------------------------------------------------------------------------------------

SORTED = Labels(("a", "b", "c", "d"), np.repeat(np.arange(4), 500).astype(np.int64))


@pytest.mark.parametrize(
    ("schedule", "low", "high"),
    [
        (Sequential(), 0.0, 0.0),
        (Shuffled(run_rows=1, window_rows=100_000), 0.99, 1.01),
        (Shuffled(run_rows=64, window_rows=64), 0.0, 0.3),
        (Shuffled(run_rows=64, window_rows=512), 0.6, 0.98),
        (Shuffled(run_rows=8, window_rows=512), 0.95, 1.01),
    ],
)
def test_the_mixing_figure(schedule, low, high):
    windows = schedule.windows(Cells(2000), 50, Epoch(0, 0))
    found = mixing("kind", SORTED, windows)
    assert found.independent == pytest.approx(2, rel=0.03)
    assert low <= found.share <= high


def test_mixing_of_one_label_is_perfect_and_of_none_too():
    one = Labels(("a",), np.zeros(100, np.int64))
    assert mixing("kind", one, Sequential().windows(Cells(100), 10, Epoch(0, 0))).share == 1
    assert mixing("kind", one, []).share == 1
    # Cells without a label count as one more label.
    none = Labels(("a",), np.repeat([0, -1], 50).astype(np.int64))
    assert mixing("kind", none, named_schedule("sequential").windows(Cells(100), 50, Epoch(0, 0))).share == 0


def test_mixing_grows_with_the_window(tmp_path):
    adata = coordinate_adata(400)
    adata.obs["sorted"] = pd.Categorical(np.repeat(list("abcd"), 100))
    spec = {
        "features": {"name": "g", "reference": "union"},
        "keep": "all",
        "studies": [{"id": "a", "source": adata}],
    }
    assert daodask.build_store(spec, tmp_path / "s").ok
    store = daodask.open_store(tmp_path / "s")
    shares = []
    for rows in (20, 100, 400):
        plan = BatchLoader(store, 20, schedule=Shuffled(run_rows=20, window_rows=rows)).plan("sorted")
        shares.append(plan.mixing[0].share)
    assert shares[0] < 0.5 < shares[1] < shares[2]
    assert shares[2] > 0.9
