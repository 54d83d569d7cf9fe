"""Large arrays that are used again: touching new memory costs as much as filling it.

An array from a pool goes back when the last view of it is gone, never before: whoever keeps a batch keeps its memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from daodask.types import AnyArray

__all__ = ["BufferPool"]

#: Sizes are rounded up to a multiple of this, so that windows of nearly the same size share buffers.
_GRAIN = 16 * 2**20


class _Lease(np.ndarray[Any, np.dtype[np.uint8]]):
    """Memory on loan; views refer to it, not to the memory itself, as a view's base is folded only within one class."""


class BufferPool:
    """Memory for arrays of a few sizes, kept for the next of them.

    Parameters
    ----------
    most_bytes
        What is on loan and what is kept are together no more than this, unless more is on loan.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._free: list[npt.NDArray[np.uint8]] = []
        self._on_loan = 0
        self._returned: deque[npt.NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory stays where it is: a copy in another process starts without any.
        return BufferPool, (self._most_bytes,)

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> AnyArray:
        """An array of undefined content, as ``numpy.empty`` gives one."""
        wanted = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
        memory = self._take(size)
        lease = memory.view(_Lease)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        array: AnyArray = lease[:size].view(np.ndarray).view(wanted).reshape(shape)
        return array

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            self._settle()
            fitting = [i for i, memory in enumerate(self._free) if size <= len(memory) <= 2 * size + _GRAIN]
            if fitting:
                memory = self._free.pop(min(fitting, key=lambda i: len(self._free[i])))
            else:
                memory = np.empty(max(1, -(-size // _GRAIN)) * _GRAIN, dtype=np.uint8)
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
