"""The report of a build as one HTML page: tables and drawings of plain markup, and nothing that is run or loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from daodask._format import (
    human_bytes,
    human_count,
    human_date,
    human_share,
    list_some,
    one_line,
    plural,
    public_url,
    shorten,
)
from daodask._html import Column, bar, card, pill, section, table
from daodask._markup import Html, el
from daodask.build.depth import Bins, Depth, bin_start, quantile
from daodask.build.report import BuildReport, LabelCounts, StudyReport

__all__ = ["report_card", "report_page"]

#: Studies that have a colour of their own; the others share a grey.
_COLOURS: Final = 12
#: Labels of a column, columns, and studies of the drawings that are shown at most; tables show every study.
_MOST_LABELS: Final = 16
_MOST_COLUMNS: Final = 40
_MOST_STUDIES: Final = 80
#: Colours of the reasons why genes are dropped.
_DROPS: Final = 6
#: Ambiguous names that are listed at most.
_MOST_NAMES: Final = 200
_NAME_WIDTH: Final = 30


@dataclass(frozen=True, slots=True)
class _Page:
    """A report with what all its sections need: the studies that are in, and which colour each of them has."""

    report: BuildReport
    good: tuple[StudyReport, ...]
    colours: Mapping[str, int]

    @classmethod
    def of(cls, report: BuildReport) -> _Page:
        good = tuple(s for s in report.studies if s.ok)
        largest = sorted(good, key=lambda s: -s.n_obs)[:_COLOURS]
        # In the order of the build file, so that neighbours in a bar are neighbours in the legend.
        coloured = [s.id for s in good if s in largest]
        return cls(report, good, {study: number for number, study in enumerate(coloured)})

    @property
    def bad(self) -> tuple[StudyReport, ...]:
        return tuple(s for s in self.report.studies if not s.ok)

    @property
    def n_obs(self) -> int:
        return sum(s.n_obs for s in self.good)

    def colour(self, study: str) -> str:
        """The class of a study's colour."""
        return f"c{self.colours.get(study, 'x')}"

    def spaces(self) -> Iterator[tuple[str, int, tuple[StudyReport, ...]]]:
        """Feature spaces that have a study: name, genes, studies."""
        for name in dict.fromkeys(s.features for s in self.good):
            yield name, self.report.genes.get(name, 0), tuple(s for s in self.good if s.features == name)


def report_page(report: BuildReport) -> str:
    """The whole page."""
    page = _Page.of(report)
    title = f"daodask build: {public_url(report.url)}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Whatever a study says of itself, nothing on this page is run or fetched.
        el("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(_CSS)),
    )
    sections = (_problems(page), _studies(page), _labels(page), _genes(page), _depths(page), _provenance(page))
    body = el("body", el("main", _header(page), *sections))
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def report_card(report: BuildReport) -> Html:
    """What Jupyter shows: the headline and the table of studies."""
    page = _Page.of(report)
    largest = max((s.n_obs for s in page.good), default=0)
    heads = (
        Column("study", "ds-name"),
        Column("status"),
        Column("cells", "ds-number"),
        Column(""),
        Column("genes matched", "ds-number"),
        Column("counts kept", "ds-number"),
        Column("stored", "ds-number"),
        Column("", "ds-tail"),
    )
    rows = (_card_row(study, largest) for study in report.studies)
    facts = {
        "Snapshot": f"{report.snapshot or 'none'}, {'committed' if report.committed else 'nothing to commit'}",
        "Cells": human_count(page.n_obs),
        "Genes": ", ".join(f"{name} {human_count(n)}" for name, n in report.genes.items()),
        "Stored": human_bytes(sum(s.nbytes for s in page.good)),
        "Took": _seconds(report.seconds),
        "Drawings": "report.to_html()",
    }
    title = f"{plural(len(page.good), 'study')} in the store" + (f", {len(page.bad)} not" if page.bad else "")
    body = section("Studies", human_count(len(report.studies)), table(heads, rows, len(report.studies), ""))
    return card("daodask.BuildReport", title, repr(report), body, url=report.url, facts=facts)


