"""The build file: what it may say, what it becomes, and how its mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata
import fsspec
import numpy as np
import pytest
from scipy import sparse

from daodask.build.naming import GeneNames
from daodask.build.schema import SchemaColumn
from daodask.build.spec import BuildSpec, FeatureSpec, ObsRule, load_spec
from daodask.errors import SpecError, StoreNotFoundError
from daodask.format.spec import Layout
from daodask.sources.base import SourceAddress
from daodask.storage import StoreLocation

FULL = """\
features:
  - name: human
    reference: genes/human.csv.gz
    synonyms: genes/hgnc.txt.gz
    biotypes: [protein_coding, lncRNA]
    duplicates: error
    organism: Homo sapiens
    min_matched: 0.5
  - {name: mouse, reference: union}
X: {kind: counts, dtype: float32}
obs:
  cell_type: {required: true, missing: unknown}
  donor_id:
keep: [n_*]
shuffle: none
layout: {block_rows: 1000, codec: zstd, chunk_rows: 32, shard_bytes: 64MiB}
studies:
  - id: pbmc
    source: data/pbmc.h5ad
    features: human
    layer: raw
    genes: ensembl
    layers: {spliced: layers/spliced}
    obsm: [X_umap, X_p*]
    obs:
      cell_type: {from: celltype, map: {"CD19+ B": B cell, 7: seven, "n/a": null}}
      tissue: {value: blood}
      batch: {value: 3}
      donor_id: {from: [Mouse_ID, Plate_ID], join: "-"}
      sex: Sex
    uns: {organism: Homo sapiens, published: 2017-01-16, year: 2017}
  - id: heart
    source: ${HEART:-heart}/counts.bin
    format: h5ad
    features: mouse
    X: {kind: normalised}
    keep: all
