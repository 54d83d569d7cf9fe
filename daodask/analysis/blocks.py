"""Aligned blocks as reductions see them: values, obs and genes of the same cells, decoded piece by piece.

A reduction that adds up needs no matrix: whole chunks are decoded into a buffer that stays in cache, and their rows are
added up from there in the dtype in which they are stored. Where that does not pay (few rows of each chunk) or can't be
done (only zarr-python knows the array), rows come from a CSR matrix, and look the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp

from daodask.analysis.transforms import Normalise, Transform
from daodask.arrays import Array, open_array, take
from daodask.blocks import BlockAddress, read_matrix, read_measured_by_source, read_obs
from daodask.by_gene import read_totals
from daodask.errors import CorruptStoreError
from daodask.format.manifest import ObsColumn
from daodask.format.spec import SOURCE_DATASET, VAR_MEASURED
from daodask.gather import csr_of, decode_into
from daodask.types import CSR, AnyArray, BoolArray, Int64Array

__all__ = ["Block", "MemoryBlock", "Reading", "Rows", "StoredBlock"]

#: Chunks that are decoded at a time: few enough to stay in the last cache, many enough to outweigh what Python takes.
_PIECE_CHUNKS: Final = 64
#: Share of a chunk's values that must be wanted for it to be decoded whole.
_WORTH_DECODING: Final = 0.4
_NOTHING: Final = np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some consecutive rows of a block, as kernels take them; what they hold is gone when the next are asked for.

    Parameters
    ----------
    first
        Position, in the block, of the first of them.
    columns, values, low, high, lookup
        See :mod:`daodask.analysis.kernels`.
    """

    first: int
    columns: AnyArray
    values: AnyArray
    low: Int64Array
    high: Int64Array
    lookup: AnyArray

    def __len__(self) -> int:
        return len(self.low)

    @property
    def arrays(self) -> tuple[AnyArray, AnyArray, Int64Array, Int64Array]:
        """Columns, values, and bounds of each row."""
        return self.columns, self.values, self.low, self.high

    def of(self, per_cell: AnyArray) -> AnyArray:
        """Those of the block's values per cell that are of these rows."""
        return per_cell[self.first : self.first + len(self)]


class Block(Protocol):
    """Cells of one dataset: what a reduction's ``block`` function is called with."""

    @property
    def obs(self) -> pd.DataFrame:
        """The columns that the reduction asked for, indexed by row numbers in the store."""
        ...

    @property
    def n_obs(self) -> int:
        """Cells."""
        ...

    @property
    def n_vars(self) -> int:
        """Selected genes."""
        ...

    @property
    def measured(self) -> BoolArray | None:
        """Which of the genes the cells' dataset measured, where that is to be heeded."""
        ...

    @property
    def X(self) -> CSR:
        """Transformed values of the selected genes."""
        ...

    def rows(self) -> Iterator[Rows]:
        """All rows, in order, with transformed values."""
        ...


@dataclass(frozen=True, eq=False)
class Reading:
    """What all tasks of a reduction have to know of the store.

    Parameters
    ----------
    matrix
        ``"X"`` or ``"layers/<name>"``.
    n_stored_vars
        Genes of the feature space.
    genes
        Columns to keep, in their order; ``None`` for all.
    dtype
        In which values of a matrix are handed out.
    schema, dataset_ids
        As :func:`daodask.blocks.read_obs` takes them.
    columns
        Obs columns to read.
    transform
        Of the values.
    counted
        1 for each stored column that is part of a cell's total, else 0; ``None`` for all.
    measured
        Whether blocks tell which genes were measured.
    """

    matrix: str
    n_stored_vars: int
    genes: Int64Array | None
    dtype: str
    schema: tuple[ObsColumn, ...]
    dataset_ids: tuple[str, ...]
    columns: tuple[str, ...]
    transform: Transform = None
    counted: AnyArray | None = None
    measured: bool = False

    @property
    def n_vars(self) -> int:
        """Selected genes."""
        return self.n_stored_vars if self.genes is None else len(self.genes)

    @cached_property
    def lookup(self) -> AnyArray:
        """Column of the result per stored column; the number of genes for those that are not selected."""
        if self.genes is None:
            return _identity(self.n_vars)
        lookup = np.full(self.n_stored_vars, self.n_vars, dtype=_narrow(self.n_vars))
        lookup[self.genes] = np.arange(self.n_vars)
        return lookup

    def __reduce__(self) -> tuple[Any, ...]:
        # What is cached stays here.
        names = type(self).__dataclass_fields__
        return Reading, tuple(getattr(self, name) for name in names)


