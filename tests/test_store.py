"""The store as users hold it. X says of each value where it belongs, so that a wrong cell or gene shows."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import anndata
import cloudpickle
import dask
import fsspec
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask.callbacks import Callback
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_index_equal

import daodask
from daodask.errors import FeatureSpaceError, SelectionError, StoreNotFoundError, UnknownNameError
from daodask.store import Store
from daodask.testing import coordinate_adata, coordinate_counts, random_store

SIZES, N_VARS = (70, 0, 33), 32
N_OBS = sum(SIZES)

quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


# -- stores to look at ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three studies of 70, 0 and 33 cells, in blocks of 16."""
    return random_store(tmp_path_factory.mktemp("atlas") / "store", SIZES, n_vars=N_VARS, block_rows=16)


GENES = ("ENSG00000000011", "ENSG00000000022", "ENSG00000000033", "ENSG00000000044", "ENSG00000000055")
SYMBOLS = ("CD3E", "CD8A", "TWIN", "TWIN", "LYZ")


def build(url: Any, *studies: dict[str, Any], **spec: Any) -> Store:
    """Build studies, all of their columns kept, in blocks of four cells."""
    space = {"name": "genes", "reference": "union"}
    whole = {"features": space, "keep": "all", "layout": {"block_rows": 4}, "studies": list(studies), **spec}
    report = daodask.build_store(whole, url)
    assert report.ok, str(report)
    return daodask.open_store(url)


def study(n_obs: int, first: int, names: Sequence[str] = GENES, **obs: Any) -> anndata.AnnData:
    """Cells number ``first`` and on, all studies with the same names of cells."""
    rows = np.arange(first, first + n_obs)
    frame = pd.DataFrame(obs, index=pd.Index([f"cell{i}" for i in range(n_obs)], dtype=object))
    var = pd.DataFrame(index=pd.Index(names, dtype=object))
    return anndata.AnnData(coordinate_counts(rows, len(names), density=0.5).astype(np.float32), obs=frame, var=var)


def labels(values: Sequence[Any], categories: Sequence[Any], *, ordered: bool = False) -> pd.Categorical:
    return pd.Categorical(list(values), categories=pd.Index(categories, dtype=object), ordered=ordered)


STAGES = ("low", "mid", "high")
MIXED = {
    "a": study(
        9,
        0,
        cell_type=labels(["T cell", "B cell", None] * 3, ["B cell", "T cell"]),
        n_counts=np.arange(9) * 100,
        score=[0.5, np.nan, 2.0] * 3,
        passed=[True, False, True] * 3,
        donor=pd.Series(["d1", "d2", "d3"] * 3, dtype=object).to_numpy(),
        stage=labels(["low", "mid", "high"] * 3, STAGES, ordered=True),
    ),
    "b": study(
        7,
        9,
        cell_type=labels(["NK cell", "B cell"] * 3 + ["NK cell"], ["NK cell", "B cell"]),
        n_counts=np.arange(500, 507, dtype=np.int32),
        passed=pd.array([True, None, False, True, None, False, True], dtype="boolean"),
        donor=pd.Series(["d4"] * 7, dtype=object).to_numpy(),
        stage=labels(["mid", None, "mid", None, "low", "mid", "mid"], STAGES, ordered=True),
    ),
    "none": study(0, 16, cell_type=labels([], ["T cell"])),
    "c": study(
        8,
        16,
        cell_type=labels(["T cell"] * 8, ["T cell"]),
        n_counts=pd.array([1, None, 3, 4, None, 6, 7, 8], dtype="Int64"),
        donor=labels(["d1", None] * 4, ["d1"]),
        **{"% mito": np.linspace(0, 1, 8, dtype=np.float32)},
    ),
}
COLUMNS = ("cell_type", "n_counts", "score", "passed", "donor", "stage", "% mito")


def records() -> list[dict[str, Any]]:
    """Every cell of the mixed store as plain values; what is missing, or a column that its study lacks, is None."""
    found = []
    for name, adata in MIXED.items():
        for cell, row in zip(adata.obs_names, adata.obs.astype(object).to_dict("records"), strict=True):
            values = {c: None if pd.isna(row.get(c)) else row[c] for c in COLUMNS}
            found.append({"dataset": name, "obs_names": cell, **values})
    return found


RECORDS = records()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four studies, one without a cell, whose columns differ; all have the same names of cells."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [f"{i},{s},1,1000,protein_coding\n" for i, s in zip(GENES, SYMBOLS, strict=True)]
    (folder / "genes.csv").write_text("".join(rows), encoding="utf-8")
    studies = [{"id": name, "source": adata} for name, adata in MIXED.items()]
    return build(folder / "store", *studies, features={"name": "human", "reference": str(folder / "genes.csv")})


def rows_of(store: Store) -> np.ndarray:
    """Row numbers of the selected cells, as obs has them."""
    return store.obs.index.compute().to_numpy()


def dense(array: Any) -> np.ndarray:
    computed = array.compute()
    return computed.toarray() if sp.issparse(computed) else computed


# -- what is read, and what is computed ----------------------------------------------------------------------------


class RecordingFileSystem(MemoryFileSystem):
    """What is at ``memory://x`` is at ``recorded://x`` too, where each request is written down."""

    protocol = "recorded"
    calls: ClassVar[list[tuple[str, str]]] = []
    n_bytes: ClassVar[dict[str, int]] = {}
    _nested = threading.local()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("recorded://", "memory://"))

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in ("ls", "find", "glob", "info", "exists", "isfile", "isdir", "cat_file", "cat_ranges", "open"):
            return value

        def recorded(path: Any, *args: Any, **kwargs: Any) -> Any:
            outermost = not getattr(self._nested, "busy", False)
            listed = path if isinstance(path, list) else [path]
            paths = [str(p).removeprefix("recorded:/").lstrip("/") for p in listed]
            if outermost:
                self.calls.extend((name, p) for p in paths)
            self._nested.busy = True
            try:
                found = value(path, *args, **kwargs)
                if name == "cat_ranges":
                    for p, data in zip(paths, found, strict=True):
                        self.n_bytes[p] = self.n_bytes.get(p, 0) + len(data)
                return found
            finally:
                self._nested.busy = not outermost

        return recorded

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        return _CountedFile(file.getvalue(), path, self.n_bytes) if mode == "rb" else file


