"""Ranks out of core: exact ones, and in bins.

Exact: values of some genes at a time, of all cells, are brought together and sorted, so that the store is read the
oftener, the more cells there are. In bins: values are counted, in as many passes however many cells there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from daodask.analysis.blocks import Block
from daodask.analysis.groups import GroupKey, block_groups
from daodask.types import AnyArray, Int64Array

__all__ = ["BinnedRanks", "RankSums", "Ranked", "gene_ranges"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranked:
    """Sums of ranks, and of ``t**3 - t`` over the values that t cells share: ``(groups, genes)``."""

    sums: Float64Array
    ties: Float64Array


@dataclass(frozen=True, eq=False)
class _Entries:
    """Values that are not zero, and the groups of their cells, gene by gene: ``counts`` says how many each gene has."""

    counts: Int64Array
    values: AnyArray
    group: AnyArray


@dataclass(frozen=True, eq=False)
class RankSums:
    """Each group's sum of ranks.

    Parameters
    ----------
    by
        The obs column.
    keys, sizes
        All groups, what is missing among them, and how many of their cells count: ``(groups, genes)``.
    reference
        Number of the group that each other is ranked together with; -1: all cells are ranked together.
    dtype
        In which values are compared.
    """

    by: str
    keys: tuple[GroupKey, ...]
    sizes: Float64Array
    reference: int = -1
    dtype: str = "float32"

    @property
    def columns(self) -> tuple[str, ...]:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        return (self.by,)

    def block(self, block: Block) -> list[_Entries]:
        """What is to be ranked, of one block."""
        from daodask.analysis.kernels import entries_per_gene, take_entries

        codes, keys = block_groups(block.obs, self.columns, dropna=False)
        position = {key: i for i, key in enumerate(self.keys)}
        group = np.array([position[key] for key in keys], dtype=np.uint32)[codes]
        narrow = np.uint16 if len(self.keys) < 2**16 else np.uint32
        found = []
        for rows in block.rows():
            counts = np.zeros(block.n_vars + 1, dtype=np.int64)
            entries_per_gene(*rows.arrays, rows.lookup, counts)
            counts = counts[:-1]
            n = int(counts.sum())
            values, groups = np.empty(n, self.dtype), np.empty(n, narrow)
            place = np.cumsum(counts) - counts
            take_entries(*rows.arrays, rows.of(group), rows.lookup, place, values, groups)
            found.append(_Entries(counts, values, groups))
        return [_together(found, block.n_vars)]

    def combine(self, partials: Sequence[list[_Entries]]) -> list[_Entries]:
        """A list of all, whose values are brought together only once."""
        return [entries for partial in partials for entries in partial]

    def finalise(self, partial: list[_Entries]) -> Ranked:
        """Sort, and sum up."""
        from daodask.analysis.kernels import rank_sums

        n_vars = len(partial[0].counts)
        whole = _together(partial, n_vars)
        bounds = np.concatenate([[0], np.cumsum(whole.counts)])
        sums, ties = np.zeros((n_vars, len(self.keys))), np.zeros((n_vars, len(self.keys)))
        sizes = np.ascontiguousarray(self.sizes.T)
        rank_sums(whole.values, whole.group, bounds, sizes, self.reference, sums, ties)
        return Ranked(sums.T, ties.T)


def _together(parts: Sequence[_Entries], n_vars: int) -> _Entries:
    """One after another within each gene."""
    if len(parts) == 1:
        return parts[0]
    counts = np.zeros(n_vars, dtype=np.int64)
    for part in parts:
        counts += part.counts
    if not parts:
        return _Entries(counts, np.empty(0, np.float32), np.empty(0, np.uint16))
    n = int(counts.sum())
    values, group = np.empty(n, parts[0].values.dtype), np.empty(n, parts[0].group.dtype)
    place = np.cumsum(counts) - counts
    for part in parts:
        # Where an entry goes: the gene's place, and how far into the gene's entries of this part it is.
        first = np.cumsum(part.counts) - part.counts
        target = np.repeat(place - first, part.counts) + np.arange(len(part.values))
        values[target], group[target] = part.values, part.group
        place += part.counts
    return _Entries(counts, values, group)


@dataclass(frozen=True, eq=False)
class BinnedRanks:
    """Each group's sum of ranks, where values that are in one bin are taken as tied.

    Parameters
    ----------
    by, keys, sizes, reference
        See :class:`RankSums`.
    least, most
        Each gene's smallest and largest value that is not zero, between which its bins are.
    bins
        How many, of the same width. Values that lie further apart are never tied.
    """

    by: str
    keys: tuple[GroupKey, ...]
    sizes: Float64Array
    reference: int
    least: Float64Array
    most: Float64Array
    bins: int

    @property
    def columns(self) -> tuple[str, ...]:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        return (self.by,)

    @property
    def _scale(self) -> Float64Array:
        width = self.most - self.least
        return np.divide(self.bins, width, out=np.zeros_like(width), where=width > 0)

    def block(self, block: Block) -> npt.NDArray[np.uint32]:
        """Cells per gene, group and bin, of one block; those with a zero are in none."""
        from daodask.analysis.kernels import count_bins

        codes, keys = block_groups(block.obs, self.columns, dropna=False)
        position = {key: i for i, key in enumerate(self.keys)}
        group = np.array([position[key] for key in keys], dtype=np.int64)[codes]
        # A bin for zeros before all others and one after, where all other values are on one side of zero.
        out = np.zeros((block.n_vars, len(self.keys), self.bins + 2), dtype=np.uint32)
        for rows in block.rows():
            count_bins(*rows.arrays, rows.of(group), rows.lookup, self.least, self._scale, out)
        return out

    def combine(self, partials: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.uint32]:
        """Of all cells together."""
        whole = partials[0].copy() if len(partials) > 1 else partials[0]
        for partial in partials[1:]:
            whole += partial
        return whole

    def finalise(self, partial: npt.NDArray[np.uint32]) -> Ranked:
        """Put zeros into their bins, and sum up, gene by gene."""
        n_vars, n_groups, _ = partial.shape
        sums, ties = np.zeros((2, n_groups, n_vars))
        places = 1 + np.clip((-self.least * self._scale).astype(np.int64), 0, self.bins - 1)
        places = np.where(self.least > 0, 0, np.where(self.most < 0, self.bins + 1, places))
        for gene in range(n_vars):
            counts = partial[gene].astype(np.float64)
            counts[:, places[gene]] += self.sizes[:, gene] - counts.sum(axis=1)
            together = counts.sum(axis=0) if self.reference < 0 else counts + counts[self.reference]
            rank = np.cumsum(together, axis=-1) - (together - 1.0) / 2.0
            sums[:, gene] = (counts * rank).sum(axis=1)
            ties[:, gene] = (together**3 - together).sum(axis=-1)
        return Ranked(sums, ties)


def gene_ranges(nnz: Float64Array, most: float) -> list[tuple[int, int]]:
    """Bounds of runs of genes that have together no more than so many values; a gene is never cut."""
    cuts, held = [0], 0.0
    for gene, n in enumerate(nnz.tolist()):
        if held + n > most and gene > cuts[-1]:
            cuts.append(gene)
            held = 0.0
        held += n
    return list(pairwise([*cuts, len(nnz)])) if len(nnz) else []
