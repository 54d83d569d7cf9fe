"""Where bytes are: a URL with options, opened as an fsspec file system, and the one exclusive write that commits.

A :class:`StoreLocation` is a small value that travels in tasks; file systems are opened by whoever needs one and cached
by fsspec. Credentials come from the environment of the process that opens it and are never part of the value.

Requests to a bucket are repeated by gcsfs and s3fs themselves, with growing pauses, where a server is busy (429, 5xx),
silent or cut off. What is left after that is an :class:`OSError` here, whatever the library calls it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import re
import secrets
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.config import conf
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from daodask.buffers import reused_empty
from daodask.credentials import refuse_credentials
from daodask.errors import CorruptStoreError, DependencyError, SpecError, StoreNotFoundError
from daodask.waiting import side_by_side

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

__all__ = ["StoreLocation", "StoredFile", "coalesce", "is_temporary"]

#: Bytes of a file after which the disk is told to begin with them.
_FLUSHED_BYTES: Final = 2**24

#: An empty directory may be removed while a file is about to be put into it; not many times in a row.
_MOST_TIDIED: Final = 5

#: What an interrupted write leaves on a local disk, in the directory of the file that it was to become.
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")

#: What file systems call the time when a file was last written.
_TIMES: Final = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")

#: Requests of one call that are under way at once, unless an option or fsspec's configuration says otherwise.
_MOST_REQUESTS: Final = 64

#: Seconds without a byte after which a request to GCS is repeated, as S3's client has it. gcsfs itself waits five
#: minutes for all of an answer, which a large file may take, and then gives up.
_SILENCE: Final = 60.0

#: What buckets are opened with unless it is said otherwise. Listings are not remembered, as others write too; S3's
#: client has ten connections by default, which at 30 ms of latency is a quarter of what 64 do.
_BUCKET_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gcs": {"use_listings_cache": False},
    "gs": {"use_listings_cache": False},
    "s3": {"use_listings_cache": False, "config_kwargs": {"max_pool_connections": _MOST_REQUESTS}},
    "s3a": {"use_listings_cache": False, "config_kwargs": {"max_pool_connections": _MOST_REQUESTS}},
}

#: What libraries raise of servers and connections that is no OSError, by the module that has it.
_FOREIGN_ERRORS: Final = (
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "ChecksumError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("obstore.exceptions", "BaseError"),
)
#: What servers say of a range that begins where the file has ended.
_BEYOND: Final = re.compile(r"\b416\b|range is not satisfiable|InvalidRange", re.IGNORECASE)

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

    Raises
    ------
    SpecError
        URL or options hold a credential.
    """

    url: str
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.options or "@" in self.url or "?" in self.url:
            refuse_credentials(self.url, dict(self.options))

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
        with _told(self.url):
            return bool(self.fs.exists(self.path))

    def read(self) -> bytes:
        """All bytes of this file, in one request.

        Raises
        ------
        StoreNotFoundError
            There is no such file.
        """
        fs, path = self._resolve()
        # s3fs would ask for the size first, so as to read large files in parts.
        options = {"max_concurrency": 1} if _is(fs, "s3") else {}
        try:
            with _told(self.url):
                data: bytes = fs.cat_file(path, **options)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise StoreNotFoundError(f"expected a file at {self.url}, found none") from error
        return data

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of this file, in one request; fewer where it ends before."""
        with _told(self.url):
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
            with _told(self.url):
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
        read = self._request(requests)
        for data, (path, start, stop) in zip(read, requests, strict=True):
            _check_length(len(data), f"{self.url}/{path}", start, stop)
        return np.frombuffer(read[0] if len(read) == 1 else b"".join(read), dtype=np.uint8)

    def read_ends(self, paths: Sequence[str], length: int | None = None) -> list[bytes | None]:
        """The last bytes of files below this location, each in one request, and all at once (computes).

        Nobody needs to know how long the files are.

        Parameters
        ----------
        paths
            Of the files.
        length
            Bytes of each; all by default, and where a file has fewer.

        Returns
        -------
        list
            The bytes; ``None`` of a file that is not there.
        """
        if isinstance(self.fs, LocalFileSystem):
            return [_local_end(f"{self.path}/{path}", length) for path in paths]
        # Of a negative start without an end fsspec makes a suffix.
        return self._request([(path, 0 if length is None else -length, None) for path in paths], absent=True)

    def _request(self, requests: Sequence[tuple[str, int, int | None]], *, absent: bool = False) -> list[Any]:
        """Bytes of ranges, many requests at once; ``None`` of a file that is not there, where that may be."""
        fs, path = self._resolve()
        if _is_obstore(fs):
            return self._request_of_obstore(requests, absent=absent)
        paths, starts, stops = ([*part] for part in zip(*((f"{path}/{p}", a, b) for p, a, b in requests), strict=True))
        known = not fs.async_impl or getattr(fs, "batch_size", None) or "nofiles_gather_batch_size" in conf
        options = {} if known else {"batch_size": _MOST_REQUESTS}
        read: list[Any] = [*fs.cat_ranges(paths, starts, stops, on_error="return", **options)]
        for i, (data, (part, _, _)) in enumerate(zip(read, requests, strict=True)):
            if absent and isinstance(data, FileNotFoundError):
                read[i] = None
            elif isinstance(data, Exception):
                read[i] = _of_failed(data, f"{self.url}/{part}")
        return read

    def _request_of_obstore(self, requests: Sequence[tuple[str, int, int | None]], *, absent: bool) -> list[Any]:
        """As :meth:`_request`, of an implementation that takes no open ranges, and raises what it should return."""
        fs, path = self._resolve()

        def closed(request: tuple[str, int, int | None]) -> tuple[str, int, int] | None:
            part, start, stop = request
            if stop is not None:
                return part, start, stop
            try:
                with _told(f"{self.url}/{part}"):
                    size = int(fs.size(f"{path}/{part}"))
            except FileNotFoundError:
                return None
            return part, max(0, size + start) if start < 0 else start, size

        known = side_by_side(closed, requests, remote=True)
        if None in known and not absent:
            raise CorruptStoreError(f"expected a file at {self.url}/{requests[known.index(None)][0]}, found none")
        there = [part for part in known if part is not None and part[2] > part[1]]
        try:
            with _told(self.url):
                data = iter(
                    fs.cat_ranges(
                        [f"{path}/{p}" for p, _, _ in there], [*(r[1] for r in there)], [*(r[2] for r in there)]
                    )
                    if there
                    else ()
                )
        except FileNotFoundError as error:
            raise CorruptStoreError(f"expected files below {self.url}, found one less: {error}; restore it") from error
        return [None if part is None else next(data) if part[2] > part[1] else b"" for part in known]

    def open_local(self) -> contextlib.AbstractContextManager[int]:
        """The descriptor of a file on a disk of this machine.

        Raises
        ------
        CorruptStoreError
            There is no such file, and there should be one.
        """
        return _opened(self.path)

    def write(self, data: bytes | Iterable[bytes | memoryview], *, flush: bool = True) -> None:
        """Write a file that nothing refers to yet; an interrupted write leaves no visible half of it.

        In a bucket this is one PUT, however large the file is.

        Parameters
        ----------
        data
            The bytes, or their parts, which a local file is written from as they come, without joining them.
        flush
            Whether a local file is on the disk when this returns. Otherwise it outlives any process, but perhaps not
            a machine that goes down.
        """
        fs, path = self._resolve()
        if isinstance(fs, LocalFileSystem):
            with _local_temporary(path, [data] if isinstance(data, bytes) else data, flush=flush) as temporary:
                os.replace(temporary, path)
        else:
            whole = data if isinstance(data, bytes) else b"".join(data)
            # Longer files would be cut into parts of 50 MB, each a request that is paid for.
            options = {"chunksize": len(whole) + 1} if _is(fs, "gs", "s3") else {}
            with _told(self.url):
                fs.pipe_file(path, whole, **options)

    def create(self, data: bytes) -> bool:
        """Write a file only if none is there: of several racing writers exactly one gets ``True``.

        This is the commit. On GCS it is ``ifGenerationMatch=0``, on S3 ``If-None-Match: *`` (both through fsspec's
        ``mode="create"``); on a local disk a flushed temporary file is hard-linked to its name, so that a crash leaves
        no half file under it.

        Where a bucket's answer gets lost, and the repeated request is refused for what the first one wrote, nobody gets
        ``True``: who asks must be content to find there what it would have written.

        Raises
        ------
        DependencyError
            The file system can't do that.
        """
        fs, path = self._resolve()
        if isinstance(fs, LocalFileSystem):
            return _create_local(path, data)
        if _is_obstore(fs):  # it would write over what is there, and say that it had not
            raise DependencyError(
                f"{self.url}: expected a file system that creates a file once, got obstore's, which is for reading; "
                f"write with gcsfs or s3fs, in a process that has not registered obstore"
            )
        try:
            with _told(self.url), _MEMORY if isinstance(fs, MemoryFileSystem) else contextlib.nullcontext():
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError:
            # s3fs reports a lost race (HTTP 412 or 409) as a bare OSError. What is there decides who won.
            with contextlib.suppress(StoreNotFoundError):
                return self.read() == data
            raise
        return True

    def list(self) -> tuple[str, ...]:
        """Names directly below this directory, sorted; empty where it does not exist."""
        fs, path = self._resolve()
        try:
            with _told(self.url):
                entries = fs.ls(path, detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted(posixpath.basename(str(e).rstrip("/")) for e in entries))

    def files(self) -> tuple[StoredFile, ...]:
        """All files below this directory (or this file itself), by their paths; none where it does not exist."""
        fs, root = self._resolve()
        fs.invalidate_cache(root)
        with _told(self.url):
            found = fs.find(root, detail=True)
        return tuple(
            StoredFile(path.removeprefix(root).lstrip("/"), int(facts.get("size") or 0), _modified(facts))
            # Of a file that is itself what was asked for fsspec finds the path alone.
            for path, facts in sorted((str(path), facts or fs.info(path)) for path, facts in found.items())
            if facts.get("type") != "directory"  # as SeaweedFS keeps them when they are empty
        )

    def remove(self) -> None:
        """Remove a file or a directory with all that is below it; nothing happens where there is none."""
        fs, path = self._resolve()
        with contextlib.suppress(FileNotFoundError), _told(self.url):
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
        asynchronous, path = fsspec.core.url_to_fs(self.url, **_options(self), asynchronous=True)
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
        fs, path = fsspec.core.url_to_fs(location.url, **_options(location))
    except ImportError as error:
        raise DependencyError(f"{location}: {error}; install what opens such URLs (for s3: daodask[s3])") from error
    except ValueError as error:
        raise SpecError(f"{location}: expected a path or a URL that fsspec can open: {error}") from error
    return fs, str(path)


def _options(location: StoreLocation) -> dict[str, Any]:
    """The options of a location over what buckets are opened with by default, and fsspec's configuration between."""
    protocol = location.url.partition("://")[0]
    options = dict(location.options)
    if protocol not in _BUCKET_DEFAULTS or not _is_own(fsspec.get_filesystem_class(protocol)):
        return options
    configured = conf.get(protocol, {})
    for name, value in _BUCKET_DEFAULTS[protocol].items():
        if isinstance(value, Mapping):
            options[name] = {**value, **configured.get(name, {}), **options.get(name, {})}
        elif name not in configured:
            options.setdefault(name, value)
    if protocol in ("gcs", "gs") and "requests_timeout" not in {**configured, **options}:
        from aiohttp import ClientTimeout

        options["requests_timeout"] = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return options