class _CountedFile(fsspec.implementations.memory.MemoryFile):
    def __init__(self, data: bytes, path: str, n_bytes: dict[str, int]) -> None:
        super().__init__(None, path, data)
        self.counted = n_bytes

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.counted[self.path] = self.counted.get(self.path, 0) + len(data)
        return data


fsspec.register_implementation("recorded", RecordingFileSystem, clobber=True)


@pytest.fixture(scope="module")
def in_memory() -> str:
    random_store("memory://counted", SIZES, n_vars=N_VARS, block_rows=16)
    return "recorded://counted"


@pytest.fixture
def calls(in_memory: str) -> list[tuple[str, str]]:
    """Write down the requests to the store in memory, from here on."""
    RecordingFileSystem.calls.clear()
    RecordingFileSystem.n_bytes.clear()
    return RecordingFileSystem.calls


class Computations(Callback):
    """Counts what dask computes."""

    count = 0

    def _start(self, dsk: Any) -> None:
        self.count += 1


def test_opening_is_one_listing_and_one_read(in_memory, calls):
    daodask.open_store(in_memory)
    assert calls == [("ls", "counted/snapshots"), ("cat_file", "counted/snapshots/00000001.json")]


def test_looking_reads_nothing_more(in_memory, calls):
    store = daodask.open_store(in_memory)
    calls.clear()
    repr(store), store._repr_html_(), store.shape, len(store), store.n_vars
    store.datasets, store.uns, store.obs_columns, store.obs_schema, store.value_counts("cell_type")
    store.value_counts("dataset"), list(store.layers), list(store.obsm), store.blocks, store.served_dtype()
    store.X, store.layers["half"], store.obsm["place"], store.obs, store.obs["row"]
    store[10:20, :5], store[[1, 2, 3]], daodask.BatchLoader(store, obs=["row"], layer="half")
    assert calls == []


def test_var_is_one_read_and_then_none(in_memory, calls):
    store = daodask.open_store(in_memory)
    calls.clear()
    first = store.var
    assert [kind for kind, _ in calls] in ([], ["cat_file"])
    assert len(first) == N_VARS
    calls.clear()
    store.var, store.var_names, store[:, ["gene3"]].var, daodask.open_store(in_memory).var
    assert [path for _, path in calls if "features" in path] == []


def test_a_subset_that_the_snapshot_decides_reads_nothing(in_memory, calls):
    store = daodask.open_store(in_memory)
    calls.clear()
    assert store.subset(dataset="study2").n_obs == 33
    assert store.subset(exclude={"dataset": ["study0", "study1"]}).n_obs == 33
    assert store.subset("row >= 0").n_obs == N_OBS
    assert store.subset("row < 0 or row > 102").n_obs == 0
    assert store.subset(dataset="study2", cell_type="T cell").n_obs <= 33
    assert {path.split("/")[2].split(".")[0] for _, path in calls} == {"study2"}
    calls.clear()
    assert store.subset("row < 70").n_obs == 70
    assert calls == []


def test_an_undecided_subset_reads_obs_of_the_undecided_datasets_alone(in_memory, calls):
    store = daodask.open_store(in_memory)
    calls.clear()
    assert rows_of(store.subset("row >= 90")).tolist() == list(range(90, 103))
    (path,) = {path for _, path in calls}
    assert path.startswith("counted/datasets/study2.")
    assert path.endswith("/obs.parquet")


def test_nothing_is_computed_before_it_is_asked_for(in_memory):
    with Computations() as computed:
        store = daodask.open_store(in_memory)
        repr(store), store._repr_html_()
        part = store.subset(cell_type="T cell")[:, :4]
        part.X, part.layers["half"], part.obsm["place"], part.obs, part.var, part.value_counts("odd")
        part.to_anndata(lazy=True)
        assert computed.count == 0
        part.X.compute()
        assert computed.count == 1


def test_a_column_is_read_alone():
    rng = np.random.default_rng(0)
    texts = pd.Series([rng.bytes(4000).hex() for _ in range(40)], dtype=object)
    adata = coordinate_adata(40)
    adata.obs["essay"] = texts.to_numpy()
    build("memory://wide", {"id": "a", "source": adata})
    store = daodask.open_store("recorded://wide")
    RecordingFileSystem.n_bytes.clear()
    store.obs["row"].compute()  # the parquet footer is known from here on
    path = next(p for p in RecordingFileSystem.n_bytes if p.endswith("obs.parquet"))
    read = {}
    for column in ("row", "essay"):
        RecordingFileSystem.n_bytes.clear()
        store.obs[column].compute()
        read[column] = RecordingFileSystem.n_bytes[path]
    assert read["row"] < 10_000
    assert read["essay"] > 100_000
    RecordingFileSystem.n_bytes.clear()
    assert store.subset("row < 3").n_obs == 3
    assert RecordingFileSystem.n_bytes[path] < 10_000


# -- opening -------------------------------------------------------------------------------------------------------


def test_an_absent_store_says_how_to_build_one(tmp_path):
    with pytest.raises(StoreNotFoundError, match="daodask build"):
        daodask.open_store(tmp_path / "nowhere")


def test_an_older_snapshot_stays_as_it_was(tmp_path):
    first = build(tmp_path / "s", {"id": "a", "source": study(5, 0)})
    second = build(tmp_path / "s", {"id": "b", "source": study(3, 5)})
    assert (first.n_obs, second.n_obs) == (5, 8)
    old = daodask.open_store(tmp_path / "s", snapshot=1)
    assert list(old.datasets.index) == ["a"]
    np.testing.assert_array_equal(dense(old.X), coordinate_counts(np.arange(5), 5, density=0.5).toarray())
    assert daodask.open_store(tmp_path / "s", snapshot=2).n_obs == 8
    with pytest.raises(StoreNotFoundError, match="has no snapshot 7; it has 1 to 2"):
        daodask.open_store(tmp_path / "s", snapshot=7)


