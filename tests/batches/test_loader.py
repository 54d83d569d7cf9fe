"""Batches of a store. X says of each value where it belongs, so that a wrong cell or gene shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daodask
from daodask import BatchLoader
from daodask.batches.schedule import Cells, Epoch, Sequential, Shuffled, Window
from daodask.errors import SelectionError, SpecError, UnknownNameError
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.testing import coordinate_adata, coordinate_counts, random_store

SIZES, N_VARS = (70, 0, 33), 32
N_OBS = sum(SIZES)

quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["local", "memory", "gcs"])
def store(request: pytest.FixtureRequest, place: Callable[[str], StoreLocation]) -> Store:
    """Three studies of 70, 0 and 33 cells, in blocks of 16."""
    return random_store(place(request.param), SIZES, n_vars=N_VARS, block_rows=16)


OBS = ["cell_type", "row", "score", "odd", "note", "dataset", "obs_names"]


def expected_obs(rows: np.ndarray) -> pd.DataFrame:
    """Obs of some cells by their row numbers, in columns of plain objects."""
    whole = coordinate_adata(N_OBS, N_VARS).obs
    whole["obs_names"] = whole.index
    whole["dataset"] = np.where(np.arange(N_OBS) < 70, "study0", "study2")
    return whole.iloc[rows].set_axis(rows, axis=0)[OBS].astype(object)


def check(batch: Any, *, genes: Sequence[int] | slice = slice(None), divide: int = 1, dense: bool = False) -> None:
    """A batch of any selection against what its row numbers say."""
    assert batch.index.dtype == np.int64
    assert len(batch) == len(batch.index) == batch.X.shape[0] == len(batch.obs)
    assert batch.X.dtype == np.float32
    assert isinstance(batch.X, np.ndarray if dense else sp.csr_matrix)
    if not dense:
        assert batch.X.has_sorted_indices
        assert batch.X.indices.dtype == np.int32
    found = batch.X if dense else batch.X.toarray()
    np.testing.assert_array_equal(found, coordinate_counts(batch.index, N_VARS).toarray()[:, genes] / divide)
    np.testing.assert_array_equal(batch.obs.index, batch.index)
    if "row" in batch.obs:
        np.testing.assert_array_equal(batch.obs["row"], batch.index)


def handed_out(batches: Sequence[Any]) -> list[int]:
    return [row for batch in batches for row in batch.index.tolist()]


schedules = st.sampled_from(["sequential", "shuffled"]) | st.builds(
    Shuffled, run_rows=st.integers(1, 40), window_rows=st.integers(1, 60)
)


@given(
    rows=st.lists(st.integers(0, N_OBS - 1), unique=True).map(sorted) | st.just(list(range(N_OBS))),
    genes=st.none() | st.lists(st.integers(0, N_VARS - 1), unique=True, min_size=1),
    schedule=schedules | st.builds(Sequential, window_rows=st.integers(1, 60)),
    batch_size=st.integers(1, 120),
    dense=st.booleans(),
    layer=st.sampled_from([None, "half"]),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(quick, max_examples=60)
def test_an_epoch_is_the_selected_cells(store, rows, genes, schedule, batch_size, dense, layer, drop_last, seed):
    part = store[rows] if genes is None else store[rows, genes]
    loader = BatchLoader(
        part, batch_size, schedule=schedule, layer=layer, obs=["row"], seed=seed, dense=dense, drop_last=drop_last
    )
    whole, rest = divmod(len(rows), batch_size)
    # All batches are kept: what one holds must not change as the next ones are read.
    batches = list(loader)
    lengths = [batch_size] * whole + [rest] * bool(rest and not drop_last)
    assert [len(b) for b in batches] == lengths
    assert len(loader) == len(lengths)
    for batch in batches:
        check(batch, genes=slice(None) if genes is None else genes, divide=2 if layer else 1, dense=dense)
    if drop_last:
        assert len(set(handed_out(batches))) == whole * batch_size
        assert set(handed_out(batches)) <= set(rows)
    else:
        assert sorted(handed_out(batches)) == rows


def test_sequential_batches_are_in_store_order(store):
    part = store[[1, 3, 60, 69, 70, 101]]
    found = [batch.index.tolist() for batch in BatchLoader(part, 4, schedule="sequential")]
    assert found == [[1, 3, 60, 69], [70, 101]]


def test_each_epoch_has_an_order_of_its_own_and_each_seed_its_epochs(store):
    schedule = Shuffled(run_rows=4, window_rows=32)
    loader, twin = (BatchLoader(store, 10, schedule=schedule, seed=5) for _ in range(2))
    other = BatchLoader(store, 10, schedule=schedule, seed=6)
    first, second = handed_out(list(loader)), handed_out(list(loader))
    assert sorted(first) == sorted(second) == list(range(N_OBS))
    assert first != second
    assert handed_out(list(twin)) == first
    assert handed_out(list(twin)) == second
    assert handed_out(list(other)) != first
    assert handed_out(list(BatchLoader(store[:], 10, schedule=schedule, seed=5))) == first


def test_an_epoch_that_was_left_is_followed_by_a_whole_one(store):
    loader = BatchLoader(store, 10, schedule=Shuffled(run_rows=4, window_rows=20))
    left = next(iter(loader)).index.tolist()
    whole = handed_out(list(loader))
    assert sorted(whole) == list(range(N_OBS))
    assert whole[:10] != left


def test_two_passes_at_once_don_t_mix(store):
    loader = BatchLoader(store, 10, schedule=Shuffled(run_rows=4, window_rows=20))
    pairs = list(zip(loader, loader, strict=True))
    for batches in zip(*pairs, strict=True):
        assert sorted(handed_out(batches)) == list(range(N_OBS))
        for batch in batches:
            check(batch)


@pytest.mark.parametrize("schedule", ["sequential", Shuffled(run_rows=3, window_rows=30)])
def test_obs_goes_with_its_cells(store, schedule):
    for batch in BatchLoader(store.subset("row >= 5"), 8, schedule=schedule, obs=OBS):
        check(batch)
        assert batch.obs.columns.tolist() == OBS
        expected = expected_obs(batch.index)
        for column in OBS:
            found = [None if pd.isna(v) else v for v in batch.obs[column]]
            assert found == [None if pd.isna(v) else v for v in expected[column]]


def test_obs_columns_come_as_asked_for(store):
    (batch,) = BatchLoader(store[:5], 9, obs=["odd", "row"])
    assert batch.obs.columns.tolist() == ["odd", "row"]
    (batch,) = BatchLoader(store[:5], 9, obs="odd")
    assert batch.obs.columns.tolist() == ["odd"]
    (batch,) = BatchLoader(store[:5], 9, obs=["odd", "row", "odd"])
    assert batch.obs.columns.tolist() == ["odd", "row"]
    (batch,) = BatchLoader(store[:5], 9)
    assert batch.obs.shape == (5, 0)
    assert sorted(batch.obs.index) == [0, 1, 2, 3, 4]


def test_dtypes_and_categories_are_the_same_in_every_batch(tmp_path):
    a, b, c = (coordinate_adata(n, first=f) for n, f in ((20, 0), (15, 20), (11, 35)))
    a.obs["kind"] = pd.Categorical(["x", None] * 10)
    a.obs["depth"] = np.arange(20)
    b.obs["kind"] = pd.Categorical(["y"] * 15)
    b.obs["flag"] = [True, False, True] * 5
    studies = [{"id": name, "source": adata} for name, adata in (("a", a), ("b", b), ("c", c))]
    spec = {"features": {"name": "g", "reference": "union"}, "keep": "all", "studies": studies}
    assert daodask.build_store(spec, tmp_path / "s").ok
    store = daodask.open_store(tmp_path / "s")
    columns = ["kind", "depth", "flag", "dataset", "cell_type", "note"]
    for schedule in ("sequential", Shuffled(run_rows=2, window_rows=12)):
        batches = list(BatchLoader(store, 4, schedule=schedule, obs=columns))
        for batch in batches:
            check(batch)
            assert batch.obs["kind"].cat.categories.tolist() == ["x", "y"]
            assert batch.obs["dataset"].cat.categories.tolist() == ["a", "b", "c"]
            assert (batch.obs.dtypes == batches[0].obs.dtypes).all()
            numbers = batch.index
            found = batch.obs.astype(object).where(batch.obs.notna(), None)
            assert found["kind"].tolist() == [
                "y" if 20 <= r < 35 else ("x" if r < 20 and r % 2 == 0 else None) for r in numbers
            ]
            assert found["depth"].tolist() == [int(r) if r < 20 else None for r in numbers]
            assert found["flag"].tolist() == [(r - 20) % 3 != 1 if 20 <= r < 35 else None for r in numbers]
        assert batches[0].obs.dtypes.astype(str)[["depth", "flag"]].tolist() == ["Int64", "boolean"]


def test_batches_of_a_subset_and_of_genes_by_name(store):
    part = store.subset(cell_type="T cell", exclude={"dataset": "study0"})[:, ["gene7", "gene3"]]
    batches = list(BatchLoader(part, 4, obs=["cell_type"], schedule=Shuffled(run_rows=1, window_rows=4)))
    rows = [r for r in range(70, 103) if r % 3 == 1 and r % 7 != 6]
    assert sorted(handed_out(batches)) == rows
    for batch in batches:
        check(batch, genes=[7, 3])
        assert set(batch.obs["cell_type"]) == {"T cell"}


def test_a_batch_may_be_changed_without_harm_to_others(store):
    seen = []
    for batch in BatchLoader(store, 10, schedule=Shuffled(run_rows=4, window_rows=40)):
        check(batch)
        seen.extend(batch.index.tolist())
        batch.X.data[:] = -1
        batch.index[:] = -1
    assert sorted(seen) == list(range(N_OBS))
    check(next(iter(BatchLoader(store, 50))))


def test_a_loader_says_what_it_is(store):
    text = repr(BatchLoader(store[:, :7], 10, seed=3))
    for piece in ("BatchLoader", "11 batches of 10", "103 cells", "7 genes", "seed 3"):
        assert piece in text


class Backwards:
    """A schedule of one's own: needs no label, and goes through the cells from the last to the first."""

    columns: tuple[str, ...] = ()

    def windows(self, cells: Cells, batch_size: int, epoch: Epoch) -> Iterator[Window]:
        """Windows of two batches."""
        rows = np.arange(cells.n_obs, dtype=np.int64)[::-1]
        for number, start in enumerate(range(0, len(rows), 2 * batch_size)):
            positions = rows[start : start + 2 * batch_size].copy()
            bounds = (*range(0, len(positions), batch_size), len(positions))
            yield Window(number, positions, bounds)


