"""A window's cells out of the store: read in store order, handed out in the schedule's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from daodask.batches.schedule import Window
from daodask.blocks import read_matrix, read_obs, stack_rows
from daodask.store import Store
from daodask.types import CSR, AnyArray, Int64Array

__all__ = ["Batch", "Request", "read_window"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some cells.

    Parameters
    ----------
    X
        ``(cells, genes)``: scipy CSR, or a dense array where the loader was asked for that.
    obs
        The obs columns asked for, one row per cell, indexed by :attr:`index`.
    index
        int64 row numbers in the opened store.
    """

    X: CSR | AnyArray
    obs: pd.DataFrame
    index: Int64Array

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class Request:
    """What of each cell is wanted: a matrix, obs columns, sparse or dense."""

    matrix: str
    obs: tuple[str, ...]
    dense: bool


def read_window(store: Store, window: Window, request: Request) -> Iterator[Batch]:
    """Read a window and cut it into batches (computes)."""
    ranked = np.sort(window.positions)
    place = np.searchsorted(ranked, window.positions)
    cells = replace(store, selection=store.selection.take(ranked))
    # The dtype is the whole store's: a window must not differ from the next because of the datasets it touches.
    X = _read_matrix(cells, request.matrix, store.served_dtype(request.matrix).name)[place]
    schema, ids = cells.obs_schema, tuple(part.dataset for part in cells.selection.parts)
    frames = [read_obs(block, schema, ids, request.obs) for block in cells.blocks]
    obs = pd.concat(frames).iloc[place]
    index = obs.index.to_numpy(dtype=np.int64)
    for bounds in window.batches():
        rows = X[bounds]
        yield Batch(rows.toarray() if request.dense else rows, obs.iloc[bounds], index[bounds])


def _read_matrix(cells: Store, name: str, dtype: str) -> CSR:
    parts = [read_matrix(block, name, cells.selection.genes, dtype) for block in cells.blocks]
    return stack_rows(parts, cells.n_vars, dtype)
