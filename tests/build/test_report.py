"""Reports as people and programs read them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from daodask.build.report import BuildReport, StudyReport, table

DROPPED = {"unknown": 62, "other biotype": 1000, "ambiguous": 1}
STUDIES = (
    StudyReport("pbmc", "built", "", 12_345, 2_000, 3, 18_000, DROPPED, counts_total=1e6, counts_kept=987_654.0),
    StudyReport("empty", "unchanged", genes_padded=20_000),
    StudyReport("tpm", "refused", "expected counts, got 0.5"),
    StudyReport("gone", "failed", "expected a file at gone.h5ad, found none"),
)

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
        "counts_total": 1e6,
        "counts_kept": 987_654.0,
    }
    assert [s["id"] for s in value["studies"]] == ["pbmc", "empty", "tpm", "gone"]


def test_json_has_no_numbers_that_json_lacks() -> None:
    odd = StudyReport("a", "built", counts_total=float("nan"), counts_kept=float("inf"))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (study,) = json.loads(report(odd).to_json(), parse_constant=refuse)["studies"]
    assert (study["counts_total"], study["counts_kept"]) == (None, None)
    again = StudyReport.from_facts("a", "unchanged", {"counts_total": None, "counts_kept": None})
    assert np.isnan([again.counts_total, again.counts_kept, again.kept_percent, odd.kept_percent]).all()


def test_facts_are_what_does_not_change_from_build_to_build() -> None:
    assert StudyReport.from_facts("a", "unchanged", STUDIES[0].facts()).facts() == STUDIES[0].facts()
    assert not {"id", "status", "reason"} & STUDIES[0].facts().keys()


def test_table() -> None:
    assert table(("a", "bb", "c"), [("long", "", "1"), ("", "x", "1,000")]) == (
        "a     bb      c\n----  --  -----\nlong          1\n      x   1,000"
    )
