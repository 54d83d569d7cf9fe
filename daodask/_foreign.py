"""C functions of libraries that are there anyway, by their addresses: compiled loops call them without the GIL.

numcodecs and google-crc32c hand the GIL back and forth, or keep it, with every chunk; on two threads that costs as much
as decoding. Their own C libraries are in the very files that Python loads of them, and say all that has to be known.
Local files are read there, too: a chunk that goes through a buffer of its size is still in cache when it is decoded.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from functools import cache
from typing import NamedTuple

__all__ = ["Decoders", "find_decoders"]


class Decoders(NamedTuple):
    """Addresses of ``blosc_decompress_ctx``, ``blosc_getitem``, ``crc32c_extend`` and the system's ``pread``."""

    decompress: int
    getitem: int
    crc32c: int
    pread: int


@cache
def find_decoders() -> Decoders | None:
    """The functions that decode, or ``None`` where the libraries were built so that these can't be seen from outside.

    Sources: blosc.h of c-blosc 1, crc32c.h of google/crc32c, POSIX.1-2017 (with a 64-bit ``off_t``).
    """
    try:
        blosc, crc32c = (_library(name) for name in ("numcodecs.blosc", "google_crc32c._crc32c"))
        functions = (blosc.blosc_decompress_ctx, blosc.blosc_getitem, crc32c.crc32c_extend, ctypes.CDLL(None).pread)
        return Decoders(*map(_address, functions)) if sys.maxsize > 2**32 else None
    except (ImportError, OSError, AttributeError, TypeError):
        return None


def _library(module: str) -> ctypes.CDLL:
    return ctypes.CDLL(importlib.import_module(module).__file__)


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    if address is None:
        raise AttributeError("a function without an address")
    return address
