"""Reductions over genes, a value per cell; and over cells, a gene's smallest and largest value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.analysis.blocks import Block

__all__ = ["CellStatistics", "Extremes", "GeneExtremes"]

Float64Array = npt.NDArray[np.float64]

_COLUMNS = ("sum", "squares", "nnz", "min", "max")


@dataclass(frozen=True)
class CellStatistics:
    """Per cell, over the selected genes: sum, squared deviations from the mean, values that are not zero, extremes."""

    columns: tuple[str, ...] = ()

    def block(self, block: Block) -> list[pd.DataFrame]:
        """A row for each cell."""
        from daodask.analysis.kernels import row_statistics

        out = np.empty((block.n_obs, len(_COLUMNS)))
        for rows in block.rows():
            row_statistics(*rows.arrays, rows.lookup, block.n_vars, rows.of(out))
        return [pd.DataFrame(out, index=block.obs.index, columns=list(_COLUMNS))]

    def combine(self, partials: Sequence[list[pd.DataFrame]]) -> list[pd.DataFrame]:
        """All frames, which are laid one after another only once."""
        return [frame for partial in partials for frame in partial]

    def finalise(self, partial: list[pd.DataFrame]) -> pd.DataFrame:
        """A row for each cell, indexed by row numbers in the store."""
        return pd.concat(partial)


@dataclass(frozen=True, eq=False)
class Extremes:
    """Per gene: smallest and largest value that is not zero, how many there are, and how many cells count."""

    least: Float64Array
    most: Float64Array
    nnz: Float64Array
    n: Float64Array

    def with_zeros(self, values: Float64Array, pick: np.ufunc) -> Float64Array:
        """Smallest or largest value, zeros included; NaN where no cell counts."""
        whole = np.where(self.nnz < self.n, pick(values, 0.0), values)
        return np.where(self.n > 0, whole, np.nan)


@dataclass(frozen=True)
class GeneExtremes:
    """Smallest and largest value of each gene."""

    columns: tuple[str, ...] = ()

    def block(self, block: Block) -> Extremes:
        """Of one block."""
        from daodask.analysis.kernels import add_extremes

        out = np.tile([np.inf, -np.inf, 0.0], (block.n_vars + 1, 1))
        for rows in block.rows():
            add_extremes(*rows.arrays, rows.lookup, out)
        n = np.full(block.n_vars, float(block.n_obs))
        if block.measured is not None:
            out[:-1][~block.measured] = np.inf, -np.inf, 0.0
            n[~block.measured] = 0.0
        return Extremes(out[:-1, 0], out[:-1, 1], out[:-1, 2], n)

    def combine(self, partials: Sequence[Extremes]) -> Extremes:
        """Of all cells together."""
        return Extremes(
            np.min([p.least for p in partials], axis=0),
            np.max([p.most for p in partials], axis=0),
            np.sum([p.nnz for p in partials], axis=0),
            np.sum([p.n for p in partials], axis=0),
        )

    def finalise(self, partial: Extremes) -> Extremes:
        """The extremes themselves."""
        return partial
