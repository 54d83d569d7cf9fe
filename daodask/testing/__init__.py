"""Small studies and stores for tests, of which every value says where it belongs, so that a wrong row or gene shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from daodask.types import CSR, Int64Array

if TYPE_CHECKING:
    from anndata import AnnData

    from daodask.storage import StoreLocation
    from daodask.store import Store

__all__ = ["coordinate_adata", "coordinate_counts", "random_store"]

_CELL_TYPES = ("B cell", "T cell", "Größenzelle")


def coordinate_counts(rows: Int64Array, n_vars: int, *, density: float = 0.25, seed: int = 0) -> CSR:
    """Counts of which each says its place: a non-zero of row number r and gene j is ``1 + r * n_vars + j``.

    Where the non-zeros are depends on row number and seed alone, so that any selection of rows can be made anew.

    Parameters
    ----------
    rows
        Row numbers, in any order.
    n_vars
        Genes.
    density
        Share of values that are not zero.
    seed
        Of the places.

    Returns
    -------
    csr_matrix
        int64, ``(len(rows), n_vars)``.
    """
    row = np.asarray(rows, dtype=np.uint64)[:, None]
    gene = np.arange(n_vars, dtype=np.uint64)[None, :]
    place = row * np.uint64(n_vars) + gene
    # splitmix64 of the place: as good as random, and the same for the same place.
    mixed = (place + np.uint64(seed + 1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(31)
    present = (mixed >> np.uint64(11)).astype(np.float64) < density * 2.0**53
    return sp.csr_matrix(np.where(present, place + np.uint64(1), np.uint64(0)).astype(np.int64))


def coordinate_adata(n_obs: int, n_vars: int = 32, *, first: int = 0, density: float = 0.25, seed: int = 0) -> AnnData:
    """A study of which every value says where it belongs.

    Parameters
    ----------
    n_obs, n_vars
        Cells and genes.
    first
        Number of its first row, as if studies were laid one after another.
    density, seed
        As :func:`coordinate_counts` takes them.

    Returns
    -------
    AnnData
        ``X`` as :func:`coordinate_counts` makes it; the layer ``half``, half of that; ``obsm["place"]``, the row number
        and its negative; obs with the row number as ``row`` and in the cell's name, a categorical ``cell_type`` with
        some missing, an int64 ``n_counts``, a float64 ``score`` with some missing, a boolean ``odd``, a text ``note``.
    """
    import anndata

    rows = np.arange(first, first + n_obs, dtype=np.int64)
    counts = coordinate_counts(rows, n_vars, density=density, seed=seed)
    types = np.where(rows % 7 == 6, -1, rows % len(_CELL_TYPES))
    obs = pd.DataFrame(
        {
            "row": rows,
            "cell_type": pd.Categorical.from_codes(types, categories=pd.Index(_CELL_TYPES, dtype=object)),
            "n_counts": np.asarray(counts.sum(axis=1), dtype=np.int64).ravel(),
            "score": np.where(rows % 5 == 4, np.nan, rows / 2),
            "odd": rows % 2 == 1,
            "note": pd.Series([f"note {r}" for r in rows], dtype=object),
        }
    ).set_axis(pd.Index([f"cell{r}" for r in rows], dtype=object), axis=0)
    return anndata.AnnData(
        X=counts.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=pd.Index([f"gene{j}" for j in range(n_vars)], dtype=object)),
        layers={"half": (counts / 2).astype(np.float32)},
        obsm={"place": np.stack([rows, -rows], axis=1).astype(np.float32)},
    )


def random_store(
    url: str | os.PathLike[str] | StoreLocation,
    sizes: Sequence[int] = (70, 0, 33),
    *,
    n_vars: int = 32,
    block_rows: int = 16,
    codec: str = "lz4",
    density: float = 0.25,
    seed: int = 0,
) -> Store:
    """Build a small store of studies as :func:`coordinate_adata` makes them, and open it (computes).

    Row r of the store has row number r, so that ``store.X`` equals ``coordinate_counts(range(n_obs), n_vars)``.

    Parameters
    ----------
    url
        Where the store will be; nothing may be there.
    sizes
        Cells of each study. They are called ``study0``, ``study1``, …
    n_vars
        Genes; the feature space is called ``genes``.
    block_rows, codec
        Of the layout.
    density, seed
        As :func:`coordinate_counts` takes them.
    """
    from daodask.build.run import build_store
    from daodask.errors import BuildError
    from daodask.store import open_store

    firsts = np.cumsum([0, *sizes])[:-1].tolist()
    studies = [
        {
            "id": f"study{number}",
            "source": coordinate_adata(size, n_vars, first=first, density=density, seed=seed),
            "layers": {"half": "layers/half"},
            "obsm": ["*"],
        }
        for number, (size, first) in enumerate(zip(sizes, firsts, strict=True))
    ]
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "keep": "all",
        "layout": {"block_rows": block_rows, "codec": codec, "chunk_rows": 4, "shard_bytes": 4096},
        "studies": studies,
    }
    report = build_store(spec, url)
    if not report.ok:
        raise BuildError(str(report))
    return open_store(url)
