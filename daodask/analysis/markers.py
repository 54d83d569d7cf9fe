"""Genes that tell groups of cells apart: the tests of ``scanpy.tl.rank_genes_groups``, on more cells than memory holds.

Source: scanpy 1.11 and 1.12, whose results these are on the same values: Welch's t-test of means and variances, and the
Wilcoxon rank-sum test by its normal approximation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from dask.utils import parse_bytes

from daodask.analysis.cells import GeneExtremes
from daodask.analysis.groups import GroupKey, sorted_keys
from daodask.analysis.moments import GroupMoments, Moments
from daodask.analysis.ranks import BinnedRanks, Ranked, RankSums, gene_ranges
from daodask.analysis.reductions import Reducer
from daodask.analysis.run import compute, resolve_transform
from daodask.analysis.transforms import Normalise, Transform
from daodask.errors import SelectionError, SpecError, UnknownNameError, suggest
from daodask.store import Store

if TYPE_CHECKING:
    from anndata import AnnData
    from distributed import Client

__all__ = ["RankedGenes", "rank_genes_groups"]

Float64Array = npt.NDArray[np.float64]

_METHODS: Final = ("t-test", "t-test_overestim_var", "wilcoxon")
_CORRECTIONS: Final = ("benjamini-hochberg", "bonferroni")
#: Added to both means before they are divided, as scanpy does.
_PSEUDO: Final = 1e-9
#: Bytes for each value that is ranked: value and group, before and after they are brought together, and order.
_BYTES_PER_VALUE: Final = 20
#: Bytes for each bin of each gene and group.
_BYTES_PER_COUNT: Final = 4
_UNS_DTYPES: Final = {
    "names": "O",
    "scores": "float32",
    "logfoldchanges": "float32",
    "pvals": "float64",
    "pvals_adj": "float64",
}


@dataclass(frozen=True, eq=False, repr=False)
class RankedGenes:
    """Genes of each group, the best first.

    Parameters
    ----------
    params
        What was asked for, as scanpy notes it.
    groups
        Per group its genes: columns ``names``, ``scores``, ``logfoldchanges``, ``pvals``, ``pvals_adj``.
    pts, pts_rest
        Shares of cells with a value, ``(genes, groups)``, where they were asked for: in the group, and in all others.
    """

    params: dict[str, Any]
    groups: dict[str, pd.DataFrame]
    pts: pd.DataFrame | None = None
    pts_rest: pd.DataFrame | None = field(default=None)

    def to_frame(self, group: str | Sequence[str] | None = None) -> pd.DataFrame:
        """The genes of all groups, or of some, as ``scanpy.get.rank_genes_groups_df`` gives them.

        Returns
        -------
        DataFrame
            ``group`` (unless one group is asked for), and the columns of :attr:`groups`; with ``pts`` also
            ``pct_nz_group`` and ``pct_nz_reference``.
        """
        chosen = [group] if isinstance(group, str) else list(self.groups if group is None else group)
        for name in chosen:
            if name not in self.groups:
                raise UnknownNameError(f"no group {name!r} was tested; {suggest(name, self.groups)}")
        frames = []
        for name in chosen:
            frame = self.groups[name].copy()
            frame.insert(0, "group", pd.Series(pd.Categorical([name] * len(frame), categories=chosen), frame.index))
            for column, shares in (("pct_nz_group", self.pts), ("pct_nz_reference", self.pts_rest)):
                if shares is not None:
                    frame[column] = shares[name].loc[frame["names"]].to_numpy()
            frames.append(frame)
        whole = pd.concat(frames, ignore_index=True)
        return whole.drop(columns="group") if isinstance(group, str) else whole

    def to_uns(self) -> dict[str, Any]:
        """What scanpy writes to ``adata.uns["rank_genes_groups"]``, and its plots read."""
        found: dict[str, Any] = {"params": dict(self.params)}
        for column, dtype in _UNS_DTYPES.items():
            table = pd.DataFrame({name: frame[column].to_numpy() for name, frame in self.groups.items()})
            found[column] = table.to_records(index=False, column_dtypes=dtype)
        shares = {"pts": self.pts, "pts_rest": self.pts_rest}
        return found | {name: frame for name, frame in shares.items() if frame is not None}

    def add_to(self, adata: AnnData, key: str = "rank_genes_groups") -> None:
        """Write :meth:`to_uns` to ``adata.uns[key]``: scanpy's plots then show it."""
        adata.uns[key] = self.to_uns()

    def __repr__(self) -> str:
        best = {name: ", ".join(frame["names"].iloc[:3]) for name, frame in self.groups.items()}
        lines = [f"{self.params['method']} of {self.params['groupby']} against {self.params['reference']}"]
        return "\n".join([*lines, *(f"  {name}: {genes}" for name, genes in best.items())])


