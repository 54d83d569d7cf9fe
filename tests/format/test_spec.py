"""The numbers of the layout, as SPEC.md has them, and the examples in SPEC.md itself."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from daodask.format.features import FeatureSpace
from daodask.format.manifest import Snapshot
from daodask.format.spec import (
    FORMAT_VERSION,
    ID_PATTERN,
    Layout,
    dataset_path,
    exact_integer_dtype,
    feature_path,
    index_dtype,
    served_dtype,
    snapshot_path,
)

SPEC = files("daodask.format").joinpath("SPEC.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("nnz", "n_obs", "chunk_rows", "expected"),
    [
        (0, 0, 64, 1024),
        (0, 100, 64, 1024),
        (100, 100, 64, 1024),
        (1600, 100, 64, 1024),
        (1617, 100, 64, 2048),
        (2_040_000, 1000, 64, 130_560 // 1024 * 1024 + 1024),
        (2_672_869, 3874, 64, 45_056),
        (1_049_692, 2000, 64, 33_792),
        (1_049_692, 2000, 1, 1024),
    ],
)
def test_chunk_length(nnz: int, n_obs: int, chunk_rows: int, expected: int) -> None:
    assert Layout(chunk_rows=chunk_rows).chunk_length(nnz, n_obs) == expected


@pytest.mark.parametrize(
    ("chunk", "nnz", "itemsize", "shard_bytes", "expected"),
    [
        (1024, 0, 2, 256 * 2**20, 1024),
        (1024, 1, 2, 256 * 2**20, 1024),
        (1024, 1025, 2, 256 * 2**20, 2048),
        (33_792, 1_049_692, 2, 256 * 2**20, 1_081_344),
        (131_072, 10**9, 2, 256 * 2**20, 134_217_728),
        (131_072, 10**9, 4, 256 * 2**20, 67_108_864),
        (1024, 10**6, 2, 4096, 2048),
        (1024, 10**6, 4, 4096, 1024),
        (1024, 10**6, 8, 4096, 1024),
    ],
)
def test_shard_length(chunk: int, nnz: int, itemsize: int, shard_bytes: int, expected: int) -> None:
    length = Layout(shard_bytes=shard_bytes).shard_length(chunk, nnz, itemsize)
    assert length == expected
    assert length % chunk == 0


@pytest.mark.parametrize(
    ("n_obs", "expected"),
    [(0, (0,)), (1, (0, 1)), (9, (0, 9)), (10, (0, 10)), (11, (0, 10, 11)), (30, (0, 10, 20, 30))],
)
def test_block_bounds(n_obs: int, expected: tuple[int, ...]) -> None:
    assert Layout(block_rows=10).block_bounds(n_obs) == expected


@pytest.mark.parametrize(
    ("nnz", "n_vars", "expected"),
    [(0, 0, "int32"), (2**31 - 1, 60_000, "int32"), (2**31, 60_000, "int64"), (10, 2**31, "int64")],
)
def test_index_dtype(nnz: int, n_vars: int, expected: str) -> None:
    assert index_dtype(nnz, n_vars) == np.dtype(expected)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (0, "uint16"),
        (255, "uint16"),
        (65_535, "uint16"),
        (65_536, "uint32"),
        (2**32 - 1, "uint32"),
        (2**32, "uint64"),
        (2**64 - 1, "uint64"),
    ],
)
def test_exact_integer_dtype(largest: int, expected: str) -> None:
    assert exact_integer_dtype(largest) == np.dtype(expected)


def test_integers_beyond_64_bits_are_refused() -> None:
    with pytest.raises(OverflowError, match="18446744073709551616 does not fit 64 bits"):
        exact_integer_dtype(2**64)


@pytest.mark.parametrize(
    ("stored", "largest", "expected"),
    [
        ("uint16", 65_535, "float32"),
        ("uint32", 2**24, "float32"),
        ("uint32", 2**24 + 1, "float64"),
        ("uint64", 1, "float32"),
        ("float32", 1e30, "float32"),
        ("float32", float("nan"), "float32"),
        ("float64", 0.1, "float64"),
    ],
)
def test_served_dtype(stored: str, largest: float, expected: str) -> None:
    assert served_dtype(np.dtype(stored), largest) == np.dtype(expected)


def test_paths() -> None:
    assert snapshot_path(3) == "snapshots/00000003.json"
    assert snapshot_path(123_456_789) == "snapshots/123456789.json"
    assert feature_path("ab12") == "features/ab12.parquet"
    assert dataset_path("kang", "686f9abcd9dc") == "datasets/kang.686f9abcd9dc"


@pytest.mark.parametrize(
    ("name", "valid"),
    [("a", True), ("9-B_c", True), ("a" * 128, True), ("a" * 129, False), ("", False)]
    + [(name, False) for name in ("_a", "-a", ".a", "a.b", "a/b", "a b", "ä", "a\n")],
)
def test_ids(name: str, valid: bool) -> None:
    assert bool(ID_PATTERN.fullmatch(name)) == valid


# -- the normative text --------------------------------------------------------------------------------------------


def example(name: str) -> str:
    """The fenced block below ``<!-- example: name -->`` in SPEC.md."""
    found = re.search(rf"<!-- example: {name} -->\n```\w*\n(.*?)```", SPEC, re.DOTALL)
    assert found, f"SPEC.md has no example {name!r}"
    return found[1]


def test_the_text_is_of_this_version() -> None:
    assert SPEC.startswith(f"# The daodask store format, version {FORMAT_VERSION}\n")


def test_the_example_of_a_snapshot_is_one() -> None:
    text = example("snapshot")
    snapshot = Snapshot.from_json(text.encode())
    assert json.loads(snapshot.to_json()) == json.loads(text)
    assert snapshot.dataset["pbmc_facs"].matrix["X"].dtype == "uint16"
    assert snapshot.features[0].obs[1].categories == ("D1", "D2")


def test_the_example_of_a_feature_space_has_the_hash_that_the_text_says() -> None:
    header, *rows = (line.split(",") for line in example("features").splitlines())
    assert header == ["gene_id", "symbol", "length"]
    ids, symbols, lengths = zip(*rows, strict=True)
    var = pd.DataFrame({"symbol": list(symbols), "length": list(map(int, lengths))}, index=list(ids))
    stated = re.search(r"hash is `([0-9a-f]{32})`", SPEC)
    assert stated
    assert FeatureSpace("example", var).hash == stated[1]


def test_the_table_of_chunks_and_shards_is_right() -> None:
    table = re.search(r"\| `nnz` \| `n_obs` \| item size \| chunk \| shard \|\n\|[-|]+\|\n((?:\|.*\n)+)", SPEC)
    assert table
    for line in table[1].splitlines():
        nnz, n_obs, itemsize, chunk, shard = (int(cell.replace(" ", "")) for cell in line.strip("|").split("|"))
        assert Layout().chunk_length(nnz, n_obs) == chunk
        assert Layout().shard_length(chunk, nnz, itemsize) == shard
