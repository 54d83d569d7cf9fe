"""Snapshots as values and as JSON, and the rules by which obs schemas merge."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.errors import FormatError, FormatVersionError, SelectionError
from daodask.format.manifest import (
    ColumnSummary,
    DatasetInfo,
    FeatureSpaceInfo,
    MatrixInfo,
    ObsColumn,
    ObsmInfo,
    Snapshot,
    merge_schema,
)

# -- JSON ----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
COUNT = st.integers(0, 2**53)
NUMBER = st.none() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
FACTS = st.dictionaries(TEXT, PLAIN, max_size=3)
LABELS = (
    st.lists(TEXT, max_size=4).map(tuple)
    | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple)
    | st.lists(st.booleans(), max_size=2).map(tuple)
)


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=3).map(tuple)


SUMMARY = st.builds(ColumnSummary, TEXT, TEXT, COUNT, LABELS, several(COUNT), st.booleans(), NUMBER, NUMBER)
COLUMN = st.builds(ObsColumn, TEXT, TEXT, LABELS, st.booleans(), st.booleans())
MATRIX = st.builds(MatrixInfo, TEXT, TEXT, TEXT, COUNT, st.floats(allow_nan=False, allow_infinity=False))
OBSM = st.builds(ObsmInfo, TEXT, TEXT, COUNT)
DATASET = st.builds(
    DatasetInfo,
    *(TEXT, TEXT, TEXT, COUNT, several(COUNT), several(MATRIX), several(OBSM), several(SUMMARY)),
    *(FACTS, TEXT, COUNT, TEXT, FACTS, FACTS),
)
SPACE = st.builds(FeatureSpaceInfo, TEXT, TEXT, COUNT, TEXT, several(COLUMN))
SNAPSHOT = st.builds(Snapshot, COUNT, TEXT, TEXT, TEXT, several(SPACE), several(DATASET))


@given(SNAPSHOT)
def test_json_round_trip(snapshot: Snapshot) -> None:
    data = snapshot.to_json()
    assert Snapshot.from_json(data) == snapshot
    assert Snapshot.from_json(data).to_json() == data


def test_json_is_sorted_utf8_without_spaces() -> None:
    assert Snapshot(1, "2026-01-01T00:00:00+00:00", "daodask 1", "Größe").to_json() == (
        b'{"author":"","created":"2026-01-01T00:00:00+00:00","datasets":[],"features":[],"format":1,'
        b'"message":"Gr\xc3\xb6\xc3\x9fe","number":1,"written_by":"daodask 1"}'
    )


def dataset(name: str = "a", *columns: ColumnSummary, **given_: Any) -> DatasetInfo:
    return DatasetInfo(name, f"datasets/{name}.0", "f", 10, (0, 10), (), columns=columns, **given_)


def test_numbers_that_json_lacks_are_null() -> None:
    bad = replace(
        dataset(uns={"x": math.nan, "y": [math.inf]}, report={"counts_total": -math.inf}),
        matrices=(MatrixInfo("X", "other", "float32", 3, math.inf),),
    )
    back = Snapshot.from_json(Snapshot(1, "", "", datasets=(bad,)).to_json()).datasets[0]
    assert math.isnan(back.matrix["X"].largest)
    assert (back.uns, back.report) == ({"x": None, "y": [None]}, {"counts_total": None})


def test_unknown_keys_are_passed_over_at_every_level() -> None:
    column = ColumnSummary("c", "category", 0, ("x",), (10,))
    full = replace(
        dataset("a", column), matrices=(MatrixInfo("X", "counts", "uint16", 3),), obsm=(ObsmInfo("p", "i1", 2),)
    )
    space = FeatureSpaceInfo("f", "00", 3, obs=(ObsColumn("c", "category", ("x",)),))
    snapshot = Snapshot(1, "", "", features=(space,), datasets=(full,))
    assert Snapshot.from_json(json.dumps(with_extras(json.loads(snapshot.to_json()))).encode()) == snapshot


def with_extras(value: Any) -> Any:
    """The value with a key that nobody knows in each of its objects that stand for something."""
    if isinstance(value, list):
        return [with_extras(v) for v in value]
    if isinstance(value, dict) and value:
        return {**{k: with_extras(v) for k, v in value.items()}, "a newer key": {"x": [1]}}
    return value


def test_optional_keys_may_be_absent() -> None:
    assert Snapshot.from_json(b'{"format":1,"number":2,"created":"","written_by":""}') == Snapshot(2, "", "")


def test_a_newer_format_is_refused_with_what_to_do() -> None:
    data = b'{"format": 2, "written_by": "daodask 9.1", "number": "anything"}'
    with pytest.raises(
        FormatVersionError,
        match="^here: written by a newer daodask: daodask 9.1 uses format 2, this one reads up to 1; upgrade daodask$",
    ):
        Snapshot.from_json(data, where="here")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"\xff", b"null", b"3", b"[]", b"{}", b"[" * 100_000, b'{"number": 1}'),
        *(b'{"format": %b}' % value for value in (b'"x"', b"null", b"Infinity", b"1.5", b"true")),
    ],
)
def test_what_is_no_snapshot(data: bytes) -> None:
    with pytest.raises(FormatError, match="^snapshot: expected a daodask snapshot"):
        Snapshot.from_json(data)


@given(st.binary(max_size=64) | PLAIN.map(lambda v: json.dumps(v).encode()))
def test_garbage_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        Snapshot.from_json(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": "1"},
        {"number": True},
        {"number": 1.0},
        {"created": 5},
        {"message": None},
        {"datasets": {}},
        {"datasets": [1]},
        {"datasets": "abc"},
        {"features": [{"name": "f"}]},
    ],
)
def test_fields_of_another_type(wrong: dict[str, Any]) -> None:
    value = {"format": 1, "number": 1, "created": "", "written_by": "", **wrong}
    with pytest.raises(FormatError, match="^snapshot: not a valid snapshot of format 1: "):
        Snapshot.from_json(json.dumps(value).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_obs": None},
        {"blocks": "abc"},
        {"blocks": [0, 1.5]},
        {"uns": 5},
        {"uns": []},
        {"columns": [{"name": "c"}]},
        {"columns": [{"name": "c", "dtype": "category", "categories": [None]}]},
        {"columns": [{"name": "c", "dtype": "int64", "low": "a"}]},
    ],
)
def test_fields_of_a_dataset_of_another_type(wrong: dict[str, Any]) -> None:
    value = json.loads(Snapshot(1, "", "", datasets=(dataset(),)).to_json())
    value["datasets"][0].update(wrong)
    with pytest.raises(FormatError, match="^snapshot: not a valid snapshot of format 1: "):
        Snapshot.from_json(json.dumps(value).encode())


# -- the obs schema ------------------------------------------------------------------------------------------------


def cat(*labels: Any, n_missing: int = 0, ordered: bool = False) -> ColumnSummary:
    return ColumnSummary("c", "category", n_missing, labels, (1,) * len(labels), ordered)


def of(dtype: str, n_missing: int = 0) -> ColumnSummary:
    return ColumnSummary("c", dtype, n_missing)


def merged(*columns: ColumnSummary | None, previous: tuple[ObsColumn, ...] = ()) -> tuple[ObsColumn, ...]:
    """The schema of datasets of which each has one column, or none."""
    return merge_schema([dataset(f"d{i}", *([] if c is None else [c])) for i, c in enumerate(columns)], previous)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([cat("a", "b")], ObsColumn("c", "category", ("a", "b"))),
        ([cat("b", "a"), cat("c", "a")], ObsColumn("c", "category", ("b", "a", "c"))),
        ([cat("a"), cat()], ObsColumn("c", "category", ("a",))),
        ([cat(), cat(2, 1)], ObsColumn("c", "category", (2, 1))),
        ([cat("a"), cat("b", n_missing=1)], ObsColumn("c", "category", ("a", "b"), nullable=True)),
        ([cat("a"), None], ObsColumn("c", "category", ("a",), nullable=True)),
        ([cat("a", "b", ordered=True)], ObsColumn("c", "category", ("a", "b"), ordered=True)),
        ([cat("a", "b", ordered=True)] * 2, ObsColumn("c", "category", ("a", "b"), ordered=True)),
        ([cat("a", "b", ordered=True), cat("b", "a", ordered=True)], ObsColumn("c", "category", ("a", "b"))),
        ([cat("a", ordered=True), cat("a")], ObsColumn("c", "category", ("a",))),
        ([cat("a"), of("string")], ObsColumn("c", "string")),
        ([of("string", 1), cat("a")], ObsColumn("c", "string", nullable=True)),
        ([of("bool"), of("bool")], ObsColumn("c", "bool")),
        ([of("int8"), of("int64")], ObsColumn("c", "int64")),
        ([of("uint8"), of("int8")], ObsColumn("c", "int16")),
        ([of("uint32"), of("int32"), None], ObsColumn("c", "int64", nullable=True)),
        ([of("int64"), of("float32")], ObsColumn("c", "float64")),
        ([of("int16"), of("float32")], ObsColumn("c", "float32")),
        ([of("float32"), of("float64", 2)], ObsColumn("c", "float64", nullable=True)),
    ],
)
def test_merging(columns: list[ColumnSummary | None], expected: ObsColumn) -> None:
    assert merged(*columns) == (expected,)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([cat("a"), of("int64")], "obs column 'c' is category of str in 'd0' but int64 in 'd1'; map one of them"),
        ([of("bool"), of("int8")], "is bool in 'd0' but int8 in 'd1'"),
        ([of("string"), of("float64")], "is string in 'd0' but float64 in 'd1'"),
        ([of("int64"), of("uint64")], "is int64 in 'd0' but uint64 in 'd1'"),
        ([cat("a"), cat(1)], "is category of str in 'd0' but category of int in 'd1'"),
        ([cat(1), cat(1.5)], "is category of int in 'd0' but category of float in 'd1'"),
        ([cat(True), cat(1)], "is category of bool in 'd0' but category of int in 'd1'"),
        ([cat(), cat(1), cat("a")], "is category of int in 'd1' but category of str in 'd2'"),
        ([cat(1), of("string")], "is category of int in 'd0' but string in 'd1'"),
        ([cat(1.0, math.inf)], "has an infinite label in 'd0'"),
    ],
)
def test_what_does_not_merge(columns: list[ColumnSummary], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        merged(*columns)


def test_columns_keep_the_order_of_earlier_snapshots() -> None:
    previous = (ObsColumn("z", "bool"), ObsColumn("gone", "bool"), ObsColumn("a", "bool"))
    new = dataset("d", *(ColumnSummary(n, "bool") for n in ("new", "a", "z")))
    assert [c.name for c in merge_schema([new], previous)] == ["z", "a", "new"]


def test_an_ordered_column_keeps_its_own_order() -> None:
    previous = (ObsColumn("c", "category", ("b", "a")),)
    assert merged(cat("a", "b", ordered=True), previous=previous)[0].categories == ("a", "b")


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True).map(tuple), min_size=1, max_size=6))
def test_codes_never_change_their_meaning(snapshots: list[tuple[str, ...]]) -> None:
    schema: tuple[ObsColumn, ...] = ()
    seen: tuple[str, ...] = ()
    for labels in snapshots:  # each replaces what was there before
        schema = merged(cat(*labels), previous=schema)
        assert schema[0].categories[: len(seen)] == seen
        assert set(schema[0].categories) == {*seen, *labels}
        seen = schema[0].categories  # type: ignore[assignment]
