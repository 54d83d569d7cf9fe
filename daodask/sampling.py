"""Who is drawn and who goes where, of numbers alone. Pure.

Each cell has a key, as good as random, that depends on the seed, on its dataset and on its row there, and on nothing
else: not on numpy's generators, whose streams may change, not on what else the store holds and not on what else is
selected. The cells of the smallest keys are drawn. So a larger sample contains a smaller one of the same seed, and the
same cells are drawn of a dataset when others are added to a store and as many more cells are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from daodask.errors import SelectionError
from daodask.types import Int64Array, Label

__all__ = [
    "Cells",
    "apportion",
    "cell_keys",
    "count_codes",
    "deal_cells",
    "deal_groups",
    "label_key",
    "parse_fractions",
    "smallest",
]

#: Of a stratum, so many more candidates are looked at first than are expected, in standard deviations of their number.
_SLACK: Final = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Selected cells of one dataset.

    Parameters
    ----------
    dataset
        Its id.
    rows
        Their rows in the dataset; ``None`` for all.
    codes
        Which stratum or group each belongs to, from 0.
    """

    dataset: str
    rows: Int64Array | None
    codes: npt.NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.codes)

    def keys(self, seed: int) -> npt.NDArray[np.uint64]:
        """The key of each cell."""
        rows = np.arange(len(self), dtype=np.int64) if self.rows is None else self.rows
        return cell_keys(seed, self.dataset, rows)


