"""Rows gathered from anywhere equal what scipy takes of the whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tracemalloc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

from daodask._foreign import find_decoders
from daodask.arrays import open_array
from daodask.buffers import BufferPool
from daodask.errors import CorruptStoreError
from daodask.format.chunks import encode_shard
from daodask.format.codecs import Codec
from daodask.gather import RowGroup, csr_of, gather_csr, gather_dense, matrix_width
from daodask.storage import StoreLocation
from daodask.work_sharing import WorkSharingPool

CODECS: dict[str, tuple[Any, ...]] = {
    "known": (BloscCodec(cname="lz4"), Crc32cCodec()),
    "none": (),
    "unknown": (GzipCodec(level=1),),
    "delta": (BloscCodec(cname="lz4"), Crc32cCodec()),
}


@dataclass(frozen=True)
class Layout:
    """How values and indices are cut, each by itself."""

    chunk: int = 8
    shard: int = 4
    data: str = "known"
    indices: str = "known"
    #: Chunk of the values where it is not that of the indices.
    data_chunk: int = 0


def write(folder: Path, matrix: sp.csr_matrix, layout: Layout, dtype: str = "uint16") -> StoreLocation:
    """A dataset with nothing but X."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = zarr.create_group(zarr.storage.LocalStore(folder))
        group = root.create_group("X", attributes={"shape": list(matrix.shape)})
        pieces = {
            "data": (matrix.data.astype(dtype), layout.data_chunk or layout.chunk, layout.data),
            "indices": (matrix.indices.astype(np.int32), layout.chunk, layout.indices),
            "indptr": (matrix.indptr.astype(np.int64), 5, "known"),
        }
        for name, (values, chunk, codec) in pieces.items():
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=(chunk,),
                shards=(chunk * layout.shard,) if layout.shard else None,
                compressors=CODECS[codec],
                filters=Codec("", 0, delta=codec == "delta").zarr_filters(values.dtype.name),
                fill_value=0,
                config={"write_empty_chunks": True},
            )
            array[:] = values
        zarr.consolidate_metadata(root.store)
    return StoreLocation(os.fspath(folder))


def random_matrix(generator: np.random.Generator, n_obs: int, n_vars: int, density: float) -> sp.csr_matrix:
    matrix = sp.random(n_obs, n_vars, density, "csr", random_state=generator)
    matrix.data = generator.integers(1, 1000, matrix.nnz).astype(float)
    # Rows without a value, also at the end and side by side.
    matrix = sp.diags((generator.random(n_obs) < 0.8).astype(float)) @ matrix
    matrix = sp.csr_matrix(matrix)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


layouts = st.builds(
    Layout,
    chunk=st.integers(1, 30),
    shard=st.integers(0, 5),
    data=st.sampled_from(["known", "known", "none", "unknown"]),
    indices=st.sampled_from(["known", "delta", "none", "unknown"]),
    data_chunk=st.sampled_from([0, 0, 0, 7]),
)


@given(
    layout=layouts,
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    n_vars=st.integers(1, 50),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 999),
    n_rows=st.integers(0, 60),
    repeats=st.booleans(),
    n_genes=st.none() | st.integers(0, 50),
    dtypes=st.sampled_from([("uint16", "float32"), ("uint32", "float64"), ("float32", "float32")]),
    how=st.fixed_dictionaries(
        {
            "threads": st.booleans(),
            "pooled": st.booleans(),
            "compiled": st.booleans(),
            "cache_bytes": st.sampled_from([0, 2**20]),
            "in_files": st.booleans(),
        }
    ),
)
@settings(max_examples=150)
def test_rows_in_any_order_are_those_of_scipy(
    layout, sizes, n_vars, density, seed, n_rows, repeats, n_genes, dtypes, how
):
    generator = np.random.default_rng(seed)
    stored, served = dtypes
    matrices = [random_matrix(generator, size, n_vars, density) for size in sizes]
    whole = sp.vstack(matrices, format="csr").astype(served)
    rows = generator.integers(0, max(1, sum(sizes)), n_rows if sum(sizes) else 0)
    if not repeats:
        rows = generator.permutation(np.unique(rows))
    genes = None if n_genes is None else generator.permutation(n_vars)[:n_genes].astype(np.int64)
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkSharingPool(3, 1, "test") as workers,
        mock.patch("daodask.gather.find_decoders", find_decoders if how["compiled"] else lambda: None),
        mock.patch("daodask.gather._CACHE_BYTES", how["cache_bytes"]),
        mock.patch.object(StoreLocation, "is_local", how["in_files"]),
    ):
        datasets = [write(Path(folder, str(i)), m, layout, stored) for i, m in enumerate(matrices)]
        groups = split(datasets, sizes, rows)
        options: dict[str, Any] = {
            "genes": genes,
            "dtype": served,
            "workers": workers if how["threads"] else None,
            "pool": BufferPool(2**28) if how["pooled"] else None,
        }
        for _ in range(2):  # the second time with memory that was used
            found = gather_csr(groups, "X", n_vars, **options)
            dense = gather_dense(groups, "X", n_vars, **options)
            expected = whole[rows] if genes is None else whole[rows][:, genes]
            assert found.shape == dense.shape == expected.shape
            assert found.dtype == dense.dtype == np.dtype(served)
            assert found.indices.dtype == found.indptr.dtype == np.int32
            np.testing.assert_array_equal(dense, expected.toarray())
            check_canonical(found)
            np.testing.assert_array_equal(found.toarray(), expected.toarray())
            assert found.nnz == expected.nnz
            found.data[:], dense[:] = -1, -1
            del found, dense