def rank_genes_groups(
    store: Store,
    groupby: str,
    *,
    groups: str | Sequence[Any] = "all",
    reference: Any = "rest",
    n_genes: int | None = None,
    method: str = "t-test",
    corr_method: str = "benjamini-hochberg",
    tie_correct: bool = False,
    rankby_abs: bool = False,
    pts: bool = False,
    measured_only: bool = False,
    layer: str | None = None,
    transform: Transform = Normalise(),  # noqa: B008  frozen
    bins: int | None = None,
    memory: int | str = "1GiB",
    client: Client | None = None,
    threads: int = 0,
) -> RankedGenes:
    """Rank genes by how they tell groups of cells apart (computes); equal to scanpy's on the same values.

    Parameters
    ----------
    store
        The cells and genes.
    groupby
        Obs column with the groups, of any dtype. Cells without a label are among the rest.
    groups
        Labels of those to test; all by default.
    reference
        Label of the group to test against; by default all other cells, those of groups that are not tested included.
    n_genes
        How many to list for each group; all by default.
    method
        ``"t-test"`` (Welch's), ``"t-test_overestim_var"``, or ``"wilcoxon"``.
    corr_method
        ``"benjamini-hochberg"`` or ``"bonferroni"``.
    tie_correct
        Correct Wilcoxon's scores for ties.
    rankby_abs
        List genes by the absolute value of the score.
    pts
        Tell the share of cells that have a value.
    measured_only
        Leave the cells of studies that did not measure a gene out of its test, instead of counting padded zeros: where
        a study has more of a group than others have, those are taken for a difference between groups.
    layer
        The layer to read in place of ``X``.
    transform
        Of the values: by default logarithms of counts per 10,000. ``None`` where they are stored as logarithms.
    bins
        For Wilcoxon's test of many cells: each gene's values are put into so many bins, those of one bin taken as tied,
        such as 1000. Exact by default.
    memory
        For what is ranked at a time, bytes or a text: the store is read once for each such share of the genes. Exact
        ranks take 20 bytes for each value that is not zero, so that twice the cells are read twice as often; bins take
        4 bytes for each, of each gene and group, on each thread. Values are compared as float32, as scanpy has them.
    client, threads
        See :func:`daodask.pseudobulk`.

    Returns
    -------
    RankedGenes
        Its ``to_frame()`` is a DataFrame, its ``add_to(adata)`` is for scanpy's plots.

    Raises
    ------
    UnknownNameError
        There is no such column or group.
    SelectionError
        A group has one cell.

    Examples
    --------
    >>> daodask.rank_genes_groups(store, "cell_type", n_genes=20).to_frame()  # doctest: +SKIP
    """
    _require("method", method, _METHODS)
    _require("corr_method", corr_method, _CORRECTIONS)
    ranks = method == "wilcoxon"
    if bins is not None and (bins < 2 or not ranks):
        raise SpecError(f"expected at least 2 bins, with method='wilcoxon', got {bins} with {method!r}")
    transform = resolve_transform(store, transform, layer=layer, client=client, threads=threads)
    reading: dict[str, Any] = {"layer": layer, "transform": transform, "client": client, "threads": threads}
    reducer = GroupMoments((groupby,), squares=not ranks, nnz=pts or ranks, dropna=False)
    moments = compute(store, reducer, measured_only=measured_only, **reading)
    moments = moments.reorder(sorted_keys(moments.keys, (groupby,), store.obs_dtypes, observed=True))
    tested, against = _chosen(moments, groupby, groups, reference)
    own = moments.reorder(tested)
    rest = moments.others().reorder(tested) if against is None else moments.reorder([against] * len(tested))
    if ranks:
        size = int(parse_bytes(memory))
        scores = _wilcoxon(store, groupby, moments, tested, against, tie_correct, size, bins, reading)
        pvals = _two_sided(scores)
    else:
        scores, pvals = _welch(own, rest, overestimate=method != "t-test")
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = np.log2((np.expm1(own.mean) + _PSEUDO) / (np.expm1(rest.mean) + _PSEUDO))
    names = [str(label) for (label,) in tested]
    adjusted = np.stack([_adjust(p, corr_method) for p in pvals])
    columns = {"scores": scores, "logfoldchanges": changes, "pvals": pvals, "pvals_adj": adjusted}
    table = {
        name: _best({c: v[i] for c, v in columns.items()}, store.var_names, n_genes, rankby_abs)
        for i, name in enumerate(names)
    }
    params = {
        "groupby": groupby,
        "reference": "rest" if against is None else str(reference),
        "method": method,
        "use_raw": False,
        "layer": layer,
        "corr_method": corr_method,
    }
    if not pts:
        return RankedGenes(params, table)
    shares = [pd.DataFrame(m.fraction.T, index=store.var_names, columns=names) for m in (own, rest)]
    return RankedGenes(params, table, shares[0], shares[1] if against is None else None)


