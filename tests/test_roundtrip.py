"""Random studies through build and open: what comes out is what went in, by daodask and by anndata alone."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daodask
from daodask.storage import StoreLocation

pytestmark = pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")

PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NUMBER = itertools.count()

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=4)
ENCODINGS = st.sampled_from([sp.csr_matrix, sp.csr_array, sp.csc_matrix, np.asarray])
LAYOUTS = st.fixed_dictionaries(
    {
        "block_rows": st.integers(1, 4),
        "chunk_rows": st.sampled_from([1, 64]),
        "shard_bytes": st.sampled_from([1, "64MiB"]),
        "codec": st.sampled_from(["lz4", "zstd", "none"]),
    }
)
COUNTS = [0, 0, 0, 1, 2, 255, 65_535, 65_536, 2**24, 2**24 + 1, 2**32 - 1, 2**32, 2**53 - 1, 2**53]
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 0.1, 2.0**24 + 1, 2.0**53 + 2, -1.0, np.inf, np.nan])


def lists(size: int, elements: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=size, max_size=size)


def integers(dtype: str) -> st.SearchStrategy[int]:
    return st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@st.composite
def categoricals(draw: st.DrawFn, size: int, labels: st.SearchStrategy[Any]) -> pd.Categorical:
    """Labels with some missing, and some that no cell has; ordered or not."""
    categories = draw(st.lists(labels, unique=True, max_size=4))
    codes = draw(lists(size, st.integers(-1, len(categories) - 1)))
    kind = object if not categories or isinstance(categories[0], str) else None
    return pd.Categorical.from_codes(codes, pd.Index(categories, dtype=kind), ordered=draw(st.booleans()))


#: Values of a column, by what it is; those of pandas' own dtypes and of "gappy text" may be missing.
ELEMENTS = {
    "text": TEXT,
    "gappy text": st.none() | st.just("") | TEXT,
    "bool": st.booleans(),
    "boolean": st.none() | st.booleans(),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "Float64": st.none() | st.floats(allow_nan=False),
    **{kind: integers(kind) for kind in ("int32", "int64", "uint64")},
    **{kind: st.none() | integers(kind.lower()) for kind in ("Int8", "Int64", "UInt64")},
}
LABELS = {"labels": TEXT, "whole labels": integers("int64")}


@st.composite
def columns(draw: st.DrawFn, size: int, kind: str) -> Any:
    if kind in LABELS:
        return draw(categoricals(size, LABELS[kind]))
    values = draw(lists(size, ELEMENTS[kind]))
    if kind[0].isupper() or kind == "boolean":
        return pd.array(values, dtype=kind)
    return np.array([*values, ""], dtype=object)[:-1] if kind.endswith("text") else np.array(values, dtype=kind)


@st.composite
def frames(draw: st.DrawFn, size: int) -> pd.DataFrame:
    chosen = draw(st.lists(st.sampled_from([*ELEMENTS, *LABELS]), unique=True, max_size=5))
    values = {f"{kind} é": draw(columns(size, kind)) for kind in chosen}
    names = st.lists(TEXT, unique=True, min_size=size, max_size=size)
    return pd.DataFrame(values, index=pd.Index(draw(names), dtype=object))


@st.composite
def genes(draw: st.DrawFn) -> list[str]:
    """Few genes, or so many that the counts of a few cells fill several chunks and shards."""
    names = draw(st.lists(TEXT.filter(str.strip), unique=True, min_size=1, max_size=4))  # no name is no gene
    copies = draw(st.sampled_from([1, 1, 500]))
    return [f"{name}{'' if copies == 1 else f'~{i}'}" for name in names for i in range(copies)]


@st.composite
def matrices(draw: st.DrawFn, n_obs: int, n_vars: int, elements: st.SearchStrategy[Any], dtypes: Sequence[str]) -> Any:
    # A drawn patch of values is laid out over the matrix, shifted from row to row; then some rows and columns go empty.
    patch = draw(lists(draw(st.integers(1, 8)), elements))
    rows, cols = np.ogrid[:n_obs, :n_vars]
    dense = np.array(patch)[(rows * 5 + cols) % len(patch)]
    dense[draw(lists(n_obs, st.booleans()))] = 0
    if n_vars < 10:
        dense[:, draw(lists(n_vars, st.booleans()))] = 0
    fitting = [d for d in dtypes if np.dtype(d).kind == "f" or dense.max(initial=0) <= np.iinfo(d).max]
    with np.errstate(over="ignore"):
        return draw(ENCODINGS)(dense.astype(draw(st.sampled_from(fitting))))


@st.composite
def studies(draw: st.DrawFn, elements: st.SearchStrategy[Any], dtypes: Sequence[str]) -> anndata.AnnData:
    n_obs, var_names = draw(st.integers(0, 9)), draw(genes())
    var = pd.DataFrame(index=pd.Index(var_names, dtype=object))
    X = draw(matrices(n_obs, len(var), elements, dtypes))
    adata = anndata.AnnData(X, obs=draw(frames(n_obs)), var=var)
    adata.obsm["X_é"] = np.arange(n_obs * 3, dtype=np.float32).reshape(n_obs, 3)
    return adata


def counted() -> st.SearchStrategy[anndata.AnnData]:
    most = st.sampled_from([1, 300, 70_000, 2**25, 2**53])
    values = most.flatmap(lambda top: st.sampled_from([c for c in COUNTS if c <= top]))
    # What adds up to more in a block of rows is refused.
    return studies(values, ["u2", "i4", "u4", "i8", "f8"]).filter(lambda adata: dense(adata.X).sum(dtype=float) < 2**62)


# -- what should come out ----------------------------------------------------------------------------------------------


def dense(X: Any) -> Any:
    return X.toarray() if sp.issparse(X) else np.asarray(X)


def texts(values: Any) -> list[str]:
    return [str(v) for v in values]


def plain(values: Any) -> list[Any]:
    """Python values, with ``None`` for what is missing."""
    return [None if pd.isna(v) else v for v in pd.Series(values).astype(object).tolist()]


def labels(values: Any) -> list[Any]:
    return list(pd.Index(values).astype(object))


def content(column: pd.Series) -> tuple[Any, ...]:
    """Everything about a column that daodask keeps, however pandas holds it."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "category", column.cat.ordered, labels(column.cat.categories), plain(column)
    is_text = column.dtype == object or isinstance(column.dtype, pd.StringDtype)
    if is_text and column.isna().any():  # text that some cells lack becomes labels, as AnnData makes it too
        return "category", False, sorted(set(column.dropna())), plain(column)
    if str(column.dtype) == "Float64":
        return "float64", plain(column)
    return "text" if is_text else str(column.dtype), plain(column)


