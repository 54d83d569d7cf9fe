"""Exports against `Store.to_anndata`, which anndata reads back, and what is seen of one that ends half-way."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import fsspec
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from dask.utils import key_split
from hypothesis import given, settings
from hypothesis import strategies as st

import daodask
from daodask.cli import main
from daodask.errors import SpecError, UnknownNameError
from daodask.export import h5ad as h5ad_module
from daodask.export import zarr as zarr_module
from daodask.export.ordered import in_order
from daodask.export.rows import cut
from daodask.format.spec import Layout
from daodask.testing import coordinate_adata, random_store
from daodask.validate import validate_store

if TYPE_CHECKING:
    from distributed import Client

Selected = Callable[[daodask.Store], daodask.Store]

SELECTIONS: dict[str, Selected] = {
    "all": lambda s: s,
    "cells": lambda s: s.subset("row > 20 and odd"),
    "one dataset": lambda s: s.subset(dataset="third"),
    "genes": lambda s: s[:, ["gene5", "gene31", "gene3"]],
    "cells and genes": lambda s: s[30:75:2, 10:20],
    "one cell": lambda s: s[69],
    "no cell": lambda s: s[:0],
    "no gene": lambda s: s[:, []],
    "whole blocks": lambda s: s[16:48],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> daodask.Store:
    """Return a store of three studies with facts, of which not all have the same columns, and a layer in common."""
    adatas = [coordinate_adata(70), coordinate_adata(0), coordinate_adata(33, first=70)]
    adatas[0].obs["text"] = pd.Series([f"t{i}" for i in range(70)], dtype=object).to_numpy()
    adatas[0].obs["label"] = pd.Categorical(["x", "y"] * 35, categories=["y", "unused", "x"], ordered=True)
    adatas[2].obs["whole"] = pd.array([None, *range(32)], dtype="Int64")
    adatas[2].obs["flag"] = pd.array([None, *([True, False] * 16)], dtype="boolean")
    adatas[2].layers["third"] = adatas[2].X.copy()
    layers = {"half": "layers/half"}
    uns = {"title": "Größe", "year": 2020, "tags": ["a", "b"], "nested": {"x": 1.5, "empty": {}}, "open": False}
    studies = [
        {"id": "first", "source": adatas[0], "layers": layers, "uns": uns},
        {"id": "empty", "source": adatas[1], "layers": layers},
        {"id": "third", "source": adatas[2], "layers": {**layers, "third": "layers/third"}},
    ]
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "keep": "all",
        "layout": {"block_rows": 16, "chunk_rows": 4, "shard_bytes": 4096},
        "studies": [{**study, "obsm": ["*"]} for study in studies],
    }
    url = tmp_path_factory.mktemp("export") / "store"
    report = daodask.build_store(spec, url)
    assert report.ok, report
    return daodask.open_store(url)


def read(path: str | Path) -> anndata.AnnData:
    return anndata.read_h5ad(path) if str(path).endswith(".h5ad") else anndata.read_zarr(str(path))


def with_plain_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with text as objects: newer pandas have a dtype of it, which anndata then reads."""

    def plain(values: Any) -> Any:
        if isinstance(values.dtype, pd.CategoricalDtype):
            categories = plain(values.dtype.categories)
            codes = values.cat.codes
            dtype = pd.CategoricalDtype(categories, values.dtype.ordered)
            return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype), index=values.index)
        return values.astype(object) if isinstance(values.dtype, pd.StringDtype) else values

    changed = pd.DataFrame({name: plain(frame[name]) for name in frame}, index=frame.index, columns=frame.columns)
    return changed.set_axis(plain(frame.index), axis=0).set_axis(frame.columns.astype(object), axis=1)


