"""Samples and splits of a store; of the cells, only the columns are read that they are drawn by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.binding import Binding, known_columns
from daodask.errors import SelectionError
from daodask.sampling import (
    Cells,
    apportion,
    count_codes,
    deal_cells,
    deal_groups,
    label_key,
    parse_fractions,
    smallest,
)
from daodask.selection import Selection
from daodask.subsetting import PLAN_THREADS, dataset_extents
from daodask.types import Int64Array, Label

if TYPE_CHECKING:
    from daodask.store import Store

__all__ = ["sample", "split"]

#: The labels of a group in the columns that cells are grouped by; ``None`` where there is none.
Labels = tuple[Label | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """The selected cells by group: labels of each group, cells of each dataset that has a selected one."""

    labels: tuple[Labels, ...]
    cells: tuple[Cells, ...]

    @property
    def sizes(self) -> list[int]:
        return [int(n) for n in count_codes(self.cells, len(self.labels))]


def sample(store: Store, n: int | None, frac: float | None, by: str | Sequence[str] | None, seed: int) -> Selection:
    """Cells drawn at random, see :meth:`daodask.Store.sample` (computes)."""
    total = _number_to_draw(store.n_obs, n, frac)
    seed = _checked_seed(seed)
    groups = _read_groups(store, _columns(store, by))
    keys = [label_key(seed, labels) for labels in groups.labels]
    quotas = apportion(groups.sizes, total, keys)
    return store.selection.take(smallest(groups.cells, quotas, seed))


def split(
    store: Store, fractions: Mapping[str, float], by: str | Sequence[str] | None, seed: int
) -> dict[str, Selection]:
    """Disjoint parts of all the cells, see :meth:`daodask.Store.split` (computes)."""
    shares = parse_fractions(fractions)
    seed = _checked_seed(seed)
    groups = _read_groups(store, _columns(store, by))
    if by is None:
        positions = deal_cells(groups.cells, list(shares.values()), seed)
        return {name: store.selection.take(chosen) for name, chosen in zip(shares, positions, strict=True)}
    keys = [label_key(seed, labels) for labels in groups.labels]
    part_of = deal_groups(groups.sizes, list(shares.values()), keys)
    return dict(zip(shares, _dealt(store.selection, groups, part_of, len(shares)), strict=True))


def _dealt(selection: Selection, groups: _Groups, part_of: Sequence[int], n_parts: int) -> list[Selection]:
    """A selection per part, of the groups that go there."""
    lookup = np.asarray(part_of, dtype=np.min_scalar_type(n_parts))
    numbers = [n for n, part in enumerate(selection.parts) if part.n_obs]
    own = {n: lookup[cells.codes] for n, cells in zip(numbers, groups.cells, strict=True)}
    return [
        selection.with_part_masks(tuple(own[n] == part if n in own else True for n in range(len(selection.parts))))
        for part in range(n_parts)
    ]


# -- what is asked for ---------------------------------------------------------------------------------------------


def _number_to_draw(n_obs: int, n: object, frac: object) -> int:
    if (n is None) == (frac is None):
        raise SelectionError(f"expected either n= or frac=, got n={n!r} and frac={frac!r}")
    if frac is not None:
        if isinstance(frac, bool) or not isinstance(frac, int | float) or not 0 <= frac <= 1:
            raise SelectionError(f"expected frac= as a share from 0 to 1, got {frac!r}; for a number of cells, use n=")
        return int(Fraction(repr(float(frac))) * n_obs + Fraction(1, 2))
    if not _is_whole(n):
        raise SelectionError(f"expected n= as a whole number of cells, got {n!r}; for a share of them, use frac=")
    if not 0 <= n <= n_obs:
        raise SelectionError(f"expected n= from 0 to the {n_obs} cells that there are, got {n}; none is drawn twice")
    return int(n)


def _checked_seed(seed: object) -> int:
    if not _is_whole(seed):
        raise SelectionError(f"expected seed= as a whole number, got {seed!r}")
    return int(seed)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _columns(store: Store, by: str | Sequence[str] | None) -> list[str]:
    names = [] if by is None else [by] if isinstance(by, str) else list(by)
    if by is not None and not names:
        raise SelectionError("expected by= as the name of a column or several, got none; leave by= away")
    binding = Binding(known_columns(store.obs_schema, store.dataset_ids))
    for name in names:
        binding.require(name)
    return names


# -- groups --------------------------------------------------------------------------------------------------------


def _read_groups(store: Store, columns: Sequence[str]) -> _Groups:
    """The groups of the selected cells, in order of appearance (computes)."""
    parts = store.selection.parts
    numbers = [n for n, part in enumerate(parts) if part.n_obs]
    with ThreadPoolExecutor(PLAN_THREADS) as threads:
        read = list(threads.map(lambda n: _part_groups(store, n, columns), numbers))
    known: dict[Labels, int] = {}
    cells = []
    for number, (labels, codes) in zip(numbers, read, strict=True):
        places = [known.setdefault(label, len(known)) for label in labels]
        lookup = np.array(places, dtype=np.min_scalar_type(len(known)))
        cells.append(Cells(parts[number].dataset, parts[number].rows, lookup[codes] if columns else codes))
    return _Groups(tuple(known), tuple(cells))


def _part_groups(store: Store, number: int, columns: Sequence[str]) -> tuple[list[Labels], npt.NDArray[np.integer]]:
    """The groups of the selected cells of one dataset, and each cell's among them."""
    n_obs = store.selection.parts[number].n_obs
    same = {name: label for name in columns for label in _only_label(store, number, name)}
    unsure = [name for name in columns if name not in same]
    frame = store.read_part_obs(number, unsure) if unsure else None
    groups: list[Labels] = [()]
    codes: npt.NDArray[np.integer] = np.broadcast_to(np.int8(0), n_obs)
    for name in columns:
        if frame is None or name in same:
            groups = [(*group, same[name]) for group in groups]
            continue
        own, labels = _coded(frame[name])
        present, codes = _compact(codes * np.int64(len(labels)) + own, len(groups) * len(labels))
        pairs = (divmod(pair, len(labels)) for pair in present.tolist())
        groups = [(*groups[group], labels[label]) for group, label in pairs]
        codes = codes.astype(np.min_scalar_type(len(groups)))
    return groups, codes


def _compact(codes: Int64Array, n: int) -> tuple[Int64Array, Int64Array]:
    """Which of ``n`` codes there are, and each one's position among these."""
    if n > max(len(codes), 1024):
        return np.unique(codes, return_inverse=True)
    counts = np.bincount(codes, minlength=n)
    return np.flatnonzero(counts), (np.cumsum(counts > 0) - 1)[codes]


def _only_label(store: Store, number: int, name: str) -> list[Label | None]:
    """The one label that all cells of a dataset have, where the snapshot says so."""
    extent = dataset_extents(store.dataset_infos[number], [name]).get(name)
    if extent is None:
        return [None]
    return list(extent.labels) if extent.labels is not None and len(extent.labels) == 1 and not extent.missing else []


def _coded(values: pd.Series[Any]) -> tuple[Int64Array, list[Label | None]]:
    """Each cell's label, by its position in a list, of which the last is that there is none."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, uniques = values.cat.codes.to_numpy(), list(values.cat.categories)
    else:
        codes, found = pd.factorize(values)
        uniques = list(found)
    labels = [getattr(label, "item", lambda label=label: label)() for label in uniques]
    return np.where(codes < 0, len(labels), codes).astype(np.int64), [*labels, None]
