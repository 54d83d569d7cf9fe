"""Conditions on cell metadata: parsed, pruned against what is known of some cells, evaluated on a frame. Pure.

Logic has two values, as in pandas: a missing value equals nothing, lies in no list and in no range, and differs from
everything. So ``exclude=`` and ``!=`` keep cells whose value is unknown.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import pandas as pd

from daodask.errors import SelectionError
from daodask.format.manifest import ColumnSummary
from daodask.types import BoolArray, Label, LabelSet

__all__ = [
    "All",
    "Between",
    "Compare",
    "Extent",
    "IsIn",
    "Not",
    "Predicate",
    "Some",
    "is_in",
    "on_column",
    "parse_query",
]


@dataclass(frozen=True, slots=True)
class Extent:
    """What is known of a column's values in some cells, such as those of a dataset or of a row group.

    Parameters
    ----------
    labels
        All values that there are; ``None`` where that is not known.
    low, high
        No value is smaller or larger; ``None`` where that is not known.
    missing
        Whether a cell may be without a value.
    """

    labels: frozenset[Label] | None = None
    low: Label | None = None
    high: Label | None = None
    missing: bool = True

    @classmethod
    def of(cls, summary: ColumnSummary) -> Extent:
        """What a snapshot knows of a column of a dataset."""
        missing = summary.n_missing > 0
        if summary.dtype == "category":
            present = (label for label, count in zip(summary.categories, summary.counts, strict=True) if count)
            return cls(frozenset(present), missing=missing)
        return cls(None, summary.low, summary.high, missing)


#: Of columns by name; a column that is not there has no value in any of the cells.
Extents: TypeAlias = Mapping[str, Extent]


class Predicate(Protocol):
    """A condition on cells."""

    @property
    def columns(self) -> frozenset[str]:
        """Obs columns that it needs."""
        ...

    def prune(self, extents: Extents) -> bool | Predicate:
        """Whether all (``True``) or none (``False``) of the cells meet it, or else the part of it that needs a look."""
        ...

    def evaluate(self, obs: pd.DataFrame) -> BoolArray:
        """Which rows meet it."""
        ...


@dataclass(frozen=True, slots=True)
class IsIn:
    """The column's value is one of ``values``; ``strict`` where the store should have each of them."""

    column: str
    values: tuple[Label, ...]
    strict: bool = True

    @property
    def columns(self) -> frozenset[str]:
        """Obs columns that it needs."""
        return frozenset({self.column})

    def prune(self, extents: Extents) -> bool | Predicate:
        """Decided by the labels that there are, or by the smallest and largest value."""
        extent = extents.get(self.column)
        if extent is None:
            return False
        wanted = frozenset(self.values)
        if extent.labels is not None:
            if not extent.labels & wanted:
                return False
            return True if extent.labels <= wanted and not extent.missing else self
        if extent.low is None or extent.high is None:
            return self if wanted else False
        if not any(_within(value, extent.low, extent.high) for value in wanted):
            return False
        return True if extent.low == extent.high and not extent.missing else self

    def evaluate(self, obs: pd.DataFrame) -> BoolArray:
        """Which rows meet it."""
        return _as_bool(obs[self.column].isin(list(self.values)))


def _within(value: Any, low: Any, high: Any) -> bool:
    if isinstance(value, str) != isinstance(low, str):
        return False
    return bool(low <= value <= high)


_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Compare:
    """The column's value stands in this relation (``<``, ``<=``, ``>``, ``>=``) to a number or, if ordered, a label."""

    column: str
    relation: str
    value: Label

    @property
    def columns(self) -> frozenset[str]:
        """Obs columns that it needs."""
        return frozenset({self.column})

    def prune(self, extents: Extents) -> bool | Predicate:
        """Decided by the smallest and largest value."""
        extent = extents.get(self.column)
        if extent is None:
            return False
        if extent.low is None or extent.high is None or isinstance(extent.low, str) != isinstance(self.value, str):
            return self
        at_ends = self.holds(extent.low), self.holds(extent.high)
        if not any(at_ends):
            return False
        return True if all(at_ends) and not extent.missing else self

    def holds(self, value: Any) -> bool:
        """Whether one value meets it."""
        return bool(_OPERATORS[self.relation](value, self.value))

    def evaluate(self, obs: pd.DataFrame) -> BoolArray:
        """Which rows meet it."""
        values = obs[self.column]
        known = values.notna().to_numpy(dtype=bool)
        met = np.zeros(len(values), dtype=bool)
        try:
            met[known] = _as_bool(_OPERATORS[self.relation](values[known], self.value))
        except TypeError as error:
            raise SelectionError(
                f"{self.column} {self.relation} {self.value!r}: column {self.column!r} is {values.dtype}, which has no "
                f"such order; compare numbers with numbers, and labels with == or in"
            ) from error
        return met