def assert_equal(got: Any, want: Any) -> None:
    """Compare AnnData objects, or parts of them, with all dtypes."""
    if isinstance(want, anndata.AnnData):
        for name in ("X", "obs", "var"):
            assert_equal(getattr(got, name), getattr(want, name))
        for name in ("layers", "obsm", "uns"):
            assert_equal(dict(getattr(got, name)), dict(getattr(want, name)))
    elif isinstance(want, pd.DataFrame):
        pd.testing.assert_frame_equal(with_plain_text(got), with_plain_text(want), check_exact=True)
    elif isinstance(want, dict):
        assert set(got) == set(want)
        for name in want:
            assert_equal(got[name], want[name])
    elif sp.issparse(want):
        assert (type(got), got.shape, got.dtype) == (type(want), want.shape, want.dtype)
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    elif isinstance(want, np.ndarray) and want.dtype == object:  # text, which anndata reads as several dtypes
        assert got.tolist() == want.tolist()
    else:
        np.testing.assert_array_equal(got, want, strict=isinstance(want, np.ndarray))


def expected(store: daodask.Store) -> anndata.AnnData:
    """What a file of it has: text of which some is missing as labels, lists as arrays."""
    adata = store.to_anndata()
    for name in adata.obs:
        if adata.obs[name].dtype == object and adata.obs[name].isna().any():
            adata.obs[name] = pd.Categorical(adata.obs[name])
    for facts in adata.uns["datasets"].values():
        if "tags" in facts:
            facts["tags"] = np.array(facts["tags"], dtype=object)
    return adata


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selected", SELECTIONS)
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_file_is_what_to_anndata_returns(store: daodask.Store, tmp_path: Path, selected: str, kind: str) -> None:
    part = SELECTIONS[selected](store)
    path = tmp_path / f"out.{kind}"
    report = daodask.export_store(part, path, block_rows=10)
    got, want = read(path), expected(part)
    assert_equal(got, want)
    assert got.X.dtype == want.X.dtype == np.float32
    assert got.X.indices.dtype == got.X.indptr.dtype == np.int32
    assert (report.ok, report.format, report.n_obs, report.n_vars, report.nnz) == (True, kind, *part.shape, want.X.nnz)
    assert os.listdir(tmp_path) == [path.name]


@settings(max_examples=25)
@given(
    rows=st.lists(st.booleans(), min_size=103, max_size=103),
    bounds=st.tuples(st.integers(0, 103), st.integers(0, 103)),
)
def test_a_cut_is_these_rows_of_the_selection(store: daodask.Store, rows: list[bool], bounds: tuple[int, int]) -> None:
    part = store[np.array(rows)]
    start, stop = min(bounds), max(bounds)
    blocks = cut(part, start, stop)
    got = [block.offset + int(row) for block in blocks for row in block.local_rows]
    assert got == part.selection.store_rows[start:stop].tolist()


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize(
    ("dtype", "x", "half"),
    [(None, "float32", "float32"), ("stored", "uint16", "float32"), ("float64", "float64", "float64")],
)
def test_dtypes(store: daodask.Store, tmp_path: Path, kind: str, dtype: str | None, x: str, half: str) -> None:
    path = tmp_path / f"out.{kind}"
    daodask.export_store(store, path, dtype=dtype)
    got, want = read(path), expected(store)
    assert (got.X.dtype.name, got.layers["half"].dtype.name) == (x, half)
    assert (got.X != want.X).nnz == (got.layers["half"] != want.layers["half"]).nnz == 0


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize(("layers", "names"), [(None, {"half"}), ([], set()), (["half"], {"half"})])
def test_layers(store: daodask.Store, tmp_path: Path, kind: str, layers: list[str] | None, names: set[str]) -> None:
    path = tmp_path / f"out.{kind}"
    daodask.export_store(store, path, layers=layers)
    assert {name for name in read(path).layers if name is not None} == names


