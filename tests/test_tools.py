"""Other tools open what is on disk: anndata, DuckDB, pandas and polars, none of which knows of daodask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from daodask.format.features import FeatureSpace
from daodask.store import Store
from daodask.testing import coordinate_adata, random_store

#: zarr 3.1 says so of differences.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3:UserWarning")

SIZES, N_VARS = (70, 0, 33), 32
N_OBS = sum(SIZES)


@pytest.fixture(scope="module", params=["lz4", "zstd", "zstd-delta", "none"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("tools") / "store", SIZES, n_vars=N_VARS, codec=request.param)


@pytest.fixture(scope="module")
def all_obs() -> pd.DataFrame:
    return coordinate_adata(N_OBS, N_VARS).obs


def folders(store: Store) -> Iterator[tuple[Path, int, int]]:
    """Each dataset's directory, first row and number of rows."""
    first = 0
    for info in store.dataset_infos:
        yield Path(store.location.url) / info.path, first, info.n_obs
        first += info.n_obs


def test_anndata_opens_each_dataset(store: Store) -> None:
    assert [n for _, _, n in folders(store)] == list(SIZES)
    for folder, first, n_obs in folders(store):
        found, study = anndata.read_zarr(folder), coordinate_adata(n_obs, N_VARS, first=first)
        assert isinstance(found.X, sp.csr_matrix)
        assert found.X.has_canonical_format
        np.testing.assert_array_equal(found.X.toarray(), study.X.toarray())
        np.testing.assert_array_equal(found.layers["half"].toarray(), study.layers["half"].toarray())
        np.testing.assert_array_equal(found.obsm["place"], study.obsm["place"])
        assert found.obs_names.tolist() == study.obs_names.tolist()
        assert found.var_names.tolist() == study.var_names.tolist()
        assert found.var["measured"].all()
        assert found.obs.columns.tolist() == study.obs.columns.tolist()
        for name in study.obs:
            assert plain(found.obs[name]) == plain(study.obs[name])
        assert found.obs["cell_type"].cat.categories.tolist() == study.obs["cell_type"].cat.categories.tolist()


def test_scipy_and_scanpy_compute_with_a_dataset_as_it_is(store: Store) -> None:
    folder, first, n_obs = next(folders(store))
    found, expected = anndata.read_zarr(folder), coordinate_adata(n_obs, N_VARS, first=first).X
    assert (found.X.indices.dtype, found.X.indptr.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(found.X.tocoo().toarray(), expected.toarray())
    np.testing.assert_array_equal((found.X + found.X).toarray(), 2 * expected.toarray())
    np.testing.assert_array_equal(found.X.nonzero(), expected.nonzero())
    scanpy = pytest.importorskip("scanpy")
    scanpy.pp.calculate_qc_metrics(found, percent_top=None, log1p=False, inplace=True)
    np.testing.assert_array_equal(found.obs["total_counts"], expected.sum(axis=1).A1)


def plain(values: pd.Series) -> list[Any]:
    return [None if pd.isna(v) else v for v in values]


def test_duckdb_queries_all_obs_at_once(store: Store, all_obs: pd.DataFrame) -> None:
    duckdb = pytest.importorskip("duckdb")
    every = f"'{store.location.url}/datasets/*/obs.parquet'"
    query = f"select cell_type, count(*), sum(n_counts) from {every} group by 1"  # noqa: S608
    found = {kind: (n, total) for kind, n, total in duckdb.sql(query).fetchall()}
    groups = all_obs.groupby(all_obs["cell_type"].astype(object).fillna("none"))["n_counts"]
    expected = {None if k == "none" else k: (len(g), int(g.sum())) for k, g in groups}
    assert found == expected
    odd = f"select obs_names, score from {every} where odd and row > 50 order by row"  # noqa: S608
    chosen = all_obs[all_obs["odd"] & (all_obs["row"] > 50)]
    assert duckdb.sql(odd).fetchall() == list(zip(chosen.index, plain(chosen["score"]), strict=True))


def test_duckdb_joins_feature_spaces(store: Store) -> None:
    duckdb = pytest.importorskip("duckdb")
    genes = duckdb.sql(f"select gene_id from '{store.location.url}/features/*.parquet'").fetchall()  # noqa: S608
    assert [gene for (gene,) in genes] == [f"gene{j}" for j in range(N_VARS)]


def test_pandas_reads_obs_and_genes(store: Store, all_obs: pd.DataFrame) -> None:
    frames = [pd.read_parquet(folder / "obs.parquet") for folder, _, n_obs in folders(store) if n_obs]
    obs = pd.concat(frames, ignore_index=True)
    assert obs.columns.tolist() == ["obs_names", *all_obs.columns]
    assert obs["obs_names"].tolist() == all_obs.index.tolist()
    for name in all_obs:
        assert plain(obs[name]) == plain(all_obs[name])
    assert all(isinstance(frame["cell_type"].dtype, pd.CategoricalDtype) for frame in frames)
    (features,) = (Path(store.location.url) / "features").iterdir()
    var = pd.read_parquet(features).set_index("gene_id")
    assert FeatureSpace("genes", var).hash == features.stem == store.feature_space.hash


def test_polars_scans_all_obs_at_once(store: Store, all_obs: pd.DataFrame) -> None:
    polars = pytest.importorskip("polars")
    for folder, first, n_obs in folders(store):
        found = polars.scan_parquet(folder / "obs.parquet").filter(polars.col("odd")).select("row").collect()
        assert found["row"].to_list() == [r for r in range(first, first + n_obs) if r % 2]
    whole = polars.scan_parquet(f"{store.location.url}/datasets/*/obs.parquet").select("n_counts").sum().collect()
    assert whole.item() == all_obs["n_counts"].sum()


def test_sha256sum_finds_what_checksums_say(store: Store) -> None:
    for (folder, _, _), info in zip(folders(store), store.dataset_infos, strict=True):
        text = (folder / "checksums.json").read_bytes()
        assert hashlib.sha256(text).hexdigest() == info.checksum
        stated = json.loads(text)
        there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        del there["checksums.json"]
        assert stated == {p: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for p, b in there.items()}
        assert info.nbytes == sum(map(len, there.values()))
