"""Bounded transposition: a matrix that comes in parts of any order, read back by rows through an exchange."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse as sp

from daodask.build.exchange import Exchange
from daodask.build.receipts import ScratchFile
from daodask.build.runs import Runs
from daodask.sources.base import Coordinates, Parts
from daodask.storage import StoreLocation
from daodask.types import CSR

__all__ = ["Transposition"]

#: Values of which it is worked out at a time where they go.
_SLICE: Final = 2**18


@dataclass(frozen=True, slots=True)
class Transposition:
    """A matrix between its parts and its rows; a small value that travels in tasks.

    Parameters
    ----------
    scratch, path
        Of its exchange.
    parts
        What the source says of its parts.
    runs
        How the study's rows are cut.
    n_vars
        Columns of the source's matrix.
    """

    scratch: StoreLocation
    path: str
    parts: Parts
    runs: Runs
    n_vars: int

    @property
    def exchange(self) -> Exchange:
        """What it goes through: a target is a run of rows."""
        return Exchange(self.scratch, self.path, self.parts.number, self.runs.number)

    @property
    def _record(self) -> np.dtype[Any]:
        """A value with its row within the run and its column, without a gap."""
        row = np.min_scalar_type(max(1, self.runs.run_rows - 1))
        column = np.min_scalar_type(max(1, self.n_vars - 1))
        return np.dtype([("row", row), ("column", column), ("value", self.parts.dtype)])

    def write(self, part: int, values: Coordinates) -> ScratchFile:
        """Sort a part by runs of rows, and write it."""
        record = self._record
        run = np.empty(len(values.rows), dtype=np.min_scalar_type(self.runs.number))
        row = np.empty(len(values.rows), dtype=record["row"])
        for start in range(0, len(run), _SLICE):
            some = slice(start, start + _SLICE)
            run[some], row[some] = self.runs.locate(values.rows[some])
        # Numbers of 16 bits are sorted in as many steps as there are of them.
        order = np.argsort(run, kind="stable")
        records = np.empty(len(order), dtype=record)
        for name, column in (("row", row), ("column", values.columns), ("value", values.values)):
            records[name] = column[order]
        counts = np.bincount(run, minlength=self.runs.number)
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64) * records.itemsize
        return self.exchange.write(part, bounds, [records.view(np.uint8).data])

    def read(self, block: int) -> Iterator[CSR]:
        """Rows of each run of a block, columns in the order of the parts (computes each)."""
        runs = self.runs.of_block(block)
        for run, data in zip(runs, self.exchange.read(runs.start, runs.stop), strict=True):
            first, last = self.runs.bounds(run)
            yield _rows(data.view(self._record), last - first, self.n_vars)


def _rows(records: Any, n_rows: int, n_vars: int) -> CSR:
    """CSR of records; values of one place stay side by side, as it is not known here what holds their sum."""
    order = np.argsort(records["row"], kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(records["row"], minlength=n_rows))])
    columns = records["column"][order].astype(np.int32)
    return sp.csr_matrix((records["value"][order], columns, indptr), shape=(n_rows, n_vars))
