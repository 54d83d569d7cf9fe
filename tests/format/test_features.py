"""Feature spaces: their hash, their parquet file, and genes found by name."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.errors import FormatError, UnknownNameError
from daodask.format.features import FeatureSpace

VAR = pd.DataFrame(
    {"symbol": ["TSPAN6", "CD3E", "TBCE", "TBCE"], "length": [2000, 31, 5, 7], "coding": [True, False, True, True]},
    index=["ENSG00000000003", "ENSG00000198851", "ENSG00000284770", "ENSG00000285053"],
)
SPACE = FeatureSpace("human", VAR, "Homo sapiens")


def text(*values: object) -> bytes:
    """Length-prefixed texts, written down anew from SPEC.md."""
    return b"".join(len(str(v).encode()).to_bytes(8, "little") + str(v).encode() for v in values)


def test_the_hash_is_of_each_value_in_order() -> None:
    columns = [("gene_id", *VAR.index), *((name, *VAR[name]) for name in VAR)]
    expected = hashlib.sha256((4).to_bytes(8, "little") + b"".join(text(*c) for c in columns)).hexdigest()
    assert SPACE.hash == expected[:32] == "aade2e0f8943e7f3711f679f770b62f2"


@pytest.mark.parametrize(
    "other",
    [
        VAR.iloc[::-1],
        VAR.drop(columns="coding"),
        VAR[["length", "symbol", "coding"]],
        VAR.rename(columns={"length": "len"}),
        VAR.assign(length=[2000, 31, 5, 8]),
        VAR.rename(index={"ENSG00000198851": "ENSG00000198852"}),
    ],
)
def test_another_content_has_another_hash(other: pd.DataFrame) -> None:
    assert FeatureSpace("human", other).hash != SPACE.hash


def test_names_are_no_part_of_the_hash() -> None:
    assert FeatureSpace("other", VAR).hash == SPACE.hash


def test_genes_and_columns_are_not_mistaken_for_each_other() -> None:
    of_one = FeatureSpace("a", pd.DataFrame({"b": ["c"]}, index=["a"]))
    of_three = FeatureSpace("a", pd.DataFrame(index=["a", "b", "c"]))
    assert of_one.hash != of_three.hash


@given(st.lists(st.text(st.characters(codec="utf-8")), unique=True, max_size=20), st.data())
def test_parquet_round_trip(ids: list[str], data: st.DataObject) -> None:
    n = len(ids)
    texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=n, max_size=n)
    numbers = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n)
    var = pd.DataFrame(
        {
            "symbol": pd.Series(data.draw(texts), dtype=object),
            "length": np.array(data.draw(numbers), dtype=np.int64),
            "flag": np.array([i % 2 for i in range(n)], dtype=bool),
        }
    ).set_axis(pd.Index(ids, dtype=object), axis=0)
    space = FeatureSpace("a", var)
    back = FeatureSpace.from_parquet(space.to_parquet(), name="a")
    assert back.hash == space.hash
    pd.testing.assert_frame_equal(back.var, var)


def test_the_parquet_file_is_plain() -> None:
    data = SPACE.to_parquet()
    assert data == SPACE.to_parquet()
    table = pq.read_table(io.BytesIO(data))
    assert {f.name: str(f.type) for f in table.schema} == {
        "gene_id": "string",
        "symbol": "string",
        "length": "int64",
        "coding": "bool",
    }
    assert table.column("gene_id").to_pylist() == VAR.index.tolist()


def test_positions_by_id_and_by_symbol_in_the_order_given() -> None:
    found = SPACE.positions(["CD3E", "ENSG00000285053", "ENSG00000000003"])
    assert found.tolist() == [1, 3, 0]
    assert found.dtype == np.int64
    assert SPACE.positions([]).dtype == np.int64


@pytest.mark.parametrize(
    ("gene", "message"),
    [
        ("TBCE", "stands for several genes of 'human': 'ENSG00000284770', 'ENSG00000285053'; give the id"),
        ("CD3", "feature space 'human' has no gene 'CD3'; did you mean 'CD3E'?"),
        ("ENSG00000198850", "has no gene 'ENSG00000198850'; did you mean 'ENSG0"),
        ("xyzzy", r"has no gene 'xyzzy'; known: 'TSPAN6', 'CD3E', 'TBCE', … \(7 in all\)"),
    ],
)
def test_genes_that_are_not_found(gene: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        SPACE.positions([gene])


def test_without_symbols_genes_are_found_by_id() -> None:
    assert FeatureSpace("a", VAR[["length"]]).positions(["ENSG00000198851"]).tolist() == [1]


@pytest.mark.parametrize(
    ("var", "message"),
    [
        (pd.DataFrame(index=["a", "b", "a"]), "feature space 'x': expected unique gene ids, got 'a' twice"),
        (
            pd.DataFrame({"symbol": ["A", None]}, index=["a", "b"]),
            "feature space 'x': expected every gene to have a 'symbol', got some without",
        ),
    ],
)
def test_refused(var: pd.DataFrame, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        FeatureSpace("x", var)
