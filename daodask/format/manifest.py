"""What a snapshot says: frozen values, their JSON, and the pure rules by which one snapshot follows another."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np

from daodask.errors import FormatError, FormatVersionError, SelectionError
from daodask.format.spec import FORMAT_VERSION
from daodask.types import Label

__all__ = [
    "ColumnSummary",
    "DatasetInfo",
    "FeatureSpaceInfo",
    "MatrixInfo",
    "ObsColumn",
    "ObsmInfo",
    "Snapshot",
    "merge_schema",
]

T = TypeVar("T")


@dataclass(frozen=True)
class ColumnSummary:
    """What a snapshot knows of one obs column of one dataset.

    Parameters
    ----------
    name
        Name of the column.
    dtype
        ``"category"``, ``"string"``, ``"bool"`` or a numpy number dtype such as ``"int64"``.
    n_missing
        Cells without a value.
    categories
        Labels of a categorical in the order of its codes in this dataset; empty for other columns.
    counts
        Cells per category, aligned with ``categories``.
    ordered
        Whether the order of the categories has a meaning.
    low, high
        Smallest and largest value of a numeric column; ``None`` where it has none or where it is infinite.
    """

    name: str
    dtype: str
    n_missing: int = 0
    categories: tuple[Label, ...] = ()
    counts: tuple[int, ...] = ()
    ordered: bool = False
    low: int | float | None = None
    high: int | float | None = None


@dataclass(frozen=True)
class ObsColumn:
    """An obs column as the whole feature space has it: one dtype and, for categoricals, one list of categories.

    ``nullable`` says that some cell has no value, be it that its dataset lacks the column.
    """

    name: str
    dtype: str
    categories: tuple[Label, ...] = ()
    ordered: bool = False
    nullable: bool = False


@dataclass(frozen=True)
class MatrixInfo:
    """X or a layer of a dataset: ``name`` is ``"X"`` or ``"layers/<name>"``, ``largest`` its largest absolute value."""

    name: str
    kind: str
    dtype: str
    nnz: int
    largest: float = 0.0


@dataclass(frozen=True)
class ObsmInfo:
    """A dense array per cell: ``width`` columns."""

    name: str
    dtype: str
    width: int


@dataclass(frozen=True)
class DatasetInfo:
    """One streamlined study.

    Parameters
    ----------
    id, path
        Its id and its directory below the store's URL.
    features
        Name of its feature space.
    n_obs
        Cells.
    blocks
        Row bounds of its blocks, ``(0, …, n_obs)``.
    matrices, obsm, columns
        X and layers, dense arrays, obs columns.
    uns
        Facts of the study (organism, title, doi, …).
    checksum
        SHA-256 of the dataset's ``checksums.json``, which has the one of each file.
    nbytes
        Bytes of all its files.
    fingerprint
        Of everything the dataset was made from: the source's content, the study's spec, feature space and layout.
    source
        Where it came from: ``url``, ``size``, ``stamp`` and ``digest``.
    report
        What streamlining did, see :class:`daodask.build.report.StudyReport`.
    """

    id: str
    path: str
    features: str
    n_obs: int
    blocks: tuple[int, ...]
    matrices: tuple[MatrixInfo, ...]
    obsm: tuple[ObsmInfo, ...] = ()
    columns: tuple[ColumnSummary, ...] = ()
    uns: Mapping[str, Any] = field(default_factory=dict)
    checksum: str = ""
    nbytes: int = 0
    fingerprint: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def matrix(self) -> Mapping[str, MatrixInfo]:
        """Matrices by name."""
        return {m.name: m for m in self.matrices}

    @cached_property
    def column(self) -> Mapping[str, ColumnSummary]:
        """Obs columns by name."""
        return {c.name: c for c in self.columns}


@dataclass(frozen=True)
class FeatureSpaceInfo:
    """The ordered genes that datasets share, and the obs schema of those datasets."""

    name: str
    hash: str
    n_vars: int
    organism: str = ""
    obs: tuple[ObsColumn, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A complete manifest: what the store holds at one number."""

    number: int
    created: str
    written_by: str
    message: str = ""
    features: tuple[FeatureSpaceInfo, ...] = ()
    datasets: tuple[DatasetInfo, ...] = ()
    format: int = FORMAT_VERSION

    @cached_property
    def dataset(self) -> Mapping[str, DatasetInfo]:
        """Datasets by id."""
        return {d.id: d for d in self.datasets}

    def of_features(self, name: str) -> tuple[DatasetInfo, ...]:
        """Datasets of one feature space, in store order."""
        return tuple(d for d in self.datasets if d.features == name)

    def to_json(self) -> bytes:
        """The bytes of the snapshot file: UTF-8 JSON with sorted keys."""
        value = dataclasses.asdict(self)
        return json.dumps(value, allow_nan=False, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes, *, where: str = "snapshot") -> Snapshot:
        """Read a snapshot file; keys that this daodask doesn't know are passed over, as newer ones may add some.

        Raises
        ------
        FormatVersionError
            It was written in a newer format.
        FormatError
            It is not a snapshot.
        """
        try:
            value = json.loads(data)
            version = int(value["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{where}: expected a daodask snapshot (JSON with a number under 'format')") from error
        if version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{where}: written by a newer daodask: {value.get('written_by', 'unknown')} uses format {version}, "
                f"this one reads up to {FORMAT_VERSION}; upgrade daodask"
            )
        try:
            return typing.cast(Snapshot, _parse(cls, value))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{where}: not a valid snapshot of format {version}: {error!r}") from error


