"""Stores that all tests of analysis look at, and what reductions run on."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask
from daodask.store import Store

SIZES = (130, 0, 1, 77)
N_VARS = 40
TYPES = ("B cell", "NK cell", "T cell", "never seen")


def counts_of(n_obs: int, seed: int) -> np.ndarray:
    """Counts of three kinds of cells; the last gene is never seen, the first in every cell."""
    generator = np.random.default_rng(seed)
    level = generator.gamma(0.5, 2.0, (3, N_VARS))
    counts = generator.poisson(level[generator.integers(3, size=n_obs)])
    counts[:, 0] += 1
    counts[:, -1] = 0
    return counts


def study(n_obs: int, seed: int) -> anndata.AnnData:
    """A study with labels of every dtype, some of them missing, and a layer of logarithms."""
    generator = np.random.default_rng(seed + 100)
    counts = counts_of(n_obs, seed).reshape(n_obs, N_VARS)
    codes = generator.integers(-1, 3, size=n_obs)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(codes, categories=pd.Index(TYPES, dtype=object)),
            "plate": generator.integers(1, 4, size=n_obs),
            "day": np.where(generator.random(n_obs) < 0.2, np.nan, generator.integers(0, 2, size=n_obs)),
            "odd": np.arange(n_obs) % 2 == 1,
        },
        index=pd.Index([f"cell{seed}_{i}" for i in range(n_obs)], dtype=object),
    )
    return anndata.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=pd.Index([f"gene{j}" for j in range(N_VARS)], dtype=object)),
        layers={"lognorm": sp.csr_matrix(np.log1p(counts / totals * 1e4).astype(np.float32))},
    )


def build(url: Any, studies: dict[str, anndata.AnnData], **spec: Any) -> Store:
    listed = [
        {"id": name, "source": source, "keep": "all", "layers": {"lognorm": "layers/lognorm"}}
        for name, source in studies.items()
    ]
    layout = {"block_rows": 16, "chunk_rows": 4, "shard_bytes": 4096}
    whole = {"features": {"name": "genes", "reference": "union"}, "layout": layout, "studies": listed, **spec}
    report = daodask.build_store(whole, url)
    assert report.ok, str(report)
    return daodask.open_store(url)


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four studies of 130, 0, 1 and 77 cells, in blocks of 16 cells and chunks of about 4."""
    studies = {f"study{i}": study(size, i) for i, size in enumerate(SIZES)}
    return build(tmp_path_factory.mktemp("atlas") / "store", studies)


@pytest.fixture(scope="session")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two studies of which each measured other genes, some both: genes 0 to 29, and 20 to 39."""
    studies = {"first": study(30, 5)[:, :30].copy(), "second": study(21, 6)[:, 20:].copy()}
    return build(tmp_path_factory.mktemp("partial") / "store", studies)


@pytest.fixture(scope="session")
def partial_shuffled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The cells of ``partial`` in one dataset, in an order that was drawn."""
    studies = {"first": study(30, 5)[:, :30].copy(), "second": study(21, 6)[:, 20:].copy()}
    return build(tmp_path_factory.mktemp("partial") / "store", studies, shuffle="global")


@pytest.fixture(params=["serial", "threads", "cluster"])
def runner(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a reduction is run on."""
    if request.param == "cluster":
        return {"client": request.getfixturevalue("client")}
    return {"threads": 1 if request.param == "serial" else 3}
