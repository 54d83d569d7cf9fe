"""Pictures of a store, of figures that are small: counts of the snapshot, histograms, means of groups of cells.

Each picture has a function that finds its figures, which are worth having without it: nothing is drawn of single cells.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

import numpy as np
import pandas as pd

from daodask._format import human_count, human_share, shorten
from daodask.analysis.blocks import Block
from daodask.analysis.groups import block_groups, group_names, sorted_keys
from daodask.analysis.moments import GroupMoments, Moments
from daodask.analysis.reductions import Reducer
from daodask.analysis.run import compute
from daodask.analysis.transforms import Normalise, Transform
from daodask.build.depth import Bins, bin_start, count_bins
from daodask.drive import Progress
from daodask.errors import DependencyError, SelectionError, UnknownNameError, suggest
from daodask.format.spec import OBS_NAMES
from daodask.progress import ProgressLike, open_progress
from daodask.store import Store
from daodask.subsetting import PLAN_THREADS

if TYPE_CHECKING:
    from distributed import Client
    from matplotlib.axes import Axes

__all__ = ["GeneFigures", "Plots", "composition_counts", "depth_histogram", "gene_figures"]

P = TypeVar("P")
R_co = TypeVar("R_co", covariant=True)

#: What cells without a label are counted as, and the rarer labels of a picture together.
_MISSING: Final = "(missing)"
_OTHERS: Final = "(others)"
_DEPTH_COLUMN: Final = "n_counts"
_NO_NUMBERS: Final = ("category", "string", "bool")
_NAME_WIDTH: Final = 32


@dataclass(frozen=True, slots=True)
class Plots:
    """Pictures of a store's selected cells: ``store.plot``. They need matplotlib: ``pip install 'daodask[plot]'``.

    Parameters
    ----------
    store
        The cells and genes.
    """

    store: Store

    def composition(
        self,
        by: str,
        split: str | None = None,
        *,
        most: int = 12,
        ax: Axes | None = None,
        progress: ProgressLike = "auto",
    ) -> Axes:
        """How many cells each label has; or which share of the cells of each group has it (computes).

        Parameters
        ----------
        by
            An obs column of labels.
        split
            An obs column whose labels are the groups, such as ``"dataset"``.
        most
            Labels that are told apart; rarer ones go together.
        ax
            Where to draw; a figure of its own by default.
        progress
            As :func:`daodask.build_store` takes it.

        Raises
        ------
        UnknownNameError
            There is no such column.
        DependencyError
            matplotlib is not installed.
        """
        _require_matplotlib()
        counts = _with_others(composition_counts(self.store, by, split, progress=progress), most)
        if split is None:
            return _draw_counts(_axes(ax, 0.8 + 0.26 * counts.shape[1]), counts.iloc[0], by)
        return _draw_shares(_axes(ax, 1.0 + 0.3 * len(counts)), counts, by, split)

    def depth(
        self,
        by: str | None = None,
        *,
        column: str | None = None,
        most: int = 10,
        ax: Axes | None = None,
        client: Client | None = None,
        progress: ProgressLike = "auto",
    ) -> Axes:
        """How deep cells are sequenced: a histogram of their sums of counts, on a logarithmic scale (computes).

        Parameters
        ----------
        by
            An obs column: a histogram for each of its labels.
        column, client
            See :func:`depth_histogram`.
        most
            Labels that have a histogram; rarer ones go together.
        ax, progress
            See :meth:`composition`.

        Raises
        ------
        UnknownNameError
            There is no such column.
        DependencyError
            matplotlib is not installed.
        """
        _require_matplotlib()
        found = depth_histogram(self.store, by, column=column, client=client, progress=progress)
        of = column or _known_depth(self.store) or "sum of X"
        return _draw_depth(_axes(ax, 3.6), _with_others(found, most), of, by)

    def genes(
        self,
        genes: str | Sequence[str],
        by: str,
        *,
        transform: Transform | Literal["auto"] = "auto",
        measured_only: bool = False,
        ax: Axes | None = None,
        client: Client | None = None,
        progress: ProgressLike = "auto",
    ) -> Axes:
        """Dots for genes and groups: the size is the share of cells that have it, the colour its mean (computes).

        Parameters
        ----------
        genes
            Ids or unique symbols.
        by
            An obs column.
        transform, measured_only, client
            See :func:`gene_figures`.
        ax, progress
            See :meth:`composition`.

        Raises
        ------
        UnknownNameError
            There is no such gene or column.
        DependencyError
            matplotlib is not installed.

        Examples
        --------
        >>> store.plot.genes(["CD3E", "MS4A1"], by="cell_type")  # doctest: +SKIP
        """
        _require_matplotlib()
        options: dict[str, Any] = {"transform": transform, "measured_only": measured_only, "client": client}
        found = gene_figures(self.store, genes, by, **options, progress=progress)
        return _draw_dots(_axes(ax, 1.6 + 0.3 * len(found.mean)), found, by)


# -- figures -------------------------------------------------------------------------------------------------------


def composition_counts(
    store: Store, by: str, split: str | None = None, *, progress: ProgressLike = "auto"
) -> pd.DataFrame:
    """Cells per label, and per group: of whole datasets from the snapshot, else from these columns of obs (computes).

    Parameters
    ----------
    store
        The cells.
    by, split, progress
        See :meth:`Plots.composition`.

    Returns
    -------
    DataFrame
        int64, a row per label of ``split`` (one row, ``"all"``, without it) in its order and a column per label of
        ``by``, the most frequent first. Cells without a label are those of ``"(missing)"``, the last of both.
    """
    _require_columns(store, [by] if split is None else [split, by])
    if by == split:
        raise SelectionError(f"expected two columns, got {by!r} twice; leave split= away for the numbers of cells")
    numbers = [n for n, part in enumerate(store.selection.parts) if part.n_obs]
    found: Counter[tuple[str, str]] = Counter()
    for counts in _each_part("composition", partial(_part_counts, store, split, by), numbers, progress):
        found.update(counts)
    groups = _in_order(store, split, {group for group, _ in found}) if found or split is not None else ["all"]
    labels = _in_order(store, by, {label for _, label in found})
    values = np.array([[found[group, label] for label in labels] for group in groups], dtype=np.int64)
    index, columns = pd.Index(groups, name=split, dtype=object), pd.Index(labels, name=by, dtype=object)
    table = pd.DataFrame(values.reshape(len(groups), len(labels)), index, columns)
    return table[_last(table.sum().sort_values(ascending=False, kind="stable").index)]


def _last(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: name == _MISSING)


def _in_order(store: Store, column: str | None, found: Iterable[str]) -> list[str]:
    """Labels in the order of their column's categories."""
    known = list(store.dataset_ids) if column == "dataset" else []
    known += [str(label) for c in store.obs_schema if c.name == column for label in c.categories]
    place = {name: number for number, name in enumerate(known)}
    return sorted(found, key=lambda name: (name == _MISSING, place.get(name, len(place)), name))


