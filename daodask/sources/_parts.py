"""Matrices that come in parts, as values with coordinates: from those to rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import scipy.sparse as sp

from daodask.sources.base import Coordinates
from daodask.types import CSR

__all__ = ["PART_VALUES", "number_of_parts", "rows_of_parts"]

#: Values of a part: 48 MB as coordinates and float32, and about four times that while they are sorted.
PART_VALUES: Final = 2**22


def number_of_parts(n_values: int) -> int:
    """Parts of a matrix of so many values; at least one, so that what checks a part checks an empty matrix."""
    return max(1, -(-n_values // PART_VALUES))


def rows_of_parts(parts: Iterable[Coordinates], start: int, stop: int, n_vars: int, dtype: str) -> CSR:
    """Rows ``[start, stop)`` out of all parts of a matrix, taken one at a time.

    Returns
    -------
    csr_matrix
        Values of one place stay side by side: whoever adds them up knows what holds the sum.
    """
    rows = [np.zeros(0, dtype=np.int64)]
    columns = [np.zeros(0, dtype=np.int32)]
    values: list[Any] = [np.zeros(0, dtype=dtype)]
    for part in parts:
        inside = np.flatnonzero((part.rows >= start) & (part.rows < stop))
        rows.append(part.rows[inside].astype(np.int64) - start)
        columns.append(part.columns[inside])
        values.append(part.values[inside])
    row, column, value = np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
    order = np.argsort(row, kind="stable")
    indptr = np.searchsorted(row[order], np.arange(stop - start + 1))
    return sp.csr_matrix((value[order], column[order], indptr), shape=(stop - start, n_vars))
