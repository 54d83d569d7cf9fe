"""Ontologies: a small one against literal tables, those of the extra against its parser, a store subset by terms."""

from __future__ import annotations

import gzip
import sys
from importlib.util import find_spec
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask
from daodask.errors import DependencyError, FormatError, SelectionError, SourceError, UnknownNameError
from daodask.ontology import ORGANISMS, Ontology, Term, _load, ontology_version
from daodask.types import LabelSet

OBO = """\
format-version: 1.2
data-version: releases/2026-01-01
ontology: cl
! a comment

[Term]
id: CL:0
name: cell

[Term]
id: CL:1
name: lymphocyte
is_a: CL:0 ! cell

[Term]
id: CL:2
name: T cell
synonym: "T-lymphocyte" EXACT [GOC:tfm]
synonym: "the \\"T\\" cell" EXACT []
synonym: "thymic thing" RELATED []
is_a: CL:1 {is_inferred="true"} ! lymphocyte

[Term]
id: CL:3
name: B cell
synonym: "B lymphocyte" EXACT OMO:0003012 []
is_a: CL:1
relationship: part_of CL:9 ! organ

[Term]
id: CL:4
name: helper T cell
is_a: CL:2
is_a: CL:6

[Term]
id: CL:5
name: obsolete T cell, old
is_obsolete: true
replaced_by: CL:2

[Term]
id: CL:6
name: secretory cell
is_a: CL:0

[Term]
id: CL:7
name: obsolete thing
is_obsolete: true
consider: CL:2
consider: CL:3

[Term]
id: CL:8
name: obsolete other thing
is_obsolete: true

[Term]
id: CL:9
name: organ

[Typedef]
id: part_of
name: part of
"""


@pytest.fixture(scope="module")
def cl(tmp_path_factory: pytest.TempPathFactory) -> Ontology:
    path = tmp_path_factory.mktemp("obo") / "cl.obo"
    path.write_text(OBO, encoding="utf-8")
    return Ontology.from_obo(path)


# -- OBO --------------------------------------------------------------------------------------------------------------


def test_obo(cl: Ontology) -> None:
    assert (cl.name, cl.version, len(cl)) == ("CL", "releases/2026-01-01", 10)
    assert cl.terms["CL:2"] == Term("CL:2", "T cell", {"CL:1": 1, "CL:0": 2}, ("T-lymphocyte", 'the "T" cell'))
    assert cl.terms["CL:4"].ancestors == {"CL:2": 1, "CL:6": 1, "CL:1": 2, "CL:0": 2}
    assert cl.terms["CL:5"] == Term("CL:5", "obsolete T cell, old", {}, (), True, "CL:2")
    assert cl.terms["CL:7"].consider == ("CL:2", "CL:3")
    assert repr(cl) == "<daodask.Ontology> CL releases/2026-01-01: 7 terms, 3 obsolete"


def test_obo_with_other_relations_and_gzipped(tmp_path: Path) -> None:
    (tmp_path / "tissue.obo.gz").write_bytes(gzip.compress(OBO.replace("ontology: cl\n", "").encode()))
    both = Ontology.from_obo(tmp_path / "tissue.obo.gz", relations=("is_a", "part_of"))
    assert both.name == "TISSUE"
    assert both.ancestors("B cell") == {"B cell", "lymphocyte", "cell", "organ"}
    parts = Ontology.from_obo(tmp_path / "tissue.obo.gz", relations=("part_of",))
    assert parts.ancestors("CL:3") == {"CL:3", "CL:9"}


def test_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "x.obo").write_text("[Term]\nid: A\nis_a: B\n\n[Term]\nid: B\nis_a: A\n")
    assert Ontology.from_obo(tmp_path / "x.obo").terms["A"].ancestors == {"B": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected an OBO file with \[Term\] stanzas"),
        (b"\xff\xfe", "expected an OBO file in UTF-8"),
        (gzip.compress(OBO.encode())[:-9], "expected an OBO file in UTF-8, plain or gzipped"),
        (b"[Term]\nname: x\n", "stanzas that have an id"),
    ],
)
def test_what_is_no_obo(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.obo").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        Ontology.from_obo(tmp_path / "x.obo")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected an OBO file at .*x\.obo: No such file"):
        Ontology.from_obo(tmp_path / "x.obo")


