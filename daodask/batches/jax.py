"""Batches as dicts of JAX arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import scipy.sparse as sp

from daodask.batches.tensors import arrays, categories, check_numeric
from daodask.batches.window import Batch
from daodask.errors import DependencyError
from daodask.types import Label

if TYPE_CHECKING:
    from daodask.batches.loader import BatchLoader

try:
    import jax.numpy as jnp
    from jax.experimental import sparse as jax_sparse
except ImportError as error:
    raise DependencyError("to_jax() needs JAX, which is not installed; pip install 'daodask[jax]'") from error

__all__ = ["JaxBatches"]


class JaxBatches:
    """Batches as dicts of JAX arrays: ``X``, ``index``, and one per obs column under ``obs``; each pass is a new epoch.

    ``X`` is a ``BCSR`` array, or a dense one for a loader with ``dense=True``. Labels are codes, see
    :attr:`categories`; integers are int32 unless JAX was told to use 64 bits.

    Parameters
    ----------
    loader
        What decides and reads the batches. What its ``fn`` returns is handed out as it is.
    """

    def __init__(self, loader: BatchLoader) -> None:
        check_numeric(loader)
        self.loader = loader

    @property
    def categories(self) -> dict[str, tuple[Label, ...]]:
        """What the codes of each categorical column stand for."""
        return categories(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader) if self.loader.fn is not None else map(_to_jax, self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def _to_jax(batch: Batch) -> dict[str, Any]:
    parts = arrays(batch)
    # The library may share memory with what it is given, and the window's is used again.
    converted: dict[str, Any] = {
        "X": _sparse(parts.X) if sp.issparse(parts.X) else jnp.array(parts.X, copy=True),
        "obs": {name: jnp.array(values, copy=True) for name, values in parts.obs.items()},
        "index": jnp.array(parts.index, copy=True),
    }
    if parts.measured is not None:
        converted["measured"] = jnp.array(parts.measured, copy=True)
    return converted


def _sparse(matrix: Any) -> Any:
    data, indices, indptr = (jnp.array(part, copy=True) for part in (matrix.data, matrix.indices, matrix.indptr))
    return jax_sparse.BCSR((data, indices, indptr), shape=matrix.shape)
