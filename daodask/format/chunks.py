"""One-dimensional zarr v3 arrays as bytes: where a chunk lies, how it is decoded, and how a shard is encoded. Pure.

zarr-python reads and writes the same bytes, but chunk by chunk through a pipeline of coroutines. Here a shard is
encoded from its first byte to its last, so that it is one request, its digest is known without reading it back, and it
is the same to the byte on every runner; and chunks are decoded straight from byte ranges, which is what makes reading
fast. What is not of the few forms known here has no :class:`ArraySpec`, and is left to zarr-python.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np

from daodask.errors import CorruptStoreError
from daodask.format.codecs import CHECKSUM_BYTES, DELTA, Codec, with_checksum
from daodask.types import AnyArray

__all__ = ["ArraySpec", "decode_chunk", "decode_index", "encode_shard", "shard_bounds", "shard_key", "shard_parts"]

#: What a shard's index has in place of an offset where a chunk is absent.
_ABSENT: Final = 2**64 - 1
#: The crc32c of any bytes that are followed by their own crc32c.
CHECKED: Final = 0x48674BC7
BLOSC_HEADER: Final = struct.Struct("<4B3I")


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What reading a 1-D array needs of its ``zarr.json``.

    Parameters
    ----------
    length
        Elements of the array.
    dtype
        Of the elements, little-endian.
    chunk_length, shard_length
        Elements of an inner chunk and of a shard, which is one file; the same where the array is not sharded.
    sharded
        Whether a file has an index and several chunks.
    index_at_end
        Where in a shard its index is.
    compression
        ``"blosc"``, ``"zstd"`` or ``""``.
    checksum
        Whether the last four bytes of a chunk are the crc32c of those before.
    delta
        Whether a chunk has the differences of neighbouring elements, and begins with the first itself.
    fill_value
        Of elements whose chunk or shard is absent.
    prefix
        Of the files' names below the array: ``c/`` and the shard's number.
    """

    length: int
    dtype: np.dtype[Any]
    chunk_length: int
    shard_length: int
    sharded: bool
    index_at_end: bool
    compression: str
    checksum: bool
    delta: bool
    fill_value: int | float | bool
    prefix: str = "c/"

    @classmethod
    def parse(cls, metadata: Mapping[str, Any]) -> ArraySpec | None:
        """The spec of an array by the content of its ``zarr.json``; ``None`` where it is of a form not known here."""
        try:
            return _parse(metadata)
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks of a whole shard."""
        return self.shard_length // self.chunk_length

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return self.chunk_length * self.dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index with its checksum."""
        return 16 * self.chunks_per_shard + CHECKSUM_BYTES


