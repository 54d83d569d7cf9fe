"""Highly variable genes, by scanpy's formulas, of moments that are reduced over the store.

Sources: ``scanpy.pp.highly_variable_genes`` of scanpy 1.11 and 1.12, whose flavours these are. ``seurat``: R. Satija et
al., Nature Biotechnology 33 (2015) 495. ``seurat_v3``: T. Stuart et al., Cell 177 (2019) 1888.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.analysis.blocks import Block
from daodask.analysis.groups import GroupKey, block_groups, sorted_keys
from daodask.analysis.moments import GroupMoments, Moments
from daodask.analysis.run import compute
from daodask.analysis.transforms import Expm1, Normalise, Transform
from daodask.errors import DependencyError, SpecError, suggest
from daodask.store import Store
from daodask.types import BoolArray

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ClippedSums", "highly_variable_genes"]

Float64Array = npt.NDArray[np.float64]

_FLAVORS: Final = ("seurat", "seurat_v3", "seurat_v3_paper")
_N_TOP_V3: Final = 2000
#: In place of the mean of a gene without a value, so that it can be divided by.
_TINY_MEAN: Final = 1e-12


@dataclass(frozen=True)
class _Cutoffs:
    """Which genes are taken: so many, or those within bounds."""

    n_top_genes: int | None
    min_mean: float
    max_mean: float
    min_disp: float
    max_disp: float

    def within(self, means: Float64Array, normalised: Float64Array) -> BoolArray:
        disp = np.nan_to_num(normalised)
        return (means > self.min_mean) & (means < self.max_mean) & (disp > self.min_disp) & (disp < self.max_disp)


def highly_variable_genes(
    store: Store,
    *,
    flavor: str = "seurat",
    n_top_genes: int | None = None,
    min_mean: float = 0.0125,
    max_mean: float = 3,
    min_disp: float = 0.5,
    max_disp: float = np.inf,
    n_bins: int = 20,
    span: float = 0.3,
    batch_key: str | None = None,
    measured_only: bool = False,
    layer: str | None = None,
    transform: Transform = Normalise(),  # noqa: B008  frozen
    client: Client | None = None,
    threads: int = 0,
) -> pd.DataFrame:
    """Find genes that vary more than others of their mean (computes); equal to scanpy's on the same cells.

    Parameters
    ----------
    store
        The cells and genes.
    flavor
        ``"seurat"``: dispersions, normalised in bins of the mean. ``"seurat_v3"`` or ``"seurat_v3_paper"``: variances
        of counts, clipped and normalised by a regression on the mean; two passes, and needs ``scikit-misc``.
    n_top_genes
        How many to take; then the bounds are of no account. 2000 by default for the latter two flavours.
    min_mean, max_mean, min_disp, max_disp
        Bounds that genes are within, for ``"seurat"``.
    n_bins
        Bins of the mean, for ``"seurat"``.
    span
        Share of genes that the local regression looks at, for the other two.
    batch_key
        Obs column: genes are found in each batch, and those of most batches taken. Cells without a batch are left out.
    measured_only
        Means and variances of a gene are of cells whose study measured it. Otherwise studies that did not count as many
        zeros, by which such a gene seems to vary: that it does tells studies apart, not cells. A gene that none has
        measured is NaN and not taken, and with ``batch_key`` it is of no account in batches that did not measure it.
    layer
        The layer to read in place of ``X``.
    transform
        What makes the logarithms of normalised counts that ``"seurat"`` is of; ``None`` where the store holds them. The
        other two flavours are of counts, and heed no transform.
    client, threads
        See :func:`daodask.pseudobulk`.

    Returns
    -------
    DataFrame
        A row per gene, with the columns of ``scanpy.pp.highly_variable_genes(…, inplace=False)``: assign them to var.

    Raises
    ------
    DependencyError
        ``scikit-misc`` is not installed.
    """
    if flavor not in _FLAVORS:
        raise SpecError(f"expected a flavor out of {', '.join(_FLAVORS)}, got {flavor!r}; {suggest(flavor, _FLAVORS)}")
    by = () if batch_key is None else (batch_key,)
    reading: dict[str, Any] = {"layer": layer, "measured_only": measured_only, "client": client, "threads": threads}
    if flavor != "seurat":
        return _seurat_v3(store, by, flavor, n_top_genes or _N_TOP_V3, span, reading)
    # Dispersions are of values before the logarithm, which therefore is not taken at all where it would be here.
    plain: Transform = replace(transform, log1p=False) if isinstance(transform, Normalise) else Expm1()
    moments = _batches(store, by, compute(store, GroupMoments(by, squares=True), transform=plain, **reading))
    cutoffs = _Cutoffs(n_top_genes, min_mean, max_mean, min_disp, max_disp)
    names = store.var_names
    if batch_key is None:
        mean, var = moments.mean[0], moments.var()[0]
        return _seurat(mean, var, n_bins, cutoffs).set_axis(names, axis=0)
    frames = []
    for i in range(len(moments.keys)):
        mean, var, seen = moments.mean[i], moments.var()[i], _there(moments.nnz)[i] > 0
        own = _seurat(mean[seen], var[seen], n_bins, cutoffs).set_axis(np.flatnonzero(seen), axis=0)
        taken = own.pop("highly_variable").reindex(np.arange(len(names)), fill_value=False)
        own = own.reindex(taken.index, fill_value=0.0).assign(highly_variable=taken)
        # What was not measured is not zero but unknown. Without measured_only no mean is.
        own.loc[np.isnan(mean), ["means", "dispersions", "dispersions_norm"]] = np.nan
        frames.append(own)
    return _merge_batches(frames, cutoffs).set_axis(names, axis=0)


def _batches(store: Store, by: tuple[str, ...], moments: Moments) -> Moments:
    return moments.reorder(sorted_keys(moments.keys, by, store.obs_dtypes, observed=True))


def _there(values: Float64Array | None) -> Float64Array:
    if values is None:
        raise TypeError("expected moments that were asked for, got none")
    return values


# -- seurat ------------------------------------------------------------------------------------------------------------


def _seurat(mean: Float64Array, var: Float64Array, n_bins: int, cutoffs: _Cutoffs) -> pd.DataFrame:
    """Of one batch."""
    mean = np.where(mean == 0, _TINY_MEAN, mean)
    with np.errstate(divide="ignore"):
        dispersions = np.log(np.where(var == 0, np.nan, var / mean))
    means = np.log1p(mean)
    frame = pd.DataFrame({"means": means, "dispersions": dispersions})
    frame["mean_bin"] = pd.cut(frame["means"], bins=n_bins)
    by_bin = frame.groupby("mean_bin", observed=True)["dispersions"]
    average, spread = by_bin.transform("mean"), by_bin.transform("std")
    # A bin of one gene, of which there is no spread: its normalised dispersion is 1.
    alone = spread.isna()
    spread, average = spread.where(~alone, average), average.where(~alone, 0.0)
    frame["dispersions_norm"] = (frame["dispersions"] - average) / spread
    normalised = frame["dispersions_norm"].to_numpy()
    if cutoffs.n_top_genes is None:
        frame["highly_variable"] = cutoffs.within(means, normalised)
    else:
        known = np.sort(normalised[~np.isnan(normalised)])[::-1]
        least = known[min(cutoffs.n_top_genes, len(known)) - 1] if len(known) else np.inf
        frame["highly_variable"] = np.nan_to_num(normalised, nan=-np.inf) >= least
    return frame.drop(columns="mean_bin")


def _merge_batches(frames: Sequence[pd.DataFrame], cutoffs: _Cutoffs) -> pd.DataFrame:
    """Genes that are highly variable in most batches come first, then those of the largest mean dispersion."""
    columns = ["means", "dispersions", "dispersions_norm"]
    n_batches = np.sum([f["highly_variable"].to_numpy(dtype=np.int64) for f in frames], axis=0)
    # As pandas takes means: of what is not missing.
    whole = pd.concat(frames).groupby(level=0)[columns].mean()
    whole["highly_variable"] = False
    whole["highly_variable_nbatches"] = n_batches
    # Of the batches that know the gene; a gene that never varies has no dispersion, but a mean.
    known = np.sum([f["means"].notna().to_numpy() for f in frames], axis=0)
    whole["highly_variable_intersection"] = (n_batches == known) & (known > 0)
    if cutoffs.n_top_genes is None:
        whole["dispersions_norm"] = whole["dispersions_norm"].fillna(0)
        whole["highly_variable"] = cutoffs.within(whole["means"].to_numpy(), whole["dispersions_norm"].to_numpy())
        return whole
    order = whole.sort_values(
        ["highly_variable_nbatches", "dispersions_norm"], ascending=False, na_position="last", kind="stable"
    ).index
    whole["highly_variable"] = whole.index.isin(order[: cutoffs.n_top_genes])
    return whole


# -- seurat_v3 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClippedSums:
    """Sums and sums of squares, per batch, of values that are clipped at a limit per batch and gene.

    Parameters
    ----------
    by
        Obs columns.
    keys, most
        The batches, and their limits: ``(batches, genes)``.
    """

    by: tuple[str, ...]
    keys: tuple[GroupKey, ...]
    most: Float64Array

    @property
    def columns(self) -> tuple[str, ...]:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        return self.by

    def block(self, block: Block) -> Float64Array:
        """``(batches, genes, 2)``."""
        from daodask.analysis.kernels import clipped_sums

        codes, keys = block_groups(block.obs, self.by, dropna=True)
        position = {key: i for i, key in enumerate(self.keys)}
        # The last entry is for cells of no batch.
        codes = np.array([*(position[key] for key in keys), -1])[codes]
        out = np.zeros((len(self.keys), block.n_vars + 1, 2))
        limits = np.concatenate([self.most, np.zeros((len(self.keys), 1))], axis=1)
        for rows in block.rows():
            clipped_sums(*rows.arrays, rows.of(codes), rows.lookup, limits, out)
        return out[:, :-1]

    def combine(self, partials: Sequence[Float64Array]) -> Float64Array:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        whole: Float64Array = np.sum(partials, axis=0)
        return whole

    def finalise(self, partial: Float64Array) -> Float64Array:
        """See :class:`~daodask.analysis.reductions.Reducer`."""
        return partial


def _seurat_v3(
    store: Store, by: tuple[str, ...], flavor: str, n_top_genes: int, span: float, reading: dict[str, Any]
) -> pd.DataFrame:
    moments = _batches(store, by, compute(store, GroupMoments(by, squares=True), **reading))
    deviations = np.stack([_expected_deviation(*mv, span) for mv in zip(moments.mean, moments.var(), strict=True)])
    n, mean = moments.n, moments.mean
    clipped = compute(store, ClippedSums(by, moments.keys, deviations * np.sqrt(n) + mean), **reading)
    sums, squares = clipped[..., 0], clipped[..., 1]
    normalised = (n * mean**2 + squares - 2 * sums * mean) / ((n - 1) * deviations**2)
    ranks = np.argsort(np.argsort(-normalised, axis=1), axis=1).astype(np.float32)
    among = (ranks < n_top_genes) & ~np.isnan(normalised)
    ranks[~among] = np.nan
    whole = moments if not by else compute(store, GroupMoments(squares=True), **reading)
    frame = pd.DataFrame({"means": whole.mean[0], "variances": whole.var()[0]}, index=store.var_names)
    frame["gene_name"] = frame.index
    frame["highly_variable_nbatches"] = among.sum(axis=0)
    frame["highly_variable_rank"] = np.asarray(pd.DataFrame(ranks).median(axis=0))
    frame["variances_norm"] = np.asarray(pd.DataFrame(normalised).mean(axis=0))
    order = {"highly_variable_rank": True, "highly_variable_nbatches": False}
    columns = list(order) if flavor == "seurat_v3" else list(reversed(order))
    best = frame[columns].reset_index(drop=True)
    best = best.sort_values(columns, ascending=[order[c] for c in columns], na_position="last")
    frame["highly_variable"] = (best.index.argsort() < n_top_genes) & among.any(axis=0)
    return frame if by else frame.drop(columns="highly_variable_nbatches")


def _expected_deviation(mean: Float64Array, var: Float64Array, span: float) -> Float64Array:
    """The standard deviation that genes of a mean have, by a local regression of logarithms; 1 for constant genes."""
    try:
        from skmisc.loess import loess
    except ImportError as error:
        raise DependencyError(
            "expected scikit-misc for the flavors seurat_v3, it is not installed; pip install 'daodask[analysis]'"
        ) from error
    varies = var > 0
    estimated = np.zeros(len(mean))
    if varies.any():
        model = loess(np.log10(mean[varies]), np.log10(var[varies]), span=span, degree=2)
        model.fit()
        estimated[varies] = model.outputs.fitted_values
    return np.sqrt(10**estimated)
