"""Aliases that several layers share."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

#: Row numbers, row bounds, element offsets: always int64.
Int64Array: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
AnyArray: TypeAlias = npt.NDArray[Any]

#: The one sparse type that blocks have; that of dask's chunks, daodask.sparse.CSRBlock, is one of its kind.
#: ``csr_matrix`` and not ``csr_array``: anndata, scanpy and dask's registered
#: concatenation all hand out and expect the matrix class, and dask's metas of ``csr_array`` say ``csr_matrix`` anyway.
CSR: TypeAlias = sp.csr_matrix

#: What JSON can hold, as far as uns facts and labels are concerned.
Label: TypeAlias = str | int | float | bool


class LabelSet(frozenset[str]):
    """Labels of which a store need not have all, such as the terms below one of an ontology."""

    __slots__ = ()

    def __or__(self, other: AbstractSet[Any]) -> LabelSet:
        return LabelSet(frozenset.__or__(self, other))

    def __and__(self, other: AbstractSet[Any]) -> LabelSet:
        return LabelSet(frozenset.__and__(self, other))

    def __sub__(self, other: AbstractSet[Any]) -> LabelSet:
        return LabelSet(frozenset.__sub__(self, other))
