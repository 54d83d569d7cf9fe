"""Conditions: parsed from text and never run, evaluated as pandas does, pruned only where that is certain."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.build.streamline import summarise
from daodask.errors import SelectionError
from daodask.predicates import (
    All,
    Between,
    Compare,
    Extent,
    IsIn,
    Not,
    Predicate,
    Some,
    is_in,
    on_column,
    parse_query,
)

# -- parsing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cell_type == 'B cell'", IsIn("cell_type", ("B cell",))),
        ('"B cell" == cell_type', IsIn("cell_type", ("B cell",))),
        ("x != 3", Not(IsIn("x", (3,)))),
        ("x > 500", Compare("x", ">", 500)),
        ("500 < x", Compare("x", ">", 500)),
        ("1.5 >= x", Compare("x", "<=", 1.5)),
        ("x > -1", Compare("x", ">", -1)),
        ("x in ['a', 'b']", IsIn("x", ("a", "b"))),
        ("x in ('a',)", IsIn("x", ("a",))),
        ("x in []", IsIn("x", ())),
        ("x not in [1, 2]", Not(IsIn("x", (1, 2)))),
        ("ok", IsIn("ok", (True,))),
        ("not ok", Not(IsIn("ok", (True,)))),
        ("ok == False", IsIn("ok", (False,))),
        ("a == 1 and b == 2", All((IsIn("a", (1,)), IsIn("b", (2,))))),
        ("a == 1 or b == 2 and c == 3", Some((IsIn("a", (1,)), All((IsIn("b", (2,)), IsIn("c", (3,))))))),
        ("(a == 1 or b == 2) and c", All((Some((IsIn("a", (1,)), IsIn("b", (2,)))), IsIn("c", (True,))))),
        ("1 < x <= 5", All((Compare("x", ">", 1), Compare("x", "<=", 5)))),
        ("`cell type` == 'B'", IsIn("cell type", ("B",))),
        ("`class` in ['a'] and `n/m` > 2", All((IsIn("class", ("a",)), Compare("n/m", ">", 2)))),
        ("x == 'a`b'", IsIn("x", ("a`b",))),
        ("x == 'a`b`c' and `d e`", All((IsIn("x", ("a`b`c",)), IsIn("d e", (True,))))),
        (r"x == 'it\'s' and `d e`", All((IsIn("x", ("it's",)), IsIn("d e", (True,))))),
        ("größe == 'ä'", IsIn("größe", ("ä",))),
        ("  x == 1\n", IsIn("x", (1,))),
    ],
)
def test_queries(text: str, expected: Predicate) -> None:
    assert parse_query(text) == expected


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("__import__('os').system('true')", "__import__('os').system('true')"),
        ("x == __import__('os').system('true')", "__import__('os').system('true')"),
        ("x == open('f')", "open('f')"),
        ("x.str.len() > 3", "x.str.len()"),
        ("x.y == 1", "x.y"),
        ("x[0] == 1", "x[0]"),
        ("x + 1 == 2", "x + 1"),
        ("x == y", "y"),
        ("x == 1 + 2", "1 + 2"),
        ("x == 1j", "1j"),
        ("x == None", "None"),
        ("x is None", "None"),
        ("x is 'a'", "x"),
        ("x == [1]", "[1]"),
        ("x == {[1]: 2}", "{[1]: 2}"),
        ("x == b'a'", "b'a'"),
        ("x == f'{y}'", "f'{y}'"),
        ("x in 'abc'", "'abc'"),
        ("x in y", "y"),
        ("x in [y]", "y"),
        ("'a' in x", "'a'"),
        ("1 < 2", "1"),
        ("3", "3"),
        ("'x'", "'x'"),
        ("x and 1", "1"),
        ("-x", "-x"),
        ("x & y", "x & y"),
        ("lambda: x", "lambda: x"),
        ("[x for x in y]", "[x for x in y]"),
        ("x if y else z", "x if y else z"),
        ("(x := 1)", "(x := 1)"),
    ],
)
def test_code_is_refused(text: str, culprit: str) -> None:
    with pytest.raises(SelectionError) as caught:
        parse_query(text)
    assert f"{culprit!r} is not understood; expected column == value" in str(caught.value)


@pytest.mark.parametrize("text", ["", "x ==", "x = 1", "import os", "x; y", "x == 'a", "`x == 1", "x == 1\x00", "a b"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(SelectionError, match=r"query .* can't be parsed: .*; expected column == value"):
        parse_query(text)


@pytest.mark.parametrize("text", ["(" * 10_000 + "x", "not " * 100_000 + "x", "-" * 100_000 + "x"])
def test_deep_nesting_is_refused(text: str) -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(SelectionError, match="can't be parsed"):
        parse_query(text)
    assert sys.getrecursionlimit() == limit


@given(st.text(st.sampled_from("xy`'\"\\()[]{}=<>!,. 01\n#") | st.characters(codec="utf-8"), max_size=20))
def test_any_text_is_a_condition_or_a_selection_error(text: str) -> None:
    try:
        predicate = parse_query(text)
    except SelectionError:
        return
    assert predicate.columns


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", ("a",)),
        (np.int64(3), (3,)),
        (True, (True,)),
        (["a", "b"], ("a", "b")),
        (np.array([1, 2]), (1, 2)),
        (pd.Index(["a"], dtype=object), ("a",)),
        ((), ()),
    ],
)
def test_is_in(value: object, expected: tuple[object, ...]) -> None:
    found = is_in("c", value)
    assert found == IsIn("c", expected)
    assert [type(v) for v in found.values] == [type(v) for v in expected]


@pytest.mark.parametrize("value", [None, {"a": 1}, b"a", [None], [["a"]], 1j])
def test_is_in_refuses(value: object) -> None:
    with pytest.raises(SelectionError, match="expected a label"):
        is_in("c", value)


def test_a_slice_is_no_range() -> None:
    with pytest.raises(SelectionError, match=r"got slice\(1, 2, None\); for a range use daodask.Between\(low, high\)"):
        is_in("c", slice(1, 2))


# -- evaluating and pruning ----------------------------------------------------------------------------------------

#: Values to ask for, of which some occur in a column and some don't.
ASKED: dict[str, list[Any]] = {
    "kind": ["a", "b", "never", "absent"],
    "stage": ["lo", "mid", "hi"],
    "n": [-1, 0, 1, 2, 3],
    "some": [0, 1, 2, 3],
    "x": [-0.5, 0.0, 0.5, 1, 2.5],
    "ok": [True, False],
    "maybe": [True, False],
    "note": ["t0", "t1", "t9"],
}
RELATIONS = ("<", "<=", ">", ">=")


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Obs of a dataset with every dtype that a store has; any column but one may be absent."""
    n = draw(st.integers(0, 8))

    def values(*choices: Any) -> list[Any]:
        return draw(st.lists(st.sampled_from(choices), min_size=n, max_size=n))

    def codes(n_labels: int) -> list[int]:
        return values(*range(-1, n_labels))

    labels = [pd.Index(names, dtype=object) for names in (["a", "b", "never"], ["lo", "mid", "hi"])]
    frame = pd.DataFrame(
        {
            "kind": pd.Categorical.from_codes(np.array(codes(2), int), labels[0]),
            "stage": pd.Categorical.from_codes(np.array(codes(3), int), labels[1], ordered=True),
            "n": np.array(values(0, 1, 2), np.int32),
            "some": pd.array(values(None, 1, 2), dtype="Int64"),
            "x": np.array(values(np.nan, 0.0, 0.5, 1.0, np.inf), np.float32),
            "ok": np.array(values(True, False), bool),
            "maybe": pd.array(values(None, True, False), dtype="boolean"),
            "note": pd.Series(values("t0", "t1"), dtype=object),
        }
    )
    absent = draw(st.sets(st.sampled_from(["kind", "some", "x", "maybe"])))
    return frame.drop(columns=sorted(absent))