def test_h5ad_that_is_compressed(store: daodask.Store, tmp_path: Path) -> None:
    daodask.export_store(store, tmp_path / "out.h5ad", codec="gzip")
    assert_equal(read(tmp_path / "out.h5ad"), expected(store))
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert file["X/data"].compression == file["X/indices"].compression == file["obsm/place"].compression == "gzip"


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_zarr_is_sharded_and_compressed(
    store: daodask.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr("daodask.export.run._SHARD_BYTES", 4096)
    daodask.export_store(store, tmp_path / "out.zarr", codec=codec)
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert group.metadata.consolidated_metadata is not None
    data = group["X/data"]
    assert data.shards == group["X/indices"].shards == (1024,)
    assert said(data) == said(store_with(codec, tmp_path)["X/data"])
    assert_equal(read(tmp_path / "out.zarr"), expected(store))


def said(array: Any) -> list[tuple[str, str | None]]:
    """What compresses an array, whatever the size of its values."""
    found = [compressor.to_dict() for compressor in array.compressors]
    return [(c["name"], c.get("configuration", {}).get("cname")) for c in found]


def store_with(codec: str, tmp_path: Path) -> zarr.Group:
    """Return the group of a dataset in a store that is built with a codec."""
    small = random_store(tmp_path / "small", (5,), codec=codec)
    return zarr.open_group(tmp_path / "small" / small.dataset_infos[0].path, mode="r")


def test_tasks_on_a_cluster_are_named_by_what_they_do(client: Client) -> None:
    results, names = [], set()
    for result in in_order(abs, [(-n,) for n in range(20)], client=client):
        results.append(result)
        names |= {key_split(key) for key in client.futures}
    assert (results, names) == (list(range(20)), {"abs"})


def test_a_cluster_writes_the_same(store: daodask.Store, tmp_path: Path, client: Client) -> None:
    part = SELECTIONS["cells and genes"](store)
    for kind in ("h5ad", "zarr"):
        for name, where in (("here", {}), ("there", {"client": client})):
            daodask.export_store(part, tmp_path / f"{name}.{kind}", block_rows=7, **where)
        assert_equal(read(tmp_path / f"there.{kind}"), expected(part))
    assert files(tmp_path / "there.zarr") == files(tmp_path / "here.zarr")
    report = daodask.export_store(part, tmp_path / "store", client=client)
    assert report.ok


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_into_an_object_store(store: daodask.Store, tmp_path: Path, kind: str) -> None:
    url = f"memory://export-{tmp_path.name}-{kind}/out.{kind}"
    daodask.export_store(store, url)
    memory = fsspec.filesystem("memory")
    memory.get(url, str(tmp_path / f"copy.{kind}"), recursive=True)
    assert_equal(read(tmp_path / f"copy.{kind}"), expected(store))
    with pytest.raises(SpecError, match="expected nothing at"):
        daodask.export_store(store, url)
    daodask.export_store(store[:10], url, overwrite=True)
    memory.get(url, str(tmp_path / f"again.{kind}"), recursive=True)
    assert_equal(read(tmp_path / f"again.{kind}"), expected(store[:10]))
    memory.rm(f"/export-{tmp_path.name}-{kind}", recursive=True)


# -- nothing half-written ------------------------------------------------------------------------------------------


class CutError(Exception):
    """What ends an export half-way."""


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_what_ends_half_way_leaves_what_was_there(
    store: daodask.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, overwrite: bool
) -> None:
    path = tmp_path / f"out.{kind}"
    if overwrite:
        daodask.export_store(store[:10], path)
    _break_second_read(monkeypatch)
    with pytest.raises(CutError):
        daodask.export_store(store, path, block_rows=8, overwrite=overwrite)
    assert os.listdir(tmp_path) == ([path.name] if overwrite else [])
    if overwrite:
        assert_equal(read(path), expected(store[:10]))


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_what_ends_half_way_in_an_object_store_is_no_group(
    store: daodask.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _break_second_read(monkeypatch)
    with pytest.raises(CutError):
        daodask.export_store(store, f"memory://half-{tmp_path.name}/out.{kind}", block_rows=8)
    assert fsspec.filesystem("memory").find(f"/half-{tmp_path.name}") == []


def _break_second_read(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, reads = zarr_module.read_rows, iter(range(1000))

    def broken(*arguments: Any) -> Any:
        if next(reads) == 1:
            raise CutError
        return whole(*arguments)

    for module in (zarr_module, h5ad_module):
        monkeypatch.setattr(module, "read_rows", broken)


def test_a_store_is_never_overwritten_by_a_file(store: daodask.Store, tmp_path: Path) -> None:
    random_store(tmp_path / "other.zarr", (5,))
    with pytest.raises(SpecError, match="expected no store at"):
        daodask.export_store(store, tmp_path / "other.zarr", overwrite=True)
    with pytest.raises(SpecError, match="expected another place than the store's own"):
        daodask.export_store(store, store.location, overwrite=True)


@pytest.mark.parametrize(
    ("target", "arguments", "error", "message"),
    [
        ("out.h5ad", {"codec": "lz4"}, SpecError, "codec: expected none or gzip for an h5ad file, got 'lz4'"),
        ("out.zarr", {"codec": "gzip"}, SpecError, "codec: expected one of .*, got 'gzip'"),
        ("out.zarr", {"dtype": "int8"}, SpecError, "dtype: expected stored, float32 or float64, got 'int8'"),
        ("out", {"dtype": "stored"}, SpecError, "dtype: expected float32 or none at all for a store"),
        ("out.h5ad", {"shuffle": "within"}, SpecError, "shuffle: expected none for h5ad, got 'within'"),
        ("out", {"shuffle": "all"}, SpecError, "shuffle: expected one of none, within, global, got 'all'"),
        ("out", {"format": "loom"}, SpecError, "format: expected one of h5ad, zarr, store, got 'loom'"),
        ("out.h5ad", {"block_rows": 0}, SpecError, "block_rows: expected at least 1, got 0"),
        ("out.h5ad", {"layers": ["third"]}, UnknownNameError, "have no layer 'third' in common; known: 'half'"),
        ("out", {"layers": ["fourth"]}, UnknownNameError, "no selected dataset has a layer 'fourth'"),
    ],
)
def test_what_can_not_be_meant(
    store: daodask.Store,
    tmp_path: Path,
    target: str,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        daodask.export_store(store, tmp_path / target, **arguments)
    assert os.listdir(tmp_path) == []


def test_values_that_float32_would_round(tmp_path: Path) -> None:
    adata = coordinate_adata(5)
    adata.X = adata.X.astype(np.float64)
    adata.X.data += 2**24
    spec = {"features": {"name": "genes", "reference": "union"}, "studies": [{"id": "large", "source": adata}]}
    daodask.build_store(spec, tmp_path / "store")
    large = daodask.open_store(tmp_path / "store")
    daodask.export_store(large, tmp_path / "out.h5ad")
    got = read(tmp_path / "out.h5ad")
    assert got.X.dtype == np.float64
    assert_equal(got, large.to_anndata())
    with pytest.raises(SpecError, match="dtype: float32 would round values of X"):
        daodask.export_store(large, tmp_path / "rounded.h5ad", dtype="float32")


# -- stores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selected", [name for name in SELECTIONS if name != "no gene"])
def test_a_store_of_the_selection(store: daodask.Store, tmp_path: Path, selected: str) -> None:
    part = SELECTIONS[selected](store)
    report = daodask.export_store(part, tmp_path / "out", codec="zstd", block_rows=8)
    assert report.ok
    again = daodask.open_store(tmp_path / "out")
    assert validate_store(tmp_path / "out").ok
    got, want = again.to_anndata(), part.to_anndata()
    assert report.nnz == want.X.nnz
    # Columns that no dataset of it has are no columns of the new store, and neither are datasets of no selected cell.
    want.obs = want.obs[list(got.obs)].astype({"dataset": got.obs["dataset"].dtype})
    dtypes = {c.name: got.obs[c.name].dtype for c in again.obs_schema if not c.nullable and c.dtype != "category"}
    want.obs = want.obs.astype(dtypes)
    assert_equal(got, want)
    assert {c.name for c in part.obs_schema} - set(got.obs) <= {"text", "label", "whole", "flag"}
    assert all(i.blocks == (*range(0, i.n_obs, 8), i.n_obs) for i in again.dataset_infos)
    assert again.measured.equals(part.measured.loc[:, again.measured.columns])


def test_a_whole_store_is_the_same_store(store: daodask.Store, tmp_path: Path) -> None:
    daodask.export_store(store, tmp_path / "out")
    again = daodask.open_store(tmp_path / "out")
    assert again.feature_space == store.feature_space
    assert again.uns == store.uns
    assert again.dataset_ids == store.dataset_ids
    for new, old in zip(again.dataset_infos, store.dataset_infos, strict=True):
        assert new.matrices == old.matrices
        assert new.obsm == old.obsm
        assert {c.name: c.dtype for c in new.columns} == {c.name: c.dtype for c in old.columns}
    assert_equal(again.to_anndata(), store.to_anndata())


def test_selected_genes_are_a_feature_space_of_their_own(store: daodask.Store, tmp_path: Path) -> None:
    daodask.export_store(store[:, ["gene5", "gene3"]], tmp_path / "out")
    daodask.export_store(store, tmp_path / "out", overwrite=True)
    with pytest.raises(daodask.DaodaskError, match="several feature spaces"):
        daodask.open_store(tmp_path / "out")
    whole = daodask.open_store(tmp_path / "out", features="genes")
    assert whole.n_obs == store.n_obs


def test_genes_that_were_not_measured_stay_so(tmp_path: Path) -> None:
    whole = coordinate_adata(9, 8, first=9)
    narrow = anndata.AnnData(X=whole.X[:, 2:5], obs=whole.obs, var=whole.var.iloc[2:5])
    studies = [
        {"id": "wide", "source": coordinate_adata(9, 8)},
        {"id": "narrow", "source": narrow},
    ]
    daodask.build_store({"features": {"name": "g", "reference": "union"}, "studies": studies}, tmp_path / "store")
    store = daodask.open_store(tmp_path / "store")
    daodask.export_store(store[:, [4, 0, 3]], tmp_path / "out")
    again = daodask.open_store(tmp_path / "out")
    assert again.measured.to_dict("list") == {"wide": [True, True, True], "narrow": [True, False, True]}
    assert_equal(again.to_anndata().X, store[:, [4, 0, 3]].to_anndata().X)


def test_the_same_export_again_does_nothing(store: daodask.Store, tmp_path: Path) -> None:
    part = SELECTIONS["cells"](store)
    first = daodask.export_store(part, tmp_path / "out")
    again = daodask.export_store(part, tmp_path / "out")
    assert first.build is not None
    assert again.build is not None
    assert [s.status for s in again.build.studies] == ["unchanged", "unchanged"]
    assert not again.build.committed
    other = daodask.export_store(part[:5], tmp_path / "out")
    assert not other.ok
    assert daodask.export_store(part[:5], tmp_path / "out", overwrite=True).ok


@pytest.mark.parametrize("shuffle", ["within", "global"])
def test_a_shuffled_store_has_the_same_cells_in_another_order(
    store: daodask.Store, tmp_path: Path, shuffle: str
) -> None:
    # What is shuffled together has the same layers.
    report = daodask.export_store(store, tmp_path / "out", shuffle=shuffle, seed=3, block_rows=16, layers=["half"])
    assert report.ok
    again = daodask.open_store(tmp_path / "out")
    got, want = again.to_anndata(), store.to_anndata()
    assert report.nnz == want.X.nnz
    assert report.nbytes == sum(info.nbytes for info in again.dataset_infos)
    order = np.argsort(got.obs["row"].to_numpy())
    assert (np.diff(got.obs["row"].to_numpy()) < 0).any()
    assert_equal(got.X[order], want.X)
    assert got.obs["note"].iloc[order].tolist() == want.obs["note"].tolist()
    # One that is shuffled is a store as any other.
    daodask.export_store(again, tmp_path / "plain")
    assert_equal(daodask.open_store(tmp_path / "plain").to_anndata().X, got.X)


def test_kinds_and_floats_are_kept(tmp_path: Path) -> None:
    floats, normal = coordinate_adata(9), coordinate_adata(9, first=9)
    normal.X = normal.layers["half"]
    studies = [
        {"id": "floats", "source": floats, "X": {"dtype": "float32"}},
        {"id": "normal", "source": normal, "X": {"kind": "normalised"}},
    ]
    daodask.build_store({"features": {"name": "g", "reference": "union"}, "studies": studies}, tmp_path / "store")
    daodask.export_store(daodask.open_store(tmp_path / "store"), tmp_path / "out")
    kept = daodask.open_store(tmp_path / "out").datasets
    assert kept["kind"].to_dict() == {"floats": "counts", "normal": "normalised"}
    assert kept["dtype"].to_dict() == {"floats": "float32", "normal": "float32"}


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> daodask.Store:
    """Return a store of which X has 1.2 million non-zeros: 10 MB as CSR."""
    adata = anndata.AnnData(
        X=sp.random(6000, 1000, 0.2, format="csr", dtype=np.float32, rng=np.random.default_rng(0)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(6000)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(1000)]),
    )
    adata.X.data = np.ceil(9 * adata.X.data)
    spec = {"features": {"name": "genes", "reference": "union"}, "studies": [{"id": "large", "source": adata}]}
    url = tmp_path_factory.mktemp("large") / "store"
    daodask.build_store(spec, url)
    return daodask.open_store(url)


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "store"])
def test_memory_is_bounded_by_the_block(
    large: daodask.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # A task holds one shard as it grows: here a small one in files and stores alike.
    monkeypatch.setattr("daodask.export.run._SHARD_BYTES", 2**18)
    monkeypatch.setattr("daodask.export.run.Layout", partial(Layout, shard_bytes=2**18))
    target = tmp_path / f"out.{kind}"
    daodask.export_store(large[:400], tmp_path / f"warm.{kind}", format=kind, layers=[], block_rows=200)
    # Beside obs: its frame, and what writing it takes.
    obs = large.to_anndata(lazy=True).obs.memory_usage(deep=True).sum()
    tracemalloc.start()
    daodask.export_store(large, target, format=kind, layers=[], block_rows=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = 8 * large.dataset_infos[0].matrix["X"].nnz
    assert peak < 3 * obs + whole / 3


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command(store: daodask.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    genes, out = tmp_path / "genes.txt", tmp_path / "out.h5ad"
    genes.write_text("gene7\n\ngene2\n", encoding="utf-8")
    options = ["--where", "cell_type == 'T cell' and row < 50", "--genes", str(genes), "--layers", "--quiet"]
    arguments = ["export", store.location.url, str(out), *options, "--workers", "0", "--dtype", "stored"]
    assert main(arguments) == 0
    want = store.subset("cell_type == 'T cell' and row < 50")[:, ["gene7", "gene2"]].to_anndata()
    got = read(out)
    assert (got.X != want.X).nnz == 0
    assert got.X.dtype == np.uint16
    assert list(got.var_names) == ["gene7", "gene2"]
    assert got.obs_names.equals(want.obs_names)
    assert capsys.readouterr().out.startswith(f"{out}: {want.n_obs} cells x 2 genes, {want.X.nnz} non-zeros, ")
    assert main(arguments) == 2
    assert "expected nothing at" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert main([*arguments[:2], str(tmp_path / "store"), "--codec", "zstd", "--block-rows", "32", "--quiet"]) == 0
    assert daodask.open_store(tmp_path / "store").n_obs == store.n_obs
    assert main(["export", str(tmp_path / "no"), str(out), "--quiet"]) == 3
    assert main([*arguments[:2], str(out), "--genes", str(tmp_path / "no")]) == 2


def test_real_studies(data: Path, tmp_path: Path) -> None:
    spec = {
        "features": {
            "name": "human",
            "reference": data / "genes" / "genes_homo_sapiens.csv.gz",
            "biotypes": ["IG_C_gene", "protein_coding"],
        },
        "keep": "all",
        "studies": [
            {"id": "b", "source": data / "studies" / "liver_bcells_cellxgene_v5.h5ad", "layer": "raw", "obsm": ["*"]},
            {"id": "c", "source": data / "studies" / "sc_celseq2.h5ad"},
        ],
    }
    assert daodask.build_store(spec, tmp_path / "store").ok
    store = daodask.open_store(tmp_path / "store")
    daodask.export_store(store, tmp_path / "out.h5ad")
    daodask.export_store(store, tmp_path / "out.zarr")
    daodask.export_store(store, tmp_path / "out")
    want = expected(store)
    assert_equal(read(tmp_path / "out.h5ad"), want)
    assert_equal(read(tmp_path / "out.zarr"), want)
    assert_equal(daodask.open_store(tmp_path / "out").to_anndata(), store.to_anndata())
