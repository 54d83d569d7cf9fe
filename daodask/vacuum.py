"""Removing what no kept snapshot names: planned first, printed, and then done where it is wanted."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from daodask._format import human_bytes, human_count, plural, public_url
from daodask.errors import SpecError
from daodask.format.manifest import Snapshot
from daodask.format.spec import DATASETS, FEATURES, ID_PATTERN, SCRATCH, SNAPSHOTS, feature_path, snapshot_path
from daodask.snapshots import read_snapshot, snapshot_numbers
from daodask.storage import StoredFile, StoreLocation, is_temporary

__all__ = ["Garbage", "VacuumPlan", "VacuumReport", "parse_duration", "plan_vacuum"]

#: Longer than any build that goes on without writing a file.
DEFAULT_GRACE: Final = timedelta(days=7)

#: Nothing of another name is ours, whoever has put it there.
_DIRECTORY: Final = re.compile(rf"{ID_PATTERN.pattern}\.[0-9a-f]+")
_TABLE: Final = re.compile(r"[0-9a-f]{32}\.parquet")

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

#: In this order they go: a snapshot before what it alone names; receipts before the files that they vouch for.
_KINDS: Final = ("snapshot", "scratch", "dataset", "features", "temporary")


@dataclass(frozen=True, slots=True)
class Garbage:
    """What no kept snapshot names.

    Parameters
    ----------
    kind
        ``"snapshot"``, ``"scratch"``, ``"dataset"``, ``"features"`` or ``"temporary"`` (half a file).
    path
        A file or a directory, below the store's URL.
    n_files, nbytes
        Of it.
    modified
        When the youngest of its files was written; ``None`` where the file system doesn't tell.
    """

    kind: str
    path: str
    n_files: int
    nbytes: int
    modified: datetime | None


@dataclass(frozen=True, slots=True, repr=False)
class VacuumPlan:
    """What a vacuum will remove: printable, and nothing is removed by making one.

    Parameters
    ----------
    location
        The store.
    newest
        Its newest snapshot, which is never removed.
    keep_snapshots
        How many of the newest are kept at least; ``None`` for all.
    grace
        What is younger stays.
    garbage
        What will be removed, in this order.
    young
        What no snapshot names either, but may be work in progress.
    """

    location: StoreLocation
    newest: int
    keep_snapshots: int | None
    grace: timedelta
    garbage: tuple[Garbage, ...]
    young: tuple[Garbage, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it will free."""
        return sum(item.nbytes for item in self.garbage)

    def run(self) -> VacuumReport:
        """Remove it, each after another look at its age and at snapshots that are new since (computes).

        Interrupted at any point it leaves a whole store, and a next one does the rest.
        """
        return _run(self)

    def __repr__(self) -> str:
        n_files = sum(item.n_files for item in self.garbage)
        head = (
            f"{public_url(self.location.url)}: {plural(n_files, 'file')}, {human_bytes(self.nbytes)}, to remove; "
            f"the newest snapshot is {self.newest}"
        )
        return _text(head, self.garbage, self.young, self.grace)


@dataclass(frozen=True, slots=True, repr=False)
class VacuumReport:
    """What a vacuum did: what it removed, and what it left as it turned out to be in use or too young."""

    location: StoreLocation
    removed: tuple[Garbage, ...]
    spared: tuple[Garbage, ...]
    grace: timedelta

    @property
    def nbytes(self) -> int:
        """Bytes that are free now."""
        return sum(item.nbytes for item in self.removed)

    def __repr__(self) -> str:
        n_files = sum(item.n_files for item in self.removed)
        head = f"{public_url(self.location.url)}: {plural(n_files, 'file')}, {human_bytes(self.nbytes)}, removed"
        return _text(head, self.removed, self.spared, self.grace)