@st.composite
def leaves(draw: st.DrawFn) -> Predicate:
    column = draw(st.sampled_from(sorted(ASKED)))
    if column in ("stage", "n", "some", "x") and draw(st.booleans()):
        return Compare(column, draw(st.sampled_from(RELATIONS)), draw(st.sampled_from(ASKED[column])))
    return IsIn(column, tuple(draw(st.lists(st.sampled_from(ASKED[column]), max_size=3))))


PREDICATES = st.recursive(
    leaves(),
    lambda inner: (
        inner.map(Not)
        | st.lists(inner, max_size=3).map(lambda p: All(tuple(p)))
        | st.lists(inner, max_size=3).map(lambda p: Some(tuple(p)))
    ),
    max_leaves=5,
)


def in_the_store(obs: pd.DataFrame) -> pd.DataFrame:
    """The obs as a store shows it: a column that the dataset lacks is there, without a value."""
    nothing: dict[str, Any] = {
        "kind": pd.Categorical.from_codes(np.full(len(obs), -1), pd.Index(["a"], dtype=object)),
        "some": pd.array([None] * len(obs), dtype="Int64"),
        "x": np.full(len(obs), np.nan, np.float32),
        "maybe": pd.array([None] * len(obs), dtype="boolean"),
    }
    return obs.assign(**{name: column for name, column in nothing.items() if name not in obs})


