"""A study's cells and values onto the store's schema: pure functions of frames and arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from daodask.errors import StreamlineError, suggest
from daodask.format.manifest import ColumnSummary
from daodask.format.spec import RESERVED_OBS_COLUMNS, exact_integer_dtype
from daodask.types import CSR, AnyArray, Label

if TYPE_CHECKING:
    from daodask.build.spec import ObsRule, SchemaColumn

__all__ = ["MappedBlock", "map_block", "streamline_obs", "summarise"]


# -- matrices ------------------------------------------------------------------------------------------------------

#: Every whole number up to here is a float64.
_LARGEST_COUNT: Final = 2**53
_NOT_COUNTS: Final = "declare X: {kind: normalised}, or read the counts from another layer: raw | layers/<name>"


@dataclass(frozen=True, eq=False)
class MappedBlock:
    """A block of a study on the columns of the feature space.

    Parameters
    ----------
    matrix
        Canonical CSR: sorted indices, no duplicates, no explicit zeros. Counts have the smallest unsigned dtype that
        holds this block's, other values float32 where that is exact, else float64.
    total, kept
        Sum of all values of the source's block, and of those that have a place in the feature space.
    largest
        Largest absolute value of ``matrix``.
    n_dropped
        Non-zero values of the source's block that have no place.
    """

    matrix: CSR
    total: float
    kept: float
    largest: float
    n_dropped: int


def map_block(block: CSR, target: npt.NDArray[np.int32], n_vars: int, kind: str) -> MappedBlock:
    """Map a block of a study onto the columns of the feature space, and check its values.

    Parameters
    ----------
    block
        Rows of the source's matrix, canonical or not.
    target
        Column of the feature space per source column, negative where it is dropped. Values on one target are summed.
    n_vars
        Columns of the feature space.
    kind
        ``"counts"`` (integral, non-negative, finite), ``"normalised"`` (finite) or ``"other"``.

    Raises
    ------
    StreamlineError
        A value is not of the kind, or can't be held exactly.
    """
    if block.shape[1] != len(target):
        raise StreamlineError(f"expected a matrix of {len(target)} genes, as there are names, got {block.shape[1]}")
    values = np.asarray(block.data[: block.indptr[-1]])
    if values.dtype.kind not in "fiub":
        raise StreamlineError(f"expected a matrix of numbers, got {values.dtype}; convert it before building")
    checked = _checked_counts(block, values) if kind == "counts" else _checked_values(block, values, kind)
    columns = target[block.indices[: len(values)]]
    present = values != 0
    placed = np.flatnonzero(present & (columns >= 0))
    indptr = np.searchsorted(placed, block.indptr)
    matrix = sp.csr_matrix((checked[placed], columns[placed], indptr), shape=(block.shape[0], n_vars))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.data = _narrowed(matrix.data)
    return MappedBlock(
        matrix=matrix,
        total=_sum(values),
        kept=_sum(matrix.data),
        largest=float(np.abs(matrix.data).max(initial=0)),
        n_dropped=int(np.count_nonzero(present)) - len(placed),
    )


def _sum(values: AnyArray) -> float:
    with np.errstate(invalid="ignore"):  # infinities of both signs add up to NaN, which says so by itself
        return float(values.sum(dtype=np.float64))


def _checked_counts(block: CSR, values: AnyArray) -> AnyArray:
    """The values as unsigned integers, wide enough for any sum of those of one row."""
    if not len(values):
        return values.astype(np.uint16)
    low, high = values.min().item(), values.max().item()
    # Written so that NaN, which compares false, is refused.
    if not (low >= 0 and high <= _LARGEST_COUNT):
        raise _refused(block, values, "counts")
    longest_row = int(np.diff(block.indptr).max())
    counts = values.astype(exact_integer_dtype(min(int(high) * longest_row, 2**64 - 1)))
    if values.dtype.kind == "f" and not np.array_equal(counts, values):
        raise _refused(block, values, "counts")
    return counts


def _checked_values(block: CSR, values: AnyArray, kind: str) -> AnyArray:
    """The values as float64, in which they are summed."""
    wide = values.astype(np.float64)
    if kind == "normalised" and not np.isfinite(wide).all():
        raise _refused(block, values, kind)
    if values.dtype.kind in "iu" and np.abs(wide).max(initial=0) > _LARGEST_COUNT:
        raise StreamlineError(f"expected values that float64 holds exactly, got whole numbers beyond {_LARGEST_COUNT}")
    return wide


def _refused(block: CSR, values: AnyArray, kind: str) -> StreamlineError:
    """The error that shows the first value that is not of the kind."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    integral = finite & (wide >= 0) & (wide == np.floor(np.where(finite, wide, 0)))
    good = integral & (wide <= _LARGEST_COUNT) if kind == "counts" else finite
    first = int(np.argmin(good))
    row = int(np.searchsorted(block.indptr, first, side="right")) - 1
    where = f"{values[first]} in row {row}, column {block.indices[first]} of a block"
    if kind != "counts":
        return StreamlineError(f"expected finite values, got {where}; replace it, or declare X: {{kind: other}}")
    if integral[first]:
        return StreamlineError(f"expected counts up to {_LARGEST_COUNT}, got {where}")
    return StreamlineError(f"expected counts (integral, non-negative, finite), got {where}; {_NOT_COUNTS}")


