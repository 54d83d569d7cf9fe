"""What a build did: per study and as a whole, as values, as a terminal table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["BuildReport", "StudyReport", "table"]


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What streamlining did to one study.

    Parameters
    ----------
    id
        The study.
    status
        ``"built"``, ``"replaced"``, ``"unchanged"`` (it was there already), ``"refused"`` (its content is not what the
        build file says) or ``"failed"`` (it could not be read or written).
    reason
        Why it was refused or failed.
    n_obs
        Cells.
    genes_matched, genes_summed, genes_padded
        Source genes with a place in the feature space; those of them added onto another's; genes of the feature space
        that the study did not measure.
    genes_dropped
        Source genes without a place, by reason.
    counts_total, counts_kept
        Sum over X in the source, and of what was kept; NaN where X has values that have no sum.
    """

    id: str
    status: str
    reason: str = ""
    n_obs: int = 0
    genes_matched: int = 0
    genes_summed: int = 0
    genes_padded: int = 0
    genes_dropped: Mapping[str, int] = field(default_factory=dict)
    counts_total: float = 0.0
    counts_kept: float = 0.0

    @property
    def kept_percent(self) -> float:
        """Share of the study's counts that was kept, in per cent; 100 for a study without any."""
        return 100.0 * self.counts_kept / self.counts_total if self.counts_total else 100.0

    @property
    def ok(self) -> bool:
        """Whether the study is in the store."""
        return self.status in _GOOD

    def facts(self) -> dict[str, Any]:
        """What the snapshot keeps of the report."""
        kept = (
            "n_obs",
            "genes_matched",
            "genes_summed",
            "genes_padded",
            "genes_dropped",
            "counts_total",
            "counts_kept",
        )
        return {name: value for name, value in dataclasses.asdict(self).items() if name in kept}

    @classmethod
    def from_facts(cls, id: str, status: str, facts: Mapping[str, Any]) -> StudyReport:  # noqa: A002  as the field
        """The report of what a snapshot keeps; sums that JSON lacks are ``None`` there."""
        known: dict[str, Any] = {name: math.nan if value is None else value for name, value in facts.items()}
        return cls(id, status, **known)


_GOOD: Final = ("built", "replaced", "unchanged")


@dataclass(frozen=True, slots=True, repr=False)
class BuildReport:
    """What a build did.

    Parameters
    ----------
    url
        The store.
    snapshot
        Number of the store's newest snapshot after the build; 0 where there is none.
    committed
        Whether the build wrote that snapshot.
    studies
        A report per study of the build file, in its order.
    seconds
        Wall time.
    """

    url: str
    snapshot: int
    committed: bool
    studies: tuple[StudyReport, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every study is in the store."""
        return all(study.ok for study in self.studies)

    def to_json(self) -> str:
        """The report as JSON text, with ``null`` for numbers that JSON lacks."""
        value = dataclasses.asdict(self, dict_factory=_with_nulls)
        return json.dumps(value, allow_nan=False, indent=2, ensure_ascii=False)

    def __repr__(self) -> str:
        rows = [_row(s) for s in self.studies]
        lines = [self.headline(), "", table(_HEADER, rows)]
        lines += [f"\n{s.id}: {s.status}: {s.reason}" for s in self.studies if s.reason]
        return "\n".join(lines)

    def headline(self) -> str:
        """One line: how many studies are in, and whether there is a new snapshot."""
        built = sum(s.status in ("built", "replaced") for s in self.studies)
        same = sum(s.status == "unchanged" for s in self.studies)
        bad = len(self.studies) - built - same
        what = f"snapshot {self.snapshot} committed" if self.committed else "nothing to commit"
        return f"{self.url}: {what}; {built} built, {same} unchanged, {bad} refused or failed, in {self.seconds:.1f} s"


def _with_nulls(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in items}


_HEADER: Final = ("study", "status", "cells", "matched", "summed", "padded", "dropped", "counts kept")


def _row(study: StudyReport) -> tuple[str, ...]:
    if not study.ok:
        return (study.id, study.status, *([""] * 6))
    counts = (
        study.n_obs,
        study.genes_matched,
        study.genes_summed,
        study.genes_padded,
        sum(study.genes_dropped.values()),
    )
    return study.id, study.status, *(f"{n:,}" for n in counts), f"{study.kept_percent:.2f} %"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Plain text columns: the first two to the left, the others to the right."""
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
