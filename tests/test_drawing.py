"""Samples and splits of stores, against pandas on the loaded cell metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daodask
from daodask.errors import SelectionError, UnknownNameError
from daodask.sampling import apportion
from daodask.store import Store

quick = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def study(n_obs: int, **obs: Any) -> anndata.AnnData:
    frame = pd.DataFrame(obs, index=pd.Index([f"cell{i}" for i in range(n_obs)], dtype=object))
    return anndata.AnnData(np.ones((n_obs, 2), np.float32), obs=frame, var=pd.DataFrame(index=["g1", "g2"]))


def donors(n_obs: int, names: str) -> np.ndarray:
    """Donors of whom later ones have fewer cells."""
    shares = 1 / np.arange(1, len(names) + 1)
    cuts = np.round(np.cumsum(shares) / shares.sum() * n_obs).astype(int)
    return np.array(list(names), dtype=object)[np.searchsorted(cuts, np.arange(n_obs), side="right")]


def labelled(values: Any) -> pd.Categorical:
    values = [None if v == "-" else v for v in values]
    return pd.Categorical(values, categories=pd.Index(sorted({v for v in values if v}), dtype=object))


STUDIES = {
    "a": study(60, donor=labelled(donors(60, "ABCD")), kind=labelled(["x", "y", "-"] * 20), n=np.arange(60) % 5),
    "none": study(0),
    "b": study(
        45, donor=labelled(donors(45, "DEF-")), kind=labelled(["x"] * 45), n=pd.array([1, None, 3] * 15, "Int64")
    ),
    "c": study(20, lane=[f"L{i % 2}" for i in range(20)]),
}


def build(url: Any, studies: dict[str, anndata.AnnData]) -> Store:
    listed = [{"id": name, "source": adata} for name, adata in studies.items()]
    space = {"name": "genes", "reference": "union"}
    layout = {"block_rows": 16}
    report = daodask.build_store({"features": space, "keep": "all", "layout": layout, "studies": listed}, url)
    assert report.ok, str(report)
    return daodask.open_store(url)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four studies: one without a cell, one without donors; donor D is in two of them."""
    return build(tmp_path_factory.mktemp("atlas") / "store", STUDIES)


@pytest.fixture(scope="module")
def obs(store: Store) -> pd.DataFrame:
    frame = store.obs.compute(scheduler="synchronous").astype(object)
    return frame.where(frame.notna(), None)


def rows(store: Store) -> list[int]:
    return store.selection.store_rows.tolist()


def groups(obs: pd.DataFrame, by: str | list[str]) -> pd.Series:
    """The labels of each cell, of which some may be missing, as texts."""
    return obs[[by] if isinstance(by, str) else by].apply(lambda cell: repr(tuple(cell)), axis=1)


BY = [
    "donor",
    "kind",
    "n",
    "lane",
    "dataset",
    "obs_names",
    ["donor", "kind"],
    ["dataset", "donor"],
    ["kind", "n", "lane"],
]


# -- samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", BY)
@given(data=st.data())
@settings(quick, max_examples=8)
def test_a_sample_has_its_share_of_each_label(store: Store, obs: pd.DataFrame, by: Any, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([store, store[::3], store.subset(dataset=["a", "c"])]))
    n = data.draw(st.integers(0, start.n_obs))
    found = start.sample(n, by=by, seed=data.draw(st.integers(0, 5)))
    assert set(rows(found)) <= set(rows(start))
    assert found.n_obs == n
    labels = groups(obs, by)
    sizes = labels[rows(start)].value_counts()
    numbers = labels[rows(found)].value_counts().reindex(sizes.index, fill_value=0)
    assert (abs(numbers - sizes * n / sizes.sum()) < 1).all()
    assert sorted(numbers - sizes * n // sizes.sum()) == sorted(
        np.array(apportion(sizes.tolist(), n)) - sizes * n // sizes.sum()
    )


def test_samples_with_their_numbers(store: Store) -> None:
    assert store.sample(25, by="dataset").datasets["n_obs"].drop("none").to_dict() == {"a": 12, "b": 9, "c": 4}
    assert store.sample(frac=0.1).n_obs == 13  # of 125 cells, and a half is one
    assert store.sample(frac=0.5, by="kind").value_counts("kind").to_dict() == {"x": 33, "y": 10}
    assert rows(store.sample(125)) == list(range(125))
    assert store.sample(frac=0).n_obs == store.sample(0, by="donor").n_obs == store[:0].sample(0, by="donor").n_obs == 0
    assert rows(store.sample(np.int64(3))) == rows(store.sample(3))
    part = store.sample(frac=0.2)[:, ["g2"]]
    assert part.X.compute().shape == (25, 1)


def test_a_sample_is_the_same_each_time_and_another_for_each_seed(store: Store) -> None:
    assert rows(store.sample(10)) == rows(daodask.open_store(store.location).sample(10))
    samples = {tuple(rows(store.sample(10, by=by, seed=seed))) for seed in range(20) for by in (None, "dataset")}
    assert len(samples) == 40
    assert rows(store.sample(5, seed=0)) == [29, 35, 39, 50, 124]


