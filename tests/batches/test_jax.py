"""Batches as JAX arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from daodask import BatchLoader
from daodask.batches.schedule import Shuffled
from daodask.errors import SpecError
from daodask.store import Store
from daodask.testing import coordinate_counts, random_store

if os.environ.get("DAODASK_REQUIRE_FRAMEWORKS"):
    import jax
else:
    jax = pytest.importorskip("jax")

from jax.experimental import sparse

N_OBS, N_VARS = 103, 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("jax") / "store", (70, 0, 33))


def make(store: Store, **changes: Any) -> BatchLoader:
    return BatchLoader(
        store, **{"batch_size": 8, "schedule": Shuffled(run_rows=4, window_rows=20), "seed": 3, **changes}
    )


@pytest.mark.parametrize("dense", [False, True])
def test_arrays_are_the_cells(store, dense):
    batches = make(store, obs=["cell_type", "row", "score", "odd"], dense=dense, measured=True).to_jax()
    assert len(batches) == 13
    assert batches.categories == {"cell_type": ("B cell", "T cell", "Größenzelle")}
    epochs = []
    for _ in range(2):
        # All are kept: what one holds must not change as the next ones are read.
        epoch = list(batches)
        for batch in epoch:
            index = np.asarray(batch["index"])
            assert batch["index"].dtype == np.int32
            X = batch["X"]
            assert isinstance(X, jax.Array if dense else sparse.BCSR)
            assert X.dtype == np.float32
            assert X.shape == (len(index), N_VARS)
            np.testing.assert_array_equal(X if dense else X.todense(), coordinate_counts(index, N_VARS).toarray())
            obs = batch["obs"]
            assert {name: str(column.dtype) for name, column in obs.items()} == {
                "cell_type": "int32",
                "row": "int32",
                "score": "float32",
                "odd": "bool",
            }
            np.testing.assert_array_equal(obs["cell_type"], np.where(index % 7 == 6, -1, index % 3))
            np.testing.assert_array_equal(obs["row"], index)
            np.testing.assert_array_equal(obs["score"], np.where(index % 5 == 4, np.nan, index / 2))
            np.testing.assert_array_equal(obs["odd"], index % 2 == 1)
            assert batch["measured"].shape == (len(index), N_VARS)
            assert bool(batch["measured"].all())
        epochs.append([row for batch in epoch for row in batch["index"].tolist()])
    assert [sorted(epoch) for epoch in epochs] == [list(range(N_OBS))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] == [row for batch in make(store) for row in batch.index.tolist()]


def test_under_jit(store):
    @jax.jit
    def total(batch: dict[str, Any]) -> Any:
        return batch["X"].sum() + batch["obs"]["row"].sum()

    found = [float(total(batch)) for batch in make(store, dense=True, obs=["row"]).to_jax()]
    assert found == pytest.approx([float(b.X.sum() + b.index.sum()) for b in make(store)], rel=1e-6)


def test_a_sparse_product(store):
    weights = np.arange(N_VARS, dtype=np.float32)
    for batch in make(store).to_jax():
        expected = coordinate_counts(np.asarray(batch["index"]), N_VARS) @ weights
        np.testing.assert_allclose(batch["X"] @ weights, expected, rtol=1e-5)


def test_what_a_function_returns_is_handed_out(store):
    assert list(make(store, fn=len).to_jax()) == [8] * 12 + [7]


def test_text_is_refused(store):
    with pytest.raises(SpecError, match="got obs column 'note' of text"):
        make(store, obs=["note"]).to_jax()
