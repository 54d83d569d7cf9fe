"""Receipts: what a task says of what it wrote, kept beside it so that a build that was cut off finds it again.

Done means a receipt under the same plan fingerprint (which is in the path), never that a file exists.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from daodask.build.depth import Depth
from daodask.build.qc import QCRange
from daodask.errors import StoreNotFoundError
from daodask.format.manifest import ColumnSummary
from daodask.storage import StoreLocation

__all__ = [
    "BlockReceipt",
    "FileReceipt",
    "FilesReceipt",
    "FramesReceipt",
    "MatrixReceipt",
    "PartsReceipt",
    "with_receipt",
    "write_file",
]

R = TypeVar("R", "BlockReceipt", "FilesReceipt", "FramesReceipt", "PartsReceipt")


@dataclass(frozen=True, slots=True)
class FileReceipt:
    """A file of a dataset: path below the dataset, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


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

    ``seconds`` by phase are of the task's result, and not kept.
    """

    matrices: Mapping[str, MatrixReceipt]
    files: tuple[FileReceipt, ...] = field(default=())
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BlockReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        matrices = {name: MatrixReceipt.from_dict(m) for name, m in value["matrices"].items()}
        return cls(matrices, tuple(FileReceipt(**f) for f in value["files"]))


@dataclass(frozen=True, slots=True)
class PartsReceipt:
    """Parts of an exchange that one task wrote, and how many values are in them."""

    parts: tuple[int, ...]
    n_values: int

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PartsReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        return cls(tuple(value["parts"]), value["n_values"])


def with_receipt(location: StoreLocation, kind: type[R], work: Callable[[], R]) -> R:
    """The receipt at the location, or that of the work, which is then done and its receipt left there, last of all."""
    try:
        return kind.from_dict(json.loads(location.read()))
    except StoreNotFoundError:
        receipt = work()
    kept = {name: value for name, value in dataclasses.asdict(receipt).items() if name != "seconds"}
    location.write(json.dumps(kept).encode())
    return receipt


def write_file(dataset: StoreLocation, path: str, data: bytes) -> FileReceipt:
    """Write a file of a dataset."""
    (dataset / path).write(data)
    return FileReceipt(path, len(data), hashlib.sha256(data).hexdigest())
