"""What became of a store, snapshot by snapshot: who, when and what."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from daodask._format import human_count, human_date, list_some, one_line, plural, public_url
from daodask.format.manifest import Snapshot
from daodask.snapshots import read_snapshot, snapshot_numbers
from daodask.storage import StoreLocation

__all__ = ["LogEntry", "StoreLog", "read_log"]

_MOST_IDS = 8


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One snapshot.

    Parameters
    ----------
    snapshot
        Its number.
    created
        When it was committed: ISO 8601, UTC.
    author, written_by, message
        Who committed it (``user@host``), with which program, and what for.
    n_datasets, n_obs
        Datasets and cells of the store at this snapshot.
    added, removed, replaced
        Ids of datasets, against the snapshot before; ``None`` where that one is gone.
    """

    snapshot: int
    created: str
    author: str
    written_by: str
    message: str
    n_datasets: int
    n_obs: int
    added: tuple[str, ...] | None
    removed: tuple[str, ...] | None
    replaced: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, repr=False)
class StoreLog:
    """The snapshots of a store, newest first."""

    url: str
    entries: tuple[LogEntry, ...]

    def to_json(self) -> str:
        """The log as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)

    def __repr__(self) -> str:
        return "\n\n".join([public_url(self.url), *("\n".join(_lines(entry)) for entry in self.entries)])


def read_log(url: str | os.PathLike[str] | StoreLocation, *, options: Mapping[str, Any] | None = None) -> StoreLog:
    """Read who has done what to a store, and when (computes: reads all its snapshots).

    Parameters
    ----------
    url
        The store: a local path or any fsspec URL.
    options
        fsspec options.

    Raises
    ------
    StoreNotFoundError
        There is no store.
    """
    location = StoreLocation.parse(url, options)
    newest = read_snapshot(location)
    earlier = [read_snapshot(location, n) for n in snapshot_numbers(location) if n < newest.number]
    snapshots = [*earlier, newest]
    beginning = Snapshot(0, "", "") if snapshots[0].number == 1 else None
    entries = [_entry(s, before) for s, before in zip(snapshots, [beginning, *snapshots[:-1]], strict=True)]
    return StoreLog(location.url, tuple(reversed(entries)))


def _entry(snapshot: Snapshot, before: Snapshot | None) -> LogEntry:
    now = {d.id: d.path for d in snapshot.datasets}
    then = {d.id: d.path for d in before.datasets} if before else {}
    changes = (
        tuple(name for name in now if name not in then),
        tuple(name for name in then if name not in now),
        tuple(name for name in now if name in then and now[name] != then[name]),
    )
    added, removed, replaced = changes if before else (None, None, None)
    return LogEntry(
        snapshot=snapshot.number,
        created=snapshot.created,
        author=snapshot.author,
        written_by=snapshot.written_by,
        message=snapshot.message,
        n_datasets=len(now),
        n_obs=sum(d.n_obs for d in snapshot.datasets),
        added=added,
        removed=removed,
        replaced=replaced,
    )


def _lines(entry: LogEntry) -> Iterator[str]:
    who = f", {entry.author}" if entry.author else ""
    yield f"snapshot {entry.snapshot}, {human_date(entry.created)}{who}, {entry.written_by}"
    if entry.message:
        yield f"  {one_line(entry.message)}"
    yield f"  holds {plural(entry.n_datasets, 'dataset')}, {human_count(entry.n_obs)} cells"
    for what, ids in (("added", entry.added), ("removed", entry.removed), ("replaced", entry.replaced)):
        if ids:
            yield f"  {what}: {list_some(ids, _MOST_IDS)}"
    if entry.added is None:
        yield "  against the snapshot before, which is gone, nothing can be said"
