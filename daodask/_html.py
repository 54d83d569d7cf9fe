"""Cards that notebooks show of daodask's objects: one style, light or dark as the page is, of plain markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from daodask._format import human_count, human_share, of_total, one_line, public_url
from daodask._markup import Html, el

__all__ = ["CSS", "Column", "bar", "card", "pill", "section", "selected_section", "table"]

_MOST_DATASETS: Final = 40


def card(kind: str, title: str, plain: str, *body: Html, url: str = "", facts: Mapping[str, str] | None = None) -> Html:
    """A card of its own style, without scripts and ids, so that it can be on a page any number of times.

    Parameters
    ----------
    kind
        What it is of, such as ``"daodask.BuildPlan"``.
    title
        Its shape, or what comes first.
    plain
        The text that is seen where a page strips styles.
    *body
        What comes after the facts.
    url
        Of the store; secrets are left out.
    facts
        Names and what is said of them; those of which nothing is said are left out.
    """
    head = el(
        "div", el("span", kind, class_="ds-kind"), Html(" "), el("b", one_line(title)), _url(url), class_="ds-head"
    )
    shown = el("div", head, _facts(facts or {}), *body, class_="ds-card", style="display:none")
    return el("div", el("style", Html(CSS)), el("pre", plain, class_="ds-plain"), shown, class_="daodask-repr")


def _url(url: str) -> Html:
    return el("div", one_line(public_url(url)), class_="ds-url") if url else Html("")


def _facts(facts: Mapping[str, str]) -> Html:
    said = [(el("dt", name), el("dd", one_line(text))) for name, text in facts.items() if text]
    listed = el("dl", *(piece for pair in said for piece in pair), class_="ds-facts")
    return el("div", listed, class_="ds-top") if said else Html("")


def section(title: str, count: str, *body: Html, is_open: bool = True) -> Html:
    """A part of a card that can be folded away."""
    head = el("summary", title, Html(" "), el("span", count, class_="ds-count"))
    attributes = {"class_": "ds-section"} | ({"open": "open"} if is_open else {})
    return el("details", head, el("div", *body, class_="ds-body"), **attributes)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its head, and the class of its cells (``ds-name``, ``ds-number``, ``ds-tail``)."""

    head: str
    css: str = ""


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], most: int, more: str) -> Html:
    """The first rows of a table.

    Parameters
    ----------
    columns
        Their heads and classes.
    rows
        Texts, or what is HTML already.
    most
        Rows that are shown.
    more
        Where those are that are not.
    """
    listed = list(rows)
    head = el("tr", *(el("th", c.head, class_=c.css if c.css == "ds-number" else "") for c in columns))
    body = (el("tr", *map(_cell, columns, row)) for row in listed[:most])
    left_out = len(listed) - most
    note = el("div", f"… {human_count(left_out)} more: see {more}", class_="ds-note") if left_out > 0 else Html("")
    return Html(el("table", el("thead", head), el("tbody", *body), class_="ds-table") + note)


def _cell(column: Column, text: str) -> Html:
    return el("td", text if isinstance(text, Html) else one_line(text), class_=column.css)


def selected_section(cells: Mapping[str, tuple[int, int]], n_datasets: int) -> Html:
    """Which datasets have selected cells.

    Parameters
    ----------
    cells
        Selected cells of each such dataset, and all that it has.
    n_datasets
        All datasets, with such cells and without.
    """
    columns = (Column("dataset", "ds-name"), Column("cells", "ds-number"), Column(""), Column("selected", "ds-tail"))
    rows = ((name, of_total(n, all_), bar(n, all_), human_share(n, all_)) for name, (n, all_) in cells.items())
    body = table(columns, rows, _MOST_DATASETS, "store.datasets") if cells else Html("")
    return section("Datasets", of_total(len(cells), n_datasets), body)


def bar(n: float, total: float) -> Html:
    """A small bar of a share."""
    width = f"{100 * min(1.0, n / total) if total else 0:.4g}%"
    return el("div", el("i", style=f"width:{width}"), class_="ds-bar")


def pill(text: str, css: str = "") -> Html:
    """A word that says how something is: ``ds-good``, ``ds-bad`` or neither."""
    return el("span", text, class_=f"ds-pill {css}".strip())


# -- style ---------------------------------------------------------------------------------------------------------

