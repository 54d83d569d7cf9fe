"""Matrices by gene: made alike by every build, read where that is fewer bytes, and never seen but in what it costs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import dask
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import daodask
from daodask import by_gene
from daodask._info import info_text, info_values
from daodask.build.spec import load_spec
from daodask.by_gene import GeneCopy
from daodask.cli import main
from daodask.errors import CorruptStoreError, SpecError, UnknownNameError
from daodask.format.manifest import Snapshot
from daodask.format.spec import Layout, block_row_dtype
from daodask.plot import gene_figures
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata, coordinate_counts
from daodask.testing.recording import recording
from daodask.vacuum import plan_vacuum

if TYPE_CHECKING:
    from distributed import Client

NUMBER = itertools.count()
SIZES, N_VARS = (41, 0, 20), 300
N_OBS = sum(SIZES)
COUNTS = coordinate_counts(np.arange(N_OBS), N_VARS)


def study(number: int, n_vars: int = N_VARS) -> anndata.AnnData:
    return coordinate_adata(SIZES[number], n_vars, first=sum(SIZES[:number]))


def spec(*studies: Any, by_gene: Any = "all", **top: Any) -> dict[str, Any]:
    """Blocks of 16 rows, the last of each study shorter, and of several chunks."""
    named = [{"id": f"study{i}", "source": s, "layers": {"half": "layers/half"}} for i, s in enumerate(studies)]
    layout = {"block_rows": 16, "chunk_rows": 4, "shard_bytes": 4096, "by_gene": by_gene}
    return {
        "features": {"name": "genes", "reference": "union"},
        "keep": "all",
        "layout": layout,
        "studies": named,
        **top,
    }


def build(url: Any, *studies: Any, **options: Any) -> daodask.Store:
    report = daodask.build_store(spec(*studies, **options), url)
    assert report.ok, report
    return daodask.open_store(url)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> daodask.Store:
    """Return a store of three studies, one without a cell, of which X and the layer are by gene, too."""
    return build(tmp_path_factory.mktemp("genes") / "store", *map(study, range(3)))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have any genes read from the copy; small as these stores are, it never pays."""
    monkeypatch.setattr(GeneCopy, "pays", lambda copy, n_genes, rows: len(rows) > 0)


def assert_same(found: Any, expected: Any) -> None:
    """Compare CSR matrices byte by byte, so that NaN is NaN and -0.0 is not 0.0."""
    assert found.shape == expected.shape
    for name in ("data", "indices", "indptr"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (name, a.dtype, a.tobytes()) == (name, b.dtype, b.tobytes())
    assert found.has_canonical_format


def by_rows(store: daodask.Store) -> daodask.Store:
    """The store as if the snapshot knew of no copies."""
    text = re.sub(rb'"by_gene":\d+', b'"by_gene":0', store.snapshot.to_json())
    return daodask.Store(store.location, Snapshot.from_json(text), store.feature_space, store.selection)


# -- reading -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data())
def test_genes_are_those_of_the_rows(store: daodask.Store, data: st.DataObject) -> None:
    genes = np.array(data.draw(st.lists(st.integers(0, N_VARS - 1), max_size=12, unique=True)), dtype=np.int64)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, N_OBS - 1)))), dtype=np.int64)
    some = store[rows, genes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneCopy, "pays", lambda copy, n_genes, rows: len(rows) > 0)
        X, half = dask.compute(some.X, some.layers["half"], scheduler="synchronous")
    np.testing.assert_array_equal(X.toarray(), COUNTS[rows][:, genes].toarray())
    slow = by_rows(some)
    assert_same(X, slow.X.compute(scheduler="synchronous"))
    assert_same(half, slow.layers["half"].compute(scheduler="synchronous"))