def _card_row(study: StudyReport, largest: int) -> tuple[str, ...]:
    status = pill(study.status, "" if study.status == "unchanged" else "ds-good" if study.ok else "ds-bad")
    numbers: tuple[str, ...] = ("", "", "", "", "")
    if study.ok:
        genes, stored = human_count(study.genes_matched), human_bytes(study.nbytes)
        kept = _percent(study.kept_percent)
        numbers = (human_count(study.n_obs), bar(study.n_obs, largest), genes, kept, stored)
    return (study.id, status, *numbers, shorten(study.reason, 200))


# -- the top -------------------------------------------------------------------------------------------------------


def _header(page: _Page) -> Html:
    report = page.report
    what = f"Snapshot {report.snapshot}" if report.snapshot else "No snapshot"
    state = "committed" if report.committed else "nothing to commit"
    ended = f" · {human_date(report.created)}" if report.created else ""
    return el(
        "header",
        el("p", "daodask build", class_="kind"),
        el("h1", public_url(report.url)),
        el("p", f"{what}, {state}{ended} · took {_seconds(report.seconds)}", class_="dim"),
        el("dl", *(_tile(name, value, note) for name, value, note in _key_figures(page)), class_="tiles"),
    )


def _key_figures(page: _Page) -> Iterator[tuple[str, str, str]]:
    by_status = {s: sum(x.status == s for x in page.report.studies) for s in _STATUSES}
    said = ", ".join(f"{human_count(n)} {status}" for status, n in by_status.items() if n)
    yield "studies in the store", f"{human_count(len(page.good))} of {human_count(len(page.report.studies))}", said
    yield "cells", human_count(page.n_obs), _about_cells(page)
    spaces = list(page.spaces())
    if len(spaces) > 1:
        said = ", ".join(f"{name} {human_count(n)}" for name, n, _ in spaces)
        yield "genes", f"{len(spaces)} spaces", said
    else:
        yield "genes", human_count(sum(n for _, n, _ in spaces)), ", ".join(name for name, _, _ in spaces)
    counted = [s for s in page.good if s.kind == "counts"]
    total, kept = sum(s.counts_total for s in counted), sum(s.counts_kept for s in counted)
    share = _percent(100 * kept / total) if total else "—"
    yield "counts kept", share, f"{_rounded(kept)} of {_rounded(total)}"
    yield "stored", human_bytes(sum(s.nbytes for s in page.good)), f"{_per_cell(page)} a cell"


_STATUSES: Final = ("built", "replaced", "unchanged", "refused", "failed")


def _about_cells(page: _Page) -> str:
    largest = max(page.good, key=lambda s: s.n_obs, default=None)
    return f"most of them {human_share(largest.n_obs, page.n_obs)} in {largest.id}" if largest and page.n_obs else ""


def _per_cell(page: _Page) -> str:
    return human_bytes(round(sum(s.nbytes for s in page.good) / page.n_obs)) if page.n_obs else "0 B"


def _tile(name: str, value: str, note: str) -> Html:
    return el("div", el("dt", name), el("dd", value, class_="value"), el("dd", note, class_="note"))


def _section(title: str, about: str, *body: Html) -> Html:
    return el("section", el("h2", title), el("p", about, class_="about"), *body)


def _problems(page: _Page) -> Html:
    if not page.bad:
        return Html("")
    items = (
        el("li", _pill(s), " ", el("b", one_line(s.id)), el("p", one_line(s.reason), class_="reason")) for s in page.bad
    )
    about = "Refused: the content is not what the build file says. Failed: it could not be read or written."
    return _section("Not in the store", about, el("ul", *items, class_="problems"))


def _pill(study: StudyReport) -> Html:
    return el("span", study.status, class_=f"pill {study.status}")


# -- studies -------------------------------------------------------------------------------------------------------

_STUDY_HEADS: Final = (
    ("study", ""),
    ("status", ""),
    ("cells", "number"),
    ("", "bar"),
    ("X", ""),
    ("genes matched", "number"),
    ("not measured", "number"),
    ("dropped", "number"),
    ("counts kept", "number"),
    ("median counts", "number"),
    ("median genes", "number"),
)