_LIGHT: Final = (
    "--ds-ground:#fff;--ds-text:#1d2530;--ds-dim:#687385;--ds-line:#e4e8ee;--ds-hover:#f4f6f9;--ds-link:#176b82;"
    "--ds-v0:#176b82;--ds-v1:#3a93a6;--ds-v2:#6fb6bf;--ds-v3:#a3d2d4;--ds-v4:#cbe6e5;--ds-others:#e2e6ec;"
    "--ds-sheet:#e3f1f2;--ds-band:#cbe4e6;--ds-block:#9cc7cc;--ds-edge:#176b82;--ds-good:#1a7f4b;--ds-bad:#a3341f;color-scheme:light"
)
_DARK: Final = (
    "--ds-ground:#161b22;--ds-text:#e3e8ef;--ds-dim:#929dad;--ds-line:#2b333e;--ds-hover:#1e252e;--ds-link:#6cc7d6;"
    "--ds-v0:#6cc7d6;--ds-v1:#479fb0;--ds-v2:#357b8a;--ds-v3:#2a5d69;--ds-v4:#23454f;--ds-others:#323b47;"
    "--ds-sheet:#1b333b;--ds-band:#24464f;--ds-block:#3a6b77;--ds-edge:#6cc7d6;--ds-good:#7bd6a0;--ds-bad:#f2a08f;color-scheme:dark"
)


def _on_pages(*marks: str) -> str:
    return ",".join(f"{mark} .daodask-repr" for mark in marks)


