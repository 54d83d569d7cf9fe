"""Checks and conversions that all sources share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from daodask.errors import SourceError, suggest
from daodask.types import CSR, AnyArray, Label


def check_rows(start: int, stop: int, n_obs: int) -> None:
    """Refuse row bounds that don't lie within the study."""
    if not 0 <= start <= stop <= n_obs:
        raise SourceError(f"expected row bounds within 0 and {n_obs}, in order, got [{start}, {stop})")


def no_such(what: str, name: str, where: object, known: Iterable[str]) -> SourceError:
    """The error that lists what there is instead."""
    names = tuple(known)
    there = ", ".join(repr(n) for n in names) or "none"
    hint = f"; {suggest(name, names)}" if names else ""
    return SourceError(f"expected {what} {name!r} in {where}, which has {there}{hint}")


def plain_numbers(values: AnyArray) -> AnyArray:
    """Numbers that scipy.sparse takes: native byte order, and half precision widened, which is exact."""
    if values.dtype.kind not in "biuf":
        raise SourceError(f"expected a matrix of numbers, got values of type {values.dtype}; convert them before")
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def dense_rows(values: AnyArray) -> CSR:
    """A block of dense rows as CSR."""
    return sp.csr_matrix(plain_numbers(values))


def as_csr(matrix: Any) -> CSR:
    """A sparse matrix or array of any format as CSR of the one class that blocks have."""
    rows: CSR = sp.csr_matrix(matrix)
    rows.data = plain_numbers(rows.data)
    return rows


def two_dimensional(values: AnyArray) -> AnyArray:
    """One value per cell as one column."""
    return values.reshape(-1, 1) if values.ndim == 1 else values


def with_text_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Names of rows and columns as strings, whatever they were; the index keeps its own name."""
    frame.index = frame.index.astype(str)
    frame.columns = frame.columns.astype(str)
    return frame


def plain_facts(values: Mapping[str, Any]) -> dict[str, Label]:
    """Those entries that are one string, number or boolean, as Python values; none of a name that is a path."""
    plain = {str(name): _python_value(value) for name, value in values.items() if name and "/" not in str(name)}
    return {name: value for name, value in plain.items() if isinstance(value, str | int | float | bool)}


def _python_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
