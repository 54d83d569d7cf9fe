"""The README's words on streamlining: its build file is one, and its table is what the example prints."""

from __future__ import annotations

import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

from daodask.build.spec import load_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_example_prints(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAODASK_DATA", str(data))
    runpy.run_path(str(ROOT / "examples" / "gene_names.py"))["main"]()
    shown = capsys.readouterr().out
    assert f"<!-- gene names -->\n{shown}\n" in README
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:]]
    by_symbol = [[float(cell.rstrip("%")) for cell in row[3:]] for row in rows if row[1] == "symbol"]
    assert len(by_symbol) == 4
    for known, counts, with_synonyms, more_counts in by_symbol:
        assert known < with_synonyms
        assert counts < 98.1
        assert more_counts > 99.3
    assert all(row[3:5] == row[5:7] for row in rows if row[1] == "id")


@pytest.mark.skipif(find_spec("cellxgene_ontology_guide") is None, reason="the extra `ontology` is not installed")
def test_the_build_file_is_one(tmp_path: Path) -> None:
    found = re.search(r"<!-- build file: streamlining -->\n```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    (tmp_path / "atlas.yaml").write_text(found[1], encoding="utf-8")
    spec = load_spec(tmp_path / "atlas.yaml")
    (study,) = spec.studies
    assert study.names.overrides == {"QARS": "ENSG00000172053", "RP11-1": None, "old": "HLA-A"}
    assert (study.matrix, study.names.ambiguous, study.qc.names) == (
        "raw|X",
        "error",
        ("n_counts", "n_genes", "pct_mt"),
    )
    assert {"age", "batch", "sort", "assay", "tissue_type"} <= {column.name for column in spec.schema}
    # The comment is another build file.
    other = found[1].replace("qc: true", "# qc: true").replace("# qc: {", "qc: {")
    (tmp_path / "atlas.yaml").write_text(other, encoding="utf-8")
    assert load_spec(tmp_path / "atlas.yaml").studies[0].qc.names == ("n_counts", "n_genes", "pct_ribo")
