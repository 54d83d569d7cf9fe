"""What obs looks like travels as an address: small tasks, a read of the snapshot in each process, and no mix-ups."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import dask
import pandas as pd
import pytest

import daodask
from daodask import schemas
from daodask.errors import StateError, StoreNotFoundError
from daodask.schemas import ObsSchema, SchemaAddress
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.testing import random_store
from daodask.testing.recording import recording

SIZES = (70, 0, 33)


@pytest.fixture(scope="module")
def store() -> Store:
    random_store("memory://schemas", SIZES, block_rows=16)
    return daodask.open_store("recording://schemas")


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """As if this were another process, that has not opened a store."""
    before = schemas._kept.copy()
    schemas._kept.clear()
    yield
    schemas._kept.update(before)


def of_snapshots(requests: list) -> list[str]:
    return [request.kind for request in requests if "/snapshots" in request.path]


def test_who_opened_the_store_reads_nothing_for_it(store):
    with recording() as requests:
        obs = store.obs
        assert not requests
        obs.compute(scheduler="threads")
    assert requests
    assert not of_snapshots(requests)


def test_another_process_reads_the_snapshot_once(store, elsewhere):
    expected = store.obs.compute(scheduler="threads")
    obs = store.obs
    graph, names = dict(obs.optimize().__dask_graph__()), obs.optimize().__dask_keys__()
    sent = pickle.loads(pickle.dumps(graph))  # noqa: S301 - it is our own
    schemas._kept.clear()
    for times in (1, 0):
        with recording() as requests:
            parts = dask.threaded.get(sent, names, num_workers=4)
        assert len(parts) == store.obs.npartitions > 4
        assert of_snapshots(requests) == ["list", "read"] * times
        pd.testing.assert_frame_equal(pd.concat(parts), expected)


def test_workers_of_a_cluster_have_the_same_obs(tmp_path, client):
    store = random_store(tmp_path / "store", SIZES, block_rows=16)
    pd.testing.assert_frame_equal(store.obs.compute(), store.obs.compute(scheduler="synchronous"))
    counts = store.obs["cell_type"].value_counts().compute()
    assert counts.to_dict() == store.value_counts("cell_type").to_dict()


def test_another_store_at_the_same_url_is_refused(tmp_path, elsewhere):
    obs = random_store(tmp_path / "store", SIZES).obs
    shutil.rmtree(tmp_path / "store")
    random_store(tmp_path / "store", (*SIZES, 5))
    schemas._kept.clear()
    with pytest.raises(StateError, match="found another with a snapshot 1 of its own; open it again"):
        obs.compute(scheduler="synchronous")


def test_a_store_that_is_gone(tmp_path, elsewhere):
    obs = random_store(tmp_path / "store", SIZES).obs
    shutil.rmtree(tmp_path / "store")
    schemas._kept.clear()
    with pytest.raises(StoreNotFoundError, match="expected a daodask store at"):
        obs.compute(scheduler="synchronous")


@pytest.mark.parametrize("convert", [True, False])
def test_strings_are_what_dask_is_configured_for(store, convert):
    with dask.config.set({"dataframe.convert-string": convert}):
        obs = store.obs
        plain = store[:0].obs
    assert isinstance(obs.dtypes["obs_names"], pd.StringDtype) == convert
    assert plain.dtypes.equals(obs.dtypes)
    for columns in (list(obs.columns), ["obs_names"], ["cell_type", "n_counts"]):
        part = obs[columns].partitions[1].compute(scheduler="synchronous")
        assert part.dtypes.to_dict() == obs[columns].dtypes.to_dict()
    assert obs["obs_names"].compute(scheduler="synchronous").iloc[71] == store.obs["obs_names"].compute().iloc[71]


def test_few_schemas_are_kept(elsewhere):
    addresses = []
    for number in range(40):
        schema = ObsSchema((), (f"study{number}",))
        addresses.append(SchemaAddress(StoreLocation(str(Path("/nowhere"))), 1, "human").of(schema))
    assert addresses[-1].schema().dataset_ids == ("study39",)
    assert len(schemas._kept) == 16
    assert addresses[0] not in schemas._kept