def _require(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise SpecError(f"expected a {what} out of {', '.join(known)}, got {name!r}; {suggest(name, known)}")


def _chosen(
    moments: Moments, groupby: str, groups: str | Sequence[Any], reference: Any
) -> tuple[list[GroupKey], GroupKey | None]:
    """Groups to test, and the one to test against."""
    known = [key for key in moments.keys if key != (None,)]
    if isinstance(groups, str) and groups != "all":
        raise SpecError(f"expected groups as a list of labels, or 'all', got {groups!r}; write [{groups!r}]")
    chosen = known if isinstance(groups, str) else [(label,) for label in groups]
    against = None if reference == "rest" else (reference,)
    labels = [key[0] for key in known]
    for key in [*chosen, *([] if against is None else [against])]:
        if key not in known:
            raise UnknownNameError(f"no selected cell has {groupby} = {key[0]!r}; {suggest(key[0], labels)}")
    chosen = [key for key in chosen if key != against]
    sizes = dict(zip(moments.keys, moments.n_cells.tolist(), strict=True))
    single = [key[0] for key in [*chosen, *([] if against is None else [against])] if sizes[key] < 2]
    if single:
        raise SelectionError(
            f"expected groups of at least 2 cells, as one has no variance; {', '.join(map(repr, single))} of {groupby} "
            f"has 1: leave it out with groups=, or with subset(exclude=…)"
        )
    if not chosen or (against is None and len(moments.keys) < 2):
        raise SelectionError(f"expected at least two groups of {groupby} to compare, got {labels!r}")
    return chosen, against


def _welch(own: Moments, rest: Moments, *, overestimate: bool) -> tuple[Float64Array, Float64Array]:
    from scipy import stats

    with np.errstate(invalid="ignore", divide="ignore"):
        n_rest = own.n if overestimate else rest.n
        welch: Any = stats.ttest_ind_from_stats
        found = welch(own.mean, np.sqrt(own.var()), own.n, rest.mean, np.sqrt(rest.var()), n_rest, equal_var=False)
    # Of equal means without a variance.
    scores, pvals = np.asarray(found[0]), np.asarray(found[1])
    return np.where(np.isnan(scores), 0.0, scores), np.where(np.isnan(pvals), 1.0, pvals)


def _wilcoxon(
    store: Store,
    groupby: str,
    moments: Moments,
    tested: Sequence[GroupKey],
    against: GroupKey | None,
    tie_correct: bool,
    memory: int,
    bins: int | None,
    reading: dict[str, Any],
) -> Float64Array:
    position = {key: i for i, key in enumerate(moments.keys)}
    at = np.array([position[key] for key in tested])
    number = -1 if against is None else position[against]
    sums, ties = np.zeros((2, len(tested), store.n_vars))
    options = store, groupby, moments, number, memory, reading
    for genes, reducer in _exact_ranks(*options) if bins is None else _binned_ranks(*options, bins):
        found = compute(store[:, genes], reducer, totals_of=store, **reading)
        sums[:, genes], ties[:, genes] = found.sums[at], found.ties[at]
    own, rest = moments.n[at], moments.others().n[at] if against is None else moments.n[[number]]
    n = own + rest
    correction = 1.0 - ties / (n**3 - n) if tie_correct else 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = (sums - own * (n + 1) / 2.0) / np.sqrt(correction * own * rest * (n + 1) / 12.0)
    return np.where(np.isnan(scores), 0.0, scores)


def _exact_ranks(
    store: Store, groupby: str, moments: Moments, reference: int, memory: int, reading: dict[str, Any]
) -> Iterator[tuple[slice, Reducer[Any, Ranked]]]:
    """Genes of which the values fit into memory together, and what ranks them."""
    dtype = "float32"
    if reading["transform"] is None:
        dtype = store.served_dtype("X" if reading["layer"] is None else f"layers/{reading['layer']}").name
    sizes = np.broadcast_to(moments.n, (len(moments.keys), store.n_vars))
    values = np.nan_to_num(moments.n_nonzero).sum(axis=0)
    for start, stop in gene_ranges(values, memory / _BYTES_PER_VALUE):
        yield slice(start, stop), RankSums(groupby, moments.keys, sizes[:, start:stop], reference, dtype)


def _binned_ranks(
    store: Store, groupby: str, moments: Moments, reference: int, memory: int, reading: dict[str, Any], bins: int
) -> Iterator[tuple[slice, Reducer[Any, Ranked]]]:
    """Genes of which the bins fit into memory together, and what ranks them."""
    extremes = compute(store, GeneExtremes(), **reading)
    least, most = (np.where(extremes.nnz > 0, v, 0.0) for v in (extremes.least, extremes.most))
    sizes = np.broadcast_to(moments.n, (len(moments.keys), store.n_vars))
    counts = np.full(store.n_vars, float((bins + 2) * len(moments.keys)))
    for start, stop in gene_ranges(counts, memory / _BYTES_PER_COUNT):
        own = sizes[:, start:stop], reference, least[start:stop], most[start:stop], bins
        yield slice(start, stop), BinnedRanks(groupby, moments.keys, *own)


def _two_sided(scores: Float64Array) -> Float64Array:
    from scipy import stats

    pvals: Float64Array = 2 * stats.norm.sf(np.abs(scores))
    return pvals


def _adjust(pvals: Float64Array, method: str) -> Float64Array:
    """For as many tests as there are genes: Y. Benjamini, Y. Hochberg, J. R. Stat. Soc. B 57 (1995) 289; Bonferroni."""
    n = len(pvals)
    if method == "bonferroni":
        return np.minimum(pvals * n, 1.0)
    order = np.argsort(pvals)
    steps = pvals[order] * n / np.arange(1, n + 1)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1.0)
    return adjusted


def _best(values: dict[str, Float64Array], names: pd.Index, n_genes: int | None, rankby_abs: bool) -> pd.DataFrame:
    scores = np.abs(values["scores"]) if rankby_abs else values["scores"]
    order = np.argsort(-scores, kind="stable")[:n_genes]
    return pd.DataFrame({"names": names.to_numpy()[order], **{c: v[order] for c, v in values.items()}})