def test_feature_spaces_open_by_name(tmp_path):
    spaces = [{"name": name, "reference": "union"} for name in ("human", "mouse")]
    studies = [
        {"id": "a", "features": "human", "source": study(5, 0)},
        {"id": "m", "features": "mouse", "source": study(6, 0, ("gm1", "gm2", "gm3"), strain=["x"] * 6)},
        {"id": "b", "features": "human", "source": study(4, 5, cell_type=["T"] * 4)},
    ]
    spec = {"features": spaces, "keep": "all", "studies": studies}
    assert daodask.build_store(spec, tmp_path / "s").ok
    with pytest.raises(FeatureSpaceError, match=r"'human' \(5 genes, 2 datasets\), 'mouse' \(3 genes, 1 datasets\)"):
        daodask.open_store(tmp_path / "s")
    with pytest.raises(FeatureSpaceError, match="no feature space 'rat'"):
        daodask.open_store(tmp_path / "s", features="rat")
    human, mouse = (daodask.open_store(tmp_path / "s", features=name) for name in ("human", "mouse"))
    assert (human.shape, mouse.shape) == ((9, 5), (6, 3))
    assert human.obs_columns == ("dataset", "obs_names", "cell_type")
    assert mouse.obs_columns == ("dataset", "obs_names", "strain")
    np.testing.assert_array_equal(dense(human.X), coordinate_counts(np.arange(9), 5, density=0.5).toarray())
    np.testing.assert_array_equal(dense(mouse.X), coordinate_counts(np.arange(6), 3, density=0.5).toarray())
    assert rows_of(mouse).tolist() == [0, 1, 2, 3, 4, 5]
    assert human.subset(dataset="b").uns == {"b": {}}
    with pytest.raises(UnknownNameError, match="no cell of the store has dataset = 'm'"):
        human.subset(dataset="m")


def test_what_a_study_is(mixed):
    assert mixed.shape == (24, 5)
    assert mixed.datasets["n_obs"].to_dict() == {"a": 9, "b": 7, "none": 0, "c": 8}
    assert mixed.subset(cell_type="T cell").datasets["n_obs"].drop("none").to_dict() == {"a": 3, "c": 8}
    assert mixed.var["symbol"].tolist() == list(SYMBOLS)
    assert mixed.var_names.tolist() == list(GENES)
    assert mixed.measured.to_numpy().tolist() == [[True] * 3] * 5
    assert mixed[:, [1, 0]].measured.index.tolist() == [GENES[1], GENES[0]]


# -- X, layers, obsm and obs are the same cells --------------------------------------------------------------------

positions = st.lists(st.integers(0, N_OBS - 1), unique=True).map(sorted) | st.builds(
    lambda start, stop, step: list(range(N_OBS))[start:stop:step],
    st.integers(0, N_OBS),
    st.integers(0, N_OBS),
    st.integers(1, 40),
)
genes = st.none() | st.lists(st.integers(0, N_VARS - 1), unique=True)


def check_alignment(part: Store, rows: Sequence[int], columns: Sequence[int] | None) -> None:
    """Block by block: what each lazy piece has is what the row numbers say."""
    pieces = {
        "X": part.X.to_delayed().ravel().tolist(),
        "half": part.layers["half"].to_delayed().ravel().tolist(),
        "place": part.obsm["place"].to_delayed().ravel().tolist(),
        "obs": part.obs.to_delayed(),
    }
    assert len({len(blocks) for blocks in pieces.values()}) == 1
    (computed,) = dask.compute(pieces, scheduler="synchronous")
    seen: list[int] = []
    wanted = slice(None) if columns is None else list(columns)
    for X, half, place, obs in zip(*(computed[name] for name in pieces), strict=True):
        numbers = obs.index.to_numpy()
        expected = coordinate_counts(numbers, N_VARS).toarray()[:, wanted]
        assert X.has_sorted_indices
        assert X.dtype == half.dtype == np.float32
        np.testing.assert_array_equal(X.toarray(), expected)
        np.testing.assert_array_equal(half.toarray(), expected / 2)
        np.testing.assert_array_equal(place, np.stack([numbers, -numbers], axis=1))
        np.testing.assert_array_equal(obs["row"], numbers)
        assert obs["obs_names"].tolist() == [f"cell{r}" for r in numbers]
        assert obs["dataset"].tolist() == ["study0" if r < 70 else "study2" for r in numbers]
        assert_index_equal(obs.dtypes.index, part.obs.dtypes.index)
        assert (obs.dtypes == part.obs.dtypes).all()
        seen.extend(numbers.tolist())
    assert seen == list(rows)


@given(rows=positions, columns=genes)
@settings(quick, max_examples=25)
def test_partitions_and_blocks_are_the_same_cells(store, rows, columns):
    part = store[rows] if columns is None else store[rows, columns]
    assert part.shape == (len(rows), N_VARS if columns is None else len(columns))
    check_alignment(part, rows, columns)


def test_a_block_is_small_and_few_cells_make_few_blocks(store):
    assert store.X.chunks == ((16, 16, 16, 16, 6, 16, 16, 1), (N_VARS,))
    assert store[::10].X.chunks[0] == (7, 4)
    assert store[:17].X.chunks[0] == (16, 1)
    assert store[[3, 101]].X.chunks[0] == (1, 1)
    assert max(store[::3].X.chunks[0]) <= 16


@given(rows=positions)
@settings(quick, max_examples=15)
def test_obs_has_known_divisions_and_categories(store, rows):
    obs = store[rows].obs
    if rows:
        assert obs.known_divisions
        assert obs.divisions[0] == rows[0]
        assert obs.divisions[-1] == rows[-1]
        parts = dask.compute(obs.to_delayed(), scheduler="synchronous")[0]
        for part, low, high in zip(parts, obs.divisions[:-1], obs.divisions[1:], strict=True):
            assert low <= part.index[0] <= part.index[-1] <= high
    assert obs["cell_type"].cat.known
    assert obs["cell_type"].cat.categories.tolist() == ["B cell", "T cell", "Größenzelle"]
    assert obs["dataset"].cat.categories.tolist() == ["study0", "study1", "study2"]
    assert obs.index.dtype == np.int64


def test_obs_by_row_number_and_by_dask(store):
    obs = store.obs
    assert obs.loc[71:73]["row"].compute().tolist() == [71, 72, 73]
    assert obs["row"].sum().compute() == sum(range(N_OBS))
    counts = obs.groupby("cell_type", observed=True)["n_counts"].sum().compute()
    frame = obs.compute()
    expected = frame.groupby("cell_type", observed=True)["n_counts"].sum()
    assert counts.to_dict() == expected.to_dict()