def _studies(page: _Page) -> Html:
    if not page.good:
        return Html("")
    largest = max(s.n_obs for s in page.good)
    body = []
    for name, n_vars, studies in page.spaces():
        cells = sum(s.n_obs for s in studies)
        said = f"{name}: {plural(n_vars, 'gene')}, {plural(len(studies), 'study')}, {plural(cells, 'cell')}"
        body.append(el("tr", el("th", said, colspan=str(len(_STUDY_HEADS)), scope="colgroup"), class_="space"))
        body += [_study_row(page, s, largest) for s in studies]
    head = el("thead", el("tr", *(el("th", h, class_=c, scope="col") for h, c in _STUDY_HEADS)))
    about = (
        "Matched: genes of the study with a place in the feature space. Not measured: genes of the feature space that "
        "the study lacks. Dropped: genes of the study without a place. Medians are read off the histograms below."
    )
    return _section("Studies", about, _scrolling(el("table", head, el("tbody", *body))))


def _scrolling(*children: Html) -> Html:
    return el("div", *children, class_="scroll", tabindex="0")


def _study_row(page: _Page, study: StudyReport, largest: int) -> Html:
    dropped = sum(study.genes_dropped.values())
    reasons = ", ".join(f"{human_count(n)} {reason}" for reason, n in study.genes_dropped.items() if n)
    summed = f"{human_count(study.genes_summed)} of them added onto another gene's" if study.genes_summed else ""
    bar = el("i", class_=page.colour(study.id), style=f"width:{_width(study.n_obs, largest)}")
    kept = study.kept_percent
    return el(
        "tr",
        el("th", one_line(study.id), scope="row", class_="name"),
        el("td", _pill(study)),
        _number(human_count(study.n_obs)),
        el("td", el("span", bar, class_="track"), class_="bar"),
        el("td", study.kind, class_="dim"),
        _number(human_count(study.genes_matched), summed),
        _number(human_count(study.genes_padded)),
        _number(human_count(dropped), reasons),
        _number(_percent(kept), css="low" if kept < _LOW_KEPT else ""),
        _number(_about(quantile(study.depth.n_counts, 0.5))),
        _number(_about(quantile(study.depth.n_genes, 0.5))),
    )


#: Below this share of counts kept, in per cent, a study is worth a look: its gene names are probably outdated.
_LOW_KEPT: Final = 80.0


def _number(text: str, title: str = "", css: str = "") -> Html:
    return el("td", text, class_=f"number {css}".strip(), title=title)


# -- labels --------------------------------------------------------------------------------------------------------


def _labels(page: _Page) -> Html:
    columns = _columns(page)
    if not columns:
        return Html("")
    declared = [c for c in columns if c in page.report.schema]
    others = [c for c in columns if c not in page.report.schema]
    drawn = [_column(page, name, columns[name]) for name in declared]
    # Where no column is declared, those that were kept are what there is to see.
    if others and declared:
        kept = el("div", *(_column(page, n, columns[n]) for n in others[:_MOST_COLUMNS]), class_="panels")
        summary = el("summary", f"{plural(len(others), 'column')} that studies keep beside them")
        drawn_others = el("details", summary, kept, _left_out(len(others) - _MOST_COLUMNS, "column"))
    else:
        drawn += [_column(page, name, columns[name]) for name in others[:_MOST_COLUMNS]]
        drawn_others = _left_out(len(others) - _MOST_COLUMNS, "column")
    about = "Cells per label, by study: the most frequent labels of each categorical obs column."
    return _section("Labels", about, _legend(page), el("div", *drawn, class_="panels"), drawn_others)


def _left_out(n: int, noun: str) -> Html:
    return el("p", f"… {plural(n, noun)} more, which are not drawn", class_="dim") if n > 0 else Html("")


def _columns(page: _Page) -> dict[str, list[tuple[StudyReport, LabelCounts]]]:
    """Categorical columns by name, those that are declared first, with what each study has of them."""
    found: dict[str, list[tuple[StudyReport, LabelCounts]]] = {name: [] for name in page.report.schema}
    for study in page.good:
        for counts in study.labels:
            found.setdefault(counts.column, []).append((study, counts))
    return {name: parts for name, parts in found.items() if parts}


def _legend(page: _Page) -> Html:
    entries = [el("li", el("i", class_=page.colour(s)), shorten(s, _NAME_WIDTH)) for s in page.colours]
    if len(page.good) > len(page.colours):
        rest = len(page.good) - len(page.colours)
        entries.append(el("li", el("i", class_="cx"), plural(rest, "other study")))
    return el("ul", *entries, class_="legend", aria_label="Colours of the studies")


