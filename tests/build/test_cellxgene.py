"""The ready-made schema of CELLxGENE: a real file as it is, and made ones that are not quite conformant."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask
from daodask.errors import SpecError

pytestmark = pytest.mark.skipif(
    find_spec("cellxgene_ontology_guide") is None, reason="the extra `ontology` is not installed"
)

TERM_COLUMNS = (
    "assay",
    "cell_type",
    "development_stage",
    "disease",
    "self_reported_ethnicity",
    "sex",
    "tissue",
)
PLAIN_COLUMNS = ("tissue_type", "suspension_type", "donor_id", "is_primary_data")


def build(tmp_path: Path, source: Any, **changes: Any) -> tuple[daodask.BuildReport, Path]:
    document = {"schema": "cellxgene", "studies": [{"id": "study", "source": source}], **changes}
    return daodask.build_store(document, tmp_path / "store"), tmp_path / "store"


# -- a real file ------------------------------------------------------------------------------------------------------

LABELS = {
    "assay": {"EFO:0009899": "10x 3' v2", "EFO:0009922": "10x 3' v3"},
    "cell_type": {"CL:0000785": "mature B cell", "CL:0000786": "plasma cell"},
    # Obsolete since 2024, and told to use by the schema that the file follows.
    "development_stage": {"HsapDv:0000087": "adult stage", "HsapDv:0000088": "early adulthood stage"},
    "disease": {"PATO:0000461": "normal"},
    "self_reported_ethnicity": {"HANCESTRO:0005": "European ancestry", "HANCESTRO:0021": "Chinese"},
    "sex": {"PATO:0000383": "female", "PATO:0000384": "male"},
    "tissue": {"UBERON:0001117": "caudate lobe of liver"},
    "organism": {"NCBITaxon:9606": "Homo sapiens"},
}


def test_a_real_file_as_it_is(data: Path, tmp_path: Path) -> None:
    file = data / "studies" / "liver_bcells_cellxgene_v5.h5ad"
    report, location = build(tmp_path, file)
    assert report.ok, report
    source, store = anndata.read_h5ad(file), daodask.open_store(location)
    found = store.to_anndata()
    # Raw counts, and the genes as they are.
    assert found.var_names.tolist() == source.raw.var_names.tolist()
    assert (found.X.astype(np.float64) != source.raw.X.astype(np.float64)).nnz == 0
    assert store.datasets["kind"].tolist() == ["counts"]
    obs = found.obs
    names = [name for column in TERM_COLUMNS for name in (column, f"{column}_ontology_term_id")]
    assert list(obs) == ["dataset", *names, *PLAIN_COLUMNS, "organism", "organism_ontology_term_id"]
    for column, labels in LABELS.items():
        ids = source.obs[f"{column}_ontology_term_id"].astype(str)
        assert obs[f"{column}_ontology_term_id"].astype(str).tolist() == ids.tolist()
        assert obs[column].astype(str).tolist() == ids.map(labels).tolist()
    for column in PLAIN_COLUMNS:
        assert obs[column].tolist() == source.obs[column].tolist()
    (space,) = store.snapshot.features
    assert (space.name, space.organism) == ("genes", "Homo sapiens")
    assert daodask.validate_store(location).ok
    cl = daodask.Ontology.load("CL")
    assert len(store.subset(cell_type=cl.descendants("B cell"))) == 78
    assert len(store.subset(cell_type_ontology_term_id=cl.descendants("CL:0000945"))) == 146


def test_a_real_file_onto_a_reference_with_columns_of_ones_own(data: Path, tmp_path: Path) -> None:
    report, location = build(
        tmp_path,
        data / "studies" / "liver_bcells_cellxgene_v5.h5ad",
        features={
            "name": "human",
            "reference": data / "genes" / "genes_homo_sapiens.csv.gz",
            "biotypes": ["protein_coding"],
        },
        obs={"author_cell_type": {"required": True}},
        keep=["Phase"],
        qc=True,
    )
    assert report.ok, report
    store = daodask.open_store(location)
    obs = store.obs.compute()
    assert len(store.var) == 20120
    assert set(obs["author_cell_type"]) == {"Plasma cells", "Mature B cells"}
    assert obs["pct_mt"].between(0, 100).all()
    assert obs["n_counts"].sum() == 403135


def test_the_stages_that_became_obsolete_are_refused_where_one_asks_for_it(data: Path, tmp_path: Path) -> None:
    file = data / "studies" / "liver_bcells_cellxgene_v5.h5ad"
    report, _ = build(tmp_path, file, obs={"development_stage": {"obsolete": "error"}})
    assert report.studies[0].status == "refused"
    assert "'adult stage' (HsapDv:0000087) is obsolete; consider 'prime adult stage' (HsapDv:0000226)" in (
        report.studies[0].reason
    )


# -- made files -------------------------------------------------------------------------------------------------------

VALUES = {
    "assay_ontology_term_id": "EFO:0009922",
    "cell_type_ontology_term_id": "CL:0000084",
    "development_stage_ontology_term_id": "HsapDv:0000258",
    "disease_ontology_term_id": "PATO:0000461",
    "self_reported_ethnicity_ontology_term_id": "unknown",
    "sex_ontology_term_id": "PATO:0000383",
    "tissue_ontology_term_id": "UBERON:0002107",
    "tissue_type": "tissue",
    "suspension_type": "cell",
    "donor_id": "D1",
    "is_primary_data": True,
    "organism_ontology_term_id": "NCBITaxon:9606",
}
PORTAL = {
    **VALUES,
    "assay": "10x 3' v3",
    "cell_type": "T cell",
    "development_stage": "adult stage",
    "disease": "normal",
    "self_reported_ethnicity": "unknown",
    "sex": "female",
    "tissue": "liver",
    "organism": "Homo sapiens",
}
GENES = ["ENSG00000000003", "ENSG00000000005", "ERCC-00002"]


def made(values: dict[str, Any], *, without: str = "", genes: list[str] | None = None, raw: bool = False) -> Any:
    obs = pd.DataFrame(values, index=["c0", "c1"]).drop(columns=[without] if without else [])
    counts = sp.csr_matrix(np.array([[1, 2, 3], [0, 5, 0]], dtype=np.float32))
    adata = anndata.AnnData(counts, obs, pd.DataFrame(index=genes or GENES))
    if raw:
        adata.raw = adata.copy()
        adata.X = counts / 7
    return adata


@pytest.mark.parametrize("values", [VALUES, PORTAL], ids=["as submitted", "from the portal"])
@pytest.mark.parametrize("raw", [True, False])
def test_made_files(values: dict[str, Any], raw: bool, tmp_path: Path) -> None:
    report, location = build(tmp_path, made(values, raw=raw))
    assert report.ok, report
    found = daodask.open_store(location).to_anndata()
    assert found.X.toarray().tolist() == [[1, 2], [0, 5]]
    assert found.obs.iloc[0].drop("dataset").to_dict() == PORTAL
    assert report.studies[0].genes_dropped["spike-in"] == 1


def test_several_terms_in_a_cell(tmp_path: Path) -> None:
    several = {
        "self_reported_ethnicity_ontology_term_id": [
            "HANCESTRO:0021 || HANCESTRO:0005",
            "HANCESTRO:0021,HANCESTRO:0005",
        ],
        "disease_ontology_term_id": ["MONDO:0005015 || MONDO:0004979", "PATO:0000461"],
    }
    report, location = build(tmp_path, made({**VALUES, **several}))
    assert report.ok, report
    obs = daodask.open_store(location).obs.compute()
    assert obs["self_reported_ethnicity"].tolist() == ["Chinese || European ancestry", "Chinese,European ancestry"]
    assert obs["disease"].tolist() == ["diabetes mellitus || asthma", "normal"]


def test_the_organism_may_be_in_uns(tmp_path: Path) -> None:
    adata = made(VALUES, without="organism_ontology_term_id")
    adata.uns["organism_ontology_term_id"] = "NCBITaxon:9606"
    report, location = build(tmp_path, adata, features={"name": "h", "reference": "union", "organism": "Homo sapiens"})
    assert report.ok, report
    assert "organism" not in daodask.open_store(location).obs_columns
    adata.uns["organism_ontology_term_id"] = "NCBITaxon:10090"
    report, _ = build(tmp_path / "other", adata)
    assert "got Mus musculus (uns.organism)" in report.studies[0].reason


@pytest.mark.parametrize(
    ("changes", "without", "reason"),
    [
        *(({}, f"{c}_ontology_term_id", f"obs.{c}_ontology_term_id: expected this required col") for c in TERM_COLUMNS),
        *(({}, c, f"obs.{c}: expected this required column, the source has none") for c in PLAIN_COLUMNS),
        (
            {"cell_type": "B cell"},
            "",
            "expected labels or ids of CL, ZFA, FBbt, WBbt, got 'B cell', which is not CL:0000084: that is 'T cell' (2",
        ),
        (
            {"cell_type_ontology_term_id": "CL:0000003"},
            "",
            "'CL:0000003': 'obsolete native cell' (CL:0000003) is obsolete, replaced by 'cell' (CL:0000000)",
        ),
        ({"cell_type_ontology_term_id": "T cell"}, "", "'T cell', which is a label and no id: that is 'CL:0000084'"),
        ({"cell_type_ontology_term_id": "CL:9999999"}, "", "got 'CL:9999999': no name is near"),
        ({"cell_type_ontology_term_id": "UBERON:0002107"}, "", "got 'UBERON:0002107': no name is near"),
        ({"sex_ontology_term_id": "PATO:0000461"}, "", "'PATO:0000461', which is none of PATO:0001894 and what is"),
        ({"assay_ontology_term_id": "EFO:0000001"}, "", "which is none of EFO:0002772, EFO:0010183"),
        ({"disease_ontology_term_id": "unknown"}, "", "obs.disease: expected labels or ids of MONDO, PATO, got 'unkn"),
        ({"tissue_type": "Tissue"}, "", "obs.tissue_type: expected one of the schema's values, got 'Tissue'"),
        ({"suspension_type": "nuclei"}, "", "obs.suspension_type: expected one of the schema's values, got 'nuclei'"),
        ({"donor_id": [None, "D1"]}, "", "obs.donor_id: expected a value for every cell, as it is required, got 1"),
        ({"is_primary_data": "perhaps"}, "", "obs.is_primary_data: expected true or false in each cell"),
    ],
)
def test_what_is_not_conformant_is_refused(changes: dict[str, Any], without: str, reason: str, tmp_path: Path) -> None:
    report, _ = build(tmp_path, made({**VALUES, **changes}, without=without))
    (study,) = report.studies
    assert (study.status, reason in study.reason) == ("refused", True), study.reason


def test_genes_by_symbol_are_refused(tmp_path: Path) -> None:
    report, _ = build(tmp_path, made(VALUES, genes=["CD3E", "HLA-A", "ENSG00000000003"]))
    assert "expected the Ensembl ids of genes, as the schema has them, got 2 other names: 'CD3E', 'HLA-A'" in (
        report.studies[0].reason
    )


def test_normalised_values_alone_are_refused(tmp_path: Path) -> None:
    adata = made(VALUES)
    adata.X = adata.X / 7
    report, _ = build(tmp_path, adata)
    assert "expected counts (integral, non-negative, finite)" in report.studies[0].reason


def test_a_study_may_say_its_own(tmp_path: Path) -> None:
    studies = [
        {
            "id": "study",
            "source": made({**VALUES, "mine": ["t", "b"]}),
            "obs": {"cell_type": {"from": "mine", "map": {"t": "T cell", "b": "B cell"}}},
        }
    ]
    report, location = build(tmp_path, None, studies=studies)
    assert report.ok, report
    obs = daodask.open_store(location).obs.compute()
    assert obs["cell_type_ontology_term_id"].tolist() == ["CL:0000084", "CL:0000236"]


def test_unknown_schemas() -> None:
    document = {"schema": "cellxgen", "studies": [{"id": "a", "source": "a.h5ad"}]}
    with pytest.raises(SpecError, match=re.escape("schema: expected one of '', cellxgene, got 'cellxgen'")):
        daodask.load_spec(document)