#: The system's preference comes first and what a page says of itself after it, so that a light notebook on a dark
#: desktop stays light. The card has a ground of its own: it can be read on a page that knows no dark mode.
CSS: Final = (
    f".daodask-repr{{{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{.daodask-repr{{{_DARK}}}}}"
    + _on_pages('[data-jp-theme-light="true"]', "html[theme=light]", "[data-theme=light]", "body.vscode-light")
    + f"{{{_LIGHT}}}"
    + _on_pages('[data-jp-theme-light="false"]', "html[theme=dark]", "[data-theme=dark]", "body.vscode-dark")
    + f"{{{_DARK}}}"
    + """
.daodask-repr .ds-plain{display:none}
.daodask-repr .ds-card{display:block!important;box-sizing:border-box;max-width:1000px;padding:12px 16px 10px;
 background:var(--ds-ground);color:var(--ds-text);border:1px solid var(--ds-line);border-radius:8px;
 font:13px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums;text-align:left}
.daodask-repr .ds-head{font-size:15px}
.daodask-repr .ds-head b{font-weight:600}
.daodask-repr .ds-kind{color:var(--ds-link);font-weight:600;margin-right:8px}
.daodask-repr .ds-url{font:12px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:var(--ds-dim);
 overflow-wrap:anywhere}
.daodask-repr .ds-top{display:flex;flex-wrap:wrap;gap:12px 28px;padding:10px 0;
 align-items:flex-start;justify-content:space-between}
.daodask-repr .ds-facts{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:0;flex:1 1 320px}
.daodask-repr .ds-facts dt{margin:0;padding:0;float:none;width:auto;font-weight:400;color:var(--ds-dim)}
.daodask-repr .ds-facts dd{margin:0;padding:0;overflow-wrap:anywhere}
.daodask-repr .ds-picture{flex:none;overflow:visible}
.daodask-repr .ds-picture text{fill:var(--ds-dim);font-size:11px;text-anchor:middle}
.daodask-repr .ds-sheet{fill:var(--ds-sheet)}
.daodask-repr .ds-band{fill:var(--ds-band)}
.daodask-repr .ds-block{stroke:var(--ds-block);stroke-width:.6}
.daodask-repr .ds-edge{stroke:var(--ds-edge);stroke-width:.8}
.daodask-repr .ds-frame{fill:none;stroke:var(--ds-edge);stroke-width:1.4}
.daodask-repr .ds-section{border-top:1px solid var(--ds-line);padding:5px 0;margin:0}
.daodask-repr summary{cursor:pointer;list-style:none}
.daodask-repr summary::-webkit-details-marker{display:none}
.daodask-repr .ds-section>summary{font-weight:600}
.daodask-repr .ds-values>summary{font-weight:400}
.daodask-repr .ds-section>summary::before,
.daodask-repr .ds-values>summary::before{content:"▸";display:inline-block;width:14px;font-weight:400;
 color:var(--ds-dim)}
.daodask-repr .ds-section[open]>summary::before,
.daodask-repr .ds-values[open]>summary::before{content:"▾"}
.daodask-repr .ds-count{font-weight:400;color:var(--ds-dim);margin-left:4px}
.daodask-repr .ds-body{max-height:460px;overflow:auto;margin:4px 0}
.daodask-repr .ds-note{color:var(--ds-dim);padding:2px 0 4px 24px}
.daodask-repr .ds-note code{background:none;color:var(--ds-link);padding:0;font-size:12px}
.daodask-repr .ds-body .ds-table{border-collapse:collapse;table-layout:auto;width:100%;margin:0;border:0;
 color:inherit;font-size:13px}
.daodask-repr .ds-body .ds-table tr:nth-child(n){background:none}
.daodask-repr .ds-body .ds-table tbody tr:nth-child(n):hover{background:var(--ds-hover)}
.daodask-repr .ds-body .ds-table th,
.daodask-repr .ds-body .ds-table td{padding:1px 14px 1px 0;border:0;text-align:left;vertical-align:middle;
 white-space:nowrap;line-height:inherit}
.daodask-repr .ds-body .ds-table th{font-weight:400;color:var(--ds-dim)}
.daodask-repr .ds-body .ds-table tr>:first-child{padding-left:24px}
.daodask-repr .ds-body .ds-table tr>.ds-number{text-align:right}
.daodask-repr .ds-body .ds-table tr>.ds-about{width:100%;min-width:120px;max-width:0;overflow:hidden;
 text-overflow:ellipsis;color:var(--ds-dim)}
.daodask-repr .ds-name{font-weight:500;max-width:260px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.daodask-repr .ds-number{text-align:right;white-space:nowrap}
.daodask-repr .ds-dtype,.daodask-repr .ds-summary{color:var(--ds-dim)}
.daodask-repr .ds-dim,.daodask-repr .ds-caption{color:var(--ds-dim)}
.daodask-repr .ds-column{display:grid;gap:0 10px;align-items:center;padding:1px 0;border-radius:4px;
 grid-template-columns:14px minmax(90px,160px) 64px minmax(120px,200px) 130px 1fr}
.daodask-repr div.ds-column::before{content:""}
.daodask-repr .ds-column:hover{background:var(--ds-hover)}
.daodask-repr .ds-column>span{min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.daodask-repr .ds-strip,.daodask-repr .ds-bar{display:flex;gap:1px;height:9px;border-radius:2px;overflow:hidden}
.daodask-repr .ds-strip i,.daodask-repr .ds-bar i{display:block;height:100%;box-sizing:border-box;min-width:1px}
.daodask-repr .ds-bar{width:110px}
.daodask-repr .ds-bar i{background:var(--ds-v1);border-radius:2px}
.daodask-repr .ds-v0{background:var(--ds-v0)}
.daodask-repr .ds-v1{background:var(--ds-v1)}
.daodask-repr .ds-v2{background:var(--ds-v2)}
.daodask-repr .ds-v3{background:var(--ds-v3)}
.daodask-repr .ds-v4{background:var(--ds-v4)}
.daodask-repr .ds-others{background:var(--ds-others)}
.daodask-repr .ds-missing{border:1px solid var(--ds-dim)}
.daodask-repr .ds-uncounted{background:repeating-linear-gradient(135deg,var(--ds-dim) 0 1px,transparent 1px 4px)}
.daodask-repr .ds-bars{display:grid;gap:0 10px;align-items:center;padding:1px 0 6px 24px;
 grid-template-columns:minmax(90px,234px) 220px max-content max-content}
.daodask-repr .ds-bars .ds-bar{width:220px}
.daodask-repr .ds-label{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.daodask-repr .ds-other{color:var(--ds-dim);font-style:italic}
.daodask-repr .ds-other+.ds-bar i{background:var(--ds-others)}
.daodask-repr .ds-pill{display:inline-block;border:1px solid currentColor;border-radius:9px;padding:0 8px;
 font-size:11px;line-height:16px;color:var(--ds-dim)}
.daodask-repr .ds-good{color:var(--ds-good)}
.daodask-repr .ds-bad{color:var(--ds-bad)}
.daodask-repr .ds-tail{color:var(--ds-dim);white-space:normal!important;width:100%;overflow-wrap:anywhere}
"""
)