def check_canonical(matrix: sp.csr_matrix) -> None:
    """It says that it is canonical, and is."""
    assert matrix.has_canonical_format
    fresh = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape)
    assert fresh.has_canonical_format


def split(datasets: Sequence[StoreLocation], sizes: Sequence[int], rows: np.ndarray) -> list[RowGroup]:
    """Rows of the datasets laid one after another, as groups of each."""
    order = np.argsort(rows, kind="stable").astype(np.int64)
    ranked, groups, start = rows[order], [], 0
    for dataset, size in zip(datasets, sizes, strict=True):
        own = (ranked >= start) & (ranked < start + size)
        if own.any():
            groups.append(RowGroup(dataset, ranked[own].astype(np.int64) - start, order[own]))
        start += size
    return groups


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoreLocation, sp.csr_matrix]:
    """So many chunks that they are many pieces, and rows that span several pieces."""
    matrix = random_matrix(np.random.default_rng(0), 300, 200, 0.4)
    return write(tmp_path_factory.mktemp("long") / "d", matrix, Layout(chunk=6, shard=50)), matrix


@pytest.mark.parametrize("rows", [[0], [299], list(range(300)), list(range(0, 300, 7)), [5] * 40, [3, 3, 299, 299, 4]])
def test_rows_over_many_pieces(long, rows):
    dataset, matrix = long
    groups = split([dataset], [300], np.array(rows))
    expected = matrix[rows].toarray()
    with WorkSharingPool(2, 1, "test") as workers:
        np.testing.assert_array_equal(gather_csr(groups, "X", 200, workers=workers).toarray(), expected)
        np.testing.assert_array_equal(gather_dense(groups, "X", 200, workers=workers), expected)


def test_no_rows(long):
    for found in (gather_csr([], "X", 200), gather_dense([], "X", 200)):
        assert found.shape == (0, 200)


def test_width(long):
    assert matrix_width(long[0], "X") == 200


@pytest.mark.parametrize("index", [200, 2**31 - 1, -1])
def test_genes_that_there_are_not_are_refused(tmp_path, index):
    matrix = random_matrix(np.random.default_rng(0), 30, 200, 0.2)
    matrix.indices = matrix.indices.copy()
    matrix.indices[-1] = index
    dataset = write(tmp_path / "d", matrix, Layout())
    last = int(np.flatnonzero(np.diff(matrix.indptr))[-1])
    group = RowGroup(dataset, np.array([last]), np.array([0]))
    for genes in (None, np.array([4, 2])):
        with pytest.raises(CorruptStoreError, match="expected indices below 200"):
            gather_dense([group], "X", 200, genes=genes)
    with pytest.raises(CorruptStoreError, match="expected indices below 200"):
        gather_csr([group], "X", 200, genes=np.array([4, 2]))


def test_decoders_are_found():
    assert find_decoders() is not None


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoreLocation, sp.csr_matrix]:
    """Chunks of several Blosc blocks, as build writes them: 300,000 values in chunks of 100,000."""
    generator = np.random.default_rng(0)
    lengths = generator.multinomial(300_000, np.full(600, 1 / 600))
    indices = np.concatenate([np.sort(generator.choice(2_000, n, replace=False)) for n in lengths])
    matrix = sp.csr_matrix((generator.poisson(3, 300_000) + 1.0, indices, np.cumsum([0, *lengths])), (600, 2_000))
    folder = tmp_path_factory.mktemp("large") / "d"
    dataset = write(folder, matrix, Layout(chunk=100_000, shard=2))
    codec = Codec.named("lz4")
    for name, values in (("data", matrix.data.astype("<u2")), ("indices", matrix.indices.astype("<i4"))):
        for shard in (0, 1):
            part = values[shard * 200_000 : (shard + 1) * 200_000]
            (folder / f"X/{name}/c/{shard}").write_bytes(encode_shard(part, 100_000, 200_000, codec))
    return dataset, matrix


