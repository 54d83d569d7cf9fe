"""What is decided before anything is done: actions, fingerprints, paths, and how one snapshot follows another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from daodask.build import plan
from daodask.build.genes import GeneLookup
from daodask.build.plan import BuildPlan, Space, StudyFacts, make_plan, with_datasets
from daodask.build.schema import SchemaColumn
from daodask.build.spec import BuildSpec, FeatureSpec, ObsRule, StudySpec
from daodask.errors import FeatureSpaceError, SelectionError, SourceError, StreamlineError
from daodask.format.features import FeatureSpace
from daodask.format.manifest import ColumnSummary, DatasetInfo, FeatureSpaceInfo, Snapshot
from daodask.format.spec import Layout
from daodask.sources.base import Fingerprint, SourceAddress
from daodask.storage import StoreLocation

STORE = StoreLocation("memory://nowhere")
GENES = ("g1", "g2", "g3")


def space(name: str = "own", genes: tuple[str, ...] = GENES, organism: str = "") -> Space:
    features = FeatureSpace(name, pd.DataFrame(index=pd.Index(list(genes), dtype=object)), organism)
    return Space(FeatureSpec(name, "union"), features, GeneLookup.build(features))


def study(name: str = "a", **changes: Any) -> StudySpec:
    return StudySpec(name, SourceAddress(StoreLocation(f"memory://sources/{name}.h5ad"), "h5ad"), "own", **changes)


def facts(**changes: Any) -> StudyFacts:
    known = StudyFacts(
        n_obs=5,
        genes={"X": ("g3", "g1")},
        columns=(ColumnSummary("cell_type", "category", 0, ("B", "T"), (2, 3)),),
        obsm=(),
        uns={},
        organisms=pd.DataFrame(index=range(1)),
        fingerprint=Fingerprint(100, "yesterday", "d1"),
    )
    return replace(known, **changes)


def build(*studies: StudySpec, **changes: Any) -> BuildSpec:
    return replace(BuildSpec((FeatureSpec("own", "union"),), studies, layout=Layout(block_rows=2)), **changes)


def planned(
    spec: BuildSpec,
    known: Mapping[str, StudyFacts | Exception] | None = None,
    snapshot: Snapshot | None = None,
    *,
    own: Space | None = None,
    replace_changed: bool = False,
) -> BuildPlan:
    looked_at = known or {s.id: facts() for s in spec.studies}
    return make_plan(STORE, spec, [own or space()], looked_at, snapshot, replace_changed=replace_changed)


def dataset(name: str, *columns: ColumnSummary, fingerprint: str = "f", features: str = "own") -> DatasetInfo:
    return DatasetInfo(name, f"datasets/{name}.1", features, 5, (0, 5), (), columns=columns, fingerprint=fingerprint)


def snapshot(*datasets: DatasetInfo, own: Space | None = None) -> Snapshot:
    features = (own or space()).features
    return Snapshot(7, "", "", "", (FeatureSpaceInfo("own", features.hash, len(features)),), datasets)


def fingerprint(spec: BuildSpec, known: StudyFacts | None = None, own: Space | None = None) -> str:
    return planned(spec, {"a": known or facts()}, own=own).todo[0].fingerprint


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_a_recipe() -> None:
    (recipe,) = planned(build(study())).todo
    assert recipe.blocks == (0, 2, 4, 5)
    assert recipe.genes["X"].target.tolist() == [2, 0]
    assert len(recipe.fingerprint) == 64
    assert re.fullmatch(r"datasets/a\.[0-9a-f]{12}", recipe.dataset_path)
    assert recipe.scratch_path == recipe.dataset_path.replace("datasets", "scratch")


def test_other_content_and_other_libraries_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def where(**changes: Any) -> str:
        return planned(build(study(**changes))).todo[0].dataset_path

    before = where()
    assert (where(), where(kind="other") == before) == (before, False)
    same = fingerprint(build(study()))
    monkeypatch.setattr(plan, "_encoders", lambda: "zarr 99")
    assert where() != before
    assert fingerprint(build(study())) == same  # what is there already stays as it is


def test_an_id_that_looks_like_a_folder() -> None:
    (recipe,) = planned(build(study("datasets"))).todo
    assert re.fullmatch(r"datasets/datasets\.[0-9a-f]{12}", recipe.dataset_path)
    assert re.fullmatch(r"scratch/datasets\.[0-9a-f]{12}", recipe.scratch_path)


MAPPED = ObsRule("cell_type", ("label",), map={"b": "B", "t": "T"})


@pytest.mark.parametrize(
    ("spec", "known", "own"),
    [
        (build(study(kind="other")), None, None),
        (build(study(dtype="float32")), None, None),
        (build(study(keep=("*",))), None, None),
        (build(study(uns={"title": "t"})), None, None),
        (build(study(obs=(MAPPED,))), None, None),
        (build(study(layers={"raw": "X"})), None, None),
        (build(study("b")), None, None),
        (build(study(), layout=Layout(block_rows=3)), None, None),
        (build(study(), layout=Layout(block_rows=2, codec="zstd")), None, None),
        (build(study(), schema=(SchemaColumn("tissue"),)), None, None),
        (build(study()), facts(fingerprint=Fingerprint(100, "yesterday", "d2")), None),
        (build(study()), facts(genes={"X": ("g1", "g3")}), None),
        (build(study()), None, space(genes=("g1", "g2", "g3", "g4"))),
        (build(study()), None, space(genes=("g2", "g1", "g3"))),
    ],
)
def test_what_changes_a_fingerprint(spec: BuildSpec, known: StudyFacts | None, own: Space | None) -> None:
    looked_at = {spec.studies[0].id: known or facts()}
    assert planned(spec, looked_at, own=own).todo[0].fingerprint != fingerprint(build(study()))


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        (build(replace(study(), source=SourceAddress(StoreLocation("gs://elsewhere/x.h5ad"), "10x"))), None),
        (build(study()), facts(fingerprint=Fingerprint(7, "today", "d1"))),
        (build(study(), features=(FeatureSpec("own", "union", min_matched=0.5),)), None),
    ],
)
def test_what_does_not_change_a_fingerprint(spec: BuildSpec, known: StudyFacts | None) -> None:
    assert fingerprint(spec, known) == fingerprint(build(study()))


def test_the_order_of_a_mapping_changes_nothing() -> None:
    other = replace(MAPPED, map={"t": "T", "b": "B"})
    assert fingerprint(build(study(obs=(other,)))) == fingerprint(build(study(obs=(MAPPED,))))


# -- actions -----------------------------------------------------------------------------------------------------------


def actions(found: BuildPlan) -> list[tuple[str, str]]:
    return [(s.id, s.action) for s in found.studies]


def test_actions() -> None:
    spec = build(study("new"), study("same"), study("changed"), study("tpm"), study("gone"), study("foreign"))
    known: dict[str, StudyFacts | Exception] = {s.id: facts() for s in spec.studies}
    known |= {"tpm": StreamlineError("not counts"), "gone": SourceError("no file")}
    known["foreign"] = facts(genes={"X": ("h1", "h2")})
    same = next(r for r in planned(spec, known).todo if r.study.id == "same")
    before = snapshot(dataset("same", fingerprint=same.fingerprint), dataset("changed"))
    found = planned(spec, known, before)
    assert actions(found) == [
        ("new", "build"),
        ("same", "unchanged"),
        ("changed", "refused"),
        ("tpm", "refused"),
        ("gone", "failed"),
        ("foreign", "refused"),
    ]
    assert [r.study.id for r in found.todo] == ["new"]
    reasons = {s.id: s.reason for s in found.studies}
    assert (reasons["new"], reasons["same"], reasons["tpm"], reasons["gone"]) == ("", "", "not counts", "no file")
    assert reasons["changed"].startswith("the store already has a dataset 'changed', made from another content")
    assert reasons["foreign"].startswith("expected genes of the feature space 'own', got 2 of which 0.0% are known")
    replacing = planned(spec, known, before, replace_changed=True)
    assert dict(actions(replacing))["changed"] == "replace"
    assert [r.study.id for r in replacing.todo] == ["new", "changed"]


TEXT = """\
build into memory://nowhere, now at snapshot 7
feature space 'own': 3 genes of Homo sapiens
layout: blocks of 2 cells, lz4, shards of 256 MiB