def _column(page: _Page, name: str, parts: Sequence[tuple[StudyReport, LabelCounts]]) -> Html:
    totals: dict[str, dict[str, int]] = {}
    for study, counts in parts:
        for label, n in zip(counts.labels, counts.counts, strict=True):
            if n:
                by_study = totals.setdefault(one_line(label), {})
                by_study[study.id] = by_study.get(study.id, 0) + n
    frequent = sorted(totals.items(), key=lambda item: -sum(item[1].values()))
    shown, hidden = frequent[:_MOST_LABELS], frequent[_MOST_LABELS:]
    missing = {s.id: c.n_missing for s, c in parts if c.n_missing}
    having = {s.id for s, _ in parts}
    missing |= {s.id: s.n_obs for s in page.good if s.id not in having and s.n_obs}
    rows = [(label, by_study, "") for label, by_study in shown]
    if hidden:
        rows.append((f"{plural(len(hidden), 'other label')}", _summed(by for _, by in hidden), "rest"))
    if missing:
        rows.append(("no value", missing, "rest"))
    largest = max((sum(by_study.values()) for _, by_study, _ in rows), default=0)
    bars = (_label_row(page, label, by_study, largest, css) for label, by_study, css in rows)
    said = f"{plural(len(totals), 'label')} in {plural(len(having), 'study')}"
    return el(
        "figure",
        el("figcaption", el("b", shorten(name, _NAME_WIDTH)), " ", el("span", said, class_="dim")),
        el("table", el("tbody", *bars), class_="bars"),
        class_="panel",
    )


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, n in part.items():
            total[name] = total.get(name, 0) + n
    return total


def _label_row(page: _Page, label: str, by_study: Mapping[str, int], largest: int, css: str) -> Html:
    order = [s.id for s in page.good if s.id in by_study]
    coloured = [(s, by_study[s]) for s in order if s in page.colours]
    grey = sum(n for s, n in by_study.items() if s not in page.colours)
    segments = [*coloured, *([("other studies", grey)] if grey else [])]
    total = sum(by_study.values())
    strip = (
        el("i", class_=page.colour(s), style=f"width:{_width(n, largest)}", title=f"{one_line(s)}: {human_count(n)}")
        for s, n in segments
    )
    return el(
        "tr",
        el("th", shorten(label, _NAME_WIDTH), scope="row", title=label, class_=f"name {css}".strip()),
        el("td", el("span", *strip, class_="track"), class_="bar"),
        _number(human_count(total)),
        _number(human_share(total, page.n_obs), css="dim"),
    )


# -- genes ---------------------------------------------------------------------------------------------------------


def _genes(page: _Page) -> Html:
    studies = page.good[:_MOST_STUDIES]
    if not studies:
        return Html("")
    reasons = list(dict.fromkeys(r for s in studies for r, n in s.genes_dropped.items() if n))
    most = max(s.genes_matched + sum(s.genes_dropped.values()) for s in studies)
    rows = (_gene_row(page, s, reasons, most) for s in studies)
    keys = [("k-matched", "with a place of their own"), ("k-summed", "added onto another gene's")]
    keys += [(f"k-dropped{i % _DROPS}", f"dropped: {reason}") for i, reason in enumerate(reasons)]
    legend = el("ul", *(el("li", el("i", class_=css), said) for css, said in keys), class_="legend")
    heads = (
        ("study", ""),
        ("genes of the study", "bar"),
        ("", "number"),
        ("counts kept", "bar"),
        ("", "number"),
        ("feature space measured", "bar"),
        ("", "number"),
    )
    head = el("thead", el("tr", *(el("th", h, class_=c, scope="col") for h, c in heads)))
    about = (
        "Where the genes of each study went, what share of its counts they carry, and how much of the feature space it "
        "measured."
    )
    table = _scrolling(el("table", head, el("tbody", *rows), class_="genes"))
    left_out = _left_out(len(page.good) - _MOST_STUDIES, "study")
    return _section("Genes", about, legend, table, left_out, _ambiguous(page))


