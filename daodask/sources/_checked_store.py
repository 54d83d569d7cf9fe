"""A zarr store that looks at Blosc chunks before they are decoded.

The Blosc library takes the length of a chunk from its first bytes and reads as far, whatever there is: of a file that
was cut short it makes values of what lies behind it in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, Final

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from daodask.errors import SourceError

__all__ = ["CheckedStore"]

#: Version, flags and sizes; the last is the length of the whole chunk.
_HEADER: Final = struct.Struct("<4B3I")
_V2: Final = (".zarray", ".zmetadata")
_V3: Final = "zarr.json"


class CheckedStore(WrapperStore[Store]):
    """Passes on what another store has, and knows of its metadata which arrays are of Blosc chunks.

    Raises
    ------
    SourceError
        A chunk is not as long as it says.
    """

    #: zarr 3.4 asks this of a store: it would read past `get` otherwise.
    _supports_sync_io = False

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._blosc: set[str] = set()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, all of them or a range."""
        found = await super().get(key, prototype, byte_range)
        if found is None:
            return None
        parent, _, name = key.rpartition("/")
        if name in (_V3, *_V2):
            self._blosc.update(_blosc_arrays(parent, name, found.to_bytes()))
        elif byte_range is None and not name.startswith(".") and not self._blosc.isdisjoint(_parents(key)):
            self._check(key, found)
        return found

    def _check(self, key: str, chunk: Buffer) -> None:
        data = chunk.as_numpy_array()[: _HEADER.size].tobytes()
        told = _HEADER.unpack(data)[-1] if len(data) == _HEADER.size else _HEADER.size
        if told != len(chunk):
            raise SourceError(
                f"expected the chunk {key} of {self._store} to be of {told} bytes, as it says, got {len(chunk)}; "
                "restore the file"
            )


def _parents(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


def _blosc_arrays(parent: str, name: str, document: bytes) -> Iterator[str]:
    """Paths of the arrays with Blosc chunks that a metadata document tells of."""
    try:
        metadata = json.loads(document)
    except ValueError:
        return  # zarr will say so
    if name == _V3:
        members = ((metadata.get("consolidated_metadata") or {}).get("metadata") or {}).items()
        nodes = [("", metadata), *members]
    elif name == ".zmetadata":
        nodes = [(k.removesuffix("/.zarray"), v) for k, v in metadata["metadata"].items() if k.endswith("/.zarray")]
    else:
        nodes = [("", metadata)]
    for path, node in nodes:
        if _is_blosc(node):
            yield "/".join(filter(None, (parent, path)))


def _is_blosc(node: dict[str, Any]) -> bool:
    """Whether a chunk of an array is one Blosc buffer, the last step of writing it."""
    if node.get("zarr_format") == 2:
        return (node.get("compressor") or {}).get("id") == "blosc"
    codecs = node.get("codecs") or [{}]
    return bool(codecs[-1].get("name") == "blosc")
