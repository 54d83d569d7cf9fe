"""loom files: what is read of them, in bounded memory, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daodask.errors import SourceError
from daodask.sources import _dense, detect_format, open_source
from daodask.sources.base import Source, SourceAddress
from daodask.sources.loom import LoomSource
from daodask.storage import StoreLocation

# cells x genes
COUNTS = np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3], [0, 0, 4]], dtype=np.uint16)


def write_loom(path: Path, counts: np.ndarray = COUNTS, version: str = "3.0.0", **matrix: Any) -> Path:
    n_cells, n_genes = counts.shape
    text = h5py.string_dtype() if version == "3.0.0" else None
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=counts.T, **({"chunks": (2, 2), "compression": "gzip"} | matrix))
        file.create_dataset("layers/spliced", data=counts.T * 10, chunks=(1, 1))
        if version == "3.0.0":
            file["attrs/LOOM_SPEC_VERSION"] = version
            file["attrs/title"] = "Gehirn"
        else:
            file.attrs["LOOM_SPEC_VERSION"] = version
            file.attrs["title"] = np.array([b"Gehirn"])
        file.create_dataset("col_attrs/CellID", data=[f"cell{i}" for i in range(n_cells)], dtype=text or "S9")
        file["col_attrs/depth"] = counts.sum(axis=1)
        file.create_dataset("col_attrs/type", data=[b"Gr&#246;&#223;e"] * n_cells, dtype=text or "S20")
        file["col_attrs/tsne"] = np.arange(2.0 * n_cells).reshape(n_cells, 2)
        file.create_dataset("row_attrs/Gene", data=[f"SYMBOL{i}" for i in range(n_genes)], dtype=text or "S9")
        file.create_dataset("row_attrs/Accession", data=[f"ENSG{i}" for i in range(n_genes)], dtype=text or "S9")
        file.create_group("col_graphs")
        file.create_group("row_graphs")
    return path


def opened(path: Path, **options: str) -> LoomSource:
    return LoomSource(StoreLocation.parse(path), **options)


@pytest.mark.parametrize("version", ["2.0.1", "3.0.0"])
def test_values(tmp_path: Path, version: str) -> None:
    source = opened(write_loom(tmp_path / "a.loom", version=version))
    assert isinstance(source, Source)
    assert source.n_obs == 4
    assert source.matrix_names == ("X", "layers/spliced")
    assert source.obs().index.tolist() == ["cell0", "cell1", "cell2", "cell3"]
    assert source.obs()["depth"].tolist() == [2, 0, 4, 4]
    assert source.obs()["type"].tolist() == ["Größe"] * 4
    assert source.obs().columns.tolist() == ["CellID", "depth", "type"]
    assert source.var("X").index.tolist() == ["ENSG0", "ENSG1", "ENSG2"]
    assert source.var("layers/spliced")["Gene"].tolist() == ["SYMBOL0", "SYMBOL1", "SYMBOL2"]
    assert source.uns() == {"LOOM_SPEC_VERSION": version, "title": "Gehirn"}
    assert source.obsm_names == ("tsne",)
    assert source.read_obsm("tsne", 1, 3).tolist() == [[2, 3], [4, 5]]
    rows = source.read_matrix("X", 2, 4)
    assert isinstance(rows, sp.csr_matrix)
    assert rows.dtype == np.uint16
    assert rows.toarray().tolist() == [[1, 0, 3], [0, 0, 4]]
    assert source.read_matrix("layers/spliced", 0, 1).toarray().tolist() == [[0, 20, 0]]


def test_found_by_its_name_remote_and_pickled(tmp_path: Path) -> None:
    path = write_loom(tmp_path / "a.loom")
    fsspec.filesystem("memory").pipe_file("/looms/a.loom", path.read_bytes())
    location = StoreLocation.parse("memory://looms/a.loom")
    assert detect_format(location) == "loom"
    source = open_source(SourceAddress(location, "loom"))
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    for found in (source, copy):
        assert found.read_matrix("X", 2, 4).toarray().tolist() == [[1, 0, 3], [0, 0, 4]]


def test_the_names_of_cells_can_be_said(tmp_path: Path) -> None:
    path = write_loom(tmp_path / "a.loom")
    address = SourceAddress(StoreLocation.parse(path), "loom", options=(("cells", "depth"),))
    assert open_source(address).obs().index.tolist() == ["2", "0", "4", "4"]
    with pytest.raises(SourceError, match="expected a column attribute 'Depth' in .*; did you mean 'depth'"):
        opened(path, cells="Depth")


@pytest.mark.parametrize(
    ("present", "chosen"),
    [(("obs_names",), "obs_names"), (("Barcode", "other"), "Barcode"), (("other",), None), ((), None)],
)
def test_names_that_other_writers_use(tmp_path: Path, present: tuple[str, ...], chosen: str | None) -> None:
    path = write_loom(tmp_path / "a.loom")
    with h5py.File(path, "r+") as file:
        del file["col_attrs"]
        for name in present:
            file[f"col_attrs/{name}"] = [f"{name}{i}" for i in range(4)]
    index = opened(path).obs().index.tolist()
    assert index == ([f"{chosen}{i}" for i in range(4)] if chosen else [""] * 4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    chunks=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tile=st.integers(1, 80),
    cut=st.data(),
)
def test_any_chunks_and_tiles(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    chunks: tuple[int, int] | None,
    tile: int,
    cut: st.DataObject,
) -> None:
    counts = (np.arange(shape[0] * shape[1]).reshape(shape) * 7 % 5).astype(np.float32)
    path = tmp_path_factory.mktemp("loom") / "a.loom"
    chunked = {"chunks": tuple(map(min, zip(chunks, shape[::-1], strict=True)))} if chunks else {"chunks": None}
    write_loom(path, counts, **chunked, compression="gzip" if chunks else None)
    start = cut.draw(st.integers(0, shape[0]))
    stop = cut.draw(st.integers(start, shape[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dense, "_TILE_BYTES", tile)
        np.testing.assert_array_equal(opened(path).read_matrix("X", start, stop).toarray(), counts[start:stop])


class Recorded:
    """A matrix of which it is noted what is read."""

    def __init__(self, shape: tuple[int, int], chunks: tuple[int, int] | None) -> None:
        self.shape, self.chunks, self.dtype = shape, chunks, np.dtype(np.float32)
        self.read: list[tuple[slice, slice]] = []

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        self.read.append(key)
        return np.zeros([s.stop - s.start for s in key], dtype=self.dtype)


@pytest.mark.parametrize("chunks", [(64, 64), (500, 500), (4000, 1), (1, 30_000), (64, 30_000), None])
def test_no_tile_is_larger_than_it_may_be_and_no_chunk_is_read_twice(
    monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(_dense, "_TILE_BYTES", 2**22)
    genes = Recorded((4000, 30_000), chunks)
    _dense.DenseMatrix.transposed(genes).rows(8000, 12_000)
    sizes = [4 * (a.stop - a.start) * (b.stop - b.start) for a, b in genes.read]
    assert sum(sizes) == 4 * 4000 * 4000
    # One band of chunks, along the shorter side, has to fit in any case.
    band = 4 * 4000 * min(chunks or (1, 1))
    assert max(sizes) <= max(2**22, band)
    if chunks:
        bounds = {(s.start, s.stop) for s, _ in genes.read}
        assert all(start % chunks[0] == 0 for start, _ in bounds)
        assert all(s.start % chunks[1] == 0 or s.start == 8000 for _, s in genes.read)


# -- refusals ------------------------------------------------------------------------------------------------------


def replaced(name: str, values: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = values

    return edit


def declared(name: str, shape: tuple[int, ...]) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, shape=shape, dtype="f4", chunks=tuple(min(n, 1000) for n in shape))

    return edit


def alone(edit: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    def edit_and_forget(file: h5py.File) -> None:
        edit(file)
        del file["col_attrs"]

    return edit_and_forget


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda file: file.__delitem__("matrix"),
            r"expected a loom file with a matrix of genes x cells at .*, got HDF5",
        ),
        (replaced("matrix", np.zeros(4)), "expected a loom file with a matrix of genes x cells"),
        (replaced("col_attrs/depth", [1, 2, 3]), r"expected 4 values in /col_attrs/depth, as /matrix .*, got \(3,\)"),
        (replaced("row_attrs/Gene", [b"a"]), r"expected 3 values in /row_attrs/Gene, as /matrix .*, got \(1,\)"),
        (
            replaced("layers/spliced", np.zeros((4, 3))),
            r"expected \(3, 4\) genes x cells in /layers/spliced .*, got \(4, 3\)",
        ),
        (replaced("matrix", COUNTS.T.astype("S")), "expected numbers in /matrix in .*, got values of type .S"),
        (declared("matrix", (3, 10**12)), r"expected 1000000000000 values in /col_attrs/CellID, .*, got \(4,\)"),
        (alone(declared("matrix", (3, 10**12))), r"expected \(3, 1000000000000\) values in /matrix of .*, got 0 bytes"),
        (declared("col_attrs/depth", (10**12,)), r"expected 4 values in /col_attrs/depth, .*, got \(1000000000000,\)"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, edit: Callable[[h5py.File], Any], message: str) -> None:
    path = write_loom(tmp_path / "a.loom")
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(SourceError, match=message) as caught:
        read_all(path)
    assert "a.loom" in str(caught.value)


def read_all(path: Path) -> None:
    source = opened(path)
    source.obs()
    source.var("X")
    for name in source.matrix_names:
        source.read_matrix(name, 0, source.n_obs)


def test_a_truncated_file_and_a_damaged_chunk(tmp_path: Path) -> None:
    path = write_loom(tmp_path / "a.loom")
    content = path.read_bytes()
    path.write_bytes(content[:-500])
    with pytest.raises(
        SourceError, match=r"expected a whole HDF5 file at .*a\.loom, but the file can't be read.*truncated"
    ):
        opened(path)
    with h5py.File(write_loom(path)) as file:
        chunk = file["matrix"].id.get_chunk_info(0)
    damaged = bytearray(content)
    damaged[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match=r"but /matrix cells 0 to 4 can't be read"):
        opened(path).read_matrix("X", 0, 4)


def test_only_what_is_there(tmp_path: Path) -> None:
    source = opened(write_loom(tmp_path / "a.loom"))
    with pytest.raises(SourceError, match=r"expected a matrix 'layers/split' in .*; did you mean 'layers/spliced'"):
        source.read_matrix("layers/split", 0, 1)
    with pytest.raises(SourceError, match=r"in obsm named 'umap' in .*, which has 'tsne'"):
        source.read_obsm("umap", 0, 1)
    with pytest.raises(SourceError, match="expected row bounds within 0 and 4"):
        source.read_matrix("X", 0, 5)
