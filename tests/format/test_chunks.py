"""Shards as bytes: what zarr-python reads of them is what went in."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from daodask.errors import SpecError
from daodask.format.chunks import encode_shard, shard_bounds, shard_key
from daodask.format.codecs import CODECS, Codec, without_delta_warning

#: Dtypes of what an array may hold, by the array's name.
DTYPES = {"data": ("uint16", "uint32", "float32"), "indices": ("uint16", "int32", "int64")}
ARRAYS = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes]


def read_back(values: Any, chunk: int, shard: int, codec: Codec) -> Any:
    """Write shards into an array that zarr-python made, and read it with zarr-python."""
    files: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(files)
    with without_delta_warning():
        array = zarr.create_array(
            store,
            name="a",
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunk,),
            shards=(shard,),
            filters=codec.zarr_filters(values.dtype.name),
            compressors=codec.zarr_compressors(),
            fill_value=0,
        )
    prototype = zarr.core.buffer.default_buffer_prototype()
    for number, (start, stop) in enumerate(shard_bounds(len(values), shard)):
        encoded = encode_shard(values[start:stop], chunk, shard, codec)
        files[f"a/{shard_key(number)}"] = prototype.buffer.from_bytes(encoded)
    return array[:]


@given(
    array=st.sampled_from(ARRAYS),
    codec=st.sampled_from(sorted(CODECS)),
    chunk=st.integers(1, 40),
    chunks=st.integers(1, 6),
    length=st.integers(0, 400),
    data=st.data(),
)
def test_zarr_reads_back_what_was_encoded(
    array: tuple[str, str], codec: str, chunk: int, chunks: int, length: int, data: st.DataObject
) -> None:
    name, dtype = array
    values = data.draw(hnp.arrays(dtype, length, fill=st.just(np.dtype(dtype).type(7))))
    back = read_back(values, chunk, chunk * chunks, Codec.named(codec).of(name))
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize(("name", "dtype"), ARRAYS)
def test_the_same_values_are_the_same_bytes(codec: str, name: str, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 50, 10_000).astype(dtype)
    of_array = Codec.named(codec).of(f"X/{name}")
    first = encode_shard(values, 1024, 20_480, of_array)
    assert first == encode_shard(values.copy(), 1024, 20_480, of_array)
    assert first == encode_shard(values.astype(values.dtype.newbyteorder(">")), 1024, 20_480, of_array)


def test_the_bytes_of_a_small_shard() -> None:
    shard = encode_shard(np.array([1, 2, 3], dtype="uint16"), 2, 6, CODECS["none"])
    first, second = bytes([1, 0, 2, 0]), bytes([3, 0, 0, 0])  # the last chunk is padded
    index = np.array([[0, 8], [8, 8], [2**64 - 1, 2**64 - 1]], dtype="<u8").tobytes()  # the third is absent
    assert shard == first + checksum(first) + second + checksum(second) + index + checksum(index)


def test_the_bytes_of_differences() -> None:
    codec = Codec("", 0, delta=True)
    first, second = bytes([5, 0, 2, 0]), bytes([1, 0, 255, 255])  # a chunk knows nothing of the one before
    shard = encode_shard(np.array([5, 7, 1], dtype="uint16"), 2, 4, codec)
    assert shard[:16] == first + checksum(first) + second + checksum(second)


def checksum(data: bytes) -> bytes:
    return bytes(google_crc32c.value(data).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("length", "shard", "expected"),
    [(0, 4, []), (1, 4, [(0, 1)]), (4, 4, [(0, 4)]), (9, 4, [(0, 4), (4, 8), (8, 9)])],
)
def test_shard_bounds(length: int, shard: int, expected: list[tuple[int, int]]) -> None:
    assert list(shard_bounds(length, shard)) == expected


def test_codecs() -> None:
    found = {
        name: tuple(
            (c.cname, c.clevel, c.delta) for c in (codec.of("X/data"), codec.of("X/indices"), codec.of("obsm/a"))
        )
        for name, codec in CODECS.items()
    }
    assert found == {
        "lz4": (("lz4", 5, False),) * 3,
        "lz4hc": (("lz4hc", 5, False),) * 3,
        "zstd": (("zstd", 1, False),) * 3,
        "zstd-delta": (("zstd", 1, False), ("zstd", 1, True), ("zstd", 1, False)),
        "none": (("", 0, False),) * 3,
    }
    with pytest.raises(SpecError, match="unknown codec 'lz5'; did you mean 'lz4'"):
        Codec.named("lz5")
