"""Quality of cells, as scanpy measures it: sums, genes and shares of genes, over all genes of the source. Pure.

What is measured is the study's matrix as it is read, before genes are mapped: a gene that has no place in the feature
space counts too, as it would for whoever looks at the study alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

import numpy as np
import numpy.typing as npt

from daodask.build._section import Section, expected, texts
from daodask.errors import SpecError, StreamlineError
from daodask.format.manifest import ColumnSummary
from daodask.format.spec import RESERVED_OBS_COLUMNS
from daodask.types import CSR, BoolArray

__all__ = ["BlockQuality", "QCColumn", "QCRange", "QCSpec", "gene_masks", "join_ranges", "qc_columns", "read_qc"]

_N_COUNTS: Final = "n_counts"
_N_GENES: Final = "n_genes"
_PCT_MT: Final = "pct_mt"

#: Symbols of mitochondrial genes by organism; other organisms' have no prefix in common.
_MITOCHONDRIAL: Final[Mapping[str, str]] = {
    "Homo sapiens": "MT-*",
    "Mus musculus": "mt-*",
    "Rattus norvegicus": "Mt-*",
    "Danio rerio": "mt-*",
}

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QCSpec:
    """What to measure of each cell.

    Parameters
    ----------
    n_counts, n_genes
        The sum of its values; the number of its genes that are not zero.
    pct
        Percentage of the sum that is in genes whose name or symbol has one of these shell patterns, by obs column.
    mitochondrial
        ``pct_mt`` as well, by the pattern of the study's organism.
    """

    n_counts: bool = False
    n_genes: bool = False
    pct: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mitochondrial: bool = False

    @property
    def shares(self) -> tuple[str, ...]:
        """Columns that are percentages."""
        return (*self.pct, *((_PCT_MT,) if self.mitochondrial else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are made."""
        sums = {_N_COUNTS: self.n_counts, _N_GENES: self.n_genes}
        return (*(name for name, wanted in sums.items() if wanted), *self.shares)


def read_qc(parent: Section, default: QCSpec) -> QCSpec:
    """``qc:`` of a section of the build file: true, false, or a mapping of what is wanted."""
    value, path = parent.get("qc"), parent.at("qc")
    if value is None:
        return default
    if isinstance(value, bool):
        return QCSpec(value, value, mitochondrial=value)
    section = Section.of(value, path, (_N_COUNTS, _N_GENES, "pct"))
    pct = section.get("pct")
    if isinstance(pct, bool):
        return QCSpec(section.flag(_N_COUNTS), section.flag(_N_GENES), mitochondrial=pct)
    shares = section.section("pct")
    for name in shares.values:
        if not name or "/" in name or name in (_N_COUNTS, _N_GENES, *RESERVED_OBS_COLUMNS):
            raise expected(shares.path, "the name of a column, as in pct: {pct_mt: MT-*}", name)
    patterns = {name: texts(shares.required(name), shares.at(name)) for name in shares.values}
    found = QCSpec(section.flag(_N_COUNTS), section.flag(_N_GENES), patterns)
    if not found.names:
        raise SpecError(f"{path}: expected something to measure, got none; say true, or n_counts, n_genes, pct")
    return found


@dataclass(frozen=True, slots=True)
class QCColumn:
    """A column that is measured: its name, its dtype, and the row of the gene masks that it is the share of."""

    name: str
    dtype: str
    mask: int = -1

    @property
    def summary(self) -> ColumnSummary:
        """What is known of it before it is measured."""
        return ColumnSummary(self.name, self.dtype)


def qc_columns(spec: QCSpec, kind: str) -> tuple[QCColumn, ...]:
    """The columns to measure on a matrix of that kind; sums of counts are whole numbers."""
    dtypes = {_N_COUNTS: "int64" if kind == "counts" else "float64", _N_GENES: "int32"}
    return tuple(
        QCColumn(name, dtypes.get(name, "float64"), spec.shares.index(name) if name in spec.shares else -1)
        for name in spec.names
    )


