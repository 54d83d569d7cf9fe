"""Identity of what a study is read from: files by their content or etag, arrays in memory by their bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import FileIO
from typing import Any, Final, Protocol

import google_crc32c
import numpy as np
import pandas as pd
import scipy.sparse as sp

from daodask._foreign import find_decoders
from daodask.errors import SourceError
from daodask.format.spec import CHECKSUMS
from daodask.sources.base import Fingerprint, SourceAddress
from daodask.sources.download import origin_of
from daodask.storage import StoreLocation
from daodask.types import AnyArray

__all__ = ["fingerprint_arrays", "fingerprint_location", "stamp_location", "stamp_of"]

# Of the content, as object stores and servers call it; and, where none of these is given, of the time.
_CONTENT = ("md5hash", "crc32c", "etag", "content_md5")
_TIME = ("mtime", "lastmodified", "last_modified", "last-modified", "updated", "created")

#: Bytes of a file that one thread takes, a multiple of those that are read at a time.
_PART: Final = 2**26
_PIECE: Final = 2**18

_COMPRESSED = ("data", "indices", "indptr")


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a source: its path in the file system, its name within the source, and what is known unread.

    The stamp is empty where a server tells neither etag nor time.
    """

    path: str
    name: str
    size: int
    stamp: str


def fingerprint_location(location: StoreLocation, known: Fingerprint | None = None) -> Fingerprint:
    """Fingerprint of a file, or of all files below a directory, in the order of their names.

    Parameters
    ----------
    location
        Of the study. Of a worker's copy it is the original that is looked at.
    known
        An earlier fingerprint: it is returned, and nothing is read, where size and stamp are still the same.

    Raises
    ------
    SourceError
        Nothing is there.
    """
    location = origin_of(location)
    files = [_stamped(location, file) for file in _files(location)]
    size, stamp = sum(file.size for file in files), _combine_stamps(files)
    if known is not None and (known.size, known.stamp) == (size, stamp):
        return known
    if not location.is_local:
        return Fingerprint(size, stamp, stamp)
    digests = [(file.name, _digest_file(location, file.path)) for file in files]
    return Fingerprint(size, stamp, digests[0][1] if _is_single(files) else _hash_lines(digests))


def stamp_location(location: StoreLocation) -> str:
    """The stamp alone, for which nothing is read; empty where a server tells neither etag nor time."""
    return _combine_stamps(_files(location))


def stamp_of(address: SourceAddress) -> str:
    """The stamp of what a study is read from; of a dataset of a store its list of files stands for all of them."""
    return stamp_location(address.location / CHECKSUMS if address.format == "dao" else address.location)


def fingerprint_arrays(arrays: Mapping[str, Any], frames: Mapping[str, pd.DataFrame], facts: object) -> Fingerprint:
    """Fingerprint of a study in memory, whose size is that of its arrays.

    The stamp is the digest: nothing else tells that an array was written to.

    Parameters
    ----------
    arrays
        Dense or compressed sparse arrays by name.
    frames
        Data frames by name.
    facts
        Anything whose ``repr`` says all of it.
    """
    digest, size = hashlib.sha256(repr(facts).encode()), 0
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape} {array.dtype} {getattr(array, 'format', 'dense')}".encode())
        for part in _parts(array):
            digest.update(_bytes(part))
            size += part.nbytes
    for name, frame in frames.items():
        digest.update(name.encode())
        _update_frame(digest, frame)
    return Fingerprint(size, digest.hexdigest(), digest.hexdigest())


def _files(location: StoreLocation) -> list[_File]:
    fs, root = location.fs, location.path
    fs.invalidate_cache(root)
    try:
        info = fs.info(root)
        found = fs.find(root, detail=True) if info["type"] == "directory" else {root: info}
    except FileNotFoundError as error:
        raise SourceError(f"expected a study at {location}, found nothing; check the path") from error
    files = [_describe(location, path, facts) for path, facts in sorted(found.items())]
    if not files:
        raise SourceError(f"expected a study at {location}, found an empty directory; check the path")
    return files