def merge_schema(datasets: Iterable[DatasetInfo], previous: tuple[ObsColumn, ...] = ()) -> tuple[ObsColumn, ...]:
    """The obs schema of a feature space, of its datasets' columns.

    Categories are the union in order of first appearance, and those of ``previous`` come first: codes never change
    their meaning from one snapshot to the next.

    Raises
    ------
    SelectionError
        A column has kinds that don't go together (a number here, a label there).
    """
    datasets = tuple(datasets)
    columns: dict[str, list[tuple[str, ColumnSummary]]] = {}
    for dataset in datasets:
        for summary in dataset.columns:
            columns.setdefault(summary.name, []).append((dataset.id, summary))
    known = {c.name: c for c in previous}
    ordered_names = [*(n for n in known if n in columns), *(n for n in columns if n not in known)]
    return tuple(_merge_column(n, columns[n], known.get(n), len(columns[n]) < len(datasets)) for n in ordered_names)


def _merge_column(
    name: str, summaries: list[tuple[str, ColumnSummary]], previous: ObsColumn | None, absent_somewhere: bool
) -> ObsColumn:
    first_id, first = summaries[0]
    dtype = first.dtype
    for dataset_id, summary in summaries[1:]:
        merged = merge_dtypes(dtype, summary.dtype)
        if merged is None or len({_label_kind(first), _label_kind(summary)} - {""}) > 1:
            raise SelectionError(
                f"obs column {name!r} is {_describe(first)} in {first_id!r} but {_describe(summary)} in "
                f"{dataset_id!r}; map one of them to the other's kind or to another name"
            )
        dtype = merged
    nullable = absent_somewhere or any(s.n_missing for _, s in summaries)
    if dtype != "category":
        return ObsColumn(name, dtype, nullable=nullable)
    lists = [s.categories for _, s in summaries]
    ordered = all(s.ordered for _, s in summaries) and len(set(lists)) == 1
    # An ordered categorical keeps its own order; any other keeps the codes that earlier snapshots gave.
    earlier = () if ordered or previous is None else previous.categories
    union = tuple(dict.fromkeys([*earlier, *(c for labels in lists for c in labels)]))
    return ObsColumn(name, dtype, union, ordered, nullable)


def merge_dtypes(a: str, b: str) -> str | None:
    """The dtype that holds both exactly, or ``None`` where there is none."""
    if a == b:
        return a
    if {a, b} == {"category", "string"}:
        return "string"
    if {a, b} & {"category", "string", "bool"}:
        return None
    merged = np.result_type(np.dtype(a), np.dtype(b))
    integers = np.dtype(a).kind in "iu" and np.dtype(b).kind in "iu"
    return None if integers and merged.kind == "f" else str(merged)


def _label_kind(summary: ColumnSummary) -> str:
    """Kind of the labels of a categorical or text column; empty for what has no label to tell by."""
    if summary.dtype == "category":
        return type(summary.categories[0]).__name__ if summary.categories else ""
    return "str" if summary.dtype == "string" else ""


def _describe(summary: ColumnSummary) -> str:
    return f"category of {_label_kind(summary)}" if summary.dtype == "category" else summary.dtype


# -- JSON -> dataclasses -------------------------------------------------------------------------------------------


@cache
def _field_types(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def _parse(kind: Any, value: Any) -> Any:
    """Make ``value``, out of JSON, into ``kind``: a dataclass of this module, a tuple, a mapping or a plain value."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _field_types(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        return kind(**{n: _parse(hints[n], value[n]) for n in names if n in value})
    origin = typing.get_origin(kind)
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        if not dataclasses.is_dataclass(inner):
            return tuple(value)
        return tuple(_parse(inner, v) for v in value)
    if origin in (typing.Union, types.UnionType) or kind is Any or origin is not None:
        return value
    if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.80}")
    return value
