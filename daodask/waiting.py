"""Requests to a bucket side by side: almost all of the time that each takes is spent waiting for it.

What is on a disk of this machine is left to one thread after another, as threads would only be in each other's way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import cache
from typing import Final, TypeVar

__all__ = ["as_fetched", "side_by_side"]

T = TypeVar("T")
R = TypeVar("R")

#: Threads that wait, each for one call, which may be of many requests.
_MOST_WAITING: Final = 16


def side_by_side(function: Callable[[T], R], items: Sequence[T], *, remote: bool) -> list[R]:
    """Results of a function that waits for storage, in the order of the items (computes)."""
    if not remote or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), _MOST_WAITING), "daodask-wait") as threads:
        return list(threads.map(function, items))


def as_fetched(fetch: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Results of a function that waits for storage, as they come; what nobody waits for any more is not begun.

    Who asks first is served first, of all in this process: a window that is read ahead takes nothing of the line from
    the one before it.
    """
    threads = _fetchers()
    fetching = {threads.submit(fetch, item) for item in items}
    try:
        for future in as_completed(set(fetching)):
            fetching.discard(future)
            yield future.result()
    finally:
        wait([future for future in fetching if not future.cancel()])


@cache
def _fetchers() -> ThreadPoolExecutor:
    """Threads that fetch, for all of the process."""
    return ThreadPoolExecutor(_MOST_WAITING, "daodask-fetch")


if hasattr(os, "register_at_fork"):
    # A process that was forked has none of the threads.
    os.register_at_fork(after_in_child=_fetchers.cache_clear)