def oracle(predicate: Predicate, obs: pd.DataFrame) -> list[bool]:
    """Cell by cell, in plain Python."""
    return [holds(predicate, {name: obs[name].iloc[i] for name in obs}) for i in range(len(obs))]


def holds(predicate: Predicate, cell: dict[str, Any]) -> bool:
    match predicate:
        case Not(inner):
            return not holds(inner, cell)
        case All(inner):
            return all(holds(p, cell) for p in inner)
        case Some(inner):
            return any(holds(p, cell) for p in inner)
        case IsIn(column, values):
            return not pd.isna(cell[column]) and any(cell[column] == v for v in values)
        case Compare(column, relation, value):
            if pd.isna(cell[column]):
                return False
            order = ASKED["stage"].index if column == "stage" else float
            left, right = order(cell[column]), order(value)
            return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[relation]
    raise AssertionError(predicate)


@given(frames(), PREDICATES)
def test_evaluating_is_what_a_loop_over_cells_finds(obs: pd.DataFrame, predicate: Predicate) -> None:
    found = predicate.evaluate(in_the_store(obs))
    assert found.dtype == bool
    assert found.tolist() == oracle(predicate, in_the_store(obs))


def extents(obs: pd.DataFrame) -> dict[str, Extent]:
    """What a snapshot knows of the columns that have a value."""
    return {summary.name: Extent.of(summary) for summary in summarise(obs) if summary.n_missing < max(len(obs), 1)}


@given(frames(), PREDICATES)
def test_pruning_is_certain_or_leaves_what_is_undecided(obs: pd.DataFrame, predicate: Predicate) -> None:
    left = predicate.prune(extents(obs))
    found = predicate.evaluate(in_the_store(obs))
    if isinstance(left, bool):
        assert found.all() if left else not found.any()
    else:
        assert left.columns <= predicate.columns & set(obs.columns)
        assert left.evaluate(in_the_store(obs)).tolist() == found.tolist()