def test_obs_is_what_the_studies_had(mixed):
    found = mixed.obs.compute(scheduler="synchronous").astype(object)
    plain = [{c: None if pd.isna(v) else v for c, v in row.items()} for row in found.to_dict("records")]
    assert plain == [{c: r[c] for c in mixed.obs_columns} for r in RECORDS]
    assert mixed.obs.dtypes.astype(str).drop(["obs_names", "donor"]).to_dict() == {
        "dataset": "category",
        "cell_type": "category",
        "n_counts": "Int64",
        "score": "float64",
        "passed": "boolean",
        "stage": "category",
        "% mito": "float32",
    }
    assert mixed.obs["stage"].cat.ordered
    assert mixed.obs["cell_type"].cat.categories.tolist() == ["B cell", "T cell", "NK cell"]


# -- X as a dask array ---------------------------------------------------------------------------------------------

EVERYTHING = coordinate_counts(np.arange(N_OBS), N_VARS).toarray()


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda X: X, EVERYTHING),
        (lambda X: X[3:7], EVERYTHING[3:7]),
        (lambda X: X[60:90:3], EVERYTHING[60:90:3]),
        (lambda X: X[:, 2:5], EVERYTHING[:, 2:5]),
        (lambda X: X[[1, 80, 102]], EVERYTHING[[1, 80, 102]]),
        (lambda X: X.map_blocks(lambda block: block * 2), 2 * EVERYTHING),
        (lambda X: X.map_blocks(lambda block: block.toarray(), meta=np.empty((0, 0), np.float32)), EVERYTHING),
        (lambda X: X.persist(), EVERYTHING),
        (lambda X: X.rechunk((40, -1)), EVERYTHING),
        (lambda X: X.blocks[4], EVERYTHING[64:70]),
    ],
)
def test_x_as_dask_arrays_are_used(store, use, expected):
    result = use(store.X)
    assert result.shape == expected.shape
    np.testing.assert_array_equal(dense(result), expected)


def test_the_same_read_has_the_same_name(store):
    again = daodask.open_store(store.location)
    assert store.X.name == again.X.name == store[:].X.name
    names = [store.X.name, store[1:].X.name, store[:, :3].X.name, store.layers["half"].name, store.obsm["place"].name]
    assert len(set(names)) == len(names)


def with_value(matrix: sp.csr_matrix, value: int) -> sp.csr_matrix:
    changed = matrix.toarray().astype(np.float64)
    changed[1, 1] = value
    return sp.csr_matrix(changed)


def test_x_is_float32_unless_that_would_round(tmp_path):
    large = study(3, 0)
    large.X = with_value(large.X, 2**24 + 1)
    store = build(tmp_path / "s", {"id": "small", "source": study(4, 3)}, {"id": "large", "source": large})
    assert store.X.dtype == store.X.compute().dtype == np.float64
    assert dense(store.X)[5, 1] == 16_777_217
    small = store.subset(dataset="small")
    assert small.X.dtype == small.X.compute().dtype == small.to_anndata().X.dtype == np.float32
    assert {batch.X.dtype for batch in daodask.BatchLoader(store, 2)} == {np.dtype(np.float64)}


def test_two_to_the_24_is_still_a_float32(tmp_path):
    large = study(3, 0)
    large.X = with_value(large.X, 2**24)
    assert build(tmp_path / "s", {"id": "a", "source": large}).X.dtype == np.float32


def test_layers_and_obsm_that_differ(tmp_path):
    a, b = coordinate_adata(6), coordinate_adata(5, first=6)
    a.obsm["X_umap"] = np.ones((6, 2), np.float64)
    a.obsm["X_pca"], b.obsm["X_pca"] = np.ones((6, 4), np.float32), np.ones((5, 3), np.float32)
    b.obsm["place"] = b.obsm["place"].astype(np.float64)
    studies = [
        {"id": "a", "source": a, "obsm": ["*"], "layers": {"half": "layers/half"}},
        {"id": "b", "source": b, "obsm": ["*"]},
    ]
    store = build(tmp_path / "s", *studies)
    assert list(store.layers) == ["half"]
    assert list(store.obsm) == ["X_pca", "X_umap", "place"]
    with pytest.raises(UnknownNameError, match=r"layer 'half' is not in 1 of the selected datasets \(b\)"):
        store.layers["half"]
    with pytest.raises(UnknownNameError, match=r"obsm array 'X_umap' is not in 1 of the selected datasets \(b\)"):
        store.obsm["X_umap"]
    with pytest.raises(SelectionError, match=r"obsm array 'X_pca' has \[3, 4\] columns in different datasets"):
        store.obsm["X_pca"]
    with pytest.raises(UnknownNameError, match="there is no layer 'halve'; did you mean 'half'?"):
        store.layers["halve"]
    only = store.subset(dataset="a")
    assert dense(only.layers["half"]).shape == (6, 32)
    assert dense(only.obsm["X_pca"]).shape == (6, 4)
    place = store.obsm["place"]
    assert place.dtype == np.float64
    assert {block.compute().dtype for block in place.blocks} == {np.dtype(np.float64)}
    for lazy in (False, True):
        adata = store.to_anndata(lazy=lazy)
        assert [name for name in adata.layers if name] == []
        assert list(adata.obsm) == ["place"]


def test_a_cluster_computes_the_same(store, client):
    part = store.subset("odd")[:, 10:2:-1]
    assert client.nthreads()
    rows = np.arange(1, N_OBS, 2)
    np.testing.assert_array_equal(dense(part.X), EVERYTHING[rows, 10:2:-1])
    assert part.obs["row"].compute().tolist() == rows.tolist()
    pd.testing.assert_frame_equal(part.obs.compute(), part.obs.compute(scheduler="synchronous"))
    np.testing.assert_array_equal(part.to_anndata().X.toarray(), EVERYTHING[rows, 10:2:-1])


# -- subset --------------------------------------------------------------------------------------------------------

Condition = tuple[str, Callable[[dict[str, Any]], bool]]
VALUES: dict[str, Sequence[Any]] = {
    "dataset": ("a", "b", "none", "c"),
    "obs_names": ("cell0", "cell5", "cell100"),
    "cell_type": ("T cell", "B cell", "NK cell"),
    "n_counts": (-1, 0, 1, 3, 8, 100, 500, 502.5, 506, 800, 10**6),
    "score": (0.5, 1, 2.0, -3.5),
    "passed": (True, False),
    "donor": ("d1", "d2", "d4", "nobody"),
    "stage": STAGES,
    "% mito": (0, 0.5, 1, 2),
}
ORDERED = ("n_counts", "score", "stage", "% mito")
RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


