"""Reports as people and programs read them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import daodask
from daodask.build.depth import Depth
from daodask.build.report import BuildReport, LabelCounts, StudyReport, table
from daodask.format.manifest import ColumnSummary, DatasetInfo, MatrixInfo
from daodask.testing import coordinate_adata

DROPPED = {"unknown": 62, "other biotype": 1000, "ambiguous": 1}
STUDIES = (
    StudyReport("pbmc", "built", "", 12_345, 2_000, 3, 18_000, DROPPED, counts_total=1e6, counts_kept=987_654.0),
    StudyReport("empty", "unchanged", genes_padded=20_000),
    StudyReport("tpm", "refused", "expected counts, got 0.5"),
    StudyReport("gone", "failed", "expected a file at gone.h5ad, found none"),
)

PBMC = dataclasses.replace(
    STUDIES[0],
    depth=Depth((0, 2, 0, 12_343), (12_345,)),
    genes_ambiguous={"MT": ("ENSG1", "ENSG2")},
    features="human",
    kind="counts",
    nbytes=4096,
    labels=(LabelCounts("cell_type", ("B", "T"), (12_000, 300), 45),),
)


def dataset(report: dict[str, Any]) -> DatasetInfo:
    """Return what a snapshot has of PBMC, with this report."""
    column = ColumnSummary("cell_type", "category", 45, ("B", "T"), (12_000, 300))
    others = (ColumnSummary("n", "int64", low=1, high=2), ColumnSummary("note", "string"))
    x = (MatrixInfo("X", "counts", "uint16", 5),)
    columns = (others[0], column, others[1])
    return DatasetInfo("pbmc", "", "human", 12_345, (0,), x, columns=columns, nbytes=4096, report=report)


TEXT = """\
gs://bucket/atlas: snapshot 4 committed; 1 built, 1 unchanged, 2 refused or failed, in 1.2 s

study  status      cells  matched  summed  padded  dropped  counts kept
-----  ---------  ------  -------  ------  ------  -------  -----------
pbmc   built      12,345    2,000       3  18,000    1,063      98.77 %
empty  unchanged       0        0       0  20,000        0     100.00 %
tpm    refused
gone   failed

tpm: refused: expected counts, got 0.5