def _digest(*values: object) -> int:
    """64 bits that are the same for the same values, on any machine."""
    text = json.dumps(values, ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def label_key(seed: int, labels: Sequence[Label | None]) -> int:
    """The key of a group: as good as random, and the same for the same labels."""
    return _digest(seed, *labels)


def cell_keys(seed: int, dataset: str, rows: Int64Array) -> npt.NDArray[np.uint64]:
    """The key of each cell: splitmix64 [1]_ of its row, beginning at a place of the dataset's own.

    References
    ----------
    .. [1] Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    keys = rows.astype(np.uint64)
    keys += np.uint64(1)
    keys *= np.uint64(0x9E3779B97F4A7C15)
    keys += np.uint64(_digest(seed, dataset))
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys


def apportion(weights: Sequence[int | Fraction], total: int, keys: Sequence[int] | None = None) -> list[int]:
    """Whole numbers in proportion to weights that add up to ``total``: largest remainders, exactly.

    Parameters
    ----------
    weights
        None is negative.
    total
        At most the sum of the weights, or numbers could be larger than weights.
    keys
        Of equal remainders the one of the smaller key comes first; by default in order.
    """
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    shares = [Fraction(weight) * total / whole for weight in weights]
    numbers = [int(share) for share in shares]
    order = range(len(weights)) if keys is None else keys
    first = sorted(range(len(weights)), key=lambda i: (numbers[i] - shares[i], order[i]))
    for i in first[: total - sum(numbers)]:
        numbers[i] += 1
    return numbers


def smallest(cells: Sequence[Cells], quotas: Sequence[int], seed: int, *, slack: float = _SLACK) -> Int64Array:
    """Positions, among all the cells, of those with the smallest keys of each stratum, increasing.

    Keys are made dataset by dataset, and only those kept that may be among the smallest, so that a small sample takes
    little memory however many cells there are.

    Parameters
    ----------
    cells
        Dataset by dataset.
    quotas
        How many of each stratum; there are as many at least.
    seed
        Of the keys.
    slack
        How generously candidates are chosen; the result doesn't depend on it.
    """
    wanted = np.asarray(quotas, dtype=np.int64)
    sizes = count_codes(cells, len(wanted))
    while True:
        share = (wanted + slack * np.sqrt(wanted)) / np.maximum(sizes, 1)
        places, keys, codes = _candidates(cells, share, seed)
        found = np.bincount(codes, minlength=len(wanted))
        if (found >= wanted).all():
            break
        slack = 2 * slack + 1
    order = np.lexsort((keys, codes))
    starts = np.cumsum([0, *found[:-1]])
    rank = np.arange(len(order)) - starts[codes[order]]
    return np.sort(places[order[rank < wanted[codes[order]]]])


def count_codes(cells: Sequence[Cells], n: int) -> Int64Array:
    """How many of the cells have each of ``n`` codes."""
    counts = np.zeros(n, dtype=np.int64)
    for part in cells:
        counts += np.bincount(part.codes, minlength=n)
    return counts


def _candidates(
    cells: Sequence[Cells], share: npt.NDArray[np.float64], seed: int
) -> tuple[Int64Array, npt.NDArray[np.uint64], Int64Array]:
    """Places, keys and strata of the cells whose keys are within a share of all keys, stratum by stratum."""
    all_of_them = share >= 1
    limits = (np.where(all_of_them, 0, share) * 2.0**64).astype(np.uint64)
    limits[all_of_them] = np.iinfo(np.uint64).max
    limits[share == 0] = 0
    places, keys, codes, start = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
    for part in cells:
        own = part.keys(seed)
        inside = np.flatnonzero(own <= limits[part.codes])
        places.append(inside + start)
        keys.append(own[inside])
        codes.append(part.codes[inside].astype(np.int64))
        start += len(part)
    return np.concatenate(places), np.concatenate(keys), np.concatenate(codes)


# -- parts ---------------------------------------------------------------------------------------------------------


def parse_fractions(fractions: object) -> dict[str, Fraction]:
    """Shares of parts, as exact as they were written: 0.1 is a tenth.

    Raises
    ------
    SelectionError
        There is none, one is not between 0 and 1, or they don't add up to 1.
    """
    if not fractions or not isinstance(fractions, Mapping):
        raise SelectionError(
            f'expected the share of each part, such as {{"train": 0.8, "val": 0.2}}, got {fractions!r}'
        )
    exact = {name: _share(name, share) for name, share in fractions.items()}
    total = sum(exact.values(), Fraction(0))
    if abs(total - 1) > 1e-9:
        raise SelectionError(
            f"expected shares that add up to 1, got {float(total):g}; name a part for the rest as well, or correct them"
        )
    return exact


def _share(name: str, share: object) -> Fraction:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise SelectionError(f"part {name!r}: expected a share above 0 and at most 1, got {share!r}")
    return Fraction(repr(float(share)))


def deal_cells(cells: Sequence[Cells], fractions: Sequence[Fraction], seed: int) -> list[Int64Array]:
    """Positions of the cells of each part, increasing: as many as the shares say, at random.

    Raises
    ------
    SelectionError
        A part would be without a cell.
    """
    n = sum(len(c) for c in cells)
    numbers = apportion(fractions, n)
    if not all(numbers):
        raise SelectionError(f"expected a cell for each part, got {numbers} cells of {n}; make fewer or larger parts")
    keys = np.concatenate([c.keys(seed) for c in cells])
    cuts = np.cumsum(numbers)[:-1]
    order = np.argpartition(keys, cuts) if len(cuts) else np.arange(n)
    return [np.sort(part).astype(np.int64) for part in np.split(order, cuts)]


def deal_groups(sizes: Sequence[int], fractions: Sequence[Fraction], keys: Sequence[int]) -> list[int]:
    """The part that each group goes to, as a whole: the groups come one after another, in the order of their keys.

    Each goes to the part that lacks most cells, so that no part has more than its share by a group or more, unless it
    has one group only; and each part has one.

    Raises
    ------
    SelectionError
        There are fewer groups than parts.
    """
    if len(sizes) < len(fractions):
        raise SelectionError(
            f"expected at least a group for each part, got {len(sizes)} groups for {len(fractions)} parts; "
            f"make fewer parts, or split by another column"
        )
    total, whole = sum(sizes), sum(fractions)
    lacks = [fraction * total / whole for fraction in fractions]
    empty = set(range(len(fractions)))
    parts = [0] * len(sizes)
    for left, group in zip(range(len(sizes), 0, -1), sorted(range(len(sizes)), key=lambda i: keys[i]), strict=True):
        open_to = empty if left == len(empty) else range(len(fractions))
        chosen = max(open_to, key=lambda part: (lacks[part], -part))
        lacks[chosen] -= sizes[group]
        empty.discard(chosen)
        parts[group] = chosen
    return parts
