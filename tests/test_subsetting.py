"""Narrowing by all kinds of conditions, against pandas on the loaded cell metadata, and what is read for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daodask
from daodask.errors import SelectionError, UnknownNameError
from daodask.store import Store
from daodask.testing import random_store

SIZES = (70, 0, 33, 20)
N_OBS = sum(SIZES)
TYPES = ("B cell", "T cell", "Größenzelle")

quick = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four studies, one without a cell, in blocks of 16."""
    return random_store(tmp_path_factory.mktemp("atlas") / "store", SIZES, n_vars=8, block_rows=16)


@pytest.fixture(scope="module")
def obs(store: Store) -> pd.DataFrame:
    """All cell metadata: the oracle."""
    return store.obs.compute(scheduler="synchronous")


def rows(store: Store) -> list[int]:
    return store.selection.store_rows.tolist()


# -- functions of obs ----------------------------------------------------------------------------------------------

FUNCTIONS: list[Callable[[pd.DataFrame], Any]] = [
    lambda obs: obs["row"] % 3 == 1,
    lambda obs: obs["score"].isna(),
    lambda obs: (obs["cell_type"] == "T cell").to_numpy(),
    lambda obs: obs["cell_type"].isna().tolist(),
    lambda obs: obs["n_counts"].gt(900) & obs["odd"],
    lambda obs: obs["note"].str.endswith("7"),
    lambda obs: obs["dataset"].isin(["study2"]),
    lambda obs: pd.array([None if r % 2 else True for r in obs["row"]], dtype="boolean"),
    lambda obs: pd.Series(pd.array([None if r % 2 else True for r in obs["row"]], dtype="boolean"), index=obs.index),
    lambda obs: np.zeros(len(obs), bool),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_of_obs(store: Store, obs: pd.DataFrame, function: Callable[[pd.DataFrame], Any]) -> None:
    mask = pd.Series(function(obs), index=obs.index).fillna(False).to_numpy(bool)
    for start in (store, store[5::3]):
        expected = [r for r in rows(start) if mask[r]]
        assert rows(start.subset(function)) == expected


def test_a_function_is_handed_partitions_of_obs(store: Store) -> None:
    seen: list[pd.DataFrame] = []
    part = store[3:90:2]
    part.subset(lambda obs: seen.append(obs) or np.ones(len(obs), bool))
    with dask.config.set({"dataframe.convert-string": False}):
        partitions = [p.compute(scheduler="synchronous") for p in part.obs.partitions]
    assert len(seen) == len(partitions) > 3
    for got, expected in zip(sorted(seen, key=lambda o: o.index[0]), partitions, strict=True):
        pd.testing.assert_frame_equal(got, expected)


def test_a_function_is_handed_the_columns_named_and_the_cells_that_are_left(store: Store) -> None:
    seen: list[pd.DataFrame] = []
    found = store.subset(
        lambda obs: seen.append(obs) or obs["row"] > 20,
        "row < 80",
        lambda obs: seen.append(obs) or obs["row"] % 2 == 0,
        columns=["row", "cell_type", "row"],
        cell_type="T cell",
    )
    assert {tuple(o.columns) for o in seen} == {("row", "cell_type")}
    assert {o["cell_type"].unique().tolist()[0] for o in seen} == {"T cell"}
    assert max(o["row"].max() for o in seen) < 80
    assert rows(found) == [r for r in range(21, 80) if r % 7 != 6 and r % 3 == 1 and r % 2 == 0]


def test_functions_run_one_at_a_time(store: Store) -> None:
    busy = threading.Lock()

    def alone(obs: pd.DataFrame) -> Any:
        assert busy.acquire(blocking=False)
        time.sleep(0.002)  # long enough for another thread to come in
        busy.release()
        return obs["odd"]

    assert store.subset(alone).n_obs == N_OBS // 2


def test_a_function_is_not_called_where_no_cell_is_left(store: Store) -> None:
    assert store.subset(lambda obs: 1 / 0, "row < 0").n_obs == 0  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda obs: obs["row"], "expected a function that returns a boolean per cell, 16 of them, got int64"),
        (lambda obs: obs["odd"].to_numpy()[:-1], r"16 of them, got bool \(15,\) from a ndarray"),
        (lambda obs: True, r"got bool \(\) from a bool"),
        (lambda obs: None, r"got object \(\) from a NoneType"),
        (lambda obs: obs[["odd"]], r"got bool \(16, 1\) from a DataFrame"),
        (lambda obs: obs["odd"][::-1], "expected a mask with the index of the obs that the function was handed"),
        (lambda obs: obs["odd"].reset_index(drop=True).iloc[::-1], "expected a mask with the index of the obs"),
    ],
)
def test_a_function_that_returns_no_mask(store: Store, function: Callable[[pd.DataFrame], Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        store[:16].subset(function)


def test_errors_of_a_function_are_its_own(store: Store) -> None:
    with pytest.raises(KeyError, match="'n_counts'"):
        store.subset(lambda obs: obs["n_counts"] > 3, columns=["row"])


def test_columns_are_names_and_need_a_function(store: Store) -> None:
    with pytest.raises(UnknownNameError, match="obs has no column 'raw'; did you mean 'row'?"):
        store.subset(lambda obs: obs["raw"] > 3, columns=["raw"])
    with pytest.raises(SelectionError, match="columns= says what a function is handed; pass one"):
        store.subset("row > 3", columns=["row"])
    with pytest.raises(SelectionError, match=r"expected a list of names, got 'row'; write \['row'\]"):
        store.subset(lambda obs: obs["row"] > 3, columns="row")


# -- rows and positions --------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(quick, max_examples=40)
def test_rows_narrow_as_indexing_does(store: Store, data: st.DataObject) -> None:
    start = store[data.draw(st.sampled_from([slice(None), slice(10, 100, 3), slice(0, 0)]))]
    bits = np.array(data.draw(st.lists(st.booleans(), min_size=start.n_obs, max_size=start.n_obs)), dtype=bool)
    expected = [r for r, bit in zip(rows(start), bits, strict=True) if bit]
    positions = np.flatnonzero(bits)
    keys: list[Any] = [
        bits,
        bits.tolist() if len(bits) else positions,
        positions,
        positions.tolist(),
        pd.Index(positions),
        pd.Series(positions),
        pd.Series(bits),
        pd.Series(bits, index=start.selection.store_rows),
        pd.Series(bits, index=[f"cell{i}" for i in range(len(bits))]),
        pd.array(bits, dtype="boolean"),
        da.from_array(bits) if len(bits) else bits,
    ]
    for key in keys:
        assert (
            rows(start.subset(key))
            == rows(start[key])
            == rows(start.isel(key))
            == rows(start.isel(obs=key))
            == expected
        )


def test_a_mask_made_with_dask_or_pandas_from_obs(store: Store) -> None:
    part = store[40:].subset("odd")
    expected = [r for r in range(41, N_OBS, 2) if r % 3 == 1 and r % 7 != 6]
    assert rows(part.subset(part.obs["cell_type"] == "T cell")) == expected
    assert rows(part[part.obs.compute()["cell_type"] == "T cell"]) == expected
    missing = pd.Series(pd.array([None] * part.n_obs, dtype="boolean"))
    assert part.subset(missing).n_obs == 0


def test_masks_and_conditions_all_hold(store: Store) -> None:
    mask = np.arange(N_OBS) % 2 == 0
    found = store.subset(mask, [0, 4, 5, 8, 70, 72], "row > 0", None, lambda obs: obs["row"] != 72, odd=False)
    assert rows(found) == [4, 8, 70]


def test_a_mask_of_other_cells_is_refused(store: Store) -> None:
    shuffled = pd.Series(np.ones(10, bool), index=[3, 1, 0, 2, 4, 5, 6, 7, 8, 9])
    shifted = pd.Series(np.ones(10, bool), index=range(5, 15))
    for mask in (shuffled, shifted):
        for narrow in (store[:10].subset, store[:10].isel, store[:10].__getitem__):
            with pytest.raises(SelectionError, match="expected a mask whose index is the store's row numbers in order"):
                narrow(mask)
    with pytest.raises(SelectionError, match="expected a mask of length 123, got shape"):
        store.subset(shifted)
    with pytest.raises(SelectionError, match="rows stay in store order"):
        store.subset([3, 1])
    with pytest.raises(SelectionError, match="expected a 1-D array of row numbers or a mask, got <U6"):
        store.subset(["T cell"])


def test_isel(store: Store) -> None:
    assert store.isel().selection is store.selection
    assert store.isel(var=slice(2, 4)).var_names.tolist() == ["gene2", "gene3"]
    assert store.isel(obs=-1, var=[3, 0]).var_names.tolist() == ["gene3", "gene0"]
    assert rows(store.isel(slice(None, None, 50), np.arange(8) == 5)) == [0, 50, 100]
    for names in ("gene1", ["gene1"]):
        with pytest.raises(SelectionError, match=r"isel takes positions, got the names .*; use store\[:, names\]"):
            store.isel(var=names)


# -- labels, ranges, datasets --------------------------------------------------------------------------------------


@given(low=st.none() | st.floats(-5, 130), high=st.none() | st.floats(-5, 130))
@settings(quick, max_examples=40)
def test_ranges_have_both_ends(store: Store, obs: pd.DataFrame, low: float | None, high: float | None) -> None:
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return
    ends = daodask.Between(low, high)
    for column in ("row", "score"):
        values = obs[column]
        inside = values.between(-np.inf if low is None else low, np.inf if high is None else high)
        assert rows(store.subset(**{column: ends})) == obs.index[inside].tolist()
        # A cell of unknown value is in no range, and what is excluded keeps it.
        assert rows(store.subset(exclude={column: ends})) == obs.index[~inside].tolist()


def test_ranges_that_a_column_lacks(store: Store) -> None:
    with pytest.raises(SelectionError, match="cell_type.*has no such order; compare numbers with numbers"):
        store.subset(cell_type=daodask.Between("B cell", "T cell"))
    with pytest.raises(SelectionError, match="has no such order"):
        store.subset(row=daodask.Between(low="a"))
    assert store.subset(note=daodask.Between("note 120", "note 13")).n_obs == 4  # 120, 121, 122 and 13


def test_fractions_mean_the_same_in_the_snapshot_and_in_the_cells(tmp_path: Any) -> None:
    from anndata import AnnData

    adata = AnnData(
        np.ones((4, 2), np.float32),
        obs=pd.DataFrame({"x": np.array([0.1, 0.1, 0.1, 0.1], np.float32)}, index=list("abcd")),
        var=pd.DataFrame(index=["g1", "g2"]),
    )
    spec = {"features": {"name": "g", "reference": "union"}, "keep": "all", "studies": [{"id": "a", "source": adata}]}
    assert daodask.build_store(spec, tmp_path / "s").ok
    opened = daodask.open_store(tmp_path / "s")
    counts = {q: opened.subset(q).n_obs for q in ("x == 0.1", "x >= 0.1", "x > 0.1", "x <= 0.1", "x < 0.1", "x != 0.1")}
    assert counts == {"x == 0.1": 4, "x >= 0.1": 4, "x > 0.1": 0, "x <= 0.1": 4, "x < 0.1": 0, "x != 0.1": 0}


def test_excluding_keeps_what_is_unknown(store: Store, obs: pd.DataFrame) -> None:
    unknown = obs.index[obs["cell_type"].isna()].tolist()
    assert unknown
    for found in (
        store.subset(exclude={"cell_type": list(TYPES)}),
        store.subset("cell_type not in ['B cell', 'T cell', 'Größenzelle']"),
    ):
        assert rows(found) == unknown


# -- what is unknown -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda s: s.subset(celltype="T cell", missing="ignore"), 0),
        (lambda s: s.subset(exclude={"celltype": "T cell"}, missing="ignore"), N_OBS),
        (lambda s: s.subset("celltype > 3", missing="ignore"), 0),
        (lambda s: s.subset("celltype != 'x' and dataset == 'study2'", missing="ignore"), 33),
        (lambda s: s.subset("celltype == 'x' or row < 3", missing="ignore"), 3),
        (lambda s: s.subset(dataset=["study2", "study9"], missing="ignore"), 33),
        (lambda s: s.subset(exclude={"dataset": ["study2", "study9"]}, missing="ignore"), 90),
        (lambda s: s.subset(cell_type="T-cell", missing="ignore"), 0),
        (lambda s: s.subset(celltype=daodask.Between(1, 2), missing="ignore"), 0),
        (lambda s: s.subset(lambda obs: obs["row"] < 5, columns=["row", "celltype"], missing="ignore"), 5),
    ],
)
def test_what_is_unknown_may_be_ignored(store: Store, ask: Callable[[Store], Store], expected: int) -> None:
    assert ask(store).n_obs == expected


