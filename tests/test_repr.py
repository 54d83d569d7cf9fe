"""How a store looks, of snapshots made by hand: no test here has a store on disk."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daodask
from daodask._format import (
    human_bytes,
    human_date,
    human_number,
    human_share,
    list_some,
    one_line,
    plural,
    public_url,
    shorten,
)
from daodask._html import Column, table
from daodask._repr import column_summary_lines, store_html, store_text
from daodask.batches.plan import LoaderPlan, Mixing
from daodask.batches.schedule import Grouped
from daodask.build.plan import BuildPlan
from daodask.build.report import BuildReport, StudyReport
from daodask.errors import SpecError
from daodask.format.manifest import (
    ColumnSummary,
    DatasetInfo,
    FeatureSpaceInfo,
    MatrixInfo,
    ObsmInfo,
    Snapshot,
    merge_schema,
)
from daodask.saved_selection import SavedSelection
from daodask.selection import Part, Selection
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.testing import coordinate_adata

HOSTILE = '<script>alert("1")</script>'


def labels(name: str, counts: dict[Any, int], n_missing: int = 0) -> ColumnSummary:
    return ColumnSummary(name, "category", n_missing, tuple(counts), tuple(counts.values()))


def dataset(name: str, n_obs: int, columns: Sequence[ColumnSummary] = (), **given: Any) -> DatasetInfo:
    bounds = (*range(0, n_obs, 1000), n_obs) if n_obs else (0,)
    facts: dict[str, Any] = {
        "matrices": (MatrixInfo("X", "counts", "uint16", 50 * n_obs),),
        "nbytes": 2048 * n_obs,
        **given,
    }
    return DatasetInfo(name, f"datasets/{name}", "h", n_obs, bounds, columns=tuple(columns), **facts)


def store_of(
    *datasets: DatasetInfo, url: str = "gs://bucket/atlas", message: str = "", organism: str = "Homo sapiens"
) -> Store:
    space = FeatureSpaceInfo("human", "h", 20_000, organism, merge_schema(datasets))
    snapshot = Snapshot(3, "2026-03-01T09:30:12+00:00", "daodask 0.1.0", message, (space,), datasets)
    parts, offset = [], 0
    for info in datasets:
        parts.append(Part(info.id, info.blocks, offset))
        offset += info.n_obs
    return Store(StoreLocation(url), snapshot, space, Selection(tuple(parts), 20_000))


def two_studies() -> Store:
    x = MatrixInfo("X", "counts", "uint16", 150_000)
    log1p = MatrixInfo("layers/log1p", "normalised", "float32", 150_000)
    blood = dataset(
        "blood",
        2500,
        [
            labels("cell_type", {"T cell": 1500, "B cell": 900}, n_missing=100),
            ColumnSummary("n_counts", "int64", low=501, high=40_211),
            ColumnSummary("barcode", "string"),
        ],
        matrices=(x, log1p),
        obsm=(ObsmInfo("X_pca", "float32", 50),),
        uns={"title": "Blood <of> many", "organism": "Homo sapiens"},
    )
    lung = dataset(
        "lung", 500, [labels("cell_type", {"macrophage": 500}), ColumnSummary("n_counts", "int64", low=20, high=900)]
    )
    return store_of(blood, lung)


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1023 * 1024, "0.999 MiB"),
        (13_207_024_435, "12.3 GiB"),
        (2**40, "1 TiB"),
        (3 * 2**50, "3 PiB"),
    ],
)
def test_bytes(n: int, text: str) -> None:
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0%"), (1, "<0.1%"), (40, "0.4%"), (996, "10%"), (3400, "34%"), (9999, ">99%"), (10_000, "100%")],
)
def test_share(n: int, text: str) -> None:
    assert human_share(n, 10_000) == text


def test_share_of_nothing() -> None:
    assert human_share(0, 0) == "0%"


def test_numbers_dates_and_names() -> None:
    assert human_number(40_211) == "40,211"
    assert human_number(0.123456) == "0.1235"
    assert human_date("2026-03-01T10:30:12+01:00") == "2026-03-01 09:30 UTC"
    assert human_date("2026-03-01T10:30:12") == "2026-03-01 10:30"
    assert human_date("yesterday") == "yesterday"
    assert (plural(1, "cell"), plural(2, "category"), plural(1, "cell", 3)) == (
        "1 cell",
        "2 categories",
        "1 of 3 cells",
    )
    assert (list_some("abc", 3), list_some("abcd", 2)) == ("a, b, c", "a, b, … 2 more")
    assert (shorten("T cell", 6), shorten("T cells", 6)) == ("T cell", "T cel…")


def test_text_that_would_move_the_cursor_or_turn_around_is_spelled_out() -> None:
    assert one_line("a\nb\x1b[31m\u202ec\ud800 é 細胞") == "a\\nb\\x1b[31m\\u202ec\\ud800 é 細胞"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("gs://bucket/atlas", "gs://bucket/atlas"),
        ("ftp://anna:secret@host/atlas", "ftp://anna:…@host/atlas"),
        ("simplecache::sftp://:s3cret@host:22/a", "simplecache::sftp://:…@host:22/a"),
        ("https://host/atlas?X-Amz-Signature=abc", "https://host/atlas?…"),
        ("/data/who?/atlas", "/data/who?/atlas"),
    ],
)
def test_secrets_in_a_url_are_not_shown(url: str, text: str) -> None:
    assert public_url(url) == text
    store = store_of()
    # A location with a secret is refused when it is made; a repr would not show it if one came by some other way.
    object.__setattr__(store.location, "url", url)
    assert f"url       {text}\n" in store_text(store)
    assert f'<div class="ds-url">{text}</div>' in store_html(store)


@pytest.mark.parametrize("url", ["ftp://anna:secret@host/atlas", "https://host/atlas?X-Amz-Signature=secret"])
def test_a_location_has_no_secret_to_show(url: str) -> None:
    with pytest.raises(SpecError, match="expected no credentials") as caught:
        store_of(url=url)
    assert "secret" not in str(caught.value)


# -- text --------------------------------------------------------------------------------------------------------------


def test_text() -> None:
    expected = """\
