"""How much of a store a condition reads: nothing where the snapshot decides, and no more than the cells in question."""

from __future__ import annotations

import dataclasses
import io
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daodask
from daodask.errors import CorruptStoreError
from daodask.format.manifest import ColumnSummary, DatasetInfo, FeatureSpaceInfo, Snapshot, merge_schema
from daodask.parquet import parquet_metadata
from daodask.predicates import Extent
from daodask.row_groups import row_group_bounds, row_group_extents
from daodask.selection import Part, Selection
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.testing import coordinate_adata
from daodask.testing.recording import RecordingFileSystem, Request, recording

quick = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

BLOCK = 50


def studies() -> dict[str, Any]:
    """Three studies of 200 cells: four blocks each, with cells in the order of their donors, and a long text."""
    found = {}
    for number, name in enumerate("abc"):
        adata = coordinate_adata(200, 4, first=200 * number)
        adata.obs = adata.obs[["row", "cell_type", "score"]]
        adata.obs["donor"] = pd.Categorical([f"{name}{d}" for d in np.arange(200) // 40])
        adata.obs["depth"] = np.random.default_rng(number).permutation(200).astype(np.float32)
        adata.obs["essay"] = np.array([np.random.default_rng(i).bytes(200).hex() for i in range(200)], dtype=object)
        found[name] = adata
    found["b"].obs["only_b"] = np.arange(200)
    for name, adata in found.items():
        adata.obs["not_a"] = np.where(name == "a", np.nan, np.arange(200))
    found["c"].obs.loc[found["c"].obs_names[:BLOCK], "score"] = np.nan
    return found


@pytest.fixture(scope="module")
def store() -> Store:
    listed = [{"id": name, "source": adata} for name, adata in studies().items()]
    space, layout = {"name": "genes", "reference": "union"}, {"block_rows": BLOCK}
    spec = {"features": space, "keep": "all", "layout": layout, "studies": listed}
    assert daodask.build_store(spec, "memory://pushdown").ok
    return daodask.open_store("recording://pushdown")


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    """Footers are read anew in each test."""
    parquet_metadata.cache_clear()


@pytest.fixture(scope="module")
def obs(store: Store) -> pd.DataFrame:
    return store.obs.compute(scheduler="synchronous")


def column_bytes(store: Store, dataset: str, column: str, groups: list[int]) -> int:
    """Bytes of the chunks of a column in row groups."""
    with recording():
        metadata = parquet_metadata(store.location / store.snapshot.dataset[dataset].path / "obs.parquet")
    place = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}[column]
    return sum(metadata.row_group(g).column(place).total_compressed_size for g in groups)


def by_dataset(requests: list[Request]) -> dict[str, list[int]]:
    """Bytes of each request, by the dataset whose obs it reads; there are no others."""
    found: dict[str, list[int]] = {}
    for request in requests:
        assert (request.kind, request.name) == ("read", "obs.parquet")
        found.setdefault(request.path.split("/")[2].partition(".")[0], []).append(request.n_bytes)
    return found


@pytest.mark.parametrize(
    ("ask", "n_obs"),
    [
        (lambda s: s.subset(dataset="a"), 200),
        (lambda s: s.subset(exclude={"dataset": ["a", "b"]}), 200),
        (lambda s: s.subset("row < 400"), 400),
        (lambda s: s.subset("row > 10000 or dataset == 'b'"), 200),
        (lambda s: s.subset(row=daodask.Between(200, 399)), 200),
        (lambda s: s.subset(donor=["a0", "a1", "a2", "a3", "a4"]), 200),
        (lambda s: s.subset("only_b >= 0"), 200),
        (lambda s: s.subset(exclude={"only_b": [1000]}), 600),
        (lambda s: s.subset("not_a < 100", dataset="a"), 0),
        (lambda s: s.subset("depth >= 0 and depth <= 199"), 600),
        (lambda s: s.subset("not (depth < 0.5) or row >= 0"), 600),
        (lambda s: s.subset("celltype == 'x'", missing="ignore"), 0),
        (lambda s: s.subset(np.arange(600) % 2 == 0), 300),
        (lambda s: s.isel(slice(0, 600, 4)), 150),
        (lambda s: s.subset(dataset="a") | s.subset("row >= 400"), 400),
        (lambda s: ~s.subset(dataset="a"), 400),
        (lambda s: s.sample(60, by="dataset"), 60),
        (lambda s: s.split({"x": 0.5, "y": 0.5})["x"], 300),
        (lambda s: s.split({"x": 0.5, "y": 0.5}, by="dataset")["x"], 400),
    ],
)
def test_what_the_snapshot_decides_reads_nothing(store: Store, ask: Callable[[Store], Store], n_obs: int) -> None:
    with recording() as requests:
        assert ask(store).n_obs == n_obs
    assert requests == []


@pytest.mark.parametrize(
    ("query", "reads"),
    [
        # One dataset is undecided; of it, the row groups that the footer leaves open.
        ("row < 330", {"b": ("row", [2])}),
        ("190 <= row <= 310", {"a": ("row", [3]), "b": ("row", [2])}),
        ("row == 333", {"b": ("row", [2])}),
        ("donor == 'b2'", {"b": ("donor", [1, 2])}),
        ("only_b in [3, 180]", {"b": ("only_b", [0, 3])}),
        ("50 < depth < 150 and dataset == 'c'", {"c": ("depth", [0, 1, 2, 3])}),
        ("score > 300 and dataset == 'c'", {}),
        # No cell of the first row group has a value.
        ("score >= 0 and dataset == 'c'", {"c": ("score", [1, 2, 3])}),
        ("score < 230 and dataset == 'c'", {"c": ("score", [1])}),
        # The footer decides all row groups.
        ("row < 250", {"b": ("row", [])}),
        ("only_b >= 50", {"b": ("only_b", [])}),
        # What is decided of a condition is not read for the rest of it.
        ("dataset == 'a' and (row < 5 or donor == 'c1')", {"a": ("row", [0])}),
        ("row >= 400 or donor == 'a4'", {"a": ("donor", [3])}),
        ("not (row >= 30 or donor == 'c4')", {"a": ("row", [0])}),
    ],
)
def test_of_undecided_datasets_the_cells_in_question_are_read(
    store: Store, obs: pd.DataFrame, query: str, reads: dict[str, tuple[str, list[int]]]
) -> None:
    with recording() as requests:
        found = store.subset(query)
    assert found.selection.store_rows.tolist() == obs.query(query).index.tolist()
    read = by_dataset(requests)
    assert set(read) == set(reads)
    expected = {name: column_bytes(store, name, column, groups) for name, (column, groups) in reads.items()}
    # The footer is one request; what is read besides is the column's chunks, all at once.
    assert {name: sum(sizes[1:]) for name, sizes in read.items()} == expected
    assert {name: len(sizes) for name, sizes in read.items()} == {
        n: 1 + len(groups) for n, (_, groups) in reads.items()
    }
    assert all(sizes[0] <= 2**16 for sizes in read.values())
    with recording() as again:
        store.subset(query)
    assert {name: sum(sizes) for name, sizes in by_dataset(again).items()} == {n: b for n, b in expected.items() if b}


def test_several_columns_are_read_together_and_a_long_text_is_not(store: Store) -> None:
    with recording() as requests:
        store.subset("depth < 20 and cell_type == 'T cell'", dataset="a")
    expected = sum(column_bytes(store, "a", column, [0, 1, 2, 3]) for column in ("depth", "cell_type"))
    assert sum(by_dataset(requests)["a"][1:]) == expected < column_bytes(store, "a", "essay", [0]) / 2


def test_selected_cells_alone_are_asked_about(store: Store, obs: pd.DataFrame) -> None:
    part = store[440:445]
    with recording() as requests:
        found = part.subset("depth >= 100")
    assert found.selection.store_rows.tolist() == obs.iloc[440:445].query("depth >= 100").index.tolist()
    assert sum(by_dataset(requests)["c"][1:]) == column_bytes(store, "c", "depth", [0])


@pytest.mark.parametrize(
    "draw", [lambda s: s.sample(30, by="cell_type"), lambda s: s.split({"x": 0.5, "y": 0.5}, by="cell_type")]
)
def test_drawing_reads_what_it_draws_by(store: Store, draw: Callable[[Store], object]) -> None:
    with recording() as requests:
        draw(store)
    read = by_dataset(requests)
    assert {name: sum(sizes[1:]) for name, sizes in read.items()} == {
        name: column_bytes(store, name, "cell_type", [0, 1, 2, 3]) for name in "abc"
    }


def test_a_function_reads_the_columns_named(store: Store) -> None:
    with recording() as requests:
        store.subset(lambda obs: obs["row"] % 2 == 0, columns=["row"], dataset="b")
    assert sum(by_dataset(requests)["b"][1:]) == column_bytes(store, "b", "row", [0, 1, 2, 3])


def test_loading_a_selection_reads_the_file_alone(store: Store) -> None:
    store.subset("row > 300").save_selection("memory://pushed.parquet")
    with recording() as requests:
        found = store.load_selection("recording://pushed.parquet")
    assert [(r.kind, r.path) for r in requests] == [("read", "pushed.parquet")]
    assert found.n_obs == 299


@given(data=st.data())
@settings(quick, max_examples=60)
def test_pruned_row_groups_change_no_result(store: Store, obs: pd.DataFrame, data: st.DataObject) -> None:
    number = st.integers(-10, 610)
    leaf = st.one_of(
        st.builds("row {} {}".format, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), number),
        st.builds("score {} {}".format, st.sampled_from(["<", ">="]), number.map(lambda n: n / 2)),
        st.builds("depth {} {}".format, st.sampled_from(["<=", ">"]), st.integers(-1, 201)),
        st.builds("donor {} {!r}".format, st.sampled_from(["==", "!="]), st.sampled_from(["a0", "a3", "b2", "c4"])),
        st.builds("row in {}".format, st.lists(number, min_size=1, max_size=3)),
        st.builds("donor not in {!r}".format, st.lists(st.sampled_from(["a0", "b1", "c3"]), min_size=1)),
    )
    query = data.draw(
        st.recursive(
            leaf,
            lambda inner: (
                st.builds("({} and {})".format, inner, inner)
                | st.builds("({} or {})".format, inner, inner)
                | st.builds("not ({})".format, inner)
            ),
            max_leaves=4,
        )
    )
    rows = slice(*sorted(data.draw(st.tuples(st.integers(0, 600), st.integers(0, 600)))), data.draw(st.integers(1, 90)))
    expected = obs.iloc[rows].query(query).index.tolist()
    assert store[rows].subset(query).selection.store_rows.tolist() == expected