def test_missing_is_one_of_two_words(store: Store) -> None:
    with pytest.raises(SelectionError, match='expected missing="error" or "ignore", got \'skip\''):
        store.subset(missing="skip")  # type: ignore[arg-type]


@given(data=st.data())
@settings(quick, max_examples=40)
def test_labels_of_which_some_are_unknown(store: Store, obs: pd.DataFrame, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.sampled_from([*TYPES, "X", "t cell"])))
    inside = obs["cell_type"].isin(labels)
    assert rows(store.subset(cell_type=labels, missing="ignore")) == obs.index[inside].tolist()
    assert rows(store.subset(exclude={"cell_type": labels}, missing="ignore")) == obs.index[~inside].tolist()


# -- and, or, not --------------------------------------------------------------------------------------------------

CONDITIONS = (
    "row > 40",
    "cell_type == 'T cell'",
    "score < 30",
    "odd",
    "dataset == 'study2'",
    "n_counts > 900 or cell_type == 'B cell'",
)


@st.composite
def formulas(draw: st.DrawFn) -> str:
    """A formula of stores that numpy understands, too."""
    leaf = st.sampled_from([f"c[{i}]" for i in range(len(CONDITIONS))])
    return draw(
        st.recursive(
            leaf,
            lambda inner: (
                st.builds("~{}".format, inner)
                | st.builds("({} & {})".format, inner, inner)
                | st.builds("({} | {})".format, inner, inner)
            ),
            max_leaves=5,
        )
    )