def holds(column: str, relation: str, value: Any) -> Callable[[dict[str, Any]], bool]:
    """The meaning of a relation: a missing value equals nothing, lies in no range, and differs from everything."""

    def check(cell: dict[str, Any]) -> bool:
        own = cell[column]
        if relation in ("!=", "not in"):
            return own is None or own not in (value if relation == "not in" else [value])
        if own is None:
            return False
        if relation in ("==", "in"):
            return own in (value if relation == "in" else [value])
        rank = STAGES.index if column == "stage" else lambda x: x
        return bool(RELATIONS[relation](rank(own), rank(value)))

    return check


@st.composite
def comparisons(draw: st.DrawFn) -> Condition:
    column = draw(st.sampled_from(list(VALUES)))
    relation = draw(st.sampled_from(["==", "!=", "in", "not in", *(RELATIONS if column in ORDERED else ())]))
    name = column if column.isidentifier() and draw(st.booleans()) else f"`{column}`"
    element = st.sampled_from(VALUES[column])
    if relation in ("in", "not in"):
        several = draw(st.lists(element, max_size=3))
        return f"{name} {relation} {several!r}", holds(column, relation, several)
    value = draw(element)
    if draw(st.booleans()):
        return f"{value!r} {MIRRORED[relation]} {name}", holds(column, relation, value)
    return f"{name} {relation} {value!r}", holds(column, relation, value)


def _both(a: Condition, b: Condition) -> Condition:
    return f"({a[0]} and {b[0]})", lambda cell: a[1](cell) and b[1](cell)


def _either(a: Condition, b: Condition) -> Condition:
    return f"({a[0]} or {b[0]})", lambda cell: a[1](cell) or b[1](cell)


def _not(a: Condition) -> Condition:
    return f"not ({a[0]})", lambda cell: not a[1](cell)


queries = st.recursive(
    comparisons(),
    lambda inner: st.builds(_both, inner, inner) | st.builds(_either, inner, inner) | st.builds(_not, inner),
    max_leaves=4,
)


def mappings(most: int) -> st.SearchStrategy[dict[str, Any]]:
    entry = st.sampled_from(list(VALUES)).flatmap(
        lambda c: st.tuples(st.just(c), st.sampled_from(VALUES[c]) | st.lists(st.sampled_from(VALUES[c]), max_size=3))
    )
    return st.lists(entry, max_size=most).map(dict)


@given(
    query=st.none() | queries,
    equal=mappings(2),
    exclude=mappings(2),
    before=st.lists(st.booleans(), min_size=24, max_size=24),
)
@settings(quick, max_examples=250)
def test_subset_means_what_it_says(mixed, query, equal, exclude, before):
    start = mixed if all(before) else mixed[np.array(before)]
    found = start.subset(query and query[0], exclude=exclude, **equal)
    tests = [query[1]] if query else []
    tests += [holds(c, "in" if isinstance(v, list) else "==", v) for c, v in equal.items()]
    tests += [holds(c, "not in" if isinstance(v, list) else "!=", v) for c, v in exclude.items()]
    expected = [n for n, cell in enumerate(RECORDS) if before[n] and all(test(cell) for test in tests)]
    assert found.selection.store_rows.tolist() == expected
    assert found.n_obs == len(expected)
    assert found.n_vars == 5


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("n_counts > 500", [6, 7, 8, 10, 11, 12, 13, 14, 15]),
        ("n_counts >= 500 and dataset == 'a'", [5, 6, 7, 8]),
        ("100 < n_counts <= 400", [2, 3, 4]),
        ("cell_type == 'NK cell'", [9, 11, 13, 15]),
        ("cell_type != 'T cell' and dataset == 'a'", [1, 2, 4, 5, 7, 8]),
        ("cell_type not in ['T cell', 'B cell']", [2, 5, 8, 9, 11, 13, 15]),
        ("stage >= 'mid'", [1, 2, 4, 5, 7, 8, 9, 11, 14, 15]),
        ("passed and dataset == 'b'", [9, 12, 15]),
        ("not passed and dataset == 'b'", [10, 11, 13, 14]),
        ("`% mito` > 0.8", [22, 23]),
        ("donor == 'd1'", [0, 3, 6, 16, 18, 20, 22]),
        ("score == 0.5 or score == 2", [0, 2, 3, 5, 6, 8]),
        ("-1 == n_counts", []),
    ],
)
def test_queries_with_their_cells(mixed, query, expected):
    assert rows_of(mixed.subset(query)).tolist() == expected


def test_a_query_gives_what_pandas_gives(store):
    frame = store.obs.compute()
    for query in (
        "n_counts > 9000 and cell_type != 'T cell'",
        "score >= 10.5 or odd",
        "not (row < 50) and cell_type in ['B cell', 'Größenzelle']",
        "5 < row < 20 and odd == False",
        "note == 'note 17'",
    ):
        assert rows_of(store.subset(query)).tolist() == frame.query(query).index.tolist()