def test_labels_are_unique() -> None:
    twice = Ontology("X", "", {i: Term(i, "same") for i in ("X:1", "X:2")})
    with pytest.raises(FormatError, match="expected unique labels, got 'same' for X:1 and X:2"):
        twice.id("same")


# -- terms ------------------------------------------------------------------------------------------------------------


def test_ids_and_labels(cl: Ontology) -> None:
    assert (cl.id("T cell"), cl.id("CL:2"), cl.label("CL:2"), cl.label("T cell")) == (
        "CL:2",
        "CL:2",
        "T cell",
        "T cell",
    )
    assert "T cell" in cl
    assert "CL:2" in cl
    assert "T-lymphocyte" not in cl
    assert "CL:5" not in cl


@pytest.mark.parametrize(
    ("name", "why", "suggestion"),
    [
        ("T-lymphocyte", "did you mean 'T cell' (CL:2)?", "T cell"),
        ("t cells", "did you mean 'T cell' (CL:2)?", "T cell"),
        ("T_CELL", "did you mean 'T cell' (CL:2)?", "T cell"),
        ("thymic thing", "no name is near", ""),  # a related name is no synonym
        ("T celk", "did you mean 'T cell' (CL:2)?", ""),
        ("helper", "did you mean 'helper T cell' (CL:4)?", ""),
        ("CL:5", "'obsolete T cell, old' (CL:5) is obsolete, replaced by 'T cell' (CL:2)", "T cell"),
        ("CL:7", "'obsolete thing' (CL:7) is obsolete; consider 'T cell' (CL:2) or 'B cell' (CL:3)", ""),
        ("obsolete other thing", "'obsolete other thing' (CL:8) is obsolete, and nothing replaces it", ""),
        ("CL:99", "no name is near", ""),
        ("", "no name is near", ""),
    ],
)
def test_no_name_is_guessed(cl: Ontology, name: str, why: str, suggestion: str) -> None:
    assert cl.explain(name) == why
    assert cl.suggestion(name) == suggestion
    for ask in (cl.id, cl.label, cl.ancestors, cl.descendants, cl.children):
        with pytest.raises(UnknownNameError) as error:
            ask(name)
        assert str(error.value) == f"CL has no term {name!r}: {why}"


def test_above_and_below(cl: Ontology) -> None:
    assert cl.descendants("lymphocyte") == {"lymphocyte", "T cell", "B cell", "helper T cell"}
    assert cl.descendants("CL:1") == {"CL:1", "CL:2", "CL:3", "CL:4"}
    assert cl.descendants("CL:1", include_self=False) == {"CL:2", "CL:3", "CL:4"}
    assert cl.ancestors("helper T cell") == {"helper T cell", "T cell", "secretory cell", "lymphocyte", "cell"}
    assert cl.ancestors("CL:4", include_self=False) == {"CL:2", "CL:6", "CL:1", "CL:0"}
    assert cl.children("cell") == {"lymphocyte", "secretory cell"}
    assert cl.descendants("organ") == {"organ"}


def test_coarser(cl: Ontology) -> None:
    names = ["helper T cell", "B cell", "T cell", "secretory cell", "B cell"]
    assert cl.coarsen(names, ["lymphocyte", "T cell"]) == {
        "helper T cell": "T cell",
        "B cell": "lymphocyte",
        "T cell": "T cell",
    }
    assert cl.coarsen(names, ["CL:1"], other="other") == {
        "helper T cell": "CL:1",
        "B cell": "CL:1",
        "T cell": "CL:1",
        "secretory cell": "other",
    }
    labels = pd.Series(names, dtype="category").map(cl.coarsen(names, ["lymphocyte"]))
    assert labels.fillna("?").tolist() == ["lymphocyte", "lymphocyte", "lymphocyte", "?", "lymphocyte"]
    with pytest.raises(SelectionError, match="'helper T cell' is below 'T cell', 'secretory cell', of which none"):
        cl.coarsen(names, ["T cell", "secretory cell"])
    with pytest.raises(UnknownNameError, match="no term 'unknown'"):
        cl.coarsen(["unknown"], ["cell"])


def test_sets_of_labels_stay_such() -> None:
    some = LabelSet({"a", "b"})
    made = (some | {"c"}, some & {"a"}, some - {"a"})
    assert made == ({"a", "b", "c"}, {"a"}, {"b"})
    assert {type(x) for x in made} == {LabelSet}