@dataclass(frozen=True, eq=False)
class MemoryBlock:
    """A block of what is in memory: how reductions are tested, and what they get where a store has no block."""

    X: CSR
    obs: pd.DataFrame
    measured: BoolArray | None = None

    @property
    def n_obs(self) -> int:
        """Cells."""
        return int(self.X.shape[0])

    @property
    def n_vars(self) -> int:
        """Genes."""
        return int(self.X.shape[1])

    def rows(self) -> Iterator[Rows]:
        """All rows at once."""
        yield _csr_rows(self.X, _identity(self.n_vars))


class _Buffers:
    """Room for decoded and for transformed values, used again for each piece."""

    def __init__(self) -> None:
        self._of_transformed = np.empty(0)

    def transformed(self, n: int) -> AnyArray:
        if len(self._of_transformed) < n:
            self._of_transformed = np.empty(n)
        return self._of_transformed[:n]


@dataclass(frozen=True, eq=False)
class StoredBlock:
    """A block of a store, of which nothing is read before it is asked for.

    Parameters
    ----------
    reading
        What is read.
    address
        Of which cells.
    source
        The study that all cells are of, where a dataset was shuffled of several.
    """

    reading: Reading
    address: BlockAddress
    source: str | None = None
    _buffers: _Buffers = field(default_factory=_Buffers, repr=False)

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.address.n_obs

    @property
    def n_vars(self) -> int:
        """Selected genes."""
        return self.reading.n_vars

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The columns that the reduction asked for (computes)."""
        r = self.reading
        if not r.columns:
            return pd.DataFrame(index=pd.Index(self.address.local_rows + self.address.offset))
        return read_obs(self.address, r.schema, r.dataset_ids, r.columns)

    @cached_property
    def measured(self) -> BoolArray | None:
        """Which of the genes the cells' study measured, where that is to be heeded (computes)."""
        if not self.reading.measured:
            return None
        if self.source is not None:
            mask = read_measured_by_source(self.address.dataset)[self.source]
        else:
            stored = open_array(self.address.dataset, f"var/{VAR_MEASURED}").read(0, self.reading.n_stored_vars)
            mask = stored.astype(bool)
        return mask if self.reading.genes is None else mask[self.reading.genes]

    def by_study(self) -> list[StoredBlock]:
        """The block itself, or cut by study where it matters what each of several has measured (computes)."""
        named = any(column.name == SOURCE_DATASET for column in self.reading.schema)
        # A study may have brought a column of the name.
        if not self.reading.measured or not named or not read_measured_by_source(self.address.dataset):
            return [self]
        r, rows = self.reading, self.address.local_rows
        study = read_obs(self.address, r.schema, r.dataset_ids, [SOURCE_DATASET])[SOURCE_DATASET].to_numpy()
        return [StoredBlock(r, replace(self.address, rows=rows[study == name]), str(name)) for name in pd.unique(study)]

    @property
    def X(self) -> CSR:
        """Transformed values of the selected genes (computes)."""
        r = self.reading
        if r.transform is None:
            return read_matrix(self.address, r.matrix, r.genes, r.dtype)
        few = self._few_genes()
        whole = read_matrix(self.address, r.matrix, None, r.dtype) if few is None else few
        rows = self._transformed(_csr_rows(whole, r.lookup))
        values = rows.values.astype(r.dtype)
        changed = csr_of(values, whole.indices, whole.indptr, whole.shape)
        if r.genes is None:
            return changed
        selected: CSR = changed[:, r.genes if few is None else np.arange(r.n_vars)]
        selected.sort_indices()
        return selected

    def _few_genes(self) -> CSR | None:
        """The selected genes, where they are to be read from the matrix's copy by gene (computes).

        Where cells are normalised by their totals, a column follows with what each has of all other genes.
        """
        r, block = self.reading, self.address
        copy = block.by_gene(r.matrix, r.genes)
        if copy is None or r.counted is not None:
            return None
        if not isinstance(r.transform, Normalise):
            return read_matrix(block, r.matrix, r.genes, r.dtype)
        # As float32 holds the counts of a gene, but not those of a cell.
        genes = read_matrix(block, r.matrix, r.genes, "float64")
        others = read_totals(block.dataset, copy, block.local_rows) - np.asarray(genes.sum(axis=1)).ravel()
        both: CSR = sp.hstack([genes, sp.csr_matrix(others[:, None])], format="csr")
        return both

    def rows(self) -> Iterator[Rows]:
        """All rows, in order, with transformed values (computes)."""
        for rows in self._stored_rows():
            yield self._transformed(rows)

    def _stored_rows(self) -> Iterator[Rows]:
        r = self.reading
        few = self._few_genes()
        if few is not None:
            # What is no gene is not selected.
            yield _csr_rows(few, np.append(_identity(r.n_vars), np.array(r.n_vars, _narrow(r.n_vars))))
            return
        arrays = [open_array(self.address.dataset, f"{r.matrix}/{name}") for name in ("indices", "data")]
        indptr = open_array(self.address.dataset, f"{r.matrix}/indptr")
        local = self.address.local_rows
        if not len(local):
            return
        low, high = (take(indptr, rows).astype(np.int64) for rows in (local, local + 1))
        dense = (high - low).sum() >= _WORTH_DECODING * (high[-1] - low[0])
        if dense and len({a.spec.chunk_length if a.spec else -i for i, a in enumerate(arrays)}) == 1:
            yield from _decoded_rows(arrays, low, high, r.lookup)
        else:
            yield _csr_rows(read_matrix(self.address, r.matrix, None, r.dtype), r.lookup)

    def _transformed(self, rows: Rows) -> Rows:
        transform = self.reading.transform
        if transform is None:
            return rows
        out = self._buffers.transformed(len(rows.values))
        from daodask.analysis.kernels import expm1_rows, normalise_rows

        if isinstance(transform, Normalise):
            counted = _NOTHING if self.reading.counted is None else self.reading.counted
            target = 1.0 if transform.target_sum is None else transform.target_sum
            normalise_rows(*rows.arrays, counted, target, transform.log1p, out)
        else:
            expm1_rows(rows.values, rows.low, rows.high, out)
        return Rows(rows.first, rows.columns, out, rows.low, rows.high, rows.lookup)


