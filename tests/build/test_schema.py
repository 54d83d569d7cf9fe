"""The obs schema: what a build file may say of a column, and what becomes of a study's values."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.build import schema as schema_module
from daodask.build.conform import conform
from daodask.build.schema import SchemaColumn, Vocabulary
from daodask.build.spec import ObsRule, load_spec
from daodask.build.streamline import streamline_obs
from daodask.errors import SpecError, StreamlineError, UnknownNameError
from daodask.ontology import Ontology, Term

# -- small ontologies in the place of the extra's ---------------------------------------------------------------------

TERMS = {
    "CL": [
        Term("CL:0", "cell"),
        Term("CL:1", "T cell", {"CL:0": 1}, ("T lymphocyte", "T-cell")),
        Term("CL:2", "B cell", {"CL:0": 1}),
        Term("CL:3", "obsolete T lymphocyte, old", {}, (), True, "CL:1"),
        Term("CL:4", "shared", {"CL:0": 1}),
        Term("CL:5", "old but gold", {}, (), True),
    ],
    "ZFA": [Term("ZFA:1", "fin", {}), Term("ZFA:2", "shared", {}), Term("ZFA:3", "adult", {})],
    "HsapDv": [Term("HsapDv:1", "adult", {})],
}


@pytest.fixture(autouse=True)
def ontologies(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: Ontology(name, "1", {t.id: t for t in terms}) for name, terms in TERMS.items()}

    def version(name: str) -> str:
        if name not in known:
            raise UnknownNameError(f"there is no ontology {name!r}")
        return known[name].version

    monkeypatch.setattr(schema_module, "ontology_version", version)
    monkeypatch.setattr(Ontology, "load", known.__getitem__)


def columns(**obs: Any) -> tuple[SchemaColumn, ...]:
    spec = {"features": {"name": "x", "reference": "union"}, "studies": [{"id": "a", "source": "a.h5ad"}], "obs": obs}
    return load_spec(spec).schema


def column(**keys: Any) -> SchemaColumn:
    (made,) = columns(x=keys)
    return made


CL = (("CL", "1"),)


# -- the build file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "made"),
    [
        ({}, SchemaColumn("x")),
        ({"missing": "unknown"}, SchemaColumn("x", missing="unknown")),
        ({"missing": "keep", "required": True}, SchemaColumn("x", True, incomplete="keep")),
        ({"missing": "error"}, SchemaColumn("x", incomplete="error")),
        ({"dtype": "int", "missing": -1}, SchemaColumn("x", missing=-1, dtype="int")),
        ({"dtype": "float", "missing": 0}, SchemaColumn("x", missing=0, dtype="float")),
        ({"dtype": "bool", "missing": False}, SchemaColumn("x", missing=False, dtype="bool")),
        ({"values": ["a", "b"]}, SchemaColumn("x", values=("a", "b"))),
        ({"ontology": "CL"}, SchemaColumn("x", dtype="category", vocabulary=Vocabulary(CL))),
        (
            {
                "ontology": ["CL", "ZFA"],
                "under": "CL:0",
                "term_ids": True,
                "obsolete": "keep",
                "separator": "||",
                "values": ["unknown"],
            },
            SchemaColumn(
                "x",
                dtype="category",
                values=("unknown",),
                vocabulary=Vocabulary((("CL", "1"), ("ZFA", "1")), ("CL:0",), "yes", "keep", ("||",)),
            ),
        ),
        (
            {"ontology": "CL", "term_ids": "required"},
            SchemaColumn("x", dtype="category", vocabulary=Vocabulary(CL, term_ids="required")),
        ),
    ],
)
def test_columns(keys: dict[str, Any], made: SchemaColumn) -> None:
    assert column(**keys) == made


@pytest.mark.parametrize(
    ("column", "may_lack"),
    [
        (SchemaColumn("x"), True),
        (SchemaColumn("x", True), False),
        (SchemaColumn("x", True, incomplete="keep"), True),
        (SchemaColumn("x", incomplete="error"), False),
    ],
)
def test_what_may_be_absent(column: SchemaColumn, may_lack: bool) -> None:
    assert column.may_lack is may_lack


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dtype": "str"}, "obs.x.dtype: expected one of '', category, string, int, float, bool, got 'str'"),
        ({"dtype": "int", "missing": "unknown"}, "obs.x.missing: expected what a column of dtype int holds, got 'unkn"),
        ({"dtype": "int", "missing": True}, "obs.x.missing: expected what a column of dtype int holds, got True"),
        ({"dtype": "bool", "missing": 0}, "obs.x.missing: expected what a column of dtype bool holds, got 0"),
        ({"dtype": "category", "values": ["a", 1]}, "obs.x.values: expected what a column of dtype category holds"),
        ({"values": []}, "obs.x.values: expected a list of labels, got []"),
        ({"values": "a"}, "obs.x.values: expected a list of labels, got 'a'"),
        ({"ontology": "CLX"}, "obs.x.ontology: there is no ontology 'CLX'"),
        ({"ontology": "CL", "dtype": "int"}, "obs.x.dtype: expected category to go with ontology:, got 'int'"),
        ({"term_ids": True}, "obs.x.term_ids: expected ontology: to go with it"),
        ({"under": "CL:0"}, "obs.x.under: expected ontology: to go with it"),
        ({"ontology": "CL", "term_ids": "yes"}, "obs.x.term_ids: expected true or false, got 'yes'"),
        ({"ontology": "CL", "obsolete": "drop"}, "obs.x.obsolete: expected one of error, keep"),
    ],
)
def test_mistakes(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match="^" + re.escape(message)):
        column(**keys)


# -- dtypes -----------------------------------------------------------------------------------------------------------


def texts(*values: str | None) -> pd.Series[Any]:
    return pd.Series(pd.Categorical(values))


def conformed(made: SchemaColumn, values: Any) -> pd.Series[Any]:
    result = streamline_obs(pd.DataFrame({"x": values}), (), (made,), (), "study")["x"]
    return result.reset_index(drop=True).rename(None)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int", ["1", "-2", "+3"], pd.Series([1, -2, 3])),
        ("int", [1.0, 2.0, np.nan], pd.Series([1, 2, None], dtype="Int64")),
        ("int", np.array([1, 2, 3], np.int8), pd.Series([1, 2, 3], dtype="int8")),
        ("int", pd.array([1, None, 3], dtype="Int32"), pd.Series([1, None, 3], dtype="Int32")),
        ("int", pd.Categorical([7, 7, 9]), pd.Series([7, 7, 9])),
        ("int", [str(2**62), "0", None], pd.Series([2**62, 0, None], dtype="Int64")),
        ("int", [None, None, None], pd.Series([None] * 3, dtype="Int64")),
        ("float", ["1.5", "1e3", None], pd.Series([1.5, 1000.0, np.nan])),
        ("float", [1, 2, 3], pd.Series([1.0, 2.0, 3.0])),
        ("float", np.array([1, 2, np.inf], np.float32), pd.Series([1, 2, np.inf], dtype="float32")),
        ("float", [None, None, None], pd.Series([np.nan] * 3)),
        ("bool", ["True", "false", "TRUE"], pd.Series([True, False, True])),
        ("bool", [True, None, False], pd.Series([True, None, False], dtype="boolean")),
        ("bool", np.array([True, False, False]), pd.Series([True, False, False])),
        ("category", [2, 1, 2], texts("2", "1", "2")),
        ("category", [2.0, 1.5, np.nan], texts("2", "1.5", None)),
        ("category", ["b", "a", "b"], texts("b", "a", "b")),
        ("string", [1, 2, 1], pd.Series(["1", "2", "1"], dtype=object)),
        ("string", pd.Categorical(["b", "a", "b"]), pd.Series(["b", "a", "b"], dtype=object)),
        ("string", ["b", None, "b"], texts("b", None, "b")),
    ],
)
def test_dtypes(dtype: str, values: Any, expected: pd.Series[Any]) -> None:
    found = conformed(column(dtype=dtype), values)
    if isinstance(expected.dtype, pd.CategoricalDtype):
        assert isinstance(found.dtype, pd.CategoricalDtype)
        assert found.isna().tolist() == expected.isna().tolist()
        assert found.dropna().tolist() == expected.dropna().tolist()
    else:
        pd.testing.assert_series_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("int", ["1", "two", "2.5"], "expected a whole number in each cell, as its dtype is int, got '2.5'; 'two'"),
        ("int", [1.5, 2, 3], "got 1.5"),
        ("int", [True, False, True], "got False; True"),
        ("int", [str(2**63), "1", "1"], "got '9223372036854775808'"),
        ("float", ["1,5", "2", "3"], "expected a number in each cell, as its dtype is float, got '1,5'"),
        ("bool", [0, 1, 1], r"expected true or false .* got 0; 1; map it \(map: …\)"),
        ("bool", ["yes", "no", "true"], "got 'no'; 'yes'"),
    ],
)
def test_values_of_another_dtype(dtype: str, values: Any, message: str) -> None:
    with pytest.raises(StreamlineError, match=rf"study 'study': obs.x: .*{message}"):
        conformed(column(dtype=dtype), values)


def test_ordered_categories_stay_ordered() -> None:
    values = pd.Categorical(["lo", "hi", "lo"], categories=["lo", "hi"], ordered=True)
    assert conformed(column(dtype="category"), values).cat.ordered


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))), st.booleans())
def test_whole_numbers_survive_as_text(values: list[int | None], as_text: bool) -> None:
    given_values = [str(v) if as_text and v is not None else v for v in values]
    found = conform(SchemaColumn("x", dtype="int"), pd.Series(given_values, dtype=object), None, len(values))["x"]
    assert [None if pd.isna(v) else v for v in found.tolist()] == values
    assert found.dtype == ("Int64" if None in values else "int64")


# -- values and absent ones -------------------------------------------------------------------------------------------


def test_values() -> None:
    made = column(values=["a", "b"], missing="none")
    assert conformed(made, ["a", None, "b"]).tolist() == ["a", "none", "b"]
    message = (
        r"obs.x: expected one of the schema's values, got 'aa' \(1 cells\): .*; 'B' \(2 cells\): .*; map it \(map: …\)"
    )
    with pytest.raises(StreamlineError, match=message):
        conformed(made, pd.Categorical(["aa", "B", "B", "a"], categories=["aa", "unused", "B", "a"]))
    # A category that no cell has is none of its values.
    assert conformed(made, pd.Categorical(["a"], categories=["a", "unused"])).tolist() == ["a"]
    assert conformed(column(dtype="int", values=[1, 2]), ["1", "2"]).tolist() == [1, 2]
    with pytest.raises(StreamlineError, match=r"got 3 \(1 cells\)"):
        conformed(column(dtype="int", values=[1, 2]), ["1", "3"])


@pytest.mark.parametrize(
    ("keys", "result"),
    [
        ({}, ["a", None]),
        ({"missing": "keep", "required": True}, ["a", None]),
        ({"missing": "?"}, ["a", "?"]),
        ({"missing": "error"}, "as missing: error says, got 1 cells without"),
        ({"required": True}, "as it is required, got 1 cells without"),
    ],
)
def test_absent_values(keys: dict[str, Any], result: Any) -> None:
    if isinstance(result, str):
        with pytest.raises(StreamlineError, match=result):
            conformed(column(**keys), ["a", None])
        return
    found = conformed(column(**keys), ["a", None])
    assert [None if pd.isna(v) else v for v in found] == result


# -- vocabularies -----------------------------------------------------------------------------------------------------

WITH_IDS = Vocabulary(CL, term_ids="yes")


def worded(vocabulary: Vocabulary, frame: dict[str, Any], *rules: ObsRule, **more: Any) -> dict[str, list[Any]]:
    made = SchemaColumn("x", dtype="category", vocabulary=vocabulary, **more)
    result = streamline_obs(pd.DataFrame(frame), rules, (made,), (), "study")
    return {name: [None if pd.isna(v) else v for v in result[name]] for name in result}


IDS = "x_ontology_term_id"
BOTH = {"x": ["T cell", "B cell", None], IDS: ["CL:1", "CL:2", None]}


@pytest.mark.parametrize(
    "frame",
    [
        {"x": ["T cell", "B cell", None]},
        {"x": ["CL:1", "CL:2", None]},
        {"x": ["T cell", "CL:2", None]},
        {IDS: ["CL:1", "CL:2", None]},
        BOTH,
        {"x": ["T lymphocyte", "B cell", None], IDS: ["CL:1", "CL:2", None]},  # the id says what the synonym means
        {"x": ["T cell", None, None], IDS: ["CL:1", "CL:2", None]},
        {"x": ["T cell", "B cell", None], IDS: ["CL:1", None, None]},
        {"x": pd.Categorical(["T cell", "B cell", None], categories=["no term", "B cell", "T cell"])},
    ],
)
def test_labels_and_ids(frame: dict[str, Any]) -> None:
    assert worded(WITH_IDS, frame) == BOTH
    assert worded(Vocabulary(CL), frame) == {"x": BOTH["x"]}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            {"x": ["T-cell", "T-cell", "B cell"]},
            "got 'T-cell': did you mean 'T cell' (CL:1)? (2 cells); if that is what they are, map them (map: {T-cell:",
        ),
        ({"x": ["xyz", "B cell", "B cell"]}, "got 'xyz': no name is near (1 cells)"),
        ({"x": ["CL:3", None, None]}, "(CL:3) is obsolete, replaced by 'T cell' (CL:1) (1 cells); if that is what"),
        ({"x": ["obsolete T lymphocyte, old", None, None]}, "is obsolete, replaced by 'T cell' (CL:1)"),
        ({IDS: ["CL:5", None, None]}, "'old but gold' (CL:5) is obsolete, and nothing replaces it"),
        ({IDS: ["CL:9", None, None]}, "got 'CL:9': no name is near"),
        ({IDS: ["T cell", None, None]}, "got 'T cell', which is a label and no id: that is 'CL:1'"),
        (
            {"x": ["B cell", None, None], IDS: ["CL:1", None, None]},
            "got 'B cell', which is not CL:1: that is 'T cell' (1 cells)",
        ),
    ],
)
def test_words_that_are_none(frame: dict[str, Any], message: str) -> None:
    with pytest.raises(StreamlineError, match=re.escape(message)):
        worded(WITH_IDS, frame)


def test_many_words_that_are_none_are_counted() -> None:
    with pytest.raises(StreamlineError, match=r"'n00': .*'n07': no name is near \(1 cells\); and 4 more$"):
        worded(WITH_IDS, {"x": [f"n{i:02d}" for i in range(12)]})


def test_a_rule_is_for_the_labels_alone() -> None:
    rule = ObsRule("x", ("mine",), map={"t": "T cell"})
    assert worded(WITH_IDS, {"mine": ["t"], IDS: ["CL:2"]}, rule) == {"x": ["T cell"], IDS: ["CL:1"]}
    agreed = (rule, ObsRule(IDS, ("theirs",)))
    assert worded(WITH_IDS, {"mine": ["t"], "theirs": ["CL:1"]}, *agreed) == {"x": ["T cell"], IDS: ["CL:1"]}
    with pytest.raises(StreamlineError, match="'T cell', which is not CL:2: that is 'B cell'"):
        worded(WITH_IDS, {"mine": ["t"], "theirs": ["CL:2"]}, *agreed)


def test_words_beside_the_terms() -> None:
    frame = {"x": ["T cell", "unknown", None]}
    filled = {"x": ["T cell", "unknown", "unknown"], IDS: ["CL:1", "unknown", "unknown"]}
    assert worded(WITH_IDS, frame, missing="unknown") == filled
    assert worded(WITH_IDS, frame, values=("unknown",))["x"] == ["T cell", "unknown", None]
    assert worded(WITH_IDS, {"x": ["unknown"], IDS: ["unknown"]}, values=("unknown",))[IDS] == ["unknown"]
    with pytest.raises(StreamlineError, match="got 'T cell', which is not unknown: that is 'unknown'"):
        worded(WITH_IDS, {"x": ["T cell"], IDS: ["unknown"]}, values=("unknown",))
    assert worded(WITH_IDS, {"y": [1, 2]}, missing="unknown") == {"x": ["unknown"] * 2, IDS: ["unknown"] * 2}
    assert worded(WITH_IDS, {"y": [1, 2]}) == {}


def test_obsolete_terms_are_kept_where_the_build_file_says_so() -> None:
    keeping = Vocabulary(CL, term_ids="yes", obsolete="keep")
    assert worded(keeping, {IDS: ["CL:5"]}) == {"x": ["old but gold"], IDS: ["CL:5"]}
    with pytest.raises(StreamlineError, match="is obsolete"):  # a label says less than an id
        worded(keeping, {"x": ["old but gold"]})


def test_terms_under_others() -> None:
    narrow = Vocabulary(CL, under=("CL:1",))
    assert worded(narrow, {"x": ["T cell"]}) == {"x": ["T cell"]}
    with pytest.raises(StreamlineError, match="got 'B cell', which is none of CL:1 and what is below them"):
        worded(narrow, {"x": ["B cell"]})
    assert worded(Vocabulary(CL, under=("CL:0",)), {"x": ["B cell"]}) == {"x": ["B cell"]}


def test_several_ontologies() -> None:
    two = Vocabulary((("CL", "1"), ("ZFA", "1")), term_ids="yes")
    assert worded(two, {"x": ["fin", "T cell"]}) == {"x": ["fin", "T cell"], IDS: ["ZFA:1", "CL:1"]}
    assert worded(two, {"x": ["shared"], IDS: ["ZFA:2"]}) == {"x": ["shared"], IDS: ["ZFA:2"]}
    # CL is of all species, and comes before the same of one.
    assert worded(two, {"x": ["shared"]})[IDS] == ["CL:4"]
    stages = Vocabulary((("HsapDv", "1"), ("ZFA", "1")), term_ids="yes")
    assert worded(stages, {"x": ["ZFA:3"]})["x"] == ["adult"]
    with pytest.raises(StreamlineError, match="'adult', which may be HsapDv:1 or ZFA:3: give the id"):
        worded(stages, {"x": ["adult"]})


def test_several_terms_in_a_cell() -> None:
    several = Vocabulary(CL, term_ids="yes", separators=("||", ","))
    frame = {IDS: ["CL:1 || CL:2", "CL:1,CL:2", "CL:2"]}
    labels = ["T cell || B cell", "T cell,B cell", "B cell"]
    assert worded(several, frame) == {"x": labels, IDS: frame[IDS]}
    assert worded(several, {"x": labels, **frame})["x"] == labels
    with pytest.raises(StreamlineError, match="'T cell,fin', which is not CL:1,CL:2"):
        worded(several, {"x": ["T cell,fin"], IDS: ["CL:1,CL:2"]})
    with pytest.raises(StreamlineError, match="'CL:3': .* is obsolete, replaced by"):
        worded(several, {IDS: ["CL:1 || CL:3"]})


def test_required_ids() -> None:
    required = Vocabulary(CL, term_ids="required")
    with pytest.raises(StreamlineError, match=rf"obs.{IDS}: expected this required column"):
        worded(required, {"x": ["T cell"]})
    rule = ObsRule("x", value="T cell")
    assert worded(required, {"y": [1]}, rule) == {"x": ["T cell"], IDS: ["CL:1"]}


def test_another_release_on_a_worker_is_refused() -> None:
    with pytest.raises(StreamlineError, match="expected CL 2, as where the build was planned, got 1; install the same"):
        worded(Vocabulary((("CL", "2"),)), {"x": ["T cell"]})


@given(st.lists(st.sampled_from(["T cell", "CL:1", "B cell", "CL:2", "shared", "unknown", None]), max_size=20))
def test_labels_and_ids_are_of_the_same_term(values: list[str | None]) -> None:
    made = SchemaColumn("x", missing="unknown", dtype="category", vocabulary=WITH_IDS)
    known = {t.id: t.label for t in TERMS["CL"]} | {"unknown": "unknown"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ontology, "load", lambda _: Ontology("CL", "1", {t.id: t for t in TERMS["CL"]}))
        result = conform(made, pd.Series(values, dtype=object), None, len(values))
    assert result["x"].tolist() == [known.get(v or "unknown", v) for v in values]
    assert [known[i] for i in result[IDS]] == result["x"].tolist()
