"""A study's column made to conform to the store's schema: dtype, vocabulary, what stands for absent values. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.build.columns import constant, factorised, merged, of_objects, python_value
from daodask.build.schema import SchemaColumn, Vocabulary
from daodask.errors import StreamlineError, suggest
from daodask.ontology import Ontology, Term
from daodask.types import Label

__all__ = ["conform"]

#: A label that these have too is theirs, and not that of an ontology of one species.
_OF_ALL_SPECIES: Final = ("CL", "UBERON")
#: How many of a column's mistakes an error shows.
_SHOWN: Final = 8


def conform(
    column: SchemaColumn, made: pd.Series[Any] | None, ids: pd.Series[Any] | None, n_obs: int
) -> dict[str, pd.Series[Any]]:
    """A column as the schema wants it, with that of its terms' ids where it asks for one; nothing where there is none.

    Parameters
    ----------
    column
        What is wanted.
    made
        The study's values, labels or ids of terms, where it has any.
    ids
        The study's column of terms' ids, where it has one. It decides, and the labels have to go with it.
    n_obs
        Cells.

    Raises
    ------
    StreamlineError
        A value is not what the schema allows, or absent where it must not be.
    """
    if made is None and ids is None:
        return _absent(column, n_obs)
    columns = {column.name: made} if made is not None else {}
    if column.vocabulary is not None:
        columns = _in_words(column, column.vocabulary, made, ids)
    elif column.dtype:
        columns = {name: _of_dtype(values, column) for name, values in columns.items()}
    if column.missing is not None:
        columns = {name: _filled(values, name, column.missing) for name, values in columns.items()}
    if column.dtype == "string":
        columns = {name: _as_text(values) for name, values in columns.items()}
    _check_values(columns[column.name], column)
    return columns


def _absent(column: SchemaColumn, n_obs: int) -> dict[str, pd.Series[Any]]:
    """What a study without the column gets: what stands for absent values, if anything does."""
    if column.missing is None:
        return {}
    stores_ids = column.vocabulary is not None and column.vocabulary.term_ids != "no"
    names = (column.name, column.term_ids) if stores_ids else (column.name,)
    return {name: constant(column.missing, n_obs) for name in names}


# -- absent values -------------------------------------------------------------------------------------------------


def _check_values(values: pd.Series[Any], column: SchemaColumn) -> None:
    n_missing = int(values.isna().sum())
    if n_missing and not column.may_lack:
        why = "it is required" if column.required else "missing: error says"
        raise StreamlineError(
            f"obs.{column.name}: expected a value for every cell, as {why}, got {n_missing} cells without; say what "
            f"stands for them (missing: … in the schema)"
        )
    if not column.values or column.vocabulary is not None:
        return
    allowed = {*column.values, *(() if column.missing is None else (column.missing,))}
    wrong = {x: n for x, n in _used(values).items() if x not in allowed}
    if wrong:
        shown = _listed(f"{x!r} ({n:,} cells): {suggest(x, column.values)}" for x, n in wrong.items())
        raise StreamlineError(f"obs.{column.name}: expected one of the schema's values, got {shown}; map it (map: …)")


def _used(values: pd.Series[Any]) -> dict[Label, int]:
    """Labels that some cell has, with the number of cells."""
    codes, labels = factorised(values)
    counts = np.bincount(codes[codes >= 0], minlength=len(labels)).tolist()
    return {x: n for x, n in zip(labels, counts, strict=True) if n}


def _listed(entries: Iterable[str]) -> str:
    every = list(entries)
    more = f"; and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return "; ".join(every[:_SHOWN]) + more


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
    return type(python_value(categories[0])) if len(categories) else None


# -- dtypes --------------------------------------------------------------------------------------------------------

_WHOLE: Final = re.compile(r"[+-]?\d+")


def _int(value: Label) -> int | None:
    if isinstance(value, str):
        value = int(value) if _WHOLE.fullmatch(value) else math.nan
    whole = isinstance(value, int) and not isinstance(value, bool)
    return int(value) if whole and -(2**63) <= value < 2**63 else None


def _float(value: Label) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _bool(value: Label) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


_CONVERTED: Final[Mapping[str, tuple[Callable[[Label], Label | None], str, str, str]]] = {
    "int": (_int, "a whole number", "int64", "Int64"),
    "float": (_float, "a number", "float64", "float64"),
    "bool": (_bool, "true or false", "bool", "boolean"),
}


def _of_dtype(values: pd.Series[Any], column: SchemaColumn) -> pd.Series[Any]:
    """The values in the schema's dtype, refused where one is none; text as labels, for what is still missing."""
    kind = None if isinstance(values.dtype, pd.CategoricalDtype) else getattr(values.dtype, "kind", "")
    if kind and kind in {"int": "iu", "float": "f", "bool": "b"}.get(column.dtype, ""):
        return values
    codes, labels = factorised(values)
    if column.dtype not in _CONVERTED:
        texts = [str(x) for x in labels]
        ordered = isinstance(values.dtype, pd.CategoricalDtype) and values.cat.ordered
        return values if ordered and texts == labels else merged(codes, texts, list(dict.fromkeys(texts)))
    convert, what, plain, nullable = _CONVERTED[column.dtype]
    used = set(codes.tolist())
    converted = [convert(x) if i in used else None for i, x in enumerate(labels)]
    wrong = [x for i, x in enumerate(labels) if i in used and converted[i] is None]
    if wrong:
        raise StreamlineError(
            f"obs.{column.name}: expected {what} in each cell, as its dtype is {column.dtype}, got "
            f"{_listed(map(repr, wrong))}; map it (map: …)"
        )
    if used <= {-1}:
        return pd.Series([None] * len(codes), dtype=nullable if len(codes) else plain)
    return of_objects(pd.Series([*converted, None], dtype=object).take(codes).reset_index(drop=True), column.name)


