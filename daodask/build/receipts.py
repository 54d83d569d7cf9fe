"""Receipts: what a task says of what it wrote, kept beside it so that a build that was cut off finds it again.

Done means a receipt under the same plan fingerprint (which is in the path), never that a file exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import google_crc32c
import numpy as np

from daodask.build.depth import Depth
from daodask.build.qc import QCRange
from daodask.errors import CorruptStoreError, StoreNotFoundError
from daodask.format.manifest import ColumnSummary
from daodask.storage import StoreLocation

__all__ = [
    "BlockReceipt",
    "FileReceipt",
    "FilesReceipt",
    "FramesReceipt",
    "MatrixReceipt",
    "PartsReceipt",
    "ScratchFile",
    "with_receipt",
    "write_file",
    "write_scratch",
]

#: Bytes of a file of scratch space that are looked at together.
_PIECE: Final = 2**22
#: Bytes that stay in a processor's own cache.
_HOT: Final = 2**18

R = TypeVar("R", "BlockReceipt", "FilesReceipt", "FramesReceipt", "PartsReceipt")


@dataclass(frozen=True, slots=True)
class FileReceipt:
    """A file of a dataset: path below the dataset, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ScratchFile:
    """A file in scratch space: path below it, bytes, CRC32C.

    Scratch is not flushed to the disk, as that takes longer than writing it. Where the machine went down it may be
    gone, or not what it was, although its receipt is there.
    """

    path: str
    size: int
    crc32c: int

    def is_whole(self, scratch: StoreLocation) -> bool:
        """Whether it is there as it was written (computes); a bucket has what it said that it has."""
        location = scratch / self.path
        if not location.is_local:
            return True
        try:
            if location.size() != self.size:
                return False
        except CorruptStoreError:
            return False
        pieces = (location.read_range(start, start + _PIECE) for start in range(0, self.size, _PIECE))
        return _checksum(pieces) == self.crc32c


@dataclass(frozen=True, slots=True)
class FilesReceipt:
    """Files of a dataset that one task wrote; ``seconds`` by phase are of the task's result, and not kept."""

    files: tuple[FileReceipt, ...]
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FilesReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        return cls(tuple(FileReceipt(**f) for f in value["files"]))


@dataclass(frozen=True, slots=True)
class FramesReceipt:
    """Files that are made of obs, and what its columns turned out to be."""

    files: tuple[FileReceipt, ...]
    columns: tuple[ColumnSummary, ...]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FramesReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        lists: list[dict[str, Any]] = [
            {n: tuple(v) if isinstance(v, list) else v for n, v in column.items()} for column in value["columns"]
        ]
        return cls(tuple(FileReceipt(**f) for f in value["files"]), tuple(ColumnSummary(**c) for c in lists))


@dataclass(frozen=True, slots=True)
class MatrixReceipt:
    """One matrix of a staged block.

    ``dtype`` is that of the staged values, ``integral`` whether they are non-negative whole numbers up to 2**53,
    ``largest`` the largest absolute value, ``total`` and ``kept`` the sums before and after streamlining; of X alone,
    ``depth`` that of the cells and ``qc`` the ranges of what is measured of them.
    """

    nnz: int
    dtype: str
    integral: bool
    largest: float
    total: float
    kept: float
    depth: Depth = field(default_factory=Depth)
    qc: tuple[QCRange, ...] = ()

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> MatrixReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        ranges = tuple(QCRange(**r) for r in value["qc"])
        return cls(**{**value, "depth": Depth.from_dict(value["depth"]), "qc": ranges})


@dataclass(frozen=True, slots=True)
class BlockReceipt:
    """A staged block: its matrices by name, and the files of the dataset that could be written at once.

    ``scratch`` is what was staged; ``seconds`` by phase are of the task's result, and not kept.
    """

    matrices: Mapping[str, MatrixReceipt]
    files: tuple[FileReceipt, ...] = ()
    scratch: tuple[ScratchFile, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BlockReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        matrices = {name: MatrixReceipt.from_dict(m) for name, m in value["matrices"].items()}
        return cls(matrices, tuple(FileReceipt(**f) for f in value["files"]), _scratch_of(value))


@dataclass(frozen=True, slots=True)
class PartsReceipt:
    """Parts of an exchange that one task wrote, how many values are in them, and their files."""

    parts: tuple[int, ...]
    n_values: int
    scratch: tuple[ScratchFile, ...] = ()

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PartsReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        return cls(tuple(value["parts"]), value["n_values"], _scratch_of(value))


def _scratch_of(value: Mapping[str, Any]) -> tuple[ScratchFile, ...]:
    return tuple(ScratchFile(**f) for f in value["scratch"])


def with_receipt(scratch: StoreLocation, name: str, kind: type[R], work: Callable[[], R]) -> R:
    """The receipt of that name, or that of the work, which is then done and its receipt left there, last of all."""
    location = scratch / f"receipts/{name}.json"
    with contextlib.suppress(StoreNotFoundError):
        found = kind.from_dict(json.loads(location.read()))
        if all(file.is_whole(scratch) for file in getattr(found, "scratch", ())):
            return found
    receipt = work()
    kept = {name: value for name, value in dataclasses.asdict(receipt).items() if name != "seconds"}
    location.write(json.dumps(kept).encode())
    return receipt


def write_scratch(scratch: StoreLocation, path: str, parts: Sequence[memoryview]) -> ScratchFile:
    """Write a file of scratch space."""
    checksum = 0

    def passing() -> Iterator[memoryview]:
        nonlocal checksum
        for part in parts:
            flat = part.cast("B")
            # Little at a time, which is still in cache when it is written.
            for start in range(0, len(flat), _HOT):
                piece = flat[start : start + _HOT]
                checksum = _extend(checksum, piece)
                yield piece

    (scratch / path).write(passing(), flush=False)
    return ScratchFile(path, sum(part.nbytes for part in parts), checksum)


def _extend(checksum: int, piece: bytes | memoryview) -> int:
    """CRC32C of what came before and of a piece."""
    # The library takes nothing that anybody could write to.
    extended: int = google_crc32c.extend(checksum, np.frombuffer(memoryview(piece).toreadonly(), dtype=np.uint8))
    return extended


def _checksum(parts: Iterable[bytes]) -> int:
    """CRC32C of bytes in parts."""
    checksum = 0
    for part in parts:
        checksum = _extend(checksum, part) if part else checksum
    return checksum


def write_file(dataset: StoreLocation, path: str, data: bytes | Iterable[bytes]) -> FileReceipt:
    """Write a file of a dataset, from parts as they come."""
    size, digest = 0, hashlib.sha256()

    def passing() -> Iterator[bytes]:
        nonlocal size
        for part in [data] if isinstance(data, bytes) else data:
            size += len(part)
            digest.update(part)
            yield part

    (dataset / path).write(passing())
    return FileReceipt(path, size, digest.hexdigest())
