"""Batches as PyTorch tensors, under every kind of DataLoader: each cell once an epoch, and each epoch anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

import daodask
from daodask import BatchLoader
from daodask.batches.schedule import Balanced, Cells, Epoch, Shuffled, Window
from daodask.batches.window import Batch
from daodask.errors import SpecError
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store

if os.environ.get("DAODASK_REQUIRE_FRAMEWORKS"):
    import torch
else:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchdata.stateful_dataloader")

from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

N_OBS, N_VARS = 103, 32
WINDOWS = Shuffled(run_rows=4, window_rows=20)
#: Of a DataLoader.
KINDS: dict[str, dict[str, Any]] = {
    "none": {"num_workers": 0},
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "fork, persistent": {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
    "spawn": {"num_workers": 2, "multiprocessing_context": "spawn"},
    "spawn, persistent": {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True},
}
FORKED = {kind: options for kind, options in KINDS.items() if "spawn" not in kind}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("torch") / "store"
    random_store(path, (70, 0, 33))
    return os.fspath(path)


@pytest.fixture(scope="module")
def store(url: str) -> Store:
    return daodask.open_store(url)


def make(store: Store, **changes: Any) -> BatchLoader:
    return BatchLoader(store, **{"batch_size": 8, "schedule": WINDOWS, "seed": 3, **changes})


def rows(batches: Iterable[Any]) -> list[int]:
    return [row for batch in batches for row in batch["index"].tolist()]


def check(batch: dict[str, Any], *, dense: bool = False) -> None:
    index = batch["index"].numpy()
    assert batch["index"].dtype == torch.int64
    assert batch["X"].dtype == torch.float32
    assert batch["X"].layout == (torch.strided if dense else torch.sparse_csr)
    assert batch["X"].shape == (len(index), N_VARS)
    expected = coordinate_counts(index, N_VARS)
    np.testing.assert_array_equal(batch["X"].to_dense().numpy(), expected.toarray())
    if not dense:
        # Indices and bounds are of one type, and canonical.
        X = batch["X"]
        assert X.crow_indices().dtype == X.col_indices().dtype == torch.int32
        np.testing.assert_array_equal(X.crow_indices(), expected.indptr)
        np.testing.assert_array_equal(X.col_indices(), expected.indices)
        np.testing.assert_array_equal(X.values(), expected.data)


# -- what a batch is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
def test_tensors_are_the_cells(store, dense):
    loader = make(store, obs=["cell_type", "row", "score", "odd", "dataset"], dense=dense, measured=True)
    dataset = loader.to_torch()
    assert len(dataset) == 13
    assert dataset.categories == {
        "cell_type": ("B cell", "T cell", "Größenzelle"),
        "dataset": ("study0", "study1", "study2"),
    }
    batches = list(dataset)
    assert sorted(rows(batches)) == list(range(N_OBS))
    for batch in batches:
        check(batch, dense=dense)
        index, obs = batch["index"].numpy(), batch["obs"]
        assert list(obs) == ["cell_type", "row", "score", "odd", "dataset"]
        assert {name: column.dtype for name, column in obs.items()} == {
            "cell_type": torch.int64,
            "row": torch.int64,
            "score": torch.float64,
            "odd": torch.bool,
            "dataset": torch.int64,
        }
        np.testing.assert_array_equal(obs["cell_type"], np.where(index % 7 == 6, -1, index % 3))
        np.testing.assert_array_equal(obs["row"], index)
        np.testing.assert_array_equal(obs["score"], np.where(index % 5 == 4, np.nan, index / 2))
        np.testing.assert_array_equal(obs["odd"], index % 2 == 1)
        np.testing.assert_array_equal(obs["dataset"], np.where(index < 70, 0, 2))
        assert batch["measured"].dtype == torch.bool
        assert batch["measured"].shape == (len(index), N_VARS)
        assert batch["measured"].all()


def test_missing_numbers_are_nan(tmp_path):
    from daodask.testing import coordinate_adata

    a, b = coordinate_adata(10), coordinate_adata(7, first=10)
    a.obs["depth"] = np.arange(10)
    studies = [{"id": "a", "source": a}, {"id": "b", "source": b}]
    spec = {"features": {"name": "g", "reference": "union"}, "keep": "all", "studies": studies}
    assert daodask.build_store(spec, tmp_path / "s").ok
    store = daodask.open_store(tmp_path / "s")
    (batch,) = BatchLoader(store, 20, obs=["depth"], schedule="sequential").to_torch()
    np.testing.assert_array_equal(batch["obs"]["depth"], [*range(10), *[np.nan] * 7])


def test_tensors_may_be_changed(store):
    for batch in make(store, obs=["row", "cell_type"], dense=True).to_torch():
        check(batch, dense=True)
        for tensor in (batch["X"], batch["index"], *batch["obs"].values()):
            tensor.zero_()


def test_text_is_refused(store):
    for column in ("note", "obs_names"):
        with pytest.raises(
            SpecError, match=f"expected labels or numbers for tensors, got obs column '{column}' of text"
        ):
            make(store, obs=["row", column]).to_torch()


def half(batch: Batch) -> dict[str, Any]:
    return {"index": torch.from_numpy(batch.index.copy()), "half": float(batch.X.sum()) / 2}


@pytest.mark.parametrize("options", FORKED.values(), ids=FORKED)
def test_what_a_function_returns_is_handed_out(store, options):
    loader = make(store, fn=half)
    batches = list(DataLoader(loader.to_torch(), batch_size=None, **options))
    assert sorted(rows(batches)) == list(range(N_OBS))
    for batch in batches:
        assert batch["half"] == coordinate_counts(batch["index"].numpy(), N_VARS).sum() / 2


def test_training_with_it(store):
    """A linear model of the labels, on sparse and on dense batches."""
    part = store.subset(cell_type=["B cell", "T cell", "Größenzelle"])
    for dense in (False, True):
        torch.manual_seed(0)
        weight = torch.zeros((N_VARS, 3), requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.05)
        dataset = make(part, obs=["cell_type"], dense=dense).to_torch()
        losses = []
        for _ in range(4):
            for batch in DataLoader(dataset, batch_size=None):
                loss = torch.nn.functional.cross_entropy(batch["X"] @ (weight / 3000), batch["obs"]["cell_type"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert losses[-1] < losses[0]


# -- epochs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "dense"),
    [
        *[pytest.param(options, False, id=kind) for kind, options in KINDS.items()],
        *[pytest.param(options, True, id=f"{kind}, dense") for kind, options in FORKED.items()],
    ],
)
def test_every_epoch_is_every_cell_once_and_in_an_order_of_its_own(store, options, dense):
    loading = DataLoader(make(store, obs=["cell_type"], dense=dense).to_torch(), batch_size=None, **options)
    assert len(loading) == 13
    epochs = []
    for _ in range(2 if "spawn" in options.values() else 3):
        batches = list(loading)
        for batch in batches:
            check(batch, dense=dense)
            np.testing.assert_array_equal(batch["obs"]["cell_type"], codes(batch["index"].numpy()))
        epochs.append(rows(batches))
    for epoch in epochs:
        assert sorted(epoch) == list(range(N_OBS))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    # The same cells as without workers: they share the windows, and take turns.
    plain = make(store)
    for epoch in epochs:
        assert by_window(epoch) == by_window([row for batch in plain for row in batch.index.tolist()])


def codes(index: np.ndarray) -> np.ndarray:
    return np.where(index % 7 == 6, -1, index % 3)


def by_window(epoch: list[int]) -> set[frozenset[int]]:
    """Cells of each batch, whatever the order of batches."""
    return {frozenset(epoch[start : start + 8]) for start in range(0, len(epoch), 8)}


@pytest.mark.parametrize("options", FORKED.values(), ids=FORKED)
def test_the_same_seed_is_the_same_order(store, options):
    orders = []
    for seed, torch_seed in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(torch_seed)
        loading = DataLoader(make(store, seed=seed).to_torch(), batch_size=None, **options)
        orders.append([rows(loading) for _ in range(2)])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[2][0]


@pytest.mark.parametrize("seeded", [True, False])
def test_epochs_follow_on_each_other_over_dataloaders(store, seeded):
    """One dataset, in turn under DataLoaders of 1, 2 and no workers, begun anew with the same seed or not."""
    dataset = make(store).to_torch()
    expected = make(store)
    for options in (FORKED["fork"], {"num_workers": 1}, FORKED["fork"], FORKED["fork"], {"num_workers": 1}):
        if seeded:
            torch.manual_seed(0)
        epoch = rows(DataLoader(dataset, batch_size=None, **options))
        assert sorted(epoch) == list(range(N_OBS))
        assert by_window(epoch) == by_window([row for batch in expected for row in batch.index.tolist()])


@pytest.mark.parametrize("options", [FORKED["fork"], FORKED["fork, persistent"]], ids=["fork", "fork, persistent"])
def test_a_pass_that_was_left_does_not_mix_up_the_next(store, options):
    loading = DataLoader(make(store).to_torch(), batch_size=None, **options)
    seen = set()
    for _ in range(3):
        next(iter(loading))
        epoch = rows(loading)
        assert sorted(epoch) == list(range(N_OBS))
        seen.add(tuple(epoch))
    assert len(seen) == 3


def test_dataloaders_side_by_side(store):
    dataset = make(store).to_torch()
    first, second = (DataLoader(dataset, batch_size=None, **FORKED["fork"]) for _ in range(2))
    for _ in range(2):
        pairs = list(zip(first, second, strict=True))
        for batches in zip(*pairs, strict=True):
            assert sorted(rows(batches)) == list(range(N_OBS))


def test_the_epoch_may_be_set(store):
    dataset = make(store).to_torch()
    expected = make(store)
    expected.epoch = dataset.loader.epoch = 5
    epoch = rows(DataLoader(dataset, batch_size=None, **FORKED["fork"]))
    assert by_window(epoch) == by_window([row for batch in expected for row in batch.index.tolist()])


class Plain:
    """A schedule that says nothing but its windows."""

    columns = ()

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        return WINDOWS.windows(cells, batch_size, epoch)


@pytest.mark.parametrize("schedule", [WINDOWS, Balanced("cell_type", replacement=False, window_rows=20), Plain()])
def test_a_worker_s_budget_is_that_of_windows_and_not_of_the_store(store, schedule):
    # Two windows of 24 cells fit, the store does not.
    loader = make(store, schedule=schedule, dense=True, memory=2 * 24 * N_VARS * 4)
    assert len(rows(DataLoader(loader.to_torch(), batch_size=None, **FORKED["fork"]))) > 60


def test_workers_of_a_cluster_s_loader_are_refused(store, client):
    dataset = make(store, client=client).to_torch()
    assert sorted(rows(DataLoader(dataset, batch_size=None))) == list(range(N_OBS))
    with pytest.raises(SpecError, match="expected a DataLoader with num_workers=0"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")))


# -- ranks -------------------------------------------------------------------------------------------------------------

RANK = """
import json, sys, warnings
warnings.simplefilter("error")
import torch.distributed as dist
import daodask
from daodask.batches.schedule import Shuffled
from torch.utils.data import DataLoader

