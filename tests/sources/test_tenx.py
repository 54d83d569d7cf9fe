"""What Cell Ranger writes: HDF5 of versions 2 and 3, and mtx directories."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest

import daodask
from daodask.errors import SourceError
from daodask.sources.base import Source
from daodask.sources.tenx import MtxSource, TenxSource
from daodask.storage import StoreLocation

# cells x features; the third feature is an antibody
COUNTS = np.array([[0, 2, 7], [0, 0, 0], [1, 0, 3]], dtype=np.int32)
BARCODES = ["AAAC-1", "AAAG-1", "AAAT-1"]
IDS = ["ENSG1", "ENSG2", "CD3"]
SYMBOLS = ["NA", "B", "CD3_TotalSeqB"]
TYPES = ["Gene Expression", "Gene Expression", "Antibody Capture"]


def write_matrix(group: h5py.Group) -> None:
    group["barcodes"] = np.array(BARCODES, dtype="S")
    group["data"] = np.array([2, 7, 1, 3], dtype=np.int32)
    group["indices"] = np.array([1, 2, 0, 2], dtype=np.int64)
    group["indptr"] = np.array([0, 2, 2, 4], dtype=np.int64)
    group["shape"] = np.array([3, 3], dtype=np.int32)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "v2.h5", "w") as file:
        file.attrs["chemistry_description"] = b"Single Cell 3' v2"
        file.attrs["version"] = np.int64(2)
        file.attrs["library_ids"] = np.array([b"a"])
        group = file.create_group("mm10")
        write_matrix(group)
        group["genes"] = np.array(IDS, dtype="S")
        group["gene_names"] = np.array(SYMBOLS, dtype="S")
    return tmp_path / "v2.h5"


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "v3.h5", "w") as file:
        write_matrix(file.create_group("matrix"))
        features = file.create_group("matrix/features")
        features["id"] = IDS
        features["name"] = SYMBOLS
        features["feature_type"] = np.array(TYPES, dtype="S")
        features["genome"] = ["GRCh38", "GRCh38", ""]
    return tmp_path / "v3.h5"


def write(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(params=["", ".gz"])
def mtx(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    suffix = request.param
    lines = ["%%MatrixMarket matrix coordinate integer general", "%", "3 3 4", "2 1 2", "3 1 7", "1 3 1", "3 3 3"]
    write(tmp_path / f"matrix.mtx{suffix}", "\n".join(lines) + "\n")
    rows = zip(IDS, SYMBOLS, TYPES, strict=True)
    write(tmp_path / f"features.tsv{suffix}", "".join("\t".join(row) + "\n" for row in rows))
    write(tmp_path / f"barcodes.tsv{suffix}", "".join(f"{b}\n" for b in BARCODES))
    return tmp_path


def tenx(path: Path) -> TenxSource:
    return TenxSource(StoreLocation.parse(path))


def test_version_2(v2: Path) -> None:
    source = tenx(v2)
    assert isinstance(source, Source)
    assert source.obs().index.tolist() == BARCODES
    assert source.obs().columns.tolist() == []
    assert source.var("X").index.tolist() == IDS
    assert source.var("X").to_dict("list") == {"symbol": SYMBOLS}
    assert source.uns() == {"chemistry_description": "Single Cell 3' v2", "version": 2, "genome": "mm10"}
    assert source.read_matrix("X", 1, 3).toarray().tolist() == [[0, 0, 0], [1, 0, 3]]
    assert source.read_matrix("X", 0, 3).dtype == np.int32


def test_version_3_takes_the_genes_of_all_features(v3: Path) -> None:
    source = tenx(v3)
    assert source.n_obs == 3
    assert source.var("X").index.tolist() == ["ENSG1", "ENSG2"]
    assert source.var("X").to_dict("list") == {"symbol": ["NA", "B"], "feature_type": ["Gene Expression"] * 2}
    assert source.uns() == {"genome": "GRCh38", "antibody_capture": ["CD3"]}
    assert source.read_matrix("X", 0, 3).toarray().tolist() == COUNTS[:, :2].tolist()


def test_mtx_takes_the_genes_of_all_features(mtx: Path) -> None:
    source = MtxSource(StoreLocation.parse(mtx))
    assert isinstance(source, Source)
    assert source.obs().index.tolist() == BARCODES
    assert source.var("X").index.tolist() == ["ENSG1", "ENSG2"]
    assert source.var("X").to_dict("list") == {"symbol": ["NA", "B"], "feature_type": ["Gene Expression"] * 2}
    assert source.read_matrix("X", 0, 3).toarray().tolist() == COUNTS[:, :2].tolist()
    assert source.read_matrix("X", 2, 3).toarray().tolist() == [[1, 0]]


def sources(v3: Path, mtx: Path, **options: str) -> list[TenxSource | MtxSource]:
    return [TenxSource(StoreLocation.parse(v3), **options), MtxSource(StoreLocation.parse(mtx), **options)]


def test_other_features_are_arrays_per_cell(v3: Path, mtx: Path) -> None:
    for source in sources(v3, mtx):
        assert source.obsm_names == ("antibody_capture",)
        assert source.read_obsm("antibody_capture", 0, 3).tolist() == [[7], [0], [3]]
        assert source.read_obsm("antibody_capture", 2, 3).tolist() == [[3]]
        assert source.uns()["antibody_capture"] == ["CD3"]
        copy = pickle.loads(pickle.dumps(source))  # noqa: S301
        assert copy.read_obsm("antibody_capture", 0, 1).tolist() == [[7]]


def test_other_features_are_dropped_or_refused_where_that_is_said(v3: Path, mtx: Path) -> None:
    for source in sources(v3, mtx, other_features="drop"):
        assert source.obsm_names == ()
        assert "antibody_capture" not in source.uns()
        assert source.read_matrix("X", 0, 3).toarray().tolist() == COUNTS[:, :2].tolist()
        with pytest.raises(SourceError, match="which has none"):
            source.read_obsm("antibody_capture", 0, 1)
    for path, opener in ((v3, TenxSource), (mtx, MtxSource)):
        with pytest.raises(SourceError, match=r"expected genes alone at .*, got 1 of 'Antibody Capture'; say"):
            opener(StoreLocation.parse(path), other_features="refuse")
        with pytest.raises(SourceError, match="expected other_features to be one of obsm, drop, refuse, got 'keep'"):
            opener(StoreLocation.parse(path), other_features="keep")


def test_a_study_of_genes_alone_is_not_refused(v2: Path) -> None:
    assert TenxSource(StoreLocation.parse(v2), other_features="refuse").obsm_names == ()


def test_features_that_are_too_many_for_a_dense_array(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "multiome.h5", "w") as file:
        group = file.create_group("matrix")
        write_matrix(group)
        del group["shape"]
        group["shape"] = [9000, 3]
        group["features/id"] = np.array(["ENSG1", *(f"chr1:{i}" for i in range(8999))], dtype="S")
        group["features/name"] = group["features/id"]
        kinds = ["Gene Expression", *["CRISPR Guide Capture"] * 600, *["Peaks"] * 8399]
        group["features/feature_type"] = np.array(kinds, dtype="S")
    source = tenx(tmp_path / "multiome.h5")
    assert source.obsm_names == ("crispr_guide_capture",)
    assert source.read_obsm("crispr_guide_capture", 0, 3).shape == (3, 600)
    assert source.uns() == {}


def test_a_build_chooses_other_features_by_pattern(v3: Path, tmp_path: Path) -> None:
    study = {"id": "a", "source": v3, "obsm": ["antibody*"]}
    spec = {"features": {"name": "g", "reference": "union"}, "studies": [study]}
    assert daodask.build_store(spec, tmp_path / "store").ok
    adata = daodask.open_store(tmp_path / "store").to_anndata()
    assert adata.obsm["antibody_capture"].tolist() == [[7], [0], [3]]
    assert adata.X.toarray().tolist() == COUNTS[:, :2].tolist()
    study["options"] = {"other_features": "refuse"}
    report = daodask.build_store(spec, tmp_path / "other")
    assert "expected genes alone at" in report.studies[0].reason


def test_mtx_of_version_2_has_genes_without_types(mtx: Path) -> None:
    (mtx / next(p.name for p in mtx.iterdir() if p.name.startswith("features"))).unlink()
    write(mtx / "genes.tsv", "".join(f"{i}\t{s}\n" for i, s in zip(IDS, SYMBOLS, strict=True)))
    source = MtxSource(StoreLocation.parse(mtx))
    assert source.var("X").to_dict("list") == {"symbol": SYMBOLS}
    assert source.read_matrix("X", 0, 3).toarray().tolist() == COUNTS.tolist()


def test_remote(v3: Path, mtx: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/tenx/v3.h5", v3.read_bytes())
    for file in mtx.glob("*.tsv*"):
        fs.pipe_file(f"/tenx/{mtx.name}/{file.name}", file.read_bytes())
    for file in mtx.glob("*.mtx*"):
        fs.pipe_file(f"/tenx/{mtx.name}/{file.name}", file.read_bytes())
    for source in (
        TenxSource(StoreLocation.parse("memory://tenx/v3.h5")),
        MtxSource(StoreLocation.parse(f"memory://tenx/{mtx.name}")),
    ):
        assert source.read_matrix("X", 2, 3).toarray().tolist() == [[1, 0]]


def test_pickled(v3: Path, mtx: Path) -> None:
    for source in (tenx(v3), MtxSource(StoreLocation.parse(mtx))):
        copy = pickle.loads(pickle.dumps(source))  # noqa: S301
        assert copy.read_matrix("X", 2, 3).toarray().tolist() == [[1, 0]]


def test_only_x(v3: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a matrix 'raw' in .*, which has 'X'"):
        tenx(v3).read_matrix("raw", 0, 1)
    with pytest.raises(SourceError, match=r"in obsm named 'X_pca' in .*, which has 'antibody_capture'"):
        tenx(v3).read_obsm("X_pca", 0, 1)
    with pytest.raises(SourceError, match="expected row bounds within 0 and 3"):
        tenx(v3).read_matrix("X", 0, 4)


def test_several_genomes_are_refused(v2: Path) -> None:
    with h5py.File(v2, "r+") as file:
        file.copy("mm10", "hg19")
    with pytest.raises(SourceError, match=r"expected one genome at .*, got hg19, mm10"):
        tenx(v2)


def test_other_hdf5_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_group("obs")
    with pytest.raises(SourceError, match=r"expected 10x HDF5 .* got HDF5 with \['obs'\]; .* format: h5ad"):
        tenx(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("shape", [3, 2], "a matrix of 3 features x 3 barcodes .* got one of 3 x 2"),
        ("barcodes", ["a"], "a matrix of 3 features x 1 barcodes"),
        ("indptr", [0, 2, 4], "expected 4 offsets in indptr"),
        ("indices", [1, 2, 0, 3], "expected indices within 0 and 2"),
        ("indptr", [0, 4, 4, 4], "expected at most 3 values in a row in /matrix of .*, got 4"),
        ("indptr", [0, 3, 2, 4], "expected an indptr that never decreases"),
        ("data", [1.0, 2.0], "expected as many data as indices"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(v3: Path, name: str, values: list[object], message: str) -> None:
    with h5py.File(v3, "r+") as file:
        del file[f"matrix/{name}"]
        file[f"matrix/{name}"] = values
    with pytest.raises(SourceError, match=message):
        tenx(v3).read_matrix("X", 0, 3)


@pytest.mark.parametrize("name", ["genes", "barcodes"])
def test_a_part_that_is_missing_is_named(v2: Path, name: str) -> None:
    with h5py.File(v2, "r+") as file:
        del file[f"mm10/{name}"]
    with pytest.raises(SourceError, match="expected"):
        tenx(v2)


@pytest.mark.parametrize("stem", ["matrix.mtx", "barcodes.tsv", "features.tsv"])
def test_a_directory_without_one_of_its_files(mtx: Path, stem: str) -> None:
    next(mtx.glob(f"{stem}*")).unlink()
    with pytest.raises(SourceError, match=rf"expected {stem}\.gz or {stem}.* a 10x directory has"):
        MtxSource(StoreLocation.parse(mtx))


def test_a_matrix_of_another_directory(mtx: Path) -> None:
    file = next(mtx.glob("barcodes*"))
    write(file, "AAAC-1\n")
    with pytest.raises(SourceError, match=r"a matrix of 3 features x 1 barcodes .* got one of 3 x 3"):
        MtxSource(StoreLocation.parse(mtx)).read_matrix("X", 0, 1)


def test_a_truncated_text(mtx: Path) -> None:
    file = next(mtx.glob("matrix*"))
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(SourceError, match=r"expected a Matrix Market file at .*, which can't be read"):
        MtxSource(StoreLocation.parse(mtx)).read_matrix("X", 0, 1)