def _narrowed(data: AnyArray) -> AnyArray:
    """The same values in the smallest dtype that holds them exactly."""
    if data.dtype.kind != "f":
        largest = int(data.max(initial=0))
        if largest > _LARGEST_COUNT:
            raise StreamlineError(f"expected counts up to {_LARGEST_COUNT}, got {largest} as the sum of several genes")
        return data.astype(exact_integer_dtype(largest))
    with np.errstate(over="ignore"):
        single = data.astype(np.float32)
    return single if np.array_equal(single, data, equal_nan=True) else data


# -- obs -----------------------------------------------------------------------------------------------------------


def streamline_obs(
    obs: pd.DataFrame, rules: Sequence[ObsRule], schema: Sequence[SchemaColumn], keep: Sequence[str], dataset_id: str
) -> pd.DataFrame:
    """Make a study's obs into the store's: the columns of the schema, those of other rules, those that are kept.

    A column of the schema without a rule is taken from the source's column of that name, where there is one.

    Parameters
    ----------
    obs
        The source's cell metadata; left as it is.
    rules
        How the study fills columns.
    schema
        The store's columns.
    keep
        Shell patterns of source columns to keep as they are. A rule's column of the same name takes precedence.
    dataset_id
        What errors call the study.

    Returns
    -------
    DataFrame
        Indexed by cell names as ``object``. Numbers and booleans keep their dtype, whole ones and booleans nullable or
        not; categoricals their categories and order; text is ``object``, or categorical where some is missing.

    Raises
    ------
    StreamlineError
        A column or a mapped label is not there, a required one is incomplete, or a column can't be stored.
    """
    by_name = {r.name: r for r in rules}
    columns: dict[str, pd.Series[Any]] = {}
    try:
        for column in schema:
            made = _schema_column(obs, column, by_name.get(column.name))
            if made is not None:
                columns[column.name] = made
        for rule in rules:
            if rule.name not in columns:
                columns[rule.name] = _by_rule(obs, rule)
        for name in _kept(obs, rules, keep):
            if name not in columns:
                columns[name] = _stored(obs[name], name)
    except StreamlineError as error:
        raise StreamlineError(f"study {dataset_id!r}: {error}") from error
    index = pd.Index([str(n) for n in obs.index], dtype=object)
    aligned = {name: column.set_axis(index) for name, column in columns.items()}
    return pd.DataFrame(aligned, index=index, columns=pd.Index(list(columns), dtype=object))


def _schema_column(obs: pd.DataFrame, column: SchemaColumn, rule: ObsRule | None) -> pd.Series[Any] | None:
    """The column as the schema wants it, ``None`` where the study has none and need not have it."""
    if rule is not None:
        made = _by_rule(obs, rule)
    elif column.name in obs:
        made = _stored(obs[column.name], column.name)
    elif column.required:
        raise StreamlineError(
            f"obs.{column.name}: expected this required column, the source has none of the name; say where it is "
            f"(from: <source column>) or what it is (value: …); {suggest(column.name, obs.columns)}"
        )
    else:
        return None if column.missing is None else _constant(column.missing, len(obs))
    if column.missing is not None:
        return _filled(made, column.name, column.missing)
    if column.required and made.isna().any():
        raise StreamlineError(
            f"obs.{column.name}: expected a value for every cell, as it is required, got {int(made.isna().sum())} "
            f"cells without; say what stands for them (missing: … in the schema)"
        )
    return made