gone: failed: expected a file at gone.h5ad, found none"""


def report(*studies: StudyReport, committed: bool = True) -> BuildReport:
    return BuildReport("gs://bucket/atlas", 4, committed, studies, 1.23)


def test_text() -> None:
    assert repr(report(*STUDIES)) == TEXT


@pytest.mark.parametrize(
    ("studies", "committed", "line"),
    [
        (STUDIES[:1], True, "snapshot 4 committed; 1 built, 0 unchanged, 0 refused or failed, in 1.2 s"),
        (STUDIES[1:], False, "nothing to commit; 0 built, 1 unchanged, 2 refused or failed, in 1.2 s"),
        ((StudyReport("a", "replaced"),), True, "snapshot 4 committed; 1 built, 0 unchanged, 0 refused or failed"),
    ],
)
def test_headline(studies: tuple[StudyReport, ...], committed: bool, line: str) -> None:
    assert report(*studies, committed=committed).headline().startswith(f"gs://bucket/atlas: {line}")


@pytest.mark.parametrize(
    ("status", "ok"), [("built", True), ("replaced", True), ("unchanged", True), ("refused", False), ("failed", False)]
)
def test_ok(status: str, ok: bool) -> None:
    one = StudyReport("a", status)
    assert one.ok is ok
    assert report(STUDIES[0], one).ok is ok


@pytest.mark.parametrize(("total", "kept", "percent"), [(0, 0, 100.0), (8, 2, 25.0), (3, 3, 100.0), (5, 0, 0.0)])
def test_kept_percent(total: float, kept: float, percent: float) -> None:
    assert StudyReport("a", "built", counts_total=total, counts_kept=kept).kept_percent == percent


def test_json() -> None:
    value = json.loads(report(*STUDIES).to_json())
    assert {k: v for k, v in value.items() if k != "studies"} == {
        "url": "gs://bucket/atlas",
        "snapshot": 4,
        "committed": True,
        "seconds": 1.23,
        "created": "",
        "genes": {},
        "schema": [],
        "versions": {},
    }
    assert value["studies"][0] == {
        "id": "pbmc",
        "status": "built",
        "reason": "",
        "n_obs": 12_345,
        "genes_matched": 2_000,
        "genes_summed": 3,
        "genes_padded": 18_000,
        "genes_dropped": DROPPED,
        "genes_ambiguous": {},
        "counts_total": 1e6,
        "counts_kept": 987_654.0,
        "phases": {},
        "depth": {"n_counts": [], "n_genes": []},
        "features": "",
        "kind": "",
        "nbytes": 0,
        "labels": [],
        "seconds": {},
    }
    assert [s["id"] for s in value["studies"]] == ["pbmc", "empty", "tpm", "gone"]


def test_json_has_no_numbers_that_json_lacks() -> None:
    odd = StudyReport("a", "built", counts_total=float("nan"), counts_kept=float("inf"))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (study,) = json.loads(report(odd).to_json(), parse_constant=refuse)["studies"]
    assert (study["counts_total"], study["counts_kept"]) == (None, None)
    again = StudyReport.of_dataset(dataset({"counts_total": None, "counts_kept": None}), "unchanged")
    assert np.isnan([again.counts_total, again.counts_kept, again.kept_percent, odd.kept_percent]).all()


def test_facts_are_what_does_not_change_from_build_to_build() -> None:
    through_json = json.loads(json.dumps(dataclasses.asdict(PBMC)["depth"]))
    for depth in (PBMC.facts()["depth"], through_json):
        again = StudyReport.of_dataset(dataset({**PBMC.facts(), "depth": depth}), "unchanged")
        assert again == dataclasses.replace(PBMC, status="unchanged")
    assert not {"id", "status", "reason", "seconds", "labels"} & PBMC.facts().keys()


def test_table() -> None:
    assert table(("a", "bb", "c"), [("long", "", "1"), ("", "x", "1,000")]) == (
        "a     bb      c\n----  --  -----\nlong          1\n      x   1,000"
    )


# -- the page ------------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>"


class _Page(HTMLParser):
    """What a page is made of: tags, attributes, and the text of each table's rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
        if self.open and ("td" in self.open or "th" in self.open) and "title" not in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildReport, daodask.Store]:
    """Return the report of a build of three studies, of which one is refused, with a store of the two others."""
    first, second, bad = coordinate_adata(70), coordinate_adata(33, first=70), coordinate_adata(5)
    bad.X = bad.layers["half"]
    first.obs["evil"] = pd.Categorical([EVIL] * 60 + [None] * 10)
    studies = [{"id": name, "source": adata} for name, adata in (("one", first), ("two", second), ("bad", bad))]
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "obs": {"cell_type": {"missing": "unknown"}},
        "keep": ["evil", "odd"],
        "layout": {"block_rows": 16},
        "studies": studies,
    }
    url = str(tmp_path_factory.mktemp("report") / "a&b <store>")
    return daodask.build_store(spec, url), daodask.open_store(url)


def test_the_numbers_of_the_page_are_the_snapshots(built: tuple[BuildReport, daodask.Store]) -> None:
    report, store = built
    page = _Page(report.to_html())
    assert page.open == []
    cells = {row[0]: row[2] for row in page.rows if len(row) == 11}
    assert {name: cells[name] for name in ("one", "two")} == {"one": "70", "two": "33"}
    bars = {row[0]: row[2] for row in page.rows if len(row) == 4}
    for label, n in store.value_counts("cell_type").items():
        assert bars[str(label)] == str(n)
    assert bars[EVIL] == "60"
    assert bars["no value"] == "43"  # ten of the first study, and all of the second, which has no such column
    assert "103" in page.texts


def test_depth_is_of_what_is_in_the_store(built: tuple[BuildReport, daodask.Store]) -> None:
    report, store = built
    for study in report.studies[:2]:
        x = store.subset(dataset=study.id).to_anndata().X
        assert study.depth == Depth.of(x.data, x.indptr)
        assert sum(study.depth.n_counts) == sum(study.depth.n_genes) == study.n_obs
        assert store.snapshot.dataset[study.id].report["depth"]["n_genes"] == list(study.depth.n_genes)


def test_a_build_without_anything_to_do_reports_the_same(built: tuple[BuildReport, daodask.Store]) -> None:
    report, store = built
    same = [StudyReport.of_dataset(store.snapshot.dataset[s.id], s.status) for s in report.studies if s.ok]
    assert same == [s for s in report.studies if s.ok]


