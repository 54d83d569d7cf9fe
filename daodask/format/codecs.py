"""The few compressors of the format, by the names that build files use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np

from daodask.errors import SpecError, suggest
from daodask.types import AnyArray

__all__ = ["CHECKSUM_BYTES", "CODECS", "DELTA", "Codec", "with_checksum", "without_delta_warning"]

CHECKSUM_BYTES: Final = 4

#: Name of the filter in ``zarr.json``, and in zarr's registry.
DELTA: Final = "numcodecs.delta"

#: What Blosc is told to cut a chunk into. Of lz4 it is in bytes of a one-byte type, which Blosc multiplies by the width
#: of an element, and makes 64 KiB at least: rows are decoded block by block, and a block stays in a processor's own
#: cache. Zstandard makes what it needs anew for each byte of an element of each block, 10 µs each time; a chunk is one
#: block of it.
_BLOSC_BLOCK: Final = {"lz4": 2**14, "lz4hc": 2**14, "zstd": 2**18}


@dataclass(frozen=True, slots=True)
class Codec:
    """A Blosc compressor, or none where ``cname`` is empty; then a crc32c, so that no flipped bit is read as data.

    Parameters
    ----------
    cname, clevel
        As Blosc has them.
    delta
        Whether the differences of neighbours are stored.
    indices
        What indices are encoded with, where it is not this. They ascend within a row: what lies between two of a cell's
        genes is a small number, which takes half of the space.
    """

    cname: str
    clevel: int
    delta: bool = False
    indices: Codec | None = None

    @classmethod
    def named(cls, name: str) -> Codec:
        """The codec of that name.

        Raises
        ------
        SpecError
            There is no such codec.
        """
        try:
            return CODECS[name]
        except KeyError:
            raise SpecError(f"unknown codec {name!r}; {suggest(name, CODECS)}") from None

    def of(self, path: str) -> Codec:
        """What the array at a path is encoded with."""
        is_indices = path.rpartition("/")[2] == "indices"
        return self.indices if is_indices and self.indices else self

    def zarr_filters(self, dtype: str) -> Any:
        """What ``zarr.create_array(filters=…)`` takes."""
        from zarr.registry import get_codec_class

        if not self.delta:
            return ()
        delta: Any = get_codec_class(DELTA)
        return (delta(dtype=np.dtype(dtype).newbyteorder("<").str),)

    def zarr_compressors(self) -> Any:
        """What ``zarr.create_array(compressors=…)`` takes."""
        from zarr.codecs import BloscCodec, Crc32cCodec

        if not self.cname:
            return (Crc32cCodec(),)
        blosc = BloscCodec(cname=self.cname, clevel=self.clevel, shuffle="shuffle", blocksize=_BLOSC_BLOCK[self.cname])  # type: ignore[arg-type]
        return blosc, Crc32cCodec()

    def encode(self, chunk: AnyArray) -> bytes:
        """Compress one chunk; the same bytes on every machine and with any number of threads."""
        values = np.diff(chunk, prepend=chunk.dtype.type(0)) if self.delta else chunk
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        if not self.cname:
            return with_checksum(little.tobytes())
        from numcodecs import blosc

        block = _BLOSC_BLOCK[self.cname]
        return with_checksum(blosc.compress(little, self.cname.encode(), self.clevel, blosc.SHUFFLE, block))


def with_checksum(data: bytes) -> bytes:
    """The bytes followed by their crc32c, little-endian."""
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(CHECKSUM_BYTES, "little")


@contextmanager
def without_delta_warning() -> Iterator[None]:
    """Opens or creates zarr arrays without a warning that differences are none of zarr's specified codecs.

    zarr 3.1 warns of each such array; that not all readers know them is said where one chooses such a codec.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Numcodecs codecs are not in the Zarr version 3", category=UserWarning
        )
        yield


CODECS: Final = {
    "lz4": Codec("lz4", 5),
    "lz4hc": Codec("lz4hc", 5),
    # Higher levels save some percent of counts, up to a quarter of normalised values, and take twelve times as long.
    "zstd": Codec("zstd", 1),
    "zstd-delta": Codec("zstd", 1, indices=Codec("zstd", 1, delta=True)),
    "none": Codec("", 0),
}
