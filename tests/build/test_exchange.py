"""Exchanges and transposition: what came in parts of any order is there by targets, whoever wrote what twice."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import daodask
from daodask.build.exchange import Exchange
from daodask.build.runs import Runs
from daodask.build.transpose import Transposition
from daodask.errors import CorruptStoreError, SourceError
from daodask.sources import Coordinates, PartedSource, Parts, Source, SourceAddress, _anndata, _parts, open_source, tenx
from daodask.sources.h5ad import H5adSource
from daodask.sources.tenx import MtxSource
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata, coordinate_counts

# anndata asks pandas for an option that pandas 3 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated:DeprecationWarning")

NUMBER = itertools.count()
PART = 500


@pytest.fixture
def scratch() -> Iterator[StoreLocation]:
    """Return a place in memory that the test's end removes."""
    location = StoreLocation.parse(f"memory://exchange-{next(NUMBER)}")
    yield location
    location.remove()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut small matrices as if they were large."""
    for module in (_parts, _anndata, tenx):
        monkeypatch.setattr(module, "PART_VALUES", PART)


# -- the exchange --------------------------------------------------------------------------------------------------


def test_pieces_of_a_target_come_in_the_order_of_the_parts(scratch: StoreLocation) -> None:
    exchange = Exchange(scratch, "x", n_parts=3, n_targets=4)
    exchange.write(2, np.array([0, 2, 2, 2, 2]), [np.array([9], dtype="<u2").data])
    exchange.write(0, np.array([0, 4, 4, 6, 10]), [np.array(v, dtype="<u2").data for v in ([1, 2, 3], [4, 5])])
    exchange.write(1, np.array([0, 0, 0, 0, 2]), [np.array([7], dtype="<u2").data])
    assert [data.view("<u2").tolist() for data in exchange.read(0, 4)] == [[1, 2, 9], [], [3], [4, 5, 7]]
    assert [data.tolist() for data in exchange.read(2, 3)] == [[3, 0]]
    assert list(exchange.read(2, 2)) == []


def test_the_bytes_of_a_part(scratch: StoreLocation) -> None:
    Exchange(scratch, "x", n_parts=1, n_targets=2).write(
        0, np.array([0, 2, 6]), [np.array([1, 2, 3], dtype="<u2").data]
    )
    index = np.array([24, 26, 30], dtype="<i8").tobytes()
    assert (scratch / "x/000000").read() == index + b"\x01\x00\x02\x00\x03\x00"


def test_a_part_that_is_not_there_is_no_empty_one(scratch: StoreLocation) -> None:
    exchange = Exchange(scratch, "x", n_parts=2, n_targets=1)
    exchange.write(0, np.array([0, 2]), [np.array([1], dtype="<u2").data])
    with pytest.raises(CorruptStoreError, match="expected a file at .*000001, found none"):
        list(exchange.read(0, 1))


# -- runs ----------------------------------------------------------------------------------------------------------


def test_runs_of_two_and_a_half_blocks() -> None:
    runs = Runs(25, block_rows=10, run_rows=4)
    assert runs.number == 8
    assert [runs.bounds(run) for run in range(8)] == [
        (0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 20), (20, 24), (24, 25),
    ]  # fmt: skip
    assert [list(runs.of_block(block)) for block in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [part.tolist() for part in runs.locate(np.array([0, 7, 9, 24], dtype=np.uint8))] == [
        [0, 1, 2, 7],
        [0, 3, 1, 0],
    ]


@given(n_rows=st.integers(0, 60), block_rows=st.integers(1, 20), run_rows=st.integers(1, 20))
def test_runs_are_all_rows_in_order(n_rows: int, block_rows: int, run_rows: int) -> None:
    runs = Runs(n_rows, block_rows, run_rows)
    of_blocks = [run for block in range(-(-n_rows // block_rows)) for run in runs.of_block(block)]
    assert of_blocks == list(range(runs.number))
    bounds = [runs.bounds(run) for run in of_blocks]
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(n_rows))
    assert all(0 < stop - start <= run_rows for start, stop in bounds)
    numbers, within = runs.locate(np.arange(n_rows))
    assert [bounds[run][0] + row for run, row in zip(numbers, within, strict=True)] == list(range(n_rows))


# -- transposition -------------------------------------------------------------------------------------------------


@given(
    n_rows=st.integers(1, 40),
    n_vars=st.sampled_from([1, 7, 300, 70_000]),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    block_rows=st.integers(1, 20),
    dtype=st.sampled_from(["int8", "uint16", "int64", "float32", "float64"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_transposed_is_what_scipy_makes(
    n_rows: int, n_vars: int, sizes: list[int], block_rows: int, dtype: str, seed: int
) -> None:
    random, location = np.random.default_rng(seed), StoreLocation.parse(f"memory://exchange-{next(NUMBER)}")
    runs = Runs(n_rows, block_rows, run_rows=3)
    transposition = Transposition(location, "x", Parts(len(sizes), dtype), runs, n_vars)
    parts = [
        Coordinates(
            random.integers(0, n_rows, size).astype(np.int32),
            random.integers(0, n_vars, size),
            random.integers(-3, 100, size).astype(dtype),
        )
        for size in sizes
    ]
    for number, part in enumerate(parts):
        transposition.write(number, part)
    blocks = range(-(-n_rows // block_rows))
    found = [rows for block in blocks for rows in transposition.read(block)]
    rows, columns, values = (np.concatenate([getattr(p, f) for p in parts]) for f in ("rows", "columns", "values"))
    oracle = sp.coo_matrix((values.astype(np.float64), (rows, columns)), shape=(n_rows, n_vars)).tocsr()
    whole = sp.vstack(found, format="csr")
    assert {matrix.dtype for matrix in found} == {np.dtype(dtype)}
    assert whole.nnz == sum(sizes)  # values of one place are left to whoever knows what holds their sum
    assert (whole.astype(np.float64) != oracle).nnz == 0
    location.remove()


# -- sources that come in parts ------------------------------------------------------------------------------------


def csc_file(folder: Path, n_obs: int = 90, dtype: str = "float32") -> SourceAddress:
    adata = coordinate_adata(n_obs)
    adata.X = sp.csc_matrix(adata.X.astype(dtype))
    adata.layers["half"] = sp.csc_matrix(adata.layers["half"])
    adata.write_h5ad(folder / "csc.h5ad")
    return SourceAddress(StoreLocation.parse(folder / "csc.h5ad"), "h5ad")


def mtx_folder(folder: Path, n_obs: int = 90, kind: str = "integer", order: str = "cells") -> SourceAddress:
    """Write a 10x directory, its values by cells, by genes or in any order."""
    counts = coordinate_counts(np.arange(n_obs), 32).tocoo()
    places = {"cells": np.arange(counts.nnz), "genes": np.argsort(counts.col, kind="stable")}
    at = places.get(order, np.random.default_rng(0).permutation(counts.nnz))
    lines = [f"{c + 1} {r + 1} {v}\n" for r, c, v in zip(counts.row[at], counts.col[at], counts.data[at], strict=True)]
    header = f"%%MatrixMarket matrix coordinate {kind} general\n%by a test\n\n32 {n_obs} {counts.nnz}\n"
    folder = folder / f"mtx{next(NUMBER)}"
    folder.mkdir()
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress((header + "".join(lines)).encode()))
    (folder / "barcodes.tsv").write_text("".join(f"cell{i}\n" for i in range(n_obs)))
    # Every third feature is no gene.
    kinds = ["Antibody Capture" if j % 3 == 2 else "Gene Expression" for j in range(32)]
    (folder / "features.tsv").write_text("".join(f"gene{j}\tG{j}\t{k}\n" for j, k in enumerate(kinds)))
    return SourceAddress(StoreLocation.parse(folder), "mtx")


def expected_counts(source: Source, n_obs: int = 90) -> Any:
    columns = [int(name.removeprefix("gene")) for name in source.var("X").index]
    return coordinate_counts(np.arange(n_obs), 32).toarray()[:, columns]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("order", ["csc", "cells", "genes", "any"])
def test_a_large_matrix_is_read_in_bounded_parts(tmp_path: Path, order: str) -> None:
    address = csc_file(tmp_path) if order == "csc" else mtx_folder(tmp_path, order=order)
    source = H5adSource(address.location) if order == "csc" else MtxSource(address.location)
    assert isinstance(source, PartedSource)
    n_values = coordinate_counts(np.arange(90), 32).nnz
    number = -(-n_values // PART)
    expected_dtype = "float32" if order == "csc" else "int64"
    assert source.matrix_parts("X") == Parts(number, expected_dtype, sequential=order != "csc")
    parts = list(source.read_parts("X", 0, number))
    assert len(parts) == number > 1
    assert all(len(p.values) <= PART for p in parts)
    found = np.zeros((90, len(source.var("X"))), dtype=np.int64)
    for part in parts:
        np.add.at(found, (part.rows, part.columns), part.values.astype(np.int64))
    expected = expected_counts(source)
    np.testing.assert_array_equal(found, expected)
    second = next(source.read_parts("X", 1, 2))
    np.testing.assert_array_equal(second.values, parts[1].values)
    # Rows are there for who asks, too.
    for start, stop in ((0, 90), (13, 14), (40, 40), (80, 90)):
        np.testing.assert_array_equal(source.read_matrix("X", start, stop).toarray(), expected[start:stop])


def test_a_small_matrix_has_no_parts(tmp_path: Path) -> None:
    for address in (csc_file(tmp_path), mtx_folder(tmp_path)):
        source = open_source(address)
        assert isinstance(source, PartedSource)
        assert source.matrix_parts("X") is None
        np.testing.assert_array_equal(source.read_matrix("X", 5, 9).toarray(), expected_counts(source)[5:9])


@pytest.mark.usefixtures("small_parts")
def test_rows_of_other_encodings_have_no_parts(tmp_path: Path) -> None:
    adata = coordinate_adata(90)
    adata.layers["dense"] = adata.X.toarray()
    adata.write_h5ad(tmp_path / "a.h5ad")
    source = H5adSource(StoreLocation.parse(tmp_path / "a.h5ad"))
    assert [source.matrix_parts(m) for m in ("X", "layers/half", "layers/dense")] == [None] * 3
    with pytest.raises(SourceError, match="expected a matrix 'raw'"):
        source.matrix_parts("raw")


DAMAGED = {
    "too few": lambda text: text[: text.rindex("\n", 0, -2) + 1],
    "too many": lambda text: text + "1 1 1\n",
    "a word": lambda text: text.replace("1 1 ", "1 one ", 1) if "1 1 " in text else text.replace("2 1 ", "2 one ", 1),
    "another kind": lambda text: text.replace("coordinate", "array"),
    "complex": lambda text: text.replace("integer", "complex"),
    "no header": lambda text: text.replace("%%MatrixMarket", "%%Market"),
    "no sizes": lambda text: text.replace("\n\n32 90", "\n\nx 90"),
    "absurd sizes": lambda text: text.replace("32 90 ", "32 90 99"),
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("what", list(DAMAGED))
def test_a_damaged_text_is_refused(tmp_path: Path, what: str) -> None:
    address = mtx_folder(tmp_path)
    file = Path(address.location.path) / "matrix.mtx.gz"
    text = gzip.decompress(file.read_bytes()).decode()
    damaged = DAMAGED[what](text)
    assert damaged != text
    file.write_bytes(gzip.compress(damaged.encode()))
    source = MtxSource(address.location)
    with pytest.raises(SourceError, match=r"expected a Matrix Market file at .*, which can't be read"):
        source.read_matrix("X", 0, 90)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("line", "message"), [("33 1 5", "feature numbers from 1 to 32"), ("1 0 5", "cell numbers")])
def test_a_number_beyond_the_sizes_is_refused(tmp_path: Path, line: str, message: str) -> None:
    address = mtx_folder(tmp_path)
    file = Path(address.location.path) / "matrix.mtx.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    lines[-3] = line
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(SourceError, match=message):
        MtxSource(address.location).read_matrix("X", 0, 90)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    address = mtx_folder(tmp_path)
    file = Path(address.location.path) / "matrix.mtx.gz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(SourceError, match="check that its transfer was completed"):
        MtxSource(address.location).read_matrix("X", 0, 90)


@pytest.mark.usefixtures("small_parts")
def test_columns_out_of_bounds_are_refused(tmp_path: Path) -> None:
    address = csc_file(tmp_path)
    with h5py.File(address.location.path, "r+") as file:
        file["X/indices"][600] = 90
    source = H5adSource(address.location)
    next(source.read_parts("X", 0, 1))
    with pytest.raises(SourceError, match="expected indices within 0 and 89 in /X"):
        next(source.read_parts("X", 1, 2))


# -- builds --------------------------------------------------------------------------------------------------------


def spec(*sources: Any, **top: Any) -> dict[str, Any]:
    return {
        "features": {"name": "genes", "reference": "union"},
        "keep": "all",
        "layout": {"block_rows": 16, "chunk_rows": 4, "shard_bytes": 4096},
        "studies": [
            {"id": f"study{i}", "source": s, **({"layers": {"half": "layers/half"}} if half else {})}
            for i, (s, half) in enumerate(sources)
        ],
        **top,
    }


def files(location: StoreLocation) -> dict[str, bytes]:
    """Every file of the only dataset, by its path within it."""
    (dataset,) = daodask.open_store(location).snapshot.datasets
    root = f"{location.path}/{dataset.path}/"
    return {path.removeprefix(root): location.fs.cat_file(path) for path in location.fs.find(root)}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_build_of_columns_is_that_of_rows_to_the_byte(scratch: StoreLocation, tmp_path: Path, threads: int) -> None:
    steps: set[tuple[str, int]] = set()
    address = csc_file(tmp_path)
    built = daodask.build_store(
        spec((address.location, True)), scratch / "csc", threads=threads, progress=lambda *p: steps.add((p[1], p[3]))
    )
    assert built.ok, str(built)
    assert daodask.build_store(spec((coordinate_adata(90), True)), scratch / "csr").ok
    n_parts = sum(-(-m.nnz // PART) for m in daodask.open_store(scratch / "csc").snapshot.datasets[0].matrices)
    assert ("transpose", n_parts) in steps  # a task each, of both matrices
    assert files(scratch / "csc") == files(scratch / "csr")
    assert not (scratch / "csc/scratch").list()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("order", ["cells", "any"])
def test_a_text_is_one_task_of_many_parts(scratch: StoreLocation, tmp_path: Path, order: str) -> None:
    steps: set[tuple[str, int]] = set()
    address = mtx_folder(tmp_path, order=order)
    adata = coordinate_adata(90)
    genes = [j for j in range(32) if j % 3 != 2]
    columns = adata[:, genes].copy()
    columns.obs = pd.DataFrame(index=columns.obs_names)
    columns.obsm.clear()
    parsed = daodask.build_store(
        spec((address.location, False)), scratch / "mtx", progress=lambda *p: steps.add((p[1], p[3]))
    )
    assert parsed.ok, str(parsed)
    assert daodask.build_store(spec((anndata.AnnData(columns.X, columns.obs, columns.var), False)), scratch / "csr").ok
    assert ("transpose", 1) in steps
    # Facts and gene metadata are of the formats.
    cells = [{p: d for p, d in files(scratch / n).items() if p.startswith(("X/", "obs"))} for n in ("mtx", "csr")]
    assert len(cells[0]) > 5
    assert cells[0] == cells[1]


@pytest.mark.usefixtures("small_parts")
def test_reading_in_parts_reads_each_once(
    scratch: StoreLocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a matrix by columns are never asked of the source, however many blocks there are."""
    read: list[tuple[int, int]] = []
    original = H5adSource.read_parts

    def counting(self: H5adSource, matrix: str, start: int, stop: int) -> Iterator[Coordinates]:
        read.append((start, stop))
        return original(self, matrix, start, stop)

    monkeypatch.setattr(H5adSource, "read_parts", counting)
    address = csc_file(tmp_path)
    assert daodask.build_store(spec((address.location, False)), scratch).ok
    n_parts = -(-coordinate_counts(np.arange(90), 32).nnz // PART)
    assert sorted(read) == [(part, part + 1) for part in range(n_parts)]
