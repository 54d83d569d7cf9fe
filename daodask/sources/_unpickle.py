"""The one place where a pickle is read: of plain values; an array is passed over, and anything else refused."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from daodask.errors import SourceError

__all__ = ["restricted_loads"]

#: What a damaged or hostile pickle can make of the machine that runs it, beyond what is refused by name.
_ERRORS: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Passed:
    """In place of an array, whose content nobody asks for: what its pickle says is passed over."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Dtype:
    """In place of a dtype, of which a scalar needs kind, size and byte order."""

    def __init__(self, kind: str, *_: object) -> None:
        if not isinstance(kind, str):
            raise TypeError(f"expected the name of a dtype, got {kind!r:.40}")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(kind: _Dtype, data: bytes) -> Any:
    if kind.dtype.kind not in "biufSU" or len(data) != kind.dtype.itemsize:
        raise ValueError(f"expected the bytes of one {kind.dtype}, got {data!r:.40}")
    return np.frombuffer(data, dtype=kind.dtype)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"expected bytes as latin1, got {encoding!r}")
    return text.encode("latin1")


_NUMPY: Final[Mapping[str, Callable[..., Any]]] = {
    "multiarray._reconstruct": _Passed,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _Passed,
}
_ALLOWED: Final[Mapping[str, Callable[..., Any]]] = {
    **{f"numpy.{core}.{name}": function for core in ("core", "_core") for name, function in _NUMPY.items()},
    "numpy.ndarray": _Passed,
    "numpy.dtype": _Dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1,
    **{f"{builtins}.set": set for builtins in ("builtins", "__builtin__")},
    **{f"{builtins}.frozenset": frozenset for builtins in ("builtins", "__builtin__")},
}


class _Unpickler(pickle.Unpickler):
    """Finds no name but those of :data:`_ALLOWED`, imports nothing and resolves no persistent id."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise _RefusedError(f"{module}.{name}")
        return found


class _RefusedError(Exception):
    """The name that a pickle may not ask for."""


def restricted_loads(data: bytes, where: object) -> Any:
    """Unpickle plain values and containers of them (computes).

    The names that NumPy's scalars and arrays need are found as stand-ins of this module, which know scalars and pass
    over arrays. Nothing is imported: whatever else a pickle names is refused before it is called.

    Parameters
    ----------
    data
        The pickle.
    where
        Its file, for messages.

    Raises
    ------
    SourceError
        It names anything else, or is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except _RefusedError as error:
        raise SourceError(
            f"expected plain values and NumPy arrays in the pickle {where}, got {error}, which is refused as a "
            "pickle can run anything; remove the entry, or write the file again without it"
        ) from error
    except _ERRORS as error:
        raise SourceError(
            f"expected a whole pickle at {where}, which can't be read: {error!r:.200}; restore it"
        ) from error