def _each_part(what: str, function: Callable[[int], P], numbers: Sequence[int], progress: ProgressLike) -> Iterator[P]:
    """The function of the number of each part, on threads."""
    with open_progress(progress) as tell, ThreadPoolExecutor(PLAN_THREADS) as threads:
        for done, result in enumerate(threads.map(function, numbers), 1):
            if tell is not None:
                tell(what, "pass", done, len(numbers))
            yield result


def _part_counts(store: Store, split: str | None, by: str, number: int) -> dict[tuple[str, str], int]:
    """Cells of one dataset per group and label."""
    same = {None: "all", "dataset": store.selection.parts[number].dataset}
    if split in same:
        return {(same[split], label): n for label, n in _label_counts(store, number, by).items()}
    group_by = str(split)
    if by in same:
        return {(group, same[by]): n for group, n in _label_counts(store, number, group_by).items()}
    obs = store.read_part_obs(number, [group_by, by])
    sizes = obs.groupby([group_by, by], observed=True, dropna=False).size()
    return {(_label(key[0]), _label(key[1])): int(n) for key, n in zip(sizes.index, sizes, strict=True)}


def _label_counts(store: Store, number: int, column: str) -> dict[str, int]:
    """Cells of one dataset per label of a column, those without one among them; from the snapshot where it knows."""
    part, summary = store.selection.parts[number], store.dataset_infos[number].column.get(column)
    if column == "dataset":
        return {part.dataset: part.n_obs}
    if summary is None and column != OBS_NAMES:
        return {_MISSING: part.n_obs}
    if part.rows is None and summary is not None and summary.dtype == "category":
        counts = zip(map(str, summary.categories), summary.counts, strict=True)
        return {label: n for label, n in [*counts, (_MISSING, summary.n_missing)] if n}
    values = store.read_part_obs(number, [column])[column].value_counts(dropna=False)
    return {_label(label): int(n) for label, n in values.items() if n}