def _ambiguous(page: _Page) -> Html:
    """Names that stand for several genes, which a rule of the build file can settle."""
    studies: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for study in page.good:
        for name, genes in study.genes_ambiguous.items():
            studies.setdefault((name, tuple(genes)), []).append(study.id)
    if not studies:
        return Html("")
    items = (
        el("li", el("b", one_line(name)), f": {', '.join(genes)} (in {list_some(having, 5)})")
        for (name, genes), having in list(studies.items())[:_MOST_NAMES]
    )
    summary = el("summary", f"{plural(len(studies), 'ambiguous name')}, dropped and never guessed")
    return el("details", summary, el("ul", *items), _left_out(len(studies) - _MOST_NAMES, "name"))


def _gene_row(page: _Page, study: StudyReport, reasons: Sequence[str], most: int) -> Html:
    own = study.genes_matched - study.genes_summed
    parts = [("k-matched", "with a place of their own", own), ("k-summed", "added onto others", study.genes_summed)]
    parts += [(f"k-dropped{i % _DROPS}", f"dropped: {r}", study.genes_dropped.get(r, 0)) for i, r in enumerate(reasons)]
    strip = (
        el("i", class_=css, style=f"width:{_width(n, most)}", title=f"{said}: {human_count(n)}")
        for css, said, n in parts
        if n
    )
    n_genes = study.genes_matched + sum(study.genes_dropped.values())
    n_vars = page.report.genes.get(study.features, 0) or own + study.genes_padded
    measured = n_vars - study.genes_padded
    return el(
        "tr",
        el("th", shorten(study.id, _NAME_WIDTH), scope="row", title=one_line(study.id), class_="name"),
        el("td", el("span", *strip, class_="track"), class_="bar"),
        _number(human_count(n_genes)),
        el("td", _share_bar(study.kept_percent / 100), class_="bar"),
        _number(_percent(study.kept_percent), css="low" if study.kept_percent < _LOW_KEPT else ""),
        el("td", _share_bar(measured / n_vars if n_vars else 0.0), class_="bar"),
        _number(human_share(measured, n_vars) if n_vars else "—", f"{human_count(measured)} of {human_count(n_vars)}"),
    )


def _share_bar(share: float) -> Html:
    width = f"{100 * share:.4g}%" if math.isfinite(share) else "0%"
    return el("span", el("i", class_="k-matched", style=f"width:{width}"), class_="track whole")


# -- depth ---------------------------------------------------------------------------------------------------------

_PLOT_WIDTH: Final = 440.0
_PLOT_HEIGHT: Final = 46.0
#: Room above the highest column, for the median.
_HEAD: Final = 13.0
_AXIS_HEIGHT: Final = 16.0


def _depths(page: _Page) -> Html:
    studies = [s for s in page.good if any(s.depth.n_counts)][:_MOST_STUDIES]
    if not studies:
        return Html("")
    counts = _Scale.of(s.depth.n_counts for s in studies)
    genes = _Scale.of(s.depth.n_genes for s in studies)
    whole = Depth.sum(s.depth for s in page.good)
    rows = [_depth_row("all studies", "ca", whole, counts, genes)] if len(studies) > 1 else []
    rows += [_depth_row(s.id, page.colour(s.id), s.depth, counts, genes) for s in studies]
    axes = el("tr", el("th", ""), el("td", counts.axis()), el("td", genes.axis()), class_="axis")
    heads = ("study", "sum of X per cell", "genes that are not zero per cell")
    head = el("thead", el("tr", *(el("th", h, scope="col") for h in heads)))
    about = (
        "Cells by the sum of their values and by their number of genes, of what is in the store, on logarithmic "
        "scales; each drawing has its own height. The line is the median."
    )
    table = _scrolling(el("table", head, el("tbody", *rows, axes), class_="depths"))
    left_out = sum(any(s.depth.n_counts) for s in page.good) - len(studies)
    return _section("Depth", about, table, _left_out(left_out, "study"))


