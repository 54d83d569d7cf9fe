"""C functions of libraries that are installed anyway, by their addresses: compiled loops call them without the GIL.

numcodecs and google-crc32c hand the GIL back and forth, or keep it, with every chunk; on two threads that costs as much
as decoding. Their own C libraries are in the very files that Python loads of them, and say all that has to be known.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import NamedTuple

__all__ = ["Decoders", "find_decoders"]


class Decoders(NamedTuple):
    """Addresses of ``blosc_decompress_ctx``, ``blosc_getitem`` and ``crc32c_extend``."""

    decompress: int
    getitem: int
    crc32c: int


@cache
def find_decoders() -> Decoders | None:
    """The functions that decode, or ``None`` where the libraries were built so that these can't be seen from outside.

    Sources: blosc.h of c-blosc 1, crc32c.h of google/crc32c.
    """
    try:
        blosc, crc32c = (_library(name) for name in ("numcodecs.blosc", "google_crc32c._crc32c"))
        return Decoders(
            _address(blosc.blosc_decompress_ctx), _address(blosc.blosc_getitem), _address(crc32c.crc32c_extend)
        )
    except (ImportError, OSError, AttributeError):
        return None


def _library(module: str) -> ctypes.CDLL:
    return ctypes.CDLL(importlib.import_module(module).__file__)


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    if address is None:
        raise AttributeError("a function without an address")
    return address