def opened(content_of_one: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same as an opened store has it: nullable dtypes where something is missing, and only there."""
    kind, *rest = content_of_one
    if kind in ("Int64", "UInt64", "Int8", "boolean") and None not in rest[-1]:
        kind = {"boolean": "bool"}.get(kind, kind.lower())
    return kind, *rest


def contents(obs: pd.DataFrame) -> dict[str, tuple[Any, ...]]:
    return {name: content(obs[name]) for name in obs}


def stored_dtype(values: Any) -> np.dtype[Any]:
    """Smallest exact dtype: of whole numbers an unsigned one from 16 bits on, else of floats."""
    if np.all((values >= 0) & (values <= 2**53) & (values == np.floor(values))):
        return next(np.dtype(d) for d in ("u2", "u4", "u8") if values.max(initial=0) <= np.iinfo(d).max)
    with np.errstate(over="ignore"):
        return np.dtype("f4" if np.array_equal(values.astype("f4"), values, equal_nan=True) else "f8")


def served_dtype(values: Any) -> np.dtype[Any]:
    """float32 wherever it has every whole number up to the largest, or every value."""
    stored = stored_dtype(values)
    exact = values.max(initial=0) <= 2**24 if stored.kind == "u" else stored == np.float32
    return np.dtype("f4" if exact else "f8")


def assert_matrix(found: Any, expected: Any, dtype: np.dtype[Any]) -> None:
    assert isinstance(found, sp.csr_matrix)
    assert found.dtype == dtype
    assert found.has_sorted_indices
    assert not np.any(found.data == 0)
    np.testing.assert_array_equal(found.toarray().astype(np.float64), expected.astype(np.float64))


@contextlib.contextmanager
def built(layout: Mapping[str, Any], kind: str, **sources: anndata.AnnData) -> Iterator[StoreLocation]:
    """A store in memory, for as long as it is looked at: the more there is in memory, the slower fsspec is."""
    location = StoreLocation.parse(f"memory://roundtrip-{next(NUMBER)}")
    spec = {
        "features": {"name": "own", "reference": "union"},
        "X": {"kind": kind},
        "keep": "all",
        "layout": dict(layout),
        "studies": [{"id": name, "source": source, "obsm": ["*"]} for name, source in sources.items()],
    }
    report = daodask.build_store(spec, location)
    assert report.ok, report
    yield location
    location.remove()


def read_dataset(location: StoreLocation, dataset: str) -> anndata.AnnData:
    path = daodask.open_store(location).snapshot.dataset[dataset].path
    return anndata.read_zarr((location / path).zarr_store())


def assert_survives(adata: anndata.AnnData, location: StoreLocation) -> None:
    values = dense(adata.X)
    found = daodask.open_store(location).to_anndata()
    assert texts(found.obs_names) == texts(adata.obs_names)
    assert texts(found.var_names) == texts(adata.var_names)
    assert contents(found.obs.drop(columns="dataset")) == {n: opened(c) for n, c in contents(adata.obs).items()}
    assert found.obs["dataset"].tolist() == ["one"] * adata.n_obs
    assert_matrix(found.X, values, served_dtype(values))
    np.testing.assert_array_equal(found.obsm["X_é"], adata.obsm["X_é"])
    alone = read_dataset(location, "one")
    assert texts(alone.obs_names) == texts(adata.obs_names)
    assert texts(alone.var_names) == texts(adata.var_names)
    assert alone.var["measured"].tolist() == [True] * adata.n_vars
    assert contents(alone.obs) == contents(adata.obs)
    assert_matrix(alone.X, values, stored_dtype(values))
    np.testing.assert_array_equal(alone.obsm["X_é"], adata.obsm["X_é"])


# -- properties --------------------------------------------------------------------------------------------------------


@PROPERTY
@given(adata=counted(), layout=LAYOUTS)
def test_counts_survive(adata: anndata.AnnData, layout: dict[str, Any]) -> None:
    with built(layout, "counts", one=adata) as location:
        assert_survives(adata, location)


@PROPERTY
@given(adata=studies(FLOATS, ["f4", "f8"]), layout=LAYOUTS)
def test_any_other_numbers_survive(adata: anndata.AnnData, layout: dict[str, Any]) -> None:
    with built(layout, "other", one=adata) as location:
        assert_survives(adata, location)


@PROPERTY
@given(one=counted(), two=counted(), layout=LAYOUTS)
def test_two_studies_survive_together(one: anndata.AnnData, two: anndata.AnnData, layout: dict[str, Any]) -> None:
    with built(layout, "counts", one=one, two=two) as location:
        assert_both_survive(one, two, location)


def assert_both_survive(one: anndata.AnnData, two: anndata.AnnData, location: StoreLocation) -> None:
    store = daodask.open_store(location)
    found = store.to_anndata()
    union = list(dict.fromkeys([*texts(one.var_names), *texts(two.var_names)]))
    place = {gene: i for i, gene in enumerate(union)}
    assert texts(found.var_names) == union
    assert texts(found.obs_names) == [*texts(one.obs_names), *texts(two.obs_names)]
    assert set(found.obs) == {"dataset", *one.obs, *two.obs}
    start = 0
    for name, adata in (("one", one), ("two", two)):
        X, obs = found.X[start : start + adata.n_obs], found.obs.iloc[start : start + adata.n_obs]
        start += adata.n_obs
        own = texts(adata.var_names)
        at = [place[gene] for gene in own]
        expected = np.zeros((adata.n_obs, len(union)))
        expected[:, at] = dense(adata.X)
        np.testing.assert_array_equal(dense(X).astype(np.float64), expected)
        assert obs["dataset"].tolist() == [name] * adata.n_obs
        for column in found.obs.columns.drop("dataset"):
            values = adata.obs[column] if column in adata.obs else [None] * adata.n_obs
            assert plain(obs[column]) == plain(values), column
        if adata.n_obs:
            assert_matrix(store.subset(dataset=name).to_anndata().X, expected, served_dtype(expected))
            measured = set(own)
            assert store.measured[name].tolist() == [gene in measured for gene in union]


@pytest.mark.parametrize(
    ("here", "there", "dtype"),
    [
        (np.array([1, 2]), np.array([1.5, np.nan]), "float64"),
        (np.array([1, 2], np.int32), np.array([2**40, 1]), "int64"),
        (np.array([1, 2], np.uint8), np.array([-1, 1], np.int8), "int16"),
        (pd.array([1, None], dtype="Int8"), np.array([2**40, 1]), "Int64"),
        (pd.array([True, None], dtype="boolean"), np.array([True, False]), "boolean"),
        (pd.Categorical(["a", "b"]), np.array(["c", "a"], dtype=object), "object"),
        (pd.Categorical(["a", None]), pd.Categorical(["c", "a"]), "category"),
        (pd.Categorical([3, 1]), pd.Categorical([2, None]), "category"),
        (np.array([1, 2]), None, "Int64"),
        (np.array([2**53 + 1, 2]), None, "Int64"),
        (np.array([True, False]), None, "boolean"),
        (np.array([0.5, 2.0], np.float32), None, "float32"),
        (np.array(["a", ""], dtype=object), None, "object"),
        (pd.Categorical(["b", "a"]), None, "category"),
    ],
)
def test_one_dtype_for_both(here: Any, there: Any, dtype: str) -> None:
    pair = [anndata.AnnData(np.ones((2, 1), np.int32)), anndata.AnnData(np.ones((2, 1), np.int32))]
    pair[0].obs["c"] = here
    if there is not None:
        pair[1].obs["c"] = there
    with built({}, "counts", one=pair[0], two=pair[1]) as location:
        column = daodask.open_store(location).to_anndata().obs["c"]
    assert str(column.dtype) == dtype
    assert plain(column) == plain(here) + (plain(there) if there is not None else [None, None])
    if dtype == "category":
        assert labels(column.cat.categories) == list(
            dict.fromkeys(labels(pd.Categorical(here).categories) + labels(pd.Categorical(there).categories))
            if there is not None
            else labels(here.categories)
        )
