"""Rows of a block on their way into scratch: kept as small as they will be stored, run by run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from daodask.build.depth import Depth
from daodask.build.matrices import MappedBlock, are_whole
from daodask.build.receipts import MatrixReceipt
from daodask.types import AnyArray

__all__ = ["StagedMatrix"]


class StagedMatrix:
    """One matrix of a block: what its runs of rows add up to.

    Parameters
    ----------
    with_depth
        Whether to look at how deep the cells are sequenced.
    """

    def __init__(self, *, with_depth: bool) -> None:
        self._with_depth = with_depth
        self._runs: list[tuple[AnyArray, AnyArray, AnyArray]] = []
        self._depth: list[Depth] = []
        self._integral = True
        self._largest = self._total = self._kept = 0.0

    def add(self, rows: MappedBlock) -> None:
        """Take the next rows."""
        self._runs.append((rows.data, rows.indices, np.diff(rows.indptr)))
        self._depth.append(Depth.of(rows.data, rows.indptr) if self._with_depth else Depth())
        self._integral = self._integral and (rows.data.dtype.kind == "u" or are_whole(rows.data))
        # NaN, which no comparison tells, stays what it is in numpy's maximum.
        self._largest = float(np.maximum(self._largest, rows.largest))
        self._total += rows.total
        self._kept += rows.kept

    @property
    def _dtype(self) -> np.dtype[Any]:
        """The smallest that holds the values of all runs."""
        return np.result_type(*(data for data, _, _ in self._runs))

    def receipt(self) -> MatrixReceipt:
        """What is said of the whole."""
        nnz = sum(len(data) for data, _, _ in self._runs)
        depth = Depth.sum(self._depth)
        return MatrixReceipt(nnz, self._dtype.name, self._integral, self._largest, self._total, self._kept, depth)

    def arrays(self) -> Iterator[tuple[str, list[memoryview]]]:
        """``data``, ``indices`` and row ``lengths``, raw and little-endian, run by run; made when they are taken."""
        dtype = self._dtype
        yield "data", [data.astype(dtype, copy=False).data for data, _, _ in self._runs]
        yield "indices", [indices.data for _, indices, _ in self._runs]
        yield "lengths", [lengths.astype(np.int64, copy=False).data for _, _, lengths in self._runs]
