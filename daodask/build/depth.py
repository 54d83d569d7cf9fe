"""How deep the cells of a study are sequenced: histograms with fixed bounds, so that those of its blocks add up. Pure.

Bin 0 is for cells below 1, bin k for those from ``10 ** ((k - 1) / 10)`` to below ``10 ** (k / 10)``: ten bins a
decade, each a quarter wider than the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import numpy as np

from daodask.types import AnyArray, Int64Array

__all__ = ["Bins", "Depth", "bin_start", "count_bins", "quantile"]

#: Cells per bin; bins after the last one that has a cell are left out.
Bins = tuple[int, ...]

_PER_DECADE: Final = 10
_DECADES: Final = 12
#: Where bins 1, 2, … start; the last bin takes whatever is beyond.
_STARTS: Final = 10.0 ** (np.arange(_PER_DECADE * _DECADES + 1) / _PER_DECADE)


def bin_start(number: int) -> float:
    """Smallest value of a bin."""
    return 10.0 ** ((number - 1) / _PER_DECADE) if number else 0.0


def count_bins(values: AnyArray) -> Bins:
    """How many values are in each bin; NaN and what is negative count as below 1."""
    with np.errstate(invalid="ignore"):
        placed = np.where(values >= 1, values, 0.0)
    return tuple(np.bincount(np.searchsorted(_STARTS, placed, side="right")).tolist()) if len(values) else ()


def quantile(bins: Sequence[int], share: float) -> float:
    """About the value below which that share of the cells is, read off the logarithmic scale; NaN without a cell."""
    total = sum(bins)
    if not total:
        return float("nan")
    wanted, passed = share * total, 0
    for number, n in enumerate(bins):
        if n and passed + n >= wanted:
            low, high = bin_start(number), bin_start(number + 1)
            within = (wanted - passed) / n
            return low * (high / low) ** within if low else within
        passed += n
    return bin_start(len(bins))


@dataclass(frozen=True, slots=True)
class Depth:
    """Histograms over the cells of a study, of what is kept of X.

    Parameters
    ----------
    n_counts
        Cells by the sum of their values.
    n_genes
        Cells by the number of their genes that are not zero.
    """

    n_counts: Bins = ()
    n_genes: Bins = ()

    @classmethod
    def of(cls, data: AnyArray, indptr: Int64Array) -> Depth:
        """That of the rows of a canonical CSR matrix: without a stored zero."""
        from daodask.kernels import row_sums

        lengths = np.diff(indptr)
        sums = np.empty(len(lengths), dtype=np.float64 if data.dtype.kind == "f" else np.uint64)
        row_sums(data, indptr, sums)
        return cls(count_bins(sums), count_bins(lengths))

    @classmethod
    def sum(cls, parts: Iterable[Depth]) -> Depth:
        """That of all cells of several."""
        listed = list(parts)
        return cls(_added(p.n_counts for p in listed), _added(p.n_genes for p in listed))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Depth:
        """Read back what ``dataclasses.asdict`` made."""
        return cls(tuple(value.get("n_counts", ())), tuple(value.get("n_genes", ())))


def _added(histograms: Iterable[Bins]) -> Bins:
    return tuple(sum(column) for column in zip_longest(*histograms, fillvalue=0))