def _is(fs: fsspec.AbstractFileSystem, *protocols: str) -> bool:
    """Whether a file system is fsspec's own of a protocol, whose options are known; obstore's has others."""
    own = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return _is_own(type(fs)) and not set(protocols).isdisjoint(own)


def _is_obstore(fs: fsspec.AbstractFileSystem) -> bool:
    return any(base.__module__.partition(".")[0] == "obstore" for base in type(fs).__mro__)


def _is_own(implementation: type[fsspec.AbstractFileSystem]) -> bool:
    return implementation.__module__.partition(".")[0] in ("gcsfs", "s3fs")


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Make of what libraries raise of servers and connections an OSError that says where."""
    try:
        yield
    except _foreign_errors() as error:
        raise _as_os_error(error, where) from error


def _foreign_errors() -> tuple[type[Exception], ...]:
    """Errors of the libraries that are loaded, as no others can be raised."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN_ERRORS)
    return tuple(f for f in found if f is not None)


def _as_os_error(error: Exception, where: str) -> OSError:
    return OSError(
        f"{where}: the request failed, also when repeated: {type(error).__name__}: {error}; check the URL, the "
        f"connection and the credentials that this process finds in its environment"
    )


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
    out = reused_empty(sum(stop - start for _, start, stop in requests), np.uint8)
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


