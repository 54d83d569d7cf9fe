"""Conditions fitted to a store's columns: names are known, and values are what the column can hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.binding import Binding, known_columns
from daodask.errors import SelectionError, UnknownNameError
from daodask.format.manifest import ObsColumn
from daodask.predicates import All, Compare, IsIn, Not, Predicate, Some, is_in, parse_query
from daodask.types import LabelSet

SCHEMA = (
    ObsColumn("cell_type", "category", ("T cell", "B cell")),
    ObsColumn("stage", "category", ("low", "mid", "high"), ordered=True),
    ObsColumn("n", "int64"),
    ObsColumn("small", "uint8"),
    ObsColumn("x", "float32", nullable=True),
    ObsColumn("y", "float64"),
    ObsColumn("ok", "bool"),
    ObsColumn("note", "string"),
)
COLUMNS = known_columns(SCHEMA, ("a", "b"))
TENTH = float(np.float32(0.1))
NEVER = Some(())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cell_type == 'T cell'", IsIn("cell_type", ("T cell",))),
        ("dataset in ['a', 'b']", IsIn("dataset", ("a", "b"))),
        ("obs_names == 'anything'", IsIn("obs_names", ("anything",))),
        ("note == 'anything'", IsIn("note", ("anything",))),
        ("note > 'b'", Compare("note", ">", "b")),
        ("stage >= 'mid'", IsIn("stage", ("mid", "high"))),
        ("stage < 'mid'", IsIn("stage", ("low",))),
        ("stage > 'high'", IsIn("stage", ())),
        ("n in [1, 2.0, 2.5]", IsIn("n", (1, 2))),
        ("n == 36893488147419103232", IsIn("n", ())),
        ("small in [-1, 0, 255, 256]", IsIn("small", (0, 255))),
        ("x == 0.1", IsIn("x", (TENTH,))),
        ("x in [1e300, 1e999]", IsIn("x", (math.inf,))),
        ("y == 0.1", IsIn("y", (0.1,))),
        ("ok in [True, 0, 2]", IsIn("ok", (True, False))),
        ("ok", IsIn("ok", (True,))),
        ("n > 2.5", Compare("n", ">", 2)),
        ("n >= 2.5", Compare("n", ">=", 3)),
        ("n < 2.5", Compare("n", "<", 3)),
        ("n <= -2.5", Compare("n", "<=", -3)),
        ("n > 2.0", Compare("n", ">", 2)),
        ("n < 1e999", Compare("n", "<", math.inf)),
        ("x > 0.1", Compare("x", ">", TENTH)),
        ("x > 1e300", Compare("x", ">", math.inf)),
        ("x < -1e300", Compare("x", "<", -math.inf)),
        (f"y > {'9' * 400}", Compare("y", ">", math.inf)),
        ("not (n > 2.5 and (ok or note == 'x'))",
         Not(All((Compare("n", ">", 2), Some((IsIn("ok", (True,)), IsIn("note", ("x",)))))))),
    ],
)  # fmt: skip
def test_values_become_what_the_column_holds(text: str, expected: Predicate) -> None:
    bound = Binding(COLUMNS).bind(parse_query(text))
    assert bound == expected
    for leaf in (bound,) if isinstance(bound, IsIn) else ():
        assert [type(v) for v in leaf.values] == [type(v) for v in expected.values]
    assert Binding(COLUMNS).bind(bound) == bound


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("celltype == 'T cell'", "obs has no column 'celltype'; did you mean 'cell_type'?"),
        ("celltype > 3", "obs has no column 'celltype'; did you mean 'cell_type'?"),
        ("cell_type == 'T cel'", "no cell of the store has cell_type = 'T cel'; did you mean 'T cell'?"),
        ("not cell_type in ['T cell', 'X']", "cell_type = 'X'; known: 'T cell', 'B cell'"),
        ("cell_type == 3", "cell_type = 3; known: 'T cell', 'B cell'"),
        ("dataset == 'c'", "no cell of the store has dataset = 'c'; known: 'a', 'b'"),
        ("stage > 'middle'", "no cell of the store has stage = 'middle'; did you mean 'mid'?"),
    ],
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        Binding(COLUMNS).bind(parse_query(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n == 'many'", "n = 'many': column 'n' is int64; expected values of that kind"),
        ("note == 3", "note = 3: column 'note' is string"),
        ("ok == 'yes'", "column 'ok' is bool"),
        ("n > 'a'", "column 'n' is int64, which has no such order; compare numbers with numbers"),
        ("note < 3", "column 'note' is string, which has no such order"),
        ("cell_type < 'T cell'", "column 'cell_type' is category, which has no such order"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_values_of_another_kind(text: str, message: str, strict: bool) -> None:
    if not strict and "==" in text:
        assert not Binding(COLUMNS, strict=False).bind(parse_query(text)).prune({})
        return
    with pytest.raises(SelectionError) as caught:
        Binding(COLUMNS, strict=strict).bind(parse_query(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("celltype == 'T cell'", NEVER),
        ("celltype > 3", NEVER),
        ("celltype != 'T cell'", Not(NEVER)),
        ("cell_type in ['T cell', 'X']", IsIn("cell_type", ("T cell", "X"))),
        ("celltype == 'a' or n == 1", Some((NEVER, IsIn("n", (1,))))),
    ],
)
def test_what_is_unknown_may_be_no_error(text: str, expected: Predicate) -> None:
    assert Binding(COLUMNS, strict=False).bind(parse_query(text)) == expected


def test_a_label_set_needs_one_label_that_there_is() -> None:
    some, none = is_in("cell_type", LabelSet(["T cell", "X"])), is_in("cell_type", LabelSet(["X", "Y"]))
    assert Binding(COLUMNS).bind(some).columns == {"cell_type"}
    with pytest.raises(UnknownNameError, match="no cell of the store has one of these 2 cell_type; known: 'T cell'"):
        Binding(COLUMNS).bind(none)
    assert set(Binding(COLUMNS, strict=False).bind(none).values) == {"X", "Y"}


NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-3, 3) | st.floats(allow_nan=False) | st.sampled_from([0.1, 2.5])


def exactly(value: Any, relation: str, other: Any) -> bool:
    """Python compares numbers of any kind without rounding."""
    return {"<": value < other, "<=": value <= other, ">": value > other, ">=": value >= other, "==": value == other}[
        relation
    ]


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), min_size=1, max_size=4),
    NUMBERS,
    st.sampled_from(["<", "<=", ">", ">=", "=="]),
    st.booleans(),
)
def test_whole_numbers_are_compared_exactly(values: list[int], other: Any, relation: str, nullable: bool) -> None:
    condition = is_in("n", other) if relation == "==" else Compare("n", relation, other)
    bound = Binding(COLUMNS).bind(condition)
    obs = pd.DataFrame({"n": pd.array(values, dtype="Int64" if nullable else "int64")})
    assert bound.evaluate(obs).tolist() == [exactly(v, relation, other) for v in values]


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4),
    st.floats(-1e30, 1e30),
    st.sampled_from(["<", "<=", ">", ">=", "=="]),
)
def test_fractions_are_compared_as_the_column_rounds_them(values: list[float], other: float, relation: str) -> None:
    condition = is_in("x", other) if relation == "==" else Compare("x", relation, other)
    obs = pd.DataFrame({"x": np.array(values, np.float32)})
    found = Binding(COLUMNS).bind(condition).evaluate(obs).tolist()
    assert found == [exactly(np.float32(v), relation, np.float32(other)) for v in values]