def test_subset_takes_any_list_of_labels(mixed):
    expected = [0, 1, 3, 4, 6, 7, 10, 12, 14, *range(16, 24)]
    wanted = ["T cell", "B cell"]
    for value in (wanted, tuple(wanted), set(wanted), np.array(wanted), pd.Series(wanted), pd.Index(wanted)):
        assert mixed.subset(cell_type=value).selection.store_rows.tolist() == expected
    assert mixed.subset(cell_type=[]).n_obs == 0
    assert mixed.subset(exclude={"cell_type": []}).n_obs == 24
    assert mixed.subset(n_counts=np.int32(503)).selection.store_rows.tolist() == [12]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.subset(celltype="T cell"), "obs has no column 'celltype'; did you mean 'cell_type'?"),
        (lambda s: s.subset("celltype == 'T cell'"), "obs has no column 'celltype'; did you mean 'cell_type'?"),
        (lambda s: s.subset(exclude={"typ": 1}), "obs has no column 'typ'"),
        (
            lambda s: s.subset(cell_type="T cel"),
            "no cell of the store has cell_type = 'T cel'; did you mean 'T cell'?",
        ),
        (lambda s: s.subset(cell_type=["T cell", "X"]), "cell_type = 'X'; known: 'B cell', 'T cell', 'NK cell'"),
        (lambda s: s.subset(exclude={"cell_type": "Tcell"}), "did you mean 'T cell'?"),
        (lambda s: s.subset("cell_type in ['NK']"), "no cell of the store has cell_type = 'NK'"),
        (lambda s: s.subset("not cell_type == 'T-cell'"), "did you mean 'T cell'?"),
        (lambda s: s.subset(dataset="d"), "no cell of the store has dataset = 'd'; known: 'a', 'b', 'none', 'c'"),
        (lambda s: s.value_counts("celltype"), "obs has no column 'celltype'; did you mean 'cell_type'?"),
        (lambda s: s[:, "CD3"], "has no gene 'CD3'; did you mean 'CD3E'?"),
        (lambda s: s[:, ["CD3E", "ENSG00000000012"]], "has no gene 'ENSG00000000012'; did you mean 'ENSG00000000022'?"),
        (lambda s: s[:, ["TWIN"]], "'TWIN' stands for several genes of 'human': 'ENSG00000000033', 'ENSG00000000044'"),
        (lambda s: s.layers["raw"], "there is no layer 'raw'; there are none"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(mixed, ask, message):
    with pytest.raises(UnknownNameError) as caught:
        ask(mixed)
    assert message in str(caught.value)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.subset(cell_type=None), "cell_type: expected a label, a number or a list of them, got None"),
        (lambda s: s.subset(score=float("nan")), "cells without a value are found with subset("),
        (lambda s: s.subset(score=[0.5, np.nan]), "cells without a value are found with subset("),
        (lambda s: s.subset(cell_type=["T cell", None]), "cells without a value are found with subset("),
        (lambda s: s.subset(cell_type={"T cell": 1}), "expected a label, a number or a list"),
        (lambda s: s.subset("n_counts >"), "can't be parsed"),
        (lambda s: s.subset("n_counts + 1 > 2"), "'n_counts + 1' is not understood"),
        (lambda s: s.subset("__import__('os').getcwd() == 'x'"), "is not understood"),
        (lambda s: s.subset("n_counts == score"), "'score' is not understood"),
        (lambda s: s.subset("donor < 3"), "compare numbers with numbers"),
        (lambda s: s.subset("cell_type < 'T cell'"), "which has no such order"),
        (lambda s: s.subset("n_counts < 'many'"), "compare numbers with numbers"),
    ],
)
def test_a_condition_without_meaning_is_refused(mixed, ask, message):
    with pytest.raises(SelectionError) as caught:
        ask(mixed)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


# -- slicing -------------------------------------------------------------------------------------------------------

ALL = np.arange(N_OBS)


@st.composite
def row_keys(draw: st.DrawFn, size: int) -> Any:
    """Something that both numpy and a store are indexed with, in store order."""
    bound = st.none() | st.integers(-size - 2, size + 2)
    kind = draw(st.sampled_from(["slice", "mask", "positions", "negative", "list"]))
    if kind == "slice":
        return slice(draw(bound), draw(bound), draw(st.none() | st.integers(1, 7)))
    mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=bool)
    if kind == "mask":
        return mask
    found = np.flatnonzero(mask)
    if kind == "negative":
        return found - size
    return found.tolist() if kind == "list" else found


@given(data=st.data())
@settings(quick, max_examples=60)
def test_rows_are_taken_as_numpy_takes_them_however_often(store, data):
    part, expected = store, ALL
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(row_keys(len(expected)))
        part = part[key]
        expected = expected[np.asarray(key, dtype=np.int64) if isinstance(key, list) else key]
    assert part.selection.store_rows.tolist() == expected.tolist()
    assert part.n_obs == len(part) == len(expected)


@given(data=st.data())
@settings(quick, max_examples=20)
def test_genes_are_taken_in_their_order_however_often(store, data):
    part, expected = store, np.arange(N_VARS)
    for _ in range(data.draw(st.integers(1, 3))):
        size = len(expected)
        key: Any = data.draw(
            st.lists(st.integers(0, size - 1), unique=True)
            if size
            else st.just([])
            | st.builds(slice, st.none(), st.none(), st.sampled_from([None, 1, -1, 2, -3]))
            | st.lists(st.booleans(), min_size=size, max_size=size).map(lambda mask: np.array(mask, dtype=bool))
        )
        part = part[:, key]
        expected = expected[np.asarray(key, dtype=np.int64) if isinstance(key, list) else key]
    assert part.var_names.tolist() == [f"gene{j}" for j in expected]
    np.testing.assert_array_equal(dense(part[20:25].X), EVERYTHING[20:25][:, expected])


def test_one_cell_and_one_gene(store):
    assert rows_of(store[5]).tolist() == [5]
    assert rows_of(store[-1]).tolist() == [102]
    assert store[np.int64(70), "gene4"].X.compute().shape == (1, 1)
    assert store[..., 3].var_names.tolist() == ["gene3"]
    assert store[:, -1].var_names.tolist() == ["gene31"]
    assert store[:].selection is store[...].selection is store.selection


def test_genes_by_id_and_symbol(mixed):
    assert mixed[:, "LYZ"].var_names.tolist() == [GENES[4]]
    part = mixed[:, ["CD8A", GENES[2], "CD3E"]]
    assert part.var_names.tolist() == [GENES[1], GENES[2], GENES[0]]
    expected = coordinate_counts(np.arange(24), 5, density=0.5).toarray()[:, [1, 2, 0]]
    np.testing.assert_array_equal(dense(part.X), expected)
    assert part[:, "TWIN"].var_names.tolist() == [GENES[2]]
    assert mixed[:, pd.Index(["LYZ"])].shape == (24, 1)
    assert mixed[:, mixed.var["symbol"] == "TWIN"].shape == (24, 2)
    assert mixed[:, []].shape == (24, 0)
    assert mixed[:, []].X.compute().shape == (24, 0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ([3, 1], "rows stay in store order: expected increasing row numbers without repeats"),
        ([1, 1], "without repeats"),
        ([-1, 0], "rows stay in store order"),
        (slice(None, None, -1), "expected a slice with a positive step"),
        ([0, 103], "row numbers go from 0 to 102, got 0 to 103"),
        ([-104], "row numbers go from 0 to 102, got -104"),
        (103, "row numbers go from 0 to 102"),
        (np.ones(5, bool), "expected a mask of length 103"),
        ("T cell", "use subset"),
        ([0.5], "expected a 1-D array of row numbers or a mask"),
        ([[1, 2]], "expected a 1-D array of row numbers or a mask"),
    ],
)
def test_rows_that_cannot_be_taken(store, key, message):
    with pytest.raises(SelectionError, match=message):
        store[key]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (["gene1", "gene1"], "selected twice"),
        ([1, -31], "selected twice"),
        ([32], "positions below 32"),
        ([-33], "positions below 32"),
        ([0.5], "expected gene names, a mask, or positions"),
        (np.ones(3, bool), "expected a mask over 32 genes, got one of length 3"),
    ],
)
def test_genes_that_cannot_be_taken(store, key, message):
    with pytest.raises(SelectionError, match=message):
        store[:, key]