def _of_failed(error: Exception, where: str) -> bytes:
    """What a failed request for a range got: nothing where the file ends before it; else the error is raised.

    Raises
    ------
    CorruptStoreError
        There is no such file.
    OSError
        Anything else went wrong.
    """
    if isinstance(error, FileNotFoundError):
        raise CorruptStoreError(f"expected a file at {where}, found none; restore it") from error
    if _BEYOND.search(str(error)):
        return b""
    if isinstance(error, _foreign_errors()):
        raise _as_os_error(error, where) from error
    raise error


def _local_end(path: str, length: int | None) -> bytes | None:
    """The last bytes of a local file, all of it where it has fewer; ``None`` where there is none."""
    try:
        with open(path, "rb") as file:
            if length is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - length))
            return file.read()
    except FileNotFoundError:
        return None


def _check_length(got: int, where: str, start: int, stop: int) -> None:
    if got != stop - start:
        raise CorruptStoreError(f"{where}: expected bytes {start} to {stop}, got {got} of them; the file is short")


@contextlib.contextmanager
def _local_temporary(path: str, parts: Iterable[bytes | memoryview], *, flush: bool = True) -> Iterator[str]:
    """Write a temporary file beside ``path``; it is gone at the end unless it was moved away."""
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".{os.path.basename(path)}.{secrets.token_hex(8)}.tmp")
    try:
        with _open_new(directory, temporary) as file:
            if flush:
                _write_through(file, parts)
            else:
                file.writelines(parts)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write_through(file: BinaryIO, parts: Iterable[bytes | memoryview]) -> None:
    """Write parts, until all is on the disk, which does its work while the next parts are made."""
    written, flushed = 0, 0
    with ThreadPoolExecutor(1, "daodask-flush") as flusher:
        flushing: Future[None] | None = None
        for part in parts:
            written += file.write(part)
            if written - flushed > _FLUSHED_BYTES and (flushing is None or flushing.done()):
                if flushing is not None:
                    flushing.result()  # an error is told once
                flushed, flushing = written, flusher.submit(os.fsync, file.fileno())
        if flushing is not None:
            flushing.result()
    file.flush()
    os.fsync(file.fileno())


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