url, init, rank, world_size, num_workers = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world_size)
loader = daodask.BatchLoader(daodask.open_store(url), 8, schedule=Shuffled(run_rows=4, window_rows=20), seed=3)
dataset = loader.to_torch()
loading = DataLoader(dataset, batch_size=None, num_workers=num_workers)
epochs = [[batch["index"].tolist() for batch in loading] for _ in range(2)]
dist.barrier()
dist.destroy_process_group()
print(json.dumps({"rank": dataset.loader.rank, "world_size": dataset.loader.world_size, "epochs": epochs}))
"""


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (2, 2)])
def test_ranks_of_torch_distributed_share_each_epoch(url, store, tmp_path, world_size, num_workers):
    init = f"file://{tmp_path}/rendezvous"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, url, init, str(rank), str(world_size), str(num_workers)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    told = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size
    assert [(t["rank"], t["world_size"]) for t in told] == [(rank, world_size) for rank in range(world_size)]
    for number in range(2):
        epochs = [t["epochs"][number] for t in told]
        assert len({len(batches) for batches in epochs}) == 1
        seen = [row for batches in epochs for batch in batches for row in batch]
        assert set(seen) == set(range(N_OBS))
        assert len(seen) == N_OBS + -N_OBS % world_size
    assert told[0]["epochs"][0] != told[0]["epochs"][1]


def test_a_rank_that_was_given_is_kept(store, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    given = make(store, rank=2, world_size=3).to_torch().loader
    assert (given.rank, given.world_size) == (2, 3)
    taken = make(store).to_torch().loader
    assert (taken.rank, taken.world_size) == (1, 4)


# -- state -------------------------------------------------------------------------------------------------------------


def stateful(store: Store, options: dict[str, Any], **changes: Any) -> Any:
    return StatefulDataLoader(make(store, **changes).to_torch(), batch_size=None, **options)


# torchdata calls a function of torch that is deprecated.
torchdata_warns = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
SOME, MANY = ((0, 5),), ((0, 0), (0, 1), (1, 5), (1, 12), (0, 13), (1, 13))


@torchdata_warns
@pytest.mark.parametrize(
    ("options", "schedule", "places"),
    [
        *[pytest.param(options, WINDOWS, MANY, id=kind) for kind, options in FORKED.items()],
        pytest.param(KINDS["spawn"], WINDOWS, SOME, id="spawn"),
        pytest.param(KINDS["fork"], Plain(), SOME, id="plain schedule"),
    ],
)
def test_a_stateful_dataloader_goes_on_where_it_was(store, options, schedule, places):
    # Of workers that are spawned, which is slow, and of those that are forked the batches are the same.
    undisturbed = stateful(store, KINDS["fork"] if options is KINDS["spawn"] else options, schedule=schedule)
    epochs = [[batch["index"].tolist() for batch in undisturbed] for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(N_OBS))
    assert len(epochs[0]) == 13
    for begun, done in places:
        loading = stateful(store, options, schedule=schedule)
        for _ in range(begun):
            assert len(list(loading)) == 13
        passing = iter(loading)
        made = [next(passing)["index"].tolist() for _ in range(done)]
        assert made == epochs[begun][:done]
        if done == 13:
            assert list(passing) == []
        state = loading.state_dict()
        del passing
        other = stateful(store, options, schedule=schedule)
        other.load_state_dict(state)
        if done < 13:
            assert [batch["index"].tolist() for batch in other] == epochs[begun][done:]
        # At an epoch's end the next pass is the next epoch, as it is after those that were gone on with.
        assert [batch["index"].tolist() for batch in other] == epochs[begun + 1]


@torchdata_warns
def test_the_state_of_a_stateful_dataloader_of_another_loader_is_refused(store):
    loading = stateful(store, {"num_workers": 0})
    next(iter(loading))
    other = stateful(store, {"num_workers": 0}, seed=4)
    other.load_state_dict(loading.state_dict())
    with pytest.raises(daodask.errors.StateError):
        next(iter(other))


def test_without_workers_the_loader_has_the_state(store):
    dataset = make(store).to_torch()
    whole = rows(make(store).to_torch())
    passing = iter(DataLoader(dataset, batch_size=None))
    first = rows([next(passing), next(passing)])
    other = make(store).to_torch()
    other.loader.load_state_dict(json.loads(json.dumps(dataset.loader.state_dict())))
    assert first + rows(DataLoader(other, batch_size=None)) == whole


def test_codes_of_columns_that_pandas_keeps_to_itself():
    """Arrays of pandas may not be written to; tensors are."""
    from daodask.batches.tensors import arrays

    numbers = np.arange(3)
    numbers.flags.writeable = False
    obs = pd.DataFrame({"n": pd.Series(numbers, copy=False), "c": pd.Categorical(["b", None, "a"])})
    parts = arrays(Batch(np.zeros((3, 1)), obs, np.arange(3)))
    assert parts.obs["n"].flags.writeable
    assert parts.obs["c"].tolist() == [1, -1, 0]
    assert parts.obs["c"].flags.writeable
