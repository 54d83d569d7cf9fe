"""A file system in memory that writes down what is asked of it, so that tests can count requests and bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

__all__ = ["PROTOCOL", "RecordingFileSystem", "Request", "recording"]

#: What is at ``memory://x`` is at ``recording://x`` too.
PROTOCOL: Final = "recording"


@dataclass(frozen=True, slots=True)
class Request:
    """Something that a file system was asked for.

    Parameters
    ----------
    kind
        ``"read"``, ``"list"``, ``"info"`` or ``"write"``.
    path
        Of the file or directory, without protocol.
    n_bytes
        Bytes that were read or written.
    """

    kind: str
    path: str
    n_bytes: int = 0

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class RecordingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """The files of fsspec's memory file system; each range that is read counts as a request of its own."""

    protocol = PROTOCOL
    requests: ClassVar[list[Request]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace(f"{PROTOCOL}://", "memory://"))

    def ls(self, path: Any, detail: bool = True, **kwargs: Any) -> Any:
        """List a directory."""
        self.write_down("list", path)
        return super().ls(path, detail=detail, **kwargs)

    def info(self, path: Any, **kwargs: Any) -> Any:
        """Size and kind of a file."""
        self.write_down("info", path)
        return super().info(path, **kwargs)

    def cat_file(self, path: Any, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Read a file or a range of it."""
        with MemoryFileSystem().open(self._strip_protocol(path)) as file:
            data: bytes = file.getvalue()[start:end]
        self.write_down("read", path, len(data))
        return data

    def pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file."""
        self.write_down("write", path, len(value))
        super().pipe_file(path, value, mode=mode, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        return _RecordedFile(self, path, file.getvalue()) if mode == "rb" else file

    def write_down(self, kind: str, path: Any, n_bytes: int = 0) -> None:
        """Keep a request."""
        RecordingFileSystem.requests.append(Request(kind, self._strip_protocol(path).lstrip("/"), n_bytes))


class _RecordedFile(MemoryFile):  # type: ignore[misc]
    """An open file whose reads are requests."""

    def __init__(self, fs: RecordingFileSystem, path: str, data: bytes) -> None:
        super().__init__(None, path, data)
        self._recorder = fs

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = super().read(size)
        self._recorder.write_down("read", self.path, len(data))
        return data


fsspec.register_implementation(PROTOCOL, RecordingFileSystem, clobber=True)


@contextlib.contextmanager
def recording() -> Iterator[list[Request]]:
    """What is asked of ``recording://`` within the ``with``, in order."""
    before, RecordingFileSystem.requests = RecordingFileSystem.requests, []
    try:
        yield RecordingFileSystem.requests
    finally:
        RecordingFileSystem.requests = before