study  action   cells  blocks  genes matched  padded  dropped
-----  -------  -----  ------  -------------  ------  -------
a      build        5       3              2       1        1
old    refused      5       3              2       1        0
gone   failed

old: refused: the store already has a dataset 'old', made from another content, spec, feature space or layout; \
build with --replace (replace=True) to put this one in its place, or give it another id

gone: failed: no file"""


def test_text() -> None:
    known = {"a": facts(genes={"X": ("g1", "g2", "h")}), "old": facts(), "gone": SourceError("no file")}
    own = space(organism="Homo sapiens")
    spec = build(study("a"), study("old"), study("gone"))
    assert repr(planned(spec, known, snapshot(dataset("old")), own=own)) == TEXT
    assert repr(planned(spec, known)).startswith("build into memory://nowhere, now at snapshot none\n")


NUMBERS = ColumnSummary("cell_type", "int64")


def test_columns_are_compared_with_the_store_and_with_the_studies_before() -> None:
    spec, known = build(study("a"), study("b"), study("c")), {"a": facts(), "b": facts(columns=(NUMBERS,))}
    known["c"] = facts()
    assert actions(planned(spec, known)) == [("a", "build"), ("b", "refused"), ("c", "build")]
    stored = snapshot(dataset("old", NUMBERS))
    assert actions(planned(spec, known, stored)) == [("a", "refused"), ("b", "build"), ("c", "refused")]
    # A dataset that is to be replaced is no obstacle to its own successor.
    again = build(study("old"))
    assert actions(planned(again, {"old": facts()}, stored, replace_changed=True)) == [("old", "replace")]


def test_a_feature_space_of_the_name_with_other_genes() -> None:
    with pytest.raises(FeatureSpaceError, match=r"'own' has other genes \(2, hash .*\) than the build's \(3, hash"):
        planned(build(study()), snapshot=snapshot(own=space(genes=("g1", "g2"))))


# -- snapshots ---------------------------------------------------------------------------------------------------------

LABELS = ColumnSummary("cell_type", "category", 0, ("T", "NK"), (1, 4))


def test_datasets_into_a_snapshot() -> None:
    before = with_datasets(Snapshot(0, "", ""), [space().features], [dataset("a", *facts().columns), dataset("b")])
    after = with_datasets(before, [space().features], [dataset("c", LABELS), dataset("a", LABELS, fingerprint="new")])
    assert [(d.id, d.fingerprint) for d in after.datasets] == [("a", "new"), ("b", "f"), ("c", "f")]
    # Codes of earlier snapshots keep their meaning, though no cell has the label any more.
    (own,) = after.features
    assert [(c.name, c.categories, c.nullable) for c in own.obs] == [("cell_type", ("B", "T", "NK"), True)]
    assert (own.name, own.n_vars, own.hash) == ("own", 3, space().features.hash)


def test_spaces_side_by_side() -> None:
    mouse = space("mouse", ("m1",))
    one = with_datasets(snapshot(dataset("a", NUMBERS)), [mouse.features], [dataset("m", LABELS, features="mouse")])
    assert {f.name: [c.dtype for c in f.obs] for f in one.features} == {"own": ["int64"], "mouse": ["category"]}


def test_what_another_builder_made_impossible() -> None:
    with pytest.raises(FeatureSpaceError, match="meanwhile has a feature space 'own' with other genes"):
        with_datasets(snapshot(own=space(genes=("g1",))), [space().features], [dataset("a")])
    with pytest.raises(SelectionError, match="obs column 'cell_type' is int64 in 'a' but category"):
        with_datasets(snapshot(dataset("a", NUMBERS)), [space().features], [dataset("b", LABELS)])