def _parse(metadata: Mapping[str, Any]) -> ArraySpec | None:
    (length,) = metadata["shape"]
    (outer,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    known = metadata["zarr_format"] == 3 and metadata["chunk_grid"]["name"] == "regular"
    keys = metadata["chunk_key_encoding"]
    known = known and keys["name"] == "default" and not metadata.get("storage_transformers")
    dtype = np.dtype(metadata["data_type"])
    codecs, inner, sharded, at_end = metadata["codecs"], outer, False, True
    if [c["name"] for c in codecs] == ["sharding_indexed"]:
        sharding = codecs[0]["configuration"]
        (inner,) = sharding["chunk_shape"]
        known = known and [c["name"] for c in sharding["index_codecs"]] == ["bytes", "crc32c"]
        known = known and _is_little(sharding["index_codecs"][0], np.dtype(np.uint64))
        codecs, sharded, at_end = sharding["codecs"], True, sharding.get("index_location", "end") == "end"
    little = dtype.newbyteorder("<")
    delta = _is_delta(codecs[0], little)
    codecs = codecs[delta:]
    compression, checksum = _pipeline([c["name"] for c in codecs])
    known = (
        known
        and dtype.kind in "iufb"
        and _is_little(codecs[0], dtype)
        and isinstance(metadata["fill_value"], int | float)
    )
    if not known:
        return None
    separator = keys.get("configuration", {}).get("separator", "/")
    fill = metadata["fill_value"]
    return ArraySpec(length, little, inner, outer, sharded, at_end, compression, checksum, delta, fill, f"c{separator}")


def _is_delta(codec: Mapping[str, Any], dtype: np.dtype[Any]) -> bool:
    """Whether the first codec makes differences; of whole numbers, as those of floats are rounded."""
    if codec["name"] != DELTA:
        return False
    configuration = codec["configuration"]
    if dtype.kind not in "iu" or {configuration["dtype"], configuration.get("astype", dtype.str)} != {dtype.str}:
        raise ValueError(f"differences of {dtype} as {configuration} are not known here")
    return True


def _is_little(codec: Mapping[str, Any], dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize == 1 or codec.get("configuration", {}).get("endian", "little") == "little"


def _pipeline(names: list[str]) -> tuple[str, bool]:
    """Compression and checksum of a chunk's codecs; raises ``ValueError`` for any other pipeline."""
    checksum = names[-1] == "crc32c"
    steps = names[:-1] if checksum else names
    if steps[0] != "bytes" or len(steps) > 2 or (len(steps) == 2 and steps[1] not in ("blosc", "zstd")):
        raise ValueError(f"codecs {names} are not known here")
    return (steps[1] if len(steps) == 2 else ""), checksum


# -- reading -----------------------------------------------------------------------------------------------------------


def decode_index(data: bytes, spec: ArraySpec, where: str) -> AnyArray:
    """Where in a shard each chunk begins and ends, ``(chunks, 2)`` int64; negative where a chunk is absent.

    Raises
    ------
    CorruptStoreError
        The index is short, or not what was written.
    """
    if len(data) != spec.index_bytes:
        raise CorruptStoreError(f"{where}: expected a shard index of {spec.index_bytes} bytes, got {len(data)}")
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise CorruptStoreError(f"{where}: the shard index does not match its checksum; restore the file")
    offsets, sizes = np.frombuffer(body, dtype="<u8").reshape(-1, 2).T
    return np.stack([offsets, offsets + sizes], axis=1).astype(np.int64)


def decode_chunk(data: bytes, spec: ArraySpec, out: AnyArray, where: str) -> None:
    """Decode one chunk into ``out``, a whole chunk of the array's dtype.

    Raises
    ------
    CorruptStoreError
        The bytes are short, don't match their checksum, or don't decode to a whole chunk.
    """
    if spec.checksum:
        if len(data) < CHECKSUM_BYTES or google_crc32c.value(data) != CHECKED:
            raise CorruptStoreError(f"{where}: a chunk does not match its checksum; restore the file")
        view = memoryview(data)[:-CHECKSUM_BYTES]
    else:
        view = memoryview(data)
    if spec.compression == "blosc":
        _decode_blosc(view, spec, out, where)
    elif spec.compression == "zstd":
        _decode_zstd(view, spec, out, where)
    elif len(view) == spec.chunk_bytes:
        out[:] = np.frombuffer(view, dtype=spec.dtype)
    else:
        raise CorruptStoreError(f"{where}: expected a chunk of {spec.chunk_bytes} bytes, got {len(view)}")
    if spec.delta:
        np.cumsum(out, out=out)


def _decode_blosc(view: memoryview, spec: ArraySpec, out: AnyArray, where: str) -> None:
    from numcodecs import blosc

    # The header tells the sizes before and after; the library itself trusts it and would write past the end.
    sizes = BLOSC_HEADER.unpack_from(view)[4:] if len(view) >= BLOSC_HEADER.size else None
    if sizes is None or sizes[0] != spec.chunk_bytes or sizes[2] != len(view):
        raise CorruptStoreError(
            f"{where}: expected a Blosc chunk of {spec.chunk_bytes} bytes, got {sizes or len(view)}"
        )
    try:
        blosc.decompress(view, out)
    except RuntimeError as error:
        raise CorruptStoreError(f"{where}: a chunk can't be decompressed; restore the file") from error


def _decode_zstd(view: memoryview, spec: ArraySpec, out: AnyArray, where: str) -> None:
    from numcodecs import zstd

    try:
        decoded = zstd.decompress(view)
    except RuntimeError as error:
        raise CorruptStoreError(f"{where}: a chunk can't be decompressed; restore the file") from error
    if len(decoded) != spec.chunk_bytes:
        raise CorruptStoreError(f"{where}: expected a chunk of {spec.chunk_bytes} bytes, got {len(decoded)}")
    out[:] = np.frombuffer(decoded, dtype=spec.dtype)


# -- writing -----------------------------------------------------------------------------------------------------------


def shard_bounds(length: int, shard_length: int) -> Iterator[tuple[int, int]]:
    """Element bounds of each shard of a 1-D array; none for an empty array."""
    for start in range(0, length, shard_length):
        yield start, min(start + shard_length, length)


def shard_key(number: int) -> str:
    """Path of a shard below its 1-D array."""
    return f"c/{number}"


def encode_shard(values: AnyArray, chunk_length: int, shard_length: int, codec: Codec) -> bytes:
    """All that :func:`shard_parts` gives, of values that are at hand anyway."""
    return b"".join(shard_parts([values], chunk_length, shard_length, codec))


def shard_parts(values: Iterable[AnyArray], chunk_length: int, shard_length: int, codec: Codec) -> Iterator[bytes]:
    """Encode a 1-D run of values as one shard (zarr v3 ``sharding_indexed``, index at the end with crc32c).

    Neither the values nor the shard need ever be in memory as a whole: new memory costs more than filling it.

    Parameters
    ----------
    values
        Arrays that together are at most ``shard_length`` values, in the array's stored dtype; taken one by one.
    chunk_length, shard_length
        Elements of an inner chunk and of a shard. The last inner chunk is padded with zeros, as zarr chunks are whole.
    codec
        Of each inner chunk.

    Yields
    ------
    bytes
        What comes next in the shard: its chunks, and the index at last.
    """
    index = np.full((shard_length // chunk_length, 2), _ABSENT, dtype="<u8")
    begin = 0
    for number, chunk in enumerate(_chunks(values, chunk_length)):
        encoded = codec.encode(chunk)
        index[number] = begin, len(encoded)
        begin += len(encoded)
        yield encoded
    yield with_checksum(index.tobytes())


def _chunks(arrays: Iterable[AnyArray], length: int) -> Iterator[AnyArray]:
    """The arrays' values cut anew, the last chunk filled up with zeros."""
    rest: list[AnyArray] = []
    for values in arrays:
        known = sum(map(len, rest))
        cut = -known % length if known else 0
        if known + len(values) < length:
            rest.append(values)
            continue
        if known:
            yield np.concatenate([*rest, values[:cut]])
        whole = cut + (len(values) - cut) // length * length
        for start in range(cut, whole, length):
            yield values[start : start + length]
        rest = [values[whole:]]
    last = np.concatenate(rest) if rest else np.zeros(0)
    if len(last):
        yield np.concatenate([last, np.zeros(length - len(last), dtype=last.dtype)])