def _as_text(values: pd.Series[Any]) -> pd.Series[Any]:
    """Plain text; what some cell lacks stays labels, as text in a store is never missing."""
    return values if values.isna().any() else pd.Series([str(v) for v in values], dtype=object)


# -- vocabularies --------------------------------------------------------------------------------------------------


def _in_words(
    column: SchemaColumn, vocabulary: Vocabulary, made: pd.Series[Any] | None, ids: pd.Series[Any] | None
) -> dict[str, pd.Series[Any]]:
    """The canonical labels of the terms that the values name, and their ids where they are asked for."""
    codes, names = _pairs(made, ids)
    # What is no term but allowed goes by itself, in both columns.
    words = _Words(column, vocabulary)
    entries = [words.entry(label, term) for label, term in names]
    words.refuse(np.bincount(codes[codes >= 0], minlength=len(names)).tolist())
    columns = {column.name: _relabelled(codes, [e[0] for e in entries])}
    if vocabulary.term_ids != "no":
        columns[column.term_ids] = _relabelled(codes, [e[1] for e in entries])
    return columns


def _relabelled(codes: npt.NDArray[np.int64], labels: Sequence[str]) -> pd.Series[Any]:
    used = set(codes.tolist())
    known = [x if i in used else None for i, x in enumerate(labels)]
    return merged(codes, known, list(dict.fromkeys(x for x in known if x is not None)))


