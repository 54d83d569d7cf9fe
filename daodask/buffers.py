"""Large arrays that are used again: touching new memory costs as much as filling it.

An array from a pool goes back when the last view of it is gone, never before: whoever keeps a batch keeps its memory.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from daodask.types import AnyArray

__all__ = ["BufferPool", "reused_empty"]

#: Sizes of windows are rounded up to a multiple of this, so that those of nearly the same size share buffers.
_WINDOW_GRAIN: Final = 16 * 2**20


class _Lease(np.ndarray[Any, np.dtype[Any]]):
    """Memory on loan; views refer to it, not to the memory itself, as a view's base is folded only within one class."""


class BufferPool:
    """Memory for arrays of a few sizes, kept for the next of them.

    Parameters
    ----------
    most_bytes
        What is on loan and what is kept are together no more than this, unless more is on loan.
    grain
        What sizes are a multiple of, in bytes.
    """

    def __init__(self, most_bytes: int, grain: int = _WINDOW_GRAIN) -> None:
        self._most_bytes = most_bytes
        self._grain = grain
        self._free: list[npt.NDArray[np.uint8]] = []
        self._on_loan = 0
        self._returned: deque[npt.NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory stays where it is: a copy in another process starts without any.
        return BufferPool, (self._most_bytes, self._grain)

    def renew_lock(self) -> None:
        """Be usable in a process that was forked while another thread held the lock."""
        self._lock = threading.Lock()

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> AnyArray:
        """An array of undefined content, as ``numpy.empty`` gives one."""
        wanted = np.dtype(dtype)
        length = int(np.prod(shape, dtype=np.int64))
        memory = self._take(length * wanted.itemsize)
        # Of the same dtype: SciPy copies arrays of which the base has more than twice as many elements.
        lease = memory[: len(memory) // wanted.itemsize * wanted.itemsize].view(wanted).view(_Lease)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        array: AnyArray = lease[:length].view(np.ndarray).reshape(shape)
        return array

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            self._settle()
            fitting = [i for i, memory in enumerate(self._free) if size <= len(memory) <= 2 * size + self._grain]
            if fitting:
                memory = self._free.pop(min(fitting, key=lambda i: len(self._free[i])))
            else:
                memory = np.empty(max(1, -(-size // self._grain)) * self._grain, dtype=np.uint8)
            self._on_loan += len(memory)
            self._settle()
        return memory

    def _give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        # It never waits, as it runs wherever a last view goes: also where garbage is collected in the midst of _take.
        self._returned.append(memory)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Take in what came back, and let go of what is too much, that first which was not used for longest."""
        while self._returned:
            self._free.append(self._returned.popleft())
            self._on_loan -= len(self._free[-1])
        while self._free and self._on_loan + sum(map(len, self._free)) > self._most_bytes:
            del self._free[0]


#: Of what is read, mapped and encoded block by block in this process.
_BLOCKS: Final = BufferPool(256 * 2**20, grain=2**20)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BLOCKS.renew_lock)
#: Below this memory is cheap, and much of a grain would be left over.
_LEAST_REUSED: Final = 2**20


def reused_empty(length: int, dtype: Any) -> AnyArray:
    """A 1-D array of undefined content for a short time; where it is large, of memory that was used before.

    What is freed goes back to the operating system, and in a virtual machine from there to its host, from which it
    comes back at half a gigabyte a second.
    """
    small = length * np.dtype(dtype).itemsize < _LEAST_REUSED
    return np.empty(length, dtype) if small else _BLOCKS.empty(length, dtype)