def _filled(column: pd.Series[Any], name: str, value: Label) -> pd.Series[Any]:
    """The column with ``value`` in place of what is missing."""
    if not column.isna().any():
        return column
    if not isinstance(column.dtype, pd.CategoricalDtype):
        kinds = (bool,) if pd.api.types.is_bool_dtype(column.dtype) else (int, float)
        if isinstance(value, bool) != (kinds == (bool,)) or not isinstance(value, kinds):
            raise StreamlineError(
                f"obs.{name}: expected missing: to be of the column's kind ({column.dtype}), got {value!r}; map the "
                f"column to text, or choose another value"
            )
        if isinstance(value, float) and not value.is_integer() and pd.api.types.is_integer_dtype(column.dtype):
            column = column.astype(np.float64)
        return column.fillna(value)
    kind = _label_kind(column.cat.categories)
    if kind and not isinstance(value, kind):
        raise StreamlineError(f"obs.{name}: expected missing: to be {kind.__name__} as the other labels, got {value!r}")
    if value not in column.cat.categories:
        categories = pd.Index([*column.cat.categories, value], dtype=object if isinstance(value, str) else None)
        column = column.cat.set_categories(categories)
    return column.fillna(value)


def _label_kind(categories: pd.Index[Any]) -> type | None:
    """Python type of the labels, ``None`` where there is none to tell it by."""
    return type(_python(categories[0])) if len(categories) else None


def _by_rule(obs: pd.DataFrame, rule: ObsRule) -> pd.Series[Any]:
    if rule.value is not None:
        return _constant(rule.value, len(obs))
    for source in rule.columns:
        if source not in obs:
            hint = suggest(source, obs.columns)
            raise StreamlineError(f"obs.{rule.name}: the source has no column {source!r}; {hint}")
    columns = [_stored(obs[source], source, check_name=False) for source in rule.columns]
    made = columns[0] if len(columns) == 1 else _joined(columns, rule.join)
    return _mapped(made, rule) if rule.map else made


def _constant(value: Label, length: int) -> pd.Series[Any]:
    if not isinstance(value, str):
        return pd.Series(np.full(length, value))
    return _categorical(np.zeros(length, dtype=np.int64), [value])


def _categorical(codes: npt.NDArray[Any], labels: Iterable[str]) -> pd.Series[Any]:
    categories = pd.Index(list(labels), dtype=object)
    return pd.Series(pd.Categorical.from_codes(codes.tolist(), dtype=pd.CategoricalDtype(categories)))


def _joined(columns: Sequence[pd.Series[Any]], join: str) -> pd.Series[Any]:
    """One label of several columns' per cell; missing where one of them is."""
    codes, labels = _factorised(columns[0])
    for column in columns[1:]:
        more_codes, more = _factorised(column)
        missing = (codes < 0) | (more_codes < 0)
        pairs = codes * len(more) + more_codes
        present = np.unique(pairs[~missing])
        labels = [f"{labels[p // len(more)]}{join}{more[p % len(more)]}" for p in present.tolist()]
        codes = np.where(missing, -1, np.searchsorted(present, pairs))
    texts = [str(x) for x in labels]
    return _merged(codes, texts, sorted(set(texts)))


