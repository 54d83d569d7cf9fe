"""A study's values onto the columns of the feature space: pure functions of arrays.

What is ordinary, counts below 2**30 in one of four dtypes, is proven so in one pass over the values and placed in
another; everything else is looked at closely, and refused with the first value that is not what it should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from daodask.buffers import reused_empty
from daodask.errors import StreamlineError
from daodask.format.spec import exact_integer_dtype
from daodask.types import CSR, AnyArray, Int64Array

__all__ = ["MappedBlock", "are_whole", "map_block", "staged_index"]

#: Every whole number up to here is a float64.
_LARGEST_COUNT: Final = 2**53
_NOT_COUNTS: Final = "declare X: {kind: normalised}, or read the counts from another layer: raw | layers/<name>"

#: Up to here numbers are whole without a closer look; a value of each dtype that the kernels are compiled for.
_ORDINARY: Final = 2**30
_COMPILED: Final = tuple(np.dtype(t) for t in (np.float32, np.float64, np.int32, np.int64))


@dataclass(frozen=True, eq=False)
class MappedBlock:
    """A block of a study on the columns of the feature space, as canonical CSR: sorted, no duplicates, no zeros.

    Parameters
    ----------
    data
        Counts have the smallest unsigned dtype that holds this block's, other values float32 where that is exact, else
        float64.
    indices
        Columns, in the dtype in which they are staged.
    indptr
        Row bounds.
    n_vars
        Columns of the feature space.
    total, kept
        Sum of all values of the source's block, and of those that have a place in the feature space.
    largest
        Largest absolute value of ``data``.
    """

    data: AnyArray
    indices: AnyArray
    indptr: Int64Array
    n_vars: int
    total: float
    kept: float
    largest: float

    @property
    def matrix(self) -> CSR:
        """As SciPy has it, with signed indices."""
        indices = self.indices.astype(np.int32)
        return sp.csr_matrix((self.data, indices, self.indptr), shape=(len(self.indptr) - 1, self.n_vars))


def staged_index(n_vars: int) -> np.dtype[Any]:
    """Dtype of column numbers in scratch: the smallest that holds them."""
    return np.dtype(np.uint16 if n_vars <= 2**16 else np.int32)


def map_block(block: CSR, target: npt.NDArray[np.int32], n_vars: int, kind: str) -> MappedBlock:
    """Map a block of a study onto the columns of the feature space, and check its values.

    Parameters
    ----------
    block
        Rows of the source's matrix, canonical or not.
    target
        Column of the feature space per source column, negative where it is dropped. Values on one target are summed.
    n_vars
        Columns of the feature space.
    kind
        ``"counts"`` (integral, non-negative, finite), ``"normalised"`` (finite) or ``"other"``.

    Raises
    ------
    StreamlineError
        A value is not of the kind, or can't be held exactly.
    """
    if block.shape[1] != len(target):
        raise StreamlineError(f"expected a matrix of {len(target)} genes, as there are names, got {block.shape[1]}")
    values = np.asarray(block.data[: block.indptr[-1]])
    if values.dtype.kind not in "fiub":
        raise StreamlineError(f"expected a matrix of numbers, got {values.dtype}; convert it before building")
    place = _map_counts if kind == "counts" else _map_values
    return place(block, values, _Map.of(target, n_vars), kind)


# -- the map -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Map:
    """Columns as the kernel looks them up: dropped ones are the number of new columns, absent ones the next."""

    lookup: npt.NDArray[np.uint32]
    n_vars: int
    ascending: bool

    @classmethod
    def of(cls, target: npt.NDArray[np.int32], n_vars: int) -> _Map:
        kept = target[target >= 0]
        lookup = np.append(np.where(target >= 0, target, n_vars), n_vars + 1).astype(np.uint32)
        return cls(lookup, n_vars, bool(np.all(np.diff(kept) > 0)))

    def place(
        self, block: CSR, values: AnyArray, sums: npt.DTypeLike, out: npt.DTypeLike, allowed: float
    ) -> tuple[AnyArray, AnyArray, Int64Array] | None:
        """Values, columns and row bounds after mapping; ``None`` where a sum is larger than allowed."""
        from daodask.kernels import place_rows

        columns, placed = reused_empty(len(values), staged_index(self.n_vars)), reused_empty(len(values), out)
        indptr = np.empty(len(block.indptr), dtype=np.int64)
        n, strange, exceeded = place_rows(
            _unsigned(block.indices[: len(values)], len(self.lookup) - 1),
            values,
            block.indptr,
            self.lookup,
            self.ascending,
            np.zeros(self.n_vars + 2, dtype=sums),
            np.zeros((self.n_vars + 2 + 63) // 64, dtype=np.uint64),
            (columns, placed, indptr, np.asarray(allowed, dtype=sums)[()]),
        )
        if strange:
            raise StreamlineError(
                f"expected columns from 0 to {len(self.lookup) - 2}, got others too; the matrix is damaged: "
                f"write or download it again"
            )
        return None if exceeded else (placed[:n], columns[:n], indptr)


def _unsigned(columns: AnyArray, beyond: int) -> npt.NDArray[np.uint32]:
    """Column numbers as the kernel takes them: what is negative becomes very large, what would not fit, ``beyond``."""
    if columns.dtype.itemsize == 4:
        return columns.view(np.uint32)
    return np.minimum(columns.astype(np.int64).view(np.uint64), np.uint64(beyond)).astype(np.uint32)


# -- counts --------------------------------------------------------------------------------------------------------


def _map_counts(block: CSR, values: AnyArray, columns: _Map, kind: str) -> MappedBlock:
    counts, largest, total = _checked_counts(block, values, kind)
    longest_row = int(np.diff(block.indptr).max(initial=0))
    sums = np.uint32 if largest * longest_row < 2**32 else np.uint64
    narrow = exact_integer_dtype(largest)
    found = columns.place(block, counts, sums, narrow, min(np.iinfo(narrow).max, np.iinfo(sums).max, _LARGEST_COUNT))
    if found is None:
        found = columns.place(block, counts, np.uint64, np.uint64, _LARGEST_COUNT)
    if found is None:
        raise StreamlineError(f"expected counts up to {_LARGEST_COUNT}, got more as the sum of several genes")
    data, indices, indptr = found
    # What all has a place is as it was.
    all_placed = len(data) == len(values)
    most = largest if all_placed else int(data.max(initial=0))
    return MappedBlock(
        data=data.astype(exact_integer_dtype(most), copy=False),
        indices=indices,
        indptr=indptr,
        n_vars=columns.n_vars,
        total=float(total),
        kept=float(total if all_placed else data.sum(dtype=np.uint64)),
        largest=float(most),
    )


def _checked_counts(block: CSR, values: AnyArray, kind: str) -> tuple[AnyArray, int, int]:
    """The values in a dtype that kernels take, the largest of them, and their sum."""
    from daodask.kernels import whole_numbers

    if values.dtype in _COMPILED:
        # Not 2**30 itself for the sake of float32, which would have to round its predecessors.
        proven, largest, total = whole_numbers(values, values.dtype.type(_ORDINARY))
        if proven:
            return values, largest, total
    if not len(values):
        return values.astype(np.int64), 0, 0
    low, high = values.min().item(), values.max().item()
    # Written so that NaN, which compares false, is refused.
    if not (low >= 0 and high <= _LARGEST_COUNT):
        raise _refused(block, values, kind)
    counts = values.astype(np.int64)
    if values.dtype.kind == "f" and not np.array_equal(counts, values):
        raise _refused(block, values, kind)
    # Less than this, so that no sum of some of them can wrap around.
    about = float(counts.sum(dtype=np.float64))
    if about >= 2**63:
        raise StreamlineError(f"expected counts that add up to less than 2**63 in a block of rows, got {about:.3g}")
    return counts, int(high), int(counts.sum())


# -- other values --------------------------------------------------------------------------------------------------


def _map_values(block: CSR, values: AnyArray, columns: _Map, kind: str) -> MappedBlock:
    _check_values(block, values, kind)
    ordinary = values if values.dtype in _COMPILED else values.astype(np.float64)
    found = columns.place(block, ordinary, np.float64, np.float64, np.inf)
    if found is None:  # nothing is above infinity
        raise StreamlineError("expected values that can be compared with infinity")
    data, indices, indptr = found
    return MappedBlock(
        data=_single(data),
        indices=indices,
        indptr=indptr,
        n_vars=columns.n_vars,
        total=_sum(values),
        kept=_sum(data),
        largest=float(np.abs(data).max(initial=0)),
    )


def _sum(values: AnyArray) -> float:
    with np.errstate(invalid="ignore"):  # infinities of both signs add up to NaN, which says so by itself
        return float(values.sum(dtype=np.float64))


def _check_values(block: CSR, values: AnyArray, kind: str) -> None:
    if kind == "normalised" and values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _refused(block, values, kind)
    # As Python's integers: float64 rounds 2**53 + 1 to what is allowed.
    whole = values.dtype.kind in "iu" and len(values) > 0
    if whole and max(-values.min().item(), values.max().item()) > _LARGEST_COUNT:
        raise StreamlineError(f"expected values that float64 holds exactly, got whole numbers beyond {_LARGEST_COUNT}")


def _single(data: AnyArray) -> AnyArray:
    """The same values as float32 where that is exact."""
    with np.errstate(over="ignore"):
        single = data.astype(np.float32)
    return single if np.array_equal(single, data, equal_nan=True) else data


def are_whole(values: AnyArray) -> bool:
    """Whether they are non-negative whole numbers of which a float has every one."""
    return bool(np.all((values >= 0) & (values <= _LARGEST_COUNT) & (values == np.floor(values))))


# -- refusals ------------------------------------------------------------------------------------------------------


def _refused(block: CSR, values: AnyArray, kind: str) -> StreamlineError:
    """The error that shows the first value that is not of the kind."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    integral = finite & (wide >= 0) & (wide == np.floor(np.where(finite, wide, 0)))
    good = integral & (wide <= _LARGEST_COUNT) if kind == "counts" else finite
    first = int(np.argmin(good))
    row = int(np.searchsorted(block.indptr, first, side="right")) - 1
    where = f"{values[first]} in row {row}, column {block.indices[first]} of a block"
    if kind != "counts":
        return StreamlineError(f"expected finite values, got {where}; replace it, or declare X: {{kind: other}}")
    if integral[first]:
        return StreamlineError(f"expected counts up to {_LARGEST_COUNT}, got {where}")
    return StreamlineError(f"expected counts (integral, non-negative, finite), got {where}; {_NOT_COUNTS}")
