"""Aligned pieces into AnnData; knows no Store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import scipy.sparse as sp

from daodask.format.spec import OBS_NAMES

if TYPE_CHECKING:
    import anndata
    import dask.array as da

__all__ = ["compute_matrices", "to_anndata"]


def to_anndata(
    *,
    X: Any,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    layers: Mapping[str, Any],
    obsm: Mapping[str, Any],
    uns: Mapping[str, Any],
) -> anndata.AnnData:
    """An AnnData of aligned pieces; the obs column ``obs_names`` becomes the index, which may hold a name twice."""
    import anndata

    frame = obs.set_index(pd.Index(obs[OBS_NAMES].to_numpy(dtype=object))).drop(columns=OBS_NAMES)
    return anndata.AnnData(X=X, obs=frame, var=var, layers=dict(layers), obsm=dict(obsm), uns=dict(uns))


def compute_matrices(arrays: Mapping[str, da.Array]) -> dict[str, Any]:
    """Compute dask arrays of row blocks together, so that what they share is read once; CSR blocks are stacked."""
    import dask

    blocks = {name: array.to_delayed().ravel().tolist() for name, array in arrays.items()}
    (computed,) = dask.compute(blocks)
    return {name: _stack(parts) for name, parts in computed.items()}


def _stack(parts: list[Any]) -> Any:
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)
