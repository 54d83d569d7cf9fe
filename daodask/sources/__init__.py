"""What studies are read from: each format is a :class:`~daodask.sources.base.Source`, opened by its address."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Final

from daodask.errors import SourceError, suggest
from daodask.sources.base import Fingerprint, Source, SourceAddress
from daodask.sources.fingerprint import stamp_location
from daodask.storage import StoreLocation

__all__ = ["FORMATS", "Fingerprint", "Source", "SourceAddress", "detect_format", "open_source"]


def _open_h5ad(location: StoreLocation) -> Source:
    from daodask.sources.h5ad import H5adSource

    return H5adSource(location)


def _open_tenx(location: StoreLocation) -> Source:
    from daodask.sources.tenx import TenxSource

    return TenxSource(location)


def _open_mtx(location: StoreLocation) -> Source:
    from daodask.sources.tenx import MtxSource

    return MtxSource(location)


#: Format names and what opens them. Openers import late, as h5py and anndata are slow to import.
FORMATS: Final[dict[str, Callable[[StoreLocation], Source]]] = {
    "h5ad": _open_h5ad,
    "10x": _open_tenx,
    "mtx": _open_mtx,
}

_SUFFIXES: Final = ((".h5ad", "h5ad"), (".10x.h5", "10x"), (".h5", "10x"))
_ACCEPTED: Final = "a file named *.h5ad, *.10x.h5 or *.h5 (10x HDF5), or a directory with matrix.mtx or matrix.mtx.gz"


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
    if not {"matrix.mtx", "matrix.mtx.gz"}.isdisjoint(location.list()):
        return "mtx"
    raise SourceError(f"expected {_ACCEPTED}, got {location}; rename it, or say its format: {', '.join(FORMATS)}")


def open_source(address: SourceAddress | Source) -> Source:
    """Open a study by its address; a source that is already open passes through.

    Each process keeps its last few sources open, so that the many blocks of a study share one handle and its cached
    parts. One that has changed on disk since is opened anew.

    Raises
    ------
    SourceError
        There is no such format, nothing is there, or what is there is not of the format.
    """
    if not isinstance(address, SourceAddress):
        return address
    if address.format not in FORMATS:
        raise SourceError(f"expected a known format, got {address.format!r} ({suggest(address.format, FORMATS)})")
    stamp = stamp_location(address.location)
    with _opening:
        return _open(address, stamp)


# Few, as some formats keep a whole matrix. The lock keeps threads from opening, and then parsing, the same study twice.
_opening = threading.Lock()


@functools.lru_cache(maxsize=4)
def _open(address: SourceAddress, _stamp: str) -> Source:
    """The stamp is there as a part of the cache's key."""
    return FORMATS[address.format](address.location)