def _narrow(n_vars: int) -> type[np.unsignedinteger[Any]]:
    """Small, so that a lookup stays in cache."""
    return np.uint16 if n_vars < 2**16 else np.uint32


def _identity(n_vars: int) -> AnyArray:
    return np.arange(n_vars, dtype=_narrow(n_vars))


def _csr_rows(X: CSR, lookup: AnyArray) -> Rows:
    bounds = X.indptr.astype(np.int64)
    return Rows(0, X.indices, X.data, bounds[:-1], bounds[1:], lookup)


def _decoded_rows(arrays: Sequence[Array], low: Int64Array, high: Int64Array, lookup: AnyArray) -> Iterator[Rows]:
    """Rows out of decoded chunks; what a piece has of its last row is put before the next piece."""
    scratches = [array.scratch() for array in arrays]
    chunk = len(scratches[0])
    # No row has more elements than there are genes.
    before = len(lookup)
    room = [np.empty(before + _PIECE_CHUNKS * chunk, dtype=scratch.dtype) for scratch in scratches]
    spec = arrays[0].spec
    length = spec.length if spec is not None else 0
    done, end = 0, -(-int(high[-1]) // chunk)
    for first in range(int(low[0]) // chunk, end, _PIECE_CHUNKS):
        last = min(first + _PIECE_CHUNKS, end)
        for array, buffer in zip(arrays, room, strict=True):
            decode_into(array, array.fetch(range(first, last)), buffer[before : before + (last - first) * chunk])
        start, stop = first * chunk, min(last * chunk, length)
        _check_columns(room[0][before : before + stop - start], len(lookup), arrays[0])
        complete = int(np.searchsorted(high, stop, side="right"))
        if complete > done:
            bounds = slice(done, complete)
            yield Rows(done, room[0], room[1], low[bounds] - start + before, high[bounds] - start + before, lookup)
        done = complete
        if done < len(low) and low[done] < stop:
            _carry_over(room, stop - start + before, stop - int(low[done]), before, arrays[0])
    if done < len(low):
        empty = np.zeros(len(low) - done, dtype=np.int64)
        yield Rows(done, room[0], room[1], empty, empty, lookup)


def _check_columns(columns: AnyArray, n_vars: int, array: Array) -> None:
    if len(columns) and int(columns.max()) >= n_vars:
        raise CorruptStoreError(
            f"{array.where}: expected indices below {n_vars}, got {int(columns.max())}; check the store with "
            f"daodask validate"
        )


def _carry_over(room: Sequence[AnyArray], end: int, n: int, before: int, array: Array) -> None:
    if n > before:
        raise CorruptStoreError(f"{array.where}: expected rows of at most {before} elements, got one of {n} or more")
    for buffer in room:
        buffer[before - n : before] = buffer[end - n : end].copy()
