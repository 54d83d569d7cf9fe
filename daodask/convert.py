"""Aligned pieces into AnnData and xarray; knows no Store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import pandas as pd
import scipy.sparse as sp

from daodask.errors import DependencyError, SpecError
from daodask.format.spec import OBS_NAMES

if TYPE_CHECKING:
    import anndata
    import dask.array as da
    import xarray as xr

    from daodask.types import AnyArray

__all__ = ["BlockKind", "compute_matrices", "to_anndata", "to_xarray"]

#: What blocks of matrices are: of :mod:`daodask.sparse`, of the package sparse (COO), or of numpy.
BlockKind: TypeAlias = Literal["csr", "coo", "dense"]


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


def to_xarray(
    *,
    X: Any,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    layers: Mapping[str, Any],
    obsm: Mapping[str, Any],
    uns: Mapping[str, Any],
    blocks: BlockKind,
) -> xr.Dataset:
    """A Dataset of aligned pieces; a name that is taken already gets what it is of before it (``var_length``)."""
    import xarray as xr

    variables: dict[str, Any] = {"X": (("obs", "var"), _in_blocks(X, blocks))}
    taken = {"obs", "var", "X"}
    for name, array in layers.items():
        variables[_free(name, "layer", taken)] = (("obs", "var"), _in_blocks(array, blocks))
    for name, array in obsm.items():
        free = _free(name, "obsm", taken)
        variables[free] = (("obs", f"{free}_dim"), array)
    coordinates: dict[str, Any] = {"obs": obs.index.to_numpy(), "var": var.index.to_numpy(dtype=object)}
    for axis, frame in (("obs", obs), ("var", var)):
        for name in frame.columns:
            coordinates[_free(str(name), axis, taken)] = (axis, _as_array(frame[name]))
    return xr.Dataset(variables, coordinates, dict(uns))


def _free(name: str, of: str, taken: set[str]) -> str:
    while name in taken:
        name = f"{of}_{name}"
    taken.add(name)
    return name


def _as_array(column: pd.Series) -> AnyArray:
    """Labels as objects, which xarray groups by; numbers that may be missing as floats."""
    import numpy as np

    if isinstance(column.dtype, np.dtype) and column.dtype != object:
        return column.to_numpy()
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    values = column.to_numpy(dtype=object, copy=True)
    values[column.isna().to_numpy()] = None
    return values


def _in_blocks(array: da.Array, kind: BlockKind) -> da.Array:
    if kind == "csr":
        return array
    if kind not in _AS:
        raise SpecError(f'expected blocks="csr", "coo" or "dense", got {kind!r}')
    blocks: Any = array
    convert = _AS[kind]
    empty = convert(sp.csr_matrix((0, 0), dtype=array.dtype))
    converted: da.Array = blocks.map_blocks(convert, dtype=array.dtype, meta=empty)
    return converted


def _as_dense(block: Any) -> AnyArray:
    values: AnyArray = block.toarray()
    return values


def _as_coo(block: Any) -> Any:
    try:
        import sparse
    except ImportError as error:
        raise DependencyError("COO blocks are of the package sparse; pip install 'daodask[xarray]'") from error
    return sparse.COO.from_scipy_sparse(block)


_AS: Final = {"coo": _as_coo, "dense": _as_dense}


def compute_matrices(arrays: Mapping[str, da.Array]) -> dict[str, Any]:
    """Compute dask arrays of row blocks together, so that what they share is read once; CSR blocks are stacked."""
    import dask

    blocks = {name: array.to_delayed().ravel().tolist() for name, array in arrays.items()}
    (computed,) = dask.compute(blocks)
    return {name: _stack(parts) for name, parts in computed.items()}


def _stack(parts: list[Any]) -> Any:
    import numpy as np

    from daodask.sparse import plain

    if len(parts) == 1:
        return plain(parts[0])
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)