# -- numbers of all kinds ------------------------------------------------------------------------------------------

NUMBERS: dict[str, dict[str, Any]] = {
    "a": {
        "single": np.array([0.1, 0.1, 0.3, np.nan, 0.7, np.inf], np.float32),
        "mixed": np.array([0.1, 0.2, 0.3, 0.1, 0.1, 0.1], np.float32),
        "small": np.array([0, 255, 3, 3, 3, 3], np.uint8),
        "large": np.array([2**62, 2**62 + 1, 0, -1, 5, 5], np.int64),
        "maybe": pd.array([1, None, 3, None, None, None], dtype="Int64"),
        "flag": np.array([True, False, True, True, True, True]),
    },
    "b": {
        "single": np.array([0.1, 0.1, 0.1, 0.1], np.float32),
        "mixed": np.array([0.1, 0.1, 0.1, 0.2], np.float64),
        "small": np.array([7, 7, 7, 7], np.uint8),
        "large": np.array([2**62, 2**62, 2**62, 2**62], np.int64),
        "maybe": np.array([2, 2, 2, 2], np.int64),
        "flag": pd.array([True, None, True, True], dtype="boolean"),
    },
}
ASKED: dict[str, list[Any]] = {
    "single": [0.1, 0.3, 0.7, 1, 0.10000000149011612],
    "mixed": [0.1, 0.2, 0.10000000149011612],
    "small": [-1, 0, 3, 6.5, 7.0, 255, 256, 1e300],
    "large": [2**62, 2**62 + 1, 2**62 + 0.5, 2**64, -0.5, 5],
    "maybe": [1, 1.5, 2, 3],
    "flag": [True, False, 1, 2],
}