def plan_vacuum(
    url: str | os.PathLike[str] | StoreLocation,
    *,
    grace: timedelta | str = DEFAULT_GRACE,
    keep_snapshots: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> VacuumPlan:
    """Find datasets, feature tables, scratch and half files that no kept snapshot names (computes; removes nothing).

    Reads all kept snapshots and lists the store. Files and directories that are not named as daodask names them are
    passed over.

    Parameters
    ----------
    url
        The store: a local path or any fsspec URL.
    grace
        What was written within this time stays, as a builder may be about to commit it: a ``timedelta`` or text such as
        ``"7d"``, ``"12h"`` or ``"0"``. Longer than the longest pause between two files of a build.
    keep_snapshots
        Keep so many of the newest snapshots and remove older ones, those that were the newest within the grace time
        excepted; by default all are kept. What is removed can't be opened again.
    options
        fsspec options.

    Returns
    -------
    VacuumPlan
        Frozen and printable; ``plan.run()`` does it.

    Raises
    ------
    StoreNotFoundError
        There is no store.
    SpecError
        ``grace`` or ``keep_snapshots`` can't be meant.
    FormatError
        A snapshot can't be read, so that nobody knows what it names.
    """
    location = StoreLocation.parse(url, options)
    spared_time = parse_duration(grace)
    if keep_snapshots is not None and keep_snapshots < 1:
        raise SpecError(f"keep_snapshots: expected at least 1, as the newest is the store, got {keep_snapshots}")
    newest = read_snapshot(location).number
    before = datetime.now(UTC) - spared_time
    expired = _expired(location, keep_snapshots, before)
    named = _named(location, set(snapshot_numbers(location)) - {_number(item) for item in expired})
    unnamed = sorted(_unnamed(location, named), key=lambda item: (_KINDS.index(item.kind), item.path))
    old = [item for item in unnamed if _is_old(item, before)]
    young = tuple(item for item in unnamed if not _is_old(item, before))
    return VacuumPlan(location, newest, keep_snapshots, spared_time, (*expired, *old), young)


def parse_duration(value: timedelta | str) -> timedelta:
    """A time span of text: a number of ``s``, ``m``, ``h``, ``d`` (without a unit: days) or ``w``.

    Raises
    ------
    SpecError
        It is none.
    """
    if isinstance(value, timedelta):
        found = value
    else:
        match = _DURATION.fullmatch(value.strip())
        if not match:
            raise SpecError(f"grace: expected a time such as 7d, 12h or 0, got {value!r}")
        found = timedelta(seconds=float(match[1]) * _SECONDS[match[2] or "d"])
    if found < timedelta(0):
        raise SpecError(f"grace: expected no negative time, got {found}")
    return found


# -- what is named -------------------------------------------------------------------------------------------------


def _expired(location: StoreLocation, keep: int | None, before: datetime) -> list[Garbage]:
    """Snapshots to remove, oldest first: none that was the newest at or after ``before``."""
    if keep is None:
        return []
    files = {file.path: file for file in (location / SNAPSHOTS).files()}
    entries = [files[posixpath.basename(snapshot_path(n))] for n in snapshot_numbers(location)]
    expired = []
    for file, successor in list(pairwise(entries))[: max(0, len(entries) - keep)]:
        if successor.modified is None or successor.modified >= before:
            break  # an older one is never kept without those that follow it, so that numbers have no gap
        expired.append(Garbage("snapshot", f"{SNAPSHOTS}/{file.path}", 1, file.size, file.modified))
    return expired


def _number(snapshot: Garbage) -> int:
    return int(posixpath.basename(snapshot.path).removesuffix(".json"))


def _named(location: StoreLocation, numbers: Iterable[int]) -> set[str]:
    return {path for n in numbers for path in _paths(read_snapshot(location, n))}


def _paths(snapshot: Snapshot) -> Iterator[str]:
    yield from (dataset.path for dataset in snapshot.datasets)
    yield from (feature_path(space.hash) for space in snapshot.features)


# -- what is not ---------------------------------------------------------------------------------------------------


def _unnamed(location: StoreLocation, named: set[str]) -> Iterator[Garbage]:
    for path in _candidates(location):
        if path not in named:
            yield _measure(location, path)
    if location.is_local:  # elsewhere a file is there when it is whole
        for file in location.files():
            owner = "/".join(file.path.split("/")[:2])
            if _is_ours(owner, named) and is_temporary(file.path):
                yield Garbage("temporary", file.path, 1, file.size, file.modified)


def _is_ours(owner: str, named: set[str]) -> bool:
    """Whether half files there are to be looked at one by one: what goes as a whole takes its own along."""
    directory, _, name = owner.partition("/")
    return owner in named or (directory in (SNAPSHOTS, FEATURES) and is_temporary(name))


def _candidates(location: StoreLocation) -> Iterator[str]:
    for directory, pattern in ((SCRATCH, _DIRECTORY), (DATASETS, _DIRECTORY), (FEATURES, _TABLE)):
        names = (location / directory).list()
        yield from (f"{directory}/{name}" for name in names if pattern.fullmatch(name))


def _measure(location: StoreLocation, path: str) -> Garbage:
    files = (location / path).files()
    kind = {SCRATCH: "scratch", DATASETS: "dataset", FEATURES: "features"}[path.partition("/")[0]]
    n_files, nbytes = len(files), sum(file.size for file in files)
    return Garbage(kind, path, n_files, nbytes, _youngest(location, path, files))


def _youngest(location: StoreLocation, path: str, files: Iterable[StoredFile]) -> datetime | None:
    """When something was last written for a dataset: below its own directory, or below its scratch."""
    directory, _, name = path.partition("/")
    twin = {SCRATCH: DATASETS, DATASETS: SCRATCH}.get(directory)
    every = [*files, *((location / f"{twin}/{name}").files() if twin else ())]
    times = [file.modified for file in every]
    if not times:  # a directory without a file, which is the work of a moment where a builder is alive
        return _directory_time(location / path)
    return None if None in times else max(time for time in times if time is not None)


def _directory_time(location: StoreLocation) -> datetime | None:
    if not location.is_local:
        return None
    with contextlib.suppress(FileNotFoundError):
        return datetime.fromtimestamp(os.stat(location.path).st_mtime, UTC)
    return None


def _is_old(item: Garbage, before: datetime) -> bool:
    return item.modified is not None and item.modified < before


# -- removing ------------------------------------------------------------------------------------------------------


def _run(plan: VacuumPlan) -> VacuumReport:
    location, removed, spared = plan.location, [], []
    seen, named = {plan.newest}, set[str]()
    for item in plan.garbage:
        new = {n for n in snapshot_numbers(location) if n > plan.newest} - seen
        seen |= new
        named |= _named(location, new)
        if item.path in named or not _is_still_old(plan, item):
            spared.append(item)
        else:
            (location / item.path).remove()
            removed.append(item)
    for directory in (SCRATCH, DATASETS, FEATURES):
        (location / directory).remove_if_empty()
    return VacuumReport(location, tuple(removed), tuple(spared), plan.grace)


def _is_still_old(plan: VacuumPlan, item: Garbage) -> bool:
    """Whether nobody has written there since the plan was made; a builder that goes back to old work does."""
    if item.kind in ("snapshot", "temporary"):
        return True
    return _is_old(_measure(plan.location, item.path), datetime.now(UTC) - plan.grace)


# -- text ----------------------------------------------------------------------------------------------------------


def _text(head: str, items: Iterable[Garbage], left: Iterable[Garbage], grace: timedelta) -> str:
    lines = [head, *(f"  {_line(item)}" for item in items)]
    kept = list(left)
    if kept:
        lines.append(f"left, as somebody wrote there within {_span(grace)} or it is in use again:")
        lines += [f"  {_line(item)}" for item in kept]
    return "\n".join(lines)


def _line(item: Garbage) -> str:
    when = f"{item.modified:%Y-%m-%d %H:%M} UTC" if item.modified else "at an unknown time"
    size = f"{human_count(item.n_files)} files" if item.n_files != 1 else "1 file"
    return f"{item.kind:<9}  {human_bytes(item.nbytes):>9}  {size:>12}  last written {when}  {item.path}"


def _span(time: timedelta) -> str:
    for unit in ("w", "d", "h", "m"):
        if time >= timedelta(seconds=_SECONDS[unit]) and not time.total_seconds() % _SECONDS[unit]:
            return f"{time.total_seconds() / _SECONDS[unit]:g} {unit}"
    return f"{time.total_seconds():g} s"
