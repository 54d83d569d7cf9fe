"""A dataset's small files: anndata reads them, with shards beside them, to what went in; always the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import zarr

from daodask.format.chunks import encode_shard, shard_bounds, shard_key
from daodask.format.codecs import CODECS
from daodask.format.groups import CSRLayout, ObsmLayout, encode_group, encode_obs_parquet
from daodask.testing import coordinate_counts

N_OBS, N_VARS = 50, 20
CODEC = CODECS["lz4"]
UNS = {"title": "Größen", "n": 3, "ok": True, "tags": ["a", "b"], "paper": {"year": 2017}}


def labels(values: list[str]) -> pd.Index:
    return pd.Index(values, dtype=object)


def obs_of(n_obs: int) -> pd.DataFrame:
    n = np.arange(n_obs)
    some = pd.array([None if i % 3 == 0 else int(i) for i in n], dtype="Int32")
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(np.where(n % 4 == 3, -1, n % 2), labels(["B", "T"])),
            "stage": pd.Categorical.from_codes(n % 2, labels(["late", "early"]), ordered=True),
            "empty": pd.Categorical.from_codes(np.full(n_obs, -1), labels([])),
            "plate": pd.Categorical.from_codes(n % 2, pd.Index([10, 2])),
            "n_counts": n.astype(np.int64) * 2**40,
            "score": np.where(n % 2, np.nan, n).astype(np.float32),
            "odd": n % 2 == 1,
            "some": some,
            "maybe": pd.array([None if i % 3 == 0 else bool(i % 2) for i in n], dtype="boolean"),
            "note": pd.Series([f"ü{i}" for i in n], dtype=object),
        }
    ).set_axis(labels([f"c{i % 7}" for i in n]), axis=0)


VAR = pd.DataFrame({"measured": np.arange(N_VARS) % 2 == 0}, index=labels([f"g{i}" for i in range(N_VARS)]))


def files_of(n_obs: int = N_OBS) -> dict[str, bytes]:
    """All files of a small dataset."""
    matrix = coordinate_counts(np.arange(n_obs), N_VARS)
    layout = CSRLayout("X", (n_obs, N_VARS), matrix.nnz, "uint16", "int32", 32, 64, 96)
    place = ObsmLayout("place", (n_obs, 2), "float32", 16)
    files = encode_group(
        obs=obs_of(n_obs),
        var=VAR,
        uns=UNS,
        matrices=(layout,),
        indptr={"X": matrix.indptr.astype(np.int64)},
        obsm=(place,),
        codec=CODEC,
    )
    for (path, dtype, shard), values in zip(layout.arrays(), (matrix.data, matrix.indices), strict=True):
        for number, (start, stop) in enumerate(shard_bounds(matrix.nnz, shard)):
            files[f"{path}/{shard_key(number)}"] = encode_shard(values[start:stop].astype(dtype), 32, shard, CODEC)
    for number, start in enumerate(range(0, n_obs, 16)):
        block = np.zeros((min(16, n_obs), 2), dtype="float32")
        block[: n_obs - start] = place_of(n_obs)[start : start + 16]
        files[f"obsm/place/c/{number}/0"] = CODEC.encode(block)
    return files


def place_of(n_obs: int) -> Any:
    return np.stack([np.arange(n_obs), -np.arange(n_obs)], axis=1).astype("float32")


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.mark.parametrize("n_obs", [0, 1, 16, N_OBS])
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_anndata_reads_what_went_in(n_obs: int, tmp_path: Path) -> None:
    adata = anndata.read_zarr(write(tmp_path, files_of(n_obs)))
    assert isinstance(adata.X, sp.csr_matrix)
    assert adata.X.dtype == np.uint16
    np.testing.assert_array_equal(adata.X.toarray(), coordinate_counts(np.arange(n_obs), N_VARS).toarray())
    np.testing.assert_array_equal(adata.obsm["place"], place_of(n_obs))
    pd.testing.assert_frame_equal(plain(adata.obs), plain(obs_of(n_obs)))
    pd.testing.assert_frame_equal(plain(adata.var), plain(VAR))
    assert {**adata.uns, "tags": list(adata.uns["tags"])} == UNS


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all text as ``object``, in whatever dtype a version of anndata hands it out."""
    columns = {}
    for name, column in frame.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            categories = column.cat.categories
            text = categories.dtype != object and pd.api.types.is_string_dtype(categories)
            text = text or not len(categories)
            columns[name] = column.cat.set_categories(categories.astype(object)) if text else column
        else:
            columns[name] = column.astype(object) if pd.api.types.is_string_dtype(column.dtype) else column
    return pd.DataFrame(columns, index=labels(list(frame.index)), columns=labels(list(frame.columns)))


def test_the_same_bytes_each_time_and_on_any_thread() -> None:
    expected = files_of()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: files_of(), range(16)))
    assert all(files == expected for files in found)


def test_what_the_user_set_for_other_files_changes_nothing() -> None:
    expected = files_of()
    with anndata.settings.override(auto_shard_zarr_v3=True):
        assert files_of() == expected


def test_paths_are_sorted_and_the_root_knows_all_its_members() -> None:
    files = encode_group(obs=obs_of(3), var=VAR, uns={}, matrices=(), indptr={}, obsm=(), codec=CODEC)
    assert list(files) == sorted(files)
    members = {path.removesuffix("/zarr.json") for path in files if path.endswith("/zarr.json")}
    buffers = {path: zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(b) for path, b in files.items()}
    root = zarr.open_consolidated(zarr.storage.MemoryStore(buffers))
    assert set(root.metadata.consolidated_metadata.flattened_metadata) == members


def test_strings_are_plain_string_arrays() -> None:
    files = files_of()
    for path in ("obs/_index", "obs/note", "obs/cell_type/categories", "var/_index"):
        assert b'"string-array"' in files[f"{path}/zarr.json"]
        assert b'"data_type": "string"' in files[f"{path}/zarr.json"]


# -- obs.parquet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_obs", "groups"), [(0, []), (1, [1]), (16, [16]), (17, [16, 1]), (N_OBS, [16, 16, 16, 2])])
def test_a_row_group_is_a_block(n_obs: int, groups: list[int]) -> None:
    metadata = pq.read_metadata(io.BytesIO(encode_obs_parquet(obs_of(n_obs), 16)))
    found = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert [n for n in found if n] == groups


def test_obs_parquet() -> None:
    obs = obs_of(N_OBS)
    data = encode_obs_parquet(obs, 16)
    assert data == encode_obs_parquet(obs, 16)
    table = pq.read_table(io.BytesIO(data))
    assert {f.name: str(f.type) for f in table.schema} == {
        "obs_names": "string",
        "cell_type": "dictionary<values=string, indices=int8, ordered=0>",
        "stage": "dictionary<values=string, indices=int8, ordered=1>",
        "empty": "dictionary<values=string, indices=int32, ordered=0>",
        "plate": "int64",
        "n_counts": "int64",
        "score": "float",
        "odd": "bool",
        "some": "int32",
        "maybe": "bool",
        "note": "string",
    }
    assert table.column("obs_names").to_pylist() == obs.index.tolist()
    for name in obs.columns:
        assert table.column(name).to_pylist() == [None if pd.isna(v) else v for v in obs[name]]
