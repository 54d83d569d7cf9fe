"""Blocks that were read, kept in this process for when they are read again, within a budget of bytes.

dask's own opportunistic cache goes by the results of whole tasks, and dask fuses reads with what is done with them; so
blocks are kept here, beneath it. A cluster has :meth:`daodask.Store.persist`: there a block is computed wherever there
is room, and what one worker had kept would be no help to another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from dask.utils import parse_bytes

from daodask._format import human_bytes, plural
from daodask.errors import SpecError

__all__ = ["BlockCache", "cache", "cached"]


class BlockCache:
    """Blocks by what was read, those that were used last.

    Parameters
    ----------
    most_bytes
        What they may take together; nothing is kept with 0.
    """

    def __init__(self, most_bytes: int = 0) -> None:
        self._most_bytes = most_bytes
        self._blocks: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._nbytes, self._hits, self._misses = 0, 0, 0
        self._turn = threading.Lock()

    @property
    def most_bytes(self) -> int:
        """What blocks may take."""
        return self._most_bytes

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self._nbytes

    @property
    def hits(self) -> int:
        """How many blocks were asked for and were here."""
        return self._hits

    @property
    def misses(self) -> int:
        """How many were read."""
        return self._misses

    def __len__(self) -> int:
        return len(self._blocks)

    def resize(self, most_bytes: int) -> None:
        """Change the budget, and let go of what is beyond it."""
        with self._turn:
            self._most_bytes = most_bytes
            self._settle()

    def clear(self) -> None:
        """Let go of all blocks, and count anew."""
        with self._turn:
            self._blocks.clear()
            self._nbytes, self._hits, self._misses = 0, 0, 0

    def take(self, key: Hashable, read: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """The block of that key; it is read where it isn't here.

        Parameters
        ----------
        key
            Of all that it depends on.
        read
            Makes it. Nobody waits for another's read.
        size
            Bytes that it takes.
        """
        with self._turn:
            if key in self._blocks:
                self._hits += 1
                self._blocks.move_to_end(key)
                return self._blocks[key][0]
            self._misses += 1
        block = read()
        with self._turn:
            if key not in self._blocks:
                self._blocks[key] = block, size(block)
                self._nbytes += self._blocks[key][1]
                self._settle()
        return block

    def _settle(self) -> None:
        while self._nbytes > self._most_bytes or (self._blocks and not self._most_bytes):
            _, (_, size) = self._blocks.popitem(last=False)
            self._nbytes -= size

    def __repr__(self) -> str:
        if not self._most_bytes:
            return '<daodask cache> off; daodask.cache("2GiB") turns it on'
        return f"<daodask cache> {self.summary()}; {self._hits:,} found, {self._misses:,} read"

    def summary(self) -> str:
        """How full it is."""
        return f"{plural(len(self), 'block')}, {human_bytes(self._nbytes)} of {human_bytes(self._most_bytes)}"


_CACHE: Final = BlockCache()


def cache(memory: str | int | None = None) -> BlockCache:
    """Keep blocks of X, layers, obsm and obs that this process has read, for when it reads them again.

    It is off at first. The blocks that were used last are kept, as they are handed out: of the genes and cells, and of
    the columns of obs, that were asked for. A block larger than ``memory`` is not kept.

    What is kept can't be written to, as it is handed out again: copy a block before changing its values in place.
    ``BatchLoader`` and the functions of daodask such as ``pseudobulk`` read the store itself, as they need no block as
    a whole. On a cluster use :meth:`daodask.Store.persist`.

    Parameters
    ----------
    memory
        What all blocks may take together, as bytes or as text; 0 turns it off. By default it stays as it is.

    Returns
    -------
    BlockCache
        What there is: its ``hits``, ``misses`` and ``nbytes``; ``clear()`` lets go of it.

    Raises
    ------
    SpecError
        That is no size.

    Examples
    --------
    >>> daodask.cache("2GiB")  # doctest: +SKIP
    <daodask cache> 0 blocks, 0 B of 2 GiB; 0 found, 0 read
    """
    if memory is not None:
        _CACHE.resize(_parsed(memory))
    return _CACHE


def _parsed(memory: str | int) -> int:
    try:
        size = int(parse_bytes(memory))
    except (AttributeError, ValueError) as error:
        raise SpecError(f'expected a size such as "2GiB" or a number of bytes, got {memory!r}') from error
    if size < 0:
        raise SpecError(f"expected a size of 0 bytes or more, got {memory!r}")
    return size


def cached(key: Hashable, read: Callable[[], Any], size: Callable[[Any], int]) -> Any:
    """What is read, from the process's cache where it is on."""
    return _CACHE.take(key, read, size) if _CACHE.most_bytes else read()
