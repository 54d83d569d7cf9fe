"""The build file: YAML (or a dict of the same shape) into a frozen, fully checked :class:`BuildSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daodask.format.spec import Layout
from daodask.sources.base import Source, SourceAddress
from daodask.storage import StoreLocation
from daodask.types import Label

__all__ = ["BuildSpec", "FeatureSpec", "ObsRule", "SchemaColumn", "StudySpec"]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A feature space to streamline onto.

    ``reference`` is the location of a gene table, or ``"union"`` / ``"intersection"`` of the studies' own names.
    """

    name: str
    reference: StoreLocation | str
    synonyms: StoreLocation | None = None
    biotypes: tuple[str, ...] = ()
    duplicates: str = "sum"
    organism: str = ""
    min_matched: float = 0.1


@dataclass(frozen=True, slots=True)
class SchemaColumn:
    """A column of the store's obs schema. ``missing`` replaces absent values; ``None`` leaves them absent."""

    name: str
    required: bool = False
    missing: Label | None = None


@dataclass(frozen=True, slots=True)
class ObsRule:
    """How a study fills an obs column: from source columns (joined where several), mapped; or a constant ``value``."""

    name: str
    columns: tuple[str, ...] = ()
    join: str = "_"
    map: Mapping[Label, Label] = field(default_factory=dict)
    value: Label | None = None


@dataclass(frozen=True, slots=True)
class StudySpec:
    """One study: where it is, what to read of it, and how it maps onto the store."""

    id: str
    source: SourceAddress | Source
    features: str
    matrix: str = "X"
    kind: str = "counts"
    dtype: str = ""
    genes: str = "index"
    layers: Mapping[str, str] = field(default_factory=dict)
    obsm: tuple[str, ...] = ()
    obs: tuple[ObsRule, ...] = ()
    keep: tuple[str, ...] = ()
    uns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """A whole build: feature spaces, the obs schema, the layout and the studies."""

    features: tuple[FeatureSpec, ...]
    studies: tuple[StudySpec, ...]
    schema: tuple[SchemaColumn, ...] = ()
    layout: Layout = field(default_factory=Layout)
