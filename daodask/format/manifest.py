"""What a snapshot says: frozen values, their JSON, and the pure rules by which one snapshot follows another."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, Final

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
    "with_merged_schemas",
]


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
    """X or a layer of a dataset.

    ``name`` is ``"X"`` or ``"layers/<name>"``, ``largest`` its largest absolute value, ``by_gene`` the elements of an
    inner chunk of its copy by gene: 0 where it has none.
    """

    name: str
    kind: str
    dtype: str
    nnz: int
    largest: float = 0.0
    by_gene: int = 0


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
    author: str = ""
    format: int = FORMAT_VERSION

    @cached_property
    def dataset(self) -> Mapping[str, DatasetInfo]:
        """Datasets by id."""
        return {d.id: d for d in self.datasets}

    def of_features(self, name: str) -> tuple[DatasetInfo, ...]:
        """Datasets of one feature space, in store order."""
        return tuple(d for d in self.datasets if d.features == name)

    def to_json(self) -> bytes:
        """The bytes of the snapshot file: UTF-8 JSON with sorted keys, and ``null`` for numbers that JSON lacks."""
        value = _finite(dataclasses.asdict(self))
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
        with _no_collection():
            return _read_json(cls, data, where)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Leave out the search for garbage: of a large snapshot, all of whose values stay, it is half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_json(cls: Any, data: bytes, where: str) -> Snapshot:
    try:
        value = json.loads(data)
        version = _parser(int)(value["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{where}: expected a daodask snapshot (JSON with a number under 'format')") from error
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{where}: written by a newer daodask: {value.get('written_by', 'unknown')} uses format {version}, "
            f"this one reads up to {FORMAT_VERSION}; upgrade daodask"
        )
    try:
        return typing.cast(Snapshot, _parser(cls)(value))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: not a valid snapshot of format {version}: {error!r}") from error


def with_merged_schemas(snapshot: Snapshot) -> Snapshot:
    """The snapshot with the obs schema of each feature space computed anew, see :func:`merge_schema`.

    Raises
    ------
    SelectionError
        Obs columns don't go together.
    """
    spaces = (dataclasses.replace(s, obs=merge_schema(snapshot.of_features(s.name), s.obs)) for s in snapshot.features)
    return dataclasses.replace(snapshot, features=tuple(spaces))


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
    for dataset_id, summary in summaries:
        merged = merge_dtypes(dtype, summary.dtype)
        if merged is None or (_label_kind(first) and _label_kind(summary) not in ("", _label_kind(first))):
            raise SelectionError(
                f"obs column {name!r} is {_describe(first)} in {first_id!r} but {_describe(summary)} in "
                f"{dataset_id!r}; map one of them to the other's kind or to another name"
            )
        if any(isinstance(label, float) and not math.isfinite(label) for label in summary.categories):
            raise SelectionError(f"obs column {name!r} has an infinite label in {dataset_id!r}; map it to a finite one")
        if not _label_kind(first):
            first_id, first = dataset_id, summary
        dtype = merged
    if dtype == "float64":
        _check_exact(name, summaries)
    nullable = absent_somewhere or any(s.n_missing for _, s in summaries)
    if dtype != "category":
        return ObsColumn(name, dtype, nullable=nullable)
    lists = [s.categories for _, s in summaries]
    ordered = all(s.ordered for _, s in summaries) and len(set(lists)) == 1
    # An ordered categorical keeps its own order; any other keeps the codes that earlier snapshots gave.
    earlier = () if ordered or previous is None else previous.categories
    union = tuple(dict.fromkeys([*earlier, *(c for labels in lists for c in labels)]))
    return ObsColumn(name, dtype, union, ordered, nullable)


#: Every whole number up to here is a float64.
_EXACT = 2**53


def _check_exact(name: str, summaries: list[tuple[str, ColumnSummary]]) -> None:
    """Refuse integers that would be rounded among floats."""
    for dataset_id, summary in summaries:
        ends = (summary.low, summary.high) if not summary.dtype.lower().startswith("float") else ()
        if any(end is not None and abs(end) > _EXACT for end in ends):
            raise SelectionError(
                f"obs column {name!r} has integers beyond 2**53 in {dataset_id!r} and fractions elsewhere, which have "
                f"no dtype in common; map one of them to another name"
            )


def merge_dtypes(a: str, b: str) -> str | None:
    """The dtype that both go into, or ``None`` where there is none; see :data:`_EXACT` for integers among floats."""
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
def _parser(kind: Any) -> Callable[[Any], Any]:
    """What makes a value, out of JSON, into ``kind``: a dataclass of this module, a tuple, a mapping or a plain value.

    Made once a kind, as a snapshot has 50 columns of each of 1,000 datasets.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return _object_parser(kind, {f.name: _parser(hints[f.name]) for f in dataclasses.fields(kind)})
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            return partial(_parse_objects, _parser(inner))
        return partial(_parse_labels, inner, frozenset(_JSON_TYPES[inner]))
    return partial(_parse_plain, _JSON_TYPES.get(kind, (dict,)), math.nan if kind is float else None)


def _object_parser(kind: type, parsers: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        # Keys that this daodask doesn't know are passed over; one that is needed is missed by the class itself.
        return kind(**{name: parser(value[name]) for name, parser in parsers.items() if name in value})

    return parse


def _parse_plain(expected: tuple[type, ...], absent: float | None, value: Any) -> Any:
    if type(value) in expected:
        return value
    if value is None and absent is not None:
        return absent
    raise TypeError(f"expected {' or '.join(t.__name__ for t in expected)}, got {value!r:.80}")


def _parse_objects(parser: Callable[[Any], Any], values: Any) -> tuple[Any, ...]:
    return tuple(map(parser, _require_list(values)))


def _parse_labels(kind: Any, expected: frozenset[type], values: Any) -> tuple[Any, ...]:
    # Lists of labels and counts are long: one look at the few types that are there.
    if not expected.issuperset(map(type, _require_list(values))):
        raise TypeError(f"expected a list of {kind}, got {values!r:.80}")
    return tuple(values)


def _require_list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"expected list, got {values!r:.80}")
    return values


#: Types that JSON values of a field may have; a field that is not listed is an object.
_JSON_TYPES: Final[Mapping[Any, tuple[type, ...]]] = {
    str: (str,),
    int: (int,),
    bool: (bool,),
    float: (float, int),
    Label: (str, int, float, bool),
    int | float | None: (int, float, type(None)),
}


def _finite(value: Any) -> Any:
    """The value with ``None`` in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
