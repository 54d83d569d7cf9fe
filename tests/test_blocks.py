"""Blocks as they are read back from a store, of which every value says where it belongs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.blocks import BlockAddress, empty_obs, read_matrix, read_obs, read_obsm, read_var
from daodask.errors import CorruptStoreError
from daodask.format.manifest import ObsColumn
from daodask.store import Store
from daodask.testing import coordinate_adata, coordinate_counts, random_store

N_VARS, FIRST, N_OBS = 40, 300, 900
IDS = ("study0", "study1", "study2")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("blocks") / "store", (FIRST, N_OBS, 0), n_vars=N_VARS, block_rows=128)


def address(store: Store, rows: list[int] | None = None, start: int = 0, stop: int = N_OBS) -> BlockAddress:
    """Rows of the second dataset."""
    where = store.location / store.snapshot.dataset["study1"].path
    return BlockAddress(where, "study1", FIRST, start, stop, None if rows is None else np.array(rows, np.int64))


ROWS = st.lists(st.integers(0, N_OBS - 1), unique=True, max_size=60).map(sorted)
RANGE = st.tuples(st.integers(0, N_OBS), st.integers(0, N_OBS)).map(sorted)


def expected_counts(block: BlockAddress) -> np.ndarray:
    return coordinate_counts(block.local_rows + FIRST, N_VARS).toarray()


@given(ROWS)
def test_runs_cover_the_rows_and_no_long_gap(rows: list[int]) -> None:
    block = BlockAddress(None, "", 0, 0, N_OBS, np.array(rows, np.int64))  # type: ignore[arg-type]
    runs = list(block.runs())
    assert all(any(a <= r < b for a, b in runs) for r in rows)
    assert all(a in rows and b - 1 in rows for a, b in runs)
    assert all(c - b >= 256 for (_, b), (c, _) in pairwise(runs))
    for a, b in runs:
        assert max(np.diff([r for r in rows if a <= r < b]), default=0) <= 256


@given(rows=ROWS, genes=st.none() | st.lists(st.integers(0, N_VARS - 1), unique=True))
def test_selected_rows_and_genes(store: Store, rows: list[int], genes: list[int] | None) -> None:
    block = address(store, rows)
    matrix = read_matrix(block, "X", None if genes is None else np.array(genes, np.int64), "float32")
    expected = expected_counts(block)
    np.testing.assert_array_equal(matrix.toarray(), expected if genes is None else expected[:, genes])
    assert (matrix.dtype, matrix.indices.dtype) == (np.float32, np.int32)
    assert matrix.has_sorted_indices
    np.testing.assert_array_equal(read_obsm(block, "place", "float32")[:, 0], block.local_rows + FIRST)


@given(RANGE)
def test_a_run_of_rows(store: Store, bounds: list[int]) -> None:
    block = address(store, None, *bounds)
    np.testing.assert_array_equal(read_matrix(block, "X", None, "float64").toarray(), expected_counts(block))
    half = read_matrix(block, "layers/half", None, "float32")
    np.testing.assert_array_equal(half.toarray(), expected_counts(block) / 2)
    assert read_obsm(block, "place", "float32").shape == (bounds[1] - bounds[0], 2)


@given(st.none() | ROWS, RANGE)
def test_obs_of_a_block(store: Store, rows: list[int] | None, bounds: list[int]) -> None:
    block = address(store, rows, *([0, N_OBS] if rows is not None else bounds))
    found = read_obs(block, store.obs_schema, IDS)
    expected = coordinate_adata(N_OBS, N_VARS, first=FIRST).obs.iloc[block.local_rows]
    assert found.index.tolist() == (block.local_rows + FIRST).tolist()
    assert found["row"].tolist() == found.index.tolist()
    assert found["obs_names"].tolist() == expected.index.tolist()
    assert found["dataset"].tolist() == ["study1"] * len(found)
    for name in expected:
        pd.testing.assert_series_equal(
            found[name].reset_index(drop=True), expected[name].reset_index(drop=True), check_names=False
        )


def test_columns_in_the_order_asked_for(store: Store) -> None:
    found = read_obs(address(store, [5]), store.obs_schema, IDS, ["odd", "dataset", "row"])
    assert found.columns.tolist() == ["odd", "dataset", "row"]
    assert found.iloc[0].tolist() == [True, "study1", FIRST + 5]
    assert found["dataset"].cat.categories.tolist() == list(IDS)


def test_every_block_has_the_dtypes_of_the_empty_one(store: Store) -> None:
    nothing = empty_obs(store.obs_schema, IDS)
    for block in (address(store, [1, 700]), address(store, []), address(store, None, 100, 300)):
        assert read_obs(block, store.obs_schema, IDS).dtypes.to_dict() == nothing.dtypes.to_dict()


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        (ObsColumn("absent", "category", ("a",), nullable=True), "category", [None, None]),
        (ObsColumn("absent", "int32", nullable=True), "Int32", [None, None]),
        (ObsColumn("absent", "uint8", nullable=True), "UInt8", [None, None]),
        (ObsColumn("absent", "bool", nullable=True), "boolean", [None, None]),
        (ObsColumn("absent", "float32", nullable=True), "float32", [None, None]),
        (ObsColumn("absent", "string", nullable=True), "object", [None, None]),
        (ObsColumn("row", "int64", nullable=True), "Int64", [300, 301]),
        (ObsColumn("row", "float64"), "float64", [300.0, 301.0]),
        (ObsColumn("odd", "bool", nullable=True), "boolean", [False, True]),
        (ObsColumn("cell_type", "string"), "object", [None, "T cell"]),
        (ObsColumn("note", "category", ("note 301", "note 300")), "category", ["note 300", "note 301"]),
    ],
)
def test_columns_are_served_in_the_dtype_of_the_store(
    store: Store, column: ObsColumn, dtype: str, values: list[object]
) -> None:
    found = read_obs(address(store, [0, 1]), [column], IDS, [column.name])[column.name]
    assert str(found.dtype) == dtype
    assert [None if pd.isna(v) else v for v in found] == values


def test_a_label_that_the_snapshot_lacks_is_corruption(store: Store) -> None:
    column = ObsColumn("note", "category", ("note 300", "note 301"))
    with pytest.raises(CorruptStoreError, match=r"label 'note 302' that the snapshot's schema does not know"):
        read_obs(address(store, [0, 2]), [column], IDS, ["note"])


def test_var_says_which_genes_were_measured(store: Store) -> None:
    var = read_var(address(store).dataset)
    assert var.index.tolist() == [f"gene{j}" for j in range(N_VARS)]
    assert var["measured"].tolist() == [True] * N_VARS
