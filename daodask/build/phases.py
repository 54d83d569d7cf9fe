"""Where the time of tasks goes, phase by phase: travels in their results, and is never part of what is written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

__all__ = ["PHASES", "Stopwatch", "sum_phases"]

T = TypeVar("T")

#: Reading the source or scratch space, mapping genes and checking values, compressing, and writing with digests.
PHASES: Final = ("read", "map", "encode", "write")


class Stopwatch:
    """Seconds of wall time per phase of one task; one phase within another stops that one's time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what is done within as this phase."""
        self._enter(phase)
        try:
            yield
        finally:
            self._leave()

    def each(self, phase: str, values: Iterable[T]) -> Iterator[T]:
        """The values; what it takes to make each counts as this phase, what is done with it does not."""
        iterator = iter(values)
        while True:
            # As ``with self(phase)``, which costs more than some values do.
            self._enter(phase)
            try:
                value = next(iterator)
            except StopIteration:
                return
            finally:
                self._leave()
            yield value

    def _enter(self, phase: str) -> None:
        self._count()
        self._running.append(phase)

    def _leave(self) -> None:
        self._count()
        self._running.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._running:
            phase = self._running[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


def sum_phases(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of each phase over several tasks; a task whose receipt was there already took none."""
    listed = list(parts)
    return {phase: sum(part.get(phase, 0.0) for part in listed) for phase in PHASES}