def _pairs(
    made: pd.Series[Any] | None, ids: pd.Series[Any] | None
) -> tuple[npt.NDArray[np.int64], list[tuple[str, str]]]:
    """Code per cell, -1 where it has neither, and the pairs of label and id, empty where there is none."""
    given = [factorised(s) if s is not None else None for s in (made, ids)]
    n_obs = len(next(g[0] for g in given if g is not None))
    none: tuple[npt.NDArray[np.int64], list[Label]] = (np.full(n_obs, -1, dtype=np.int64), [])
    (label_codes, labels), (id_codes, terms) = (g or none for g in given)
    # The last label, and the last id, is none.
    combined = (label_codes % (len(labels) + 1)) * (len(terms) + 1) + id_codes % (len(terms) + 1)
    present, codes = np.unique(combined, return_inverse=True)
    texts = [*map(str, labels), ""], [*map(str, terms), ""]
    pairs = [(texts[0][p // (len(terms) + 1)], texts[1][p % (len(terms) + 1)]) for p in present.tolist()]
    empty = [i for i, pair in enumerate(pairs) if pair == ("", "")]
    coded = np.asarray(codes, dtype=np.int64).reshape(-1)
    return np.where(np.isin(coded, empty), -1, coded), pairs


class _Words:
    """Looks names up in a column's vocabulary and gathers those that it doesn't know."""

    def __init__(self, column: SchemaColumn, vocabulary: Vocabulary) -> None:
        self.column = column
        self.vocabulary = vocabulary
        self.plain = {str(x) for x in (*column.values, column.missing) if x is not None}
        self.problems: list[str] = []
        self.unknown = 0
        self.suggested: dict[str, str] = {}

    def entry(self, label: str, identifier: str) -> tuple[str, str]:
        """Canonical label and id of a value that is given as label or id, as id, or as both."""
        problem = ""
        found: tuple[str, str] | None = None
        if identifier:
            found, problem = self._several(identifier, ids=True)
            if found and label and not self._goes_with(label, identifier, found[0]):
                problem = f"{label!r}, which is not {identifier}: that is {found[0]!r}"
        elif label:
            found, problem = self._several(label, ids=False)
        self.problems.append(problem)
        return found or ("", "")

    def _goes_with(self, label: str, identifier: str, canonical: str) -> bool:
        """Whether a label is that of the terms, or one of their synonyms: what the label was in an older release."""
        if label == canonical or label in self.plain:
            return label == canonical
        labels, identifiers = self._split(label), self._split(identifier)
        if len(labels) != len(identifiers):
            return False
        terms = [self._find(i)[0] for i in identifiers]
        return all(t is not None and (x == t.label or x in t.synonyms) for x, t in zip(labels, terms, strict=True))

    def _split(self, value: str) -> list[str]:
        parts = [value]
        for separator in self.vocabulary.separators:
            parts = [p.strip() for part in parts for p in part.split(separator)]
        return parts

    def _several(self, value: str, *, ids: bool) -> tuple[tuple[str, str] | None, str]:
        """Label and id of a value, which may name several terms; or why it doesn't."""
        if value in self.plain:
            return (value, value), ""
        term, problem = self._find(value)
        parts = self._split(value)
        if term is not None or len(parts) == 1:
            return self._allowed(term, value, problem, ids=ids)
        found = [self._allowed(*self._of(part), ids=ids) for part in parts]
        problems = [why for _, why in found if why]
        if problems:
            return None, "; ".join(problems)
        separator = next(s for s in self.vocabulary.separators if s in value)
        joint = separator if separator == "," else f" {separator} "
        pairs = [pair for pair, _ in found if pair]
        return (joint.join(p[0] for p in pairs), joint.join(p[1] for p in pairs)), ""

    def _of(self, value: str) -> tuple[Term | None, str, str]:
        term, problem = self._find(value)
        return term, value, problem

    def _allowed(self, term: Term | None, value: str, problem: str, *, ids: bool) -> tuple[tuple[str, str] | None, str]:
        if term is None:
            return None, problem
        if ids and term.id != value:
            return None, f"{value!r}, which is a label and no id: that is {term.id!r}"
        under = self.vocabulary.under
        if under and term.id not in under and not any(u in term.ancestors for u in under):
            return None, f"{value!r}, which is none of {', '.join(under)} and what is below them"
        return (term.label or term.id, term.id), ""

    def _find(self, value: str) -> tuple[Term | None, str]:
        """The one term of an id or label; or why there is none."""
        ontologies = self._ontologies(value)
        found = [t for o in ontologies if (t := o.find(value)) is not None]
        kept = [t for t in found if not t.obsolete or (self.vocabulary.obsolete == "keep" and t.id == value)]
        neutral = [t for t in kept if t.id.partition(":")[0] in _OF_ALL_SPECIES]
        kept = neutral or kept
        if len(kept) == 1:
            return kept[0], ""
        if len(kept) > 1:
            return None, f"{value!r}, which may be {' or '.join(t.id for t in kept)}: give the id"
        self.unknown += 1
        if self.unknown > _SHOWN:  # what is not shown needs no search for what may be meant
            return None, repr(value)
        about = next((o for o in ontologies if o.find(value) is not None), ontologies[0])
        suggested = about.suggestion(value)
        if suggested:
            self.suggested[value] = suggested
        return None, f"{value!r}: {about.explain(value)}"

    def _ontologies(self, value: str) -> list[Ontology]:
        """Those to look a value up in: that of an id's prefix alone where it has the id, so that not all are loaded."""
        names = [name for name, _ in self.vocabulary.ontologies]
        prefix = re.split(r"[:_]", value, maxsplit=1)[0]
        if prefix in names and Ontology.load(prefix).find(value) is not None:
            names = [prefix]
        return [self._load(name) for name in names]

    def _load(self, name: str) -> Ontology:
        ontology = Ontology.load(name)
        planned = dict(self.vocabulary.ontologies)[name]
        if ontology.version != planned:
            raise StreamlineError(
                f"obs.{self.column.name}: expected {name} {planned}, as where the build was planned, got "
                f"{ontology.version}; install the same cellxgene-ontology-guide on all workers"
            )
        return ontology

    def refuse(self, counts: Sequence[int]) -> None:
        """Raise the error that names all values that are no terms, each with what may be meant.

        Raises
        ------
        StreamlineError
            There are some that a cell has.
        """
        wrong = [f"{p} ({n:,} cells)" for p, n in zip(self.problems, counts, strict=True) if p and n]
        if not wrong:
            return
        names = ", ".join(name for name, _ in self.vocabulary.ontologies)
        text = f"obs.{self.column.name}: expected labels or ids of {names}, got {_listed(wrong)}"
        if self.suggested:
            shown = ", ".join(f"{k}: {v}" for k, v in list(self.suggested.items())[:_SHOWN])
            text += f"; if that is what they are, map them (map: {{{shown}}})"
        raise StreamlineError(text)
