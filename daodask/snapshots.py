"""Reading and committing snapshots: the one place where a store changes."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime

from daodask._version import __version__
from daodask.errors import CommitError, StoreNotFoundError
from daodask.format.manifest import Snapshot
from daodask.format.spec import SNAPSHOTS, snapshot_path
from daodask.storage import StoreLocation

__all__ = ["author", "commit_snapshot", "latest_snapshot", "read_snapshot", "snapshot_numbers"]

_NAME = re.compile(r"([0-9]{8}|[1-9][0-9]{8,})\.json")

#: Builders that commit at the same instant each need a try per other builder; more is a sign of something else.
_MOST_TRIES = 100


def snapshot_numbers(location: StoreLocation) -> tuple[int, ...]:
    """Numbers of all snapshots, increasing (one listing)."""
    matches = (_NAME.fullmatch(name) for name in (location / SNAPSHOTS).list())
    return tuple(sorted(int(m[1]) for m in matches if m))


def read_snapshot(location: StoreLocation, number: int | None = None) -> Snapshot:
    """Read one snapshot, the newest by default (one listing and one read).

    Raises
    ------
    StoreNotFoundError
        There is no store at the location, or no snapshot of that number; the message lists those there are.
    """
    numbers = snapshot_numbers(location)
    if not numbers:
        raise StoreNotFoundError(
            f"expected a daodask store at {location} (a directory with {SNAPSHOTS}/00000001.json), found none; "
            f"build one with `daodask build`, or check the URL"
        )
    chosen = numbers[-1] if number is None else number
    if number is not None and 1 <= number < numbers[0]:
        raise StoreNotFoundError(
            f"snapshot {number} of {location} is gone: `daodask vacuum --keep-snapshots` removed those before "
            f"{numbers[0]}; it has {numbers[0]} to {numbers[-1]}"
        )
    if chosen not in numbers:
        raise StoreNotFoundError(
            f"{location} has no snapshot {number}; it has {numbers[0]} to {numbers[-1]}: {numbers}"
        )
    return _read(location, chosen)


def _read(location: StoreLocation, number: int) -> Snapshot:
    where = location / snapshot_path(number)
    return Snapshot.from_json(where.read(), where=str(where))


def latest_snapshot(location: StoreLocation) -> Snapshot | None:
    """The newest snapshot, or ``None`` where there is no store yet (one listing and one read)."""
    numbers = snapshot_numbers(location)
    return _read(location, numbers[-1]) if numbers else None


def author() -> str:
    """Who commits, as logs show it: ``$DAODASK_AUTHOR``, or ``user@host``."""
    stated = os.environ.get("DAODASK_AUTHOR")
    if stated:
        return stated
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # no entry for this user id, as is usual in a container
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


def commit_snapshot(location: StoreLocation, change: Callable[[Snapshot], Snapshot], *, message: str = "") -> Snapshot:
    """Write the next snapshot: ``change`` of the newest one.

    The file is created exclusively. Who loses a race reads the winner's snapshot and applies its own change to that, so
    that both changes are there in the end.

    Parameters
    ----------
    change
        Pure; called once per try with the newest snapshot (number 0 and empty where there is no store yet). It sets
        feature spaces and datasets; number, time, writer and author are set here. Where it returns the very snapshot
        that it was given there is nothing to commit, and that one is returned.
    message
        What a log shows.

    Raises
    ------
    CommitError
        Others won the race every time.
    """
    for _ in range(_MOST_TRIES):
        newest = latest_snapshot(location) or Snapshot(0, "", "")
        changed = change(newest)
        if changed is newest:
            return newest
        snapshot = Snapshot(
            number=newest.number + 1,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            written_by=f"daodask {__version__}",
            message=message,
            features=changed.features,
            datasets=changed.datasets,
            author=author(),
        )
        if (location / snapshot_path(snapshot.number)).create(snapshot.to_json()):
            return snapshot
    raise CommitError(
        f"{location}: lost {_MOST_TRIES} races for the next snapshot; something else creates snapshots in a loop"
    )
