"""How a store looks: as text in a terminal and as HTML in a notebook.

All of it comes from the snapshot and the selection. Nothing is read and nothing is computed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from textwrap import TextWrapper
from typing import TYPE_CHECKING

from daodask._format import (
    human_bytes,
    human_count,
    human_date,
    human_number,
    human_share,
    list_some,
    of_total,
    one_line,
    plural,
    public_url,
    shorten,
)
from daodask._html import CSS
from daodask.caching import cache
from daodask.format.manifest import DatasetInfo, ObsColumn, ObsmInfo
from daodask.format.spec import OBS_NAMES
from daodask.selection import BlockRows, Part

if TYPE_CHECKING:
    from daodask.store import Store

__all__ = ["column_summary_lines", "store_html", "store_text"]

_TEXT_WIDTH = 100
_TEXT_DATASETS = 8
_TEXT_COLUMNS = 16
#: Keeps words on one line until lines are made. No name holds one, as `one_line` spells it out.
_NO_BREAK = "\N{NO-BREAK SPACE}"
_NAME_WIDTH = 32
_HTML_DATASETS = 40
_HTML_COLUMNS = 100
#: Datasets up to which their table is open at first.
_OPEN_DATASETS = 6
#: Values that a column's strip shows in colours of their own, and that its list of bars shows.
_STRIP_VALUES = 5
_BAR_VALUES = 10


# -- what is said --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _View:
    """What text and HTML have in common, gathered once.

    Parameters
    ----------
    store
        What is shown.
    listed
        Datasets to name: those with a selected cell, and those that have no cell at all.
    blocks
        Blocks of the selection.
    """

    store: Store
    listed: tuple[tuple[Part, DatasetInfo], ...]
    blocks: tuple[BlockRows, ...]

    @classmethod
    def of(cls, store: Store) -> _View:
        pairs = zip(store.selection.parts, store.dataset_infos, strict=True)
        listed = tuple((part, info) for part, info in pairs if part.n_obs or not part.n_stored)
        return cls(store, listed, store.selection.blocks())

    @property
    def selected(self) -> tuple[DatasetInfo, ...]:
        """Datasets with a selected cell."""
        return tuple(info for part, info in self.listed if part.n_obs)

    @property
    def whole(self) -> tuple[DatasetInfo, ...]:
        """Datasets of which every cell is selected: of these alone the snapshot has the counts."""
        return tuple(info for part, info in self.listed if part.n_obs and part.rows is None)

    @property
    def n_stored(self) -> int:
        return sum(part.n_stored for part in self.store.selection.parts)

    @property
    def shape(self) -> tuple[str, str]:
        store = self.store
        return plural(store.n_obs, "cell", self.n_stored), plural(store.n_vars, "gene", store.feature_space.n_vars)

    @property
    def snapshot(self) -> list[str]:
        snapshot = self.store.snapshot
        return _said(str(snapshot.number), one_line(human_date(snapshot.created)), one_line(snapshot.written_by))

    @property
    def features(self) -> list[str]:
        space = self.store.feature_space
        return _said(one_line(space.name), one_line(space.organism), plural(space.n_vars, "gene"))

    @property
    def X(self) -> list[str]:
        matrices = [i.matrix["X"] for i in self.selected if "X" in i.matrix]
        kinds = Counter(m.kind for m in matrices)
        listed = kinds if len(kinds) == 1 else [f"{kind} in {plural(n, 'dataset')}" for kind, n in kinds.items()]
        n_obs, nnz = sum(i.n_obs for i in self.selected), sum(m.nnz for m in matrices)
        # How many of them some genes have is not known without reading.
        known = n_obs and self.store.selection.genes is None
        density = f"{human_count(round(nnz / n_obs))} non-zeros a cell" if known else ""
        return _said(one_line(", ".join(listed)), f"handed out as {self.store.served_dtype('X')}", density)

    @property
    def layers(self) -> list[str]:
        names = (m.name.removeprefix("layers/") for i in self.selected for m in i.matrices if m.name != "X")
        return self._pieces(Counter(names))

    @property
    def by_gene(self) -> list[str]:
        names = (m.name.removeprefix("layers/") for i in self.selected for m in i.matrices if m.by_gene)
        return self._pieces(Counter(names))

    @property
    def obsm(self) -> list[str]:
        return self._pieces(Counter(_wide(m) for i in self.selected for m in i.obsm))

    @property
    def stored(self) -> str:
        size = human_bytes(sum(info.nbytes for _, info in self.listed))
        whose = "datasets of " if len(self.whole) < len(self.selected) else ""
        largest = max((b.n_obs for b in self.blocks), default=0)
        up_to = f" of up to {plural(largest, 'cell')}" if largest else ""
        return f"{whose}{size}, {plural(len(self.blocks), 'block')}{up_to}"

    @property
    def in_memory(self) -> list[str]:
        """What is persisted, and what this process keeps of what it has read."""
        held, kept = self.store.held, cache()
        persisted = "" if held is None else f"{', '.join([*held.arrays, 'obs'])} persisted"
        return _said(persisted, f"cache of {kept.summary()}" if kept.most_bytes else "")

    @property
    def n_datasets(self) -> str:
        return of_total(len(self.listed), len(self.store.selection.parts))

    def _pieces(self, found: Counter[str]) -> list[str]:
        n = len(self.selected)
        where = {name: "" if k == n else f" (in {of_total(k, n)} datasets)" for name, k in sorted(found.items())}
        return [f"{one_line(name)}{in_some}" for name, in_some in where.items()]


def _said(*facts: str) -> list[str]:
    return [fact for fact in facts if fact]


def _wide(matrix: ObsmInfo) -> str:
    return f"{matrix.name} ({matrix.width})"


def _column_summary(view: _View, column: ObsColumn) -> str:
    """Number of categories or range of an obs column, and the share of cells without a value."""
    values = plural(len(column.categories), "category") if column.dtype == "category" else _range(view, column.name)
    return ", ".join(_said(values, _missing(view, column)))


def _range(view: _View, name: str) -> str:
    found = [(i, i.column[name]) for i in view.selected if name in i.column]
    valued = [summary for info, summary in found if summary.n_missing < info.n_obs]
    lows = [s.low for s in valued if s.low is not None]
    highs = [s.high for s in valued if s.high is not None]
    # One end that isn't known (it is infinite) leaves nothing to say of all.
    if not valued or len(lows) < len(valued) or len(highs) < len(valued):
        return ""
    within = "" if len(view.whole) == len(view.selected) else "within "
    return f"{within}{human_number(min(lows))} to {human_number(max(highs))}"


def _missing(view: _View, column: ObsColumn) -> str:
    if not column.nullable or not view.selected:
        return ""
    if len(view.whole) < len(view.selected):
        return "nullable"
    n = _n_missing(view.whole, column.name)
    return f"{human_share(n, view.store.n_obs)} missing" if n else ""


def _n_missing(datasets: Iterable[DatasetInfo], name: str) -> int:
    return sum(i.column[name].n_missing if name in i.column else i.n_obs for i in datasets)


# -- text ----------------------------------------------------------------------------------------------------------


def store_text(store: Store) -> str:
    """Describe a store in a few lines; only the snapshot is looked at.

    Parameters
    ----------
    store
        Any store; of a subset it is said how much of the whole it shows.
    """
    return _view_text(_View.of(store))


def _view_text(view: _View) -> str:
    store = view.store
    listed = list_some(_dataset_texts(view), _TEXT_DATASETS)
    columns = _column_lines(view, _TEXT_COLUMNS)
    more = len(store.obs_schema) - _TEXT_COLUMNS
    pieces = {"layers": view.layers, "by gene": view.by_gene, "obsm": view.obsm}
    return "\n".join(
        [
            f"<daodask.Store> {' x '.join(view.shape)}",
            _line("url", one_line(public_url(store.location.url))),
            _line("snapshot", ", ".join(view.snapshot)),
            _line("features", ", ".join(view.features)),
            _line("stored", view.stored),
            _line("datasets", f"{view.n_datasets}: {listed}" if listed else view.n_datasets),
            _line("X", ", ".join(view.X)),
            *(_line(name, ", ".join(said)) for name, said in pieces.items() if said),
            _line("obs", f"{plural(len(store.obs_schema), 'column')}, and dataset, {OBS_NAMES}"),
            *(f"    {line}" for line in columns),
            *([f"    … {human_count(more)} more"] if more > 0 else []),
            _line("lazy", "X, layers, obsm: dask arrays; obs: dask dataframe; var: read when first used"),
            *([_line("in memory", ", ".join(view.in_memory))] if view.in_memory else []),
        ]
    )


def _dataset_texts(view: _View) -> Iterator[str]:
    for part, _ in view.listed:
        cells = of_total(part.n_obs, part.n_stored).replace(" ", _NO_BREAK)
        yield f"{shorten(part.dataset, _NAME_WIDTH)}{_NO_BREAK}({cells})"


def _line(name: str, text: str) -> str:
    wrap = TextWrapper(_TEXT_WIDTH, f"  {name:<10}", " " * 12, break_long_words=False, break_on_hyphens=False)
    return wrap.fill(text).replace(_NO_BREAK, " ")


def column_summary_lines(store: Store, most: int | None = None) -> list[str]:
    """One aligned line per obs column: name, dtype, number of categories or range, share of cells without a value.

    Parameters
    ----------
    store
        Only its snapshot is looked at. Ranges of datasets selected in part are those of the whole dataset.
    most
        Leave out all columns after so many; by default none.
    """
    return _column_lines(_View.of(store), most)


def _column_lines(view: _View, most: int | None) -> list[str]:
    columns = view.store.obs_schema[:most]
    names = [shorten(c.name, _NAME_WIDTH) for c in columns]
    dtypes = [one_line(c.dtype) for c in columns]
    name_width, dtype_width = (max(map(len, texts), default=0) for texts in (names, dtypes))
    return [
        f"{name:<{name_width}}  {dtype:<{dtype_width}}  {_column_summary(view, column)}".rstrip()
        for name, dtype, column in zip(names, dtypes, columns, strict=True)
    ]


# -- HTML ----------------------------------------------------------------------------------------------------------


def store_html(store: Store) -> str:
    """Describe a store as HTML for notebooks, light or dark as the page is; only the snapshot is looked at.

    It has no scripts and no ids, so that it can be on a page any number of times. Where a page strips styles, the text
    of :func:`store_text` is seen instead.

    Parameters
    ----------
    store
        Any store. Bars count the datasets that are selected as a whole; of others the snapshot has no counts.

    Returns
    -------
    str
        One ``<div>``.
    """
    view = _View.of(store)
    url = _text(public_url(store.location.url))
    return (
        f'<div class="daodask-repr"><style>{CSS}</style>'
        f'<pre class="ds-plain">{escape(_view_text(view))}</pre>'
        f'<div class="ds-card" style="display:none">'
        f'<div class="ds-head"><span class="ds-kind">daodask.Store</span> <b>{" × ".join(view.shape)}</b>'
        f'<div class="ds-url">{url}</div></div>'
        f'<div class="ds-top">{_facts_html(view)}{_picture_html(view)}</div>'
        f"{_datasets_html(view)}{_columns_html(view)}"
        f"</div></div>"
    )


def _text(value: object) -> str:
    return escape(one_line(value))


def _facts_html(view: _View) -> str:
    message = f"“{shorten(view.store.snapshot.message, 80)}”" if view.store.snapshot.message else ""
    facts = {
        "Snapshot": [*view.snapshot, *_said(message)],
        "Feature space": view.features,
        "X": view.X,
        "Layers": view.layers,
        "By gene": view.by_gene,
        "obsm": view.obsm,
        "Stored": [view.stored],
        "Lazy": ["X, layers, obsm: dask arrays", "obs: dask dataframe"],
        "In memory": view.in_memory,
    }
    rows = (f"<dt>{name}</dt><dd>{_text(' · '.join(said))}</dd>" for name, said in facts.items() if said)
    return f'<dl class="ds-facts">{"".join(rows)}</dl>'


def _section_html(title: str, count: str, body: str, *, is_open: bool) -> str:
    return (
        f'<details class="ds-section"{" open" if is_open else ""}>'
        f'<summary>{title} <span class="ds-count">{count}</span></summary><div class="ds-body">{body}</div></details>'
    )


def _datasets_html(view: _View) -> str:
    shown = view.listed[:_HTML_DATASETS]
    largest = max((part.n_obs for part, _ in shown), default=0)
    head = (
        '<th>dataset</th><th class="ds-number">cells</th><th></th><th>X</th><th class="ds-number">non-zeros a cell</th>'
        '<th class="ds-number">stored</th><th>about</th>'
    )
    rows = "".join(_dataset_html(part, info, largest) for part, info in shown)
    more = len(view.listed) - len(shown)
    note = f'<div class="ds-note">… {human_count(more)} more: see <code>store.datasets</code></div>' if more else ""
    table = f'<table class="ds-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>' if shown else ""
    return _section_html("Datasets", view.n_datasets, table + note, is_open=0 < len(view.listed) <= _OPEN_DATASETS)


def _dataset_html(part: Part, info: DatasetInfo, largest: int) -> str:
    x = info.matrix.get("X")
    # A study may say anything of itself, lists and numbers too: only what is a line of text is shown.
    facts = [info.uns.get(name) for name in ("title", "organism", "doi")]
    about = _text(" · ".join(shorten(fact, 120) for fact in facts if isinstance(fact, str) and fact))
    density = human_count(round(x.nnz / info.n_obs)) if x and info.n_obs else ""
    cells = [
        f'<td class="ds-name">{_text(part.dataset)}</td>',
        f'<td class="ds-number">{of_total(part.n_obs, part.n_stored)}</td>',
        f"<td>{_bar_html(part.n_obs, largest)}</td>",
        f"<td>{_text(f'{x.kind}, {x.dtype}') if x else ''}</td>",
        f'<td class="ds-number">{density}</td>',
        f'<td class="ds-number">{human_bytes(info.nbytes)}</td>',
        f'<td class="ds-about" title="{about}">{about}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _bar_html(n: int, largest: int) -> str:
    return f'<div class="ds-bar"><i style="width:{_percent(n, largest)}"></i></div>'


def _percent(n: int, total: int) -> str:
    return f"{100 * n / total if total else 0:.4g}%"


def _columns_html(view: _View) -> str:
    columns = view.store.obs_schema[:_HTML_COLUMNS]
    per_dataset = Counter({part.dataset: part.n_obs for part, _ in view.listed if part.n_obs})
    rows = [_column_html("dataset", "category", plural(len(view.listed), "dataset"), per_dataset, 0, 0)]
    counted = sum(info.n_obs for info in view.whole)
    for column in columns:
        summary = _column_summary(view, column)
        if column.dtype == "category" and counted:
            counts, missing = _value_counts(view.whole, column.name), _n_missing(view.whole, column.name)
            rows.append(_column_html(column.name, column.dtype, summary, counts, missing, view.store.n_obs - counted))
        else:
            rows.append(_column_html(column.name, column.dtype, summary, Counter(), 0, 0))
    rows.append(_column_html(OBS_NAMES, "string", "names in the studies", Counter(), 0, 0))
    more = len(view.store.obs_schema) - len(columns)
    left_out = f'<div class="ds-note">… {plural(more, "more column")}</div>' if more > 0 else ""
    body = _uncounted_note(view) + "".join(rows) + left_out
    return _section_html("obs", plural(len(view.store.obs_schema) + 2, "column"), body, is_open=True)


def _uncounted_note(view: _View) -> str:
    in_part = len(view.selected) - len(view.whole)
    if not in_part:
        return ""
    where = "Every dataset is" if not view.whole else plural(in_part, "dataset") + (" is" if in_part == 1 else " are")
    effect = "columns are shown without bars" if not view.whole else "hatched"
    return (
        f'<div class="ds-note">{where} selected in part, of which the snapshot has no counts: {effect}. '
        f"<code>store.value_counts(column)</code> reads them.</div>"
    )


def _value_counts(datasets: Iterable[DatasetInfo], name: str) -> Counter[object]:
    """Cells per label, of datasets that are selected whole."""
    totals: Counter[object] = Counter()
    for info in datasets:
        summary = info.column.get(name)
        if summary is not None:
            for label, count in zip(summary.categories, summary.counts, strict=False):
                totals[label] += count
    return totals


def _column_html(
    name: str, dtype: str, summary: str, counts: Counter[str] | Counter[object], missing: int, uncounted: int
) -> str:
    head = (
        f'<span class="ds-name" title="{_text(name)}">{_text(name)}</span><span class="ds-dtype">{_text(dtype)}</span>'
        f'<span class="ds-summary" title="{_text(summary)}">{_text(summary)}</span>'
    )
    frequent = [(one_line(value), n) for value, n in counts.most_common(_BAR_VALUES) if n]
    if not frequent:
        return f'<div class="ds-column">{head}</div>'
    n_valued = sum(counts.values())
    total = n_valued + missing + uncounted
    caption = ", ".join(f"{shorten(value, 24)} {human_share(n, total)}" for value, n in frequent[:3])
    strip = _strip_html(frequent[:_STRIP_VALUES], n_valued, missing, uncounted)
    others = n_valued - sum(n for _, n in frequent)
    rest = [(label, n) for label, n in (("others", others), ("missing", missing), ("not counted", uncounted)) if n]
    largest = max(n for _, n in [*frequent, *rest])
    bars = "".join(_value_html(label, n, largest, total, "") for label, n in frequent)
    bars += "".join(_value_html(label, n, largest, total, " ds-other") for label, n in rest)
    return (
        f'<details class="ds-values"><summary class="ds-column">{head}{strip}'
        f'<span class="ds-caption">{_text(caption)}</span></summary><div class="ds-bars">{bars}</div></details>'
    )


def _strip_html(top: Sequence[tuple[str, int]], n_valued: int, missing: int, uncounted: int) -> str:
    """One bar for all cells: the most frequent values, the others, cells without value, cells not counted."""
    total = n_valued + missing + uncounted
    pieces = [(value, n, f"ds-v{rank}") for rank, (value, n) in enumerate(top)]
    pieces += [("others", n_valued - sum(n for _, n in top), "ds-others"), ("missing", missing, "ds-missing")]
    pieces += [("not counted", uncounted, "ds-uncounted")]
    segments = (
        f'<i class="{css}" style="width:{_percent(n, total)}" title="{escape(label)}: {human_count(n)}"></i>'
        for label, n, css in pieces
        if n
    )
    return f'<span class="ds-strip">{"".join(segments)}</span>'


def _value_html(label: str, n: int, largest: int, total: int, css: str) -> str:
    return (
        f'<span class="ds-label{css}" title="{escape(label)}">{escape(label)}</span>{_bar_html(n, largest)}'
        f'<span class="ds-number">{human_count(n)}</span><span class="ds-number ds-dim">{human_share(n, total)}</span>'
    )


# -- the picture of blocks -----------------------------------------------------------------------------------------

_LONG_SIDE = 150.0
_SHORT_SIDE = 54.0
#: Room for the number of genes under a narrow picture.
_LEAST_CAPTION = 90.0


def _picture_html(view: _View) -> str:
    """Rows of blocks by genes: a band per dataset, a line per block, as far as they can be told apart."""
    width, height = _picture_size(*view.store.shape)
    left = max(0, _LEAST_CAPTION - width) / 2 + 1
    datasets = _heights((part.n_obs for part, _ in view.listed), height, 5)
    blocks = _heights((b.n_obs for b in view.blocks), height, 3)
    every_other = zip(datasets[::2], datasets[1::2], strict=False)
    shapes = [
        _rect("ds-sheet", left, 0, width, height),
        *(_rect("ds-band", left, top, width, bottom - top) for top, bottom in every_other),
        *(f'<path class="ds-block" d="M{left:.0f} {y + 1:.1f}h{width:.0f}"/>' for y in blocks[1:-1]),
        *(f'<path class="ds-edge" d="M{left:.0f} {y + 1:.1f}h{width:.0f}"/>' for y in datasets[1:-1]),
        _rect("ds-frame", left, 0, width, height),
    ]
    cells, genes = plural(view.store.n_obs, "cell"), plural(view.store.n_vars, "gene")
    side, middle = left + width + 14, height / 2 + 1
    return (
        f'<svg class="ds-picture" width="{side + max(left - 14, 6):.0f}" height="{height + 22:.0f}" role="img" '
        f'aria-label="{plural(len(view.blocks), "block")} of {cells} by {genes}">{"".join(shapes)}'
        f'<text x="{side:.0f}" y="{middle:.0f}" transform="rotate(-90 {side:.0f} {middle:.0f})">{cells}</text>'
        f'<text x="{left + width / 2:.0f}" y="{height + 16:.0f}">{genes}</text></svg>'
    )


def _rect(css: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{css}" x="{x:.0f}" y="{y + 1:.1f}" width="{width:.0f}" height="{height:.1f}"/>'


def _picture_size(n_obs: int, n_vars: int) -> tuple[float, float]:
    """Width and height: the longer side is fixed, the other shrinks with the logarithm of the ratio."""
    n_obs, n_vars = max(n_obs, 1), max(n_vars, 1)
    short = max(_SHORT_SIDE, _LONG_SIDE / (1 + math.log(max(n_obs, n_vars) / min(n_obs, n_vars))))
    return (short, _LONG_SIDE) if n_obs > n_vars else (_LONG_SIDE, short)


def _heights(sizes: Iterable[int], height: float, least: float) -> list[float]:
    """Where runs of rows begin and end in the picture, without those nearer than ``least`` to the one before."""
    ends = list(accumulate(sizes, initial=0))
    places = [0.0]
    for end in ends[1:]:
        place = height * end / ends[-1] if ends[-1] else 0.0
        if place - places[-1] >= least:
            places.append(place)
    return places