@pytest.fixture(scope="module")
def numbers() -> Store:
    listed = []
    for name, columns in NUMBERS.items():
        adata = coordinate_adata(len(columns["small"]), 4)
        adata.obs = pd.DataFrame(columns, index=adata.obs_names)
        listed.append({"id": name, "source": adata})
    space, layout = {"name": "genes", "reference": "union"}, {"block_rows": 2}
    spec = {"features": space, "keep": "all", "layout": layout, "studies": listed}
    report = daodask.build_store(spec, "memory://numbers")
    assert report.ok, str(report)
    return daodask.open_store("memory://numbers")


def in_column(store: Store, column: str, value: Any) -> Any:
    """A number as a column of fractions rounds it; others compare exactly."""
    dtype = next(c.dtype for c in store.obs_schema if c.name == column)
    return float(np.dtype(dtype).type(value)) if dtype.startswith("float") else value


RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, asked in ASKED.items() for value in asked])
@pytest.mark.parametrize("relation", [*RELATIONS, "in"])
def test_snapshot_footer_and_cells_agree(numbers: Store, column: str, value: Any, relation: str) -> None:
    cells = numbers.obs[column].compute(scheduler="synchronous").astype(object)
    holds, other = RELATIONS.get(relation, operator.eq), in_column(numbers, column, value)
    expected = [r for r, cell in cells.items() if not pd.isna(cell) and holds(cell, other)]
    query = f"{column} in [{value!r}]" if relation == "in" else f"{column} {relation} {value!r}"
    for rows in (range(10), [0, 1, 6], [2, 3, 7, 8], *([r] for r in range(10))):
        part = numbers[list(rows)]
        assert part.subset(query).selection.store_rows.tolist() == [r for r in expected if r in rows]
        assert part.subset(f"not ({query})").n_obs == len(rows) - len([r for r in expected if r in rows])