# -- counts --------------------------------------------------------------------------------------------------------


def counted(rows: Sequence[int], column: str) -> dict[Any, int]:
    values = pd.Series([RECORDS[r][column] for r in rows], dtype=object)
    return values.value_counts(dropna=True).to_dict()


@pytest.mark.parametrize("column", ["dataset", "obs_names", *COLUMNS])
@given(rows=st.just(list(range(24))) | st.lists(st.integers(0, 23), unique=True).map(sorted))
@settings(quick, max_examples=10)
def test_value_counts_are_those_of_pandas(mixed, column, rows):
    found = mixed[rows].value_counts(column)
    assert found.to_dict() == counted(rows, column)
    assert found.dtype == np.int64
    assert found.is_monotonic_decreasing
    assert (found.index.name, found.name) == (column, "count")


def test_value_counts_with_their_numbers(mixed):
    assert mixed.value_counts("cell_type").to_dict() == {"T cell": 11, "B cell": 6, "NK cell": 4}
    assert mixed.value_counts("dataset").to_dict() == {"a": 9, "c": 8, "b": 7}
    assert mixed.subset(cell_type="B cell").value_counts("stage").to_dict() == {"mid": 4}


# -- immutability --------------------------------------------------------------------------------------------------


def test_a_store_does_not_change(store):
    with pytest.raises(dataclasses.FrozenInstanceError):
        store.selection = store[:3].selection
    before = repr(store), store.shape
    store.subset("row > 10")[3:9, ["gene3"]]
    assert (repr(store), store.shape) == before
    rows = np.array([1, 2, 3])
    part = store[rows]
    rows[:] = 50
    assert rows_of(part).tolist() == [1, 2, 3]


def test_what_a_store_hands_out_is_the_receivers_own(mixed):
    adata = mixed.subset(dataset="a").to_anndata()
    adata.var.loc[GENES[0], "symbol"] = "changed"
    adata.var["extra"] = 1
    adata.uns["datasets"]["a"]["title"] = "changed"
    mixed.uns["a"]["title"] = "changed"
    for frame in (datasets := mixed.datasets, var := mixed.var):
        frame[frame.columns[0]] = "changed"
    assert datasets["n_obs"].tolist() == ["changed"] * 4
    assert var["symbol"].tolist() == ["changed"] * 5
    assert mixed.var["symbol"].tolist() == list(SYMBOLS)
    assert mixed.subset(dataset="a").var.columns.tolist() == mixed.var.columns.tolist()
    assert mixed.uns["a"] == {}
    assert mixed.datasets["n_obs"].tolist() == [9, 7, 0, 8]


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_a_store_travels_and_is_small(store, module):
    size = len(module.dumps(store))
    assert size < 8_000
    assert len(store.selection.store_rows) == N_OBS
    repr(store), store.X, store.obs, store.var, store.datasets, store[:, ["gene1"]]
    assert len(module.dumps(store)) < 1.2 * size
    part = module.loads(module.dumps(store[[5, 71], ["gene9", "gene2"]]))
    np.testing.assert_array_equal(dense(part.X), EVERYTHING[[5, 71]][:, [9, 2]])
    assert part.obs["row"].compute().tolist() == [5, 71]


# -- nothing selected ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "narrow",
    [
        lambda s: s[:0],
        lambda s: s[[]],
        lambda s: s[np.zeros(N_OBS, bool)],
        lambda s: s.subset("row < 0"),
        lambda s: s.subset(dataset="study1"),
        lambda s: s.subset(cell_type="B cell").subset(cell_type="T cell"),
        lambda s: s.subset(cell_type=[])[:, :7],
    ],
)
def test_an_empty_selection_works_everywhere(store, narrow):
    none = narrow(store)
    assert none.n_obs == len(none) == 0
    assert none.X.compute().shape == none.layers["half"].compute().shape == (0, none.n_vars)
    assert none.X.dtype == none.X.compute().dtype == np.float32
    assert none.obsm["place"].compute().shape == (0, 2)
    obs = none.obs.compute()
    assert len(obs) == 0
    assert obs.index.dtype == np.int64
    pd.testing.assert_series_equal(none.obs.dtypes, store.obs.dtypes)
    assert obs["cell_type"].cat.categories.tolist() == ["B cell", "T cell", "Größenzelle"]
    for lazy in (False, True):
        adata = none.to_anndata(lazy=lazy)
        assert adata.shape == (0, none.n_vars)
        assert adata.obs.columns.drop("dataset").tolist() == list(store.obs_columns[2:])
        assert [name for name in adata.layers if name] == ["half"]
        assert list(adata.obsm) == ["place"]
    assert none.value_counts("cell_type").to_dict() == none.value_counts("row").to_dict() == {}
    assert none.subset("odd", cell_type="B cell")[:, :1].shape == (0, 1)
    assert none[:].n_obs == 0
    assert none.uns == {}
    assert list(daodask.BatchLoader(none, 4, obs=["row"], layer="half")) == []
    assert "0 of 103 cells" in repr(none)
    assert none._repr_html_()


def test_a_store_without_a_cell(tmp_path):
    store = build(tmp_path / "s", {"id": "a", "source": study(0, 0)})
    assert store.shape == (0, 5)
    assert store.X.compute().shape == (0, 5)
    assert len(store.obs.compute()) == 0
    assert store.to_anndata().shape == (0, 5)
    assert list(daodask.BatchLoader(store)) == []


