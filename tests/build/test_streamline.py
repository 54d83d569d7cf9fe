"""Cells and values onto the store's schema: literal tables, pandas and scipy as oracles, real files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from daodask.build.genes import GeneLookup, feature_space, map_genes, read_reference, read_synonyms
from daodask.build.matrices import MappedBlock, map_block
from daodask.build.schema import SchemaColumn
from daodask.build.spec import FeatureSpec, ObsRule
from daodask.build.streamline import streamline_obs, summarise
from daodask.errors import StreamlineError
from daodask.format.manifest import ColumnSummary

# -- obs: dtypes ------------------------------------------------------------------------------------------------------

CELLS = ["a", "b", "b", "ç"]


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({k: pd.Series(v).array for k, v in columns.items()}, index=pd.Index(CELLS, dtype=object))


def kept(column: Any) -> pd.Series[Any]:
    return streamline_obs(frame(x=column), (), (), ("*",), "study")["x"]


def same(column: pd.Series[Any], expected: Any) -> None:
    wanted = expected if isinstance(expected, pd.Series) else pd.Series(expected)
    pd.testing.assert_series_equal(column, wanted.set_axis(pd.Index(CELLS, dtype=object)).rename("x"))


@pytest.mark.parametrize(
    "column",
    [
        np.array([1, 2, 3, 2**62], np.int64),
        np.array([1, 2, 3, 4], np.int8),
        np.array([1, 2, 3, 2**64 - 1], np.uint64),
        np.array([1.5, np.nan, np.inf, 0], np.float32),
        np.array([True, False, True, True]),
        pd.array([1, None, 3, 2**62], dtype="Int64"),
        pd.array([1, 2, 3, 4], dtype="UInt8"),
        pd.array([True, None, False, True], dtype="boolean"),
        pd.Categorical.from_codes(
            [0, -1, 2, 0], dtype=pd.CategoricalDtype(pd.Index(["b", "unused", "a"], dtype=object))
        ),
        pd.Categorical.from_codes([1, 0, 1, 0], dtype=pd.CategoricalDtype(pd.Index(["lo", "hi"], dtype=object), True)),
        pd.Categorical([3, 1, None, 3], categories=[3, 2, 1]),
        pd.Categorical([0.5, 1.5, None, 0.5]),
        pd.Categorical([True, False, None, True]),
        pd.Series(["ä", "b", "", "d"], dtype=object),
    ],
    ids=str,
)
def test_dtypes_are_kept(column: Any) -> None:
    same(kept(column), column)


TEXT = pd.CategoricalDtype(pd.Index(["u", "v"], dtype=object))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.array(["u", "v", "u", "u"], dtype="string"), pd.Series(["u", "v", "u", "u"], dtype=object)),
        (pd.array(["v", None, "u", "u"], dtype="string"), pd.Categorical.from_codes([1, -1, 0, 0], dtype=TEXT)),
        (pd.Series(["v", None, "u", np.nan], dtype=object), pd.Categorical.from_codes([1, -1, 0, -1], dtype=TEXT)),
        (
            pd.Categorical(pd.array(["v", "u", None, "u"], dtype="string")),
            pd.Categorical.from_codes([1, 0, -1, 0], dtype=TEXT),
        ),
        (pd.Series([True, None, False, True], dtype=object), pd.array([True, None, False, True], dtype="boolean")),
        (pd.Series([True, True, False, True], dtype=object), np.array([True, True, False, True])),
        (pd.Series([1, None, 2**62, 4], dtype=object), pd.array([1, None, 2**62, 4], dtype="Int64")),
        (pd.Series([1, 2, 3, 4], dtype=object), np.array([1, 2, 3, 4])),
        (pd.Series([1, 2.5, None, 4], dtype=object), np.array([1, 2.5, np.nan, 4])),
        (np.array([1, 2, 3, 4], np.float16), np.array([1, 2, 3, 4], np.float32)),
        (
            pd.Series([None] * 4, dtype=object),
            pd.Categorical.from_codes([-1] * 4, dtype=pd.CategoricalDtype(pd.Index([], dtype=object))),
        ),
    ],
    ids=str,
)
def test_conversions(column: Any, expected: Any) -> None:
    same(kept(column), expected)


@pytest.mark.parametrize(
    ("column", "got"),
    [
        (pd.Series(["a", 1, "b", 2], dtype=object), "values of several types"),
        (pd.Series([[1], [2], [3], [4]], dtype=object), "values of several types"),
        (pd.to_datetime(["2020-01-01"] * 4), r"datetime64\[\w+\]"),
        (pd.to_timedelta([1, 2, 3, 4]), r"timedelta64\[ns\]"),
        (pd.period_range("2020", periods=4, freq="D"), r"period\[D\]"),
        (pd.cut(pd.Series([1, 2, 3, 4]), 2), "a category of interval"),
        (np.array([1j] * 4), "complex128"),
    ],
)
def test_what_can_not_be_stored_is_refused(column: Any, got: str) -> None:
    with pytest.raises(StreamlineError, match=rf"study 'study': obs column 'x': expected numbers.*got {got}; convert"):
        kept(column)


def test_names_of_cells_are_kept() -> None:
    source = frame(x=[1, 2, 3, 4])
    assert streamline_obs(source, (), (), ("*",), "s").index.tolist() == CELLS
    numbered = source.reset_index(drop=True).rename_axis("cell")
    result = streamline_obs(numbered, (), (), ("*",), "s")
    assert result.index.dtype == object
    assert (result.index.tolist(), result.index.name) == (["0", "1", "2", "3"], None)


@pytest.mark.parametrize("n_columns", [0, 2])
def test_no_cell(n_columns: int) -> None:
    source = pd.DataFrame({f"c{i}": pd.Series([], dtype=object) for i in range(n_columns)})
    rules = (ObsRule("a", value="x"), ObsRule("b", value=1), *[ObsRule("c", ("c0", "c1"))][: n_columns // 2])
    result = streamline_obs(source, rules, (SchemaColumn("d", missing="y"),), ("*",), "s")
    assert result.shape == (0, 3 + n_columns + n_columns // 2)


# -- obs: rules -------------------------------------------------------------------------------------------------------


def ruled(source: pd.DataFrame, rule: ObsRule) -> list[Any]:
    column = streamline_obs(source, (rule,), (), (), "study")[rule.name]
    return [None if pd.isna(v) else v for v in column.tolist()]


SOURCE = frame(
    celltype=pd.Categorical(["T", "B", None, "T"], categories=["T", "B", "NK"]),
    mouse=[1, 2, 2, 1],
    plate=[0.0, 5.0, np.nan, 0.0],
    stim=[True, False, True, True],
    dataset=["p", "q", "p", "p"],
)


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        (ObsRule("t", ("mouse",)), [1, 2, 2, 1]),
        (ObsRule("t", ("celltype",), map={"T": "T cell"}), ["T cell", "B", None, "T cell"]),
        (ObsRule("t", ("celltype",), map={"T": "cell", "B": "cell", "NK": "x"}), ["cell", "cell", None, "cell"]),
        (ObsRule("t", ("celltype",), map={"T": None}), [None, "B", None, None]),
        (ObsRule("t", ("celltype",), map={"T": 1, "B": 2, "NK": 3}), [1, 2, None, 1]),
        (ObsRule("t", ("celltype",), map={"T": 1}), ["1", "B", None, "1"]),
        (ObsRule("t", ("mouse",), map={1: "one"}), ["one", "2", "2", "one"]),
        (ObsRule("t", ("mouse",), map={1: 10}), [10, 2, 2, 10]),
        (ObsRule("t", ("plate",), map={5: "five"}), ["0", "five", None, "0"]),
        (ObsRule("t", ("stim",), map={True: "yes", False: "no"}), ["yes", "no", "yes", "yes"]),
        (ObsRule("t", ("stim",), map={True: False, False: True}), [False, True, False, False]),
        (ObsRule("t", ("mouse", "plate")), ["1_0", "2_5", None, "1_0"]),
        (ObsRule("t", ("mouse", "celltype"), "-", {"1-T": "first"}), ["first", "2-B", None, "first"]),
        (ObsRule("t", value="blood"), ["blood"] * 4),
        (ObsRule("t", value=True), [True] * 4),
        (ObsRule("t", value=0), [0] * 4),
        (ObsRule("t", value=0.5), [0.5] * 4),
        (ObsRule("t", ("dataset",)), ["p", "q", "p", "p"]),
    ],
    ids=str,
)
def test_rules(rule: ObsRule, result: list[Any]) -> None:
    assert ruled(SOURCE, rule) == result
    assert [type(v) for v in ruled(SOURCE, rule)] == [type(v) for v in result]


def test_labels_of_rules_are_categories() -> None:
    rules = (
        ObsRule("mapped", ("celltype",), map={"T": "B"}),
        ObsRule("joined", ("mouse", "plate")),
        ObsRule("constant", value="blood"),
        ObsRule("number", value=3),
        ObsRule("flag", value=False),
        ObsRule("mapped_number", ("mouse",), map={1: 0.5}),
        ObsRule("mapped_missing", ("mouse",), map={1: None}),
        ObsRule("renamed", ("celltype",)),
    )
    result = streamline_obs(SOURCE, rules, (), (), "s")
    assert {n: list(result[n].cat.categories) for n in ("mapped", "joined", "constant", "renamed")} == {
        "mapped": ["B", "NK"],
        "joined": ["1_0", "2_5"],
        "constant": ["blood"],
        "renamed": ["T", "B", "NK"],
    }
    assert {str(n): str(d) for n, d in result.dtypes.items() if d != "category"} == {
        "number": "int64",
        "flag": "bool",
        "mapped_number": "float64",
        "mapped_missing": "Int64",
    }


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ObsRule("t", ("cell_type",)), "obs.t: the source has no column 'cell_type'; did you mean 'celltype'?"),
        (ObsRule("t", ("celltype",), map={"b": "B cell"}), "obs.t.map: no cell of 'celltype' has 'b'; known: 'T', 'B'"),
        (ObsRule("t", ("mouse",), map={"1": "x"}), "obs.t.map: no cell of 'mouse' has '1'"),
    ],
)
def test_rules_that_can_not_be_meant(rule: ObsRule, message: str) -> None:
    with pytest.raises(StreamlineError, match="study 'study': " + message.replace("?", r"\?")):
        ruled(SOURCE, rule)


@given(st.data())
def test_maps_and_joins_are_those_of_pandas(data: st.DataObject) -> None:
    labels = st.lists(st.sampled_from(["é", "b", "c_", "", None]), min_size=1, max_size=8)
    first = pd.Series(data.draw(labels), dtype=object)
    second = pd.Series(data.draw(st.lists(st.integers(-3, 3), min_size=len(first), max_size=len(first))))
    wanted: Mapping[Any, str] = data.draw(st.dictionaries(st.sampled_from([*first.dropna(), 0]), st.text(max_size=2)))
    mapping = {k: v for k, v in wanted.items() if k != 0}
    source = pd.DataFrame({"a": first, "b": second})
    if data.draw(st.booleans()):
        source["a"] = source["a"].astype("category")
    rules = (ObsRule("m", ("a",), map=mapping), ObsRule("j", ("a", "b"), "+"))
    result = streamline_obs(source, rules, (), (), "s")
    mapped = [None if pd.isna(v) else v for v in result["m"].tolist()]
    joined = [None if pd.isna(v) else v for v in result["j"].tolist()]
    assert mapped == [None if v is None else mapping.get(v, v) for v in first]
    assert joined == [None if v is None else f"{v}+{n}" for v, n in zip(first, second, strict=True)]


# -- obs: schema and keep ---------------------------------------------------------------------------------------------


def by_schema(*schema: SchemaColumn, rules: Sequence[ObsRule] = (), keep: Sequence[str] = ()) -> pd.DataFrame:
    return streamline_obs(SOURCE, rules, schema, keep, "study")


def test_order_of_columns() -> None:
    rules = (ObsRule("tissue", value="blood"), ObsRule("cell_type", ("celltype",)))
    schema = (SchemaColumn("cell_type"), SchemaColumn("mouse"), SchemaColumn("absent"))
    result = by_schema(*schema, rules=rules, keep=("p*", "mouse", "cell*"))
    assert list(result.columns) == ["cell_type", "mouse", "tissue", "celltype", "plate"]


def test_missing_values_are_filled() -> None:
    result = by_schema(
        SchemaColumn("celltype", True, "unknown"),
        SchemaColumn("plate", missing=-1),
        SchemaColumn("stim", missing=False),
        SchemaColumn("tissue", missing="unknown"),
    )
    assert result["celltype"].tolist() == ["T", "B", "unknown", "T"]
    assert result["celltype"].cat.categories.tolist() == ["T", "B", "NK", "unknown"]
    assert result["plate"].tolist() == [0, 5, -1, 0]
    assert result["stim"].dtype == bool
    assert result["tissue"].tolist() == ["unknown"] * 4


def test_filling_nullable_and_ordered_columns() -> None:
    source = frame(
        a=pd.array([1, None, 3, 4], dtype="Int64"),
        b=pd.array([True, None, False, True], dtype="boolean"),
        c=pd.Categorical(["lo", None, "hi", "lo"], categories=["lo", "hi"], ordered=True),
        d=pd.Categorical([1, None, 2, 1]),
        e=pd.Series(["x", None, "y", "x"], dtype=object),
    )
    fills = {"a": 0, "b": False, "c": "hi", "d": 9, "e": "?"}
    result = streamline_obs(source, (), [SchemaColumn(n, missing=v) for n, v in fills.items()], (), "s")
    assert {n: result[n].tolist()[1] for n in fills} == fills
    assert result["c"].cat.ordered
    assert result["d"].cat.categories.tolist() == [1, 2, 9]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (SchemaColumn("cell_type", True), "obs.cell_type: expected this required column.*did you mean 'celltype'"),
        (SchemaColumn("cell_type", True, "unknown"), "obs.cell_type: expected this required column"),
        (
            SchemaColumn("celltype", True),
            "obs.celltype: expected a value for every cell, as it is required, got 1 cells",
        ),
        (
            SchemaColumn("plate", missing="unknown"),
            r"obs.plate: expected missing: to be of the column's kind \(float64\)",
        ),
        (SchemaColumn("celltype", missing=0), "obs.celltype: expected missing: to be str as the other labels, got 0"),
    ],
)
def test_policies(column: SchemaColumn, message: str) -> None:
    with pytest.raises(StreamlineError, match=message):
        by_schema(column)


def test_a_reserved_name_needs_another() -> None:
    with pytest.raises(StreamlineError, match=r"keep: .* column 'dataset'.*obs: \{source_dataset: \{from: dataset\}\}"):
        by_schema(keep=("*",))
    result = by_schema(rules=(ObsRule("batch", ("dataset",)),), keep=("*",))
    assert list(result.columns) == ["batch", "celltype", "mouse", "plate", "stim"]


def test_names_with_a_slash_are_refused() -> None:
    source = frame(**{"a/b": [1, 2, 3, 4]})
    with pytest.raises(StreamlineError, match="expected column names without '/', got 'a/b'"):
        streamline_obs(source, (), (), ("*",), "s")
    assert list(streamline_obs(source, (ObsRule("c", ("a/b",)),), (), (), "s")) == ["c"]


def test_a_rule_takes_precedence_over_a_kept_column() -> None:
    result = by_schema(rules=(ObsRule("mouse", ("plate",)),), keep=("mouse",))
    assert result["mouse"].tolist()[:2] == [0, 5]


def test_the_source_is_left_as_it_is() -> None:
    before = SOURCE.copy(deep=True)
    result = by_schema(SchemaColumn("celltype", missing="?"), keep=("mouse", "plate"))
    result.loc["a", "mouse"] = 99
    pd.testing.assert_frame_equal(SOURCE, before)


# -- summaries --------------------------------------------------------------------------------------------------------


def test_summaries() -> None:
    source = frame(
        cat=pd.Categorical(["b", None, "b", "c"], categories=["a", "b", "c"], ordered=True),
        number=pd.Categorical([3, 1, 1, None]),
        text=["x", "y", "x", "x"],
        flag=[True, False, True, True],
        maybe=pd.array([True, None, None, True], dtype="boolean"),
        whole=np.array([5, -2, 3, 3], np.int16),
        large=pd.array([2**62 + 1, None, 0, 1], dtype="Int64"),
        real=np.array([0.5, np.nan, -1.0, 2.0]),
        open=np.array([np.inf, 1, 2, np.nan], np.float32),
        empty=np.full(4, np.nan),
    )
    summaries = summarise(streamline_obs(source, (), (), ("*",), "s"))
    assert summaries == (
        ColumnSummary("cat", "category", 1, ("a", "b", "c"), (0, 2, 1), True),
        ColumnSummary("number", "category", 1, (1, 3), (2, 1)),
        ColumnSummary("text", "string"),
        ColumnSummary("flag", "bool"),
        ColumnSummary("maybe", "bool", 2),
        ColumnSummary("whole", "int16", low=-2, high=5),
        ColumnSummary("large", "int64", 1, low=0, high=2**62 + 1),
        ColumnSummary("real", "float64", 1, low=-1.0, high=2.0),
        ColumnSummary("open", "float32", 1, low=1.0, high=None),
        ColumnSummary("empty", "float64", 4),
    )
    numbers = [v for s in summaries for v in (s.low, s.high, *s.categories, *s.counts)]
    assert {type(v) for v in numbers} <= {int, float, str, type(None)}


def test_summary_of_no_cell() -> None:
    source = pd.DataFrame({"a": pd.Series([], dtype=np.int32), "b": pd.Categorical([], categories=["x"])})
    assert summarise(streamline_obs(source, (), (), ("*",), "s")) == (
        ColumnSummary("a", "int32"),
        ColumnSummary("b", "category", 0, ("x",), (0,)),
    )


# -- real studies -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def human(data: Path) -> GeneLookup:
    reference = read_reference((data / "genes" / "genes_homo_sapiens.csv.gz").read_bytes())
    synonyms = read_synonyms((data / "genes" / "hgnc_complete_set.txt.gz").read_bytes())
    space = feature_space(FeatureSpec("human", "", biotypes=("protein_coding",)), reference, [])
    return GeneLookup.build(space, reference, synonyms)


def mapped(path: Path, matrix: str, human: GeneLookup) -> tuple[sp.csr_matrix, Any, MappedBlock]:
    adata = anndata.read_h5ad(path)
    source = adata.raw if matrix == "raw" else adata
    block = sp.csr_matrix(adata.layers.get(matrix, source.X))
    genes = map_genes(source.var_names, human)
    return block, genes, map_block(block, genes.target, genes.n_vars, "counts")


@pytest.mark.parametrize(
    ("study", "matrix", "total", "kept", "largest"),
    [
        ("pbmc_facs_zheng17", "X", 7675054, 7373584, 127),
        ("kang18_8k", "X", 11171820, 10337157, 2489),
        ("liver_bcells_cellxgene_v5", "raw", 403135, 234309, 638),
        ("pbmc_stim_counts_layer", "counts", 3081827, 2880249, 2950),
        ("pbmc_frozen_donorA_dense", "X", 6485285, 6265590, 231),
        ("sc_celseq2", "X", 10321416, 8798870, 1010),
        ("sc_dropseq", "X", 5830998, 5039525, 667),
    ],
)
def test_counts_of_real_studies(
    study: str, matrix: str, total: int, kept: int, largest: int, data: Path, human: GeneLookup
) -> None:
    block, genes, result = mapped(data / "studies" / f"{study}.h5ad", matrix, human)
    assert (result.total, result.kept, result.largest) == (total, kept, largest)
    assert result.matrix.dtype == np.uint16
    wide = block.astype(np.int64)
    placed = genes.target >= 0
    per_gene = np.zeros(genes.n_vars, np.int64)
    np.add.at(per_gene, genes.target[placed], np.asarray(wide.sum(axis=0)).ravel()[placed])
    np.testing.assert_array_equal(np.asarray(result.matrix.sum(axis=0, dtype=np.int64)).ravel(), per_gene)
    per_cell = wide[:, np.flatnonzero(placed)].sum(axis=1)
    np.testing.assert_array_equal(result.matrix.sum(axis=1, dtype=np.int64), per_cell)
    assert not result.matrix[:, np.flatnonzero(~genes.measured)].nnz


@pytest.mark.filterwarnings("ignore:.*written without encoding metadata")
def test_tpm_are_no_counts(data: Path, human: GeneLookup) -> None:
    with pytest.raises(StreamlineError, match=r"expected counts .* got 1\.53\d* in row 0, column 0.*kind: normalised"):
        mapped(data / "refuse" / "oligodendroglioma_tpm.h5ad", "X", human)


def test_obs_of_a_real_study(data: Path) -> None:
    with h5py.File(data / "studies" / "paul15_myeloid_dense.h5ad") as file:
        obs = anndata.io.read_elem(file["obs"])
    rules = (
        ObsRule("cell_type", ("cell_type2",)),
        ObsRule("donor_id", ("Mouse_ID", "Plate_ID")),
        ObsRule("tissue", value="bone marrow"),
    )
    result = streamline_obs(obs, rules, (SchemaColumn("cell_type", True, "unknown"),), ("*",), "paul15")
    assert len(result.columns) == len(obs.columns) + 2
    assert result["donor_id"].astype(str).tolist() == [
        f"{m}_{p}" for m, p in zip(obs["Mouse_ID"], obs["Plate_ID"], strict=True)
    ]
    summaries = {s.name: s for s in summarise(result)}
    for name in obs.columns.difference(["cell_type"]):
        assert result[name].dtype == obs[name].dtype or obs[name].dtype == "category"
        assert result[name].tolist() == obs[name].tolist() or obs[name].isna().any()
        assert summaries[name].n_missing == obs[name].isna().sum()
    assert (summaries["cluster"].low, summaries["cluster"].high) == (1, 17)


@pytest.mark.parametrize(("code", "standard"), [("q", "l"), ("Q", "L")])
def test_integers_are_of_the_one_type_of_64_bits_that_zarr_knows(code: str, standard: str) -> None:
    values = np.array([1, 2**62, 3], dtype=code)
    masked = pd.arrays.IntegerArray(values.copy(), np.array([False, True, False]))
    labels = pd.Categorical.from_codes([0, 1, 0], pd.Index(values[:2]))
    obs = pd.DataFrame({"plain": values, "masked": masked, "labels": labels}, index=list("abc"))
    found = streamline_obs(obs, (), (), ("*",), "study")
    assert found["plain"].to_numpy().dtype.char == standard
    assert found["masked"].to_numpy(dtype=values.dtype, na_value=0).tolist() == [1, 0, 3]
    assert found["masked"].array._data.dtype.char == standard
    assert found["labels"].cat.categories.to_numpy().dtype.char == standard
    assert [found[name].tolist() for name in ("plain", "labels")] == [[1, 2**62, 3], [1, 2**62, 1]]