# -- many datasets -------------------------------------------------------------------------------------------------


def test_a_thousand_datasets_are_pruned_without_a_look() -> None:
    labels = tuple(f"type {i}" for i in range(20))
    infos = [
        DatasetInfo(
            f"d{k}", f"datasets/d{k}.0", "genes", 100_000, (0, 100_000), (),
            columns=(
                ColumnSummary("kind", "category", 0, labels, tuple(100_000 * (i == k % 20) for i in range(20))),
                ColumnSummary("depth", "float64", 0, low=float(k), high=k + 0.5),
            ),
        )
        for k in range(1000)
    ]  # fmt: skip
    space = FeatureSpaceInfo("genes", "0", 10, obs=merge_schema(infos))
    parts = tuple(Part(info.id, info.blocks, 100_000 * k) for k, info in enumerate(infos))
    snapshot = Snapshot(1, "", "", features=(space,), datasets=tuple(infos))
    # Nothing is there: whatever would be read is an error.
    store = Store(StoreLocation("memory://nowhere"), snapshot, space, Selection(parts, 10))
    assert store.subset(kind=["type 3", "type 4"]).n_obs == 10**7
    assert store.subset("depth >= 990 and kind != 'type 19'").n_obs == 900_000
    assert store.subset(depth=daodask.Between(100, 199.5), exclude={"kind": "type 0"}).n_obs == 95 * 100_000
    assert (store.subset(kind="type 3") | ~store.subset("depth >= 500")).n_obs == 525 * 100_000
    assert (
        store.subset(kind="type 3").sample(1000, by=["kind", "dataset"]).value_counts("dataset").tolist() == [20] * 50
    )
    with pytest.raises(CorruptStoreError, match="expected a file at memory://nowhere/datasets/d7.0/obs.parquet"):
        store.subset("depth > 7.2")


