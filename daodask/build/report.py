"""What a build did: per study and as a whole, as values, as a terminal table, as JSON and as a page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from daodask.build.depth import Depth
from daodask.format.manifest import DatasetInfo
from daodask.types import Label

__all__ = ["BuildReport", "LabelCounts", "StudyReport", "table"]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Cells of a study per label of one obs column, aligned, and those without a label."""

    column: str
    labels: tuple[Label, ...]
    counts: tuple[int, ...]
    n_missing: int = 0


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
    genes_ambiguous
        Names that stand for several genes and so were dropped, with the ids of those.
    counts_total, counts_kept
        Sum over X in the source, and of what was kept; NaN where X has values that have no sum.
    depth
        Histograms of the cells' sums and numbers of genes, of what was kept.
    features
        Name of its feature space.
    kind
        Of X: ``"counts"``, ``"normalised"`` or ``"other"``.
    nbytes
        Bytes of its dataset in the store.
    labels
        Cells per label of each categorical obs column, as the snapshot has them.
    seconds
        Wall time of each stage, from when its first task was handed out to the end of its last. Studies go through
        their stages side by side.
    phases
        Seconds that its tasks spent in each phase (read, map, encode, write), summed over them. Those whose receipts
        were there already took none.
    """

    id: str
    status: str
    reason: str = ""
    n_obs: int = 0
    genes_matched: int = 0
    genes_summed: int = 0
    genes_padded: int = 0
    genes_dropped: Mapping[str, int] = field(default_factory=dict)
    genes_ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counts_total: float = 0.0
    counts_kept: float = 0.0
    depth: Depth = field(default_factory=Depth)
    features: str = ""
    kind: str = ""
    nbytes: int = 0
    labels: tuple[LabelCounts, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    phases: Mapping[str, float] = field(default_factory=dict, compare=False)

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
            "genes_ambiguous",
            "counts_total",
            "counts_kept",
            "depth",
        )
        return {name: value for name, value in dataclasses.asdict(self).items() if name in kept}

    @classmethod
    def of_dataset(cls, dataset: DatasetInfo, status: str) -> StudyReport:
        """The report of a dataset as the snapshot has it; sums that JSON lacks are ``None`` there."""
        known: dict[str, Any] = {n: math.nan if value is None else value for n, value in dataset.report.items()}
        known["depth"] = Depth.from_dict(known.get("depth", {}))
        known["genes_ambiguous"] = {n: tuple(ids) for n, ids in known.get("genes_ambiguous", {}).items()}
        return cls(
            dataset.id,
            status,
            **known,
            features=dataset.features,
            kind=dataset.matrix["X"].kind,
            nbytes=dataset.nbytes,
            labels=tuple(
                LabelCounts(c.name, c.categories, c.counts, c.n_missing)
                for c in dataset.columns
                if c.dtype == "category"
            ),
        )


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
    created
        When it ended, as ISO time stamp in UTC.
    genes
        Genes of each feature space, by name.
    schema
        Obs columns that the build file declares.
    versions
        Of daodask and of the libraries that the bytes depend on.
    """

    url: str
    snapshot: int
    committed: bool
    studies: tuple[StudyReport, ...]
    seconds: float
    created: str = ""
    genes: Mapping[str, int] = field(default_factory=dict)
    schema: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every study is in the store."""
        return all(study.ok for study in self.studies)

    def to_json(self) -> str:
        """The report as JSON text, with ``null`` for numbers that JSON lacks."""
        value = dataclasses.asdict(self, dict_factory=_with_nulls)
        return json.dumps(value, allow_nan=False, indent=2, ensure_ascii=False)

    def to_html(self) -> str:
        """The report as one HTML page that needs nothing else: no script, no other file, no network."""
        from daodask.build._report_html import report_page

        return report_page(self)

    def _repr_html_(self) -> str:
        from daodask.build._report_html import report_card

        return report_card(self)

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