<daodask.Store> 3,000 cells x 20,000 genes
  url       gs://bucket/atlas
  snapshot  3, 2026-03-01 09:30 UTC, daodask 0.1.0
  features  human, Homo sapiens, 20,000 genes
  stored    5.86 MiB, 4 blocks of up to 1,000 cells
  datasets  2: blood (2,500), lung (500)
  X         counts, handed out as float32, 58 non-zeros a cell
  layers    log1p (in 1 of 2 datasets)
  obsm      X_pca (50) (in 1 of 2 datasets)
  obs       3 columns, and dataset, obs_names
    cell_type  category  3 categories, 3.3% missing
    n_counts   int64     20 to 40,211
    barcode    string    17% missing
  lazy      X, layers, obsm: dask arrays; obs: dask dataframe; var: read when first used"""
    assert store_text(two_studies()) == expected
    assert repr(two_studies()) == expected


def test_text_of_a_subset_says_of_how_much() -> None:
    subset = two_studies()[1000:2400, np.arange(30)]
    assert (
        store_text(subset)
        == """\
<daodask.Store> 1,400 of 3,000 cells x 30 of 20,000 genes
  url       gs://bucket/atlas
  snapshot  3, 2026-03-01 09:30 UTC, daodask 0.1.0
  features  human, Homo sapiens, 20,000 genes
  stored    datasets of 4.88 MiB, 2 blocks of up to 1,000 cells
  datasets  1 of 2: blood (1,400 of 2,500)
  X         counts, handed out as float32
  layers    log1p
  obsm      X_pca (50)
  obs       3 columns, and dataset, obs_names
    cell_type  category  3 categories, nullable
    n_counts   int64     within 501 to 40,211
    barcode    string    nullable
  lazy      X, layers, obsm: dask arrays; obs: dask dataframe; var: read when first used"""
    )


def test_text_of_an_empty_store() -> None:
    assert (
        store_text(store_of(organism=""))
        == """\
