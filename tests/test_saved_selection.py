"""Selections in files: they come back as they were, and say what became of the store since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daodask
from daodask.errors import (
    FeatureSpaceError,
    FormatError,
    FormatVersionError,
    SelectionError,
    StateError,
    StoreNotFoundError,
)
from daodask.saved_selection import SavedSelection, SelectionChanges
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.testing import coordinate_adata, random_store

SIZES = (40, 0, 25, 12)
N_OBS = sum(SIZES)

quick = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("atlas") / "store", SIZES, n_vars=8)


def add(store: Store, **studies: Any) -> Store:
    """Build further studies into a store, or others under the ids that are there."""
    listed = [
        {"id": name, "source": adata, "layers": {"half": "layers/half"}, "obsm": ["*"]}
        for name, adata in studies.items()
    ]
    spec = {"features": {"name": "genes", "reference": "union"}, "keep": "all", "studies": listed}
    report = daodask.build_store(spec, store.location, replace=True)
    assert report.ok, str(report)
    return daodask.open_store(store.location)


def rows(store: Store) -> list[int]:
    return store.selection.store_rows.tolist()


@given(
    bits=st.lists(st.booleans(), min_size=N_OBS, max_size=N_OBS),
    whole=st.sets(st.integers(0, 3)),
    genes=st.none() | st.lists(st.integers(0, 7), unique=True),
)
@settings(quick, max_examples=40)
def test_a_selection_comes_back(
    store: Store, tmp_path: Path, bits: list[bool], whole: set[int], genes: list[int] | None
) -> None:
    mask = np.array(bits)
    for number in whole:
        mask[sum(SIZES[:number]) : sum(SIZES[: number + 1])] = True
    part = store[mask] if genes is None else store[mask, genes]
    part.save_selection(tmp_path / "cells.parquet")
    again = store[3:9, [2]].load_selection(tmp_path / "cells.parquet")
    assert rows(again) == rows(part) == np.flatnonzero(mask).tolist()
    assert [p.rows is None for p in again.selection.parts] == [p.rows is None for p in part.selection.parts]
    assert (again.selection.genes is None) == (genes is None)
    assert again.shape == part.shape
    if genes is not None:
        assert again.var_names.tolist() == [f"gene{j}" for j in genes]


def test_a_file_says_what_it_is(store: Store, tmp_path: Path) -> None:
    store.subset("row > 35 and odd")[:, ["gene3", "gene1"]].save_selection(tmp_path / "cells.parquet")
    saved = daodask.read_selection(str(tmp_path / "cells.parquet"))
    assert isinstance(saved, daodask.SavedSelection)
    assert (saved.n_obs, saved.snapshot, saved.store) == (20, 1, str(store.location))
    assert saved.cells == {"study0": 2, "study2": 12, "study3": 6}
    assert saved.changes(store) == SelectionChanges({}, {}, ())
    assert not saved.changes(store)
    assert str(saved.changes(store)) == "nothing has changed"
    assert repr(saved).startswith("<daodask.SavedSelection> 20 cells of 3 of 4 datasets, 2 genes of genes\n  of ")
    # Any parquet tool reads which rows they are.
    table = pq.read_table(tmp_path / "cells.parquet")
    assert table.slice(0, 3).to_pydict() == {"dataset": [0, 0, 2], "start": [37, 39, 1], "length": [1, 1, 1]}
    assert json.loads(table.schema.metadata[b"daodask.selection"])["genes"] == [3, 1]


def test_a_file_is_small(store: Store) -> None:
    saved = SavedSelection.of(store)
    starts = np.flatnonzero(np.random.default_rng(0).random(10**6) < 0.01)
    runs = np.stack([np.zeros_like(starts), starts, np.ones_like(starts)], axis=1)
    large = SavedSelection(
        *(getattr(saved, n) for n in ("store", "snapshot", "features", "features_hash", "created", "written_by")),
        datasets=saved.datasets,
        genes=None,
        runs=runs,
    )
    frame = len(saved.to_parquet())
    assert frame < 5_000
    assert len(large.to_parquet()) - frame < 2 * len(starts)


def test_a_selection_goes_with_a_store_that_moved(store: Store, tmp_path: Path) -> None:
    store.subset("odd").save_selection("memory://selections/odd.parquet")
    source = store.location.fs
    source.copy(store.location.path, str(tmp_path / "copy"), recursive=True)
    copied = daodask.open_store(tmp_path / "copy")
    assert rows(copied.load_selection("memory://selections/odd.parquet")) == list(range(1, N_OBS, 2))


# -- changed stores ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Store, Path]:
    """A store of three studies, and a file with the odd cells of the first two."""
    store = random_store(tmp_path / "store", (10, 8, 6), n_vars=8)
    path = tmp_path / "odd.parquet"
    store.subset("odd", dataset=["study0", "study1"]).save_selection(path)
    return store, path


def check(store: Store, path: Path, says: str, kept: list[int]) -> None:
    """Loading says what changed, or keeps what is as it was."""
    with pytest.raises(StateError) as caught:
        store.load_selection(path)
    message = str(caught.value)
    assert f": {says}. Open that with open_store(url, snapshot=1), or pass" in message
    assert f'changed="keep" for the {len(kept)} cell' in message
    assert rows(store.load_selection(path, changed="keep")) == kept
    assert str(daodask.read_selection(path).changes(store)) == says
    old = daodask.open_store(store.location, snapshot=1)
    assert rows(old.load_selection(path)) == [1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_a_dataset_that_is_gone(saved: tuple[Store, Path]) -> None:
    store, path = saved
    daodask.remove_datasets(store.location, ["study0"])
    # The rows of what is behind it have other numbers now.
    check(daodask.open_store(store.location), path, "gone: study0 (5 selected cells)", [1, 3, 5, 7])


def test_a_dataset_that_is_gone_and_had_no_selected_cell(saved: tuple[Store, Path]) -> None:
    store, path = saved
    daodask.remove_datasets(store.location, ["study2"])
    expected = [1, 3, 5, 7, 9, 11, 13, 15, 17]
    check(daodask.open_store(store.location), path, "gone: study2 (0 selected cells)", expected)


def test_a_dataset_that_was_replaced(saved: tuple[Store, Path]) -> None:
    store, path = saved
    newer = add(store, study1=coordinate_adata(8, 8, first=100))
    check(newer, path, "replaced: study1 (4 selected cells)", [1, 3, 5, 7, 9])


def test_a_dataset_that_was_added(saved: tuple[Store, Path]) -> None:
    store, path = saved
    newer = add(store, more=coordinate_adata(4, 8, first=24))
    check(newer, path, "added: more", [1, 3, 5, 7, 9, 11, 13, 15, 17])


def test_all_that_changed_is_said(saved: tuple[Store, Path]) -> None:
    store, path = saved
    newer = add(store, study1=coordinate_adata(3, 8, first=100), more=coordinate_adata(4, 8))
    daodask.remove_datasets(store.location, ["study0"])
    newest = daodask.open_store(newer.location)
    check(newest, path, "gone: study0 (5 selected cells); replaced: study1 (4 selected cells); added: more", [])


def test_the_same_study_built_anew_has_not_changed(saved: tuple[Store, Path]) -> None:
    store, path = saved
    daodask.remove_datasets(store.location, ["study1"])
    newer = add(store, study1=coordinate_adata(8, 8, first=10))
    assert list(newer.datasets.index) == ["study0", "study2", "study1"]
    assert not daodask.read_selection(path).changes(newer)
    # It is at the end now.
    assert rows(newer.load_selection(path)) == [1, 3, 5, 7, 9, 17, 19, 21, 23]


# -- files that are none -------------------------------------------------------------------------------------------


def test_files_that_are_no_selection(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    with pytest.raises(StoreNotFoundError, match="expected a file at"):
        store.load_selection(path)
    pq.write_table(pa.table({"dataset": [0], "start": [0], "length": [1]}), path)
    with pytest.raises(FormatError, match="cells.parquet: expected a selection that daodask saved, got another file"):
        store.load_selection(path)
    for data in (b"", b"PAR1", b'{"version": 1}'):
        StoreLocation.parse(path).write(data)
        with pytest.raises(FormatError, match="expected a selection that daodask saved"):
            store.load_selection(path)


def altered(store: Store, runs: Any = None, **facts: Any) -> bytes:
    """A selection with other facts and runs."""
    table = pq.read_table(pa.BufferReader(SavedSelection.of(store).to_parquet()))
    told = json.loads(table.schema.metadata[b"daodask.selection"]) | facts
    if runs is not None:
        table = pa.table({name: pa.array([run[i] for run in runs]) for i, name in enumerate(table.column_names)})
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({b"daodask.selection": json.dumps(told)}), buffer)
    return buffer.getvalue().to_pybytes()


def test_what_is_altered_here_is_otherwise_a_selection(store: Store) -> None:
    saved = SavedSelection.from_parquet(altered(store, [(0, 3, 2), (0, 5, 1), (2, 0, 25)], genes=[7]))
    found = saved.apply(store)
    assert found.store_rows.tolist() == [3, 4, 5, *range(40, 65)]
    assert found.n_vars == 1


def test_a_newer_version_is_refused(store: Store) -> None:
    with pytest.raises(
        FormatVersionError, match="daodask .* wrote it in version 2, this daodask reads version 1; upgrade"
    ):
        SavedSelection.from_parquet(altered(store, version=2))


@pytest.mark.parametrize(
    "runs",
    [
        [(0, -1, 2)],
        [(0, 39, 2)],
        [(1, 0, 1)],
        [(4, 0, 1)],
        [(-1, 0, 1)],
        [(0, 3, 0)],
        [(0, 3, 2), (0, 4, 1)],
        [(2, 3, 2), (0, 4, 1)],
        [(0, 2**62, 2**62)],
    ],
)
def test_runs_that_are_nowhere(store: Store, runs: list[tuple[int, int, int]]) -> None:
    with pytest.raises(FormatError, match=rf"the selection is damaged: run {len(runs) - 1} is not where it can be"):
        SavedSelection.from_parquet(altered(store, runs))


@pytest.mark.parametrize(
    ("runs", "facts"),
    [
        ([(0, None, 2)], {}),
        ([(0, 0.5, 2)], {}),
        ([("a", 0, 2)], {}),
        (None, {"datasets": 3}),
        (None, {"datasets": [{"id": "a"}]}),
        (None, {"genes": ["a"]}),
        (None, {"genes": [2**70]}),
        (None, {"snapshot": None}),
    ],
)
def test_facts_that_are_none(store: Store, runs: Any, facts: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="not a valid selection"):
        SavedSelection.from_parquet(altered(store, runs, **facts))


def test_what_does_not_go_together(store: Store, tmp_path: Path) -> None:
    other = random_store(tmp_path / "other", (5,), n_vars=9)
    saved = SavedSelection.of(store)
    with pytest.raises(FeatureSpaceError, match="expected a store of the feature space 'genes' .*, got 'genes'"):
        saved.apply(other)
    with pytest.raises(SelectionError, match='expected changed="error" or "keep", got \'ignore\''):
        saved.apply(store, changed="ignore")  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="it has genes beyond the 8 of 'genes'"):
        SavedSelection.from_parquet(altered(store, genes=[8])).apply(store)
    with pytest.raises(SelectionError, match="a gene is selected twice"):
        SavedSelection.from_parquet(altered(store, genes=[1, 1])).apply(store)
