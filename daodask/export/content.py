"""What an AnnData file of a store holds: its small parts, and the names, dtypes and sizes of its large ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from daodask.errors import SpecError, UnknownNameError, suggest
from daodask.format.spec import index_dtype
from daodask.store import Store

__all__ = ["Content", "Matrix", "content_of", "value_dtype"]

_DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class Matrix:
    """X or a layer, or an array of obsm, and the dtype that its values will have."""

    name: str
    dtype: str
    width: int


@dataclass(frozen=True, eq=False)
class Content:
    """An AnnData without its large arrays.

    Parameters
    ----------
    obs, var, uns
        As :meth:`Store.to_anndata` makes them, but that text of which some is missing is a categorical.
    matrices, obsm
        What is read row by row: X and layers, and dense arrays.
    most_values
        An upper bound of the non-zeros of any matrix.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    uns: Mapping[str, Any]
    matrices: tuple[Matrix, ...]
    obsm: tuple[Matrix, ...]
    most_values: int

    @property
    def index_dtype(self) -> str:
        """Dtype that holds every column number and every number of non-zeros."""
        return index_dtype(self.most_values, len(self.var)).name


def content_of(store: Store, layers: Sequence[str] | None, dtype: str | None) -> Content:
    """The content of an export (computes: obs is read as a whole, and nothing else but metadata)."""
    adata = store.to_anndata(lazy=True)
    names = ["X", *(f"layers/{name}" for name in _chosen(layers, adata.layers.keys()))]
    matrices = tuple(Matrix(name, value_dtype(store, name, dtype), store.n_vars) for name in names)
    return Content(
        obs=_writable(adata.obs),
        var=adata.var,
        uns=adata.uns,
        matrices=matrices,
        obsm=tuple(Matrix(n, a.dtype.name, a.shape[1]) for n, a in adata.obsm.items()),
        most_values=_most_values(store, names),
    )


def _chosen(layers: Sequence[str] | None, there: Iterable[str | None]) -> list[str]:
    # Newer versions of anndata list X among the layers, under no name.
    known = [name for name in there if name is not None]
    for name in layers or ():
        if name not in known:
            raise UnknownNameError(f"the selected datasets have no layer {name!r} in common; {suggest(name, known)}")
    return known if layers is None else list(layers)


def value_dtype(store: Store, name: str, dtype: str | None) -> str:
    """Dtype of a matrix: as the store serves it, as it is stored, or the one that is asked for.

    Raises
    ------
    SpecError
        It is no floating dtype, or one that would round a stored value.
    """
    served = store.served_dtype(name)
    if dtype is None:
        return served.name
    if dtype == "stored":
        return store.stored_dtype(name).name
    if dtype not in _DTYPES:
        raise SpecError(f"dtype: expected stored, {' or '.join(_DTYPES)}, got {dtype!r}")
    if np.dtype(dtype).itemsize < served.itemsize:
        raise SpecError(f"dtype: {dtype} would round values of {name}; say float64 or stored")
    return dtype


def _most_values(store: Store, names: Iterable[str]) -> int:
    """An upper bound of the non-zeros of any matrix: those of the whole datasets."""
    infos = [store.snapshot.dataset[i] for i in store.selection.datasets]
    return max((sum(i.matrix[name].nnz for i in infos) for name in names), default=0)


def _writable(obs: pd.DataFrame) -> pd.DataFrame:
    """The frame with text of which some is missing as labels: no encoding of AnnData has a missing text."""
    lacking = [n for n in obs.columns if pd.api.types.is_object_dtype(obs[n].dtype) and obs[n].isna().any()]
    return obs.assign(**{name: pd.Categorical(obs[name]) for name in lacking})
