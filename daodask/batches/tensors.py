"""What the adaptors share: a batch as plain arrays, labels as integer codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from daodask.batches.window import Batch
from daodask.errors import SpecError
from daodask.types import AnyArray, Label

if TYPE_CHECKING:
    from daodask.batches.loader import BatchLoader

__all__ = ["Arrays", "arrays", "categories", "check_numeric"]


@dataclass(frozen=True, slots=True)
class Arrays:
    """A batch as arrays: ``X`` CSR or dense, an array per obs column, ``index``, ``measured`` per cell or nothing."""

    X: Any
    obs: Mapping[str, AnyArray]
    index: AnyArray
    measured: AnyArray | None


def arrays(batch: Batch) -> Arrays:
    """Labels become int64 codes into the column's categories, -1 where a cell has none; numbers stay what they are."""
    obs = {str(name): _column(batch.obs[name]) for name in batch.obs.columns}
    return Arrays(batch.X, obs, batch.index, None if batch.measured is None else batch.measured_per_cell)


def _column(values: pd.Series) -> AnyArray:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.codes.to_numpy(dtype=np.int64)
    if pd.api.types.is_extension_array_dtype(values.dtype):
        # A missing number is NaN, as tensors have nothing else for it.
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    # A copy: pandas may give out its own memory, which is not to be written to, and tensors are.
    return values.to_numpy(copy=True)


def categories(loader: BatchLoader) -> dict[str, tuple[Label, ...]]:
    """What the codes of each categorical column that the loader brings stand for."""
    dtypes = loader.store.obs_dtypes
    return {c: tuple(dtypes[c].categories) for c in loader.obs if isinstance(dtypes[c], pd.CategoricalDtype)}


def check_numeric(loader: BatchLoader) -> None:
    """Refuse columns of text, which no tensor holds.

    Raises
    ------
    SpecError
        A column is text and not categorical.
    """
    for column in loader.obs:
        if pd.api.types.is_string_dtype(loader.store.obs_dtypes[column]):
            raise SpecError(f"expected labels or numbers for tensors, got obs column {column!r} of text; leave it out")