# -- what footers know ---------------------------------------------------------------------------------------------


def footer(**columns: Any) -> pq.FileMetaData:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=2)
    return pq.read_metadata(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        (pa.array([3, 1, 7, 7]), Extent(None, 1, 3, missing=False), Extent(None, 7, 7, missing=False)),
        (pa.array([3, None, None, None]), Extent(None, 3, 3), None),
        (pa.array([2**64 - 1, 0, 1, 1], pa.uint64()), Extent(None, 0, 2**64 - 1, missing=False),
         Extent(None, 1, 1, missing=False)),
        (pa.array([0.5, None, 1.0, np.inf], pa.float32()), Extent(None, 0.5, 0.5),
         Extent(None, 1.0, np.inf, missing=False)),
        (pa.array(["ü", "a", "b", "b"]), Extent(None, "a", "ü", missing=False), Extent(None, "b", "b", missing=False)),
        (pa.array(["ü", None, "b", "c"]).dictionary_encode(), Extent(None, "ü", "ü"),
         Extent(None, "b", "c", missing=False)),
        (pa.array([True, False, True, True]), Extent(None, False, True, missing=False),
         Extent(None, True, True, missing=False)),
        # Where NaN is a value, as another writer may have it, the ends are of the others.
        (pa.array([np.nan, np.nan, 1.0, 2.0]), Extent(None, missing=False), Extent(None, 1.0, 2.0, missing=False)),
        (pa.array([b"a", b"b", b"c", b"d"]), Extent(None, missing=False), Extent(None, missing=False)),
    ],
)  # fmt: skip
def test_what_a_footer_knows(values: Any, first: Extent, second: Extent | None) -> None:
    found = row_group_extents(footer(x=values, y=[1, 2, 3, 4]), ["x", "absent"])
    assert found == [{"x": first}, {} if second is None else {"x": second}]


def test_a_footer_without_statistics_knows_nothing() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": [1, 2, 3]}), buffer, row_group_size=2, write_statistics=False)
    metadata = pq.read_metadata(io.BytesIO(buffer.getvalue()))
    assert row_group_extents(metadata, ["x"]) == [{"x": Extent()}, {"x": Extent()}]
    assert row_group_bounds(metadata) == [0, 2, 3]


def test_obs_of_another_length_than_the_snapshot_says(store: Store) -> None:
    short = dataclasses.replace(store.snapshot.datasets[0], n_obs=199, blocks=(0, 199))
    snapshot = dataclasses.replace(store.snapshot, datasets=(short,))
    damaged = Store(store.location, snapshot, store.feature_space, Selection((Part("a", (0, 199), 0),), 4))
    with pytest.raises(
        CorruptStoreError, match="obs.parquet: expected the 199 cells of the snapshot, got 200; restore it"
    ):
        damaged.subset("row < 7")


# -- the recorder --------------------------------------------------------------------------------------------------


def test_requests_are_written_down_once_each() -> None:
    fs = RecordingFileSystem()
    with recording() as requests:
        fs.pipe_file("recording://noted/x", b"0123456789")
        assert fs.cat_file("recording://noted/x", 2, 5) == b"234"
        assert fs.cat_ranges(["recording://noted/x"] * 2, [0, -2], [4, None]) == [b"0123", b"89"]
        with fs.open("recording://noted/x") as file:
            assert file.read(3) == b"012"
        fs.ls("recording://noted")
        with pytest.raises(FileNotFoundError):
            fs.cat_file("recording://noted/y")
    assert [r for r in requests if r.kind != "info"] == [
        Request("write", "noted/x", 10),
        *(Request("read", "noted/x", n) for n in (3, 4, 2, 3)),
        Request("list", "noted"),
    ]
    fs.cat_file("recording://noted/x")
    assert len([r for r in requests if r.kind == "read"]) == 4
