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

__all__ = ["BufferPool", "release_buffers", "reused_empty"]

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
    least_bytes
        Where it is given, more than this is kept only as far as it was on loan at one time.
    """

    def __init__(self, most_bytes: int, grain: int = _WINDOW_GRAIN, least_bytes: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._grain = grain
        self._least_bytes = most_bytes if least_bytes is None else least_bytes
        self._free: list[npt.NDArray[np.uint8]] = []
        self._kept = 0
        self._on_loan = 0
        self._most_on_loan = 0
        self._returned: deque[npt.NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory stays where it is: a copy in another process starts without any.
        return BufferPool, (self._most_bytes, self._grain, self._least_bytes)

    def renew_lock(self) -> None:
        """Be usable in a process that was forked while another thread held the lock."""
        self._lock = threading.Lock()

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> AnyArray:
        """An array of undefined content, as ``numpy.empty`` gives one."""
        wanted = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
        memory = self._take(size)
        # Of the same dtype and length: SciPy copies arrays of which the base has more than twice as many elements.
        lease = memory[:size].view(wanted).view(_Lease)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        # A view of a view of the lease, as one of the lease itself would be folded to the memory below.
        array: AnyArray = lease[:].view(np.ndarray).reshape(shape)
        return array

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            self._settle()
            new = max(1, -(-size // self._grain)) * self._grain
            # One that is much too large only where it would have to be let go for a new one; what is larger still would
            # take the place of what others need.
            scarce = self._on_loan + self._kept + new > self._bound
            most = 4 * size + 16 * self._grain if scarce else 2 * size + self._grain
            fitting = [i for i, memory in enumerate(self._free) if size <= len(memory) <= most]
            if fitting:
                memory = self._free.pop(min(fitting, key=lambda i: len(self._free[i])))
                self._kept -= len(memory)
            else:
                memory = np.empty(new, dtype=np.uint8)
            self._on_loan += len(memory)
            self._most_on_loan = max(self._most_on_loan, self._on_loan)
            self._settle()
        return memory

    def release(self) -> None:
        """Let go of what is kept, and forget how much was on loan."""
        with self._lock:
            self._settle()
            self._free.clear()
            self._kept, self._most_on_loan = 0, self._on_loan

    @property
    def _bound(self) -> int:
        return min(self._most_bytes, max(self._least_bytes, self._most_on_loan))

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
            memory = self._returned.popleft()
            self._free.append(memory)
            self._kept += len(memory)
            self._on_loan -= len(memory)
        while self._free and self._on_loan + self._kept > self._bound:
            self._kept -= len(self._free.pop(0))


#: What a thread that builds has in its hands.
_THREAD_BYTES: Final = 256 * 2**20
#: Of what is read, mapped and encoded block by block in this process.
_BLOCKS: Final = BufferPool(_THREAD_BYTES * (os.cpu_count() or 1), grain=2**20, least_bytes=_THREAD_BYTES)
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


def release_buffers() -> None:
    """Free what is kept for :func:`reused_empty`: for a task that takes other memory, or one that is short of it."""
    _BLOCKS.release()