@dataclass(frozen=True, slots=True)
class Not:
    """The cells that don't meet a condition, those of unknown value among them."""

    inner: Predicate

    @property
    def columns(self) -> frozenset[str]:
        """Obs columns that it needs."""
        return self.inner.columns

    def prune(self, extents: Extents) -> bool | Predicate:
        """The inner decision, turned round."""
        left = self.inner.prune(extents)
        return not left if isinstance(left, bool) else Not(left)

    def evaluate(self, obs: pd.DataFrame) -> BoolArray:
        """Which rows meet it."""
        return ~self.inner.evaluate(obs)


@dataclass(frozen=True, slots=True)
class All:
    """Every condition is met."""

    inner: tuple[Predicate, ...]

    @property
    def columns(self) -> frozenset[str]:
        """Obs columns that it needs."""
        return frozenset().union(*(p.columns for p in self.inner))

    def prune(self, extents: Extents) -> bool | Predicate:
        """No cell where one condition has none; conditions that every cell meets need no look."""
        pruned = [p.prune(extents) for p in self.inner]
        left = tuple(p for p in pruned if not isinstance(p, bool))
        if any(p is False for p in pruned):
            return False
        return (left[0] if len(left) == 1 else All(left)) if left else True

    def evaluate(self, obs: pd.DataFrame) -> BoolArray:
        """Which rows meet it."""
        met: BoolArray = np.logical_and.reduce([np.ones(len(obs), bool), *(p.evaluate(obs) for p in self.inner)])
        return met


@dataclass(frozen=True, slots=True)
class Some:
    """At least one condition is met."""

    inner: tuple[Predicate, ...]

    @property
    def columns(self) -> frozenset[str]:
        """Obs columns that it needs."""
        return frozenset().union(*(p.columns for p in self.inner))

    def prune(self, extents: Extents) -> bool | Predicate:
        """Every cell where one condition has all; conditions that no cell meets need no look."""
        pruned = [p.prune(extents) for p in self.inner]
        left = tuple(p for p in pruned if not isinstance(p, bool))
        if any(p is True for p in pruned):
            return True
        return (left[0] if len(left) == 1 else Some(left)) if left else False

    def evaluate(self, obs: pd.DataFrame) -> BoolArray:
        """Which rows meet it."""
        met: BoolArray = np.logical_or.reduce([np.zeros(len(obs), bool), *(p.evaluate(obs) for p in self.inner)])
        return met


@dataclass(frozen=True, slots=True)
class Between:
    """A range of values, both ends among them: ``store.subset(n_counts=Between(500, 2000))``.

    Parameters
    ----------
    low, high
        The ends: numbers or, for ordered labels, labels. ``None`` leaves an end open.

    Raises
    ------
    SelectionError
        Both ends are open, or they are no numbers or labels, or the wrong way round.
    """

    low: Label | None = None
    high: Label | None = None

    def __post_init__(self) -> None:
        ends = [_label(end) for end in (self.low, self.high) if end is not None]
        if not ends:
            raise SelectionError("expected at least one end of a range, got none; write Between(500, None) or so")
        if isinstance(ends[0], str) != isinstance(ends[-1], str):
            raise SelectionError(f"expected two numbers or two labels, got {self}")
        if len(ends) == 2 and not isinstance(ends[0], str) and not ends[0] <= ends[1]:  # type: ignore[operator]
            raise SelectionError(f"expected a range from the smaller to the larger end, got {self}")

    def on(self, column: str) -> Predicate:
        """The condition on a column."""
        ends = ((">=", self.low), ("<=", self.high))
        return All(tuple(Compare(column, relation, _label(end)) for relation, end in ends if end is not None))


def on_column(column: str, value: object) -> Predicate:
    """The condition that a keyword stands for: a label, several of them, or a range."""
    return value.on(column) if isinstance(value, Between) else is_in(column, value)