"""


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "features": {"name": "human", "reference": "union"},
        "studies": [{"id": "a", "source": "a.h5ad"}],
        **changes,
    }


def study(**changes: Any) -> dict[str, Any]:
    return minimal(studies=[{"id": "a", "source": "a.h5ad", **changes}])


@pytest.fixture
def full(tmp_path: Path) -> BuildSpec:
    (tmp_path / "atlas.yaml").write_text(FULL)
    return load_spec(tmp_path / "atlas.yaml")


def test_feature_spaces(full: BuildSpec, tmp_path: Path) -> None:
    human, mouse = full.features
    assert human == FeatureSpec(
        name="human",
        reference=StoreLocation(f"{tmp_path}/genes/human.csv.gz"),
        synonyms=StoreLocation(f"{tmp_path}/genes/hgnc.txt.gz"),
        biotypes=("protein_coding", "lncRNA"),
        duplicates="error",
        organism="Homo sapiens",
        min_matched=0.5,
    )
    assert mouse == FeatureSpec("mouse", "union")


def test_schema_and_layout(full: BuildSpec) -> None:
    assert full.schema == (SchemaColumn("cell_type", True, "unknown"), SchemaColumn("donor_id"))
    assert full.layout == Layout(1000, "zstd", 32, 64 * 2**20)


def test_study(full: BuildSpec, tmp_path: Path) -> None:
    pbmc = full.studies[0]
    assert (pbmc.id, pbmc.features, pbmc.matrix, pbmc.genes) == ("pbmc", "human", "raw", "ensembl")
    assert pbmc.source == SourceAddress(StoreLocation(f"{tmp_path}/data/pbmc.h5ad"), "h5ad")
    assert (pbmc.kind, pbmc.dtype, pbmc.keep) == ("counts", "float32", ("n_*",))
    assert pbmc.layers == {"spliced": "layers/spliced"}
    assert pbmc.obsm == ("X_umap", "X_p*")
    assert pbmc.obs == (
        ObsRule("cell_type", ("celltype",), map={"CD19+ B": "B cell", 7: "seven", "n/a": None}),
        ObsRule("tissue", value="blood"),
        ObsRule("batch", value=3),
        ObsRule("donor_id", ("Mouse_ID", "Plate_ID"), join="-"),
        ObsRule("sex", ("Sex",)),
    )
    assert pbmc.uns == {"organism": "Homo sapiens", "published": "2017-01-16", "year": 2017}


def test_study_overrides_top_level(full: BuildSpec, tmp_path: Path) -> None:
    heart = full.studies[1]
    assert heart.source == SourceAddress(StoreLocation(f"{tmp_path}/heart/counts.bin"), "h5ad")
    assert (heart.kind, heart.dtype, heart.keep, heart.features) == ("normalised", "float32", ("*",), "mouse")


def test_how_names_are_read() -> None:
    features = {"name": "h", "reference": ["B", "A"], "overrides": {"x": "A", "y": None}, "ambiguous": "error"}
    genes = {"from": "ids", "symbols": "names", "overrides": {"x": "B"}, "case": "ignore"}
    studies = [{"id": "a", "source": "a.h5ad", "genes": genes}, {"id": "b", "source": "b.h5ad", "genes": "ids"}]
    spec = load_spec({"features": features, "studies": studies})
    of_space = GeneNames({"x": "A", "y": None}, "error")
    assert (spec.features[0].reference, spec.features[0].names) == (("B", "A"), of_space)
    assert [s.genes for s in spec.studies] == ["ids", "ids"]
    assert spec.studies[0].names == GeneNames({"x": "B", "y": None}, "error", "ignore", symbols="names")
    assert spec.studies[1].names == of_space


def test_a_ready_made_schema_brings_features_and_raw_counts() -> None:
    pytest.importorskip("cellxgene_ontology_guide")
    studies = [{"id": "a", "source": "a.h5ad"}, {"id": "b", "source": "b.h5ad", "layer": "X"}]
    spec = load_spec({"schema": "cellxgene", "studies": studies, "obs": {"sex": {"required": False}, "mine": {}}})
    assert spec.features == (FeatureSpec("genes", "union", names=GeneNames(ensembl=True)),)
    assert [s.matrix for s in spec.studies] == ["raw|X", "X"]
    assert all(s.names.ensembl for s in spec.studies)
    by_name = {c.name: c for c in spec.schema}
    assert (by_name["sex"].required, by_name["tissue"].required, by_name["mine"]) == (False, True, SchemaColumn("mine"))
    assert by_name["sex"].vocabulary is not None


def test_defaults() -> None:
    spec = load_spec(minimal())
    (only,) = spec.studies
    assert (only.features, only.matrix, only.kind, only.dtype, only.genes) == ("human", "X", "counts", "", "index")
    assert (only.layers, only.obsm, only.obs, only.keep, only.uns) == ({}, (), (), (), {})
    assert (spec.schema, spec.layout) == ((), Layout())


def test_relative_paths_of_a_dict_are_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_spec(minimal()).studies[0].source == SourceAddress(StoreLocation(f"{tmp_path}/a.h5ad"), "h5ad")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("a.h5ad", "memory://atlas/a.h5ad"),
        ("../other/a.h5ad", "memory://other/a.h5ad"),
        ("s3://bucket/a.h5ad", "s3://bucket/a.h5ad"),
        ("/data/a.h5ad", "/data/a.h5ad"),
        ("$FOLDER/a.h5ad", "memory://atlas/x/a.h5ad"),
        ("${FOLDER}y/a.h5ad", "memory://atlas/xy/a.h5ad"),
        ("${ABSENT:-z}/a.h5ad", "memory://atlas/z/a.h5ad"),
    ],
)
def test_paths_beside_a_remote_build_file(text: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "x")
    monkeypatch.delenv("ABSENT", raising=False)
    yaml = f"features: {{name: h, reference: union}}\nstudies: [{{id: a, source: '{text}'}}]\n"
    fsspec.filesystem("memory").pipe_file("/atlas/atlas.yaml", yaml.encode())
    source = load_spec("memory://atlas/atlas.yaml").studies[0].source
    assert isinstance(source, SourceAddress)
    assert source.location.url == url


def test_anndata_as_source() -> None:
    pytest.importorskip("daodask.sources.memory")
    adata = anndata.AnnData(sparse.csr_matrix(np.eye(3, dtype=np.float32)))
    source = load_spec(study(source=adata)).studies[0].source
    assert not isinstance(source, SourceAddress)
    assert source.n_obs == 3
    assert load_spec(study(source=source)).studies[0].source is source


def test_numbers_and_booleans_keep_their_type() -> None:
    rules = load_spec(study(obs={"a": {"value": True}, "b": {"value": 0}, "c": {"value": 1.5}})).studies[0].obs
    assert [(type(r.value), r.value) for r in rules] == [(bool, True), (int, 0), (float, 1.5)]


@pytest.mark.parametrize(
    ("value", "nbytes"), [(1000, 1000), ("64MiB", 2**26), ("1.5 kB", 1500), ("2G", 2 * 10**9), ("16", 16)]
)
def test_sizes(value: object, nbytes: int) -> None:
    assert load_spec(minimal(layout={"shard_bytes": value})).layout.shard_bytes == nbytes


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "features: expected a value, got none"),
        (minimal(features=[]), "features: expected a list with at least one entry"),
        (minimal(study=[]), "build file: unknown key 'study'; did you mean 'studies'?"),
        (minimal(studies=[]), "studies: expected a list with at least one entry"),
        (minimal(studies={"id": "a"}), "studies: expected a list"),
        (minimal(keep="al"), "keep: expected all, none or a list of patterns, got 'al'"),
        (minimal(keep=[1]), "keep: expected text or a list of texts"),
        (minimal(X={"kind": "tpm"}), "X.kind: expected one of counts, normalised, other, got 'tpm'"),
        (minimal(X={"dtype": "int8"}), "X.dtype: expected one of '', float32"),
        (minimal(layout={"codec": "gzip"}), "layout.codec: expected one of lz4, lz4hc, zstd, zstd-delta, none"),
        (minimal(layout={"block_rows": 0}), "layout.block_rows: expected a whole number of at least 1, got 0"),
        (minimal(layout={"block_rows": True}), "layout.block_rows: expected a whole number"),
        (minimal(layout={"shard_bytes": "64 apples"}), "layout.shard_bytes: expected a size such as 64MiB"),
        (minimal(obs={"dataset": {}}), "obs.dataset: 'dataset' is a column that every store has"),
        (minimal(obs={"a/b": {}}), "obs: expected a column name without '/'"),
        (minimal(obs={True: {}}), "obs: expected text as key, got True; quote it"),
        (minimal(obs={"x": {"require": True}}), "obs.x: unknown key 'require'; did you mean 'required'?"),
        (minimal(obs={"x": {"required": "yes"}}), "obs.x.required: expected true or false, got 'yes'"),
        (minimal(obs={"x": {"missing": ["?"]}}), "obs.x.missing: expected text, a finite number or a boolean"),
        (minimal(schema="cellxgen"), "schema: expected one of '', cellxgene, got 'cellxgen'"),
        (minimal(features={"reference": "union"}), "features.name: expected a value"),
        (minimal(features={"name": "a b", "reference": "union"}), "features.name: expected letters, digits"),
        (minimal(features={"name": "a"}), "features.reference: expected a value"),
        (minimal(features={"name": "a", "reference": 1}), "features.reference: expected a path or URL, got 1"),
        (
            minimal(features={"name": "a", "reference": "union", "biotypes": "lncRNA"}),
            "features.biotypes: expected a reference table to go with it, got reference: union",
        ),
        (
            minimal(features={"name": "a", "reference": ["x", "y"], "biotypes": "lncRNA"}),
            "features.biotypes: expected a reference table to go with it, got reference: ['x', 'y']",
        ),
        (
            minimal(features={"name": "a", "reference": []}),
            "features.reference: expected a list of different ids or symbols, got []",
        ),
        (
            minimal(features={"name": "a", "reference": ["x", "x"]}),
            "features.reference: expected a list of different ids or symbols",
        ),
        (minimal(features={"name": "a", "reference": [1]}), "features.reference: expected text or a list of texts"),
        (
            minimal(features={"name": "a", "reference": "union", "ambiguous": "guess"}),
            "features.ambiguous: expected one of drop, error, got 'guess'",
        ),
        (
            minimal(features={"name": "a", "reference": "union", "case": "any"}),
            "features.case: expected one of exact, capitals, ignore, got 'any'",
        ),
        (
            minimal(features={"name": "a", "reference": "union", "overrides": {"x": 1}}),
            "features.overrides.x: expected the id or symbol of a gene, or null to drop the name, got 1",
        ),
        (study(genes={"column": "x"}), "studies[0].genes: unknown key 'column'"),
        (study(genes={"overrides": ["x"]}), "studies[0].genes.overrides: expected a mapping"),
        (
            study(layer="raw|counts"),
            "studies[0].layer: expected X, raw or layers/<name> (layers/counts?), got 'counts'",
        ),
        (study(layers={"a": "raw|X"}), "studies[0].layers.a: expected X, raw or layers/<name>"),
        (
            minimal(features=[{"name": "a", "reference": "union", "duplicates": "add"}]),
            "features[0].duplicates: expected one of sum, error, got 'add'",
        ),
        (
            minimal(features=[{"name": "a", "reference": "union", "min_matched": 10}]),
            "features[0].min_matched: expected a number from 0 to 1, got 10",
        ),
        (
            minimal(features=[{"name": "a", "reference": "union"}] * 2),
            "features[1].name: expected unique names, got 'a' as in features[0]",
        ),
        (
            minimal(features=[{"name": n, "reference": "union"} for n in ("human", "mouse")]),
            "studies[0].features: expected the name of a feature space; known: 'human', 'mouse'",
        ),
        (study(features="humn"), "studies[0].features: unknown feature space 'humn'; did you mean 'human'?"),
        (minimal(studies=[{"id": "a", "source": "a.h5ad"}] * 2), "studies[1].id: expected unique names, got 'a'"),
        (study(id="../a"), "studies[0].id: expected letters, digits"),
        (study(id=5), "studies[0].id: expected text (quote what YAML takes for a number"),
        (study(source=None), "studies[0].source: expected a value"),
        (study(source=3), "studies[0].source: expected a path or URL, an AnnData or a Source, got 3"),
        (study(source="a.xlsx"), "studies[0].source: "),
        (study(format="h5"), "studies[0].format: expected one of h5ad"),
        (
            study(source="$DAODASK_NOT_SET/a.h5ad"),
            "studies[0].source: expected the environment variable DAODASK_NOT_SET",
        ),
        (study(layer="counts"), "studies[0].layer: expected X, raw or layers/<name> (layers/counts?), got 'counts'"),
        (study(layers={"a": "b"}), "studies[0].layers.a: expected X, raw or layers/<name>"),
        (study(layers={"a b": "X"}), "studies[0].layers.a b: expected letters"),
        (study(layers={"a": None}), "studies[0].layers.a: expected a value"),
        (study(genes=2), "studies[0].genes: expected text"),
        (study(obsm=[1]), "studies[0].obsm: expected text or a list of texts"),
        (study(uns={"organism": 9606}), "studies[0].uns.organism: expected text"),
        (study(uns={"a": {"b": float("nan")}}), "studies[0].uns.a.b: expected text, a finite number"),
        (
            study(obs={"cell_type": {"from": "x", "mapp": {}}}),
            "studies[0].obs.cell_type: unknown key 'mapp'; did you mean 'map'?",
        ),
        (study(obs={"dataset": "x"}), "studies[0].obs.dataset: 'dataset' is a column that every store has"),
        (study(obs={"x": 5}), "studies[0].obs.x: expected a source column, or a mapping with from: or value:, got 5"),
        (study(obs={"x": {}}), "studies[0].obs.x: expected either from: (a source column) or value:"),
        (study(obs={"x": {"from": "a", "value": 1}}), "studies[0].obs.x: expected either from:"),
        (study(obs={"x": {"from": []}}), "studies[0].obs.x.from: expected a source column or several"),
        (study(obs={"x": {"from": ["a", "b"], "join": 1}}), "studies[0].obs.x.join: expected text, got 1"),
        (study(obs={"x": {"value": 1, "map": {1: 2}}}), "studies[0].obs.x.map: expected from: to go with it"),
        (study(obs={"x": {"from": "a", "map": ["b"]}}), "studies[0].obs.x.map: expected a mapping"),
        (study(obs={"x": {"from": "a", "map": {"b": [1]}}}), "studies[0].obs.x.map.b: expected text"),
    ],
)
def test_mistakes_are_named_by_their_path(document: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAODASK_NOT_SET", raising=False)
    with pytest.raises(SpecError, match="^" + re.escape(message)):
        load_spec(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "build file: expected a mapping with schema, features, X,"),
        ("studies: []\nstudies: []\n", r"line 2: expected YAML: key 'studies' is given twice"),
        ("a: [1\nb: 2", r"line 2: expected YAML"),
        ("a: !!python/object:os.system {}", r"line 1: expected YAML: could not determine a constructor"),
        (b"a: \xff", "expected YAML in UTF-8"),
    ],
)
def test_what_is_not_yaml_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "atlas.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError, match=message):
        load_spec(path)


def test_no_build_file(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"expected a file at .*atlas\.yaml, found none"):
        load_spec(tmp_path / "atlas.yaml")
