"""AnnData zarr groups: both versions, every encoding, what is read of them, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daodask.errors import SourceError
from daodask.sources import _anndata, _parts, detect_format, open_source
from daodask.sources.base import PartedSource, Source, SourceAddress
from daodask.sources.zarr import ZarrSource
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata, random_store

COUNTS = np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3], [0, 0, 4]], dtype=np.int32)
ENCODINGS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def study(encode: Callable[[Any], Any] = sp.csr_matrix) -> anndata.AnnData:
    obs = pd.DataFrame(
        {"depth": [2, 0, 4, 4], "type": pd.Categorical(["a", None, "b", "a"])}, index=["zelle", "célula", "c", "細胞"]
    )
    adata = anndata.AnnData(
        encode(COUNTS),
        obs=obs,
        var=pd.DataFrame({"symbol": ["A", "B", "C"]}, index=["g1", "g2", "g3"]),
        obsm={"X_pca": np.arange(8.0).reshape(4, 2), "frame": pd.DataFrame({"a": range(4)}, index=obs.index)},
        layers={"tenfold": encode(COUNTS * 10)},
        uns={"title": "Ein Titel ü", "n": np.int64(3), "p": 0.5, "list": np.arange(3), "d": {"k": "v"}},
    )
    adata.raw = anndata.AnnData(encode(np.hstack([COUNTS, COUNTS])), obs=obs, var=pd.DataFrame(index=list("abcdef")))
    return adata


def opened(path: Path | str) -> ZarrSource:
    return ZarrSource(StoreLocation.parse(path))


def written(path: Path, version: int, adata: anndata.AnnData | None = None) -> Path:
    write_elem(zarr.open_group(path, mode="w", zarr_format=version), "/", study() if adata is None else adata)
    zarr.consolidate_metadata(path)
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_values(version: int, tmp_path: Path, encoding: str) -> None:
    source = opened(written(tmp_path / "a.zarr", version, study(ENCODINGS[encoding])))
    assert isinstance(source, Source)
    assert zarr.open_group(tmp_path / "a.zarr").metadata.zarr_format == version
    assert source.n_obs == 4
    assert source.matrix_names == ("X", "raw", "layers/tenfold")
    assert source.obs().index.tolist() == ["zelle", "célula", "c", "細胞"]
    assert source.obs()["depth"].tolist() == [2, 0, 4, 4]
    assert source.obs()["type"].cat.codes.tolist() == [0, -1, 1, 0]
    assert source.var("X").to_dict("list") == {"symbol": ["A", "B", "C"]}
    assert source.var("raw").index.tolist() == list("abcdef")
    assert source.uns() == {"title": "Ein Titel ü", "n": 3, "p": 0.5}
    assert source.obsm_names == ("X_pca",)
    assert source.read_obsm("X_pca", 1, 3).tolist() == [[2, 3], [4, 5]]
    for matrix, expected in (("X", COUNTS), ("layers/tenfold", COUNTS * 10), ("raw", np.hstack([COUNTS, COUNTS]))):
        rows = source.read_matrix(matrix, 1, 3)
        assert isinstance(rows, sp.csr_matrix)
        assert rows.dtype == np.int32
        assert rows.toarray().tolist() == expected[1:3].tolist()


def test_without_consolidated_metadata(version: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr", version)
    if version == 2:
        (path / ".zmetadata").unlink()
    else:
        metadata = json.loads((path / "zarr.json").read_text())
        del metadata["consolidated_metadata"]
        (path / "zarr.json").write_text(json.dumps(metadata))
    assert zarr.open_group(path).metadata.consolidated_metadata is None
    assert opened(path).read_matrix("raw", 2, 3).toarray().tolist() == [[1, 0, 3, 1, 0, 3]]
    assert opened(path).obs()["depth"].tolist() == [2, 0, 4, 4]


def test_the_format_is_told_by_name_or_content(version: int, tmp_path: Path) -> None:
    written(tmp_path / "a.zarr", version)
    written(tmp_path / "plain", version)
    for name in ("a.zarr", "plain"):
        location = StoreLocation.parse(tmp_path / name)
        assert detect_format(location) == "zarr"
        assert open_source(SourceAddress(location, "zarr")).n_obs == 4
    (tmp_path / "plain" / "var").rename(tmp_path / "plain" / "genes")
    with pytest.raises(SourceError, match="expected a file named"):
        detect_format(StoreLocation.parse(tmp_path / "plain"))


def test_a_remote_group_and_a_pickled_source(version: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr", version)
    fsspec.filesystem("memory").put(str(path), f"/zarrs{version}/a.zarr", recursive=True)
    source = opened(f"memory://zarrs{version}/a.zarr")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    for found in (source, copy):
        assert found.read_matrix("X", 2, 4).toarray().tolist() == [[1, 0, 3], [0, 0, 4]]
        assert found.obs()["depth"].tolist() == [2, 0, 4, 4]


def test_a_zipped_group(version: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr", version)
    shutil.make_archive(str(tmp_path / "a"), "zip", path)
    source = opened(f"zip://::{tmp_path / 'a.zip'}")
    assert source.read_matrix("X", 2, 4).toarray().tolist() == [[1, 0, 3], [0, 0, 4]]


def test_a_dataset_of_a_store_as_it_is(tmp_path: Path) -> None:
    random_store(tmp_path / "store", (20,), n_vars=8)
    (path,) = (tmp_path / "store" / "datasets").iterdir()
    source = opened(path)
    expected = coordinate_adata(20, 8)
    assert source.var("X")["measured"].tolist() == [True] * 8
    assert (source.read_matrix("X", 5, 17) != expected.X[5:17]).nnz == 0
    assert source.read_obsm("place", 0, 20).tolist() == expected.obsm["place"].tolist()
    assert source.obs()["row"].tolist() == list(range(20))


# -- old encodings -------------------------------------------------------------------------------------------------


def old_frame(group: zarr.Group, name: str, frame: pd.DataFrame) -> None:
    """A data frame as anndata 0.7 wrote it: categories in a group beside the columns, which refer to them."""
    node = group.create_group(name)
    node.attrs.update(
        {
            "encoding-type": "dataframe",
            "encoding-version": "0.1.0",
            "_index": "names",
            "column-order": list(frame.columns),
        }
    )
    put(node, "names", frame.index.to_numpy(dtype="U9"))
    for column in frame:
        if isinstance(frame[column].dtype, pd.CategoricalDtype):
            put(node, column, frame[column].cat.codes.to_numpy())
            node[column].attrs["categories"] = f"__categories/{column}"
            categories = node.require_group("__categories")
            put(categories, column, frame[column].cat.categories.to_numpy(dtype="U9"))
            categories[column].attrs["ordered"] = False
        else:
            put(node, column, frame[column].to_numpy())


def put(group: zarr.Group, name: str, values: np.ndarray) -> None:
    array = group.create_array(name, shape=values.shape, dtype=values.dtype)
    if values.size:
        array[...] = values


def test_frames_of_anndata_0_7(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    obs = pd.DataFrame({"type": pd.Categorical(["T", "B", "T", "B"]), "depth": [1, 2, 3, 4]}, index=list("wxyz"))
    old_frame(root, "obs", obs)
    old_frame(root, "var", pd.DataFrame(index=["g1", "g2", "g3"]))
    put(root, "X", COUNTS)
    source = opened(tmp_path / "old.zarr")
    assert source.obs()["type"].tolist() == ["T", "B", "T", "B"]
    assert source.obs()["type"].dtype == "category"
    assert source.obs()["depth"].tolist() == [1, 2, 3, 4]
    assert source.read_matrix("X", 2, 4).toarray().tolist() == COUNTS[2:].tolist()


def test_record_arrays_of_anndata_0_6(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    cells = [("a", 0, 2.5), ("b", -1, 0.5), ("c", 1, 1.5), ("d", 0, 0.0)]
    put(root, "obs", np.array(cells, dtype=[("index", "U4"), ("louvain", "i1"), ("depth", "f4")]))
    put(root, "var", np.array([("g1",), ("g2",), ("g3",)], dtype=[("index", "U2")]))
    put(root, "uns/louvain_categories", np.array(["T", "B"]))
    group = root.create_group("X")
    group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": [4, 3]})
    csr = sp.csr_matrix(COUNTS)
    for part in ("data", "indices", "indptr"):
        put(group, part, getattr(csr, part))
    source = opened(tmp_path / "old.zarr")
    assert source.obs().index.tolist() == ["a", "b", "c", "d"]
    assert source.obs()["louvain"].cat.categories.tolist() == ["T", "B"]
    assert source.obs()["louvain"].cat.codes.tolist() == [0, -1, 1, 0]
    assert source.var("X").index.tolist() == ["g1", "g2", "g3"]
    assert source.read_matrix("X", 0, 4).toarray().tolist() == COUNTS.tolist()


# -- properties ----------------------------------------------------------------------------------------------------


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    n_obs=st.integers(0, 9),
    n_vars=st.integers(1, 6),
    encoding=st.sampled_from(list(ENCODINGS)),
    dtype=st.sampled_from(["f4", "f8", "i8", "u2", "?"]),
    chunk=st.integers(1, 7),
    cut=st.data(),
)
def test_any_matrix(
    version: int,
    tmp_path_factory: pytest.TempPathFactory,
    n_obs: int,
    n_vars: int,
    encoding: str,
    dtype: str,
    chunk: int,
    cut: st.DataObject,
) -> None:
    values = (np.arange(n_obs * n_vars).reshape(n_obs, n_vars) * 7 % 5).astype(dtype)
    path = tmp_path_factory.mktemp("zarr") / "a.zarr"
    adata = anndata.AnnData(ENCODINGS[encoding](values))
    written(path, version, adata)
    if encoding == "dense":
        write_elem(
            zarr.open_group(path, use_consolidated=False), "X", values, dataset_kwargs={"chunks": (chunk, chunk)}
        )
        zarr.consolidate_metadata(path)
    source = opened(path)
    start = cut.draw(st.integers(0, n_obs))
    stop = cut.draw(st.integers(start, n_obs))
    rows = source.read_matrix("X", start, stop)
    assert rows.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(rows.toarray(), values[start:stop])
    assert source.obs().index.tolist() == adata.obs_names.tolist()


def test_columns_in_parts(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "PART_VALUES", 7)
    monkeypatch.setattr(_anndata, "PART_VALUES", 7)
    expected = coordinate_adata(23, 11)
    expected.X = sp.csc_matrix(expected.X)
    source = opened(written(tmp_path / "a.zarr", version, expected))
    assert isinstance(source, PartedSource)
    parts = source.matrix_parts("X")
    assert parts is not None
    assert parts.number == -(-expected.X.nnz // 7)
    found = list(source.read_parts("X", 0, parts.number))
    assert max(len(part.values) for part in found) == 7
    rows, columns, values = (np.concatenate([getattr(p, f) for p in found]) for f in ("rows", "columns", "values"))
    whole = sp.coo_matrix((values, (rows, columns)), shape=(23, 11)).tocsr()
    assert (whole != expected.X.tocsr()).nnz == 0
    assert (source.read_matrix("X", 4, 19) != expected.X.tocsr()[4:19]).nnz == 0
    assert source.matrix_parts("layers/half") is None


# -- refusals ------------------------------------------------------------------------------------------------------


def attribute(path: str, name: str, value: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        zarr.open_group(root, use_consolidated=False, mode="r+")[path].attrs[name] = value

    return edit


def replaced(path: str, values: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        group = zarr.open_group(root, use_consolidated=False, mode="r+")
        attributes = dict(group[path].attrs)
        del group[path]
        put(group, path, np.asarray(values))
        group[path].attrs.update(attributes)

    return edit


def resized(path: str, length: int) -> Callable[[Path], None]:
    """An array of any length by its metadata alone, of which nothing more is stored."""

    def edit(root: Path) -> None:
        # Names are an array, or values with a mask: versions of anndata differ.
        array = root / path / "values" if (root / path / "values").is_dir() else root / path
        file = next(f for f in (array / "zarr.json", array / ".zarray") if f.exists())
        metadata = json.loads(file.read_text())
        metadata["shape"] = [length, *metadata["shape"][1:]]
        file.write_text(json.dumps(metadata))

    return edit


def chunks_of(root: Path, path: str) -> list[Path]:
    return [f for f in (root / path).rglob("*") if f.is_file() and f.name not in ("zarr.json", ".zarray", ".zattrs")]


def lost(path: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        for file in chunks_of(root, path):
            file.unlink()

    return edit


def cut_short(path: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        for file in chunks_of(root, path):
            file.write_bytes(file.read_bytes()[:-5])

    return edit


def read_all(source: ZarrSource) -> None:
    source.obs()
    source.var("X")
    source.read_matrix("X", 0, source.n_obs)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (replaced("X/indptr", [0, 1, 1, 4]), "expected 5 offsets in indptr in /X of .*, got 4"),
    (replaced("X/indptr", [0, 3, 1, 3, 4]), "expected an indptr that never decreases in /X"),
    (replaced("X/indptr", [0, 4, 4, 4, 4]), "expected at most 3 values in a row in /X .*, got 4 within rows 0 to 4"),
    (replaced("X/indices", [1, 0, 3, 2]), "expected indices within 0 and 2 in /X of .*, got 0 to 3 within rows 0 to 4"),
    (replaced("X/indices", [1, 0, -1, 2]), "expected indices within 0 and 2 in /X of .*, got -1 to 2"),
    (
        replaced("X/indices", [1.0, 0.0, 1.0, 2.0]),
        "expected whole numbers as indices in /X .*, got values of type float64",
    ),
    (replaced("X/data", [1, 2, 3]), "expected as many data as indices in /X .*, got 3 and 4"),
    (
        replaced("X/data", np.ones(4, dtype=np.complex64)),
        "expected X of .* to be a matrix of numbers, got values of type",
    ),
    (attribute("X", "shape", [10**12, 3]), r"the 4 cells of obs and the 3 genes .*, got shape \(1000000000000, 3\)"),
    (attribute("X", "encoding-type", "coo_matrix"), "expected X of .* as csr, csc or dense, got coo"),
    (attribute("obs/depth", "encoding-type", "enigma"), "expected /obs of .* in encodings that anndata reads.*enigma"),
    (
        resized("obs/_index", 10**12),
        "expected the names of 1000000000000 rows in /obs, as declared in .*, got next to none",
    ),
    (resized("obs/depth", 10**12), r"expected 4 values in /obs/depth, as there are rows in .*, got \(1000000000000,\)"),
    (lost("X/indices"), "expected X/indices/.* in .*, with elements 0 to 4 of a sparse matrix, found none"),
    (lost("X/data"), "expected X/data/.* in .*, with elements 0 to 4 of a sparse matrix, found none; restore the file"),
    (lost("X/indptr"), "expected indptr from 0 to 4 in /X of .*, got 0 to 0"),
    (
        cut_short("X/data"),
        r"can't be read|expected the chunk X/data/0 of .* to be of \d+ bytes, as it says, got \d+; restore the file",
    ),
    (
        cut_short("obs/_index"),
        r"but /obs can't be read|expected the chunk obs/_index/.* of .* to be of \d+ bytes, as it says",
    ),
    (lambda root: shutil.rmtree(root / "X" / "indices"), "expected a whole zarr group at .*, but /X"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Groups without consolidated metadata, as damage is done to that of the members."""
    folder = tmp_path_factory.mktemp("whole")
    paths = {version: folder / f"v{version}" for version in (2, 3)}
    for version, path in paths.items():
        write_elem(zarr.open_group(path, mode="w", zarr_format=version), "/", study())
        read_all(opened(path))
    return paths


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_group_is_refused(
    version: int, whole: dict[int, Path], tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.zarr"
    shutil.copytree(whole[version], path)
    damage(path)
    with pytest.raises(SourceError, match=message) as caught:
        read_all(opened(path))
    assert "a.zarr" in str(caught.value)


def test_what_is_no_group(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a zarr group at .*none\.zarr, found nothing"):
        opened(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(SourceError, match="but the group can't be read"):
        opened(tmp_path / "empty.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w").create_group("matrix")
    with pytest.raises(SourceError, match=r"expected an AnnData with obs and var at .*, got one with \['matrix'\]"):
        opened(tmp_path / "other.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(SourceError, match="but the group can't be read"):
        opened(tmp_path / "broken.zarr")
