"""Which genes were measured of each cell: by its dataset, or by its study where a dataset was shuffled of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from daodask.blocks import read_measured_by_source
from daodask.format.spec import SOURCE_DATASET
from daodask.store import Store
from daodask.types import AnyArray, BoolArray, Int64Array

__all__ = ["Measured", "read_measured"]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What was measured, and of which cell.

    Parameters
    ----------
    masks
        Boolean, a row of genes for each dataset of the store, selected or not, and then for each study of those that
        were shuffled.
    by_source
        Row of ``masks`` by dataset and code of the obs column ``source_dataset``, the last column for cells without
        one; ``None`` where no dataset is of several studies.
    """

    masks: BoolArray
    by_source: Int64Array | None = None

    def rows(self, dataset: Int64Array, source: AnyArray | None) -> Int64Array:
        """Row of ``masks`` of each cell, by number of its dataset and code of its source."""
        if self.by_source is None or source is None:
            return dataset
        found: Int64Array = self.by_source[dataset, source]
        return found


def read_measured(store: Store) -> Measured:
    """What the selected datasets measured of the selected genes (computes, small); of others nothing is."""
    ids, known = store.dataset_ids, store.measured
    masks = [known[i].to_numpy() if i in known else np.zeros(store.n_vars, dtype=np.bool_) for i in ids]
    shuffled = {n: found for n, i in enumerate(ids) if i in known and (found := _of_sources(store, i))}
    if not shuffled:
        return Measured(np.array(masks, dtype=np.bool_).reshape(len(ids), store.n_vars))
    labels = next(c.categories for c in store.obs_schema if c.name == SOURCE_DATASET)
    rows = np.repeat(np.arange(len(ids), dtype=np.int64)[:, None], len(labels) + 1, axis=1)
    for number, by_source in shuffled.items():
        for label, mask in by_source.items():
            rows[number, labels.index(label)] = len(masks)
            masks.append(mask if store.selection.genes is None else mask[store.selection.genes])
    return Measured(np.array(masks, dtype=np.bool_), rows)


def _of_sources(store: Store, dataset: str) -> Mapping[str, BoolArray]:
    info = store.snapshot.dataset[dataset]
    # A study may have brought a column of the name.
    named = any(c.name == SOURCE_DATASET for c in info.columns)
    return read_measured_by_source(store.location / info.path) if named else {}
