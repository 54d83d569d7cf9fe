"""Taking datasets out of a store: a new snapshot without them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

from daodask.errors import UnknownNameError, suggest
from daodask.format.manifest import Snapshot, with_merged_schemas
from daodask.snapshots import commit_snapshot, read_snapshot
from daodask.storage import StoreLocation

__all__ = ["remove_datasets"]


def remove_datasets(
    url: str | os.PathLike[str] | StoreLocation,
    ids: Iterable[str],
    *,
    message: str = "",
    options: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Commit a snapshot without these datasets (computes).

    No file is deleted: earlier snapshots have them still, and ``open_store(url, snapshot=…)`` opens those. Row numbers
    of the datasets behind them change.

    Parameters
    ----------
    url
        The store: a local path or any fsspec URL.
    ids
        Of the datasets; one id alone may be given as text.
    message
        What the log shows; by default which ones were removed.
    options
        fsspec options.

    Returns
    -------
    Snapshot
        The new one.

    Raises
    ------
    StoreNotFoundError
        There is no store.
    UnknownNameError
        It has no such dataset (any more); nothing is committed then.
    """
    location = StoreLocation.parse(url, options)
    gone = dict.fromkeys([ids] if isinstance(ids, str) else ids)
    read_snapshot(location)  # or there is nothing to remove from

    def change(newest: Snapshot) -> Snapshot:
        for name in gone:
            if name not in newest.dataset:
                raise UnknownNameError(f"{location} has no dataset {name!r}; {suggest(name, newest.dataset)}")
        if not gone:
            return newest
        kept = tuple(d for d in newest.datasets if d.id not in gone)
        return with_merged_schemas(dataclasses.replace(newest, datasets=kept))

    return commit_snapshot(location, change, message=message or f"remove: {', '.join(gone)}")
