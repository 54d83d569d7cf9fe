"""What is done to values on their way into a reduction: a store holds counts, most methods want normalised ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from daodask.errors import SpecError, suggest

__all__ = ["Expm1", "Normalise", "Transform"]

_TOTALS = ("all", "selected")


@dataclass(frozen=True, slots=True)
class Normalise:
    """Counts per so many counts of the cell, and their logarithm; block by block, nothing is stored.

    The same as ``scanpy.pp.normalize_total(adata, target_sum)`` and ``scanpy.pp.log1p(adata)``, in float64. A value v
    of a cell of total t becomes ``v * target_sum / t``, rounded once: cells with the same share of a gene are tied.

    Parameters
    ----------
    target_sum
        Counts that each cell has afterwards. ``None``: the median of the totals of all cells that have a count, for
        which they are read once more.
    log1p
        Take ``log(1 + x)`` of that.
    totals
        Genes that a cell's total is of: ``"all"`` of the store, also where only some are selected, as a few markers say
        nothing of a cell's depth; or the ``"selected"`` ones, as scanpy would do it to ``store.to_anndata()``.

    Raises
    ------
    SpecError
        Arguments that can't be meant.
    """

    target_sum: float | None = 1e4
    log1p: bool = True
    totals: str = "all"

    def __post_init__(self) -> None:
        if self.target_sum is not None and not self.target_sum > 0:
            raise SpecError(f"expected a target_sum above 0, or None for the median, got {self.target_sum}")
        if self.totals not in _TOTALS:
            hint = suggest(self.totals, _TOTALS)
            raise SpecError(f"expected totals of 'all' genes or of the 'selected' ones, got {self.totals!r}; {hint}")


@dataclass(frozen=True, slots=True)
class Expm1:
    """``exp(x) - 1``: normalised values out of their logarithms."""


#: ``None`` leaves values as they are stored.
Transform: TypeAlias = Normalise | Expm1 | None