def is_in(column: str, value: object) -> IsIn:
    """Equality with one label, or membership in a list, set, array or index of labels.

    A :class:`~daodask.types.LabelSet` may hold labels that the store lacks.
    """
    if isinstance(value, str | int | float | bool | np.generic):
        return IsIn(column, (_label(value),))
    if isinstance(value, Collection) and not isinstance(value, Mapping | bytes):
        return IsIn(column, tuple(_label(v) for v in value), strict=not isinstance(value, LabelSet))
    raise SelectionError(
        f"{column}: expected a label, a number or a list of them, got {value!r}; for a range use "
        f"daodask.Between(low, high)"
    )


def _label(value: object) -> Label:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, str | int | float | bool) and not (isinstance(plain, float) and math.isnan(plain)):
        return plain
    raise SelectionError(
        f"expected a label or a number, got {value!r}; cells without a value are found with "
        f"subset(lambda obs: obs[column].isna())"
    )


def _as_bool(values: Any) -> BoolArray:
    # Nullable columns compare to NA, which is not True.
    return np.asarray(pd.Series(values).fillna(False).to_numpy(dtype=bool))


# -- query strings -------------------------------------------------------------------------------------------------

_RELATIONS: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_MIRRORED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_GRAMMAR: Final = "column == value, !=, <, <=, >, >=, in [..], not in [..], and, or, not, parentheses, `quoted column`"


def parse_query(text: str) -> Predicate:
    """Parse a condition such as ``"n_counts > 500 and donor_id != 'D3'"``; nothing of it is ever evaluated as code.

    Columns whose names are no identifiers are quoted in backticks, as in pandas.

    Raises
    ------
    SelectionError
        The text is not of the small grammar.
    """
    source, names = _unquote(text)
    try:
        tree = ast.parse(source.strip(), mode="eval")
        return _Parser(text, names).parse(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, SelectionError):
            raise
        reason = error.args[0] if error.args else "it is nested too deeply"
        raise SelectionError(f"query {text!r:.200} can't be parsed: {reason}; expected {_GRAMMAR}") from error


#: A text literal, which may hold a backtick, or a name in backticks.
_QUOTED: Final = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]*)`""")


def _unquote(text: str) -> tuple[str, dict[str, str]]:
    """The text with an identifier in place of each name in backticks, and these names by identifier."""
    names: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        if match[2] is None:
            return match[0]
        identifier = f"_quoted_{len(names)}_"
        names[identifier] = match[2]
        return identifier

    return _QUOTED.sub(replace, text), names


@dataclass(frozen=True, slots=True)
class _Parser:
    text: str
    names: Mapping[str, str]

    def parse(self, node: ast.expr) -> Predicate:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return All(tuple(self.parse(v) for v in values))
            case ast.BoolOp(op=ast.Or(), values=values):
                return Some(tuple(self.parse(v) for v in values))
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return Not(self.parse(inner))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                sides = [left, *rights]
                links = [
                    self._compare(a, _RELATIONS.get(type(op), "is"), b)
                    for a, op, b in zip(sides[:-1], ops, sides[1:], strict=True)
                ]
                return links[0] if len(links) == 1 else All(tuple(links))
            case ast.Name():
                return IsIn(self._column(node), (True,))
        raise self._error(node)

    def _compare(self, left: ast.expr, relation: str, right: ast.expr) -> Predicate:
        if relation in ("in", "not in"):
            found = is_in(self._column(left), self._values(right))
            return found if relation == "in" else Not(found)
        if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
            left, right = right, left
            relation = _MIRRORED.get(relation, relation)
        column, value = self._column(left), self._value(right)
        if relation == "==":
            return is_in(column, value)
        if relation == "!=":
            return Not(is_in(column, value))
        if relation in _OPERATORS:
            return Compare(column, relation, _label(value))
        raise self._error(left)

    def _column(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name):
            raise self._error(node)
        return self.names.get(node.id, node.id)

    def _value(self, node: ast.expr) -> object:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            raise self._error(node) from None
        if not isinstance(value, str | int | float | bool):
            raise self._error(node)
        return value

    def _values(self, node: ast.expr) -> tuple[object, ...]:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set):
            raise self._error(node)
        return tuple(self._value(v) for v in node.elts)

    def _error(self, node: ast.expr) -> SelectionError:
        return SelectionError(f"query {self.text!r}: {ast.unparse(node)!r} is not understood; expected {_GRAMMAR}")