@settings(max_examples=25)
@given(data=st.data())
def test_random_matrices(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.integers(0, 20), label="rows"), data.draw(st.integers(1, 30), label="genes")
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    values = generator.choice([0, 0, 1, 0.1, -3, np.nan, np.inf, 1e300, 2.0**60, -np.inf], shape)
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    with np.errstate(over="ignore"):
        matrix = sp.csr_matrix(values.astype(dtype))
    index = [f"g{i}" for i in range(shape[1])], [f"c{i}" for i in range(shape[0])]
    frames = (pd.DataFrame(index=pd.Index(names, dtype=object)) for names in index)
    adata = anndata.AnnData(matrix, **dict(zip(("var", "obs"), frames, strict=True)))
    rows = data.draw(st.integers(1, 25), label="rows of a block")
    spec = {
        "features": {"name": "g", "reference": "union"},
        "X": {"kind": "other"},
        "layout": {"block_rows": rows, "by_gene": ["X"]},
        "studies": [{"id": "a", "source": adata}],
    }
    url = f"memory://genes{next(NUMBER)}"
    assert daodask.build_store(spec, url).ok
    store = daodask.open_store(url)
    genes = generator.permutation(shape[1])[: data.draw(st.integers(0, shape[1]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneCopy, "pays", lambda copy, n_genes, rows: len(rows) > 0)
        found = store[:, genes].X.compute(scheduler="synchronous")
    assert_same(found, by_rows(store[:, genes]).X.compute(scheduler="synchronous"))
    assert daodask.validate_store(url).ok
    StoreLocation.parse(url).remove()


@pytest.mark.usefixtures("always")
def test_whatever_is_made_of_a_store_is_the_same(store: daodask.Store) -> None:
    some = store.subset("odd")[:, ["gene7", "gene299", "gene0"]]
    slow = by_rows(some)
    found, expected = some.to_anndata(), slow.to_anndata()
    assert_same(found.X, expected.X)
    assert_same(found.layers["half"], expected.layers["half"])
    np.testing.assert_array_equal(*(s.to_xarray(obs=()).X.data.compute().toarray() for s in (some, slow)))
    assert_same(some.to_anndata(lazy=True).X.compute(), expected.X)
    for transform in (None, daodask.Normalise(), daodask.Normalise(totals="selected"), daodask.Normalise(None)):
        for reduce in (daodask.group_means, daodask.pseudobulk):
            a, b = (reduce(s, "cell_type", transform=transform) for s in (some, slow))
            np.testing.assert_array_equal(getattr(a, "X", a), getattr(b, "X", b))
        assert_frame_equal(*(daodask.mean_var(s, transform=transform) for s in (some, slow)))
    blocks = [dask.compute(*daodask.map_blocks(s, _x, obs=(), transform=daodask.Normalise())) for s in (some, slow)]
    for a, b in zip(*blocks, strict=True):
        assert_same(a, b)


def _x(X: Any, obs: pd.DataFrame, var: pd.DataFrame) -> Any:
    return X


@pytest.mark.usefixtures("always")
def test_normalised_genes_need_no_others(store: daodask.Store) -> None:
    expected = gene_figures(by_rows(store), ["gene3", "gene5"], "cell_type", progress=False)
    url = _recorded(store)
    with recording() as requests:
        found = gene_figures(daodask.open_store(url), ["gene3", "gene5"], "cell_type", progress=False)
    assert_frame_equal(found.mean, expected.mean, check_exact=True)
    assert_frame_equal(found.fraction, expected.fraction, check_exact=True)
    assert not [r.path for r in requests if "/X/" in r.path and "/by_gene/" not in r.path]


def _recorded(store: daodask.Store) -> str:
    """Where requests for the same store are written down."""
    url = f"recorded{next(NUMBER)}"
    StoreLocation.parse(f"memory://{url}").fs.put(store.location.path, f"/{url}", recursive=True)
    return f"recording://{url}"


# -- when it pays ------------------------------------------------------------------------------------------------------

#: 100,000 cells of 2,000 counts on 20,000 genes, in blocks of 16,384 cells and chunks of 8,192.
USUAL = GeneCopy("X", 100_000, 20_000, 200_000_000, 2, 16_384, 8_192)


@pytest.mark.parametrize(
    ("n_genes", "rows", "by_gene", "by_row"),
    [
        # 80,004 of bounds, 128,000 of places, and of each gene 131,072 for requests and 4 * (1,638.4 + 8,192).
        (1, range(16_384), 378_397, 196_608_000),
        (200, range(16_384), 34_286_724, 196_608_000),
        (1000, range(16_384), 170_601_604, 196_608_000),
        (1200, range(16_384), 204_680_324, 196_608_000),
        (1, range(100_000), 2_648_783, 1_200_000_000),
        (1, range(16_000, 17_000), 756_795, 12_000_000),
        # Of single rows far apart no more than their chunks are decoded.
        (1, np.array([5, 99_999]), 756_795, 768_000),
        (1, np.array([5]), 378_397, 12_000),
        (0, np.array([], dtype=np.int64), 0, 0),
    ],
)
def test_the_fewer_bytes_decide(n_genes: int, rows: Any, by_gene: int, by_row: int) -> None:
    n_blocks = len(USUAL.blocks_of(rows))
    span = int(rows[-1]) - int(rows[0]) + 1 if len(rows) else 0
    assert USUAL.bytes_by_gene(n_genes, n_blocks) == by_gene
    assert USUAL.bytes_by_row(len(rows), span) == by_row
    assert USUAL.pays(n_genes, rows) == (by_gene < by_row)


@pytest.fixture(scope="module")
def wide() -> Iterator[tuple[str, anndata.AnnData]]:
    """Return a store in memory of 600 cells and 3,000 genes in blocks of 256, with a copy, and what it was made of."""
    adata = coordinate_adata(600, 3_000)
    whole = {**spec(adata, by_gene=["X"]), "layout": {"block_rows": 256, "by_gene": ["X"]}}
    assert daodask.build_store(whole, "memory://wide").ok
    yield "recording://wide", adata
    StoreLocation.parse("memory://wide").remove()


def test_one_gene_is_read_alone(wide: tuple[str, anndata.AnnData]) -> None:
    url, adata = wide
    with recording() as requests:
        store = daodask.open_store(url)
        one = store[:, ["gene1234"]].X
    opening = [r.path.split("/")[1] for r in requests]
    assert opening == ["snapshots", "snapshots", "features"]
    with recording() as requests:
        found = one.compute(scheduler="synchronous")
    np.testing.assert_array_equal(found.toarray(), adata.X[:, [1234]].toarray())
    # Once the metadata; of each block its bounds, the indexes of its shards, and what there is of the gene in each.
    names = Counter("/".join(r.path.split("/")[3:]) for r in requests)
    arrays = {"indptr": 1, "indices": 2, "data": 2}
    of_blocks = {f"by_gene/X/{array}/c/{b}": n for array, n in arrays.items() for b in range(3)}
    assert names == {"by_gene/zarr.json": 1, **of_blocks}
    few = sum(r.n_bytes for r in requests)
    with recording() as requests:
        by_rows(store)[:, ["gene1234"]].X.compute(scheduler="synchronous")
    assert few * 10 < sum(r.n_bytes for r in requests)
    assert not [r for r in requests if "/by_gene/" in r.path]


def test_many_genes_are_read_by_rows(wide: tuple[str, anndata.AnnData]) -> None:
    store = daodask.open_store(wide[0])
    for some in (store[:, :100], store[:10, ["gene5"]], store):
        with recording() as requests:
            found = some.X.compute(scheduler="synchronous")
        assert found.shape == some.shape
        assert not [r for r in requests if "/by_gene/" in r.path]


# -- building ----------------------------------------------------------------------------------------------------------


def digests(location: StoreLocation) -> dict[str, str]:
    """SHA-256 of every file of a store but the snapshots, which have the time and the place."""
    paths = [file.path for file in location.files() if not file.path.startswith("snapshots/")]
    return {path: hashlib.sha256((location / path).read()).hexdigest() for path in paths}


def test_what_is_stored(store: daodask.Store) -> None:
    info = store.dataset_infos[2]
    assert [(m.name, m.by_gene) for m in info.matrices] == [("X", 2048), ("layers/half", 2048)]
    found = zarr.open_group(f"{store.location.url}/{info.path}/by_gene", mode="r")
    assert dict(found["X"].attrs) == {"shape": [20, N_VARS], "block_rows": 16}
    counts = COUNTS[41:61]
    for b, rows in enumerate((range(16), range(16, 20))):
        expected = counts[rows.start : rows.stop].tocsc()
        indptr = found["X/indptr"][b * (N_VARS + 1) : (b + 1) * (N_VARS + 1)]
        np.testing.assert_array_equal(indptr, expected.indptr)
        run = slice(b * 2048, b * 2048 + expected.nnz)
        np.testing.assert_array_equal(found["X/indices"][run], expected.indices)
        np.testing.assert_array_equal(found["X/data"][run], expected.data)
        np.testing.assert_array_equal(found["layers/half/data"][run], expected.data / 2)
    np.testing.assert_array_equal(found["X/totals"][:], counts.sum(axis=1).A1)
    dtypes = {name: found[f"X/{name}"].dtype.name for name in ("indptr", "indices", "data", "totals")}
    assert dtypes == {"indptr": "int32", "indices": "uint16", "data": "uint16", "totals": "float64"}


def test_an_anndata_has_no_member_of_it(store: daodask.Store) -> None:
    folder = f"{store.location.url}/{store.dataset_infos[0].path}"
    found = anndata.read_zarr(folder)
    np.testing.assert_array_equal(found.X.toarray(), COUNTS[:41].toarray())
    assert set(zarr.open_group(folder, mode="r")) == {"X", "layers", "obs", "obsm", "uns", "var"}


def test_all_runners_build_the_same(store: daodask.Store, tmp_path: Path, client: Client) -> None:
    wanted = digests(store.location)
    assert any("/by_gene/layers/half/data/c/" in path for path in wanted)
    for number, options in enumerate(({"threads": 3}, {"client": client})):
        url = tmp_path / str(number)
        assert daodask.build_store(spec(*map(study, range(3))), url, **options).ok
        assert digests(StoreLocation.parse(url)) == wanted


def test_other_sources_and_codecs(tmp_path: Path) -> None:
    adata = study(0)
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "csc.h5ad")
    for codec in ("lz4hc", "zstd", "none", "zstd-delta"):
        whole = spec(tmp_path / "csc.h5ad", by_gene=["X"])
        layout = {**whole["layout"], "codec": codec}
        assert daodask.build_store({**whole, "layout": layout}, tmp_path / codec).ok
        assert daodask.validate_store(tmp_path / codec).ok
        assert [m.by_gene for m in daodask.open_store(tmp_path / codec).dataset_infos[0].matrices] == [2048, 0]


@pytest.mark.usefixtures("always")
def test_shuffled_datasets_have_it(tmp_path: Path) -> None:
    store = build(tmp_path / "store", study(0), study(2), shuffle="global")
    assert [bool(m.by_gene) for i in store.dataset_infos for m in i.matrices] == [True, True]
    assert daodask.validate_store(tmp_path / "store").ok
    found = store[:, ["gene9"]].to_anndata()
    np.testing.assert_array_equal(found.X.toarray(), COUNTS[found.obs["row"].to_numpy()][:, [9]].toarray())


class Crash(BaseException):
    """Ends the process, as far as any code can see."""


def test_a_crash_at_any_write_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = spec(coordinate_adata(20, 40), by_gene=["X"])
    location = StoreLocation.parse(f"memory://crash{next(NUMBER)}")
    writes, last, write = [], -1, StoreLocation.write

    def guarded(place: StoreLocation, data: Any, **options: Any) -> None:
        writes.append(place.url)
        if len(writes) == last:
            raise Crash
        write(place, data, **options)

    monkeypatch.setattr(StoreLocation, "write", guarded)
    assert daodask.build_store(whole, location).ok
    wanted, path = digests(location), daodask.open_store(location).dataset_infos[0].path
    ours = [k for k, url in enumerate(writes, 1) if "by_gene" in url]
    assert len(ours) == 2 * 5 + 6  # of two blocks four files and a receipt, and metadata
    for k in ours:
        location.remove()
        writes, last = [], k
        with pytest.raises(Crash):
            daodask.build_store(whole, location)
        done = len([1 for file in location.files() if re.search(r"receipts/by_gene", file.path)])
        writes, last = [], -1
        assert daodask.build_store(whole, location).ok
        # A block that was done, and said so, is not done again.
        assert len([url for url in writes if f"{path}/by_gene/X/indptr/c" in url]) == 2 - done
        assert digests(location) == wanted
    location.remove()


def test_build_files() -> None:
    def layout(by_gene: Any) -> Layout:
        return load_spec({**spec("a.h5ad"), "layout": {"by_gene": by_gene}}).layout

    for given_, expected in (("all", ("*",)), ("none", ()), (None, ()), (["X"], ("X",)), ("layers/*", None)):
        if expected is None:
            with pytest.raises(SpecError, match=r"layout.by_gene: expected all, none or a list of patterns"):
                layout(given_)
        else:
            assert layout(given_).by_gene == expected
    assert [layout(["layers/h*"]).is_by_gene(name) for name in ("X", "layers/half")] == [False, True]
    with pytest.raises(SpecError, match=r"layout.by_gene: no study has a matrix 'half'; known: 'X', 'layers/half'"):
        layout(["X", "half"])


@pytest.mark.parametrize(
    ("most", "chunk", "shard"),
    [(0, 1024, 1024), (1024, 1024, 1024), (1025, 2048, 2048), (8193, 8192, 16_384), (32_768_000, 8192, 32_768_000)],
)
def test_chunks_and_shards(most: int, chunk: int, shard: int) -> None:
    assert (Layout().gene_chunk_length(most), Layout().gene_shard_length(most)) == (chunk, shard)


def test_dtypes_of_rows() -> None:
    assert [block_row_dtype(n) for n in (1, 2**16, 2**16 + 1)] == ["uint16", "uint16", "int64"]


# -- the rest of a store's life ----------------------------------------------------------------------------------------


def test_exports_and_merges(store: daodask.Store, tmp_path: Path) -> None:
    daodask.export_store(store[5:50, :200], tmp_path / "out", layers=[], block_rows=8, progress=False)
    exported = daodask.open_store(tmp_path / "out")
    assert [[bool(m.by_gene) for m in i.matrices] for i in exported.dataset_infos] == [[True], [True]]
    assert daodask.validate_store(tmp_path / "out").ok
    for wanted, made in (([], [False, False]), (["layers/*"], [False, True])):
        url = tmp_path / f"out{len(wanted)}"
        assert main(["export", store.location.url, str(url), "--quiet", "--workers", "0", "--by-gene", *wanted]) == 0
        assert [m.by_gene > 0 for m in daodask.open_store(url).dataset_infos[0].matrices] == made
    with pytest.raises(UnknownNameError, match=r"no selected dataset has a matrix 'raw'; known: 'X', 'layers/half'"):
        daodask.export_store(store, tmp_path / "none", by_gene=["raw"], progress=False)
    with pytest.raises(SpecError, match="by_gene: expected none for zarr"):
        daodask.export_store(store, tmp_path / "none.zarr", by_gene=["X"], progress=False)
    daodask.export_store(store, tmp_path / "out.zarr", progress=False)
    assert not (tmp_path / "out.zarr" / "by_gene").exists()
    merged = {"features": {"name": "genes", "reference": {"store": store.location.url}}, "studies": []}
    for number, wanted in enumerate((["X"], "none")):
        studies = [{"store": store.location.url}]
        url = tmp_path / f"merged{number}"
        assert daodask.build_store({**merged, "layout": {"by_gene": wanted}, "studies": studies}, url).ok
        assert [m.by_gene > 0 for m in daodask.open_store(url).dataset_infos[0].matrices] == [number == 0, False]
        assert daodask.validate_store(url).ok


def test_what_is_said_of_it(store: daodask.Store, tmp_path: Path) -> None:
    assert re.search(r"\n  by gene   X, half\n", repr(store))
    assert "<dt>By gene</dt><dd>X · half</dd>" in store._repr_html_()
    assert "counts, uint16, by gene too" in info_text((store,))
    values = info_values((store,))["features"][0]["datasets"][0]["matrices"]
    assert {name: matrix["by_gene"] for name, matrix in values.items()} == {"X": True, "layers/half": True}
    without = build(tmp_path / "store", study(0), by_gene="none")
    assert "by gene" not in repr(without)
    assert "by gene" not in info_text((without,))


def test_vacuum_takes_it_along(store: daodask.Store, tmp_path: Path) -> None:
    shutil.copytree(store.location.path, tmp_path / "store")
    daodask.remove_datasets(tmp_path / "store", ["study0"])
    plan = plan_vacuum(tmp_path / "store", keep_snapshots=1, grace="0s")
    (found,) = [g for g in plan.garbage if g.kind == "dataset"]
    info = store.dataset_infos[0]
    listed = json.loads((store.location / info.path / "checksums.json").read())
    assert sum("by_gene/" in path for path in listed) > 20
    assert found.n_files == len(listed) + 1
    assert found.nbytes > info.nbytes == sum(entry["size"] for entry in listed.values())


def _damage(folder: Path, name: str, at: int, value: int) -> None:
    array = zarr.open_group(folder / "by_gene", mode="r+")[f"X/{name}"]
    array[at] = value


@pytest.mark.parametrize(
    ("name", "at", "value", "said"),
    [
        ("data", 3, 7, "expected the rows' values in block 0, got others"),
        ("data", 2048, 7, "expected the rows' values in block 1, got others"),
        ("indices", 5, 15, "expected the rows' values in block 0, got others"),
        ("indptr", 3, 4000, "expected it to rise from 0 in block 0, it doesn't"),
        ("indptr", N_VARS, 5, "expected it to rise from 0 in block 0, it doesn't"),
        ("indptr", 2 * N_VARS + 1, 2000, "expected as many values of each gene as rows have in block 1, got more"),
        ("totals", 17, 1, "expected the sums of the rows in block 1, got others"),
    ],
)
def test_damage_is_found(store: daodask.Store, tmp_path: Path, name: str, at: int, value: int, said: str) -> None:
    shutil.copytree(store.location.path, tmp_path / "store")
    info = store.dataset_infos[2]
    _damage(tmp_path / "store" / info.path, name, at, value)
    found = daodask.validate_store(tmp_path / "store").errors[info.id]
    assert [
        f.what for f in found if f.where.startswith("by_gene/X") and "SHA" not in f.what and "bytes" not in f.what
    ] == [said]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("name", "value", "said"), [("indices", 99, "rows below 16"), ("indptr", 9999, "rise up to")])
