"""Which rows of which datasets, and which genes: a frozen value, never a copy of data. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from daodask._format import list_some, of_total, one_line, plural, shorten
from daodask.errors import SelectionError
from daodask.types import AnyArray, BoolArray, Int64Array

__all__ = ["BlockRows", "Part", "Selection"]

#: Datasets that are named in a text, and the length of a name.
_SHOWN = 8
_NAME_WIDTH = 32


@dataclass(frozen=True, eq=False)
class Part:
    """The selected rows of one dataset.

    Parameters
    ----------
    dataset
        Its id.
    bounds
        Row bounds of its stored blocks, ``(0, …, n_obs)``.
    offset
        Number, in the opened store, of its first row.
    rows
        Selected rows of the dataset, increasing; ``None`` for all.
    """

    dataset: str
    bounds: tuple[int, ...]
    offset: int
    rows: Int64Array | None = None

    @property
    def n_stored(self) -> int:
        """Rows of the dataset, selected or not."""
        return self.bounds[-1]

    @property
    def n_obs(self) -> int:
        """Selected rows."""
        return self.n_stored if self.rows is None else len(self.rows)

    def take(self, positions: Int64Array) -> Part:
        """Keep the selected rows at these increasing positions."""
        return self.with_rows(positions if self.rows is None else self.rows[positions])

    def with_rows(self, rows: Int64Array) -> Part:
        """These increasing rows of the dataset, in place of those selected."""
        return replace(self, rows=None if len(rows) == self.n_stored else rows)

    def __and__(self, other: Part) -> Part:
        if self.rows is None or other.rows is None:
            return other if self.rows is None else self
        return self.with_rows(self.rows[other._mask()[self.rows]])

    def __or__(self, other: Part) -> Part:
        if self.rows is None or other.rows is None:
            return self if self.rows is None else other
        either = self._mask()
        either[other.rows] = True
        return self.with_rows(np.flatnonzero(either).astype(np.int64))

    def __invert__(self) -> Part:
        return self.with_rows(np.flatnonzero(~self._mask()).astype(np.int64))

    def _mask(self) -> BoolArray:
        """Which rows of the dataset are selected: a byte for each, where sorting costs more."""
        mask = np.zeros(self.n_stored, dtype=bool)
        mask[slice(None) if self.rows is None else self.rows] = True
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class BlockRows:
    """Rows of one part that are read together: ``[start, stop)`` of the dataset, or those of them in ``rows``."""

    part: int
    start: int
    stop: int
    rows: Int64Array | None

    @property
    def n_obs(self) -> int:
        """Selected rows."""
        return self.stop - self.start if self.rows is None else len(self.rows)


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Rows of the datasets of one feature space, in store order, and genes in the order asked for.

    Selections of one opened store and the same genes combine: ``a & b`` has the rows of both, ``a | b`` those of
    either, ``~a`` all other rows of the store.

    Parameters
    ----------
    parts
        A part per dataset; one without a selected row stays, as it keeps its dataset's place.
    n_stored_vars
        Genes of the feature space.
    genes
        Selected columns; ``None`` for all.
    """

    parts: tuple[Part, ...]
    n_stored_vars: int
    genes: Int64Array | None = None

    def __reduce__(self) -> tuple[type[Selection], tuple[object, ...]]:
        # What is cached stays here: it can be made again, and may be a row number per cell.
        return Selection, (self.parts, self.n_stored_vars, self.genes)

    def __repr__(self) -> str:
        some = [p for p in self.parts if p.n_obs]
        named = (f"{shorten(p.dataset, _NAME_WIDTH)} ({of_total(p.n_obs, p.n_stored)})" for p in some)
        return (
            f"<daodask.Selection> {' x '.join(self._shape)}\n"
            f"  datasets  {': '.join(filter(None, (of_total(len(some), len(self.parts)), list_some(named, _SHOWN))))}"
        )

    @property
    def _shape(self) -> tuple[str, str]:
        n_stored = sum(part.n_stored for part in self.parts)
        return plural(self.n_obs, "cell", n_stored), plural(self.n_vars, "gene", self.n_stored_vars)

    def _repr_html_(self) -> str:
        from daodask._html import card, selected_section

        cells = {one_line(p.dataset): (p.n_obs, p.n_stored) for p in self.parts if p.n_obs}
        body = selected_section(cells, len(self.parts))
        facts = {"Blocks": plural(len(self.blocks()), "block")}
        return card("daodask.Selection", " × ".join(self._shape), repr(self), body, facts=facts)

    @cached_property
    def bounds(self) -> Int64Array:
        """Positions where the parts start among the selected rows, and the number of them all at the end."""
        return np.cumsum([0, *(p.n_obs for p in self.parts)], dtype=np.int64)

    @property
    def n_obs(self) -> int:
        """Selected rows."""
        return int(self.bounds[-1])

    @property
    def n_vars(self) -> int:
        """Selected genes."""
        return self.n_stored_vars if self.genes is None else len(self.genes)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Ids of the datasets that have a selected row."""
        return tuple(p.dataset for p in self.parts if p.n_obs)

    @cached_property
    def store_rows(self) -> Int64Array:
        """Row numbers in the opened store of all selected rows, increasing."""
        rows = [p.offset + (np.arange(p.n_stored, dtype=np.int64) if p.rows is None else p.rows) for p in self.parts]
        return np.concatenate([np.empty(0, np.int64), *rows])

    def __and__(self, other: Selection) -> Selection:
        return self._combined(other, operator.and_)

    def __or__(self, other: Selection) -> Selection:
        return self._combined(other, operator.or_)

    def __invert__(self) -> Selection:
        return replace(self, parts=tuple(~part for part in self.parts))

    def _combined(self, other: Selection, combine: Callable[[Part, Part], Part]) -> Selection:
        if not isinstance(other, Selection):
            return NotImplemented
        self._require_alike(other)
        parts = tuple(combine(a, b) for a, b in zip(self.parts, other.parts, strict=True))
        return replace(self, parts=parts)

    def _require_alike(self, other: Selection) -> None:
        if self._rows_of != other._rows_of or self.n_stored_vars != other.n_stored_vars:
            raise SelectionError(
                "expected selections of the same store and snapshot, got two of other datasets; "
                "open one store once, and narrow that one in different ways"
            )
        if not np.array_equal(self._columns, other._columns):
            raise SelectionError(
                f"expected selections of the same genes, got {self.n_vars} and {other.n_vars} genes that differ; "
                f"combine the cells first and take the genes then: (a & b)[:, genes]"
            )

    @property
    def _rows_of(self) -> list[tuple[str, int, int]]:
        """What row numbers stand for."""
        return [(part.dataset, part.offset, part.n_stored) for part in self.parts]

    @property
    def _columns(self) -> Int64Array:
        return np.arange(self.n_stored_vars, dtype=np.int64) if self.genes is None else self.genes

    def take(self, positions: Int64Array | BoolArray) -> Selection:
        """Keep the selected rows at these positions, or where a mask is true.

        Raises
        ------
        SelectionError
            Positions are out of range, repeated, or not increasing: rows stay in store order.
        """
        increasing = self._increasing(np.asarray(positions))
        cuts = np.searchsorted(increasing, self.bounds)
        parts = tuple(
            part.take(increasing[low:high] - start)
            for part, low, high, start in zip(self.parts, cuts[:-1], cuts[1:], self.bounds[:-1], strict=True)
        )
        return replace(self, parts=parts)

    def _increasing(self, positions: AnyArray) -> Int64Array:
        if positions.dtype == bool:
            if positions.shape != (self.n_obs,):
                raise SelectionError(f"expected a mask of length {self.n_obs}, got shape {positions.shape}")
            return np.flatnonzero(positions).astype(np.int64)
        if positions.ndim != 1 or (positions.dtype.kind not in "iu" and len(positions)):
            raise SelectionError(
                f"expected a 1-D array of row numbers or a mask, got {positions.dtype} {positions.shape}"
            )
        rows = positions.astype(np.int64)
        rows = np.where(rows < 0, rows + self.n_obs, rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.n_obs):
            raise SelectionError(
                f"row numbers go from 0 to {self.n_obs - 1}, got {int(positions.min())} to {int(positions.max())}"
            )
        if np.any(np.diff(rows) <= 0):
            raise SelectionError(
                "rows stay in store order: expected increasing row numbers without repeats; sort them first"
            )
        return rows

    def take_genes(self, columns: Int64Array) -> Selection:
        """Keep the selected genes at these positions, in their order."""
        if len(np.unique(columns)) != len(columns):
            raise SelectionError("a gene is selected twice; name each gene once")
        return replace(self, genes=columns if self.genes is None else self.genes[columns])

    def with_part_masks(self, masks: tuple[BoolArray | bool, ...]) -> Selection:
        """Keep, of each part, all rows, none, or those where its mask (over its selected rows) is true."""
        parts = []
        for part, mask in zip(self.parts, masks, strict=True):
            if isinstance(mask, np.ndarray):
                parts.append(part.take(np.flatnonzero(mask).astype(np.int64)))
            else:
                parts.append(part if mask else part.take(np.empty(0, np.int64)))
        return replace(self, parts=tuple(parts))

    def blocks(self) -> tuple[BlockRows, ...]:
        """Rows to read together, in store order: no block without a selected row, and few where few are selected."""
        return tuple(block for number, part in enumerate(self.parts) for block in _part_blocks(number, part))

    def spread(self, positions: Int64Array) -> Iterator[tuple[int, slice, Int64Array]]:
        """Where increasing positions among the selected rows are.

        Yields, per part concerned, its number, which of the positions it has, and their rows in the dataset.
        """
        numbers = np.searchsorted(self.bounds, positions, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(positions)]
        for low, high in pairwise(cuts):
            if low < high:
                number = int(numbers[low])
                rows, inside = self.parts[number].rows, positions[low:high] - self.bounds[number]
                yield number, slice(low, high), inside if rows is None else rows[inside]


def _part_blocks(number: int, part: Part) -> Iterator[BlockRows]:
    if part.rows is None:
        for start, stop in zip(part.bounds[:-1], part.bounds[1:], strict=True):
            yield BlockRows(number, start, stop, None)
        return
    most = max((b - a for a, b in zip(part.bounds[:-1], part.bounds[1:], strict=True)), default=1)
    cuts = np.searchsorted(part.rows, part.bounds)
    first = 0
    for last in range(1, len(cuts)):
        # Neighbouring blocks go together as long as their selected rows still fit the size of one.
        full = last == len(cuts) - 1 or cuts[last + 1] - cuts[first] > most
        if full and cuts[last] > cuts[first]:
            yield BlockRows(number, part.bounds[first], part.bounds[last], part.rows[cuts[first] : cuts[last]])
        if full:
            first = last
