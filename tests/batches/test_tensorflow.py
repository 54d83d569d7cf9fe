"""Batches as a ``tf.data.Dataset``."""

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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it says of the machine

if os.environ.get("DAODASK_REQUIRE_FRAMEWORKS"):
    import tensorflow as tf
else:
    tf = pytest.importorskip("tensorflow")

N_OBS, N_VARS = 103, 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("tensorflow") / "store", (70, 0, 33))


def make(store: Store, **changes: Any) -> BatchLoader:
    return BatchLoader(
        store, **{"batch_size": 8, "schedule": Shuffled(run_rows=4, window_rows=20), "seed": 3, **changes}
    )


OBS = ["cell_type", "row", "score", "odd", "dataset"]


@pytest.mark.parametrize("dense", [False, True])
def test_tensors_are_the_cells(store, dense):
    dataset = make(store, obs=OBS, dense=dense, measured=True).to_tf()
    epochs = []
    for _ in range(2):
        epoch = list(dataset.prefetch(2))
        for batch in epoch:
            index = batch["index"].numpy()
            X = batch["X"] if dense else tf.sparse.to_dense(batch["X"])
            np.testing.assert_array_equal(X, coordinate_counts(index, N_VARS).toarray())
            obs = {name: column.numpy() for name, column in batch["obs"].items()}
            np.testing.assert_array_equal(obs["cell_type"], np.where(index % 7 == 6, -1, index % 3))
            np.testing.assert_array_equal(obs["row"], index)
            np.testing.assert_array_equal(obs["score"], np.where(index % 5 == 4, np.nan, index / 2))
            np.testing.assert_array_equal(obs["odd"], index % 2 == 1)
            np.testing.assert_array_equal(obs["dataset"], np.where(index < 70, 0, 2))
            assert batch["measured"].numpy().all()
        epochs.append([row for batch in epoch for row in batch["index"].numpy().tolist()])
    assert [sorted(epoch) for epoch in epochs] == [list(range(N_OBS))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] == [row for batch in make(store) for row in batch.index.tolist()]


@pytest.mark.parametrize("dense", [False, True])
def test_the_signature_is_that_of_the_tensors(store, dense):
    part = store[:, [3, 1, 30]]
    dataset = make(part, obs=OBS, dense=dense, measured=True).to_tf()
    matrix = tf.TensorSpec if dense else tf.SparseTensorSpec
    assert dataset.element_spec == {
        "X": matrix((None, 3), tf.float32),
        "obs": {
            "cell_type": tf.TensorSpec((None,), tf.int64),
            "row": tf.TensorSpec((None,), tf.int64),
            "score": tf.TensorSpec((None,), tf.float64),
            "odd": tf.TensorSpec((None,), tf.bool),
            "dataset": tf.TensorSpec((None,), tf.int64),
        },
        "index": tf.TensorSpec((None,), tf.int64),
        "measured": tf.TensorSpec((None, 3), tf.bool),
    }
    for batch in dataset.take(3):
        X = batch["X"] if dense else tf.sparse.to_dense(batch["X"])
        np.testing.assert_array_equal(X, coordinate_counts(batch["index"].numpy(), N_VARS).toarray()[:, [3, 1, 30]])


def test_a_batch_that_is_kept_stays_what_it_is(store):
    """Memory of windows is used again; TensorFlow may hold on to it, and must be heard."""
    kept = [batch for _ in range(3) for batch in make(store, dense=True).to_tf()]
    for batch in kept:
        np.testing.assert_array_equal(batch["X"], coordinate_counts(batch["index"].numpy(), N_VARS).toarray())


def test_under_a_graph(store):
    dataset = make(store, dense=True, obs=["row"]).to_tf().map(lambda b: tf.reduce_sum(b["X"], axis=1))
    found = np.concatenate([sums.numpy() for sums in dataset])
    expected = np.concatenate([np.asarray(batch.X.sum(axis=1)).ravel() for batch in make(store)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_function_and_text_are_refused(store):
    with pytest.raises(SpecError, match="expected a loader without fn"):
        make(store, fn=len).to_tf()
    with pytest.raises(SpecError, match="got obs column 'note' of text"):
        make(store, obs=["note"]).to_tf()