def _label(value: object) -> str:
    return _MISSING if pd.isna(value) else str(value)  # type: ignore[call-overload]


def _require_columns(store: Store, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in store.obs_columns:
            raise UnknownNameError(f"obs has no column {column!r}; {suggest(column, store.obs_columns)}")


def depth_histogram(
    store: Store,
    by: str | None = None,
    *,
    column: str | None = None,
    client: Client | None = None,
    progress: ProgressLike = "auto",
) -> pd.DataFrame:
    """Cells by their sum of counts, in bins on a logarithmic scale (computes).

    Parameters
    ----------
    store
        The cells.
    by
        An obs column: a histogram for each of its labels.
    column
        A column of obs with what is counted of each cell. By default ``n_counts`` where obs has it and all genes are
        selected, which reads obs alone; elsewhere X is read, and summed over the selected genes.
    client
        A Dask client whose workers read X.
    progress
        As :func:`daodask.build_store` takes it; the workers of a client tell none.

    Returns
    -------
    DataFrame
        int64, a row per bin, by where it starts: 0 for cells below 1, then ten bins a decade. A column per label, in
        its order, or ``"all"``. Cells whose value is missing are left out.
    """
    _require_columns(store, [c for c in (by, column) if c is not None])
    column = column or _known_depth(store)
    if column is None:
        reducer = _DepthBins(() if by is None else (by,))
        found = _reduce(store, reducer, "depth", client=client, progress=progress)
    else:
        _require_number(store, column)
        numbers = [n for n, part in enumerate(store.selection.parts) if part.n_obs]
        parts = list(_each_part("depth", partial(_part_depth, store, by, column), numbers, progress))
        found = _add_bins(parts)
    labels = _in_order(store, by, found) if found else []
    n_bins = max(map(len, found.values()), default=1)
    padded = {label: np.pad(np.array(found[label], np.int64), (0, n_bins - len(found[label]))) for label in labels}
    index = pd.Index([bin_start(number) for number in range(n_bins)], name=column or "sum of X")
    return pd.DataFrame(padded, index=index, columns=pd.Index(labels, name=by, dtype=object), dtype=np.int64)


def _known_depth(store: Store) -> str | None:
    """The column that streamlining measures depth in; it speaks of all genes."""
    numbers = [c.name for c in store.obs_schema if c.dtype not in _NO_NUMBERS]
    return _DEPTH_COLUMN if _DEPTH_COLUMN in numbers and store.selection.genes is None else None


def _require_number(store: Store, column: str) -> None:
    dtypes = {c.name: c.dtype for c in store.obs_schema}
    if dtypes.get(column, "category") in _NO_NUMBERS:
        raise SelectionError(f"expected a column of numbers, {column!r} is {dtypes.get(column, 'of labels')}")


def _part_depth(store: Store, by: str | None, column: str, number: int) -> dict[str, Bins]:
    obs = store.read_part_obs(number, list(dict.fromkeys([column, *([] if by is None else [by])])))
    values = obs[column].to_numpy(dtype=np.float64, na_value=np.nan)
    present = ~np.isnan(values)
    if by is None:
        return {"all": count_bins(values[present])}
    grouped = pd.Series(np.arange(len(obs))).groupby(obs[by].to_numpy(), dropna=False, observed=True)
    places = {_label(label): rows.to_numpy() for label, rows in grouped}
    return {label: count_bins(values[rows][present[rows]]) for label, rows in places.items()}


def _add_bins(parts: Iterable[Mapping[str, Bins]]) -> dict[str, Bins]:
    totals: dict[str, Bins] = {}
    for part in parts:
        for label, bins in part.items():
            pairs = zip_longest(totals.get(label, ()), bins, fillvalue=0)
            totals[label] = tuple(a + b for a, b in pairs)
    return totals


@dataclass(frozen=True)
class _DepthBins:
    """Histograms of the cells' sums, per label."""

    columns: tuple[str, ...] = ()

    def block(self, block: Block) -> dict[str, Bins]:
        """Those of a block."""
        from daodask.analysis.kernels import row_statistics

        out = np.empty((block.n_obs, 5))
        for rows in block.rows():
            row_statistics(*rows.arrays, rows.lookup, block.n_vars, rows.of(out))
        codes, keys = block_groups(block.obs, self.columns, dropna=False)
        names = [_label(key[0]) if key else "all" for key in keys]
        return {name: count_bins(out[codes == code, 0]) for code, name in enumerate(names)}

    def combine(self, partials: Sequence[dict[str, Bins]]) -> dict[str, Bins]:
        """Their sums."""
        return _add_bins(partials)

    def finalise(self, partial: dict[str, Bins]) -> dict[str, Bins]:
        """The histograms themselves."""
        return partial


@dataclass(frozen=True, eq=False)
class GeneFigures:
    """What a dot plot shows.

    Parameters
    ----------
    mean, fraction
        Of each gene in each group of cells: the mean, and the share of cells that have it; float64, groups × genes. NaN
        where no cell counts.
    n_cells
        Cells of each group, int64.
    """

    mean: pd.DataFrame
    fraction: pd.DataFrame
    n_cells: pd.Series


def gene_figures(
    store: Store,
    genes: str | Sequence[str],
    by: str,
    *,
    transform: Transform | Literal["auto"] = "auto",
    measured_only: bool = False,
    client: Client | None = None,
    progress: ProgressLike = "auto",
) -> GeneFigures:
    """Mean and share of cells of some genes in each group of cells, in one pass over X (computes).

    Parameters
    ----------
    store
        The cells.
    genes
        Ids or unique symbols: columns of what is returned, as they are called here.
    by
        An obs column; cells without a label are left out.
    transform
        Of the values; by default counts are normalised to 10,000 a cell, and the logarithm is taken, as ``Normalise()``
        does, and what is no counts is taken as it is.
    measured_only
        Leave out the cells of studies that did not measure a gene.
    client
        A Dask client: its workers do it.
    progress
        As :func:`daodask.build_store` takes it; the workers of a client tell none.

    Raises
    ------
    UnknownNameError
        There is no such gene or column.
    """
    names = [genes] if isinstance(genes, str) else list(genes)
    _require_columns(store, [by])
    chosen = store[:, names]
    if transform == "auto":
        kinds = {store.snapshot.dataset[i].matrix["X"].kind for i in store.selection.datasets}
        transform = Normalise() if kinds == {"counts"} else None
    options: dict[str, Any] = {"transform": transform, "measured_only": measured_only, "totals_of": store}
    found: Moments = _reduce(
        chosen, GroupMoments((by,), nnz=True), "genes", client=client, progress=progress, **options
    )
    moments = found.reorder(sorted_keys(found.keys, (by,), store.obs_dtypes, observed=True))
    index = pd.Index(group_names(moments.keys), name=by, dtype=object)
    mean, fraction = (pd.DataFrame(values, index, names) for values in (moments.mean, moments.fraction))
    return GeneFigures(mean, fraction, pd.Series(moments.n_cells, index, name="n_cells"))


def _reduce(
    store: Store,
    reducer: Reducer[P, R_co],
    what: str,
    *,
    client: Client | None,
    progress: ProgressLike,
    **options: Any,
) -> R_co:
    if client is not None:
        return compute(store, reducer, client=client, **options)
    with open_progress(progress) as tell:
        told = reducer if tell is None else _Told(reducer, what, len(store.blocks), tell)
        return compute(store, told, **options)


class _Told(Generic[P, R_co]):
    """A reducer that tells how many of the blocks are done; in this process alone."""

    def __init__(self, reducer: Reducer[P, R_co], what: str, n_blocks: int, tell: Progress) -> None:
        self.columns, self.combine, self.finalise = reducer.columns, reducer.combine, reducer.finalise
        self._block, self._what, self._n_blocks, self._tell = reducer.block, what, n_blocks, tell
        self._done = 0
        self._lock = threading.Lock()

    def block(self, block: Block) -> P:
        """What the reducer makes of it."""
        partial_result = self._block(block)
        with self._lock:
            self._done += 1
            self._tell(self._what, "pass", self._done, self._n_blocks)
        return partial_result


# -- drawing -------------------------------------------------------------------------------------------------------

_COLOURS: Final = (
    *("#1f7a94", "#e08a2c", "#7a5fb5", "#3f9a57", "#d1526a", "#8c6d46"),
    *("#4f77c8", "#b5a018", "#c864b4", "#5fb3b3", "#7d8c2e", "#b56a9a"),
)
_GREY: Final = {_OTHERS: "#aab3c0", _MISSING: "#dde2e8"}
#: Area, in points², of the dot of a gene that every cell has.
_DOT: Final = 150.0


def _require_matplotlib() -> None:
    try:
        import matplotlib.pyplot  # noqa: F401, ICN001
    except ImportError as error:
        raise DependencyError(
            "expected matplotlib for pictures, it is not installed; pip install 'daodask[plot]', or take the figures "
            "from daodask.plot: composition_counts, depth_histogram, gene_figures"
        ) from error


def _axes(ax: Axes | None, height: float) -> Axes:
    """The axes to draw on; those of a new figure, of so many inches of height."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7.0, min(max(height, 1.8), 14.0)), layout="constrained")[1]


def _with_others(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """The columns with most cells, in their order, and the others together, before those without a label."""
    labels = [name for name in table.columns if name != _MISSING]
    kept = set(table[labels].sum().nlargest(most).index)
    shown = table[[name for name in labels if name in kept]]
    if len(labels) > len(kept):
        rest = table[[name for name in labels if name not in kept]].sum(axis=1)
        shown = pd.concat([shown, rest.rename(_OTHERS)], axis=1)
    return pd.concat([shown, table[[_MISSING]]], axis=1) if _MISSING in table.columns else shown


def _colours(labels: Iterable[str]) -> dict[str, str]:
    return {name: _GREY.get(name, _COLOURS[number % len(_COLOURS)]) for number, name in enumerate(labels)}


def _draw_counts(ax: Axes, counts: pd.Series, by: str) -> Axes:
    colours = [_GREY.get(name, _COLOURS[0]) for name in counts.index]
    bars = ax.barh([shorten(name, _NAME_WIDTH) for name in _apart(counts.index)], counts.to_numpy(), color=colours)
    texts = [f"{human_count(int(n))}  {human_share(int(n), int(counts.sum()))}" for n in counts]
    ax.bar_label(bars, texts, padding=4, fontsize=8, color="#5a6678")
    ax.invert_yaxis()
    ax.margins(x=0.18)
    ax.set(xlabel="cells", ylabel=by)
    return _plain(ax)


def _apart(names: Iterable[str]) -> list[str]:
    # Matplotlib reads a text between two $ as mathematics.
    return [name.replace("$", r"\$") for name in names]


def _draw_shares(ax: Axes, counts: pd.DataFrame, by: str, split: str) -> Axes:
    sizes = counts.sum(axis=1)
    shares = counts.div(sizes.clip(lower=1), axis=0)
    places, left = np.arange(len(counts)), np.zeros(len(counts))
    for (label, values), colour in zip(shares.items(), _colours(shares.columns).values(), strict=True):
        (name,) = _apart([shorten(label, _NAME_WIDTH)])
        ax.barh(places, values.to_numpy(), left=left, color=colour, label=name, edgecolor="white", linewidth=0.5)
        left += values.to_numpy()
    names = [f"{shorten(name, _NAME_WIDTH)} ({human_count(int(n))})" for name, n in sizes.items()]
    ax.set_yticks(places, _apart(names))
    ax.invert_yaxis()
    ax.set(xlabel="share of cells", ylabel=split, xlim=(0, 1))
    if len(shares.columns):
        ax.legend(title=by, bbox_to_anchor=(1.01, 1), loc="upper left", frameon=False, fontsize=8)
    return _plain(ax)


def _draw_depth(ax: Axes, found: pd.DataFrame, of: str, by: str | None) -> Axes:
    starts = found.index.to_numpy()
    filled = np.flatnonzero(found.to_numpy().any(axis=1))
    # Cells below 1 have no place on a logarithmic scale: they are drawn as a bin before the first.
    edges = np.append(np.where(starts < 1, 10**-0.1, starts), bin_start(len(starts)))
    low, high = (int(filled.min()), int(filled.max()) + 1) if len(filled) else (0, 1)
    for (label, values), colour in zip(found.items(), _colours(found.columns).values(), strict=True):
        drawn, (name,) = values.to_numpy()[low:high], _apart([shorten(label, _NAME_WIDTH)])
        told = f"{name} ({human_count(int(values.sum()))})"
        ax.stairs(drawn, edges[low : high + 1], label=told, color=colour, fill=by is None, linewidth=1.4)
    ax.set_xscale("log")
    ax.set(xlabel=of, ylabel="cells")
    if by is not None and len(found.columns):
        ax.legend(title=by, frameon=False, fontsize=8)
    return _plain(ax)


def _draw_dots(ax: Axes, found: GeneFigures, by: str) -> Axes:
    n_groups, n_genes = found.mean.shape
    x, y = np.meshgrid(np.arange(n_genes), np.arange(n_groups))
    fraction = np.nan_to_num(found.fraction.to_numpy(dtype=np.float64))
    dots = ax.scatter(
        *(x.ravel(), y.ravel(), _DOT * fraction.ravel()),
        c=found.mean.to_numpy().ravel(),
        cmap="YlGnBu",
        edgecolors="#5a6678",
        linewidths=0.4,
    )
    names = [f"{shorten(name, _NAME_WIDTH)} ({human_count(int(n))})" for name, n in found.n_cells.items()]
    ax.set_yticks(np.arange(n_groups), _apart(names))
    ax.set_xticks(np.arange(n_genes), _apart(map(str, found.mean.columns)), rotation=90)
    ax.set(xlim=(-0.6, n_genes - 0.4), ylim=(n_groups - 0.4, -0.6), ylabel=by)
    ax.figure.colorbar(dots, ax=ax, label="mean", shrink=0.6)
    for share in (0.25, 0.5, 1.0):
        ax.scatter([], [], s=_DOT * share, c="#aab3c0", edgecolors="#5a6678", linewidths=0.4, label=f"{share:.0%}")
    ax.legend(title="cells with it", bbox_to_anchor=(0.5, 1.02), loc="lower center", ncols=3, frameon=False, fontsize=8)
    return _plain(ax)


def _plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
