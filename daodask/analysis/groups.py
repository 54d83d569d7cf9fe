"""Groups of cells by their labels: codes within a block, and what they are called in a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from daodask.types import Int64Array

__all__ = ["GroupKey", "block_groups", "group_frame", "group_names", "sorted_keys"]

#: A label per column, ``None`` where it is missing.
GroupKey: TypeAlias = tuple[Any, ...]


def block_groups(obs: pd.DataFrame, by: Sequence[str], *, dropna: bool) -> tuple[Int64Array, tuple[GroupKey, ...]]:
    """Number of each cell's group among the groups that a block has, -1 for cells of none; and the groups' labels.

    With ``dropna`` a cell without some label is of no group; else what is missing is a label of its own. Without a
    column all cells are one group, also where there is no cell.
    """
    codes = np.zeros(len(obs), dtype=np.int64)
    keys: list[GroupKey] = [()]
    for name in by:
        own, labels = _codes(obs[name])
        if not dropna:
            own = np.where(own < 0, len(labels), own)
            labels = [*labels, None]
        joint = np.where((codes < 0) | (own < 0), -1, codes * len(labels) + own)
        present, codes = np.unique(joint, return_inverse=True)
        if len(present) and present[0] < 0:
            present, codes = present[1:], codes - 1
        keys = [(*keys[p // len(labels)], labels[p % len(labels)]) for p in present.tolist()]
    return codes.astype(np.int64, copy=False), tuple(keys)


def _codes(values: pd.Series) -> tuple[Int64Array, list[Any]]:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.codes.to_numpy().astype(np.int64), values.cat.categories.tolist()
    codes, labels = pd.factorize(values, use_na_sentinel=True)
    return codes.astype(np.int64), pd.Index(labels).tolist()


def sorted_keys(
    found: Iterable[GroupKey], by: Sequence[str], dtypes: Mapping[str, Any], *, observed: bool
) -> list[GroupKey]:
    """Groups by their categories' order, else by value; what is missing comes last.

    Unless ``observed``, there is every combination of labels, of a categorical column all its categories.
    """
    keys = set(found)
    labels = [_labels(dtypes[name], {key[i] for key in keys}) for i, name in enumerate(by)]
    if not observed:
        return list(product(*labels))
    ranks = [{label: rank for rank, label in enumerate(of)} for of in labels]
    return sorted(keys, key=lambda key: [rank[label] for rank, label in zip(ranks, key, strict=True)])


def _labels(dtype: Any, found: set[Any]) -> list[Any]:
    missing = [None] if None in found else []
    if isinstance(dtype, pd.CategoricalDtype):
        return [*dtype.categories.tolist(), *missing]
    return [*sorted(found - {None}), *missing]


def group_frame(keys: Sequence[GroupKey], by: Sequence[str], dtypes: Mapping[str, Any]) -> pd.DataFrame:
    """The groups' labels, a column each, of the store's dtypes, indexed by :func:`group_names`."""
    series = {}
    for i, name in enumerate(by):
        values, dtype = [key[i] for key in keys], dtypes[name]
        if isinstance(dtype, pd.CategoricalDtype) or None not in values:
            series[name] = pd.Series(values, dtype=dtype)
        else:  # integers and booleans that no dtype of numpy's has together with what is missing
            plain = pd.Series(values, dtype=object)
            series[name] = plain if pd.api.types.is_object_dtype(dtype) else plain.convert_dtypes()
    frame = pd.DataFrame(series, columns=list(by))
    return frame.set_axis(pd.Index(group_names(keys), dtype=object), axis=0)


def group_names(keys: Sequence[GroupKey]) -> list[str]:
    """A group's labels, joined by ``_``; numbered where two groups would have the same name."""
    names: list[str] = []
    taken: set[str] = set()
    for key in keys:
        name = plain = "_".join("nan" if label is None else str(label) for label in key) or "all"
        number = 0
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
        taken.add(name)
    return names
