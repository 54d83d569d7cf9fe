"""Stores as studies of a build: merged, laid out anew, mapped onto other genes; and datasets as sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import fsspec
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import write_elem
from pandas.testing import assert_frame_equal

import daodask
from daodask.build.spec import load_spec
from daodask.errors import SourceError, SpecError
from daodask.sources import detect_format, open_source
from daodask.sources.base import Source, SourceAddress
from daodask.sources.dao import DaoSource
from daodask.sources.fingerprint import fingerprint_location
from daodask.storage import StoreLocation
from daodask.store import Store
from daodask.testing import coordinate_adata, random_store


def merge(url: Path, *entries: dict[str, Any], reference: object = "union", **top: Any) -> Store:
    features = {"name": "genes", "reference": reference, "min_matched": 0}
    spec = {"features": features, "studies": list(entries), **top}
    report = daodask.build_store(spec, url)
    assert report.ok, str(report)
    return daodask.open_store(url)


@pytest.fixture
def first(tmp_path: Path) -> Store:
    return random_store(tmp_path / "first", (70, 0, 33))


@pytest.fixture
def second(tmp_path: Path, first: Store) -> Store:
    """A store on the same genes, of a study that measured 24 of them, with facts of several kinds and floats."""
    study = {
        "id": "study0",
        "source": coordinate_adata(40, 24, first=500),
        "X": {"dtype": "float32"},
        "layers": {"half": "layers/half"},
        "obsm": ["*"],
        "keep": "all",
        "uns": {"title": "T", "nested": {"k": [1, "v"]}},
    }
    return merge(tmp_path / "second", study, reference={"store": str(tmp_path / "first")})


def test_two_stores_merged_are_as_one(tmp_path: Path, first: Store, second: Store) -> None:
    merged = merge(
        tmp_path / "merged",
        {"store": str(tmp_path / "first")},
        {"store": str(tmp_path / "second"), "prefix": "b_"},
        reference={"store": str(tmp_path / "first")},
        layout={"block_rows": 50, "codec": "zstd"},
    )
    assert merged.datasets.index.tolist() == ["study0", "study1", "study2", "b_study0"]
    assert merged.features.hash == first.features.hash
    found, a, b = merged.to_anndata(), first.to_anndata(), second.to_anndata()
    for matrix in (None, "half"):
        rows, top, bottom = (x.X if matrix is None else x.layers[matrix] for x in (found, a, b))
        assert (rows != sp.vstack([top, bottom])).nnz == 0
    np.testing.assert_array_equal(found.obsm["place"], np.vstack([a.obsm["place"], b.obsm["place"]]))
    assert found.obs["dataset"].tolist() == [*a.obs["dataset"], *(f"b_{name}" for name in b.obs["dataset"])]
    columns = ["row", "cell_type", "n_counts", "score", "odd", "note"]
    expected = pd.concat([a.obs[columns].astype(object), b.obs[columns].astype(object)])
    assert_frame_equal(found.obs[columns].astype(object), expected)
    measured = {name: int(columns.sum()) for name, columns in merged.measured.items()}
    assert measured == {"study0": 32, "study2": 32, "b_study0": 24}


def test_values_and_facts_are_as_they_were_stored(tmp_path: Path, second: Store) -> None:
    merged = merge(tmp_path / "merged", {"store": str(tmp_path / "second"), "rename": {"study0": "other"}})
    before, after = second.snapshot.dataset["study0"], merged.snapshot.dataset["other"]
    assert [(m.name, m.kind, m.dtype, m.nnz) for m in after.matrices] == [
        ("X", "counts", "float32", before.matrices[0].nnz),
        ("layers/half", "other", "float32", before.matrices[1].nnz),
    ]
    assert after.uns == before.uns == {"title": "T", "nested": {"k": [1, "v"]}}
    assert after.columns == before.columns
    assert after.obsm == before.obsm
    assert after.source["digest"] == before.checksum
    # A union is of the genes that are measured: the other eight were none of the study's.
    assert merged.n_vars == 24


def test_other_genes_in_another_order(tmp_path: Path, first: Store) -> None:
    genes = ["gene31", "gene2", "gene40", "gene7"]
    merged = merge(tmp_path / "merged", {"store": str(tmp_path / "first"), "datasets": ["study2"]}, reference=genes)
    expected = first.subset(dataset="study2").to_anndata().X[:, [31, 2, 7]].toarray()
    found = merged.to_anndata().X.toarray()
    np.testing.assert_array_equal(found[:, [0, 1, 3]], expected)
    assert not found[:, 2].any()
    assert merged.measured["study2"].tolist() == [True, True, False, True]


def test_the_same_again_is_unchanged_and_reads_no_matrix(
    tmp_path: Path, first: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"features": {"name": "genes", "reference": "union"}, "studies": [{"store": str(tmp_path / "first")}]}
    assert [s.status for s in daodask.build_store(spec, tmp_path / "merged").studies] == ["built"] * 3
    monkeypatch.setattr(DaoSource, "read_matrix", None)
    report = daodask.build_store(spec, tmp_path / "merged")
    assert [s.status for s in report.studies] == ["unchanged"] * 3


def test_a_snapshot_of_old(tmp_path: Path, first: Store) -> None:
    study = {"id": "late", "source": coordinate_adata(5), "keep": "all"}
    reference = {"store": str(tmp_path / "first")}
    spec = {"features": {"name": "genes", "reference": reference}, "studies": [study]}
    assert daodask.build_store(spec, tmp_path / "first").ok
    entry = {"store": str(tmp_path / "first")}
    assert len(merge(tmp_path / "new", entry).datasets) == 4
    assert len(merge(tmp_path / "old", {**entry, "snapshot": 1}).datasets) == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"store": "none"}, r"studies\[0\].store: expected a daodask store at .*none"),
        ({"store": "first", "snapshot": 7}, r"studies\[0\].store: .* has no snapshot 7"),
        ({"store": "first", "snapshot": 0}, r"studies\[0\].snapshot: expected a whole number of at least 1, got 0"),
        (
            {"store": "first", "datasets": ["study9"]},
            r"studies\[0\].datasets: the store has no dataset 'study9'; did you",
        ),
        ({"store": "first", "rename": {"x": "y"}}, r"studies\[0\].rename: the store has no dataset 'x'"),
        ({"store": "first", "prefix": "a/"}, r"studies\[0\]: id of a dataset: expected letters"),
        ({"store": "first", "features": "mouse"}, r"studies\[0\].features: unknown feature space 'mouse'"),
        ({"store": "first", "obs": {}}, r"studies\[0\]: unknown key 'obs'"),
        (
            {"source": "first", "id": "a"},
            r"studies\[0\].source: expected one study at .*first, got a daodask store; write",
        ),
    ],
)
def test_what_can_not_be_meant(tmp_path: Path, first: Store, entry: dict[str, Any], message: str) -> None:
    (tmp_path / "atlas.yaml").write_text(
        json.dumps({"features": {"name": "genes", "reference": "union"}, "studies": [entry]})
    )
    with pytest.raises(SpecError, match=message):
        load_spec(tmp_path / "atlas.yaml")


def test_ids_that_two_stores_share_are_refused(tmp_path: Path, first: Store) -> None:
    entry = {"store": str(tmp_path / "first")}
    with pytest.raises(SpecError, match=r"studies\[3\].id: expected unique names, got 'study0' as in studies\[0\]"):
        load_spec({"features": {"name": "genes", "reference": "union"}, "studies": [entry, entry]})


# -- a dataset as a source -----------------------------------------------------------------------------------------


def dataset(store: Store, name: str) -> StoreLocation:
    return store.location / store.snapshot.dataset[name].path


def test_a_dataset_is_a_source(second: Store) -> None:
    location = dataset(second, "study0")
    assert detect_format(location) == "dao"
    source = open_source(SourceAddress(location, "dao"))
    assert isinstance(source, Source)
    assert source.var("X").index.tolist() == [f"gene{j}" for j in range(24)]
    assert "measured" not in source.var("X")
    expected = coordinate_adata(40, 24, first=500)
    assert (source.read_matrix("X", 7, 33) != expected.X[7:33]).nnz == 0
    assert (source.read_matrix("layers/half", 0, 40) != expected.layers["half"]).nnz == 0
    assert source.read_matrix("X", 7, 33).shape == (26, 24)


def test_its_fingerprint_is_its_checksum_for_which_one_file_is_read(
    second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = dataset(second, "study0")
    source = DaoSource(location)
    read: list[str] = []
    monkeypatch.setattr(StoreLocation, "read", lambda self: read.append(self.name) or self.fs.cat_file(self.path))
    found = source.fingerprint()
    assert read == ["checksums.json"]
    assert found.digest == second.snapshot.dataset["study0"].checksum
    assert found.size == second.snapshot.dataset["study0"].nbytes
    assert source.fingerprint(found) is found
    assert fingerprint_location(location).digest != found.digest


def test_a_remote_dataset(second: Store) -> None:
    location = dataset(second, "study0")
    fsspec.filesystem("memory").put(location.path, "/merged/dataset", recursive=True)
    source = DaoSource(StoreLocation.parse("memory://merged/dataset"))
    assert (source.read_matrix("X", 0, 40) != coordinate_adata(40, 24, first=500).X).nnz == 0


def test_a_damaged_dataset_is_refused(second: Store) -> None:
    location = dataset(second, "study0")
    shard = location / "X/data/c/0"
    content = bytearray(shard.read())
    content[20] ^= 1
    shard.write(bytes(content))
    with pytest.raises(SourceError, match=r"does not match its checksum.*check its store with `daodask validate`"):
        DaoSource(location).read_matrix("X", 0, 40)
    (location / "checksums.json").remove()
    with pytest.raises(SourceError, match=r"expected a dataset of a daodask store at .* without checksums\.json"):
        DaoSource(location)


def test_an_anndata_that_is_no_dataset(tmp_path: Path) -> None:
    write_elem(zarr.open_group(tmp_path / "a.zarr", mode="w"), "/", anndata.AnnData(np.eye(2, dtype=np.float32)))
    with pytest.raises(SourceError, match="say format: zarr"):
        DaoSource(StoreLocation.parse(tmp_path / "a.zarr"))
