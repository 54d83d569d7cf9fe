"""Stores of which there is only the snapshot: what opening, planning and looking cost at any size, without a cell."""

from __future__ import annotations

import os
from typing import Final

from daodask.format.manifest import (
    ColumnSummary,
    DatasetInfo,
    FeatureSpaceInfo,
    MatrixInfo,
    ObsmInfo,
    Snapshot,
    merge_schema,
)
from daodask.format.spec import snapshot_path
from daodask.storage import StoreLocation

__all__ = ["described_store"]

#: Labels of categorical columns, in turn.
_N_LABELS: Final = (2, 5, 20, 100)
_NNZ: Final = 2_000


def described_store(
    url: str | os.PathLike[str] | StoreLocation,
    n_datasets: int = 1_000,
    n_obs: int = 100_000,
    *,
    n_columns: int = 50,
    block_rows: int = 1_000,
) -> StoreLocation:
    """Write the snapshot of a store that is nothing else; what reads a cell of it fails.

    Parameters
    ----------
    url
        Where the store will be; no snapshot 1 may be there.
    n_datasets, n_obs
        Datasets, and cells of each.
    n_columns
        Obs columns. Two of five are categorical, ``label_0``, ``label_1``, ``label_5``, …; the others are numbers,
        ``number_2``, …, in which dataset d has the values from d to d + 1.
    block_rows
        Cells of a block.
    """
    datasets = tuple(_dataset(number, n_obs, n_columns, block_rows) for number in range(n_datasets))
    space = FeatureSpaceInfo("human", "described", 36_000, "Homo sapiens", merge_schema(datasets))
    snapshot = Snapshot(1, "2026-01-01T00:00:00+00:00", "daodask", features=(space,), datasets=datasets)
    location = StoreLocation.parse(url)
    (location / snapshot_path(1)).create(snapshot.to_json())
    return location


def _dataset(number: int, n_obs: int, n_columns: int, block_rows: int) -> DatasetInfo:
    name = f"study{number:04d}"
    return DatasetInfo(
        id=name,
        path=f"datasets/{name}.{number:012x}",
        features="human",
        n_obs=n_obs,
        blocks=(*range(0, n_obs, block_rows), n_obs),
        matrices=(MatrixInfo("X", "counts", "uint16", n_obs * _NNZ, 5_000.0),),
        obsm=(ObsmInfo("X_pca", "float32", 50),),
        columns=tuple(_column(index, number, n_obs) for index in range(n_columns)),
        uns={"organism": "Homo sapiens", "title": f"Study number {number}"},
        checksum=f"{number:064x}",
        nbytes=n_obs * _NNZ * 3,
        fingerprint=f"{number:064x}",
    )


def _column(index: int, number: int, n_obs: int) -> ColumnSummary:
    if index % 5 > 1:
        return ColumnSummary(f"number_{index}", "float32", low=float(number), high=float(number + 1))
    n_labels = _N_LABELS[index % len(_N_LABELS)]
    each = n_obs // n_labels
    counts = (n_obs - each * (n_labels - 1), *[each] * (n_labels - 1))
    # Half of the labels are those of all datasets, the others of a tenth of them.
    labels = (f"label {k if k % 2 else (number % 10, k)}" for k in range(n_labels))
    return ColumnSummary(f"label_{index}", "category", categories=tuple(labels), counts=counts)
