"""An exchange: what many tasks wrote, each in an order of its own, read by many others in another order.

A task writes *parts*, of a size that it can hold. A part is one file: an index, and behind it a piece for each
*target*. Whoever makes a target reads its piece of every part, which is a byte range of each. So all of it passes
through scratch space below the store, which every worker of a cluster can reach, and nobody holds more than a part or
a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from daodask.build.receipts import ScratchFile, write_scratch
from daodask.storage import StoreLocation
from daodask.types import Int64Array

__all__ = ["Exchange"]

_OFFSET: Final = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class Exchange:
    """Where parts are, and of how many parts and targets; a small value that travels in tasks.

    Parameters
    ----------
    scratch, path
        A directory of scratch space, named by what is exchanged: a part that is written twice is the same twice.
    n_parts, n_targets
        How many there are.
    """

    scratch: StoreLocation
    path: str
    n_parts: int
    n_targets: int

    def write(self, part: int, bounds: Int64Array, data: Sequence[memoryview]) -> ScratchFile:
        """Write a part, of whose bytes ``[bounds[t], bounds[t + 1])`` are the piece of target t."""
        index = (bounds + self._index_bytes).astype(_OFFSET)
        return write_scratch(self.scratch, self._name(part), [index.data, *data])

    def read(self, start: int, stop: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Of each of the targets ``[start, stop)``, its pieces of all parts in their order (computes each)."""
        if not self.n_parts:
            return
        offsets = self._offsets(start, stop)
        for target in range(stop - start):
            wanted = [
                (self._name(part), int(offsets[part, target]), int(offsets[part, target + 1]))
                for part in range(self.n_parts)
                if offsets[part, target] < offsets[part, target + 1]
            ]
            yield self.scratch.read_ranges(wanted) if wanted else np.zeros(0, dtype=np.uint8)

    def remove(self) -> None:
        """Remove all parts."""
        (self.scratch / self.path).remove()

    def _offsets(self, start: int, stop: int) -> Int64Array:
        """Where the pieces of targets ``[start, stop)`` begin, and the last one ends, per part."""
        ends = start * _OFFSET.itemsize, (stop + 1) * _OFFSET.itemsize
        read = self.scratch.read_ranges([(self._name(part), *ends) for part in range(self.n_parts)])
        return read.view(_OFFSET).reshape(self.n_parts, stop - start + 1)

    @property
    def _index_bytes(self) -> int:
        return (self.n_targets + 1) * _OFFSET.itemsize

    def _name(self, part: int) -> str:
        return f"{self.path}/{part:06d}"
