"""The one error tree.

Every error is a :class:`DaodaskError` and also the builtin that a Python user would catch. A message says what was
expected, what was got and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BuildError",
    "ClusterError",
    "ClusterVersionError",
    "CommitError",
    "CorruptStoreError",
    "DaodaskError",
    "DependencyError",
    "FeatureSpaceError",
    "FormatError",
    "FormatVersionError",
    "SelectionError",
    "SourceError",
    "SpecError",
    "StateError",
    "StoreNotFoundError",
    "StreamlineError",
    "UnknownNameError",
    "suggest",
]


class DaodaskError(Exception):
    """Base of all errors that daodask raises on purpose."""


class SpecError(DaodaskError, ValueError):
    """A build file (or an argument that stands for one) says something that can't be meant."""


class SourceError(DaodaskError, ValueError):
    """A study can't be read: absent, truncated, of an unknown format, or without the matrix that was asked for."""


class StreamlineError(DaodaskError, ValueError):
    """A study was read but is refused: not counts, another organism, a required label missing."""


class BuildError(DaodaskError, RuntimeError):
    """A build can't go on as a whole."""


class ClusterError(DaodaskError, ConnectionError):
    """The Dask cluster to work on can't be reached."""


class ClusterVersionError(ClusterError):
    """The Dask cluster has other versions of Python, daodask or a library than this process."""


class CommitError(DaodaskError, RuntimeError):
    """A snapshot could not be committed. The store is at its last snapshot."""


class StoreNotFoundError(DaodaskError, FileNotFoundError):
    """There is no store, or no such snapshot, at the URL."""


class FormatError(DaodaskError, ValueError):
    """What is on disk does not follow the format."""


class FormatVersionError(FormatError):
    """The store was written by a daodask with a newer format."""


class CorruptStoreError(FormatError):
    """Bytes on disk are not the ones that were written."""


class FeatureSpaceError(DaodaskError, LookupError):
    """A feature space must be named, or the named one does not exist."""


class SelectionError(DaodaskError, ValueError):
    """A subset can't be formed as asked."""


class StateError(DaodaskError, ValueError):
    """A saved state does not fit what it is loaded into."""


class UnknownNameError(SelectionError, KeyError):
    """A column, value, gene, layer or dataset that the store does not have."""

    # KeyError shows the repr of its argument, which would quote and escape a message of several sentences.
    __str__ = Exception.__str__


class DependencyError(DaodaskError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def suggest(name: object, known: Iterable[object], *, most: int = 8) -> str:
    """Say which known name is nearest to a wrong one, or list the known ones where none is near.

    Returns a clause such as ``"did you mean 'cell_type'?"`` or ``"known: 'a', 'b', … (12 in all)"``.
    """
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return "there are none"
    shown = ", ".join(repr(n) for n in names[:most])
    return f"known: {shown}" + (f", … ({len(names)} in all)" if len(names) > most else "")
