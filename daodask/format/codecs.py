"""The few compressors of the format, by the names that build files use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np

from daodask.errors import SpecError, suggest
from daodask.types import AnyArray

__all__ = ["CHECKSUM_BYTES", "CODECS", "Codec", "with_checksum"]

CHECKSUM_BYTES: Final = 4

#: What Blosc is told to cut a chunk into, in bytes of a one-byte type: it multiplies by the width of an element, and
#: makes it 64 KiB at least. Rows are decoded block by block, and a block stays in a processor's own cache.
_BLOSC_BLOCK: Final = 16 * 2**10


@dataclass(frozen=True, slots=True)
class Codec:
    """A Blosc compressor, or none where ``cname`` is empty; then a crc32c, so that no flipped bit is read as data."""

    cname: str
    clevel: int

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

    def zarr_compressors(self) -> Any:
        """What ``zarr.create_array(compressors=…)`` takes."""
        from zarr.codecs import BloscCodec, Crc32cCodec

        if not self.cname:
            return (Crc32cCodec(),)
        blosc = BloscCodec(cname=self.cname, clevel=self.clevel, shuffle="shuffle", blocksize=_BLOSC_BLOCK)  # type: ignore[arg-type]
        return blosc, Crc32cCodec()

    def encode(self, chunk: AnyArray) -> bytes:
        """Compress one chunk; the same bytes on every machine and with any number of threads."""
        little = np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<"))
        if not self.cname:
            return with_checksum(little.tobytes())
        from numcodecs import blosc

        return with_checksum(blosc.compress(little, self.cname.encode(), self.clevel, blosc.SHUFFLE, _BLOSC_BLOCK))


def with_checksum(data: bytes) -> bytes:
    """The bytes followed by their crc32c, little-endian."""
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(CHECKSUM_BYTES, "little")


CODECS: Final = {
    "lz4": Codec("lz4", 5),
    "lz4hc": Codec("lz4hc", 5),
    "zstd": Codec("zstd", 5),
    "none": Codec("", 0),
}