def _depth_row(name: str, css: str, depth: Depth, counts: _Scale, genes: _Scale) -> Html:
    return el(
        "tr",
        el("th", shorten(name, _NAME_WIDTH), scope="row", title=one_line(name), class_="name"),
        el("td", counts.histogram(depth.n_counts, css, f"{name}: sum of X per cell")),
        el("td", genes.histogram(depth.n_genes, css, f"{name}: genes per cell")),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """A logarithmic axis that several histograms share: bins ``[first, last)``, and the one of cells below 1 apart."""

    first: int
    last: int
    zeros: bool

    @classmethod
    def of(cls, histograms: Iterable[Bins]) -> _Scale:
        listed = list(histograms)
        filled = [k for bins in listed for k, n in enumerate(bins) if n and k]
        first, last = (min(filled), max(filled) + 1) if filled else (1, 2)
        return cls(max(1, first - 1), last + 1, any(bins[:1] != (0,) and bins[:1] for bins in listed))

    @property
    def _left(self) -> float:
        """Where the scale begins: the cells below 1 stand to the left of it."""
        return 22.0 if self.zeros else 0.0

    def x(self, bin_number: float) -> float:
        """Where a bin begins."""
        share = (bin_number - self.first) / (self.last - self.first)
        return self._left + (_PLOT_WIDTH - self._left) * share

    def histogram(self, bins: Bins, css: str, title: str) -> Html:
        """The drawing of one histogram."""
        total, most = sum(bins), max(bins, default=0) or 1
        shapes = [el("title", f"{one_line(title)}, {plural(total, 'cell')}")]
        shapes += [
            el("rect", class_=css, x="0", y=_px(_up(n, most)), width="14", height=_px(_PLOT_HEIGHT - _up(n, most)))
            for n in bins[:1]
            if n
        ]
        shapes.append(el("path", class_=css, d=self._outline(bins, most)))
        shapes.append(el("path", class_="base", d=f"M0 {_px(_PLOT_HEIGHT)}H{_px(_PLOT_WIDTH)}"))
        median = quantile(bins, 0.5)
        if median >= 1:
            # Half past a bin's bound, as bin k begins at 10 ** ((k - 1) / 10).
            place = self.x(1 + 10 * math.log10(median))
            shapes.append(el("path", class_="median", d=f"M{_px(place)} 0V{_px(_PLOT_HEIGHT)}"))
            right = place < _PLOT_WIDTH - 70
            shapes.append(
                el(
                    "text",
                    _about(median),
                    x=_px(place + (5 if right else -5)),
                    y="10",
                    text_anchor="start" if right else "end",
                )
            )
        size = {"viewBox": f"0 0 {_PLOT_WIDTH:.0f} {_PLOT_HEIGHT + 1:.0f}", "width": f"{_PLOT_WIDTH:.0f}"}
        return el("svg", *shapes, role="img", aria_label=one_line(title), height=f"{_PLOT_HEIGHT + 1:.0f}", **size)

    def _outline(self, bins: Bins, most: int) -> str:
        steps = [f"M{_px(self.x(self.first))} {_px(_PLOT_HEIGHT)}"]
        for k in range(self.first, self.last):
            n = bins[k] if k < len(bins) else 0
            steps.append(f"V{_px(_up(n, most))}H{_px(self.x(k + 1))}")
        return "".join([*steps, f"V{_px(_PLOT_HEIGHT)}Z"])

    def axis(self) -> Html:
        """Ticks at the powers of ten, and one for the cells below 1."""
        ticks = [(7.0, "0")] if self.zeros else []
        powers = range(math.ceil((self.first - 1) / 10), (self.last - 1) // 10 + 1)
        # A scale within one decade is told by its ends.
        bins = [1 + 10 * p for p in powers] if len(powers) > 1 else [self.first, self.last]
        ticks += [(self.x(k), _rounded(bin_start(k))) for k in bins]
        marks = [
            el("text", said, x=_px(min(max(x, 8), _PLOT_WIDTH - 12)), y="12", text_anchor="middle") for x, said in ticks
        ]
        size = {"viewBox": f"0 0 {_PLOT_WIDTH:.0f} {_AXIS_HEIGHT:.0f}", "width": f"{_PLOT_WIDTH:.0f}"}
        return el("svg", *marks, aria_hidden="true", height=f"{_AXIS_HEIGHT:.0f}", **size)


def _up(n: int, most: int) -> float:
    """Where a column of the histogram ends, from above."""
    return _PLOT_HEIGHT - (_PLOT_HEIGHT - _HEAD) * n / most


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# -- the end -------------------------------------------------------------------------------------------------------


def _provenance(page: _Page) -> Html:
    report = page.report
    stages = list(dict.fromkeys(stage for s in report.studies for stage in s.seconds))
    phases = list(dict.fromkeys(phase for s in report.studies for phase, n in s.phases.items() if n))
    heads = [("study", ""), *((stage, "number") for stage in stages), *((f"to {p}", "number") for p in phases)]
    rows = (
        el(
            "tr",
            el("th", one_line(s.id), scope="row", class_="name"),
            *(_number(_seconds(s.seconds[stage]) if stage in s.seconds else "") for stage in stages),
            *(_number(_seconds(s.phases[phase]) if phase in s.phases else "", css="dim") for phase in phases),
        )
        for s in report.studies
    )
    head = el("thead", el("tr", *(el("th", h, class_=c, scope="col") for h, c in heads)))
    times = _scrolling(el("table", head, el("tbody", *rows), class_="times")) if stages else Html("")
    versions = (el("div", el("dt", name), el("dd", value)) for name, value in report.versions.items())
    about = (
        f"The build took {_seconds(report.seconds)}. Times are from when the first task of a stage was handed out to "
        f"the end of its last: studies go through their stages side by side, so that they don't add up. What is said "
        f"of phases (to read, to map, …) is the time that tasks spent in them, summed."
    )
    return _section("Times and versions", about, times, el("dl", *versions, class_="versions"))


# -- numbers -------------------------------------------------------------------------------------------------------


def _width(n: int, total: int) -> str:
    return f"{100 * n / total if total else 0:.4g}%"


def _percent(value: float) -> str:
    """Two digits after the point, as the text has them; never rounded to all."""
    if not math.isfinite(value):
        return "—"
    return ">99.99 %" if 99.995 <= value < 100 else f"{value:.2f} %"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _about(value: float) -> str:
    """Two digits, as no more of a histogram is known."""
    if not math.isfinite(value):
        return "—"
    return human_count(int(float(f"{value:.2g}"))) if value >= 1 else "0"


def _rounded(value: float) -> str:
    """A large number in short: ``"950"``, ``"12k"``, ``"1.5M"``."""
    if not math.isfinite(value):
        return "—"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


# -- style ---------------------------------------------------------------------------------------------------------

_LIGHT: Final = (
    "--ground:#fff;--panel:#fff;--text:#1d2530;--dim:#5a6678;--line:#e2e7ee;--hover:#f4f6f9;--accent:#176b82;"
    "--track:#eef1f5;--grey:#aab3c0;--all:#5a6678;--good:#1a7f4b;--good-bg:#e3f4ea;--same:#46566b;--same-bg:#eaeef3;"
    "--bad:#a3341f;--bad-bg:#fbe9e5;"
    "--c0:#1f7a94;--c1:#e08a2c;--c2:#7a5fb5;--c3:#3f9a57;--c4:#d1526a;--c5:#8c6d46;--c6:#4f77c8;--c7:#b5a018;"
    "--c8:#c864b4;--c9:#5fb3b3;--c10:#7d8c2e;--c11:#b56a9a;--k1:#1f7a94;--k2:#8fc3cf;--k3:#d9dee6;--k4:#b9c1cd;--k5:#e0a48a;--k6:#c9b458;--k7:#b79ad0;--k8:#8a8f98"
)
_DARK: Final = (
    "--ground:#12161c;--panel:#181d25;--text:#e3e8ef;--dim:#9aa5b5;--line:#2a323d;--hover:#1e252e;--accent:#6cc7d6;"
    "--track:#232a34;--grey:#5d6878;--all:#9aa5b5;--good:#7bd6a0;--good-bg:#173526;--same:#b3bfcf;--same-bg:#27303c;"
    "--bad:#f2a08f;--bad-bg:#41211b;"
    "--c0:#4fb0c6;--c1:#eda24f;--c2:#a58fdc;--c3:#6cc182;--c4:#e67f93;--c5:#bd9c72;--c6:#82a3e8;--c7:#d3c04a;"
    "--c8:#dd8fce;--c9:#7fd0cf;--c10:#b3c35c;--c11:#d79cc0;--k1:#4fb0c6;--k2:#2c6472;--k3:#3a4451;--k4:#566273;--k5:#9a5f48;--k6:#8d7d34;--k7:#75598f;--k8:#7c828c"
)
_CSS: Final = (
    f":root{{{_LIGHT};color-scheme:light}}@media (prefers-color-scheme:dark){{:root{{{_DARK};color-scheme:dark}}}}"
    + "".join(f".c{i}{{background:var(--c{i});fill:var(--c{i})}}" for i in range(_COLOURS))
    + """
.cx{background:var(--grey);fill:var(--grey)}.ca{fill:var(--all)}
.k-matched{background:var(--k1)}.k-summed{background:var(--k2)}
.k-dropped0{background:var(--k4)}.k-dropped1{background:var(--k3)}.k-dropped2{background:var(--k5)}
.k-dropped3{background:var(--k6)}.k-dropped4{background:var(--k7)}.k-dropped5{background:var(--k8)}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--text);
 font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:32px 28px 56px}
h1{font-size:22px;font-weight:600;margin:0 0 2px;overflow-wrap:anywhere;line-height:1.3}
h2{font-size:17px;font-weight:600;margin:0}
p{margin:0}
.kind{color:var(--accent);font-weight:600;font-size:13px}
.dim,.about{color:var(--dim)}
.about{max-width:86ch;margin:2px 0 12px}
section{margin-top:40px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:20px 0 0}
.tiles>div{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.tiles dt{color:var(--dim);font-size:13px}
.tiles dd{margin:0}
.tiles .value{font-size:21px;font-weight:600;line-height:1.35}
.tiles .note{color:var(--dim);font-size:12px;line-height:1.4}
.problems{list-style:none;margin:0;padding:0;display:grid;gap:8px}
.problems li{border:1px solid var(--line);border-left:4px solid var(--bad);border-radius:6px;padding:8px 14px;
 background:var(--panel)}
.reason{margin-top:2px;overflow-wrap:anywhere}
.pill{display:inline-block;border-radius:9px;padding:0 9px;font-size:12px;line-height:18px}
.built,.replaced{color:var(--good);background:var(--good-bg)}
.unchanged{color:var(--same);background:var(--same-bg)}
.refused,.failed{color:var(--bad);background:var(--bad-bg)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px}
.scroll>table{width:100%}
.scroll>.times{width:auto;min-width:420px}
th,td{text-align:left;padding:3px 16px 3px 0;vertical-align:middle;white-space:nowrap;font-weight:400}
thead th{color:var(--dim);border-bottom:1px solid var(--line);font-size:12px;vertical-align:bottom}
.scroll tbody tr:hover{background:var(--hover)}
.name{font-weight:500}
.space th{padding-top:14px;color:var(--accent);font-weight:600}
.scroll tbody tr.space:hover,.scroll tbody tr.axis:hover{background:none}
.number{text-align:right}
.low{color:var(--bad);font-weight:600}
.rest{color:var(--dim);font-style:italic}
td.bar{width:22%;min-width:110px}
.genes td.bar{width:24%}
.track{display:flex;height:11px;border-radius:2px;overflow:hidden}
.track.whole{background:var(--track)}
.track i{display:block;height:100%;min-width:1px}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;list-style:none;margin:0 0 12px;padding:0;font-size:13px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.panels{columns:2 460px;column-gap:16px}
.panel{margin:0 0 16px;break-inside:avoid;border:1px solid var(--line);border-radius:8px;padding:10px 14px 8px;
 background:var(--panel);min-width:0}
.panel figcaption{margin-bottom:4px}
.bars{width:100%;table-layout:fixed}
.bars th{width:34%;overflow:hidden;text-overflow:ellipsis;font-weight:400}
.bars td.bar{width:auto;min-width:0}
.bars .number{width:68px;padding-right:0}
.bars .number+.number{width:52px}
.bars th,.bars td{padding-top:1px;padding-bottom:1px}
details{margin-top:16px}
summary{cursor:pointer;color:var(--accent);margin-bottom:12px}
.depths td{padding-bottom:6px}
.depths tr>:first-child{width:99%}
svg{display:block}
svg text{font-size:11px;fill:var(--text);paint-order:stroke;stroke:var(--ground);stroke-width:2px}
.axis text{fill:var(--dim)}
svg .base{stroke:var(--line);fill:none}
svg .median{stroke:var(--text);stroke-width:1.2;fill:none}
.versions{display:flex;flex-wrap:wrap;gap:4px 26px;margin:14px 0 0;font-size:13px}
.versions div{display:flex;gap:6px}
.versions dt{color:var(--dim)}
.versions dd{margin:0}
a,summary:focus-visible,.scroll:focus-visible{outline-offset:2px}
@media print{main{max-width:none;padding:0}section{break-inside:avoid}}
"""
)
