"""Where bytes are: a URL with options, opened as an fsspec file system, and the one exclusive write that commits.

A :class:`StoreLocation` is a small value that travels in tasks; file systems are opened by whoever needs one and cached
by fsspec. Credentials come from the environment of the process that opens it and are never part of the value.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from daodask.errors import CorruptStoreError, DependencyError, SpecError, StoreNotFoundError

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

__all__ = ["StoreLocation", "StoredFile", "coalesce", "is_temporary"]

#: An empty directory may be removed while a file is about to be put into it; not many times in a row.
_MOST_TIDIED: Final = 5

#: What an interrupted write leaves on a local disk, in the directory of the file that it was to become.
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")

#: What file systems call the time when a file was last written.
_TIMES: Final = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")

#: fsspec's memory file system looks whether a file is there and then writes it: another thread may come between.
_MEMORY = threading.Lock()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it: path below what was listed, bytes, and when it was written, where that is told."""

    path: str
    size: int
    modified: datetime | None


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """A URL and the file system options to open it with.

    Parameters
    ----------
    url
        Any fsspec URL (``gs://bucket/atlas``, ``s3://…``, ``memory://…``) or a local path.
    options
        fsspec options as sorted ``(name, value)`` pairs, so that the value is hashable. Use :meth:`parse` to pass a
        dict.
    """

    url: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(
        cls, url: str | os.PathLike[str] | StoreLocation, options: Mapping[str, Any] | None = None
    ) -> StoreLocation:
        """Make a location of what a user passes; a local path becomes absolute, as workers have other directories."""
        if isinstance(url, StoreLocation):
            return url
        text = os.fspath(url)
        if "://" not in text and "::" not in text:
            text = os.path.abspath(os.path.expanduser(text))
        elif text.startswith("file://"):
            text = os.path.abspath(text.removeprefix("file://"))
        return cls(text.rstrip("/") or "/", tuple(sorted((options or {}).items())))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, relative: str) -> StoreLocation:
        return StoreLocation(f"{self.url}/{relative}", self.options)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return posixpath.basename(self.url)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system; fsspec caches instances per options and process."""
        return self._resolve()[0]

    @property
    def path(self) -> str:
        """The path within :attr:`fs`."""
        return self._resolve()[1]

    def __hash__(self) -> int:
        # Options may hold dicts, such as the client_kwargs of S3.
        return hash(self.url)

    def _resolve(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return _file_system(self, os.getpid())

    @property
    def is_local(self) -> bool:
        """Whether the bytes are on a disk of this machine, so that libraries which need a real path can have one."""
        return isinstance(self.fs, LocalFileSystem)

    def exists(self) -> bool:
        """Whether a file or directory is there."""
        return bool(self.fs.exists(self.path))

    def read(self) -> bytes:
        """All bytes of this file.

        Raises
        ------
        StoreNotFoundError
            There is no such file.
        """
        try:
            data: bytes = self.fs.cat_file(self.path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise StoreNotFoundError(f"expected a file at {self.url}, found none") from error
        return data

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of this file, in one request."""
        data: bytes = self.fs.cat_file(self.path, start=start, end=stop)
        return data

    def size(self) -> int:
        """Bytes of this file.

        Raises
        ------
        CorruptStoreError
            There is no such file, and there should be one.
        """
        try:
            return int(self.fs.size(self.path))
        except FileNotFoundError as error:
            raise CorruptStoreError(f"expected a file at {self.url}, found none; restore it") from error

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> npt.NDArray[np.uint8]:
        """The bytes of ranges ``(path below this location, start, stop)``, one after another (computes).

        Neighbouring ranges are one request, and all requests go out at once.

        Raises
        ------
        CorruptStoreError
            A file is absent or ends before a range does.
        """
        requests = coalesce(ranges)
        if isinstance(self.fs, LocalFileSystem):
            return _pread(self.path, requests)
        paths = [f"{self.path}/{path}" for path, _, _ in requests]
        read = self.fs.cat_ranges(paths, [r[1] for r in requests], [r[2] for r in requests], on_error="return")
        for data, (path, start, stop) in zip(read, requests, strict=True):
            _check_whole(data, f"{self.url}/{path}", start, stop)
        return np.frombuffer(read[0] if len(read) == 1 else b"".join(read), dtype=np.uint8)

    def open_local(self) -> contextlib.AbstractContextManager[int]:
        """The descriptor of a file on a disk of this machine.

        Raises
        ------
        CorruptStoreError
            There is no such file, and there should be one.
        """
        return _opened(self.path)

    def write(self, data: bytes | Sequence[memoryview], *, flush: bool = True) -> None:
        """Write a file that nothing refers to yet; an interrupted write leaves no visible half of it.

        Parameters
        ----------
        data
            The bytes, or their parts, which a local file is written from without joining them.
        flush
            Whether a local file is on the disk when this returns. Otherwise it outlives any process, but perhaps not
            a machine that goes down.
        """
        fs, path = self._resolve()
        if isinstance(fs, LocalFileSystem):
            with _local_temporary(path, [data] if isinstance(data, bytes) else data, flush=flush) as temporary:
                os.replace(temporary, path)
        else:
            fs.pipe_file(path, data if isinstance(data, bytes) else b"".join(data))

    def create(self, data: bytes) -> bool:
        """Write a file only if none is there: of several racing writers exactly one gets ``True``.

        This is the commit. On GCS it is ``ifGenerationMatch=0``, on S3 ``If-None-Match: *`` (both through fsspec's
        ``mode="create"``); on a local disk a flushed temporary file is hard-linked to its name, so that a crash leaves
        no half file under it.
        """
        fs, path = self._resolve()
        if isinstance(fs, LocalFileSystem):
            return _create_local(path, data)
        try:
            with _MEMORY if isinstance(fs, MemoryFileSystem) else contextlib.nullcontext():
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError:
            # s3fs reports a lost race (HTTP 412 or 409) as a bare OSError. What is there decides who won.
            if fs.exists(path):
                return bool(fs.cat_file(path) == data)
            raise
        return True

    def list(self) -> tuple[str, ...]:
        """Names directly below this directory, sorted; empty where it does not exist."""
        fs, path = self._resolve()
        try:
            entries = fs.ls(path, detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted(posixpath.basename(str(e).rstrip("/")) for e in entries))

    def files(self) -> tuple[StoredFile, ...]:
        """All files below this directory (or this file itself), by their paths; none where it does not exist."""
        fs, root = self._resolve()
        fs.invalidate_cache(root)
        found = fs.find(root, detail=True)
        return tuple(
            StoredFile(path.removeprefix(root).lstrip("/"), int(facts.get("size") or 0), _modified(facts))
            # Of a file that is itself what was asked for fsspec finds the path alone.
            for path, facts in sorted((str(path), facts or fs.info(path)) for path, facts in found.items())
        )

    def remove(self) -> None:
        """Remove a file or a directory with all that is below it; nothing happens where there is none."""
        fs, path = self._resolve()
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    def remove_if_empty(self) -> None:
        """Remove a directory without anything in it; nothing happens where there is none, or where it is not empty."""
        fs, path = self._resolve()
        with contextlib.suppress(OSError):  # not empty, not there, or of a bucket, which has no directories
            if isinstance(fs, LocalFileSystem):
                os.rmdir(path)
            elif isinstance(fs, MemoryFileSystem):
                fs.rmdir(path)

    def zarr_store(self, *, read_only: bool = True) -> ZarrStore:
        """A zarr store rooted here."""
        from zarr.storage import FsspecStore, LocalStore

        fs, path = self._resolve()
        if isinstance(fs, LocalFileSystem):
            return LocalStore(path, read_only=read_only)
        if not fs.async_impl:
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            return FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=path, read_only=read_only)
        # A second instance, as zarr drives the file system from its own event loop.
        asynchronous, path = fsspec.core.url_to_fs(self.url, **dict(self.options), asynchronous=True)
        return FsspecStore(asynchronous, path=path, read_only=read_only)