# -- AnnData -------------------------------------------------------------------------------------------------------


def check_anndata(adata: anndata.AnnData, rows: np.ndarray, columns: Any) -> None:
    """All of an AnnData against what the row numbers say."""
    expected = EVERYTHING[rows][:, columns]
    X, half = (array.compute() if hasattr(array, "compute") else array for array in (adata.X, adata.layers["half"]))
    assert isinstance(X, sp.csr_matrix)
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X.toarray(), expected)
    np.testing.assert_array_equal(half.toarray(), expected / 2)
    np.testing.assert_array_equal(np.asarray(adata.obsm["place"]), np.stack([rows, -rows], axis=1))
    assert adata.obs_names.tolist() == [f"cell{r}" for r in rows]
    assert adata.var_names.tolist() == [f"gene{j}" for j in np.arange(N_VARS)[columns]]
    source = coordinate_adata(N_OBS, N_VARS).obs.iloc[rows]
    # anndata leaves out unused categories of what is cut out of an AnnData.
    assert_frame_equal(adata.obs.drop(columns="dataset"), source, check_index_type=False, check_categorical=False)
    assert adata.obs["dataset"].tolist() == ["study0" if r < 70 else "study2" for r in rows]
    assert set(adata.uns["datasets"]) >= set(adata.obs["dataset"])


@given(rows=positions.filter(len), columns=genes)
@settings(quick, max_examples=15)
def test_to_anndata_is_the_selected_cells(store, rows, columns):
    part = store[rows] if columns is None else store[rows, columns]
    assert list(part.uns) == ["study0"] * (rows[0] < 70) + ["study2"] * (rows[-1] >= 70)
    wanted = slice(None) if columns is None else np.array(columns, dtype=np.int64)
    check_anndata(part.to_anndata(), np.array(rows), wanted)


# anndata sets an option that pandas 3 deprecates whenever it cuts something out of an AnnData.
@pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated:DeprecationWarning")
def test_lazy_anndata_has_dask_arrays(store):
    import dask.array as da

    adata = store[5:99:2].to_anndata(lazy=True)
    assert {type(a) for a in (adata.X, adata.layers["half"], adata.obsm["place"])} == {da.Array}
    assert isinstance(adata.obs, pd.DataFrame)
    check_anndata(adata, np.arange(5, 99, 2), slice(None))
    check_anndata(adata.to_memory(), np.arange(5, 99, 2), slice(None))
    check_anndata(adata[3:5].to_memory(), np.array([11, 13]), slice(None))


def test_scanpy_runs_on_lazy_anndata(store):
    scanpy = pytest.importorskip("scanpy")
    lazy, loaded = store.to_anndata(lazy=True), store.to_anndata()
    for adata in (lazy, loaded):
        scanpy.pp.normalize_total(adata, target_sum=1e4)
        scanpy.pp.log1p(adata)
    assert hasattr(lazy.X, "dask")
    np.testing.assert_allclose(dense(lazy.X), loaded.X.toarray(), rtol=1e-6)


def test_cells_of_the_same_name_stay_apart(mixed):
    part = mixed.subset(dataset=["a", "b"])
    with pytest.warns(UserWarning, match="Observation names are not unique"):
        adata = part.to_anndata()
    assert adata.obs_names.tolist() == [f"cell{i}" for i in [*range(9), *range(7)]]
    assert adata.obs["dataset"].tolist() == ["a"] * 9 + ["b"] * 7
    np.testing.assert_array_equal(adata.X.toarray(), coordinate_counts(np.arange(16), 5, density=0.5).toarray())
    assert part.subset(obs_names="cell6").selection.store_rows.tolist() == [6, 15]


# -- random studies ------------------------------------------------------------------------------------------------


@st.composite
def random_obs(draw: st.DrawFn, size: int) -> pd.DataFrame:
    def values(elements: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(elements, min_size=size, max_size=size))

    missing = st.none()
    columns = {
        "label": labels(values(missing | st.sampled_from(["x", "ü", "z"])), draw(st.permutations(["x", "ü", "z"]))),
        "whole": np.array(values(st.integers(-3, 2**40)), dtype=np.int64),
        "maybe": pd.array(values(missing | st.integers(0, 3)), dtype="Int64"),
        "number": np.array(values(st.floats(width=32)), dtype=draw(st.sampled_from(["f4", "f8"]))),
        "flag": np.array(values(st.booleans()), dtype=bool),
        "text": np.array(values(st.text("aö", max_size=2)), dtype=object),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(columns)), unique=True))
    index = pd.Index([f"cell{i}" for i in range(size)], dtype=object)
    return pd.DataFrame({name: columns[name] for name in chosen}, index=index)


NUMBERS = itertools.count()


def plain(value: Any) -> Any:
    return None if pd.isna(value) else value


@given(data=st.data(), sizes=st.lists(st.integers(0, 9), min_size=1, max_size=3))
@settings(quick, max_examples=20)
def test_random_studies_come_back_and_are_counted_and_subset(data, sizes):
    frames = [data.draw(random_obs(size)) for size in sizes]
    studies, first = [], 0
    for number, frame in enumerate(frames):
        adata = study(len(frame), first)
        adata.obs = frame
        studies.append({"id": f"s{number}", "source": adata})
        first += len(frame)
    store = build(f"memory://random/{next(NUMBERS)}", *studies)
    expected: dict[str, list[Any]] = {}
    for column in store.obs_columns[2:]:
        pieces = [f[column].astype(object).tolist() if column in f else [None] * len(f) for f in frames]
        expected[column] = [plain(value) for piece in pieces for value in piece]
    found = store.obs.compute(scheduler="synchronous")
    assert set(store.obs_columns[2:]) == {c for f in frames for c in f}
    for column, values in expected.items():
        assert [plain(value) for value in found[column].astype(object)] == values
        present = pd.Series([v for v in values if v is not None], dtype=object)
        counts = present.value_counts().to_dict()
        assert store.value_counts(column).to_dict() == counts
        for value in list(counts)[:2]:
            rows = [n for n, v in enumerate(values) if v == value]
            assert store.subset(**{column: value}).selection.store_rows.tolist() == rows
            others = store.subset(exclude={column: [value]})
            assert others.selection.store_rows.tolist() == sorted(set(range(first)) - set(rows))
