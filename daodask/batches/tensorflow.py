"""Batches as a ``tf.data.Dataset``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from daodask.batches.tensors import arrays, check_numeric
from daodask.batches.window import Batch
from daodask.errors import DependencyError, SpecError

if TYPE_CHECKING:
    from daodask.batches.loader import BatchLoader

try:
    import tensorflow as tf
except ImportError as error:
    raise DependencyError(
        "to_tf() needs TensorFlow, which is not installed; pip install 'daodask[tensorflow]'"
    ) from error

__all__ = ["TensorFlowDataset", "tensorflow_dataset"]

TensorFlowDataset: TypeAlias = Any


def tensorflow_dataset(loader: BatchLoader) -> TensorFlowDataset:
    """A ``tf.data.Dataset`` of dicts: ``X``, ``index``, one per obs column under ``obs``, ``measured`` where asked for.

    ``X`` is a ``SparseTensor``, or a dense tensor for a loader with ``dense=True``; labels are int64 codes into the
    column's categories. Each pass is a new epoch.

    Raises
    ------
    SpecError
        The loader applies a function: its results have no signature; use ``map`` on the dataset in its place.
    """
    check_numeric(loader)
    if loader.fn is not None:
        raise SpecError(
            "expected a loader without fn, whose results have no signature; map the function over the dataset"
        )

    def batches() -> Iterator[dict[str, Any]]:
        return map(_to_tensors, loader)

    return tf.data.Dataset.from_generator(batches, output_signature=_signature(loader))


def _signature(loader: BatchLoader) -> dict[str, Any]:
    n_vars = loader.store.n_vars
    dtype = tf.as_dtype(loader.x_dtype)
    X = tf.TensorSpec if loader.dense else tf.SparseTensorSpec
    signature: dict[str, Any] = {
        "X": X(shape=(None, n_vars), dtype=dtype),
        "obs": {name: tf.TensorSpec(shape=(None,), dtype=_column_dtype(loader, name)) for name in loader.obs},
        "index": tf.TensorSpec(shape=(None,), dtype=tf.int64),
    }
    if loader.measured:
        signature["measured"] = tf.TensorSpec(shape=(None, n_vars), dtype=tf.bool)
    return signature


def _column_dtype(loader: BatchLoader, name: str) -> Any:
    """Dtype that a column has as a tensor: that of no cells of it."""
    empty = loader.store.empty_obs[[name]]
    none = Batch(np.empty((0, 0)), empty, np.empty(0, np.int64))
    return tf.as_dtype(arrays(none).obs[name].dtype)


def _to_tensors(batch: Batch) -> dict[str, Any]:
    parts = arrays(batch)
    tensors: dict[str, Any] = {
        "X": _sparse(parts.X) if sp.issparse(parts.X) else parts.X,
        "obs": dict(parts.obs),
        "index": parts.index,
    }
    if parts.measured is not None:
        tensors["measured"] = parts.measured
    return tensors


def _sparse(matrix: Any) -> Any:
    coordinates = matrix.tocoo()
    places = np.stack([coordinates.row, coordinates.col], axis=1).astype(np.int64)
    return tf.SparseTensor(places, matrix.data, matrix.shape)
