"""Conditions fitted to a store: every name is known, and every value is one that its column could hold. Pure.

After this, what a snapshot, the statistics of a file and the cells themselves say of a condition is the same: values
are rounded to the column's dtype, as pandas would round them, and an order of labels is spelled out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from daodask.errors import SelectionError, UnknownNameError, suggest
from daodask.format.manifest import ObsColumn
from daodask.format.spec import OBS_NAMES
from daodask.predicates import All, Compare, IsIn, Not, Predicate, Some
from daodask.types import Label

__all__ = ["Binding", "known_columns"]

Schema: TypeAlias = Mapping[str, ObsColumn]

#: Met by no cell.
_NEVER: Final = Some(())


def known_columns(schema: Sequence[ObsColumn], dataset_ids: Sequence[str]) -> Schema:
    """The obs columns of a store by name: those of its schema, and the two that each store has."""
    own = ObsColumn("dataset", "category", tuple(dataset_ids)), ObsColumn(OBS_NAMES, "string")
    return {column.name: column for column in (*own, *schema)}


@dataclass(frozen=True)
class Binding:
    """What conditions are fitted to.

    Parameters
    ----------
    columns
        Of the store, by name.
    strict
        Refuse columns and labels that the store lacks; otherwise no cell has a value in such a column, or such a label.
    """

    columns: Schema
    strict: bool = True

    def bind(self, condition: Predicate) -> Predicate:
        """The condition on the columns of the store.

        Raises
        ------
        UnknownNameError
            The store has no such column, or no such label in it; the message suggests the nearest.
        SelectionError
            A text stands for a number, a number for a text, or labels have no order.
        """
        match condition:
            case Not(inner):
                return Not(self.bind(inner))
            case All(parts):
                return All(tuple(self.bind(part) for part in parts))
            case Some(parts):
                return Some(tuple(self.bind(part) for part in parts))
            case IsIn():
                column = self.require(condition.column)
                return _NEVER if column is None else self._membership(condition, column)
            case Compare():
                column = self.require(condition.column)
                return _NEVER if column is None else self._comparison(condition, column)
        raise TypeError(f"expected a condition of daodask.predicates, got {condition!r}")

    def require(self, name: str) -> ObsColumn | None:
        """The column of that name; ``None`` where there is none and that is no error."""
        column = self.columns.get(name)
        if column is None and self.strict:
            raise UnknownNameError(f"obs has no column {name!r}; {suggest(name, self.columns)}")
        return column

    def _membership(self, condition: IsIn, column: ObsColumn) -> Predicate:
        values = condition.values
        if column.dtype == "category":
            if self.strict:
                _require_labels(condition, column)
        elif self.strict and (odd := [v for v in values if isinstance(v, str) != (column.dtype == "string")]):
            raise SelectionError(
                f"{column.name} = {odd[0]!r}: column {column.name!r} is {column.dtype}; expected values of that kind"
            )
        if column.dtype not in ("category", "string"):
            values = tuple(held for value in values if (held := _held(value, column.dtype)) is not None)
        return IsIn(column.name, values)

    def _comparison(self, condition: Compare, column: ObsColumn) -> Predicate:
        value = condition.value
        if column.dtype == "category" and column.ordered:
            return _in_order(condition, column)
        if column.dtype == "category" or isinstance(value, str) != (column.dtype == "string"):
            raise SelectionError(
                f"{column.name} {condition.relation} {value!r}: column {column.name!r} is {column.dtype}, which has no "
                f"such order; compare numbers with numbers, and labels with == or in"
            )
        if isinstance(value, str):
            return condition
        return _rounded(condition, value, column.dtype)


def _require_labels(condition: IsIn, column: ObsColumn) -> None:
    known = set(column.categories)
    if not condition.strict:
        if not known & set(condition.values):
            raise UnknownNameError(
                f"no cell of the store has one of these {len(condition.values)} {column.name}; "
                f"{suggest('', column.categories)}"
            )
        return
    for value in condition.values:
        if value not in known:
            raise UnknownNameError(
                f"no cell of the store has {column.name} = {value!r}; {suggest(value, column.categories)}"
            )


def _in_order(condition: Compare, column: ObsColumn) -> IsIn:
    """The labels on one side of another."""
    rank = {label: n for n, label in enumerate(column.categories)}
    if condition.value not in rank:
        raise UnknownNameError(
            f"no cell of the store has {column.name} = {condition.value!r}; "
            f"{suggest(condition.value, column.categories)}"
        )
    limit = Compare(column.name, condition.relation, rank[condition.value])
    return IsIn(column.name, tuple(label for label, n in rank.items() if limit.holds(n)))


def _held(value: Label, dtype: str) -> Label | None:
    """The value as one of the column's dtype; ``None`` where the column can't hold it."""
    if isinstance(value, str):
        return None
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return _as_float(value, kind)
    if isinstance(value, float) and not value.is_integer():
        return None
    whole = int(value)
    if kind.kind == "b":
        return bool(whole) if whole in (0, 1) else None
    limits = np.iinfo(kind)
    return whole if limits.min <= whole <= limits.max else None


def _as_float(value: float, kind: np.dtype[Any]) -> float | None:
    try:
        with np.errstate(over="ignore"):
            rounded = float(kind.type(value))
    except OverflowError:
        return None
    return None if math.isinf(rounded) and not math.isinf(value) else rounded


def _rounded(condition: Compare, value: float, dtype: str) -> Predicate:
    """The comparison with a value of the column's dtype; for whole numbers with a whole one, which is exact."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        limit = _as_float(value, kind)
        beyond = math.inf if value > 0 else -math.inf
        return Compare(condition.column, condition.relation, beyond if limit is None else limit)
    if value in (math.inf, -math.inf):
        return condition
    # Above 2.5 is above 2, at least 2.5 is at least 3; below 2.5 is below 3, at most 2.5 is at most 2.
    whole = math.floor(value) if condition.relation in (">", "<=") else math.ceil(value)
    return Compare(condition.column, condition.relation, whole)
