"""What an epoch will read, before it reads anything: windows, bytes, memory, and how well batches are mixed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from daodask._format import human_bytes, plural
from daodask.batches.schedule import Labels, Window
from daodask.types import AnyArray

__all__ = ["LoaderPlan", "Mixing", "mixing"]


@dataclass(frozen=True, slots=True)
class Mixing:
    """How varied batches are in one label, against an independent draw of the same size.

    Parameters
    ----------
    column
        The obs column.
    entropy
        Mean over batches of the Shannon entropy of the labels in a batch, in bits.
    independent
        The same for batches drawn at random from all cells.
    """

    column: str
    entropy: float
    independent: float

    @property
    def share(self) -> float:
        """The one over the other; 1 is a perfect shuffle. 1 also where there is only one label to draw."""
        return self.entropy / self.independent if self.independent else 1.0


def mixing(column: str, labels: Labels, windows: Iterable[Window], seed: int = 0) -> Mixing:
    """Compare the entropy of a label in the batches of some windows with that of independent draws.

    Parameters
    ----------
    column
        Name of the column.
    labels
        Of all selected cells.
    windows
        Some windows of an epoch.
    seed
        Of the independent draws.
    """
    generator = np.random.default_rng(seed)
    n = len(labels.codes)
    own, drawn = [], []
    for window in windows:
        for bounds in window.batches():
            codes = labels.codes[window.positions[bounds]]
            own.append(_entropy(codes))
            drawn.append(_entropy(labels.codes[generator.integers(n, size=len(codes))]))
    return Mixing(column, float(np.mean(own or [0.0])), float(np.mean(drawn or [0.0])))


def _entropy(codes: AnyArray) -> float:
    counts = np.bincount(codes + 1)
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum())


@dataclass(frozen=True, slots=True, repr=False)
class LoaderPlan:
    """What one epoch of a loader is.

    Parameters
    ----------
    schedule
        What decides the batches.
    n_obs
        Selected cells, which all ranks share.
    n_batches, n_windows
        Batches and windows of this rank.
    window_bytes
        Memory of the largest window, expected from the mean number of non-zeros.
    read_ahead
        Windows in memory beside the one that is consumed.
    memory
        Budget in bytes that these keep within.
    runs
        Stretches of neighbouring rows that are read, in the windows looked at, per window.
    read_bytes
        Bytes that this rank reads in the epoch, expected from the size on disk.
    mixing
        Of the labels looked at.
    """

    schedule: object
    n_obs: int
    n_batches: int
    n_windows: int
    window_bytes: int
    read_ahead: int
    memory: int
    runs: float
    read_bytes: int
    mixing: tuple[Mixing, ...]

    def _memory_line(self) -> str:
        window, budget = human_bytes(self.window_bytes), human_bytes(self.memory)
        return f"  memory    {window} a window, {self.read_ahead} read ahead, budget {budget}"

    def _repr_html_(self) -> str:
        from daodask._html import Column, bar, card, section, table

        facts = {
            "Schedule": str(self.schedule),
            "Memory": self._memory_line().split(maxsplit=1)[1],
            "Reads": f"about {human_bytes(self.read_bytes)}, {self.runs:,.0f} runs of rows a window",
        }
        columns = (Column("column", "ds-name"), Column("bits a batch", "ds-number"), Column(""), Column("", "ds-tail"))
        rows = (
            (
                m.column,
                f"{m.entropy:.2f}",
                bar(m.share, 1),
                f"{m.share:.1%} of the {m.independent:.2f} of a random draw",
            )
            for m in self.mixing
        )
        mixing = section("Mixing", plural(len(self.mixing), "column"), table(columns, rows, len(self.mixing), ""))
        title = f"{self.n_batches:,} batches in {self.n_windows:,} windows, {self.n_obs:,} cells"
        return card("daodask.LoaderPlan", title, repr(self), mixing, facts=facts)

    def __repr__(self) -> str:
        lines = [
            f"epoch of {self.n_batches:,} batches in {self.n_windows:,} windows, {self.n_obs:,} cells",
            f"  schedule  {self.schedule}",
            self._memory_line(),
            f"  reads     about {human_bytes(self.read_bytes)}, {self.runs:,.0f} runs of rows a window",
        ]
        lines += [
            f"  mixing    {m.column}: {m.entropy:.2f} of {m.independent:.2f} bits a batch ({m.share:.1%})"
            for m in self.mixing
        ]
        return "\n".join(lines)
