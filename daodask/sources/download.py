"""A worker's own copy of a study, for who would rather pay for one transfer than for many requests."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field

from fsspec import AbstractFileSystem

from daodask.errors import SourceError
from daodask.storage import StoreLocation

__all__ = ["LocalCopy", "downloaded", "origin_of"]

#: Share of the free space that a copy may take.
_MOST_OF_FREE = 0.9


class _Directory:
    """A temporary directory that is gone when nothing refers to it any more, or its process ends."""

    def __init__(self) -> None:
        # The variable is Dask's setting of where workers keep what they spill.
        parent = os.environ.get("DASK_TEMPORARY_DIRECTORY") or tempfile.gettempdir()
        self.path = tempfile.mkdtemp(prefix="daodask-source-", dir=parent)
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:  # and not a child that was forked off
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True, eq=False)
class LocalCopy(StoreLocation):
    """A copy that stands for its original: it is called by that one's name, and so is its fingerprint.

    The copy is there for as long as this location is referred to.
    """

    origin: StoreLocation = field(default_factory=lambda: StoreLocation(""))
    directory: _Directory | None = None

    def __str__(self) -> str:
        return self.origin.url

    def _resolve(self) -> tuple[AbstractFileSystem, str]:
        # Opened as any other location: those that were resolved are remembered, and this one would never be let go.
        plain = StoreLocation(self.url)
        return plain.fs, plain.path


def origin_of(location: StoreLocation) -> StoreLocation:
    """What a copy was made of; any other location as it is."""
    return location.origin if isinstance(location, LocalCopy) else location


def downloaded(location: StoreLocation) -> LocalCopy:
    """Copy a file or directory into a temporary directory of this machine (computes).

    Raises
    ------
    SourceError
        Nothing is there, there is no room for it, or it changes meanwhile.
    """
    files = location.files()
    if not files:
        raise SourceError(f"expected a study at {location}, found nothing; check the path")
    directory = _Directory()
    n_bytes, free = sum(file.size for file in files), shutil.disk_usage(directory.path).free
    if n_bytes > free * _MOST_OF_FREE:
        raise SourceError(
            f"expected room for the {n_bytes:,} bytes of {location} in {directory.path}, got {free:,} bytes free; set "
            "TMPDIR or DASK_TEMPORARY_DIRECTORY to a larger disk, or read it where it is (download: false)"
        )
    target = os.path.join(directory.path, location.name)
    for file in files:
        local = os.path.join(target, file.path) if file.path else target
        os.makedirs(os.path.dirname(local), exist_ok=True)
        location.fs.get_file(f"{location.path}/{file.path}" if file.path else location.path, local)
        if os.path.getsize(local) != file.size:
            raise SourceError(
                f"expected {file.size:,} bytes of {location / file.path}, got {os.path.getsize(local):,}; "
                "build again when nobody writes to it any more"
            )
    return LocalCopy(target, origin=location, directory=directory)
