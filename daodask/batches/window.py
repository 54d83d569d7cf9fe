"""A window's cells out of the store: read in store order, put down in the schedule's, cut into views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from daodask.batches.columns import read_columns
from daodask.batches.measured import Measured
from daodask.batches.schedule import Window
from daodask.buffers import BufferPool
from daodask.format.spec import SOURCE_DATASET
from daodask.gather import RowGroup, csr_of, gather_csr, gather_dense
from daodask.store import Store
from daodask.types import CSR, AnyArray, BoolArray, Int64Array
from daodask.work_sharing import WorkSharingPool

__all__ = ["Batch", "Request", "make_batches", "read_window"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some cells.

    Parameters
    ----------
    X
        ``(cells, genes)``: scipy CSR, or a dense array where the loader was asked for that. A view of the window: copy
        it before changing it in place, and before keeping a few batches out of many.
    obs
        The obs columns asked for, one row per cell, indexed by :attr:`index`.
    index
        int64 row numbers in the opened store.
    measured
        Which genes were measured, boolean ``(datasets and studies, genes)``, where the loader was asked for that.
    dataset
        Row of :attr:`measured` of each cell.
    """

    X: CSR | AnyArray
    obs: pd.DataFrame
    index: Int64Array
    measured: BoolArray | None = None
    dataset: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __sizeof__(self) -> int:
        # What workers of a cluster go by when they spill; all batches of a window share `measured`.
        arrays = [self.X.data, self.X.indices, self.X.indptr] if isinstance(self.X, CSR) else [self.X]
        return (
            object.__sizeof__(self) + sum(a.nbytes for a in [*arrays, self.index]) + int(self.obs.memory_usage().sum())
        )

    @property
    def measured_per_cell(self) -> BoolArray:
        """Which genes were measured, boolean ``(cells, genes)``; made when asked for.

        Raises
        ------
        ValueError
            The loader was not asked for ``measured=True``.
        """
        if self.measured is None or self.dataset is None:
            raise ValueError(
                "expected a batch of a loader with measured=True; this one does not know what was measured"
            )
        mask: BoolArray = self.measured[self.dataset]
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What of each cell is wanted.

    ``measured`` says which genes were measured of which cell, and ``fn`` is applied to each batch where it is made.
    """

    matrix: str = "X"
    obs: tuple[str, ...] = ()
    dense: bool = False
    dtype: str = "float32"
    measured: Measured | None = None
    fn: Callable[[Batch], Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """A window in memory."""

    X: Any
    obs: pd.DataFrame
    index: Int64Array
    dataset: Int64Array


def make_batches(
    store: Store,
    window: Window,
    request: Request,
    workers: WorkSharingPool | None = None,
    pool: BufferPool | None = None,
) -> list[Any]:
    """Read a window and cut it into batches, with the request's function applied to each (computes)."""
    cells = read_window(store, window, request, workers, pool)
    batches = (_cut(cells, bounds, request) for bounds in window.batches())
    return [batch if request.fn is None else request.fn(batch) for batch in batches]


def read_window(
    store: Store,
    window: Window,
    request: Request,
    workers: WorkSharingPool | None = None,
    pool: BufferPool | None = None,
) -> _Cells:
    """Read a window's cells in the order in which it hands them out (computes)."""
    # Not stable, which takes five times as long: a cell that comes twice is the same cell.
    order = np.argsort(window.positions)
    rows = [(number, order[where], local) for number, where, local in store.selection.spread(window.positions[order])]
    index, dataset = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    for number, place, local in rows:
        index[place] = local + store.selection.parts[number].offset
        dataset[place] = number
    groups = [RowGroup(store.location / store.dataset_infos[n].path, local, place) for n, place, local in rows]
    gather = gather_dense if request.dense else gather_csr
    selection = store.selection
    X = gather(
        groups,
        request.matrix,
        selection.n_stored_vars,
        genes=selection.genes,
        dtype=request.dtype,
        workers=workers,
        pool=pool,
    )
    obs = read_columns(store, rows, request.obs, index)
    if request.measured is not None and request.measured.by_source is not None:
        source = read_columns(store, rows, (SOURCE_DATASET,), index)[SOURCE_DATASET].cat.codes.to_numpy()
        dataset = request.measured.rows(dataset, source)
    return _Cells(X, obs, index, dataset)


def _cut(cells: _Cells, bounds: slice, request: Request) -> Batch:
    X = cells.X[bounds] if request.dense else _rows(cells.X, bounds)
    measured = None if request.measured is None else request.measured.masks
    dataset = None if measured is None else cells.dataset[bounds]
    # A frame of its own, so that a column may be added to it, on the window's memory.
    return Batch(X, cells.obs.iloc[bounds].copy(deep=False), cells.index[bounds], measured, dataset)


def _rows(matrix: CSR, bounds: slice) -> CSR:
    """Some rows as a view: scipy's own slicing copies."""
    low, high = int(matrix.indptr[bounds.start]), int(matrix.indptr[bounds.stop])
    indptr = matrix.indptr[bounds.start : bounds.stop + 1] - low
    shape = (bounds.stop - bounds.start, matrix.shape[1])
    return csr_of(matrix.data[low:high], matrix.indices[low:high], indptr, shape)
