"""What studies are read from: each format is a :class:`~daodask.sources.base.Source`, opened by its address.

Another format is added by whoever installs a package with an entry point of the group ``daodask.sources``, whose name
is the format's and which loads what opens it: a callable that takes a location (and, as keywords, the ``options:`` of
the build file) and returns a source. :func:`register_source` does the same for this process alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, TypeAlias

from daodask.errors import DaodaskError, SourceError, suggest
from daodask.format.spec import CHECKSUMS, SNAPSHOTS
from daodask.sources.base import Coordinates, Fingerprint, PartedSource, Parts, Source, SourceAddress
from daodask.sources.download import downloaded
from daodask.sources.fingerprint import fingerprint_location, stamp_of
from daodask.storage import StoreLocation

__all__ = [
    "FORMATS",
    "Coordinates",
    "Fingerprint",
    "PartedSource",
    "Parts",
    "Source",
    "SourceAddress",
    "detect_format",
    "fingerprint_location",
    "known_formats",
    "open_source",
    "register_source",
]

#: What opens a study: takes its location and options.
Opener: TypeAlias = Callable[..., Source]

_ENTRY_POINTS: Final = "daodask.sources"

#: Module and class of each format that is built in, imported late: h5py, zarr and anndata are slow to import.
FORMATS: Final[Mapping[str, str]] = {
    "h5ad": "daodask.sources.h5ad:H5adSource",
    "zarr": "daodask.sources.zarr:ZarrSource",
    "10x": "daodask.sources.tenx:TenxSource",
    "mtx": "daodask.sources.tenx:MtxSource",
    "loom": "daodask.sources.loom:LoomSource",
    "dao": "daodask.sources.dao:DaoSource",
    "dao_v1": "daodask.sources.dao_v1:DaoV1Source",
}

_registered: dict[str, Opener] = {}

_SUFFIXES: Final = ((".h5ad", "h5ad"), (".zarr", "zarr"), (".loom", "loom"), (".10x.h5", "10x"), (".h5", "10x"))
_ACCEPTED: Final = (
    "a file named *.h5ad, *.loom, *.10x.h5 or *.h5 (10x HDF5), an AnnData zarr directory (*.zarr), a dataset of a "
    "daodask store, one of DAO v1, or a directory with matrix.mtx or matrix.mtx.gz"
)


def register_source(name: str, opener: Opener) -> None:
    """Add a format to this process, under the name that a build file has for it.

    Workers of a cluster are other processes: there the format needs to be installed, by an entry point.

    Parameters
    ----------
    name
        Of the format.
    opener
        Takes a :class:`~daodask.storage.StoreLocation` and, as keywords, the study's ``options:``; returns a
        :class:`Source`. A class is one.

    Raises
    ------
    SourceError
        A format that is built in has the name.
    """
    if name in FORMATS:
        raise SourceError(f"expected a name that no built-in format has, got {name!r}; choose another")
    _registered[name] = opener


def known_formats() -> tuple[str, ...]:
    """Names of all formats: built in, registered here, and installed."""
    return tuple(dict.fromkeys([*FORMATS, *_registered, *(e.name for e in entry_points(group=_ENTRY_POINTS))]))


def detect_format(location: StoreLocation) -> str:
    """The format of a study, by its name; directories are told by the files in them.

    Raises
    ------
    SourceError
        The name tells no known format.
    """
    name = location.name.lower()
    for suffix, format_ in _SUFFIXES:
        if name.endswith(suffix):
            return format_
    if not location.exists():
        raise SourceError(f"expected a study at {location}, found nothing; check the path")
    found = _directory_format(location)
    if found:
        return found
    raise SourceError(
        f"expected {_ACCEPTED}, got {location}; rename it, or say its format: {', '.join(known_formats())}"
    )


def _directory_format(location: StoreLocation) -> str:
    """Format of a directory by what is in it, empty where nothing tells."""
    names = set(location.list())
    if not names.isdisjoint({"matrix.mtx", "matrix.mtx.gz"}):
        return "mtx"
    if {"obs", "var"} <= names and not names.isdisjoint({"zarr.json", ".zgroup", ".zmetadata"}):
        return "dao" if {CHECKSUMS, "obs.parquet"} <= names else "zarr"
    if {"zarr", "parquet"} <= names:
        return "dao_v1"
    if SNAPSHOTS in names:
        raise SourceError(f"expected one study at {location}, got a daodask store; write  - store: {location}  instead")
    nested = [name for name in sorted(names) if {"zarr", "parquet"} <= set((location / name).list())]
    if nested:
        raise SourceError(
            f"expected one study at {location}, got {len(nested)} datasets of DAO v1; give each a study of its own, "
            f"the first with source: {location / nested[0]}"
        )
    return ""


def open_source(address: SourceAddress | Source) -> Source:
    """Open a study by its address; a source that is already open passes through.

    Each process keeps its last few sources open, so that the many blocks of a study share one handle and its cached
    parts. One that has changed on disk since is opened anew.

    Raises
    ------
    SourceError
        There is no such format, it does not take the options, nothing is there, or what is there is not of the format.
    """
    if not isinstance(address, SourceAddress):
        return address
    _opener(address.format)
    stamp = stamp_of(address)
    with _opening:
        if _stamps.get(address, stamp) != stamp:
            # HDF5 takes a file that it has still open for what it was, whatever has been written into it since.
            _open.cache_clear()
        _stamps[address] = stamp
        return _open(address, stamp)


# Few, as some formats keep a whole matrix. The lock keeps threads from opening, and then parsing, the same study twice.
_opening = threading.Lock()
_stamps: Final[dict[SourceAddress, str]] = {}


@functools.lru_cache(maxsize=4)
def _open(address: SourceAddress, _stamp: str) -> Source:
    """The stamp is there as a part of the cache's key."""
    opener = _opener(address.format)
    location = downloaded(address.location) if address.download else address.location
    try:
        source = opener(location, **dict(address.options))
    except TypeError as error:
        if not address.options:
            raise
        given = ", ".join(name for name, _ in address.options)
        raise SourceError(f"expected options that format {address.format!r} takes, got {given}: {error}") from error
    if not isinstance(source, Source):
        raise SourceError(f"expected format {address.format!r} to open a Source, got {type(source).__name__}")
    return source


def _opener(format_: str) -> Opener:
    if format_ in _registered:
        return _registered[format_]
    built_in = FORMATS.get(format_)
    points = (
        [EntryPoint(format_, built_in, _ENTRY_POINTS)] if built_in else entry_points(group=_ENTRY_POINTS, name=format_)
    )
    for point in points:
        return _load(point)
    raise SourceError(f"expected a known format, got {format_!r} ({suggest(format_, known_formats())})")


def _load(point: EntryPoint) -> Opener:
    try:
        opener: Opener = point.load()
    except DaodaskError:
        raise
    except (ImportError, AttributeError) as error:
        raise SourceError(
            f"expected {point.value} to be importable, as format {point.name!r} is there: {error}"
        ) from error
    return opener
