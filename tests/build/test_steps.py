"""How staged blocks become shards and dtypes: tables with the values that must come out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.build.layouts import final_dtype, lay_out, pieces_of, shards_of
from daodask.build.receipts import BlockReceipt, MatrixReceipt
from daodask.build.tasks import MatrixJob, Piece, Shard, StudyJob
from daodask.format.groups import CSRLayout
from daodask.format.spec import Layout
from daodask.sources import Fingerprint
from daodask.storage import StoreLocation


def pieces(bounds: list[int], start: int, stop: int) -> list[tuple[int, int, int]]:
    found = pieces_of(np.array(bounds, dtype=np.int64), start, stop)
    return [(piece.block, piece.start, piece.stop) for piece in found]


@pytest.mark.parametrize(
    ("bounds", "start", "stop", "expected"),
    [
        ([0, 10], 0, 10, [(0, 0, 10)]),
        ([0, 10], 3, 7, [(0, 3, 7)]),
        ([0, 10, 30], 0, 30, [(0, 0, 10), (1, 0, 20)]),
        ([0, 10, 30], 5, 15, [(0, 5, 10), (1, 0, 5)]),
        ([0, 10, 30], 10, 30, [(1, 0, 20)]),
        ([0, 10, 30], 0, 10, [(0, 0, 10)]),
        ([0, 10, 10, 10, 30], 5, 15, [(0, 5, 10), (3, 0, 5)]),
        ([0, 0, 10], 0, 4, [(1, 0, 4)]),
        ([0, 10, 10], 8, 10, [(0, 8, 10)]),
        ([0, 10, 20, 30, 40], 15, 35, [(1, 5, 10), (2, 0, 10), (3, 0, 5)]),
    ],
)
def test_pieces(bounds: list[int], start: int, stop: int, expected: list[tuple[int, int, int]]) -> None:
    assert pieces(bounds, start, stop) == expected


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8), shard=st.integers(1, 12))
def test_pieces_are_the_whole_in_order(lengths: list[int], shard: int) -> None:
    bounds = [0, *np.cumsum(lengths).tolist()]
    blocks = [list(range(a, b)) for a, b in itertools.pairwise(bounds)]
    for start in range(0, bounds[-1], shard):
        stop = min(start + shard, bounds[-1])
        found = pieces(bounds, start, stop)
        assert [x for block, a, b in found for x in blocks[block][a:b]] == list(range(start, stop))
        assert all(a < b for _, a, b in found)


def staged(nnz: int, dtype: str, largest: float, *, integral: bool = True, name: str = "X") -> BlockReceipt:
    return BlockReceipt({name: MatrixReceipt(nnz, dtype, integral, largest, 0.0, 0.0)})


UNREAD = Fingerprint(0, "", "")


def job(n_obs: int, n_vars: int, **layout: Any) -> StudyJob:
    where = StoreLocation("memory://nowhere")
    return StudyJob(where, where, (MatrixJob("X", "X", "counts"),), (), (0, n_obs), n_vars, Layout(**layout), UNREAD)


@pytest.mark.parametrize(
    ("blocks", "floats", "dtype"),
    [
        ([], False, "uint16"),
        ([], True, "float32"),
        ([("uint16", 3.0, True), ("uint16", 65_535.0, True)], False, "uint16"),
        ([("uint16", 3.0, True), ("uint32", 65_536.0, True)], False, "uint32"),
        ([("uint32", 2.0**32 - 1, True)], False, "uint32"),
        ([("uint64", 2.0**32, True), ("uint16", 1.0, True)], False, "uint64"),
        ([("uint64", 2.0**53, True)], False, "uint64"),
        ([("float32", 7.0, True), ("float64", 70_000.0, True)], False, "uint32"),
        ([("float32", 7.0, True), ("float32", 7.5, False)], False, "float32"),
        ([("float32", 7.0, True), ("float64", 0.1, False)], False, "float64"),
        ([("float32", float("inf"), False)], False, "float32"),
        ([("float64", float("nan"), False)], True, "float64"),
        ([("uint16", 3.0, True)], True, "float32"),
        ([("uint32", 2.0**24, True)], True, "float32"),
        ([("uint32", 2.0**24 + 1, True)], True, "float64"),
        ([("float32", 7.5, False)], True, "float32"),
    ],
)
def test_final_dtype(blocks: list[tuple[str, float, bool]], floats: bool, dtype: str) -> None:
    receipts = [staged(1, d, largest, integral=integral) for d, largest, integral in blocks]
    assert final_dtype(MatrixJob("X", "X", "other", floats=floats), receipts) == dtype


@pytest.mark.parametrize(
    ("n_obs", "n_vars", "nnz", "layout", "expected"),
    [
        # dtype of indices, elements of a chunk, of a shard of data (uint16), of a shard of indices
        (0, 10, 0, {}, ("int32", 1024, 1024, 1024)),
        (100, 10, 50_000, {}, ("int32", 16_384, 65_536, 65_536)),
        (100, 2**31, 50_000, {}, ("int64", 16_384, 65_536, 65_536)),
        (100, 10, 2**31, {"shard_bytes": 2**40}, ("int64", 687_195_136, 2_748_780_544, 2_748_780_544)),
        (100, 10, 50_000, {"chunk_rows": 1}, ("int32", 1024, 50_176, 50_176)),
        (100, 10, 50_000, {"chunk_rows": 1, "shard_bytes": 8192}, ("int32", 1024, 4096, 2048)),
        (100, 10, 50_000, {"shard_bytes": 1}, ("int32", 16_384, 16_384, 16_384)),
    ],
)
def test_lay_out(n_obs: int, n_vars: int, nnz: int, layout: dict[str, Any], expected: tuple[Any, ...]) -> None:
    study = job(n_obs, n_vars, **layout)
    found = lay_out(study, study.matrices[0], [staged(nnz, "uint16", 9.0)])
    assert (found.nnz, found.shape, found.data_dtype) == (nnz, (n_obs, n_vars), "uint16")
    assert (found.index_dtype, found.chunk_length, found.data_shard, found.index_shard) == expected


def test_shards() -> None:
    layout = CSRLayout("X", (5, 9), 25, "uint32", "int64", chunk_length=5, data_shard=10, index_shard=20)
    blocks = [staged(8, "uint16", 9.0), staged(0, "uint16", 0.0), staged(17, "uint32", 70_000.0)]

    def shard(what: str, number: int, dtypes: str, length: int, *of: Piece) -> Shard:
        dtype = "uint32" if what == "data" else "int64"
        return Shard("X", f"X/{what}", number, dtype, tuple(dtypes.split()), 5, length, of)

    assert list(shards_of(layout, blocks)) == [
        shard("data", 0, "uint16 uint32", 10, Piece(0, 0, 8), Piece(2, 0, 2)),
        shard("data", 1, "uint32", 10, Piece(2, 2, 12)),
        shard("data", 2, "uint32", 10, Piece(2, 12, 17)),
        shard("indices", 0, "uint16 uint16", 20, Piece(0, 0, 8), Piece(2, 0, 12)),
        shard("indices", 1, "uint16", 20, Piece(2, 12, 17)),
    ]


def test_no_shard_of_nothing() -> None:
    layout = CSRLayout("X", (0, 9), 0, "uint16", "int32", chunk_length=5, data_shard=5, index_shard=5)
    assert list(shards_of(layout, [])) == []
