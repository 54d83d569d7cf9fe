"""Sums, means and variances per gene and group of cells, in one pass.

Values are added up in float64. Within a run of blocks squares are of the distance from a value that the gene has (Chan,
Golub & LeVeque 1983, section 3, "shifted data"), where the gene is hardly ever zero; elsewhere from zero, which loses
nothing: the sum of squares is at most 1/p times the squared deviations of a gene of which a share p is zero. Runs are
combined pairwise by their means and squared deviations (ibid., section 2). Sums of whole numbers are exact below 2**53,
and so do not depend on what was added first.

T. F. Chan, G. H. Golub, R. J. LeVeque: Algorithms for computing the sample variance: analysis and recommendations. The
American Statistician 37 (1983) 242-247. https://doi.org/10.1080/00031305.1983.10483115
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daodask.analysis.blocks import Block, Rows
from daodask.analysis.groups import GroupKey, block_groups
from daodask.types import Int64Array

__all__ = ["GroupMoments", "Moments", "join"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """What groups of cells come to, gene by gene.

    Parameters
    ----------
    keys
        The groups' labels.
    n_cells
        Cells per group.
    n
        Cells that count: ``(groups, 1)``, or ``(groups, genes)`` where only those count that measured a gene.
    sums, squares, nnz
        ``(groups, genes)``: sum, sum of squared deviations from the mean, number of values that are not zero; nothing
        where it was not asked for.
    """

    keys: tuple[GroupKey, ...]
    n_cells: Int64Array
    n: Float64Array
    sums: Float64Array | None = None
    squares: Float64Array | None = None
    nnz: Float64Array | None = None

    def __sizeof__(self) -> int:
        # What workers of a cluster go by when they spill.
        arrays = (self.n_cells, self.n, self.sums, self.squares, self.nnz)
        return object.__sizeof__(self) + sum(a.nbytes for a in arrays if a is not None)

    @property
    def mean(self) -> Float64Array:
        """NaN where no cell counts."""
        return _divide(_there(self.sums), self.n)

    def var(self, ddof: float = 1) -> Float64Array:
        """Variance; NaN where no more than ``ddof`` cells count."""
        return _divide(_there(self.squares), self.n - ddof)

    @property
    def total(self) -> Float64Array:
        """Sum; NaN where nobody measured, 0 for a group without a cell."""
        return self._known(_there(self.sums))

    @property
    def n_nonzero(self) -> Float64Array:
        """Values that are not zero; NaN where nobody measured."""
        return self._known(_there(self.nnz))

    @property
    def fraction(self) -> Float64Array:
        """Share of values that are not zero."""
        return _divide(_there(self.nnz), self.n)

    def _known(self, values: Float64Array) -> Float64Array:
        unknown = (self.n == 0) & (self.n_cells[:, None] > 0)
        return np.where(unknown, np.nan, values) if unknown.any() else values

    def reorder(self, keys: Sequence[GroupKey]) -> Moments:
        """The groups of these labels, in their order; those that are not there have no cell."""
        position = {key: i for i, key in enumerate(self.keys)}
        at = np.array([position.get(key, -1) for key in keys], dtype=np.int64)

        def pick(values: Any) -> Any:
            if values is None:
                return None
            return np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])[at]

        return Moments(
            tuple(keys), pick(self.n_cells), pick(self.n), pick(self.sums), pick(self.squares), pick(self.nnz)
        )

    def others(self) -> Moments:
        """For each group, all other groups together.

        Of those before it and those after it, as subtracting a group from all would cancel.
        """
        ahead, behind = [self._alone(-1)], [self._alone(-1)]
        for i in range(len(self.keys) - 1):
            ahead.append(join([ahead[-1], self._alone(i)]))
            behind.append(join([self._alone(len(self.keys) - 1 - i), behind[-1]]))
        rest = [join(pair) for pair in zip(ahead, reversed(behind), strict=True)]
        stacked = {
            name: None if getattr(self, name) is None else np.concatenate([getattr(r, name) for r in rest])
            for name in ("n_cells", "n", "sums", "squares", "nnz")
        }
        return Moments(self.keys, **stacked)  # type: ignore[arg-type]

    def _alone(self, i: int) -> Moments:
        """One group, under no label; -1: of no cell."""
        arrays = (self.n_cells, self.n, self.sums, self.squares, self.nnz)
        pieces: list[Any] = [None if a is None else a[i : i + 1] if i >= 0 else np.zeros_like(a[:1]) for a in arrays]
        return Moments(((),), *pieces)


def _there(values: Float64Array | None) -> Float64Array:
    if values is None:
        raise TypeError("expected moments that were asked for, got none")
    return values


def _divide(values: Float64Array, n: Float64Array) -> Float64Array:
    out: Float64Array = np.full(values.shape, np.nan)
    np.divide(values, n, out=out, where=n > 0)
    return out


def join(moments: Sequence[Moments]) -> Moments:
    """Moments of all cells together; groups of the same labels become one."""
    keys = tuple(dict.fromkeys(key for m in moments for key in m.keys))
    if len(moments) == 1:
        return moments[0]
    position = {key: i for i, key in enumerate(keys)}
    like = moments[0]

    def zeros(values: Any) -> Any:
        return None if values is None else np.zeros((len(keys), *values.shape[1:]), values.dtype)

    whole = Moments(keys, zeros(like.n_cells), zeros(like.n), zeros(like.sums), zeros(like.squares), zeros(like.nnz))
    for part in moments:
        _merge(whole, part, np.array([position[key] for key in part.keys], dtype=np.int64))
    return whole


def _merge(whole: Moments, part: Moments, at: Int64Array) -> None:
    if whole.squares is not None and part.squares is not None:
        sums, own = _there(whole.sums), _there(part.sums)
        before, n = whole.n[at], part.n
        both = (before > 0) & (n > 0)
        apart = np.where(both, own / np.maximum(n, 1) - sums[at] / np.maximum(before, 1), 0)
        whole.squares[at] += part.squares + apart**2 * (before * n / np.maximum(before + n, 1))
    for name in ("n_cells", "n", "sums", "nnz"):
        if getattr(whole, name) is not None:
            getattr(whole, name)[at] += getattr(part, name)


@dataclass(frozen=True)
class GroupMoments:
    """Moments of each group of cells; without a column to group by, of all cells.

    Parameters
    ----------
    by
        Obs columns.
    sums, squares, nnz
        What is wanted; squares bring the others along.
    dropna
        Leave out cells without some label.
    """

    by: tuple[str, ...] = ()
    sums: bool = True
    squares: bool = False
    nnz: bool = False
    dropna: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        return self.by

    def block(self, block: Block) -> Moments:
        """Moments of the groups that a block has."""
        codes, keys = block_groups(block.obs, self.by, dropna=self.dropna)
        n_cells = np.bincount(codes[codes >= 0], minlength=len(keys)).astype(np.int64)
        n = n_cells[:, None].astype(np.float64)
        if self.squares:
            found = Moments(keys, n_cells, n, *_moments(block, codes, n))
        else:
            found = Moments(
                keys,
                n_cells,
                n,
                sums=_added(block, codes, len(keys), "add_sums") if self.sums else None,
                nnz=_added(block, codes, len(keys), "add_counts") if self.nnz else None,
            )
        return found if block.measured is None else _only(found, block.measured)

    def combine(self, partials: Sequence[Moments]) -> Moments:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        return join(partials)

    def finalise(self, partial: Moments) -> Moments:
        """The moments themselves, in the order in which groups were met."""
        return partial


def _only(found: Moments, measured: npt.NDArray[np.bool_]) -> Moments:
    """Without the genes that were not measured."""
    n = found.n * measured
    kept = {
        name: None if getattr(found, name) is None else np.where(measured, getattr(found, name), 0.0)
        for name in ("sums", "squares", "nnz")
    }
    return Moments(found.keys, found.n_cells, n, **kept)


def _by_group(block: Block, codes: Int64Array) -> Iterator[tuple[Rows, Int64Array, Int64Array]]:
    """Rows, group after group, so that a group's sums stay in cache while they are added to."""
    for rows in block.rows():
        own = rows.of(codes)
        yield rows, np.argsort(own, kind="stable"), own