@pytest.fixture(scope="module")
def parts(store: Store) -> list[Store]:
    return [store.subset(condition) for condition in CONDITIONS]


@given(formula=formulas())
@settings(quick, max_examples=60)
def test_stores_combine_as_masks_do(store: Store, parts: list[Store], formula: str) -> None:
    masks = [np.isin(np.arange(N_OBS), part.selection.store_rows) for part in parts]
    found = eval(formula, {"c": parts})  # noqa: S307  a formula that is made above
    assert rows(found) == np.flatnonzero(eval(formula, {"c": masks})).tolist()  # noqa: S307
    assert found.location is store.location


def test_either_of_two_is_what_one_query_finds(store: Store, parts: list[Store]) -> None:
    assert rows(parts[0] | parts[1]) == rows(store.subset("row > 40 or cell_type == 'T cell'"))
    assert rows(parts[0] & ~parts[1]) == rows(store.subset("row > 40 and cell_type != 'T cell'"))
    found = (parts[0] & parts[1])[:, ["gene3"]]
    assert found.X.compute().shape == (found.n_obs, 1)
    assert found.obs["row"].compute().tolist() == rows(found)


def test_stores_that_do_not_combine(store: Store, tmp_path: Any) -> None:
    other = random_store(tmp_path / "other", (5, 7), n_vars=8)
    with pytest.raises(SelectionError, match="expected two subsets of one store, got .*store, snapshot 1, genes and"):
        store & other
    daodask.remove_datasets(other.location, ["study0"])
    with pytest.raises(SelectionError, match="snapshot 1, genes and .* snapshot 2, genes; open the store once, and"):
        other | daodask.open_store(other.location)
    again = daodask.open_store(other.location, snapshot=1)
    assert rows(again[5:9] & other[:8]) == [5, 6, 7]
    with pytest.raises(SelectionError, match="combine the cells first and take the genes then"):
        store[:, :3] | store
    for something in (np.ones(N_OBS, bool), store.selection, 3):
        with pytest.raises(TypeError, match="unsupported operand|does not support ufuncs"):
            store & something


