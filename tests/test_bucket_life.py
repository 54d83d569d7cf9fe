"""The life of a store in a bucket: sources, build file and store behind URLs, and in the end the same as on a disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

import daodask
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata, coordinate_counts
from daodask.vacuum import plan_vacuum

SIZES, N_VARS = (40, 23), 12
N_OBS = sum(SIZES)
SPEC = """\
features: {name: genes, reference: union}
keep: all
layout: {block_rows: 16, chunk_rows: 4, shard_bytes: 2048}
studies:
  - {id: study0, source: sources/study0.h5ad, layers: {half: layers/half}, obsm: [place]}
  - {id: study1, source: sources/study1.zarr, layers: {half: layers/half}, obsm: [place]}
"""


def write_sources(where: StoreLocation, folder: Path) -> None:
    """Write a study as h5ad, another as zarr, and a build file that has them relative to itself."""
    coordinate_adata(SIZES[0], N_VARS).write_h5ad(folder / "study0.h5ad")
    group = zarr.open_group(folder / "study1.zarr", mode="w", zarr_format=3)
    anndata.io.write_elem(group, "/", coordinate_adata(SIZES[1], N_VARS, first=SIZES[0]))
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        (where / f"sources/{path.relative_to(folder)}").write(path.read_bytes())
    (where / "atlas.yaml").write(SPEC.encode())


def content(store: StoreLocation) -> dict[str, bytes]:
    """All files of a store but its snapshots, which have the time and the place, without the tokens in their paths.

    Tokens are of what the sources' file systems tell of them.
    """
    paths = [file.path for file in store.files() if not file.path.startswith("snapshots/")]
    return {re.sub(r"\.[0-9a-f]{12}/", "/", path): (store / path).read() for path in paths}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what the same build makes on a disk."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "made").mkdir()
    where = StoreLocation.parse(folder / "life")
    write_sources(where, folder / "made")
    report = daodask.build_store(where.url + "/atlas.yaml", where / "store", progress=False)
    assert report.ok, str(report)
    return content(where / "store")


@pytest.mark.parametrize("kind", ["gcs", "s3", "seaweed"])
def test_a_store_lives_in_a_bucket(
    kind: str,
    place: Callable[[str], StoreLocation],
    reference: dict[str, bytes],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    # GCS on workers of another process, which find it by their environment; the others, which are slow, here.
    client = request.getfixturevalue("client") if kind == "gcs" else None
    where = place(kind)
    options = dict(where.options)
    (tmp_path / "made").mkdir()
    write_sources(where, tmp_path / "made")

    spec: Any = (where / "atlas.yaml").url
    if options:  # a build file's own options are those of its sources
        spec = (tmp_path / "atlas.yaml").as_posix()
        text = SPEC.replace("source: ", f"storage_options: {options}, source: {where.url}/")
        (tmp_path / "atlas.yaml").write_text(text)
    report = daodask.build_store(spec, where / "store", client=client, progress=False)
    assert report.ok, str(report)
    assert content(where / "store") == reference

    store = daodask.open_store((where / "store").url, options=options)
    expected = coordinate_counts(np.arange(N_OBS), N_VARS)
    assert (store.X.compute() != expected).nnz == 0
    assert (store.layers["half"].compute() * 2 != expected).nnz == 0
    assert store.obsm["place"].compute()[:, 0].tolist() == list(range(N_OBS))
    obs = store.obs.compute()
    assert obs["row"].tolist() == obs.index.tolist() == list(range(N_OBS))
    assert obs["note"].tolist() == [f"note {r}" for r in range(N_OBS)]

    part = store.subset("row >= 10 and odd", exclude={"cell_type": "T cell"})[:, ["gene3", "gene7"]]
    rows = [r for r in range(10, N_OBS) if r % 2 and (r % 7 == 6 or r % 3 != 1)]
    assert part.obs.index.compute().tolist() == rows
    np.testing.assert_array_equal(part.to_anndata().X.toarray(), expected[rows][:, [3, 7]].toarray())

    for dense in (False, True):
        loader = daodask.BatchLoader(store, 8, obs=["row", "note", "cell_type"], dense=dense, client=client)
        seen = []
        for batch in loader:
            X = batch.X if dense else batch.X.toarray()
            np.testing.assert_array_equal(X, expected[batch.index].toarray())
            assert batch.obs["row"].tolist() == batch.index.tolist()
            seen += batch.index.tolist()
        assert sorted(seen) == list(range(N_OBS))

    sums = daodask.pseudobulk(store, ["odd"], client=client)
    odd = np.arange(N_OBS) % 2 == 1
    by_group = pd.DataFrame(sums.X, index=sums.obs["odd"].astype(bool).to_numpy())
    np.testing.assert_array_equal(by_group.loc[True], np.asarray(expected[odd].sum(axis=0)).ravel())
    np.testing.assert_array_equal(by_group.loc[False], np.asarray(expected[~odd].sum(axis=0)).ravel())

    for name, read in (("out.h5ad", anndata.read_h5ad), ("out.zarr", anndata.read_zarr)):
        daodask.export_store(part, (where / name).url, options=options)
        (where / name).fs.get((where / name).path, str(tmp_path / name), recursive=True)
        np.testing.assert_array_equal(read(tmp_path / name).X.toarray(), expected[rows][:, [3, 7]].toarray())

    assert daodask.validate_store(where / "store", client=client).ok
    daodask.remove_datasets(where / "store", "study0")
    assert daodask.open_store(where / "store").n_obs == SIZES[1]
    assert plan_vacuum(where / "store", keep_snapshots=1).garbage == ()  # it is too young
    removed = plan_vacuum(where / "store", keep_snapshots=1, grace=timedelta(0)).run().removed
    # SeaweedFS keeps directories that were emptied, of scratch too.
    assert sorted(item.kind for item in removed if item.n_files) == ["dataset", "snapshot"]
    assert daodask.validate_store(where / "store").ok
    assert not any("/study0." in file.path for file in (where / "store").files())