def _added(block: Block, codes: Int64Array, n_groups: int, kernel: str) -> Float64Array:
    from daodask.analysis import kernels

    add = getattr(kernels, kernel)
    out = np.zeros((n_groups, block.n_vars + 1))
    for rows, order, own in _by_group(block, codes):
        add(*rows.arrays, order, own, rows.lookup, out)
    return out[:, :-1]


def _moments(block: Block, codes: Int64Array, n: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Sums, squared deviations and numbers of values that are not zero."""
    from daodask.analysis.kernels import add_moments, first_values

    out = np.zeros((len(n), block.n_vars + 1, 4))
    shift = np.zeros(block.n_vars + 1)
    for number, (rows, order, own) in enumerate(_by_group(block, codes)):
        if number == 0:
            first_values(*rows.arrays, rows.lookup, shift)
        add_moments(*rows.arrays, order, own, rows.lookup, shift, out)
    distance, square, nnz = (np.ascontiguousarray(out[:, :-1, i]) for i in range(3))
    shift = shift[:-1]
    # Zeros, which were not looked at, are as far from the shift as they are.
    distance -= (n - nnz) * shift
    square += (n - nnz) * shift**2
    at_least_one = np.maximum(n, 1)
    return distance + n * shift, np.maximum(square - distance**2 / at_least_one, 0.0), nnz