<daodask.Store> 0 cells x 20,000 genes
  url       gs://bucket/atlas
  snapshot  3, 2026-03-01 09:30 UTC, daodask 0.1.0
  features  human, 20,000 genes
  stored    0 B, 0 blocks
  datasets  0
  X         handed out as float32
  obs       0 columns, and dataset, obs_names
  lazy      X, layers, obsm: dask arrays; obs: dask dataframe; var: read when first used"""
    )


def test_a_dataset_without_cells_and_a_subset_without_cells() -> None:
    with_empty = store_of(dataset("none", 0), dataset("one", 1))
    assert "<daodask.Store> 1 cell x 20,000 genes\n" in store_text(with_empty)
    assert "datasets  2: none (0), one (1)\n" in store_text(with_empty)
    nothing = two_studies()[:0]
    assert "<daodask.Store> 0 of 3,000 cells x 20,000 genes\n" in store_text(nothing)
    assert "datasets  0 of 2\n" in store_text(nothing)
    check_html(store_html(with_empty))
    check_html(store_html(nothing))


def test_a_thousand_datasets_stay_short() -> None:
    many = [dataset(f"study_{i:04d}", 100, [labels("donor_id", {f"D{i}": 100})]) for i in range(1000)]
    store = store_of(*many)
    text = store_text(store)
    assert len(text.splitlines()) < 20
    assert max(map(len, text.splitlines())) <= 100
    assert "study_0007 (100), … 992 more\n" in text
    assert "donor_id  category  1,000 categories\n" in text
    html = store_html(store)
    check_html(html)
    assert len(html) < 60_000
    assert "… 960 more: see <code>store.datasets</code>" in html


def test_many_columns_stay_short_in_text() -> None:
    store = store_of(dataset("one", 10, [ColumnSummary(f"n_{i}", "float32", low=0.0, high=1.5) for i in range(50)]))
    assert "    n_15  float32  0 to 1.5\n    … 34 more\n" in store_text(store)
    assert len(column_summary_lines(store)) == 50
    assert column_summary_lines(store, 2) == ["n_0  float32  0 to 1.5", "n_1  float32  0 to 1.5"]


def test_a_range_without_known_ends_is_not_claimed() -> None:
    infinite = dataset("a", 5, [ColumnSummary("x", "float64", low=0.0, high=None)])
    finite = dataset("b", 5, [ColumnSummary("x", "float64", low=1.0, high=2.0)])
    valueless = dataset("c", 5, [ColumnSummary("x", "float64", n_missing=5)])
    assert column_summary_lines(store_of(infinite, finite)) == ["x  float64"]
    assert column_summary_lines(store_of(finite, valueless)) == ["x  float64  1 to 2, 50% missing"]
    assert column_summary_lines(store_of(valueless)) == ["x  float64  100% missing"]


def test_kinds_of_x_are_told_apart() -> None:
    other = (MatrixInfo("X", "normalised", "float64", 10, largest=3.5),)
    store = store_of(dataset("a", 10), dataset("b", 10, matrices=other))
    line = "X         counts in 1 dataset, normalised in 1 dataset, handed out as float64, 26 non-zeros a cell\n"
    assert line in store_text(store)


# -- HTML --------------------------------------------------------------------------------------------------------------

TAGS = {"b", "code", "dd", "details", "div", "dl", "dt", "i", "pre", "span", "style", "summary"}
TAGS |= {"table", "tbody", "td", "th", "thead", "tr", "svg", "path", "rect", "text"}
ATTRIBUTES = {"aria-label", "class", "d", "height", "open", "role", "style", "title", "transform", "width", "x", "y"}


class Reader(HTMLParser):
    """Checks that tags are closed in order; keeps tags, attribute names and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_html(html: str) -> Reader:
    """Well-formed, of known tags, without scripts, ids or handlers: nothing a name brought along."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    assert reader.tags <= TAGS
    assert reader.attributes <= ATTRIBUTES
    return reader


def test_html_says_what_text_says() -> None:
    html = store_html(two_studies())
    assert two_studies()._repr_html_() == html
    assert "<b>3,000 cells × 20,000 genes</b>" in html
    assert "<dt>Snapshot</dt><dd>3 · 2026-03-01 09:30 UTC · daodask 0.1.0</dd>" in html
    assert "<dt>Feature space</dt><dd>human · Homo sapiens · 20,000 genes</dd>" in html
    assert "<dt>Stored</dt><dd>5.86 MiB, 4 blocks of up to 1,000 cells</dd>" in html
    assert '<td class="ds-about" title="Blood &lt;of&gt; many · Homo sapiens">' in html
    # For pages that strip styles.
    assert '<pre class="ds-plain">&lt;daodask.Store&gt; 3,000 cells x 20,000 genes\n' in html
    check_html(html)


def test_bars_of_the_most_frequent_values() -> None:
    html = store_html(two_studies())
    strip = re.search(r'title="cell_type".*?<span class="ds-strip">(.*?)</span>', html)
    assert strip is not None
    assert strip[1] == (
        '<i class="ds-v0" style="width:50%" title="T cell: 1,500"></i>'
        '<i class="ds-v1" style="width:30%" title="B cell: 900"></i>'
        '<i class="ds-v2" style="width:16.67%" title="macrophage: 500"></i>'
        '<i class="ds-missing" style="width:3.333%" title="missing: 100"></i>'
    )
    assert '<span class="ds-caption">T cell 50%, B cell 30%, macrophage 17%</span>' in html
    assert (
        '<span class="ds-label" title="B cell">B cell</span><div class="ds-bar"><i style="width:60%"></i></div>'
        '<span class="ds-number">900</span><span class="ds-number ds-dim">30%</span>'
    ) in html


def test_values_beyond_the_most_frequent_are_others() -> None:
    html = store_html(store_of(dataset("one", 210, [labels("donor_id", {i: i for i in range(21)})])))
    assert '<i class="ds-others" style="width:57.14%" title="others: 120"></i>' in html
    assert '<span class="ds-label ds-other" title="others">others</span>' in html
    assert 'title="11">11</span>' in html
    assert 'title="10">10</span>' not in html


def test_bars_of_a_subset_count_only_datasets_selected_whole() -> None:
    html = store_html(two_studies()[1000:])
    assert "1 dataset is selected in part, of which the snapshot has no counts: hatched." in html
    assert '<i class="ds-v0" style="width:25%" title="macrophage: 500"></i>' in html
    assert '<i class="ds-uncounted" style="width:75%" title="not counted: 1,500"></i>' in html
    # Of datasets the snapshot knows all.
    assert '<i class="ds-v0" style="width:75%" title="blood: 1,500"></i>' in html
    assert '<td class="ds-number">1,500 of 2,500</td>' in html
    check_html(html)


def test_without_a_whole_dataset_there_are_no_bars() -> None:
    html = store_html(two_studies()[::2])
    note = "Every dataset is selected in part, of which the snapshot has no counts: columns are shown without bars."
    assert note in html
    assert html.count('<details class="ds-values">') == 1  # that of `dataset`
    whole = store_html(two_studies()[2500:])
    assert "selected in part" not in whole
    assert '<i class="ds-v0" style="width:100%" title="macrophage: 500"></i>' in whole


@pytest.mark.parametrize("name", [HOSTILE, '" onmouseover="x', "</style></div>", "a\n\x1b[2J", "細胞 & 'é'"])
def test_names_are_shown_and_never_obeyed(name: str) -> None:
    hostile = DatasetInfo(
        name,
        f"datasets/{name}",
        "h",
        10,
        (0, 10),
        (MatrixInfo("X", name, name, 10), MatrixInfo(f"layers/{name}", "counts", "uint16", 10)),
        (ObsmInfo(name, "float32", 2),),
        (labels(name, {name: 10}), ColumnSummary(f"{name}2", name)),
        uns={"title": name, "organism": name, "doi": [name]},
    )
    space = FeatureSpaceInfo(name, "h", 5, name, merge_schema([hostile]))
    snapshot = Snapshot(1, name, name, name, (space,), (hostile,))
    # Its dtype is asked of numpy, which refuses what is none.
    store = Store(StoreLocation(f"memory://{name}"), snapshot, space, Selection((Part(name, (0, 10), 0),), 5))
    object.__setattr__(store, "served_dtype", lambda matrix: np.dtype(np.float32))
    reader = check_html(store_html(store))
    assert one_line(name) in reader.text
    assert "\x1b" not in store_text(store) + reader.text
    assert len(store_text(store).splitlines()) == 13


def test_unusual_facts_are_passed_over() -> None:
    uns = {"title": None, "organism": ["Homo sapiens"], "doi": 10.5}
    assert '<td class="ds-about" title=""></td>' in store_html(store_of(dataset("one", 1, uns=uns)))


def test_style_is_scoped() -> None:
    css = re.findall(r"<style>(.*?)</style>", store_html(two_studies()), re.DOTALL)[0]
    flat = css.replace("@media (prefers-color-scheme:dark){", "").replace("}}", "}")
    selectors = [s.strip() for rule in re.findall(r"([^{}]+)\{", flat) for s in rule.split(",")]
    assert len(selectors) > 50
    assert [s for s in selectors if ".daodask-repr" not in s] == []
    assert css.count("{") == css.count("}")


def test_every_class_has_a_style() -> None:
    html = store_html(two_studies()[1000:])
    css, body = re.findall(r"<style>(.*?)</style>(.*)", html, re.DOTALL)[0]
    used = {name for names in re.findall(r'class="([^"]*)"', body) for name in names.split()}
    assert {name for name in used if f".{name}" not in css} == set()


def test_picture_shows_blocks_and_datasets() -> None:
    html = store_html(two_studies())
    picture = re.findall(r"<svg.*?</svg>", html)[0]
    assert 'aria-label="4 blocks of 3,000 cells by 20,000 genes"' in picture
    # Bounds of 4 blocks, of which one is also that of a dataset; drawn in proportion.
    assert re.findall(r'<path class="(ds-\w+)" d="M1 ([\d.]+)h150"/>', picture) == [
        ("ds-block", "19.0"),
        ("ds-block", "37.0"),
        ("ds-block", "46.0"),
        ("ds-edge", "46.0"),
    ]


# -- other cards -------------------------------------------------------------------------------------------------------


def loader_plan() -> LoaderPlan:
    shares = (Mixing("dataset", 1.5, 2.0), Mixing("cell_type", 0.0, 0.0))
    return LoaderPlan("Shuffled()", 3000, 10, 3, 2**20, 2, 2**30, 12.0, 3 * 2**20, shares)


def build_report() -> BuildReport:
    studies = (
        StudyReport("blood", "built", "", 2500, 19_000, counts_total=200.0, counts_kept=150.0, nbytes=2**20),
        StudyReport("lung", "refused", f"expected counts, got {HOSTILE}"),
        StudyReport(HOSTILE, "unchanged", "", 500, 18_000),
    )
    return BuildReport("gs://bucket/atlas", 3, True, studies, 75.0, genes={"human": 20_000})


def build_plan(folder: Path) -> BuildPlan:
    good = coordinate_adata(40, 8)
    spec = {
        "features": {"name": "genes", "reference": [f"gene{j}" for j in range(10)]},
        "studies": [{"id": "one", "source": good}, {"id": "two", "source": coordinate_adata(80, 8)}],
    }
    return daodask.plan_build(spec, folder / "store")


def test_a_selection_as_text_and_card() -> None:
    selection = two_studies()[1000:2400, np.arange(30)].selection
    assert repr(selection) == (
        "<daodask.Selection> 1,400 of 3,000 cells x 30 of 20,000 genes\n  datasets  1 of 2: blood (1,400 of 2,500)"
    )
    html = selection._repr_html_()
    assert "<b>1,400 of 3,000 cells × 30 of 20,000 genes</b>" in html
    assert (
        '<td class="ds-name">blood</td><td class="ds-number">1,400 of 2,500</td><td><div class="ds-bar">'
        '<i style="width:56%"></i></div></td><td class="ds-tail">56%</td>'
    ) in html
    assert "<dt>Blocks</dt><dd>2 blocks</dd>" in html
    check_html(html)
    assert repr(two_studies()[:0].selection).endswith("\n  datasets  0 of 2")
    check_html(two_studies()[:0].selection._repr_html_())


def test_a_saved_selection_as_card() -> None:
    saved = SavedSelection.of(two_studies()[[1, 2, 2600]])
    html = saved._repr_html_()
    assert "<b>3 of 3,000 cells</b>" in html
    assert '<div class="ds-url">gs://bucket/atlas</div>' in html
    assert "<dt>Of</dt><dd>snapshot 3</dd><dt>Genes</dt><dd>all of human</dd>" in html
    assert '<td class="ds-name">lung</td><td class="ds-number">1 of 500</td>' in html
    check_html(html)


def test_a_loader_and_its_plan_as_cards() -> None:
    loader = daodask.BatchLoader(two_studies(), 100, obs=["cell_type"], seed=7, rank=1, world_size=2, memory="64MiB")
    html = loader._repr_html_()
    assert "<b>15 batches of 100 cells</b>" in html
    assert f"<dt>Schedule</dt><dd>{loader.schedule}, seed 7, rank 1 of 2</dd>" in html
    assert "<dt>X</dt><dd>X as float32 CSR</dd><dt>obs</dt><dd>cell_type</dd>" in html
    assert "<dt>Memory</dt><dd>a budget of 64 MiB</dd><dt>Next</dt><dd>epoch 0, after 0 batches</dd>" in html
    check_html(html)
    by_label = daodask.BatchLoader(two_studies(), 100, schedule=Grouped(by="cell_type"))
    assert "<b>batches of 100 cells</b>" in by_label._repr_html_()
    plan = loader_plan()._repr_html_()
    assert "<b>10 batches in 3 windows, 3,000 cells</b>" in plan
    assert "<dt>Memory</dt><dd>1 MiB a window, 2 read ahead, budget 1 GiB</dd>" in plan
    assert '<i style="width:75%"></i></div></td><td class="ds-tail">75.0% of the 2.00 of a random draw</td>' in plan
    check_html(plan)


def test_a_build_plan_as_card(tmp_path: Path) -> None:
    plan = build_plan(tmp_path)
    html = plan._repr_html_()
    assert "<b>2 studies to build, 120 cells</b>" in html
    assert f'<div class="ds-url">{tmp_path}/store</div>' in html
    assert "<dt>Feature space</dt><dd>genes · 10 genes</dd>" in html
    assert (
        '<td class="ds-name">one</td><td><span class="ds-pill ds-good">build</span></td><td class="ds-number">40</td>'
        '<td><div class="ds-bar"><i style="width:50%"></i></div></td><td class="ds-number">1</td>'
        '<td class="ds-number">8 (100%)</td><td class="ds-number">2</td><td class="ds-number">0</td>'
    ) in html
    check_html(html)
    assert not (tmp_path / "store").exists()


def test_a_build_report_as_card() -> None:
    html = build_report()._repr_html_()
    assert "<b>2 studies in the store, 1 not</b>" in html
    assert "<dt>Snapshot</dt><dd>3, committed</dd><dt>Cells</dt><dd>3,000</dd>" in html
    assert '<td class="ds-number">75.00 %</td><td class="ds-number">1 MiB</td>' in html
    assert '<span class="ds-pill ds-bad">refused</span>' in html
    assert html.count("&lt;script&gt;") == html.count("script") / 2
    check_html(html)


def test_a_table_ends_with_where_the_rest_is() -> None:
    html = table([Column("name", "ds-name")], [["a"], ["b\n"], ["c"]], 2, "store.datasets")
    assert html.endswith(
        '<td class="ds-name">b\\n</td></tr></tbody></table><div class="ds-note">… 1 more: see store.datasets</div>'
    )


# -- nothing is touched ------------------------------------------------------------------------------------------------


def test_no_storage_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a repr reads nothing and computes nothing")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    for name in ("X", "layers", "obsm", "obs", "features", "var", "measured"):
        monkeypatch.setattr(Store, name, property(refuse))
    whole = store_of(dataset("one", 2500, [labels("cell_type", {"T cell": 2500})]), url=str(tmp_path / "nowhere"))
    for store in (whole, whole[::3, np.arange(5)]):
        for thing in (store.selection, SavedSelection.of(store), daodask.BatchLoader(store, 100)):
            assert f"{store.n_obs:,} " in repr(thing)
            assert f"{store.n_obs:,} " in thing._repr_html_()
        assert f"{store.n_obs:,}" in store_text(store)
        assert f"{store.n_obs:,}" in store_html(store)
        assert column_summary_lines(store)


# -- in a browser ------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",  # which root can't have
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)
LIGHT, DARK = (246, 256), (0, 50)


def screenshot(html: str, directory: Path, *flags: str) -> np.ndarray:
    """RGB pixels of a page of 1000 x 1400."""
    image = pytest.importorskip("PIL.Image")
    page, shot = directory / "page.html", directory / "page.png"
    page.write_text(html, encoding="utf-8")
    places = (f"--user-data-dir={directory / 'profile'}", f"--screenshot={shot}", "--window-size=1000,1400")
    assert CHROMIUM is not None
    subprocess.run([CHROMIUM, *FLAGS, *flags, *places, page.as_uri()], check=True, timeout=120, capture_output=True)
    with image.open(shot) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
@pytest.mark.parametrize(
    ("page", "flags", "ground"),
    [
        ("<html><body>", (), LIGHT),
        ("<html><body>", ("--blink-settings=preferredColorScheme=0",), DARK),
        ('<html><body data-jp-theme-light="true">', ("--blink-settings=preferredColorScheme=0",), LIGHT),
        ('<html><body data-jp-theme-light="false">', (), DARK),
        ('<html theme="dark"><body>', (), DARK),
    ],
    ids=["light", "dark desktop", "light notebook on a dark desktop", "dark notebook", "dark page"],
)
def test_a_browser_draws_it(page: str, flags: tuple[str, ...], ground: tuple[int, int], tmp_path: Path) -> None:
    stores = (two_studies(), two_studies()[1000:])
    body = "".join(map(store_html, stores))
    pixels = screenshot(f"<!doctype html><meta charset=utf-8>{page}{body}", tmp_path, *flags)
    # Where text and lines are in neither card: the inner left edges.
    for row in (20, 700):
        assert ground[0] <= pixels[row, 12].mean() < ground[1]
    brightness = pixels.mean(axis=2)
    for card in (brightness[10:560, 10:990], brightness[640:1000, 10:990]):
        assert np.ptp(card) > 150, "text can be told from its ground"
        assert 0.01 < (abs(card - np.median(card)) > 20).mean() < 0.5, "neither blank nor full"
    # The plain text for pages without styles is hidden, and bars and picture have their colour.
    teal = (pixels[..., 2] - pixels[..., 0] > 60).sum()
    assert teal > 2000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
@pytest.mark.parametrize(("flags", "ground"), [((), LIGHT), (("--blink-settings=preferredColorScheme=0",), DARK)])
def test_a_browser_draws_the_other_cards(flags: tuple[str, ...], ground: tuple[int, int], tmp_path: Path) -> None:
    store = two_studies()
    things = (
        store[1000:2400].selection,
        SavedSelection.of(store[[1, 2, 2600]]),
        daodask.BatchLoader(store, 100, obs=["cell_type"]),
        loader_plan(),
        build_plan(tmp_path),
        build_report(),
    )
    body = "".join(f"<div style='margin:0 0 12px'>{thing._repr_html_()}</div>" for thing in things)
    pixels = screenshot(f"<!doctype html><meta charset=utf-8><html><body>{body}", tmp_path, *flags)
    brightness = pixels.mean(axis=2)[:, 10:990]
    assert ground[0] <= pixels[20, 12].mean() < ground[1]
    assert ground[0] <= np.median(brightness[:900]) < ground[1]
    assert 0.01 < (abs(brightness[:900] - np.median(brightness[:900])) > 20).mean() < 0.5, "neither blank nor full"
    # Bars of selections, of mixing, of the plan's and the report's studies.
    assert (pixels[..., 2] - pixels[..., 0] > 60).sum() > 2000