def _describe(location: StoreLocation, path: str, facts: Mapping[str, Any]) -> _File:
    name = str(path).removeprefix(location.path).lstrip("/")
    return _File(str(path), name, int(facts.get("size") or 0), _stamp(location, path, facts))


def _stamp(location: StoreLocation, path: str, facts: Mapping[str, Any]) -> str:
    if location.is_local:
        return str(os.stat(path).st_mtime_ns)
    given = {key.lower(): value for key, value in facts.items() if value}
    content, times = ([f"{key}={given[key]}" for key in keys if key in given] for keys in (_CONTENT, _TIME))
    return " ".join(content or times)


def _stamped(location: StoreLocation, file: _File) -> _File:
    """Where the file system tells nothing, only the content does."""
    return file if file.stamp else replace(file, stamp=_digest_file(location, file.path))


def _combine_stamps(files: list[_File]) -> str:
    return files[0].stamp if _is_single(files) else _hash_lines((f.name, f.size, f.stamp) for f in files)


def _is_single(files: list[_File]) -> bool:
    """Whether the source is a file, and not a directory that holds one."""
    return len(files) == 1 and not files[0].name


def _hash_lines(rows: Iterable[tuple[object, ...]]) -> str:
    return hashlib.sha256("\n".join(repr(row) for row in rows).encode()).hexdigest()


def _digest_file(location: StoreLocation, path: str) -> str:
    """SHA-256 of the content; of a large local file, that of its parts' digests, which threads take at once."""
    if location.is_local and (size := os.path.getsize(path)) > _PART:
        starts = range(0, size, _PART)
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:
            return _hash_lines((digest,) for digest in pool.map(lambda start: _digest_part(path, start), starts))
    digest = hashlib.sha256()
    with location.fs.open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _digest_part(path: str, start: int) -> str:
    """SHA-256 of the CRC32C of each piece: tells a change as surely as anybody needs, at the speed of reading."""
    functions, checksums = find_decoders(), np.zeros(_PART // _PIECE, dtype="<u4")
    with open(path, "rb", buffering=0) as file:
        if functions is None:
            _check_pieces(file, start, checksums)
        else:
            from daodask.decoding import file_checksums

            piece = np.empty(_PIECE, dtype=np.uint8)
            if not file_checksums(functions, file.fileno(), start, piece, checksums):
                _check_pieces(file, start, checksums)  # which says why
    return hashlib.sha256(checksums.tobytes()).hexdigest()


def _check_pieces(file: FileIO, start: int, checksums: AnyArray) -> None:
    """As :func:`daodask.decoding.file_checksums`."""
    piece = bytearray(_PIECE)
    # The library takes nothing that anybody could write to.
    view = np.frombuffer(memoryview(piece).toreadonly(), dtype=np.uint8)
    file.seek(start)
    for i in range(len(checksums)):
        n = file.readinto(piece)
        checksums[i] = google_crc32c.value(view[:n] if n else b"")


def _parts(array: Any) -> tuple[AnyArray, ...]:
    return tuple(getattr(array, part) for part in _COMPRESSED) if sp.issparse(array) else (np.asarray(array),)


def _bytes(array: AnyArray) -> memoryview:
    """The bytes in C order; without a copy where they are so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _update_frame(digest: _Digest, frame: pd.DataFrame) -> None:
    digest.update(repr([(str(name), str(dtype)) for name, dtype in frame.dtypes.items()]).encode())
    digest.update(_bytes(pd.util.hash_pandas_object(frame, index=True).to_numpy()))
    for name in frame.columns[[isinstance(dtype, pd.CategoricalDtype) for dtype in frame.dtypes]]:
        # Rows hash by their values; the order of the categories is content as well.
        digest.update(_bytes(pd.util.hash_pandas_object(frame[name].cat.categories, index=False).to_numpy()))
