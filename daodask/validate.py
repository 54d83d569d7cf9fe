"""Validating a store: every byte and every number against what its snapshot says."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from daodask import _checks as checks
from daodask._checks import BlockSeen, Checked, ColumnSeen, File, Finding
from daodask._format import human_bytes, plural
from daodask.drive import Progress, Steps, drive
from daodask.errors import FeatureSpaceError, FormatError, FormatVersionError, suggest
from daodask.format.manifest import ColumnSummary, DatasetInfo, FeatureSpaceInfo, Snapshot
from daodask.format.spec import BY_GENE, CHECKSUMS, SNAPSHOTS
from daodask.runners import Task, open_runner
from daodask.snapshots import read_snapshot
from daodask.storage import StoreLocation

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Finding", "ValidationReport", "validate_store"]

#: What findings on the store as a whole go under; no dataset can have this id.
STORE: Final = "(store)"

#: Files that are hashed in one task: so many, or of so many bytes in all.
_FILES_A_TASK: Final = 256
_BYTES_A_TASK: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, repr=False)
class ValidationReport:
    """What validating a store found.

    Parameters
    ----------
    url
        The store.
    snapshot
        Number of the snapshot it was compared with; 0 where that could not be read.
    findings
        By dataset id, in store order, for each dataset checked; ``"(store)"`` has those on the store as a whole.
    n_obs, n_files, nbytes
        Cells, files and bytes that were checked.
    seconds
        Wall time.
    """

    url: str
    snapshot: int
    findings: Mapping[str, tuple[Finding, ...]]
    n_obs: int = 0
    n_files: int = 0
    nbytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; notes don't count."""
        return not any(self.errors.values())

    @property
    def errors(self) -> dict[str, tuple[Finding, ...]]:
        """What is wrong, by dataset id, without the notes; only datasets that have an error."""
        wrong = {name: tuple(f for f in found if not f.note) for name, found in self.findings.items()}
        return {name: found for name, found in wrong.items() if found}

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps({"ok": self.ok, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False)

    def headline(self) -> str:
        """One line: whether the store is valid, and how much was looked at."""
        wrong = sum(map(len, self.errors.values()))
        verdict = "valid" if self.ok else f"NOT valid: {plural(wrong, 'error')}"
        checked = ", ".join(
            [
                plural(sum(name != STORE for name in self.findings), "dataset"),
                plural(self.n_obs, "cell"),
                plural(self.n_files, "file"),
                human_bytes(self.nbytes),
            ]
        )
        which = f"snapshot {self.snapshot}" if self.snapshot else "the store"
        return f"{self.url}: {which} is {verdict}; checked {checked} in {self.seconds:.1f} s"

    def __repr__(self) -> str:
        lines = [
            f"{name}: {'note' if f.note else 'error'}: {f.where}: {f.what}"
            for name, found in self.findings.items()
            for f in found
        ]
        return "\n".join([self.headline(), *lines])


def validate_store(
    url: str | os.PathLike[str] | StoreLocation,
    *,
    features: str | None = None,
    snapshot: int | None = None,
    client: Client | None = None,
    threads: int = 1,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ValidationReport:
    """Check a store against its snapshot: reads every byte, block by block (computes).

    Looked at are size and SHA-256 of every file, the structure and values of each matrix, obs in the zarr group, in
    parquet and as the snapshot sums it up, the genes of each dataset and of the feature spaces, and copies by gene
    against the rows.

    Parameters
    ----------
    url
        Where the store is: a local path or any fsspec URL.
    features
        Check the datasets of this feature space only.
    snapshot
        Number of the snapshot; the newest by default.
    client
        A Dask client; its workers do the work. Without one it is done here.
    threads
        Threads to work with where there is no client; 1 is one task after another.
    options
        fsspec options. Credentials are refused, as these travel to workers: leave them to the environment.
    progress
        Called as tasks finish.

    Returns
    -------
    ValidationReport
        Damage is a finding in it and never an error raised.

    Raises
    ------
    StoreNotFoundError
        There is no store, or no such snapshot.
    FeatureSpaceError
        The store has no such feature space; the message lists those there are.
    FormatVersionError
        A newer daodask wrote it.
    """
    began = time.monotonic()
    location = StoreLocation.parse(url, options)
    try:
        found = read_snapshot(location, snapshot)
    except FormatVersionError:
        raise
    except FormatError as error:
        return ValidationReport(location.url, 0, {STORE: (Finding(SNAPSHOTS, str(error)),)})
    spaces = _chosen_spaces(found, features, location)
    jobs = {STORE: _check_store(location, found, spaces, features), **_dataset_jobs(location, found, spaces)}
    with open_runner(client, threads) as runner:
        results = drive(jobs, runner, progress)
    return _report(location, found, results, time.monotonic() - began)


def _chosen_spaces(snapshot: Snapshot, name: str | None, location: StoreLocation) -> dict[str, FeatureSpaceInfo]:
    spaces = {space.name: space for space in snapshot.features}
    if name is None:
        return spaces
    if name not in spaces:
        raise FeatureSpaceError(f"{location} has no feature space {name!r}; {suggest(name, spaces)}")
    return {name: spaces[name]}


@dataclass(frozen=True, slots=True)
class _Result:
    """Findings on one dataset or on the store, and how much was looked at."""

    findings: tuple[Finding, ...] = ()
    n_obs: int = 0
    files: tuple[File, ...] = field(default=())


def _report(
    location: StoreLocation, snapshot: Snapshot, results: Mapping[str, _Result | Exception], seconds: float
) -> ValidationReport:
    done: dict[str, _Result] = {}
    for name, result in results.items():
        if isinstance(result, Exception):  # no check raises: a worker died, or the connection to it
            raise result
        done[name] = result
    ordered = {name: done[name] for name in (STORE, *snapshot.dataset) if name in done}
    return ValidationReport(
        url=location.url,
        snapshot=snapshot.number,
        findings={name: result.findings for name, result in ordered.items()},
        n_obs=sum(result.n_obs for result in ordered.values()),
        n_files=sum(len(result.files) for result in ordered.values()),
        nbytes=sum(file.size for result in ordered.values() for file in result.files),
        seconds=seconds,
    )


def _task(name: str, where: str, check: Callable[..., checks.Check], *arguments: Any) -> Task:
    return Task(name, checks.run_check, (where, check, *arguments))


# -- the store as a whole ------------------------------------------------------------------------------------------


def _check_store(
    location: StoreLocation, snapshot: Snapshot, spaces: Mapping[str, FeatureSpaceInfo], only: str | None
) -> Steps[_Result]:
    tasks = []
    for space in spaces.values():
        datasets = snapshot.of_features(space.name)
        tasks.append(_task("check-features", f"feature space {space.name!r}", checks.check_space, location, space))
        tasks.append(_task("check-schema", "snapshot, obs schema", checks.check_schema, space, datasets))
    checked: list[Checked] = yield "check", tasks
    homeless = [d for d in snapshot.datasets if d.features not in spaces and only is None]
    unknown = [
        Finding("snapshot", f"{d.id!r} is of a feature space that is not there: {d.features!r}") for d in homeless
    ]
    return _Result((*unknown, *_findings(checked)))


def _findings(checked: Iterable[Checked]) -> tuple[Finding, ...]:
    return tuple(finding for one in checked for finding in one.findings)


# -- one dataset ---------------------------------------------------------------------------------------------------


def _dataset_jobs(
    location: StoreLocation, snapshot: Snapshot, spaces: Mapping[str, FeatureSpaceInfo]
) -> dict[str, Steps[_Result]]:
    return {
        info.id: _check_dataset(location / info.path, info, spaces[info.features])
        for info in snapshot.datasets
        if info.features in spaces
    }


def _check_dataset(dataset: StoreLocation, info: DatasetInfo, space: FeatureSpaceInfo) -> Steps[_Result]:
    """Its files and metadata, then its blocks one by one, then whether they add up to what the snapshot says."""
    listing: Checked
    (listing,) = yield "list", [_task("check-listing", CHECKSUMS, checks.check_listing, dataset, info)]
    files: tuple[File, ...] = listing.seen or ()
    whole = [*_file_tasks(dataset, files), *_whole_tasks(dataset, info, space)]
    blocks = _block_tasks(dataset, info, space.n_vars)
    checked: list[Checked] = yield "check", [*whole, *(task for tasks in blocks.values() for task in tasks)]
    rest = iter(checked[len(whole) :])
    by_part = {part: [next(rest) for _ in tasks] for part, tasks in blocks.items()}
    findings = (*listing.findings, *_findings(checked), *_unsound_blocks(info), *_sums(info, by_part))
    return _Result(findings, info.n_obs, files)


def _file_tasks(dataset: StoreLocation, files: Iterable[File]) -> Iterator[Task]:
    for some in _batches(files):
        yield _task("check-files", "files", checks.check_files, dataset, some)


def _batches(files: Iterable[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    for file in files:
        if batch and (len(batch) == _FILES_A_TASK or sum(f.size for f in batch) + file.size > _BYTES_A_TASK):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _whole_tasks(dataset: StoreLocation, info: DatasetInfo, space: FeatureSpaceInfo) -> Iterator[Task]:
    yield _task("check-var", "var", checks.check_var, dataset, space)
    yield _task("check-obs", "obs", checks.check_obs, dataset, info)
    for matrix in info.matrices:
        yield _task("check-matrix", matrix.name, checks.check_matrix, dataset, matrix, info.n_obs, space.n_vars)
        if matrix.by_gene:
            shape = info.n_obs, space.n_vars
            where = f"{BY_GENE}/{matrix.name}"
            yield _task("check-genes", where, checks.check_genes, dataset, matrix, shape, info.blocks)
    for array in info.obsm:
        yield _task("check-obsm", f"obsm/{array.name}", checks.check_obsm, dataset, array, info.n_obs)


def _block_tasks(dataset: StoreLocation, info: DatasetInfo, n_vars: int) -> dict[str, list[Task]]:
    """Tasks per part of the dataset (obs, or a matrix's name), one a block; none where block bounds make no sense."""
    if any(_unsound_blocks(info)):
        return {}
    names = tuple(column.name for column in info.columns)
    bounds = [(int(start), int(stop)) for start, stop in pairwise(info.blocks)]
    tasks = {"obs": [_task("check-obs-block", "obs", checks.check_obs_block, dataset, names, *b) for b in bounds]}
    for matrix in info.matrices:
        check = checks.check_matrix_block
        tasks[matrix.name] = [_task("check-block", matrix.name, check, dataset, matrix, n_vars, *b) for b in bounds]
        if matrix.by_gene:
            where, of_genes = f"{BY_GENE}/{matrix.name}", checks.check_gene_block
            arguments = [(dataset, matrix, n_vars, number, *b) for number, b in enumerate(bounds)]
            tasks[where] = [_task("check-genes", where, of_genes, *a) for a in arguments]
    return tasks


def _unsound_blocks(info: DatasetInfo) -> Iterator[Finding]:
    blocks: Sequence[Any] = info.blocks
    whole = all(isinstance(bound, int) for bound in blocks)
    rising = whole and all(a < b for a, b in pairwise(blocks))
    if not (blocks and rising and blocks[0] == 0 and blocks[-1] == info.n_obs):
        yield Finding("snapshot, blocks", f"expected bounds that rise from 0 to {info.n_obs}, got {blocks!r:.80}")


# -- adding up -----------------------------------------------------------------------------------------------------


def _sums(info: DatasetInfo, by_part: Mapping[str, Sequence[Checked]]) -> Iterator[Finding]:
    """What blocks add up to, against the snapshot; of parts of which every block could be read."""
    complete = {p: [c.seen for c in done] for p, done in by_part.items() if all(c.seen is not None for c in done)}
    for matrix in info.matrices:
        if matrix.name in complete:
            blocks: list[BlockSeen] = complete[matrix.name]
            largest = float(np.max([b.largest for b in blocks], initial=0.0))
            yield from _unequal(matrix.name, "number of non-zeros", matrix.nnz, sum(b.nnz for b in blocks))
            if np.isfinite(largest):
                yield from _unequal(matrix.name, "largest value", matrix.largest, largest)
    if "obs" in complete:
        for summary in info.columns:
            parts = [block[summary.name] for block in complete["obs"] if summary.name in block]
            if len(parts) == len(complete["obs"]):
                yield from _unequal_column(summary, parts)


def _unequal_column(summary: ColumnSummary, parts: Sequence[ColumnSeen]) -> Iterator[Finding]:
    where = f"snapshot, obs column {summary.name!r}"
    yield from _unequal(where, "cells without a value", summary.n_missing, sum(part.n_missing for part in parts))
    counts = {label: sum(part.counts[label] for part in parts) for label in {k for p in parts for k in p.counts}}
    stated = dict(zip(summary.categories, summary.counts, strict=False))
    for label in {**stated, **counts}:
        yield from _unequal(where, f"cells of {label!r}", stated.get(label, 0), counts.get(label, 0))
    for what, known, values in (
        ("smallest value", summary.low, [part.low for part in parts if part.low is not None]),
        ("largest value", summary.high, [part.high for part in parts if part.high is not None]),
    ):
        end: Any = (min if what.startswith("small") else max)(values, default=None)
        if end is None or np.isfinite(end):
            yield from _unequal(where, what, known, end)


def _unequal(where: str, what: str, stated: object, found: object) -> Iterator[Finding]:
    if stated != found:
        yield Finding(where, f"expected {what} {stated}, as the snapshot says, got {found}")
