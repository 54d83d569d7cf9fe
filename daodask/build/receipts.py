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

from daodask.errors import StoreNotFoundError
from daodask.storage import StoreLocation

__all__ = ["BlockReceipt", "FileReceipt", "FilesReceipt", "MatrixReceipt", "with_receipt", "write_file"]

R = TypeVar("R", "BlockReceipt", "FilesReceipt")


@dataclass(frozen=True, slots=True)
class FileReceipt:
    """A file of a dataset: path below the dataset, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FilesReceipt:
    """Files of a dataset that one task wrote."""

    files: tuple[FileReceipt, ...]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FilesReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        return cls(tuple(FileReceipt(**f) for f in value["files"]))


@dataclass(frozen=True, slots=True)
class MatrixReceipt:
    """One matrix of a staged block.

    ``dtype`` is that of the staged values, ``integral`` whether they are non-negative whole numbers up to 2**53,
    ``largest`` the largest absolute value, ``total`` and ``kept`` the sums before and after streamlining.
    """

    nnz: int
    dtype: str
    integral: bool
    largest: float
    total: float
    kept: float


@dataclass(frozen=True, slots=True)
class BlockReceipt:
    """A staged block: its matrices by name, and the files of the dataset that could be written at once."""

    matrices: Mapping[str, MatrixReceipt]
    files: tuple[FileReceipt, ...] = field(default=())

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> BlockReceipt:
        """Read back what ``dataclasses.asdict`` made."""
        matrices = {name: MatrixReceipt(**m) for name, m in value["matrices"].items()}
        return cls(matrices, tuple(FileReceipt(**f) for f in value["files"]))


def with_receipt(location: StoreLocation, kind: type[R], work: Callable[[], R]) -> R:
    """The receipt at the location, or that of the work, which is then done and its receipt left there, last of all."""
    try:
        return kind.from_dict(json.loads(location.read()))
    except StoreNotFoundError:
        receipt = work()
    location.write(json.dumps(dataclasses.asdict(receipt)).encode())
    return receipt


def write_file(dataset: StoreLocation, path: str, data: bytes) -> FileReceipt:
    """Write a file of a dataset."""
    (dataset / path).write(data)
    return FileReceipt(path, len(data), hashlib.sha256(data).hexdigest())