def gene_masks(spec: QCSpec, names: Sequence[str], symbols: Sequence[str], organism: str) -> BoolArray:
    """Which source genes each percentage is over.

    Parameters
    ----------
    names, symbols
        Of each source gene, of which either may have a pattern; a symbol may be empty.
    organism
        The study's.

    Returns
    -------
    ndarray of bool
        A row per percentage.

    Raises
    ------
    StreamlineError
        ``pct_mt`` is asked for, but the organism is unknown or its mitochondrial genes have no prefix.
    """
    patterns = dict(spec.pct)
    if spec.mitochondrial:
        if organism not in _MITOCHONDRIAL:
            raise StreamlineError(
                f"qc: expected {', '.join(_MITOCHONDRIAL)} as organism, whose mitochondrial genes have a prefix, got "
                f"{organism or 'an unknown one'}; say which genes they are (qc: {{pct: {{pct_mt: <pattern>}}}}), or "
                f"qc: false"
            )
        patterns[_PCT_MT] = (_MITOCHONDRIAL[organism],)
    masks = np.zeros((len(patterns), len(names)), dtype=np.bool_)
    for row, wanted in enumerate(patterns.values()):
        masks[row] = [
            any(fnmatchcase(text, p) for p in wanted for text in pair) for pair in zip(names, symbols, strict=True)
        ]
    return masks


# -- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QCRange:
    """Smallest and largest value of a column over some cells, ``None`` where there is none, and cells without one."""

    low: float | None
    high: float | None
    n_missing: int


class BlockQuality:
    """What is measured of the cells of a block, some rows at a time.

    Parameters
    ----------
    columns, masks
        What to measure, and over which genes.
    """

    def __init__(self, columns: tuple[QCColumn, ...], masks: BoolArray) -> None:
        self._columns = columns
        self._masks = masks
        self._parts: list[Float64Array] = [np.empty((len(columns), 0))]

    def add(self, rows: CSR) -> None:
        """Measure some more rows of the source's matrix."""
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        totals = _row_sums(rows)
        measured = np.empty((len(self._columns), rows.shape[0]))
        for i, column in enumerate(self._columns):
            if column.mask >= 0:
                measured[i] = self._share(rows, totals, column.mask)
            else:
                measured[i] = totals if column.name == _N_COUNTS else _row_genes(rows)
        self._parts.append(measured)

    def _share(self, rows: CSR, totals: Float64Array, mask: int) -> Float64Array:
        """Percentage per cell; missing in a cell without counts, and in all where the study has none of the genes."""
        genes = np.flatnonzero(self._masks[mask])
        if not len(genes):
            return np.full(rows.shape[0], np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            # As scanpy has it, to the last bit.
            share = _row_sums(rows[:, genes]) / totals * 100
        return np.where(np.isfinite(share), share, np.nan)

    @property
    def values(self) -> Float64Array:
        """A row per column, a column per cell."""
        return np.concatenate(self._parts, axis=1)

    @property
    def ranges(self) -> tuple[QCRange, ...]:
        """That of each column."""
        return tuple(_range(values) for values in self.values)


def _row_sums(rows: CSR) -> Float64Array:
    return _reduced(rows, rows.data)


def _row_genes(rows: CSR) -> Float64Array:
    return _reduced(rows, rows.data != 0)


def _reduced(rows: CSR, values: npt.NDArray[np.generic]) -> Float64Array:
    """Sum of each row's values, as float64, which holds every sum of counts."""
    sums = np.zeros(rows.shape[0])
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):
        # Where no row between them is empty, each sum ends where the next begins.
        with np.errstate(invalid="ignore"):
            sums[filled] = np.add.reduceat(values[: rows.indptr[-1]], rows.indptr[filled], dtype=np.float64)
    return sums


def _range(values: Float64Array) -> QCRange:
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (np.nan, np.nan)
    n_missing = len(values) - len(known)
    return QCRange(low if np.isfinite(low) else None, high if np.isfinite(high) else None, n_missing)


def join_ranges(columns: Sequence[QCColumn], blocks: Sequence[Sequence[QCRange]]) -> tuple[ColumnSummary, ...]:
    """What a snapshot has to know of each column, of the ranges of a study's blocks."""
    return tuple(_joined(column, [block[i] for block in blocks]) for i, column in enumerate(columns))


def _joined(column: QCColumn, ranges: Sequence[QCRange]) -> ColumnSummary:
    convert = float if column.dtype.startswith("float") else int
    low = [convert(r.low) for r in ranges if r.low is not None]
    high = [convert(r.high) for r in ranges if r.high is not None]
    missing = sum(r.n_missing for r in ranges)
    return ColumnSummary(column.name, column.dtype, missing, low=min(low, default=None), high=max(high, default=None))