def is_temporary(path: str) -> bool:
    """Whether a file of this path is a half one, which :meth:`StoreLocation.write` renames when it is whole."""
    return _TEMPORARY.fullmatch(posixpath.basename(path)) is not None


def _modified(facts: Mapping[str, Any]) -> datetime | None:
    """When a file was written, as its file system has it in one of many ways."""
    value = next((facts[name] for name in _TIMES if facts.get(name)), None)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


@lru_cache(maxsize=4096)
def _file_system(
    location: StoreLocation,
    process: int,  # noqa: ARG001  a forked process must not use its parent's connections
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Open the file system of a location; resolving a URL costs as much as reading a chunk, so it is done once."""
    try:
        fs, path = fsspec.core.url_to_fs(location.url, **dict(location.options))
    except ImportError as error:
        raise DependencyError(f"{location}: {error}; install what opens such URLs (for s3: daodask[s3])") from error
    except ValueError as error:
        raise SpecError(f"{location}: expected a path or a URL that fsspec can open: {error}") from error
    return fs, str(path)


def coalesce(ranges: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Ranges with those joined that follow each other in a file without a gap."""
    joined: list[tuple[str, int, int]] = []
    for path, start, stop in ranges:
        if joined and joined[-1][0] == path and joined[-1][2] == start:
            joined[-1] = (path, joined[-1][1], stop)
        else:
            joined.append((path, start, stop))
    return joined


def _pread(folder: str, requests: Sequence[tuple[str, int, int]]) -> npt.NDArray[np.uint8]:
    """Ranges of local files, straight into their places."""
    out = np.empty(sum(stop - start for _, start, stop in requests), dtype=np.uint8)
    view, position = out.data, 0
    for path, group in itertools.groupby(requests, key=lambda r: r[0]):
        where = f"{folder}/{path}"
        with _opened(where) as descriptor:
            for _, start, stop in group:
                _check_length(_fill(descriptor, start, view[position : position + stop - start]), where, start, stop)
                position += stop - start
    return out


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise CorruptStoreError(f"expected a file at {path}, found none; restore it") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fill(descriptor: int, start: int, out: memoryview) -> int:
    """Read until there is no room or nothing more: one call reads at most 2 GiB."""
    done = 0
    while done < len(out):
        got = os.preadv(descriptor, [out[done:]], start + done)
        if not got:
            break
        done += got
    return done


def _check_whole(data: bytes | Exception, where: str, start: int, stop: int) -> None:
    if isinstance(data, FileNotFoundError):
        raise CorruptStoreError(f"expected a file at {where}, found none; restore it") from data
    if isinstance(data, Exception):
        raise data
    _check_length(len(data), where, start, stop)


def _check_length(got: int, where: str, start: int, stop: int) -> None:
    if got != stop - start:
        raise CorruptStoreError(f"{where}: expected bytes {start} to {stop}, got {got} of them; the file is short")


@contextlib.contextmanager
def _local_temporary(path: str, parts: Sequence[bytes | memoryview], *, flush: bool = True) -> Iterator[str]:
    """Write a temporary file beside ``path``; it is gone at the end unless it was moved away."""
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".{os.path.basename(path)}.{secrets.token_hex(8)}.tmp")
    try:
        with _open_new(directory, temporary) as file:
            file.writelines(parts)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _open_new(directory: str, path: str) -> BinaryIO:
    """Open a new file in a directory that is made, and made again where another process has just tidied it away."""
    for _ in range(_MOST_TIDIED):
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(directory, exist_ok=True)
            return open(path, "xb")
    os.makedirs(directory, exist_ok=True)
    return open(path, "xb")


def _create_local(path: str, data: bytes) -> bool:
    with _local_temporary(path, [data]) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True
