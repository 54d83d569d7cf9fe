"""Reductions are data: what is done to a block, how results are combined, and what they become at the end.

No scheduler is known here: :mod:`daodask.analysis.run` applies them, in whatever order blocks come together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pandas as pd

from daodask.analysis.blocks import Block
from daodask.types import CSR

__all__ = ["CustomReduction", "Reducer", "Reduction", "fold"]

P = TypeVar("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: Blocks whose results are held before they are combined.
_FOLD = 8


class Reducer(Protocol[P, R_co]):
    """What :func:`daodask.analysis.run.compute` runs; a small frozen value, as it travels with each task."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Obs columns that blocks must bring."""
        ...

    def block(self, block: Block) -> P:
        """What one block comes to."""
        ...

    def combine(self, partials: Sequence[P]) -> P:
        """Of at least one result, in store order, what they come to together."""
        ...

    def finalise(self, partial: P) -> R_co:
        """The result."""
        ...


@dataclass(frozen=True)
class Reduction(Generic[P, R]):
    """A reduction of your own, for :func:`daodask.reduce`.

    Parameters
    ----------
    block
        Called with X (CSR, cells × genes), obs and var of some neighbouring cells of one dataset; returns something
        small. A store without a selected cell is one block without a row.
    combine
        Called with a list of such results in store order, at least one; returns one of the kind.
    finalise
        Called with the last of these.
    columns
        Obs columns that ``block`` needs; obs has these alone.

    Examples
    --------
    >>> import operator, functools
    >>> add = functools.partial(functools.reduce, operator.add)
    >>> depth = daodask.Reduction(lambda X, obs, var: X.sum(), add, float)  # doctest: +SKIP
    >>> daodask.reduce(store, depth)  # doctest: +SKIP
    """

    block: Callable[[CSR, pd.DataFrame, pd.DataFrame], P]
    combine: Callable[[list[P]], P]
    finalise: Callable[[P], R]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CustomReduction(Generic[P, R]):
    """A :class:`Reduction` as all others are run."""

    of: Reduction[P, R]
    var: pd.DataFrame

    @property
    def columns(self) -> tuple[str, ...]:
        """See :class:`Reducer`."""
        return tuple(self.of.columns)

    def block(self, block: Block) -> P:
        """See :class:`Reducer`."""
        return self.of.block(block.X, block.obs, self.var)

    def combine(self, partials: Sequence[P]) -> P:
        """See :class:`Reducer`."""
        return self.of.combine(list(partials))

    def finalise(self, partial: P) -> R:
        """See :class:`Reducer`."""
        return self.of.finalise(partial)


def fold(reducer: Reducer[P, Any], blocks: Sequence[Block]) -> P:
    """Reduce some blocks one after another, holding few results at a time (computes)."""
    partials: list[P] = []
    for block in blocks:
        partials.append(reducer.block(block))
        if len(partials) == _FOLD:
            partials = [reducer.combine(partials)]
    return partials[0] if len(partials) == 1 else reducer.combine(partials)
