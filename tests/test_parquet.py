"""Parts of parquet files: what pyarrow reads of the whole file, in as few requests as can be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from daodask.errors import CorruptStoreError
from daodask.parquet import parquet_metadata, read_row_groups
from daodask.storage import StoreLocation

N = 100


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ranges of each call."""
    calls: list[int] = []
    original = MemoryFileSystem.cat_ranges

    def recorded(self: Any, paths: Any, starts: Any, ends: Any, **options: Any) -> Any:
        calls.append(len(paths))
        return original(self, paths, starts, ends, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", recorded)
    return calls


def table(extra: int = 0) -> pa.Table:
    rng = np.random.default_rng(0)
    labels = pa.array(np.where(np.arange(N) % 7 == 6, None, np.arange(N) % 3).astype(object)).cast(pa.string())
    columns: dict[str, Any] = {
        "number": np.arange(N),
        "label": labels.dictionary_encode(),
        "text": [f"text {i}" * (i % 5) for i in range(N)],
        "score": pa.array(rng.random(N), mask=np.arange(N) % 4 == 1),
        "flag": np.arange(N) % 2 == 1,
    }
    return pa.table({**columns, **{f"column number {i}": np.full(N, i) for i in range(extra)}})


def encoded(whole: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(whole, buffer, row_group_size=30, compression="zstd", **options)
    return buffer.getvalue()


@pytest.fixture(params=["local", "memory"])
def where(request: pytest.FixtureRequest, place: Any) -> Iterator[StoreLocation]:
    made = place(request.param)
    yield made
    if request.param == "memory":
        made.remove()


@pytest.mark.parametrize("columns", [["number"], ["flag", "label"], ["text", "number"], [], ["score", "label", "text"]])
@pytest.mark.parametrize("groups", [[0], [1, 2], [3], [0, 3], [], [0, 1, 2, 3]])
def test_parts_are_those_of_the_whole(where: StoreLocation, columns: list[str], groups: list[int]) -> None:
    for options in ({}, {"use_dictionary": False}, {"write_page_index": True}, {"data_page_size": 64}):
        file = where / f"{len(options)}-{next(iter(options), '')}.parquet"
        file.write(encoded(table(), **options))
        expected = pq.ParquetFile(io.BytesIO(file.read())).read_row_groups(groups, columns=columns)
        assert read_row_groups(file, groups, columns).equals(expected)


def test_neighbouring_columns_are_one_request(place: Any, requests: list[int]) -> None:
    file = place("memory") / "obs.parquet"
    file.write(encoded(table()))
    read_row_groups(file, [1], ["number"])
    read_row_groups(file, [1], ["score", "flag", "text"])
    read_row_groups(file, [0, 1], ["flag"])
    read_row_groups(file, [0, 1], ["number", "label", "text", "score", "flag"])
    # The footer, which is known from then on, and once each; two row groups lie apart but where all is read.
    assert requests == [1, 1, 1, 2, 1]


def test_a_long_footer_is_one_request_more(place: Any, requests: list[int]) -> None:
    file, whole = place("memory") / "obs.parquet", table(extra=300)
    data = encoded(whole)
    file.write(data)
    metadata = parquet_metadata(file)
    assert metadata.serialized_size > 2**16
    assert requests == [1, 1]
    assert metadata.num_columns == whole.num_columns
    assert read_row_groups(file, [2], ["column number 99"]).column(0).to_pylist() == [99] * 30


def test_what_is_no_parquet_file_is_said_to_be_none(where: StoreLocation) -> None:
    data = encoded(table())
    for name, damaged in (("short", data[:-10]), ("text", b"not at all"), ("empty", b""), ("footer", data[-300:])):
        file = where / f"{name}.parquet"
        file.write(damaged)
        with pytest.raises((CorruptStoreError, pa.ArrowInvalid, OSError)):
            read_row_groups(file, [0], ["text"])
    with pytest.raises(CorruptStoreError, match=r"expected a file at .*absent\.parquet, found none"):
        parquet_metadata(where / "absent.parquet")