@pytest.mark.parametrize(
    "rows", [[0], [599], [0, 599], [199, 200, 201], [100, 100, 3], list(range(150, 460, 9)), range(600)]
)
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_a_part_of_a_chunk_is_decoded(large, rows, cache_bytes, monkeypatch):
    monkeypatch.setattr("daodask.gather._CACHE_BYTES", cache_bytes)
    dataset, matrix = large
    groups = split([dataset], [600], np.array(rows))
    expected = matrix[list(rows)]
    for dtype in ("float32", "float64", "uint16"):
        found = gather_csr(groups, "X", 2_000, dtype=dtype)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_array_equal(gather_dense(groups, "X", 2_000, dtype=dtype), expected.toarray())


#: Positions in a chunk: Blosc's sizes before, of a block, and after; content; the checksum.
@pytest.mark.parametrize(
    ("position", "checked"), [(4, True), (8, True), (12, True), (40, True), (-1, True), (4, False), (12, False)]
)
@pytest.mark.parametrize("row", [0, 599])
def test_a_damaged_chunk_never_gives_values(large, tmp_path, position, checked, row):
    """Also where nothing but the compressor's own header tells, and also where a part is enough."""
    dataset, _ = large
    folder = tmp_path / "d"
    shutil.copytree(dataset.url, folder)
    shard = row // 400
    path = folder / f"X/data/c/{shard}"
    damaged = bytearray(path.read_bytes())
    spec = open_array(dataset, "X/data").spec
    assert spec is not None
    index = np.frombuffer(damaged[-spec.index_bytes : -4], "<u8").reshape(-1, 2)
    begin, end = int(index[0, 0]), int(index[0].sum())
    damaged[begin + position if position >= 0 else end + position] ^= 1
    if not checked:
        # The checksum is right: it was made of what is wrong.
        damaged[end - 4 : end] = google_crc32c.value(bytes(damaged[begin : end - 4])).to_bytes(4, "little")
    path.write_bytes(damaged)
    group = RowGroup(StoreLocation(os.fspath(folder)), np.array([row]), np.array([0]))
    for gather in (gather_csr, gather_dense):
        with pytest.raises(CorruptStoreError, match="chunk"):
            gather([group], "X", 2_000)


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_what_is_damaged_or_gone_is_refused(tmp_path, name):
    matrix = random_matrix(np.random.default_rng(1), 40, 50, 0.3)
    for number, damage in enumerate(("flip", "cut", "gone")):
        dataset = write(tmp_path / str(number), matrix, Layout())
        path = Path(dataset.url) / "X" / name / "c" / "0"
        whole = path.read_bytes()
        damaged = {"flip": bytes([whole[0] ^ 1, *whole[1:]]), "cut": whole[:-1], "gone": None}[damage]
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        groups = split([dataset], [40], np.arange(40))
        for gather in (gather_csr, gather_dense):
            with WorkSharingPool(2, 1, "test") as workers, pytest.raises(CorruptStoreError):
                gather(groups, "X", 50, workers=workers)


def test_metadata_without_members_is_refused(tmp_path):
    dataset = write(tmp_path / "d", random_matrix(np.random.default_rng(1), 4, 5, 0.3), Layout())
    path = Path(dataset.url) / "zarr.json"
    metadata = json.loads(path.read_text())
    del metadata["consolidated_metadata"]
    path.write_text(json.dumps(metadata))
    with pytest.raises(CorruptStoreError, match="expected consolidated metadata"):
        gather_csr([RowGroup(dataset, np.array([0]), np.array([0]))], "X", 5)


def test_a_matrix_of_given_arrays_shares_them():
    data, indices = np.arange(100.0), np.arange(100, dtype=np.int32)
    matrix = csr_of(data[3:5], indices[3:5], np.array([0, 1, 2], np.int64), (2, 100))
    assert np.shares_memory(matrix.data, data)
    assert np.shares_memory(matrix.indices, indices)
    assert matrix.indptr.dtype == np.int32
    assert matrix.toarray()[1, 4] == 4
    large = csr_of(data[:0], indices[:0], np.array([0, 2**31], np.int64), (1, 100))
    assert large.indptr.dtype == np.int64


def test_matrices_of_given_arrays_have_nothing_in_common():
    ones = np.ones(2), np.array([0, 1], np.int32)
    first = csr_of(*ones, np.array([0, 1, 2]), (2, 5))
    second = csr_of(2 * ones[0], ones[1][::-1].copy(), np.array([0, 2, 2]), (2, 5))
    second.has_sorted_indices = False
    second.sort_indices()
    assert first.toarray().tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert second.toarray().tolist() == [[2, 2, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert first.has_canonical_format
    assert first.indptr.tolist() == [0, 1, 2]


def test_making_matrices_keeps_no_memory():
    """What is kept, so that the next of a shape is made faster, does not grow with its rows."""
    tracemalloc.start()
    try:
        for n_obs in range(2_000_000, 2_000_010):
            csr_of(np.empty(0), np.empty(0, np.int32), np.zeros(n_obs + 1, np.int32), (n_obs, 5))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20