# -- one dtype over all datasets -----------------------------------------------------------------------------------


def labelled(n_vars: int, **columns: Any) -> Any:
    from anndata import AnnData

    obs = pd.DataFrame(columns)
    obs.index = pd.Index([f"cell{i}" for i in range(len(obs))], dtype=object)
    return AnnData(np.ones((len(obs), n_vars), np.float32), obs=obs, var=pd.DataFrame(index=["g1", "g2"][:n_vars]))


def categorical(values: list[Any], categories: list[Any], *, ordered: bool = False) -> pd.Categorical:
    index = pd.Index(categories, dtype=object if isinstance(categories[0], str) else None)
    return pd.Categorical(values, categories=index, ordered=ordered)


MIXED = {
    "a": {
        "kind": categorical(["x", "y", "x"], ["y", "x", "unused"]),
        "plate": categorical([3, 1, None], [1, 3]),
        "stage": categorical(["lo", "hi", "mid"], ["lo", "mid", "hi"], ordered=True),
        "size": categorical(["lo", "hi", "mid"], ["lo", "mid", "hi"], ordered=True),
        "note": categorical(["n1", "n2", "n1"], ["n1", "n2"]),
    },
    "b": {
        "kind": categorical(["z", "x"], ["x", "z"]),
        "plate": categorical([2, 3], [2, 3]),
        "stage": categorical(["mid", None], ["lo", "mid", "hi"], ordered=True),
        "size": categorical(["hi", "lo"], ["hi", "lo"], ordered=True),
        "note": np.array(["n2", "free text"], dtype=object),
    },
    "c": {"other": np.array([1.5, 2.5])},
}
DTYPES = {
    "dataset": (["a", "b", "c"], False),
    "kind": (["y", "x", "unused", "z"], False),
    "plate": ([1, 3, 2], False),
    "stage": (["lo", "mid", "hi"], True),
    "size": (["lo", "mid", "hi"], False),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three studies whose labels differ in order and number, or which lack the column."""
    url = tmp_path_factory.mktemp("mixed") / "store"
    listed = [{"id": name, "source": labelled(2, **columns)} for name, columns in MIXED.items()]
    spec = {"features": {"name": "g", "reference": "union"}, "keep": "all", "studies": listed}
    report = daodask.build_store(spec, url)
    assert report.ok, str(report)
    return daodask.open_store(url)


def test_labels_have_one_dtype_whatever_is_read(mixed: Store) -> None:
    seen: list[pd.DataFrame] = []
    mixed.subset(lambda obs: seen.append(obs) or np.ones(len(obs), bool))
    narrowed = [mixed.subset(dataset="c"), mixed.subset(kind="z"), mixed[:0]]
    frames = [
        *seen,
        *(mixed.read_part_obs(n, list(DTYPES)) for n in range(3)),
        *(p.compute(scheduler="synchronous") for s in (mixed, *narrowed) for p in s.obs.partitions),
        mixed[:3].to_anndata().obs,
        mixed.empty_obs,
    ]
    assert len(seen) == 3
    for frame in frames:
        for column, (categories, ordered) in DTYPES.items():
            if column in frame:
                dtype = frame[column].dtype
                assert isinstance(dtype, pd.CategoricalDtype)
                assert (dtype.categories.tolist(), dtype.ordered) == (categories, ordered)
    assert not isinstance(mixed.obs.compute()["note"].dtype, pd.CategoricalDtype)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"kind": "x"}, [0, 2, 4]),
        ({"kind": "unused"}, []),
        ({"plate": [3, 2]}, [0, 3, 4]),
        ({"plate": 2.0}, [3]),
        ({"note": "n2"}, [1, 3]),
        ({"note": "free text"}, [4]),
        ({"stage": daodask.Between("mid", None)}, [1, 2, 3]),
        ({"stage": daodask.Between("lo", "mid")}, [0, 2, 3]),
        ({"stage": daodask.Between("hi", "lo")}, []),
    ],
)
def test_labels_are_found_by_name_in_every_dataset(
    mixed: Store, condition: dict[str, Any], expected: list[int]
) -> None:
    assert rows(mixed.subset(**condition)) == expected
    assert rows(mixed.subset(exclude=condition)) == sorted(set(range(7)) - set(expected))
    assert rows(mixed[1:].subset(**condition)) == [r for r in expected if r]


def test_an_order_that_datasets_disagree_on_is_none(mixed: Store) -> None:
    with pytest.raises(SelectionError, match="column 'size' is category, which has no such order"):
        mixed.subset("size > 'lo'")