def test_damage_is_no_data(store: daodask.Store, tmp_path: Path, name: str, value: int, said: str) -> None:
    shutil.copytree(store.location.path, tmp_path / "store")
    _damage(tmp_path / "store" / store.dataset_infos[0].path, name, 0 if name == "indices" else 1, value)
    damaged = daodask.open_store(tmp_path / "store")[:, ["gene0", "gene1"]]
    with pytest.raises(CorruptStoreError, match=said):
        damaged.X.compute(scheduler="synchronous")


def test_a_copy_that_is_gone_is_an_error(store: daodask.Store, tmp_path: Path) -> None:
    shutil.copytree(store.location.path, tmp_path / "store")
    info = store.dataset_infos[0]
    (tmp_path / "store" / info.path / "by_gene" / "X" / "data" / "c" / "1").unlink()
    copy = by_gene.copies_of(info, N_VARS)[0]
    with pytest.raises(CorruptStoreError, match=r"by_gene/X/data/c/1, found none"):
        by_gene.read_genes(
            StoreLocation.parse(tmp_path / "store" / info.path), copy, np.arange(41), np.array([2]), "float32"
        )
    report = daodask.validate_store(tmp_path / "store")
    assert any(f.where == "by_gene/X/data/c/1" for f in report.errors[info.id])
