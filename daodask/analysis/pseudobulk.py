"""Sums, means and variances of groups of cells, of genes, and of cells.

``measured_only=True`` leaves out of a gene's figures the cells of studies that did not measure it, whose zeros are
padding. Two studies of two cells each, of which only the first measured a gene, with 4 and 2 counts::

                        values        mean    variance
    as they are stored  4, 2, 0, 0    1.5     3.67
    measured only       4, 2          3       2

A gene that nobody measured has NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.analysis.cells import CellStatistics, GeneExtremes
from daodask.analysis.groups import group_frame, group_names, sorted_keys
from daodask.analysis.moments import GroupMoments, Moments
from daodask.analysis.reductions import CustomReduction, Reduction
from daodask.analysis.run import compute
from daodask.analysis.transforms import Transform
from daodask.errors import SpecError, suggest
from daodask.store import Store

if TYPE_CHECKING:
    import anndata
    from distributed import Client

__all__ = ["group_means", "grouped_moments", "mean_var", "pseudobulk", "reduce"]

R = TypeVar("R")
Float64Array = npt.NDArray[np.float64]

_GROUP_FUNCS: Final = ("sum", "mean", "var", "nnz", "fraction")
_FUNCS: Final = (*_GROUP_FUNCS, "min", "max")


def pseudobulk(
    store: Store,
    by: str | Sequence[str],
    func: str | Sequence[str] = "sum",
    *,
    layer: str | None = None,
    transform: Transform = None,
    measured_only: bool = False,
    ddof: int = 1,
    dropna: bool = True,
    observed: bool = True,
    sparse: bool = False,
    client: Client | None = None,
    threads: int = 0,
) -> anndata.AnnData:
    """Add up, or average, the cells of each group (computes).

    Parameters
    ----------
    store
        The cells and genes.
    by
        Obs columns, of any dtype; each combination of their labels is a group.
    func
        ``"sum"``, ``"mean"``, ``"var"``, ``"nnz"`` (cells with a value that is not zero) or ``"fraction"`` (their
        share); or several.
    layer
        The layer to read in place of ``X``.
    transform
        Of the values before: ``daodask.Normalise()`` for the logarithm of counts per 10,000.
    measured_only
        Leave the cells of studies that did not measure a gene out of its figures, instead of counting padded zeros as
        observed. A gene that no study of a group measured is NaN.
    ddof
        The variance is divided by n minus this.
    dropna
        Leave out cells without some label; else what is missing is a label of its own, NaN in obs.
    observed
        Leave out groups without a cell; else there is every combination of labels, of a categorical column all of its
        categories: their sums are 0, their means NaN.
    sparse
        Hand out CSR instead of dense arrays: for thousands of groups.
    client
        A Dask client: its workers do it, in a few tasks.
    threads
        That do it where there is no client; as many as there are processors by default.

    Returns
    -------
    AnnData
        ``(groups, genes)``, float64: ``X`` where ``func`` is one, else a layer for each. obs has the columns, in the
        store's dtypes, and ``n_cells``; groups are in the order of categories, else of values. var is the store's.

    Raises
    ------
    UnknownNameError
        There is no such obs column or layer.
    SpecError
        There is no such ``func``, or values that are no counts are to be normalised.

    Examples
    --------
    >>> daodask.pseudobulk(store, by=["donor_id", "cell_type"])  # doctest: +SKIP
    """
    import anndata
    import scipy.sparse as sp

    columns = (by,) if isinstance(by, str) else tuple(by)
    wanted = (func,) if isinstance(func, str) else tuple(func)
    moments = grouped_moments(
        store,
        columns,
        wanted,
        dropna=dropna,
        observed=observed,
        layer=layer,
        transform=transform,
        measured_only=measured_only,
        client=client,
        threads=threads,
    )
    found = {name: _figure(moments, name, ddof) for name in wanted}
    arrays = {name: sp.csr_matrix(values) if sparse else values for name, values in found.items()}
    obs = group_frame(moments.keys, columns, store.obs_dtypes)
    obs["n_cells"] = moments.n_cells
    if isinstance(func, str):
        return anndata.AnnData(arrays[func], obs=obs, var=store.var)
    return anndata.AnnData(obs=obs, var=store.var, layers=arrays)


def grouped_moments(
    store: Store,
    by: tuple[str, ...],
    funcs: Sequence[str],
    *,
    dropna: bool = True,
    observed: bool = True,
    **reading: Any,
) -> Moments:
    """What those functions need of each group, groups in order (computes).

    Parameters
    ----------
    store, by, dropna, observed
        See :func:`pseudobulk`.
    funcs
        Out of ``sum``, ``mean``, ``var``, ``nnz`` and ``fraction``.
    **reading
        As :func:`daodask.analysis.run.compute` takes them.
    """
    _require_known(funcs, _GROUP_FUNCS)
    reducer = GroupMoments(
        by,
        sums=bool({"sum", "mean", "var"} & set(funcs)),
        squares="var" in funcs,
        nnz=bool({"nnz", "fraction"} & set(funcs)),
        dropna=dropna,
    )
    moments = compute(store, reducer, **reading)
    return moments.reorder(sorted_keys(moments.keys, by, store.obs_dtypes, observed=observed))


def _require_known(funcs: Sequence[str], known: Sequence[str]) -> None:
    if not funcs:
        raise SpecError(f"expected a func out of {', '.join(known)}, got none")
    for name in funcs:
        if name not in known:
            raise SpecError(f"expected a func out of {', '.join(known)}, got {name!r}; {suggest(name, known)}")


def _figure(moments: Moments, func: str, ddof: int) -> Float64Array:
    if func == "var":
        return moments.var(ddof)
    values: Float64Array = getattr(moments, {"sum": "total", "nnz": "n_nonzero"}.get(func, func))
    return values


def group_means(
    store: Store,
    by: str | Sequence[str],
    *,
    layer: str | None = None,
    transform: Transform = None,
    measured_only: bool = False,
    dropna: bool = True,
    client: Client | None = None,
    threads: int = 0,
) -> pd.DataFrame:
    """Mean of each gene in each group of cells (computes).

    Parameters
    ----------
    store, by, layer, transform, measured_only, dropna, client, threads
        See :func:`pseudobulk`.

    Returns
    -------
    DataFrame
        float64, a row per group and a column per gene id; the index is the labels, of several columns a MultiIndex.
    """
    columns = (by,) if isinstance(by, str) else tuple(by)
    moments = grouped_moments(
        store,
        columns,
        ["mean"],
        dropna=dropna,
        layer=layer,
        transform=transform,
        measured_only=measured_only,
        client=client,
        threads=threads,
    )
    labels = group_frame(moments.keys, columns, store.obs_dtypes)
    if len(columns) == 1:
        index = pd.Index(labels[columns[0]], name=columns[0])
    elif columns:
        index = pd.MultiIndex.from_frame(labels)
    else:
        index = pd.Index(group_names(moments.keys))
    return pd.DataFrame(moments.mean, index=index, columns=store.var_names)


def mean_var(
    store: Store,
    *,
    layer: str | None = None,
    transform: Transform = None,
    measured_only: bool = False,
    ddof: int = 1,
    client: Client | None = None,
    threads: int = 0,
) -> pd.DataFrame:
    """Mean and variance of each gene, in one pass (computes).

    Parameters
    ----------
    store, layer, transform, measured_only, ddof, client, threads
        See :func:`pseudobulk`.

    Returns
    -------
    DataFrame
        A row per gene: ``mean`` and ``var`` (float64, NaN where too few cells count), ``nnz`` and ``n_cells`` (int64:
        cells with a value, cells that count).
    """
    moments = grouped_moments(
        store,
        (),
        ["mean", "var", "nnz"],
        layer=layer,
        transform=transform,
        measured_only=measured_only,
        client=client,
        threads=threads,
    )
    n = np.broadcast_to(moments.n, moments.mean.shape)[0].astype(np.int64)
    values = {"mean": moments.mean[0], "var": moments.var(ddof)[0], "nnz": moments.nnz}
    nnz = np.zeros(store.n_vars) if moments.nnz is None else moments.nnz[0]
    values |= {"nnz": nnz.astype(np.int64), "n_cells": n}
    return pd.DataFrame(values, index=store.var_names)


@overload
def reduce(
    store: Store,
    func: Reduction[Any, R],
    axis: Literal[0] = 0,
    *,
    layer: str | None = None,
    transform: Transform = None,
    measured_only: bool = False,
    ddof: int = 1,
    client: Client | None = None,
    threads: int = 0,
) -> R: ...


@overload
def reduce(
    store: Store,
    func: str,
    axis: Literal[0, 1] = 0,
    *,
    layer: str | None = None,
    transform: Transform = None,
    measured_only: bool = False,
    ddof: int = 1,
    client: Client | None = None,
    threads: int = 0,
) -> pd.Series: ...


def reduce(
    store: Store,
    func: str | Reduction[Any, Any],
    axis: Literal[0, 1] = 0,
    *,
    layer: str | None = None,
    transform: Transform = None,
    measured_only: bool = False,
    ddof: int = 1,
    client: Client | None = None,
    threads: int = 0,
) -> Any:
    """Reduce a store over its cells or its genes, or as you say (computes).

    Parameters
    ----------
    store
        The cells and genes.
    func
        ``"sum"``, ``"mean"``, ``"var"``, ``"nnz"``, ``"fraction"``, ``"min"`` or ``"max"``; or a
        :class:`~daodask.Reduction`.
    axis
        0: over cells, a value per gene. 1: over genes, a value per cell.
    layer, transform, measured_only, ddof, client, threads
        See :func:`pseudobulk`; over genes all selected ones count.

    Returns
    -------
    Series
        float64, indexed by gene ids, or by row numbers in the store as ``store.obs`` is; or what the ``Reduction``'s
        ``finalise`` returns.

    Raises
    ------
    SpecError
        There is no such ``func`` or axis, or what does not go together.
    """
    reading: dict[str, Any] = {"layer": layer, "transform": transform, "client": client, "threads": threads}
    if isinstance(func, Reduction):
        if measured_only or axis != 0:
            raise SpecError("expected a Reduction without axis and measured_only: it decides what blocks come to")
        return compute(store, CustomReduction(func, store.var), **reading)
    _require_known([func], _FUNCS)
    if axis not in (0, 1):
        raise SpecError(
            f"expected axis 0 (over cells, a value per gene) or 1 (over genes, a value per cell), got {axis}"
        )
    if axis == 1:
        if measured_only:
            raise SpecError(
                "expected measured_only with axis 0: over genes all selected ones count; select measured ones"
            )
        return _per_cell(compute(store, CellStatistics(), **reading), func, store.n_vars, ddof)
    reading["measured_only"] = measured_only
    if func in ("min", "max"):
        extremes = compute(store, GeneExtremes(), **reading)
        least, most = extremes.with_zeros(extremes.least, np.minimum), extremes.with_zeros(extremes.most, np.maximum)
        return pd.Series(least if func == "min" else most, index=store.var_names, name=func)
    moments = grouped_moments(store, (), [func], **reading)
    return pd.Series(_figure(moments, func, ddof)[0], index=store.var_names, name=func)


def _per_cell(statistics: pd.DataFrame, func: str, n_vars: int, ddof: int) -> pd.Series:
    over = {"mean": ("sum", n_vars), "var": ("squares", n_vars - ddof), "fraction": ("nnz", n_vars)}
    column, n = over.get(func, (func, 1))
    values = statistics[column] / n if n > 0 else statistics[column] * np.nan
    if not n_vars and func in ("min", "max"):
        values = values * np.nan
    return values.rename(func)
