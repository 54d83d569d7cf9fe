"""What a library raises on damaged or foreign files, as an error that names the file and the part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

from daodask.errors import DaodaskError, SourceError
from daodask.storage import StoreLocation

__all__ = ["Reading", "reading"]

#: Guards what is done within: called with what is read, for the message.
Reading: TypeAlias = Callable[[str], AbstractContextManager[None]]


@contextlib.contextmanager
def reading(location: StoreLocation, what: str, kind: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn ``errors`` into a :class:`SourceError`; a lack of memory too, as a damaged file may ask for any amount.

    Parameters
    ----------
    location
        What is read.
    what
        The part of it.
    kind
        What it is expected to be, such as ``"HDF5 file"``.
    errors
        What the library raises.
    """
    try:
        yield
    except (ConnectionError, TimeoutError, DaodaskError):
        raise  # The network's fault, not the file's: whoever retries must be able to tell. Or it is said already.
    except MemoryError as error:
        raise SourceError(
            f"expected {what} of {location} to fit into memory, which it does not: {error}; if that is more than it "
            "should hold, it is damaged; if not, use smaller blocks (layout: block_rows) or a larger worker"
        ) from error
    except errors as error:
        reason = str(error.args[-1]) if error.args else type(error).__name__
        raise SourceError(
            f"expected a whole {kind} at {location}, but {what} can't be read: {reason}; "
            "check that it is one, that its transfer was completed and that nobody is still writing it"
        ) from error
