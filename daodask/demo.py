"""The main job on real cells: build differing studies into a store, open, subset, total, iterate; check the totals."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from daodask._cluster import default_workers, open_client
from daodask._demo_studies import Studies, embedded_studies, own_studies, totals_of
from daodask._format import human_count, list_some, plural
from daodask._terminal import show_progress
from daodask.batches.loader import BatchLoader
from daodask.build.report import BuildReport
from daodask.build.run import build_store
from daodask.store import Store, open_store

if TYPE_CHECKING:
    from distributed import Client
    from rich.console import Console

__all__ = ["run_demo"]

#: Small, so that the demo's own 700 cells make more than one batch.
_BATCH: Final = 64
_LARGE_BATCH: Final = 4096
_LARGE: Final = 100_000
_MOST_ROWS: Final = 30


def run_demo(
    path: str | None,
    *,
    console: Console,
    inputs: Sequence[str] = (),
    by: str | None = None,
    workers: int | None = None,
    threads: int = 1,
) -> bool:
    """Run the demo and print what it does (computes).

    Parameters
    ----------
    path
        Directory to work in; ``None`` for a new temporary one. A store that it has is gone on with.
    console
        Where to print.
    inputs
        The user's own h5ad files, in place of the embedded studies.
    by
        Obs column to total by, with ``inputs``; by default the dataset.
    workers, threads
        Of the local Dask cluster; 0 workers: this process.

    Returns
    -------
    bool
        Whether every study is in the store and all totals agree.

    Raises
    ------
    DependencyError
        The embedded cells are asked for and scanpy, which has them, is not installed.
    SourceError, SpecError
        An input can't be read, or none has the column.
    """
    directory = Path(path or tempfile.mkdtemp(prefix="daodask-demo-")).expanduser().absolute()
    story = _Story(console)
    studies = _lay_out(story, directory, inputs, by)
    with ExitStack() as stack:
        client = _start(story, stack, workers, threads)
        report = _build(story, studies, directory / "store", client, threads)
        if not any(study.ok for study in report.studies):
            return False
        store = _open(story, studies, report)
        found = _subset(story, store, studies.by)
        totals, agreed = _total(story, store, studies, report)
        seen = _iterate(story, store, float(totals["counts"].sum()))
    story.end(report.url, None if path else directory)
    return report.ok and found and agreed and seen


# -- telling -------------------------------------------------------------------------------------------------------


@dataclass
class _Story:
    """Prints numbered steps and keeps their times."""

    console: Console
    times: list[tuple[str, str, str]] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[_Step]:
        self.console.print(f"\n{len(self.times) + 1}. {title}", style="bold")
        step = _Step(self.console)
        began = time.perf_counter()
        yield step
        seconds = time.perf_counter() - began
        self.times.append((title, f"{seconds:.2f}", f"{step.cells / seconds:,.0f} cells/s" if step.cells else ""))

    def end(self, url: str, temporary: Path | None) -> None:
        rows = [(str(number), *row) for number, row in enumerate(self.times, 1)]
        self.console.print("\nTimes", style="bold")
        self.console.print(_table(("", "step", "seconds", "speed"), rows))
        self.console.print(f"The store stays: look at it with `daodask info {url}`", soft_wrap=True)
        if temporary is not None:
            self.console.print(f"Remove {temporary} when you need it no more", soft_wrap=True)


@dataclass
class _Step:
    """Prints what belongs to a step."""

    console: Console
    #: Cells that the step went through, where its speed is of interest.
    cells: int = 0

    def say(self, *lines: object) -> None:
        for line in lines:
            self.console.print(f"   {line}", soft_wrap=True)

    def show(self, text: object) -> None:
        """Something of several lines: a file, a report, an object."""
        self.console.print("\n".join(f"   | {line}" for line in str(text).splitlines()), style="dim", soft_wrap=True)

    def call(self, code: str) -> None:
        self.console.print(f"   >>> {code}", style="cyan", soft_wrap=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name in ("", "step") or name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


# -- the steps -----------------------------------------------------------------------------------------------------


def _lay_out(story: _Story, directory: Path, inputs: Sequence[str], by: str | None) -> Studies:
    with story.step("Studies that differ" if not inputs else plural(len(inputs), "study") + " of yours") as step:
        step.say(f"working in {directory}")
        studies = own_studies(directory, inputs, by) if inputs else embedded_studies(directory)
        step.say(*studies.notes, f"the build file {studies.spec.name}:")
        step.show(studies.spec.read_text(encoding="utf-8"))
    return studies


def _start(story: _Story, stack: ExitStack, workers: int | None, threads: int) -> Client | None:
    count = default_workers() if workers is None else workers
    where = f"{plural(count, 'worker')} with {plural(threads, 'thread')} each" if count else "none: in this process"
    with story.step(f"A local Dask cluster, {where}"):
        return stack.enter_context(open_client(workers, threads))


def _build(story: _Story, studies: Studies, store: Path, client: Client | None, threads: int) -> BuildReport:
    with story.step("Build") as step:
        step.call(f"report = daodask.build_store({studies.spec.name!r}, {store.name!r}, client=client)")
        with show_progress(quiet=not story.console.is_terminal) as progress:
            report = build_store(studies.spec, store, client=client, threads=threads, progress=progress)
        step.show(report)
        built = sum(s.n_obs for s in report.studies if s.status in ("built", "replaced"))
        step.cells = built
    return report


def _open(story: _Story, studies: Studies, report: BuildReport) -> Store:
    with story.step("Open: metadata only, whatever the size") as step:
        step.call("store = daodask.open_store('store')")
        store = open_store(report.url, features=studies.features)
        step.show(store)
    ids = [s.id for s in report.studies if s.ok]
    # A store that was there may hold studies of earlier runs.
    return store if set(ids) == set(store.uns) else store.subset(dataset=ids)


def _subset(story: _Story, store: Store, by: str) -> bool:
    with story.step("Subset: pushed down into the reads") as step:
        counts = store.value_counts(by)
        labels = [getattr(label, "item", lambda label=label: label)() for label in counts.index[:2]]
        step.call(
            f"part = store.subset({by}={labels})"
            if by.isidentifier()
            else f"part = store.subset(**{{{by!r}: {labels}}})"
        )
        chosen: Any = {by: labels}
        part = store.subset(**chosen)
        expected = int(counts.iloc[:2].sum())
        step.say(f"{plural(part.n_obs, 'cell', store.n_obs)}, expected {human_count(expected)}")
        step.call("part.to_anndata()")
        step.show(part.to_anndata())
    return part.n_obs == expected


def _total(story: _Story, store: Store, studies: Studies, report: BuildReport) -> tuple[pd.DataFrame, bool]:
    with story.step(f"Totals per {studies.by} through dask: a task per block, X and obs aligned") as step:
        totals = _dask_totals(store, studies.by)
        step.cells = store.n_obs
    with story.step("The same totals straight from the files") as step:
        direct = _summed([studies.totals(study.id) for study in report.studies if study.ok])
        agreed = totals.sort_index().equals(direct.sort_index())
        story.console.print(_totals_table(studies.by, totals, direct))
        step.say(f"all {plural(len(totals), 'total')} agree" if agreed else "THE TOTALS DIFFER")
    return totals, agreed


def _dask_totals(store: Store, by: str) -> pd.DataFrame:
    """Partition i of obs and block i of X are the same cells, so that they go into one task."""
    import dask

    aligned = zip(store.X.to_delayed().ravel(), store.obs[by].to_delayed(), strict=True)
    return _summed(dask.compute(*[dask.delayed(totals_of)(rows, labels) for rows, labels in aligned]))


def _summed(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(parts).groupby(level=0).sum()


def _totals_table(by: str, totals: pd.DataFrame, direct: pd.DataFrame) -> Any:
    both = totals.join(direct.add_suffix("_direct"), how="outer").fillna(0).sort_values("counts", ascending=False)
    numbers = both[["cells", "counts", "cells_direct", "counts_direct"]].round().astype(np.int64)
    rows = [
        (str(label), *map(human_count, row)) for label, row in zip(both.index, numbers.to_numpy().tolist(), strict=True)
    ]
    more = [(f"… {len(rows) - _MOST_ROWS} more", "", "", "", "")] if len(rows) > _MOST_ROWS else []
    return _table((by, "cells", "counts", "cells in files", "counts in files"), [*rows[:_MOST_ROWS], *more])


def _iterate(story: _Story, store: Store, expected: float) -> bool:
    size = _BATCH if store.n_obs < _LARGE else _LARGE_BATCH
    with story.step("One epoch of shuffled batches") as step:
        step.call(f"loader = daodask.BatchLoader(store, batch_size={size}, seed=0)")
        loader, rows, total = BatchLoader(store, size, seed=0), [], 0.0
        for batch in loader:
            rows.append(batch.index)
            total += float(batch.X.sum(dtype=np.float64))
        seen = np.concatenate(rows)
        once = len(seen) == store.n_obs and len(np.unique(seen)) == store.n_obs
        step.say(f"{len(rows):,} batches; the first cells: {list_some(map(str, seen), 8)}")
        step.say("every cell exactly once" if once else "NOT every cell exactly once")
        step.say(f"counts in all batches: {total:,.0f}, expected {expected:,.0f}")
        step.cells = store.n_obs
    return once and total == expected
