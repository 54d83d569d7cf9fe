"""Sharded zarr v3 arrays as bytes: a shard is encoded whole, in memory, and written with one request.

zarr-python writes a shard too, but through its pipeline of single chunks; a whole object made here is one PUT, its
digest is known without reading it back, and it is the same to the byte on every runner.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c
import numpy as np

from daodask.format.codecs import Codec
from daodask.types import AnyArray

__all__ = ["encode_shard", "shard_bounds", "shard_key"]

_ABSENT = np.uint64(2**64 - 1)


def shard_bounds(length: int, shard_length: int) -> Iterator[tuple[int, int]]:
    """Element bounds of each shard of a 1-D array; none for an empty array."""
    for start in range(0, length, shard_length):
        yield start, min(start + shard_length, length)


def shard_key(number: int) -> str:
    """Path of a shard below its 1-D array."""
    return f"c/{number}"


def encode_shard(values: AnyArray, chunk_length: int, shard_length: int, codec: Codec) -> bytes:
    """Encode a 1-D run of values as one shard (zarr v3 ``sharding_indexed``, index at the end with crc32c).

    Parameters
    ----------
    values
        At most ``shard_length`` values, in the array's stored dtype.
    chunk_length, shard_length
        Elements of an inner chunk and of a shard. The last inner chunk is padded with zeros, as zarr chunks are whole.
    codec
        Compressor of each inner chunk.
    """
    n_chunks = shard_length // chunk_length
    index = np.full((n_chunks, 2), _ABSENT, dtype="<u8")
    parts: list[bytes] = []
    offset = 0
    for number, start in enumerate(range(0, len(values), chunk_length)):
        chunk = values[start : start + chunk_length]
        if len(chunk) < chunk_length:
            chunk = np.concatenate([chunk, np.zeros(chunk_length - len(chunk), dtype=chunk.dtype)])
        encoded = codec.encode(chunk)
        index[number] = offset, len(encoded)
        parts.append(encoded)
        offset += len(encoded)
    index_bytes = index.tobytes()
    checksum = google_crc32c.value(index_bytes).to_bytes(4, "little")
    return b"".join([*parts, index_bytes, checksum])
