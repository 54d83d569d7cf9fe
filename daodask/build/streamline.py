"""A study's cells onto the store's schema: pure functions of frames."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.build.columns import constant, factorised, merged, of_objects, python_value, stored
from daodask.build.conform import conform
from daodask.errors import StreamlineError, suggest
from daodask.format.manifest import ColumnSummary
from daodask.format.spec import RESERVED_OBS_COLUMNS
from daodask.types import AnyArray, Label

if TYPE_CHECKING:
    from daodask.build.schema import SchemaColumn
    from daodask.build.spec import ObsRule

__all__ = ["streamline_obs", "summarise"]


# -- obs -----------------------------------------------------------------------------------------------------------


def streamline_obs(
    obs: pd.DataFrame,
    rules: Sequence[ObsRule],
    schema: Sequence[SchemaColumn],
    keep: Sequence[str],
    dataset_id: str,
    measured: Collection[str] = (),
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
    measured
        Columns that are measured later, which are not kept.

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
            columns.update(_schema_column(obs, column, by_name))
        for rule in rules:
            if rule.name not in columns:
                columns[rule.name] = _by_rule(obs, rule)
        for name in _kept(obs, rules, keep):
            if name not in columns and name not in measured:
                columns[name] = stored(obs[name], name)
    except StreamlineError as error:
        raise StreamlineError(f"study {dataset_id!r}: {error}") from error
    index = pd.Index([str(n) for n in obs.index.to_numpy(dtype=object)], dtype=object)
    aligned = {name: column.set_axis(index) for name, column in columns.items()}
    return pd.DataFrame(aligned, index=index, columns=pd.Index(list(columns), dtype=object))


def _schema_column(obs: pd.DataFrame, column: SchemaColumn, rules: Mapping[str, ObsRule]) -> dict[str, pd.Series[Any]]:
    """The column, and that of its terms' ids, as the schema wants them; none where the study need not have it."""
    made = _given(obs, column.name, rules)
    vocabulary, ids = column.vocabulary, None
    if vocabulary is not None and (column.name not in rules or column.term_ids in rules):
        ids = _given(obs, column.term_ids, rules)
        if ids is None and vocabulary.term_ids == "required":
            raise StreamlineError(
                f"obs.{column.term_ids}: expected this required column, the source has none of the name; say where it "
                f"is (from: <source column>); {suggest(column.term_ids, obs.columns)}"
            )
    if made is None and ids is None and column.required:
        raise StreamlineError(
            f"obs.{column.name}: expected this required column, the source has none of the name; say where it is "
            f"(from: <source column>) or what it is (value: …); {suggest(column.name, obs.columns)}"
        )
    return conform(column, made, ids, len(obs))


def _given(obs: pd.DataFrame, name: str, rules: Mapping[str, ObsRule]) -> pd.Series[Any] | None:
    """What a study has in a column, by its rule or under the very name."""
    if name in rules:
        return _by_rule(obs, rules[name])
    return stored(obs[name], name) if name in obs else None


def _by_rule(obs: pd.DataFrame, rule: ObsRule) -> pd.Series[Any]:
    if rule.value is not None:
        return constant(rule.value, len(obs))
    for source in rule.columns:
        if source not in obs:
            hint = suggest(source, obs.columns)
            raise StreamlineError(f"obs.{rule.name}: the source has no column {source!r}; {hint}")
    columns = [stored(obs[source], source, check_name=False) for source in rule.columns]
    made = columns[0] if len(columns) == 1 else _joined(columns, rule.join)
    return _mapped(made, rule) if rule.map else made


def _joined(columns: Sequence[pd.Series[Any]], join: str) -> pd.Series[Any]:
    """One label of several columns' per cell; missing where one of them is."""
    codes, labels = factorised(columns[0])
    for column in columns[1:]:
        more_codes, more = factorised(column)
        missing = (codes < 0) | (more_codes < 0)
        pairs = codes * len(more) + more_codes
        present = np.unique(pairs[~missing])
        labels = [f"{labels[p // len(more)]}{join}{more[p % len(more)]}" for p in present.tolist()]
        codes = np.where(missing, -1, np.searchsorted(present, pairs))
    texts = [str(x) for x in labels]
    return merged(codes, texts, sorted(set(texts)))


def _mapped(column: pd.Series[Any], rule: ObsRule) -> pd.Series[Any]:
    """Labels by the rule's map; the others pass through. All numbers, or all booleans, stay what they are."""
    codes, labels = factorised(column)
    for key in rule.map:
        if key not in labels:
            hint = suggest(key, labels)
            raise StreamlineError(f"obs.{rule.name}.map: no cell of {'+'.join(rule.columns)!r} has {key!r}; {hint}")
    mapped = [rule.map.get(x, x) for x in labels]
    kinds = {type(x) for x in mapped if x is not None}
    if kinds and (kinds <= {int, float} or kinds == {bool}):
        return _numbers(codes, mapped)
    texts = [None if x is None else str(x) for x in mapped]
    return merged(codes, texts, list(dict.fromkeys(x for x in texts if x is not None)))


def _numbers(codes: npt.NDArray[np.int64], labels: Sequence[Label | None]) -> pd.Series[Any]:
    """Numbers or booleans per cell, in a nullable dtype where one is missing and not a float."""
    values = pd.Series([*labels, None], dtype=object).take(codes).reset_index(drop=True)
    return of_objects(values, "")


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


# -- summaries -----------------------------------------------------------------------------------------------------


def summarise(obs: pd.DataFrame) -> tuple[ColumnSummary, ...]:
    """What a snapshot has to know of each column of a streamlined obs."""
    return tuple(_summary(str(name), obs[name]) for name in obs.columns)


def _summary(name: str, column: pd.Series[Any]) -> ColumnSummary:
    n_missing = int(column.isna().sum())
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = tuple(python_value(c) for c in column.cat.categories)
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