def test_a_schedule_of_one_s_own(store):
    loader = BatchLoader(store[::2], 7, schedule=Backwards(), obs=["row"])
    batches = list(loader)
    assert handed_out(batches) == list(range(0, N_OBS, 2))[::-1]
    assert len(loader) == len(batches) == 8
    for batch in batches:
        check(batch)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, SpecError, "expected a batch_size of at least 1, got 0"),
        ({"batch_size": -3}, SpecError, "expected a batch_size of at least 1, got -3"),
        ({"obs": ["celltype"]}, UnknownNameError, "obs has no column 'celltype'; did you mean 'cell_type'?"),
        ({"obs": "celltype"}, UnknownNameError, "did you mean 'cell_type'?"),
        ({"layer": "halve"}, UnknownNameError, "there is no layer 'halve'; did you mean 'half'?"),
        ({"schedule": "shufled"}, SpecError, "unknown schedule 'shufled'; did you mean 'shuffled'?"),
        ({"schedule": 3}, SpecError, "expected the name of a schedule"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(store, arguments, error, message):
    with pytest.raises(error) as caught:
        BatchLoader(store, **arguments)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_layer_that_some_dataset_lacks_is_refused(tmp_path):
    a, b = coordinate_adata(6), coordinate_adata(5, first=6)
    studies = [{"id": "a", "source": a, "layers": {"half": "layers/half"}}, {"id": "b", "source": b}]
    spec = {"features": {"name": "g", "reference": "union"}, "studies": studies}
    assert daodask.build_store(spec, tmp_path / "s").ok
    store = daodask.open_store(tmp_path / "s")
    with pytest.raises(SelectionError, match=r"layer 'half' is not in 1 of the selected datasets \(b\)"):
        BatchLoader(store, layer="half")
    (batch,) = BatchLoader(store.subset(dataset="a"), layer="half")
    check(batch, divide=2)


def test_what_is_zero_everywhere(tmp_path):
    """Arrays of nothing but their fill value have no file: counts, codes, numbers and booleans."""
    a, b = (coordinate_adata(n, first=f) for n, f in ((20, 0), (15, 20)))
    a.X = sp.csr_matrix(a.shape, dtype=np.float32)
    a.obs["tissue"], a.obs["zero"], a.obs["never"] = pd.Categorical(["blood"] * 20), 0, False
    b.obs["tissue"], b.obs["zero"], b.obs["never"] = pd.Categorical(["lung"] * 15), 0, False
    studies = [{"id": "a", "source": a}, {"id": "b", "source": b}]
    spec = {"features": {"name": "g", "reference": "union"}, "keep": "all", "studies": studies}
    assert daodask.build_store(spec, tmp_path / "s").ok
    store = daodask.open_store(tmp_path / "s")
    expected = coordinate_counts(np.arange(35), N_VARS).toarray() * (np.arange(35) >= 20)[:, None]
    np.testing.assert_array_equal(store.X.compute().toarray(), expected)
    for dense in (False, True):
        for batch in BatchLoader(store, 8, obs=["tissue", "zero", "never"], dense=dense):
            np.testing.assert_array_equal(batch.X if dense else batch.X.toarray(), expected[batch.index])
            assert batch.obs["tissue"].tolist() == ["blood" if r < 20 else "lung" for r in batch.index]
            assert batch.obs["zero"].tolist() == [0] * len(batch)
            assert batch.obs["never"].tolist() == [False] * len(batch)