N, KIND = Compare("n", ">=", 5), IsIn("kind", ("a",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind == 'a'", True),
        ("kind == 'b'", False),
        ("kind != 'b'", True),
        ("absent == 1", False),
        ("absent != 1", True),
        ("absent > 1", False),
        ("n > 2", True),
        ("n > 5", False),
        ("n >= 5", N),
        ("n == 7", False),
        ("n == 'a'", False),
        ("n in []", False),
        ("n in [4, 5]", IsIn("n", (4, 5))),
        ("one == 4", True),
        ("one in [3, 4]", True),
        ("one != 4", False),
        ("some == 4", IsIn("some", (4,))),
        ("some >= 4", Compare("some", ">=", 4)),
        ("gap == 'a'", IsIn("gap", ("a",))),
        ("gap in ['a', 'b']", IsIn("gap", ("a", "b"))),
        ("gap == 'b'", False),
        ("kind == 'a' and n > 2", True),
        ("kind == 'a' and n >= 5", N),
        ("kind == 'b' or n >= 5", N),
        ("kind == 'a' or n >= 5", True),
        ("kind == 'b' and n >= 5", False),
        ("not (kind == 'a' and n > 5)", True),
        ("not (kind == 'a' and n >= 5)", Not(N)),
        ("kind == 'a' and (kind == 'b' or n >= 5) and n == 4", All((N, IsIn("n", (4,))))),
        ("n >= 5 or kind == 'b' or n == 4", Some((N, IsIn("n", (4,))))),
        ("note == 'x'", IsIn("note", ("x",))),
        ("note > 'x'", Compare("note", ">", "x")),
    ],
)
def test_pruning_decides_where_it_can_and_drops_what_is_decided(text: str, expected: bool | Predicate) -> None:
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["a", "a"]),
            "gap": pd.Categorical(["a", None]),
            "n": [3, 5],
            "one": [4, 4],
            "some": pd.array([4, None], dtype="Int64"),
            "note": pd.Series(["u", "x"], dtype=object),
        }
    )
    assert parse_query(text).prune(extents(obs)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("note == 'b'", False),
        ("note == 'n'", IsIn("note", ("n",))),
        ("note in ['b', 'z']", False),
        ("note > 'b'", True),
        ("note > 'z'", False),
        ("note == 4", False),
        ("note > 4", Compare("note", ">", 4)),
    ],
)
def test_ends_may_be_texts(text: str, expected: bool | Predicate) -> None:
    assert parse_query(text).prune({"note": Extent(None, "m", "p", missing=False)}) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Between(1, 2.5), All((Compare("c", ">=", 1), Compare("c", "<=", 2.5)))),
        (Between(2, 2), All((Compare("c", ">=", 2), Compare("c", "<=", 2)))),
        (Between(low=np.int64(1)), All((Compare("c", ">=", 1),))),
        (Between(high="mid"), All((Compare("c", "<=", "mid"),))),
        (Between("z", "a"), All((Compare("c", ">=", "z"), Compare("c", "<=", "a")))),
        ((1, 2), IsIn("c", (1, 2))),
    ],
)
def test_a_range_is_two_comparisons_and_a_tuple_is_none(value: object, expected: Predicate) -> None:
    assert on_column("c", value) == expected


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((), "expected at least one end of a range"),
        ((2, 1), "expected a range from the smaller to the larger end, got Between"),
        ((1, "b"), "expected two numbers or two labels"),
        ((float("nan"), 1), "expected a label or a number, got nan"),
        ((None, [1]), "expected a label or a number"),
    ],
)
def test_ranges_that_are_none(ends: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Between(*ends)


@pytest.mark.parametrize("text", ["kind > 'a'", "n > 'a'", "stage > 'absent'", "note < 3"])
def test_what_has_no_order(text: str) -> None:
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["a"]),
            "n": [1],
            "stage": pd.Categorical(["lo"], ordered=True),
            "note": pd.Series(["x"], dtype=object),
        }
    )
    with pytest.raises(SelectionError, match="which has no such order; compare numbers with numbers"):
        parse_query(text).evaluate(obs)


def test_the_columns_of_a_condition() -> None:
    assert parse_query("a == 1 and (not b or `c d` in [2])").columns == {"a", "b", "c d"}
