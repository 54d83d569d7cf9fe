"""The selected cells of one dataset as a source of a build."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from daodask.blocks import BlockAddress, read_obs, read_obsm, read_var
from daodask.errors import SourceError, suggest
from daodask.export.rows import read_rows
from daodask.format.features import FeatureSpace
from daodask.format.manifest import DatasetInfo, FeatureSpaceInfo
from daodask.format.spec import OBS_NAMES, VAR_MEASURED, feature_path, served_dtype
from daodask.sources import Fingerprint
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.types import CSR, AnyArray, Int64Array

__all__ = ["DatasetSource", "sources_of"]


@dataclass(frozen=True, eq=False)
class DatasetSource:
    """Cells of one dataset on the selected genes that it measured; small when pickled, but for selected row numbers.

    Parameters
    ----------
    store
        Where the store is.
    dataset
        What its snapshot says of the dataset.
    space
        The feature space, with the obs schema that labels and dtypes are taken from.
    rows
        Selected rows of the dataset, increasing; ``None`` for all.
    genes
        Selected columns of the feature space; ``None`` for all.
    """

    store: StoreLocation
    dataset: DatasetInfo
    space: FeatureSpaceInfo
    rows: Int64Array | None
    genes: Int64Array | None

    def __reduce__(self) -> tuple[type[DatasetSource], tuple[object, ...]]:
        # What is cached stays here: it can be read again.
        return DatasetSource, (self.store, self.dataset, self.space, self.rows, self.genes)

    @property
    def n_obs(self) -> int:
        """Number of selected cells."""
        return self.dataset.n_obs if self.rows is None else len(self.rows)

    def obs(self) -> pd.DataFrame:
        """Cell metadata: the dataset's own columns, in the dtypes and with the labels that the whole store has."""
        columns = [c for c in self.space.obs if c.name in self.dataset.column]
        frame = read_obs(
            self._block(0, self.n_obs), columns, [self.dataset.id], [OBS_NAMES, *(c.name for c in columns)]
        )
        return frame.set_axis(pd.Index(frame.pop(OBS_NAMES).to_numpy(), dtype=object), axis=0)

    def var(self, matrix: str) -> pd.DataFrame:
        """The selected genes that the study measured; those that it didn't are none of the source's."""
        self._check(matrix)
        return self._features.var.iloc[self._columns]

    def uns(self) -> Mapping[str, Any]:
        """Facts of the study."""
        return self.dataset.uns

    @property
    def obsm_names(self) -> tuple[str, ...]:
        """Names of the dense arrays per cell."""
        return tuple(m.name for m in self.dataset.obsm)

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of ``"X"`` or ``"layers/<name>"``, in a floating dtype that holds them exactly.

        Raises
        ------
        SourceError
            There is no such matrix.
        """
        self._check(matrix)
        info = self.dataset.matrix[matrix]
        dtype = served_dtype(np.dtype(info.dtype), info.largest).name
        return read_rows((self._block(start, stop),), matrix, self.space.n_vars, self._columns, dtype)

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows ``[start, stop)`` of a dense array per cell, 2-D."""
        found = next((m for m in self.dataset.obsm if m.name == name), None)
        if found is None:
            raise SourceError(
                f"dataset {self.dataset.id!r} has no obsm array {name!r}; {suggest(name, self.obsm_names)}"
            )
        return read_obsm(self._block(start, stop), name, found.dtype)

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the content: a dataset's checksum fixes every byte of it, so that none has to be read."""
        digest = hashlib.sha256(f"{self.dataset.checksum} {self.space.hash}".encode())
        for chosen in (self.rows, self.genes):
            digest.update(b"all" if chosen is None else np.ascontiguousarray(chosen).tobytes() + b"chosen")
        labels = [(c.name, c.dtype, c.categories, c.ordered) for c in self.space.obs if c.name in self.dataset.column]
        digest.update(repr(labels).encode())
        return Fingerprint(self.dataset.nbytes, self.dataset.checksum, digest.hexdigest())

    def _check(self, matrix: str) -> None:
        if matrix not in self.dataset.matrix:
            raise SourceError(f"dataset {self.dataset.id!r} has no {matrix!r}; {suggest(matrix, self.dataset.matrix)}")

    def _block(self, start: int, stop: int) -> BlockAddress:
        where = self.store / self.dataset.path
        if self.rows is None:
            return BlockAddress(where, self.dataset.id, 0, start, stop)
        rows = self.rows[start:stop]
        begin, end = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        return BlockAddress(where, self.dataset.id, 0, begin, end, rows)

    @cached_property
    def _features(self) -> FeatureSpace:
        data = (self.store / feature_path(self.space.hash)).read()
        return FeatureSpace.from_parquet(data, name=self.space.name, organism=self.space.organism)

    @cached_property
    def _columns(self) -> Int64Array:
        measured = read_var(self.store / self.dataset.path)[VAR_MEASURED].to_numpy(dtype=bool)
        genes = np.arange(len(measured), dtype=np.int64) if self.genes is None else self.genes
        kept: Int64Array = genes[measured[genes]]
        return kept


def sources_of(store: Store, datasets: Sequence[str]) -> dict[str, DatasetSource]:
    """A source of each of these datasets of the selection."""
    parts = {part.dataset: part for part in store.selection.parts}
    # Of each source, what its obs needs of the schema: labels may be many.
    return {
        name: DatasetSource(
            store.location,
            store.snapshot.dataset[name],
            replace(
                store.feature_space,
                obs=tuple(c for c in store.obs_schema if c.name in store.snapshot.dataset[name].column),
            ),
            parts[name].rows,
            store.selection.genes,
        )
        for name in datasets
    }
