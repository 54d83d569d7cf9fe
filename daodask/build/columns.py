"""Obs columns in the dtypes that a store has, and as codes and labels. Pure functions of pandas series."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.errors import StreamlineError
from daodask.types import Label

__all__ = ["categorical", "constant", "factorised", "merged", "of_objects", "python_value", "stored"]


def stored(column: pd.Series[Any], name: str, *, check_name: bool = True) -> pd.Series[Any]:
    """The column in one of the dtypes that a store has, with a plain index."""
    if check_name and (not name or "/" in name):
        raise StreamlineError(f"expected column names without '/', got {name!r}; give it another with obs: and from:")
    column = pd.Series(column.array, copy=True)
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _stored_categorical(column, name)
    if isinstance(dtype, pd.ArrowDtype):
        column = column.convert_dtypes(dtype_backend="numpy_nullable")
        dtype = column.dtype
    if pd.api.types.is_object_dtype(dtype) or isinstance(dtype, pd.StringDtype):
        return of_objects(column.astype(object), name)
    if dtype.kind not in "biuf":
        raise _unstorable(name, str(dtype))
    if dtype.kind == "f":
        # AnnData has no nullable floats, where NaN says the same, and no parquet tool reads halves.
        return column.astype(np.float64 if np.dtype(str(dtype).lower()).itemsize == 8 else np.float32)
    return column if dtype.kind == "b" else _of_standard_width(column)


def _of_standard_width(column: pd.Series[Any]) -> pd.Series[Any]:
    """Integers of the type that their dtype's name stands for: C has two of 64 bits, of which zarr knows one."""
    standard = np.dtype(str(column.dtype).lower())
    if not isinstance(column.array, pd.arrays.IntegerArray):
        return pd.Series(column.to_numpy().astype(standard))
    values = column.to_numpy(dtype=standard, na_value=0).astype(standard)
    return pd.Series(pd.arrays.IntegerArray(values, column.isna().to_numpy()))


def _stored_categorical(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    categories = column.cat.categories
    kind = pd.api.types.infer_dtype(categories, skipna=False)
    if kind in ("string", "empty"):
        return _recategorised(column, pd.Index(list(categories), dtype=object))
    if kind not in ("integer", "floating", "boolean"):
        raise _unstorable(name, f"a category of {kind}")
    if categories.dtype == object:
        return column
    plain = categories.to_numpy()
    return _recategorised(column, pd.Index(plain.astype(np.dtype(plain.dtype.name))))


def _recategorised(column: pd.Series[Any], categories: pd.Index[Any]) -> pd.Series[Any]:
    """The same labels with another dtype of categories."""
    dtype = pd.CategoricalDtype(categories, ordered=column.cat.ordered)
    return pd.Series(pd.Categorical.from_codes(column.cat.codes.tolist(), dtype=dtype))


def of_objects(values: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Python objects as the dtype that they all have in common."""
    missing = values.isna()
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind == "string" or missing.all():
        return _texts(values, missing)
    if kind not in _OBJECT_DTYPES:
        raise _unstorable(name, "values of several types" if kind.startswith("mixed") else kind)
    plain, nullable = _OBJECT_DTYPES[kind]
    if missing.any():
        return values.where(~missing, None).astype(nullable)
    return values.astype(plain)


#: What objects are converted to: where all have a value, and where some have none.
_OBJECT_DTYPES: Final[Mapping[str, tuple[Any, Any]]] = {
    "boolean": (np.bool_, "boolean"),
    "integer": (np.int64, "Int64"),
    "floating": (np.float64, np.float64),
    "mixed-integer-float": (np.float64, np.float64),
}


def _texts(values: pd.Series[Any], missing: pd.Series[bool]) -> pd.Series[Any]:
    if not missing.any():
        return pd.Series([str(v) for v in values], dtype=object)
    codes, labels = pd.factorize(values.where(~missing, None), sort=True)
    return categorical(np.asarray(codes), [str(x) for x in labels])


def _unstorable(name: str, what: str) -> StreamlineError:
    return StreamlineError(
        f"obs column {name!r}: expected numbers, booleans, text or a categorical of them, got {what}; convert it to "
        f"text (dates in ISO form) or to a number, or leave it out of keep:"
    )


# -- codes and labels --------------------------------------------------------------------------------------------------


def constant(value: Label, length: int) -> pd.Series[Any]:
    """The same value for every cell; text as a categorical."""
    if not isinstance(value, str):
        return pd.Series(np.full(length, value))
    return categorical(np.zeros(length, dtype=np.int64), [value])


def categorical(codes: npt.NDArray[Any], labels: Iterable[str]) -> pd.Series[Any]:
    """A categorical of codes, -1 for what is missing, and unique labels."""
    categories = pd.Index(list(labels), dtype=object)
    return pd.Series(pd.Categorical.from_codes(codes.tolist(), dtype=pd.CategoricalDtype(categories)))


def factorised(column: pd.Series[Any]) -> tuple[npt.NDArray[np.int64], list[Label]]:
    """Code per cell, -1 where there is no value, and the labels: of a categorical in its order, else sorted."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return np.asarray(column.cat.codes, dtype=np.int64), [_plain(c) for c in column.cat.categories]
    codes, values = pd.factorize(column, sort=True)
    return np.asarray(codes, dtype=np.int64), [_plain(v) for v in values]


def _plain(value: object) -> Label:
    """A python value; a float that is whole is an int, as ints become floats where some are missing."""
    plain = python_value(value)
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def merged(codes: npt.NDArray[Any], labels: Sequence[str | None], categories: Sequence[str]) -> pd.Series[Any]:
    """A categorical of coded labels, of which several may be the same and ``None`` is missing."""
    position = {c: i for i, c in enumerate(categories)}
    # The last entry is what code -1 finds.
    recoded = np.asarray([*(-1 if x is None else position[x] for x in labels), -1], dtype=np.int64)
    return categorical(recoded[codes], categories)


def python_value(value: object) -> Any:
    """The python value of a numpy scalar."""
    return value.item() if isinstance(value, np.generic) else value