def test_samples_are_nested_and_keep_when_studies_are_added(store: Store, tmp_path: Any) -> None:
    small, large = (set(rows(store.sample(n, seed=4))) for n in (10, 40))
    assert small < large
    # Of study a by itself the cells are drawn in the same order, wherever it is in the store.
    alone = build(tmp_path / "s", {"z": study(9), "a": STUDIES["a"]})
    drawn = store.subset(dataset="a").sample(20, seed=1)
    assert [r + 9 for r in rows(drawn)] == rows(alone.subset(dataset="a").sample(20, seed=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected either n= or frac=, got n=None and frac=None"),
        ({"n": 3, "frac": 0.1}, "expected either n= or frac="),
        ({"n": 126}, "expected n= from 0 to the 125 cells that there are, got 126; none is drawn twice"),
        ({"n": -1}, "got -1"),
        ({"n": 0.5}, "expected n= as a whole number of cells, got 0.5; for a share of them, use frac="),
        ({"n": True}, "got True"),
        ({"frac": 10}, "expected frac= as a share from 0 to 1, got 10; for a number of cells, use n="),
        ({"frac": float("nan")}, "got nan"),
        ({"n": 1, "by": []}, "expected by= as the name of a column or several, got none"),
        ({"n": 1, "seed": 0.5}, "expected seed= as a whole number, got 0.5"),
    ],
)
def test_samples_that_are_none(store: Store, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        store.sample(**arguments)


# -- splits --------------------------------------------------------------------------------------------------------

shares = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(
    lambda weights: {f"part{i}": w / sum(weights) for i, w in enumerate(weights)}
)


@pytest.mark.parametrize("by", [None, *BY])
@given(fractions=shares, seed=st.integers(0, 9), step=st.sampled_from([1, 2]))
@settings(quick, max_examples=8)
def test_parts_are_disjoint_and_the_whole(
    store: Store, obs: pd.DataFrame, by: Any, fractions: dict[str, float], seed: int, step: int
) -> None:
    start = store[::step]
    if by is not None and groups(obs, by)[rows(start)].nunique() < len(fractions):
        with pytest.raises(SelectionError, match="expected at least a group for each part"):
            start.split(fractions, by=by, seed=seed)
        return
    parts = start.split(fractions, by=by, seed=seed)
    assert list(parts) == list(fractions)
    assert sorted(r for part in parts.values() for r in rows(part)) == rows(start)
    assert all(part.n_obs for part in parts.values())
    if by is None:
        assert [p.n_obs for p in parts.values()] == pytest.approx([f * start.n_obs for f in fractions.values()], abs=1)
        return
    labels = groups(obs, by)
    of = [set(labels[rows(part)]) for part in parts.values()]
    assert sum(len(own) for own in of) == len(set(labels[rows(start)]))
    largest = labels[rows(start)].value_counts().max()
    for (name, share), own in zip(fractions.items(), of, strict=True):
        assert parts[name].n_obs - share * start.n_obs < largest or len(own) == 1


def test_donors_stay_together_over_studies(store: Store, obs: pd.DataFrame) -> None:
    sides: set[tuple[str, ...]] = set()
    for seed in range(12):
        parts = store.split({"train": 0.7, "val": 0.3}, by="donor", seed=seed)
        names = {k: {str(d) for d in obs.loc[rows(p), "donor"]} for k, p in parts.items()}
        assert not names["train"] & names["val"]
        assert names["train"] | names["val"] == {*"ABCDEF", "None"}
        sides.add(tuple(sorted(names["val"])))
    assert len(sides) > 4


def test_a_split_is_the_same_each_time_and_whatever_else_is_there(store: Store) -> None:
    fractions = {"train": 0.8, "val": 0.2}
    found = {name: rows(part) for name, part in store.split(fractions, by="donor", seed=1).items()}
    again = daodask.open_store(store.location).split(fractions, by=["donor"], seed=1)
    assert {name: rows(part) for name, part in again.items()} == found
    assert sorted(set(store.split({"a": 0.5, "b": 0.5}, seed=2)["a"].obs["dataset"].compute())) == ["a", "b", "c"]
    assert len({tuple(rows(store.split(fractions, seed=seed)["val"])) for seed in range(10)}) == 10


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.split({"a": 0.5, "b": 0.4}), "expected shares that add up to 1, got 0.9"),
        (lambda s: s.split({}), "expected the share of each part"),
        (lambda s: s.split({"a": 0.5, "b": 0.5}, by=[]), "expected by= as the name of a column or several"),
        (lambda s: s.subset(dataset="c").split({"a": 0.5, "b": 0.5}, by="donor"), "got 1 groups for 2 parts"),
        (
            lambda s: s[:2].split({"a": 0.6, "b": 0.2, "c": 0.2}),
            r"got \[1, 1, 0\] cells of 2; make fewer or larger parts",
        ),
        (lambda s: s[:0].split({"a": 1}), r"got \[0\] cells of 0"),
        (lambda s: s[:0].split({"a": 1}, by="donor"), "got 0 groups for 1 parts"),
        (lambda s: s.split({"a": 1}, seed="0"), "expected seed= as a whole number, got '0'"),
    ],
)
def test_splits_that_are_none(store: Store, ask: Callable[[Store], Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        ask(store)


@pytest.mark.parametrize("ask", [lambda s: s.sample(3, by="donr"), lambda s: s.split({"a": 1}, by=["kind", "donr"])])
def test_an_unknown_column(store: Store, ask: Callable[[Store], Any]) -> None:
    with pytest.raises(UnknownNameError, match="obs has no column 'donr'; did you mean 'donor'?"):
        ask(store)