def test_the_page_needs_nothing_and_runs_nothing(built: tuple[BuildReport, daodask.Store]) -> None:
    page = _Page(built[0].to_html())
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "url(" not in built[0].to_html()
    assert EVIL in page.texts
    refused = next(s for s in built[0].studies if s.id == "bad")
    assert refused.reason in page.texts


@pytest.mark.parametrize("studies", [(), STUDIES, (PBMC,), (StudyReport("a", "failed", EVIL),)])
def test_any_report_makes_a_page(studies: tuple[StudyReport, ...]) -> None:
    whole = report(*studies)
    for text in (whole.to_html(), whole._repr_html_()):
        assert _Page(text).open == []
        assert "<script" not in text
    assert [s.id for s in studies if f">{s.id}<" not in whole._repr_html_()] == []


def test_many_studies_and_labels_make_no_endless_page() -> None:
    labels = (LabelCounts("cell_type", tuple(f"type {i}" for i in range(5000)), (1,) * 5000),)
    depth = Depth((0, 0, 5000), (0, 5000))
    studies = [
        StudyReport(f"study{i}", "built", n_obs=5000, features="f", kind="counts", labels=labels, depth=depth)
        for i in range(300)
    ]
    text = report(*studies).to_html()
    assert len(text) < 2_000_000
    assert "4,984 other labels" in text
    assert "288 other studies" in text


# -- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> str:
    """Return the path of a browser."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the path")
    return found


def _browse(chromium: str, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a browser without a window, which says on stderr what its console says."""
    # As root, as in a container, it only runs without its sandbox; the page is our own.
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    fixed = [
        "--headless",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--force-color-profile=srgb",
    ]
    return subprocess.run(
        [chromium, *root, *fixed, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


@pytest.mark.parametrize(("scheme", "ground"), [("dark", (18, 22, 28)), ("light", (255, 255, 255))])
def test_a_browser_shows_it(
    built: tuple[BuildReport, daodask.Store], chromium: str, tmp_path: Path, scheme: str, ground: tuple[int, int, int]
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(built[0].to_html(), encoding="utf-8")
    prefers = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    arguments = [prefers, "--window-size=1240,2200", f"--screenshot={picture}", page.as_uri()]
    run = _browse(chromium, tmp_path / "profile", *arguments)
    assert "CONSOLE" not in run.stderr
    pixels = _pixels(picture)
    assert pixels.shape == (2200, 1240, 3)
    assert tuple(pixels[5, 5]) == ground
    # All of it is drawn: tiles, tables and histograms down the page, in many colours.
    drawn = (pixels != pixels[5, 5]).any(axis=(1, 2))
    assert drawn[:900].mean() > 0.5
    assert drawn[1300:].any()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_page_is_as_wide_as_the_window_and_its_drawings_have_a_size(
    built: tuple[BuildReport, daodask.Store], chromium: str, tmp_path: Path
) -> None:
    # The page itself allows no script: this one is put into a copy of it that does.
    probe = (
        "<script>addEventListener('load', () => {"
        "const boxes = [...document.querySelectorAll('svg, .panel, .tiles > div')].map(e => e.getBoundingClientRect());"
        "document.title = JSON.stringify({wide: document.documentElement.scrollWidth - innerWidth,"
        " flat: boxes.filter(b => b.width < 20 || b.height < 10).length, n: boxes.length,"
        " texts: document.querySelectorAll('svg title').length})})</script>"
    )
    text = re.sub(r"<meta http-equiv[^>]*>", probe, built[0].to_html())
    page = tmp_path / "report.html"
    page.write_text(text, encoding="utf-8")
    run = _browse(chromium, tmp_path / "profile", "--window-size=1240,900", "--dump-dom", page.as_uri())
    assert "CONSOLE" not in run.stderr
    said = re.search(r"<title>(.*?)</title>", run.stdout)
    assert said is not None
    # Drawings: two of all studies, two of each study, and two axes; a panel for each of three columns; five tiles.
    assert json.loads(said[1]) == {"wide": 0, "flat": 0, "n": 8 + 2 + 5, "texts": 6}


def _pixels(png: Path) -> np.ndarray[Any, Any]:
    from matplotlib.image import imread

    image = imread(png)
    return np.round(np.asarray(image)[:, :, :3] * 255).astype(int)
