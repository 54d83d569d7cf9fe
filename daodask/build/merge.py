"""Stores in a build file: their datasets as studies, and their feature spaces as what to streamline onto."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from daodask.build._section import Section, expected
from daodask.errors import DaodaskError, SpecError, suggest
from daodask.format.features import FeatureSpace
from daodask.format.manifest import DatasetInfo, FeatureSpaceInfo, Snapshot
from daodask.format.spec import feature_path
from daodask.snapshots import read_snapshot
from daodask.sources.base import SourceAddress
from daodask.storage import StoreLocation

__all__ = ["StoredStudy", "is_store_entry", "read_feature_space", "stored_studies"]

_STORE: Final = "store"
_STUDY_KEYS: Final = (_STORE, "datasets", "snapshot", "features", "prefix", "rename", "storage_options", "download")
_FEATURE_KEYS: Final = (_STORE, "features", "snapshot", "storage_options")

#: Finds the location that a section names under a key.
Locate = Callable[[Section, str], StoreLocation]


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """A dataset of a store as a study: what of it a build file would otherwise say.

    Parameters
    ----------
    id, source
        Its id in the new store, and where it is.
    features
        Name of its feature space, in the old store and, unless another is asked for, in the new one.
    chosen
        Name of the feature space asked for; empty where none was.
    kind, dtype
        Of ``X``, as it is stored.
    layers
        All of them, by name.
    uns
        Its facts.
    """

    id: str
    source: SourceAddress
    features: str
    chosen: str
    kind: str
    dtype: str
    layers: Mapping[str, str]
    uns: Mapping[str, Any]


def is_store_entry(value: object) -> bool:
    """Whether an entry of ``studies:`` or a ``reference:`` names a store."""
    return isinstance(value, Mapping) and _STORE in value


def stored_studies(value: object, path: str, locate: Locate) -> Iterator[StoredStudy]:
    """A study per dataset of a store: all datasets of a snapshot, or those named (one listing and one read).

    Raises
    ------
    SpecError
        There is no such store, snapshot or dataset.
    """
    section = Section.of(value, path, _STUDY_KEYS)
    location, snapshot = _opened(section, locate)
    rename = section.section("rename")
    for info in _chosen(section, snapshot):
        new = rename.text(info.id) if info.id in rename else section.text("prefix", "") + info.id
        yield StoredStudy(
            id=new,
            source=SourceAddress(location / info.path, "dao", download=section.flag("download")),
            features=info.features,
            chosen=section.text("features", ""),
            kind=info.matrix["X"].kind,
            dtype="float32" if np.dtype(info.matrix["X"].dtype).kind == "f" else "",
            layers={m.name.removeprefix("layers/"): m.name for m in info.matrices if m.name != "X"},
            uns=dict(info.uns),
        )


def read_feature_space(value: object, path: str, name: str, locate: Locate) -> FeatureSpace:
    """The feature space of a store, by its name where there are several (one listing and two reads).

    Parameters
    ----------
    value, path
        The mapping with ``store:``, and where in the build file it is.
    name
        What the feature space is called in the new store.

    Raises
    ------
    SpecError
        There is no such store, snapshot or feature space.
    """
    section = Section.of(value, path, _FEATURE_KEYS)
    location, snapshot = _opened(section, locate)
    info = _feature_space(section, snapshot)
    try:
        content = (location / feature_path(info.hash)).read()
        return FeatureSpace.from_parquet(content, name=name, organism=info.organism)
    except DaodaskError as error:
        raise SpecError(f"{section.at(_STORE)}: {error}") from error


def _opened(section: Section, locate: Locate) -> tuple[StoreLocation, Snapshot]:
    location = locate(section, _STORE)
    number = section.positive("snapshot", 1) if "snapshot" in section else None
    try:
        return location, read_snapshot(location, number)
    except DaodaskError as error:
        raise SpecError(f"{section.at(_STORE)}: {error}") from error


def _chosen(section: Section, snapshot: Snapshot) -> tuple[DatasetInfo, ...]:
    """The datasets asked for, in the order of the store."""
    names = section.texts("datasets")
    for key, ids in (("datasets", names), ("rename", tuple(section.section("rename").values))):
        for name in ids:
            if name not in snapshot.dataset:
                hint = suggest(name, snapshot.dataset)
                raise SpecError(f"{section.at(key)}: the store has no dataset {name!r}; {hint}")
    chosen = tuple(d for d in snapshot.datasets if d.id in names) if names else snapshot.datasets
    if not chosen:
        raise expected(section.at(_STORE), "a store with datasets in it", "one without")
    return chosen


def _feature_space(section: Section, snapshot: Snapshot) -> FeatureSpaceInfo:
    by_name = {f.name: f for f in snapshot.features}
    if "features" not in section and len(by_name) == 1:
        return snapshot.features[0]
    name = section.text("features", "")
    if name not in by_name:
        raise SpecError(f"{section.at('features')}: expected a feature space of the store; {suggest(name, by_name)}")
    return by_name[name]
