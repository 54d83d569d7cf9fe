"""A selection into another store: a build of which each study is a dataset of this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from daodask.build.shuffling import ShuffleSpec
from daodask.build.spec import BuildSpec, FeatureSpec, StudySpec
from daodask.errors import UnknownNameError, suggest
from daodask.export.source import sources_of
from daodask.format.features import FeatureSpace
from daodask.format.manifest import DatasetInfo
from daodask.format.spec import Layout
from daodask.store import Store

__all__ = ["spec_of"]


def spec_of(
    store: Store, layout: Layout, layers: Sequence[str] | None, dtype: str | None, shuffle: ShuffleSpec
) -> BuildSpec:
    """The build that makes a store of the selection: the same datasets, with the selected cells and genes.

    Parameters
    ----------
    layout
        Of the new store.
    layers
        Layers to keep, of the datasets that have them; ``None`` for all.
    dtype
        ``"float32"`` for floats where counts would be stored as integers.
    shuffle
        How cells are shuffled on the way.
    """
    datasets = _datasets(store)
    infos = [store.snapshot.dataset[name] for name in datasets]
    known = sorted({m.name.removeprefix("layers/") for i in infos for m in i.matrices if m.name != "X"})
    for name in layers or ():
        if name not in known:
            raise UnknownNameError(f"no selected dataset has a layer {name!r}; {suggest(name, known)}")
    space = _space(store)
    sources = sources_of(store, datasets)
    studies = tuple(_study(info, sources[info.id], space.name, layers, dtype) for info in infos)
    return BuildSpec((FeatureSpec(space.name, space, min_matched=0.0),), studies, (), layout, shuffle)


def _datasets(store: Store) -> tuple[str, ...]:
    """Those with a selected cell; all of them where every cell is selected, or none."""
    whole = all(part.rows is None for part in store.selection.parts)
    return store.dataset_ids if whole else store.selection.datasets or store.dataset_ids


def _space(store: Store) -> FeatureSpace:
    """The feature space: the same one, or that of the selected genes, which has a name of its own."""
    if store.selection.genes is None:
        return store.features
    whole = store.features
    chosen = FeatureSpace(whole.name, store.var, whole.organism)
    if chosen.hash == whole.hash:
        return whole
    return FeatureSpace(f"{whole.name[:100]}-{chosen.hash[:8]}", store.var, whole.organism)


def _study(info: DatasetInfo, source: Any, features: str, layers: Sequence[str] | None, dtype: str | None) -> StudySpec:
    x = info.matrix["X"]
    names = [m.name for m in info.matrices if m.name != "X"]
    kept = {n.removeprefix("layers/"): n for n in names if layers is None or n.removeprefix("layers/") in layers}
    return StudySpec(
        id=info.id,
        source=source,
        features=features,
        kind=x.kind,
        # Floats that are whole were asked for when the dataset was built.
        dtype="float32" if dtype == "float32" or np.dtype(x.dtype).kind == "f" else "",
        layers=kept,
        obsm=tuple(m.name for m in info.obsm),
        keep=("*",),
    )
