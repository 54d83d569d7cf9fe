"""A seeded permutation of any number of rows, of which each task works out its own part alone. Pure.

Rows come in input blocks and go to output blocks. How many go from which to which is drawn first: the counts of a
permutation drawn uniformly from all there are follow a multivariate hypergeometric distribution, and a tree of halves
of the input blocks, each node drawn with a generator of its own, lets a task draw the counts of one input block in
logarithmically many steps and without the others'. Then each input block is permuted, to say *which* of its rows go
where, and each output block, to say in which order they are there. Counts drawn exactly and uniform permutations on
both sides make each permutation of all rows as likely as any other, as far as the generator's 128 bits go: it is a real
shuffle, not one of runs or within a buffer.

A task holds numbers of one block of rows, and one number per output block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from daodask.errors import SpecError
from daodask.types import Int64Array

__all__ = ["MOST_ROWS", "Permutation", "permutation"]

#: numpy draws hypergeometric numbers of fewer than this.
MOST_ROWS: Final = 10**9

# What a generator is for is part of its seed.
_COUNTS, _INPUT, _OUTPUT = range(3)


@dataclass(frozen=True, slots=True)
class Permutation:
    """A permutation of rows in input blocks to rows in output blocks; a small value that travels in tasks.

    Parameters
    ----------
    inputs, outputs
        Rows of each block; both add up to the same.
    seed
        A whole number of at least 0: the same one, the same permutation.

    Raises
    ------
    SpecError
        There are too many rows.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seed: int

    def __post_init__(self) -> None:
        if sum(self.inputs) != sum(self.outputs):
            raise ValueError(f"expected as many rows as there are, {sum(self.inputs)}, got {sum(self.outputs)}")
        if sum(self.inputs) >= MOST_ROWS:
            raise SpecError(
                f"expected fewer than {MOST_ROWS:,} cells to shuffle together, got {sum(self.inputs):,}; "
                f"shuffle each study by itself (shuffle: within), or several builds of some of them"
            )

    def counts(self, block: int) -> Int64Array:
        """How many rows of an input block go to each output block."""
        starts = np.concatenate([[0], np.cumsum(self.inputs, dtype=np.int64)])
        free = np.asarray(self.outputs, dtype=np.int64)
        low, high = 0, len(self.inputs)
        while high - low > 1:
            middle = (low + high) // 2
            n_left = int(starts[middle] - starts[low])
            random = np.random.default_rng([self.seed, _COUNTS, low, high])
            left = random.multivariate_hypergeometric(free, n_left, method="marginals")
            low, high, free = (low, middle, left) if block < middle else (middle, high, free - left)
        return free

    def rows(self, block: int) -> tuple[Int64Array, Int64Array]:
        """The rows of an input block by where they go: numbers within it, and bounds of those of each output block."""
        random = np.random.default_rng([self.seed, _INPUT, block])
        bounds = np.concatenate([[0], np.cumsum(self.counts(block))]).astype(np.int64)
        return random.permutation(self.inputs[block]), bounds

    def order(self, block: int) -> Int64Array:
        """Which of the rows that come to an output block, in the order of where they come from, is at each place."""
        random = np.random.default_rng([self.seed, _OUTPUT, block])
        return random.permutation(self.outputs[block])


def permutation(inputs: tuple[int, ...], outputs: tuple[int, ...], seed: int) -> Int64Array:
    """The whole of it: the number of the row that is at each place, for as many rows as there is memory for."""
    plan = Permutation(inputs, outputs, seed)
    starts = np.concatenate([[0], np.cumsum(inputs)]).astype(np.int64)
    arrivals: list[list[Int64Array]] = [[] for _ in outputs]
    for block in range(len(inputs)):
        rows, bounds = plan.rows(block)
        for target, coming in enumerate(np.split(rows + starts[block], bounds[1:-1])):
            arrivals[target].append(coming)
    placed = [np.concatenate(coming)[plan.order(target)] for target, coming in enumerate(arrivals)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *placed])