def _factorised(column: pd.Series[Any]) -> tuple[npt.NDArray[np.int64], list[Label]]:
    """Code per cell, -1 where there is no value, and the labels: of a categorical in its order, else sorted."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return np.asarray(column.cat.codes, dtype=np.int64), [_plain(c) for c in column.cat.categories]
    codes, values = pd.factorize(column, sort=True)
    return np.asarray(codes, dtype=np.int64), [_plain(v) for v in values]


def _plain(value: object) -> Label:
    """A python value; a float that is whole is an int, as ints become floats where some are missing."""
    plain = _python(value)
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _merged(codes: npt.NDArray[Any], labels: Sequence[str | None], categories: Sequence[str]) -> pd.Series[Any]:
    """A categorical of coded labels, of which several may be the same and ``None`` is missing."""
    position = {c: i for i, c in enumerate(categories)}
    # The last entry is what code -1 finds.
    recoded = np.asarray([*(-1 if x is None else position[x] for x in labels), -1], dtype=np.int64)
    return _categorical(recoded[codes], categories)


def _mapped(column: pd.Series[Any], rule: ObsRule) -> pd.Series[Any]:
    """Labels by the rule's map; the others pass through. All numbers, or all booleans, stay what they are."""
    codes, labels = _factorised(column)
    for key in rule.map:
        if key not in labels:
            hint = suggest(key, labels)
            raise StreamlineError(f"obs.{rule.name}.map: no cell of {'+'.join(rule.columns)!r} has {key!r}; {hint}")
    mapped = [rule.map.get(x, x) for x in labels]
    kinds = {type(x) for x in mapped if x is not None}
    if kinds and (kinds <= {int, float} or kinds == {bool}):
        return _numbers(codes, mapped)
    texts = [None if x is None else str(x) for x in mapped]
    return _merged(codes, texts, list(dict.fromkeys(x for x in texts if x is not None)))


def _numbers(codes: npt.NDArray[np.int64], labels: Sequence[Label | None]) -> pd.Series[Any]:
    """Numbers or booleans per cell, in a nullable dtype where one is missing and not a float."""
    values = pd.Series([*labels, None], dtype=object).take(codes).reset_index(drop=True)
    return _of_objects(values, "")


def _kept(obs: pd.DataFrame, rules: Sequence[ObsRule], keep: Sequence[str]) -> list[str]:
    """Source columns that match a pattern; one of a reserved name only passes where a rule gives it another."""
    renamed = {source for rule in rules for source in rule.columns}
    names = [str(n) for n in obs.columns if any(fnmatchcase(str(n), pattern) for pattern in keep)]
    for name in names:
        if name in RESERVED_OBS_COLUMNS and name not in renamed:
            raise StreamlineError(
                f"keep: the source has a column {name!r}, a name that every store uses itself; give it another one, "
                f"as in obs: {{source_{name}: {{from: {name}}}}}"
            )
    return [n for n in names if n not in RESERVED_OBS_COLUMNS]


# -- dtypes --------------------------------------------------------------------------------------------------------


def _stored(column: pd.Series[Any], name: str, *, check_name: bool = True) -> pd.Series[Any]:
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
        return _of_objects(column.astype(object), name)
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


def _of_objects(values: pd.Series[Any], name: str) -> pd.Series[Any]:
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
    return _categorical(np.asarray(codes), [str(x) for x in labels])


def _unstorable(name: str, what: str) -> StreamlineError:
    return StreamlineError(
        f"obs column {name!r}: expected numbers, booleans, text or a categorical of them, got {what}; convert it to "
        f"text (dates in ISO form) or to a number, or leave it out of keep:"
    )


# -- summaries -----------------------------------------------------------------------------------------------------


def summarise(obs: pd.DataFrame) -> tuple[ColumnSummary, ...]:
    """What a snapshot has to know of each column of a streamlined obs."""
    return tuple(_summary(str(name), obs[name]) for name in obs.columns)


def _summary(name: str, column: pd.Series[Any]) -> ColumnSummary:
    n_missing = int(column.isna().sum())
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = tuple(_python(c) for c in column.cat.categories)
        codes = np.asarray(column.cat.codes)
        counts = tuple(np.bincount(codes[codes >= 0], minlength=len(categories)).tolist())
        return ColumnSummary(name, "category", n_missing, categories, counts, bool(column.cat.ordered))
    if pd.api.types.is_bool_dtype(column.dtype):
        return ColumnSummary(name, "bool", n_missing)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        return ColumnSummary(name, "string", n_missing)
    dtype = str(column.dtype).lower()
    return ColumnSummary(name, dtype, n_missing, low=_extreme(column, np.min), high=_extreme(column, np.max))


def _extreme(column: pd.Series[Any], of: Callable[[AnyArray], Any]) -> int | float | None:
    values = column.dropna().to_numpy(dtype=str(column.dtype).lower())
    if not len(values):
        return None
    value = of(values).item()
    return value if isinstance(value, int) or np.isfinite(value) else None


def _python(value: object) -> Any:
    """The python value of a numpy scalar."""
    return value.item() if isinstance(value, np.generic) else value
