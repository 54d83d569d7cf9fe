"""Gene names onto a feature space: tables, resolution, organisms; literal numbers for the real human studies."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daodask.build.genes import (
    GeneLookup,
    GeneMap,
    check_matched,
    check_organism,
    feature_space,
    gene_id,
    gene_list,
    infer_organism,
    map_genes,
    read_reference,
    read_synonyms,
)
from daodask.build.naming import GeneNames
from daodask.build.spec import FeatureSpec
from daodask.errors import SpecError, StreamlineError
from daodask.format.features import FeatureSpace

REFERENCE = b"""\
ENSG00000000001,AAA,3,100,protein_coding
ENSG00000000002,BBB-1,1,200,lncRNA
ENSG00000000003,CCC,1,300,protein_coding
ENSG00000000004,TWIN,1,400,protein_coding
ENSG00000000005,TWIN,1,500,protein_coding
ENSG00000000006,HLA-A,1,600,protein_coding
ENSG00000000007,NA,1,700,protein_coding
ENSG00000000008,PAIR,1,800,protein_coding
ENSG00000000009,PAIR,1,900,lncRNA
"""
SYNONYMS = (
    b"symbol\tname\talias_symbol\tprev_symbol\tensembl_gene_id\n"
    b"AAA\tx\tALPHA|SHARED\tOLDA|CCC\tENSG00000000001\n"
    b"BBB-1\tx\tBETA\t\tENSG00000000002\n"
    b"NEWC\tx\tSHARED|OLDA\tOLDC\tENSG00000000003\n"
    b"TWIN\tx\tT1\t\tENSG00000000004\n"
    b"HLA-A\tx\tH1\t\t\n"
    b"GONE\tx\tG1\tOLDC\tENSG00000099999\n"
)


def spec(**changes: object) -> FeatureSpec:
    return FeatureSpec(**{"name": "human", "reference": "union", **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return read_reference(REFERENCE)


@pytest.fixture(scope="module")
def coding(reference: pd.DataFrame) -> FeatureSpace:
    return feature_space(spec(biotypes=("protein_coding",)), reference, [])


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reference(pack: type[bytes]) -> None:
    frame = read_reference(pack(REFERENCE))
    assert list(frame.columns) == ["symbol", "version", "length", "biotype"]
    assert frame.index.dtype == object
    assert frame.loc["ENSG00000000006"].tolist() == ["HLA-A", "1", 600, "protein_coding"]
    assert frame["symbol"].tolist()[6] == "NA"
    assert frame["length"].dtype == np.int64


def test_reference_ids_lose_version_and_the_copies_on_y() -> None:
    table = b"ENSG00000000001.4,A,4,1,x\nENSG00000000001.4_PAR_Y,A,4,1,x\n"
    assert read_reference(table).index.tolist() == ["ENSG00000000001"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            b"id,symbol\na,b\n",
            "expected the columns id, symbol, version, length, biotype without a header, or one .*, got 2",
        ),
        (b"id,symbol,version,length,biotype\n" + REFERENCE, "expected whole numbers as length and no header"),
        (REFERENCE + REFERENCE, "expected unique gene ids, got 'ENSG00000000001' twice"),
        (b"", "expected text with columns"),
        (gzip.compress(REFERENCE)[:-9], "expected text with columns"),
    ],
)
def test_other_reference_tables_are_refused(table: bytes, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_reference(table)


def test_synonyms() -> None:
    frame = read_synonyms(gzip.compress(SYNONYMS))
    assert frame[frame["id"] == "ENSG00000000001"][["name", "kind"]].to_numpy().tolist() == [
        ["AAA", "approved"],
        ["OLDA", "previous"],
        ["CCC", "previous"],
        ["ALPHA", "alias"],
        ["SHARED", "alias"],
    ]


def test_other_tables_of_synonyms_are_refused() -> None:
    with pytest.raises(SpecError, match="expected a column 'prev_symbol'; did you mean 'previous_symbol'"):
        read_synonyms(SYNONYMS.replace(b"prev_symbol", b"previous_symbol"))


# -- the feature space ------------------------------------------------------------------------------------------------


def test_space_of_a_reference(coding: FeatureSpace) -> None:
    assert (coding.name, coding.organism, len(coding)) == ("human", "Homo sapiens", 7)
    assert list(coding.var.columns) == ["symbol", "length", "biotype"]
    assert coding.var.index[:2].tolist() == ["ENSG00000000001", "ENSG00000000003"]


@pytest.mark.parametrize(
    ("how", "genes"),
    [("union", ["B", "ENSG00000000001", "A-1", "C"]), ("intersection", ["ENSG00000000001", "A-1"])],
)
def test_space_of_own_names(how: str, genes: list[str]) -> None:
    studies = [["B", "ENSG00000000001.2", "A-1", "B"], ["A-1", "C", "ENSG00000000001_PAR_Y"]]
    space = feature_space(spec(reference=how), None, studies)
    assert space.var.index.tolist() == genes
    assert list(space.var.columns) == []
    genes_of_first = map_genes(studies[0], GeneLookup.build(space))
    assert genes_of_first.matched == (4 if how == "union" else 2)


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        ({"biotypes": ("protein-coding",)}, None, "no gene of biotype 'protein-coding'; did you mean 'protein_coding'"),
        ({"organism": "mouse"}, None, "expected genes of Mus musculus, got Ensembl ids of Homo sapiens"),
        ({"reference": "intersection"}, [["a"], ["b"]], "expected studies that have a gene in common, got none"),
        ({}, [], "got none"),
        ({}, [["ERCC-00002"]], "got none"),
    ],
)
def test_impossible_spaces(
    changes: dict[str, object], names: Sequence[Sequence[str]] | None, message: str, reference: pd.DataFrame
) -> None:
    with pytest.raises(SpecError, match=message):
        feature_space(spec(**changes), reference if names is None else None, names or [])


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("ENSG00000000001", "ENSG00000000001"),
        ("ENSG00000000001.12", "ENSG00000000001"),
        ("ENSG00000000001.12_PAR_Y", "ENSG00000000001"),
        ("ENSMUSG00000000001.1", "ENSMUSG00000000001"),
        ("AL627309.1", "AL627309.1"),
        ("HLA-DRB1", "HLA-DRB1"),
        ("ENSG1.1", "ENSG1.1"),
        ("", ""),
    ],
)
def test_only_ensembl_ids_have_versions(name: str, stripped: str) -> None:
    assert gene_id(name) == stripped


A, C, TWIN_1, HLA, NA = 0, 1, 2, 4, 5
UNKNOWN, OTHER, AMBIGUOUS, SPIKE, ANTIBODY, EXCLUDED = -1, -2, -3, -4, -5, -6


@pytest.mark.parametrize(
    ("name", "without", "with_synonyms"),
    [
        ("ENSG00000000001", A, A),
        ("ENSG00000000001.7", A, A),
        ("ENSG00000000001.7_PAR_Y", A, A),
        ("ENSG00000000002.1", OTHER, OTHER),
        ("AAA", A, A),
        ("aaa", UNKNOWN, UNKNOWN),
        ("AAA.1", UNKNOWN, UNKNOWN),
        ("BBB-1", OTHER, OTHER),
        ("HLA-A", HLA, HLA),
        ("HLA", UNKNOWN, UNKNOWN),
        ("HLA-A-1", UNKNOWN, UNKNOWN),  # what makes names unique is none of the name's
        ("HLA-B", UNKNOWN, UNKNOWN),
        ("HLA-A.1", UNKNOWN, UNKNOWN),
        ("NA", NA, NA),
        ("CCC", C, C),  # a symbol comes before the previous symbol of another gene
        ("TWIN", AMBIGUOUS, TWIN_1),  # the table of synonyms says which of the two has it
        ("PAIR", AMBIGUOUS, AMBIGUOUS),  # one is not in the feature space, still it may be the one that is meant
        ("NEWC", UNKNOWN, C),
        ("OLDA", UNKNOWN, A),  # previous before alias
        ("OLDC", UNKNOWN, C),  # the other gene of that name is in no reference
        ("ALPHA", UNKNOWN, A),
        ("SHARED", UNKNOWN, AMBIGUOUS),
        ("BETA", UNKNOWN, OTHER),
        ("H1", UNKNOWN, HLA),  # the table has no id, but its symbol is one of the reference
        ("GONE", UNKNOWN, UNKNOWN),
        ("", UNKNOWN, UNKNOWN),
    ],
)
def test_resolution(name: str, without: int, with_synonyms: int, reference: pd.DataFrame, coding: FeatureSpace) -> None:
    assert GeneLookup.build(coding, reference).code(name) == without
    assert GeneLookup.build(coding, reference, read_synonyms(SYNONYMS)).code(name) == with_synonyms


def test_map(reference: pd.DataFrame, coding: FeatureSpace) -> None:
    names = ["CCC", "ENSG00000000001.1", "ERCC1", "AAA", "TWIN", "BBB-1", "ENSG00000000001", "ERCC2"]
    genes = map_genes([*names, "ERCC-00002", "CD3_TotalSeqB"], GeneLookup.build(coding, reference))
    assert genes.target.dtype == np.int32
    assert genes.target.tolist() == [C, A, -1, A, -1, -1, A, -1, -1, -1]
    assert (genes.matched, genes.summed, genes.padded) == (4, 2, 5)
    assert genes.dropped == {
        "unknown": 2,
        "other biotype": 1,
        "ambiguous": 1,
        "spike-in": 1,
        "antibody": 1,
        "excluded": 0,
    }
    assert genes.ambiguous == {"TWIN": ("ENSG00000000004", "ENSG00000000005")}
    assert genes.examples == {
        "summed": ("AAA", "ENSG00000000001"),
        "unknown": ("ERCC1", "ERCC2"),
        "other biotype": ("BBB-1",),
        "ambiguous": ("TWIN",),
        "spike-in": ("ERCC-00002",),
        "antibody": ("CD3_TotalSeqB",),
        "excluded": (),
    }
    assert genes.measured.tolist() == [True, True, False, False, False, False, False]
    assert genes.known == 0.75


def test_duplicates_are_refused_where_the_build_file_says_so(reference: pd.DataFrame, coding: FeatureSpace) -> None:
    lookup = GeneLookup.build(coding, reference)
    assert map_genes(["AAA", "CCC", "x", "y"], lookup, "error").summed == 0
    with pytest.raises(
        StreamlineError, match=r"got 'AAA', 'ENSG00000000001' for 'ENSG00000000001'; say duplicates: sum"
    ):
        map_genes(["AAA", "CCC", "ENSG00000000001"], lookup, "error")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ERCC-00002", SPIKE),
        ("ERCC_00171", SPIKE),
        ("ERCC-00002.1", SPIKE),
        ("ERCC2", UNKNOWN),  # a gene
        ("ERCC6L2-AS1", UNKNOWN),
        ("ADT_CD3", ANTIBODY),
        ("adt-CD19", ANTIBODY),
        ("prot_CD45RA", ANTIBODY),
        ("CD3_TotalSeqB", ANTIBODY),
        ("CD19-TotalSeqC", ANTIBODY),
        ("IgG1_control_TotalSeqB", ANTIBODY),
        ("CD4_TotalA", ANTIBODY),
        ("Hashtag1", ANTIBODY),
        ("Hashtag_12_TotalA", ANTIBODY),
        ("CD8-ADT", ANTIBODY),
        ("HTO-3", ANTIBODY),
        ("CD3", UNKNOWN),
        ("ADTRP", UNKNOWN),
        ("PROTOR", UNKNOWN),
        ("TOTALA", UNKNOWN),
        ("HTOR", UNKNOWN),
    ],
)
def test_what_is_no_gene_is_told_by_its_name(
    name: str, code: int, reference: pd.DataFrame, coding: FeatureSpace
) -> None:
    assert GeneLookup.build(coding, reference).code(name) == code
    union = feature_space(spec(), None, [["A", name]])
    assert union.var.index.tolist() == (["A"] if code in (SPIKE, ANTIBODY) else ["A", name])


def test_what_a_table_knows_is_a_gene_whatever_its_name() -> None:
    table = read_reference(b"ENSG00000000001,ADT-1,3,100,protein_coding\n")
    space = feature_space(spec(), table, [])
    assert GeneLookup.build(space, table).code("ADT-1") == 0


def test_no_study_is_refused_for_its_spike_ins(reference: pd.DataFrame, coding: FeatureSpace) -> None:
    genes = map_genes(["AAA", *(f"ERCC-{i:05d}" for i in range(92))], GeneLookup.build(coding, reference))
    assert genes.known == 1
    check_matched(genes, coding, 0.9)


CASES = b"""\
ENSMUSG00000000001,Cd3e,3,100,protein_coding
ENSMUSG00000000002,Trp53,1,200,protein_coding
ENSMUSG00000000003,Zfp1,1,300,protein_coding
ENSMUSG00000000004,ZFP1,1,400,protein_coding
ENSMUSG00000000005,C1orf7,1,500,protein_coding
"""


@pytest.mark.parametrize(
    ("name", "exact", "capitals", "ignore"),
    [
        ("Cd3e", 0, 0, 0),
        ("CD3E", UNKNOWN, 0, 0),
        ("cd3e", UNKNOWN, UNKNOWN, 0),
        ("TRP53", UNKNOWN, 1, 1),
        ("Zfp1", 2, 2, 2),
        ("ZFP1", 3, 3, 3),  # exact before any other case
        ("zfp1", UNKNOWN, UNKNOWN, AMBIGUOUS),
        ("C1ORF7", UNKNOWN, 4, 4),
        ("ensmusg00000000002", UNKNOWN, UNKNOWN, 1),
        ("CD3", UNKNOWN, UNKNOWN, UNKNOWN),
        ("Cd3e-1", UNKNOWN, UNKNOWN, UNKNOWN),
    ],
)
def test_case(name: str, exact: int, capitals: int, ignore: int) -> None:
    table = read_reference(CASES)
    lookup = GeneLookup.build(feature_space(spec(), table, []), table)
    codes = [lookup.code(name, GeneNames(case=case)) for case in ("exact", "capitals", "ignore")]
    assert codes == [exact, capitals, ignore]
    assert lookup.code(name) == exact
    if AMBIGUOUS in codes:
        assert lookup.candidate_ids(name) == ("ENSMUSG00000000003", "ENSMUSG00000000004")


@pytest.mark.parametrize(
    ("overrides", "name", "code"),
    [
        ({"SHARED": "ENSG00000000003"}, "SHARED", C),
        ({"SHARED": "AAA"}, "SHARED", A),
        ({"SHARED": "ENSG00000000001.9"}, "SHARED", A),
        ({"AAA": "CCC"}, "AAA", C),  # over what the tables say
        ({"AAA": None}, "AAA", EXCLUDED),
        ({"AAA": None}, "ENSG00000000001", A),  # a rule is for a name
        ({"new": "BBB-1"}, "new", OTHER),
        ({"ERCC-00002": "AAA"}, "ERCC-00002", A),
    ],
)
def test_overrides(
    overrides: dict[str, str | None], name: str, code: int, reference: pd.DataFrame, coding: FeatureSpace
) -> None:
    lookup = GeneLookup.build(coding, reference, read_synonyms(SYNONYMS))
    rules = GeneNames(overrides=overrides)
    assert lookup.code(name, rules) == code
    assert map_genes([name, "x"], lookup, "sum", rules).matched == (code >= 0)


@pytest.mark.parametrize(("gene", "why"), [("nothing", "which is none"), ("PAIR", "which stands for several genes")])
def test_overrides_name_a_gene(gene: str, why: str, reference: pd.DataFrame, coding: FeatureSpace) -> None:
    lookup = GeneLookup.build(coding, reference)
    with pytest.raises(StreamlineError, match=rf"genes.overrides.x: expected the id or symbol.* got '{gene}', {why}"):
        map_genes(["x"], lookup, "sum", GeneNames(overrides={"x": gene}))


def test_ambiguous_names_are_refused_where_the_build_file_says_so(
    reference: pd.DataFrame, coding: FeatureSpace
) -> None:
    lookup = GeneLookup.build(coding, reference, read_synonyms(SYNONYMS))
    names = ["AAA", "SHARED", "PAIR", "SHARED"]
    assert map_genes(names, lookup).ambiguous == {
        "SHARED": ("ENSG00000000001", "ENSG00000000003"),
        "PAIR": ("ENSG00000000008", "ENSG00000000009"),
    }
    message = (
        r"got 2 that stand for several: 'SHARED' \(ENSG00000000001 or ENSG00000000003\); 'PAIR' \(.*"
        r"say which is meant \(genes: \{overrides: \{<name>: <id>\}\}\), or drop them"
    )
    with pytest.raises(StreamlineError, match=message):
        map_genes(names, lookup, "sum", GeneNames(ambiguous="error"))
    settled = GeneNames(overrides={"SHARED": "AAA", "PAIR": None}, ambiguous="error")
    assert map_genes(names, lookup, "sum", settled).matched == 3


def test_many_candidates_are_counted() -> None:
    table = read_reference(b"".join(b"ENSG%011d,Y_RNA,1,1,misc_RNA\n" % i for i in range(20)))
    genes = map_genes(["Y_RNA"], GeneLookup.build(feature_space(spec(), table, []), table))
    assert genes.ambiguous["Y_RNA"] == (*(f"ENSG{i:011d}" for i in range(8)), "12 more")


def test_only_ids_are_taken_where_the_schema_has_ids(reference: pd.DataFrame, coding: FeatureSpace) -> None:
    lookup, rules = GeneLookup.build(coding, reference), GeneNames(ensembl=True)
    names = ["ENSG00000000001.3", "ENSG00000000003", "ERCC-00002", "FBgn0000001", "WBGene00000001"]
    assert map_genes(names, lookup, "sum", rules).matched == 2
    with pytest.raises(
        StreamlineError, match=r"expected the Ensembl ids of genes.* got 2 other names: 'AAA', 'MT-CO1'"
    ):
        map_genes([*names, "AAA", "MT-CO1"], lookup, "sum", rules)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_exact_list_of_ids(pack: type[bytes]) -> None:
    table = read_reference(pack(b"ENSG00000000003.7\nENSG00000000001\n"))
    space = feature_space(spec(reference=("given",)), table, [])
    assert (space.var.index.tolist(), list(space.var.columns)) == (["ENSG00000000003", "ENSG00000000001"], [])
    lookup = GeneLookup.build(space, table)
    assert [lookup.code(n) for n in ("ENSG00000000001.2", "ENSG00000000002", "AAA")] == [1, UNKNOWN, UNKNOWN]


def test_an_exact_list_of_symbols_with_synonyms() -> None:
    table = gene_list(["HLA-A", "AAA"])
    space = feature_space(spec(reference=("HLA-A", "AAA")), table, [])
    lookup = GeneLookup.build(space, table, read_synonyms(SYNONYMS))
    names = ("AAA", "OLDA", "ALPHA", "H1", "HLA-B", "BETA")
    assert [lookup.code(n) for n in names] == [1, 1, 1, 0, UNKNOWN, UNKNOWN]


def test_lists_that_are_refused() -> None:
    with pytest.raises(SpecError, match="expected unique gene ids, got 'ENSG00000000001' twice"):
        gene_list(["ENSG00000000001.1", "ENSG00000000001.2"])
    with pytest.raises(SpecError, match="expected a reference table to go with biotypes:, got a list"):
        feature_space(spec(biotypes=("protein_coding",)), gene_list(["A"]), [])


def test_a_space_is_of_one_organism() -> None:
    with pytest.raises(SpecError, match="got Ensembl ids of Homo sapiens, Mus musculus; give each its own feature"):
        feature_space(spec(), None, [["ENSG00000000001"], ["ENSMUSG00000000001"]])
    # A virus' genes come with those of its host.
    assert feature_space(spec(), None, [["ENSG00000000001", "ENSSASG00005000002"]]).organism == "Homo sapiens"


def test_no_gene(reference: pd.DataFrame, coding: FeatureSpace) -> None:
    genes = map_genes([], GeneLookup.build(coding, reference))
    assert (genes.matched, genes.padded, genes.measured.any()) == (0, 7, False)


@given(st.lists(st.sampled_from([f"G{i}" for i in range(12)]), max_size=30), st.integers(1, 10))
def test_counts_of_a_map_add_up(names: list[str], n_vars: int) -> None:
    space = FeatureSpace("x", pd.DataFrame(index=pd.Index([f"G{i}" for i in range(n_vars)], dtype=object)))
    genes = map_genes(names, GeneLookup.build(space))
    own = set(space.var.index)
    assert [own and n in own for n in names] == (genes.target >= 0).tolist()
    assert [space.var.index[t] for t in genes.target if t >= 0] == [n for n in names if n in own]
    assert genes.matched + sum(genes.dropped.values()) == len(names)
    assert genes.measured.sum() == len(own & set(names)) == genes.matched - genes.summed
    assert genes.padded == n_vars - genes.measured.sum()


def gene_map(matched: int, unknown: int) -> GeneMap:
    target = np.array([*range(matched), *[-1] * unknown], dtype=np.int32)
    dropped = {"unknown": unknown, "other biotype": 0, "ambiguous": 0}
    examples = {"summed": (), "unknown": ("x",) * bool(unknown), "other biotype": (), "ambiguous": ()}
    return GeneMap(target, 100, matched, 0, 100 - matched, dropped, examples)


@pytest.mark.parametrize(("matched", "unknown", "taken"), [(10, 90, True), (9, 91, False), (0, 0, False), (5, 0, True)])
def test_too_few_genes(matched: int, unknown: int, taken: bool, coding: FeatureSpace) -> None:
    if taken:
        check_matched(gene_map(matched, unknown), coding, 0.1)
        return
    with pytest.raises(StreamlineError, match="expected genes of the feature space 'human'"):
        check_matched(gene_map(matched, unknown), coding, 0.1)


# -- organisms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "organism"),
    [
        (["ENSG00000000001.3", "ERCC-00002"], "Homo sapiens"),
        (["ENSMUSG00000000001"], "Mus musculus"),
        (["ENSSSCG00000000001"], "Sus scrofa"),
        (["ENSGALG00000000001"], "Gallus gallus"),
        (["ENSMUSG00000000001", "ENSG00000000001"], ""),
        (["ENSXXXG00000000001"], ""),
        (["CD3E"], ""),
        ([], ""),
    ],
)
def test_organism_of_ids(names: list[str], organism: str) -> None:
    assert infer_organism(names) == organism


NO_OBS = pd.DataFrame(index=["c"])


def obs(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({k: [v, None] for k, v in columns.items()}, dtype="category")


@pytest.mark.parametrize(
    ("declared", "names", "frame"),
    [
        ("Homo sapiens", ["A"], NO_OBS),
        ("human", ["A"], NO_OBS),
        ("", ["ENSG00000000001"], NO_OBS),
        ("", ["A"], obs(organism="homo_sapiens")),
        ("", ["A"], obs(organism_ontology_term_id="NCBITaxon:9606")),
        ("", ["A"], obs(organism="unknown", organism_ontology_term_id="NCBITaxon:9606")),
    ],
)
def test_organism_that_fits(declared: str, names: list[str], frame: pd.DataFrame, coding: FeatureSpace) -> None:
    assert check_organism(coding, declared, names, frame, strict=True) == "Homo sapiens"


@pytest.mark.parametrize(
    ("declared", "names", "frame", "message"),
    [
        ("Sus scrofa", ["A"], NO_OBS, r"expected a study of Homo sapiens, .* 'human', got Sus scrofa \(uns.organism\)"),
        ("", ["ENSMUSG00000000001"], NO_OBS, r"got Mus musculus \(Ensembl ids\)"),
        ("human", ["ENSMUSG00000000001"], NO_OBS, r"got Mus musculus \(Ensembl ids\)"),
        ("", ["A"], obs(organism_ontology_term_id="NCBITaxon:9823"), r"got Sus scrofa \(obs column 'organism_onto"),
        ("", ["A"], obs(organism="Danio"), r"got Danio \(obs column 'organism'\)"),
        ("", ["A"], NO_OBS, r"neither its obs nor its gene names tell; say uns: \{organism: …\}"),
    ],
)
def test_organism_that_is_refused(
    declared: str, names: list[str], frame: pd.DataFrame, message: str, coding: FeatureSpace
) -> None:
    with pytest.raises(StreamlineError, match=message):
        check_organism(coding, declared, names, frame, strict=True)


def test_unknown_organism_is_taken_where_none_is_declared(coding: FeatureSpace) -> None:
    assert check_organism(coding, "", ["A"], NO_OBS) == ""
    anything = FeatureSpace("any", coding.var)
    assert check_organism(anything, "mouse", ["A"], NO_OBS, strict=True) == "Mus musculus"


# -- real studies -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def human(data: Path) -> tuple[GeneLookup, GeneLookup]:
    """Protein-coding genes, without and with synonyms."""
    reference = read_reference((data / "genes" / "genes_homo_sapiens.csv.gz").read_bytes())
    synonyms = read_synonyms((data / "genes" / "hgnc_complete_set.txt.gz").read_bytes())
    space = feature_space(spec(biotypes=("protein_coding",)), reference, [])
    return GeneLookup.build(space, reference), GeneLookup.build(space, reference, synonyms)


def gene_names(path: Path) -> list[str]:
    with h5py.File(path) as file:
        var = file["var"]
        return [name.decode() for name in var[var.attrs["_index"]][:]]


#: matched, summed, padded; dropped as unknown, of another biotype, ambiguous, spike-in, antibody, by the build file
REAL = {
    "pbmc_facs_zheng17": ((13486, 0, 6634, 683, 2622, 0, 0, 0, 0), (13486, 0, 6634, 683, 2622, 0, 0, 0, 0)),
    "kang18_8k": ((2468, 0, 17652, 21, 22, 0, 0, 0, 0), (2468, 0, 17652, 21, 22, 0, 0, 0, 0)),
    "liver_bcells_cellxgene_v5": ((19706, 0, 414, 768, 12913, 0, 0, 0, 0), (19706, 0, 414, 768, 12913, 0, 0, 0, 0)),
    "pbmc_stim_counts_layer": ((8078, 0, 12042, 830, 89, 18, 0, 0, 0), (8645, 4, 11479, 215, 150, 5, 0, 0, 0)),
    "pbmc_frozen_donorA_dense": ((11177, 0, 8943, 2415, 311, 36, 0, 0, 0), (12019, 8, 8109, 1433, 481, 6, 0, 0, 0)),
    "sc_celseq2": ((14915, 0, 5205, 579, 12648, 0, 62, 0, 0), (14915, 0, 5205, 579, 12648, 0, 62, 0, 0)),
    "sc_dropseq": ((11488, 0, 8632, 124, 3515, 0, 0, 0, 0), (11488, 0, 8632, 124, 3515, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("study", REAL)
def test_human_studies(study: str, data: Path, human: tuple[GeneLookup, GeneLookup]) -> None:
    names = gene_names(data / "studies" / f"{study}.h5ad")
    maps = [map_genes(names, lookup) for lookup in human]
    assert tuple((m.matched, m.summed, m.padded, *m.dropped.values()) for m in maps) == REAL[study]
    check_matched(maps[0], human[0].space, 0.5)
    expected = "" if study.startswith(("pbmc_stim", "pbmc_frozen")) else "Homo sapiens"
    assert check_organism(human[0].space, "", names, NO_OBS) == expected


def test_spike_ins_are_dropped_as_such(data: Path, human: tuple[GeneLookup, GeneLookup]) -> None:
    names = gene_names(data / "studies" / "sc_celseq2.h5ad")
    spikes = [n for n in names if n.startswith("ERCC-")]
    assert len(spikes) == 62
    assert {human[1].code(n) for n in spikes} == {SPIKE}


def test_pig_is_refused_where_an_organism_is_declared(data: Path, human: tuple[GeneLookup, GeneLookup]) -> None:
    names = gene_names(data / "refuse" / "pig_small_airway.h5ad")
    space = human[1].space
    check_matched(map_genes(names, human[1]), space, 0.9)  # its symbols alone look human
    with pytest.raises(StreamlineError, match="expected a study of Homo sapiens.*got Sus scrofa"):
        check_organism(space, "Sus scrofa", names, NO_OBS)
    with pytest.raises(StreamlineError, match="say uns: {organism: …}"):
        check_organism(space, "", names, NO_OBS, strict=True)


@pytest.mark.parametrize("study", ["paul15_myeloid_dense", "pancreas_endocrinogenesis"])
def test_mouse_symbols_are_no_human_study(study: str, data: Path, human: tuple[GeneLookup, GeneLookup]) -> None:
    genes = map_genes(gene_names(data / "studies" / f"{study}.h5ad"), human[1])
    with pytest.raises(StreamlineError, match=r"of which 0\.\d% are known \(at least 10\.0% must be\)"):
        check_matched(genes, human[1].space, 0.1)


def test_pseudoautosomal_symbols_are_settled_by_synonyms(human: tuple[GeneLookup, GeneLookup]) -> None:
    without, with_synonyms = human
    assert without.code("CD99") == AMBIGUOUS
    assert without.space.var.index[with_synonyms.code("CD99")] == "ENSG00000002586"


def test_cellxgene_organism(data: Path, human: tuple[GeneLookup, GeneLookup]) -> None:
    with h5py.File(data / "studies" / "liver_bcells_cellxgene_v5.h5ad") as file:
        frame = anndata.io.read_elem(file["obs"])
    assert check_organism(human[0].space, "", [], frame, strict=True) == "Homo sapiens"
