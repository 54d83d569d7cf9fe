"""h5ad files: literal values, every encoding of a matrix, facts, and refusals."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import fsspec
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from daodask.errors import SourceError
from daodask.sources import _dense
from daodask.sources.base import Source
from daodask.sources.h5ad import H5adSource
from daodask.storage import StoreLocation

COUNTS = np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3], [0, 0, 4]], dtype=np.int32)


def study() -> anndata.AnnData:
    adata = anndata.AnnData(
        sp.csr_matrix(COUNTS),
        obs=pd.DataFrame({"depth": [2, 0, 4, 4]}, index=["zelle", "célula", "клетка", "細胞"]),
        var=pd.DataFrame({"symbol": ["A", "B", "C"]}, index=["g1", "g2", "g3"]),
        obsm={"X_pca": np.arange(8.0).reshape(4, 2)},
        uns={
            "title": "Ein Titel ü",
            "n": np.int64(3),
            "p": 0.5,
            "yes": np.True_,
            "list": np.arange(3),
            "d": {"k": "v"},
        },
    )
    adata.raw = anndata.AnnData(
        sp.csr_matrix(np.hstack([COUNTS, COUNTS])), obs=adata.obs, var=pd.DataFrame(index=list("abcdef"))
    )
    adata.layers["counts"] = COUNTS * 10
    return adata


@pytest.fixture
def path(tmp_path: Path) -> Path:
    study().write_h5ad(tmp_path / "study.h5ad")
    return tmp_path / "study.h5ad"


def opened(path: Path) -> H5adSource:
    return H5adSource(StoreLocation.parse(path))


def edited(path: Path, edit: Callable[[h5py.File], Any]) -> H5adSource:
    with h5py.File(path, "r+") as file:
        edit(file)
    return opened(path)


def replaced(name: str, values: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return edit


def test_values(path: Path) -> None:
    source = opened(path)
    assert isinstance(source, Source)
    assert source.n_obs == 4
    assert source.matrix_names == ("X", "raw", "layers/counts")
    assert source.obs().index.tolist() == ["zelle", "célula", "клетка", "細胞"]
    assert source.obs()["depth"].tolist() == [2, 0, 4, 4]
    assert source.var("X").index.tolist() == source.var("layers/counts").index.tolist() == ["g1", "g2", "g3"]
    assert source.var("raw").index.tolist() == list("abcdef")
    assert source.uns() == {"title": "Ein Titel ü", "n": 3, "p": 0.5, "yes": True}
    assert {k: type(v) for k, v in source.uns().items()} == {"title": str, "n": int, "p": float, "yes": bool}
    assert source.obsm_names == ("X_pca",)
    assert source.read_obsm("X_pca", 1, 3).tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ("X", [[0, 0, 0], [1, 0, 3]]),
        ("raw", [[0, 0, 0, 0, 0, 0], [1, 0, 3, 1, 0, 3]]),
        ("layers/counts", [[0, 0, 0], [10, 0, 30]]),
    ],
)
def test_rows_of_each_matrix(path: Path, matrix: str, expected: list[list[int]]) -> None:
    rows = opened(path).read_matrix(matrix, 1, 3)
    assert isinstance(rows, sp.csr_matrix)
    assert rows.dtype == np.int32
    assert rows.toarray().tolist() == expected


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("encode", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_each_encoding_and_compression(tmp_path: Path, encode: Callable[[Any], Any], compression: Any) -> None:
    path = tmp_path / "study.h5ad"
    anndata.AnnData(encode(COUNTS)).write_h5ad(path, compression=compression)
    blocks = [opened(path).read_matrix("X", i, i + 2).toarray() for i in (0, 2)]
    np.testing.assert_array_equal(np.vstack(blocks), COUNTS)


@pytest.mark.parametrize("dtype", ["i8", "u2", "f8", "f4"])
@pytest.mark.parametrize("encode", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("matrix", ["X", "raw", "layers/counts"])
def test_each_matrix_in_each_encoding_and_type(
    tmp_path: Path, matrix: str, encode: Callable[[Any], Any], dtype: str
) -> None:
    values = COUNTS.astype(dtype)
    # What the type has beyond others.
    values[0, 1] = {"i8": 2**60 + 1, "u2": 65535, "f8": 2**-40, "f4": 2**-20}[dtype]
    adata = anndata.AnnData(np.zeros((4, 3), dtype=np.float32))
    if matrix == "X":
        adata.X = encode(values)
    elif matrix == "raw":
        adata.raw = anndata.AnnData(encode(values), var=pd.DataFrame(index=list("abc")))
    else:
        adata.layers["counts"] = encode(values)
    adata.write_h5ad(tmp_path / "study.h5ad")
    rows = opened(tmp_path / "study.h5ad").read_matrix(matrix, 0, 3)
    assert rows.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(rows.toarray(), values[:3])


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("<f2", "f4"), (">f4", "f4"), (">i8", "i8"), ("u2", "u2"), ("u1", "u1"), ("?", "?"), ("f8", "f8")],
)
def test_the_type_is_the_files_own_but_for_those_that_scipy_lacks(path: Path, stored: str, expected: str) -> None:
    dense = edited(path, replaced("layers/counts", COUNTS.astype(stored))).read_matrix("layers/counts", 0, 4)
    sparse = edited(path, replaced("X/data", np.array([2, 1, 3, 4], dtype=stored))).read_matrix("X", 0, 4)
    for rows in (dense, sparse):
        assert rows.dtype == np.dtype(expected)
        np.testing.assert_array_equal(rows.toarray(), COUNTS.astype(expected))


def test_rows_are_as_stored_unsorted_and_with_zeros(path: Path) -> None:
    def unsort(file: h5py.File) -> None:
        file["X/indices"][...] = [1, 2, 0, 2]
        file["X/data"][...] = [0, 1, 3, 4]

    rows = edited(path, unsort).read_matrix("X", 0, 3)
    assert rows.data.tolist() == [0, 1, 3]
    assert rows.indices.tolist() == [1, 2, 0]


def test_a_block_reads_its_own_part_of_the_file_only(path: Path) -> None:
    # Damage beyond the block stays unseen, which shows that it was not read.
    source = edited(path, lambda file: file["X/indices"].__setitem__(3, 99))
    assert source.read_matrix("X", 0, 3).toarray().tolist() == COUNTS[:3].tolist()
    with pytest.raises(
        SourceError, match=r"expected indices within 0 and 2 in /X of .*, got 99 to 99 within rows 3 to 4"
    ):
        source.read_matrix("X", 3, 4)


def declared(name: str, shape: tuple[int, ...], dtype: str = "i4") -> Callable[[h5py.File], None]:
    """An array of any length of which nothing is stored, with the attributes that were there."""

    def edit(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        kind = h5py.string_dtype() if dtype == "str" else dtype
        file.create_dataset(name, shape=shape, dtype=kind, chunks=tuple(min(n, 1000) for n in shape))
        file[name].attrs.update(attributes)

    return edit


def attribute(name: str, key: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[name].attrs.__setitem__(key, value)


HUGE = 10**12


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            attribute("X", "shape", [HUGE, 3]),
            r"the 4 cells of obs and the 3 genes of its var .*, got shape \(1000000000000, 3\)",
        ),
        (
            declared("layers/counts", (HUGE, 3)),
            r"expected layers/counts to have the 4 cells .*got shape \(1000000000000, 3\)",
        ),
        (
            declared("obs/_index", (HUGE,), "str"),
            "the names of 1000000000000 rows in /obs, as declared .* got next to none",
        ),
        (
            declared("var/_index", (HUGE,), "str"),
            "the names of 1000000000000 rows in /var, as declared .* got next to none",
        ),
        (declared("obs/depth", (HUGE,)), r"4 values in /obs/depth, as there are rows .* got \(1000000000000,\)"),
        (declared("X/indptr", (HUGE,)), "expected 5 offsets in indptr in /X of .*, got 1000000000000"),
        (declared("X/data", (HUGE,)), "expected as many data as indices in /X of .*, got 1000000000000 and 4"),
        (
            declared("obsm/X_pca", (HUGE, 2), "f4"),
            "expected 4 rows in /obsm/X_pca, as there are cells .*got 1000000000000",
        ),
        (
            attribute("obs/depth", "encoding-type", "enigma"),
            "expected /obs of .* in encodings that anndata reads.*enigma",
        ),
        (attribute("obs", "encoding-version", "9.9.9"), "expected /obs of .* in encodings that anndata reads.*9.9.9"),
        (
            replaced("X/indptr", [0, 4, 4, 4, 4]),
            "expected at most 3 values in a row in /X of .*, got 4 within rows 0 to 4",
        ),
        (replaced("X/indices", [1.0, 0.0, 1.0, 2.0]), "expected whole numbers as indices in /X"),
        (lambda file: file["obs"].__delitem__("_index"), "but /obs can't be read"),
    ],
)
def test_what_a_file_can_not_hold_is_refused_before_it_is_read(
    path: Path, edit: Callable[[h5py.File], Any], message: str
) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(SourceError, match=message) as caught:
        read_all(path)
    assert "study.h5ad" in str(caught.value)


def read_all(path: Path) -> None:
    source = opened(path)
    source.obs()
    for matrix in source.matrix_names:
        source.var(matrix)
        source.read_matrix(matrix, 0, source.n_obs)
    for name in source.obsm_names:
        source.read_obsm(name, 0, source.n_obs)


def test_a_lack_of_memory_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> None:
        raise MemoryError("Unable to allocate 7 EiB")

    monkeypatch.setattr(_dense, "dense_rows", too_large)
    with pytest.raises(
        SourceError, match=r"expected /layers/counts rows 0 to 4 of .*study\.h5ad to fit into memory.*7 EiB"
    ):
        opened(path).read_matrix("layers/counts", 0, 4)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replaced("X/indptr", [0, 1, 1, 4]), "expected 5 offsets in indptr in /X of .*, got 4; the file is damaged"),
        (replaced("X/indptr", [0, 1, 1, 3, 3]), "expected indptr from 0 to 4 in /X .* got 0 to 3"),
        (replaced("X/indptr", [1, 1, 1, 3, 4]), "expected indptr from 0 to 4 in /X .* got 1 to 4"),
        (replaced("X/indptr", [0, 3, 1, 3, 4]), "expected an indptr that never decreases"),
        (replaced("X/indptr", [0, 9, 9, 9, 4]), "expected an indptr that never decreases"),
        (replaced("X/indices", [1, 0, 2]), "expected as many data as indices in /X .* got 4 and 3"),
        (replaced("X/indices", [1, 0, -2, 2]), "expected indices within 0 and 2 .* got -2 to 2"),
        (lambda file: file["X"].__delitem__("indptr"), "expected a whole HDF5 file"),
        (lambda file: file["X"].attrs.__setitem__("shape", [4, 5]), r"the 4 cells of obs and the 3 genes.*\(4, 5\)"),
        (lambda file: file["X"].attrs.__delitem__("shape"), r"got shape \(\)"),
        (lambda file: file["X"].attrs.__setitem__("encoding-type", "coo"), "as csr, csc or dense, got coo"),
        (replaced("X", COUNTS[:3]), r"the 4 cells of obs .* got shape \(3, 3\)"),
        (replaced("X", COUNTS.astype("S")), "expected X of .* to be a matrix of numbers, got values of type .S"),
    ],
)
def test_a_matrix_that_contradicts_itself_is_refused(
    path: Path, edit: Callable[[h5py.File], Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        edited(path, edit).read_matrix("X", 0, 4)


def test_a_damaged_csc_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.h5ad"
    anndata.AnnData(sp.csc_matrix(COUNTS)).write_h5ad(path)
    source = edited(path, replaced("X/indptr", [0, 2, 1, 4]))
    with pytest.raises(SourceError, match="never decreases"):
        source.read_matrix("X", 0, 1)


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.h5ad"
    anndata.AnnData(COUNTS).write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["X"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(SourceError, match="but /X rows 0 to 2 can't be read"):
        opened(path).read_matrix("X", 0, 2)


def test_a_matrix_that_is_not_there(path: Path) -> None:
    source = opened(path)
    message = (
        "expected a matrix 'layers/count' in .*, which has 'X', 'raw', 'layers/counts'; did you mean 'layers/counts'"
    )
    with pytest.raises(SourceError, match=message):
        source.read_matrix("layers/count", 0, 1)
    with pytest.raises(SourceError, match="expected a matrix 'obs'"):
        source.var("obs")
    with pytest.raises(SourceError, match=r"expected a dense array in obsm named 'X_umap' in .*, which has 'X_pca'"):
        source.read_obsm("X_umap", 0, 1)


def test_a_file_without_x(tmp_path: Path) -> None:
    path = tmp_path / "study.h5ad"
    anndata.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"])).write_h5ad(path)
    assert opened(path).n_obs == 1
    with pytest.raises(SourceError, match=r"expected a matrix 'X' in .*, which has none"):
        opened(path).read_matrix("X", 0, 1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2)])
def test_rows_out_of_bounds(path: Path, start: int, stop: int) -> None:
    with pytest.raises(SourceError, match="expected row bounds within 0 and 4, in order"):
        opened(path).read_matrix("X", start, stop)
    with pytest.raises(SourceError, match="expected row bounds"):
        opened(path).read_obsm("X_pca", start, stop)


def test_a_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"expected a whole HDF5 file at .*study\.h5ad, but .*truncated.*transfer"):
        opened(path)


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "text.h5ad"
    path.write_text("gene\tcell\n")
    with pytest.raises(SourceError, match=r"expected a whole HDF5 file at .*text\.h5ad, but .*signature"):
        opened(path)


def test_hdf5_that_is_no_h5ad(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["matrix"] = 1
    with pytest.raises(SourceError, match=r"expected an AnnData with obs and var .*\['matrix'\].* format: 10x"):
        opened(tmp_path / "other.h5ad")


def test_a_remote_file(path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/sources/study.h5ad", path.read_bytes())
    source = H5adSource(StoreLocation.parse("memory://sources/study.h5ad"))
    assert source.read_matrix("X", 2, 4).toarray().tolist() == [[1, 0, 3], [0, 0, 4]]
    assert source.obs()["depth"].tolist() == [2, 0, 4, 4]


def test_a_pickled_source_opens_its_file_again(path: Path) -> None:
    copy = pickle.loads(pickle.dumps(opened(path)))  # noqa: S301
    assert copy.read_matrix("X", 0, 1).toarray().tolist() == [[0, 2, 0]]


def test_threads_share_a_source(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["layers"].move("counts", "dense")
        anndata.io.write_elem(file["layers"], "csc", sp.csc_matrix(COUNTS * 10))
    source = opened(path)
    with ThreadPoolExecutor(4) as pool:
        blocks = list(
            pool.map(lambda i: source.read_matrix(["X", "layers/dense", "layers/csc"][i % 3], 0, 4), range(60))
        )
        frames = list(pool.map(lambda _: source.obs(), range(20)))
    for i, block in enumerate(blocks):
        np.testing.assert_array_equal(block.toarray(), COUNTS * (1 if i % 3 == 0 else 10))
    assert all(frame.equals(frames[0]) for frame in frames)


def record_file(path: Path) -> None:
    """A file as anndata 0.5 wrote it: record arrays, fixed-length strings, categories in uns."""
    with h5py.File(path, "w") as file:
        file["X"] = COUNTS
        file["obs"] = np.array(
            [(b"a", 0, 2.5), (b"b", -1, 0.5), (b"c", 1, 1.5), (b"d", 0, 0.0)],
            dtype=[("index", "S4"), ("louvain", "i1"), ("depth", "f4")],
        )
        file["var"] = np.array([(b"g1", 0), (b"g2", 0), (b"g3", 0)], dtype=[("index", "S2"), ("chromosome", "i1")])
        file["raw.var"] = np.array([(b"g1",), (b"g2",)], dtype=[("index", "S2")])
        group = file.create_group("raw.X")
        group.attrs["h5sparse_format"] = np.bytes_(b"csr")
        group.attrs["h5sparse_shape"] = [4, 2]
        group["data"], group["indices"], group["indptr"] = [2, 1], [1, 0], [0, 1, 1, 2, 2]
        file["uns/louvain_categories"] = np.array([b"T", b"B"])
        file["uns/chromosome_categories"] = np.array([b"1"])
        file["uns/title"] = np.array([b"old"])
        file["obsm"] = np.zeros(4, dtype=[("X_pca", "f4", (2,)), ("X_one", "f8"), ("name", "S1")])


def test_record_arrays_of_old_versions(tmp_path: Path) -> None:
    record_file(tmp_path / "old.h5ad")
    source = opened(tmp_path / "old.h5ad")
    assert source.matrix_names == ("X", "raw")
    assert source.obs().index.tolist() == ["a", "b", "c", "d"]
    assert source.obs()["louvain"].cat.categories.tolist() == ["T", "B"]
    assert source.obs()["louvain"].cat.codes.tolist() == [0, -1, 1, 0]
    assert source.obs()["depth"].tolist() == [2.5, 0.5, 1.5, 0.0]
    assert source.var("X")["chromosome"].tolist() == ["1", "1", "1"]
    assert source.var("raw").index.tolist() == ["g1", "g2"]
    assert source.uns() == {"title": "old"}
    assert source.obsm_names == ("X_pca", "X_one")
    assert [source.read_obsm(name, 1, 4).shape for name in source.obsm_names] == [(3, 2), (3, 1)]
    assert source.read_matrix("raw", 0, 3).toarray().tolist() == [[0, 2], [0, 0], [1, 0]]


def test_arrays_per_cell_that_are_no_dense_numbers_are_left_out(tmp_path: Path) -> None:
    adata = anndata.AnnData(COUNTS)
    adata.obsm["frame"] = pd.DataFrame({"a": range(4)}, index=adata.obs_names)
    adata.obsm["sparse"] = sp.csr_matrix(COUNTS)
    adata.obsm["dense"] = COUNTS
    adata.write_h5ad(tmp_path / "study.h5ad")
    assert opened(tmp_path / "study.h5ad").obsm_names == ("dense",)