# -- of the extra -----------------------------------------------------------------------------------------------------

with_extra = pytest.mark.skipif(
    find_spec("cellxgene_ontology_guide") is None, reason="the extra `ontology` is not installed"
)


@with_extra
@pytest.mark.parametrize(
    ("name", "term", "label"),
    [
        ("CL", "CL:0000084", "T cell"),
        ("UBERON", "UBERON:0002107", "liver"),
        ("EFO", "EFO:0009899", "10x 3' v2"),
        ("MONDO", "MONDO:0005015", "diabetes mellitus"),
        ("HANCESTRO", "HANCESTRO:0021", "Chinese"),
        ("PATO", "PATO:0000383", "female"),
        ("HsapDv", "HsapDv:0000258", "adult stage"),
        ("MmusDv", "MmusDv:0000110", "mature stage"),
    ],
)
def test_ontologies_of_the_extra(name: str, term: str, label: str) -> None:
    from cellxgene_ontology_guide.ontology_parser import OntologyParser

    loaded, oracle = Ontology.load(name), OntologyParser()
    assert loaded.version == ontology_version(name)
    assert (loaded.label(term), loaded.id(label)) == (label, term)
    assert set(loaded.ancestors(term)) == set(oracle.get_term_ancestors(term, include_self=True))
    below = oracle.get_term_descendants(term, include_self=True)
    assert set(loaded.descendants(term)) == {i for i in below if not oracle.is_term_deprecated(i)}
    obsolete = [i for i in loaded.terms if oracle.is_term_deprecated(i)]
    assert [t.id for t in loaded.terms.values() if t.obsolete] == obsolete
    assert Ontology.load(name) is loaded


@with_extra
def test_unknown_ontologies() -> None:
    with pytest.raises(UnknownNameError, match="there is no ontology 'Uberon'; known: .* 'UBERON'"):
        Ontology.load("Uberon")


def test_organisms_are_a_table_and_need_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cellxgene_ontology_guide", None)
    organisms = Ontology.load("NCBITaxon")
    assert len(organisms) == len(ORGANISMS) == 20
    assert organisms.label("NCBITaxon:9606") == "Homo sapiens"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cellxgene_ontology_guide", None)
    monkeypatch.setitem(sys.modules, "cellxgene_ontology_guide.supported_versions", None)
    _load.cache_clear()
    with pytest.raises(DependencyError, match=r"pip install 'daodask\[ontology\]'"):
        Ontology.load("CL")
    spec = {
        "features": {"name": "x", "reference": "union"},
        "obs": {"cell_type": {"ontology": "CL"}},
        "studies": [{"id": "a", "source": "a.h5ad"}],
    }
    with pytest.raises(DependencyError, match=r"pip install 'daodask\[ontology\]'"):
        daodask.load_spec(spec)


# -- a store ----------------------------------------------------------------------------------------------------------


def test_a_store_is_subset_by_terms(cl: Ontology, tmp_path: Path) -> None:
    labels = ["T cell", "helper T cell", "B cell", "secretory cell", "unknown"]
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[f"c{i}" for i in range(5)])
    obs["term"] = pd.Categorical([cl.id(x) if x in cl else x for x in labels])
    adata = anndata.AnnData(sp.csr_matrix(np.eye(5, dtype=np.float32)), obs)
    spec = {
        "features": {"name": "x", "reference": "union"},
        "keep": "all",
        "studies": [{"id": "a", "source": adata}],
    }
    daodask.build_store(spec, tmp_path / "store")
    store = daodask.open_store(tmp_path / "store")
    # The store has no cell of the label "lymphocyte".
    lymphocytes = store.subset(cell_type=cl.descendants("lymphocyte"))
    assert lymphocytes.obs["obs_names"].compute().tolist() == ["c0", "c1", "c2"]
    assert len(store.subset(term=cl.descendants("CL:2"))) == 2
    others = store.subset(exclude={"cell_type": cl.descendants("T cell")})
    assert others.obs["obs_names"].compute().tolist() == ["c2", "c3", "c4"]
    with pytest.raises(UnknownNameError, match="no cell of the store has one of these 1 cell_type"):
        store.subset(cell_type=cl.descendants("organ"))
    with pytest.raises(UnknownNameError, match="no cell of the store has cell_type = 'lymphocyte'"):
        store.subset(cell_type=[*cl.descendants("lymphocyte")])
