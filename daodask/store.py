"""The store as users hold it: opened from a snapshot, immutable, lazy."""

from __future__ import annotations

import copy
import importlib
import operator
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pandas as pd

from daodask.blocks import BlockAddress, empty_obs, read_obs, read_var
from daodask.by_gene import copies_of
from daodask.convert import BlockKind, compute_matrices, to_anndata, to_xarray
from daodask.drawing import sample, split
from daodask.errors import FeatureSpaceError, SelectionError, UnknownNameError, suggest
from daodask.format.features import FeatureSpace
from daodask.format.manifest import DatasetInfo, FeatureSpaceInfo, ObsColumn, Snapshot
from daodask.format.spec import OBS_NAMES, VAR_MEASURED, feature_path, served_dtype
from daodask.saved_selection import Changed, SavedSelection, read_selection
from daodask.schemas import ObsSchema, SchemaAddress
from daodask.selection import Part, Selection
from daodask.snapshots import read_snapshot
from daodask.storage import StoreLocation
from daodask.subsetting import PLAN_THREADS, CellFunction, Missing, Rows, narrow, row_positions
from daodask.types import Int64Array

if TYPE_CHECKING:
    import anndata
    import dask.array as da
    import dask.dataframe as dd
    import xarray as xr
    from distributed import Client

    from daodask._held import Held
    from daodask.plot import Plots

__all__ = ["Store", "open_store"]

V = TypeVar("V")


def open_store(
    url: str | os.PathLike[str] | StoreLocation,
    *,
    features: str | None = None,
    snapshot: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Store:
    """Open a store (lazy: one listing and one read, whatever its size).

    Parameters
    ----------
    url
        Where the store is: a local path or any fsspec URL.
    features
        Name of the feature space to open; needed only where the store has several.
    snapshot
        Number of the snapshot; the newest by default.
    options
        fsspec options. Credentials are refused, as these travel to workers: leave them to the environment.

    Raises
    ------
    StoreNotFoundError
        There is no store, or no such snapshot.
    FeatureSpaceError
        The store has several feature spaces and none was named, or not the named one; the message lists them.
    FormatVersionError
        A newer daodask wrote it.

    Examples
    --------
    >>> store = daodask.open_store("gs://bucket/atlas")  # doctest: +SKIP
    """
    location = StoreLocation.parse(url, options)
    found = read_snapshot(location, snapshot)
    space = _choose_features(found, features, location)
    parts, offset = [], 0
    for dataset in found.of_features(space.name):
        parts.append(Part(dataset.id, dataset.blocks, offset))
        offset += dataset.n_obs
    return Store(location, found, space, Selection(tuple(parts), space.n_vars))


def _choose_features(snapshot: Snapshot, name: str | None, location: StoreLocation) -> FeatureSpaceInfo:
    spaces = {space.name: space for space in snapshot.features}
    if name is None and len(spaces) == 1:
        return next(iter(spaces.values()))
    if name in spaces:
        return spaces[name]
    listed = ", ".join(
        f"{s.name!r} ({s.n_vars} genes, {len(snapshot.of_features(s.name))} datasets)" for s in spaces.values()
    )
    if name is None:
        raise FeatureSpaceError(f"{location} has several feature spaces; open one with features=…: {listed or 'none'}")
    raise FeatureSpaceError(f"{location} has no feature space {name!r}; it has: {listed or 'none'}")


@lru_cache(maxsize=16)
def _read_features(location: StoreLocation, name: str, organism: str) -> FeatureSpace:
    return FeatureSpace.from_parquet(location.read(), name=name, organism=organism)


@dataclass(frozen=True, eq=False, repr=False)
class Store:
    """Cells of many studies on shared genes, as one lazy object.

    Made by :func:`open_store` and narrowed by :meth:`subset` and indexing, which return new stores. Whatever is derived
    (``X``, ``layers``, ``obsm``, ``obs``, batches) comes from the same selection: block i of each is the same cells.

    Parameters
    ----------
    location
        Where the store is.
    snapshot
        The snapshot that was opened.
    feature_space
        The feature space that was opened.
    selection
        Rows and genes that this store shows.
    held
        Blocks that are in memory, see :meth:`persist`.
    """

    location: StoreLocation
    snapshot: Snapshot
    feature_space: FeatureSpaceInfo
    selection: Selection
    held: Held | None = None

    # Or numpy would take a store for a sequence of cells in `store & mask`.
    __array_ufunc__ = None

    def __reduce__(self) -> tuple[type[Store], tuple[object, ...]]:
        # What is cached or in memory stays here: it can be read again, and is larger than all of this.
        return Store, (self.location, self.snapshot, self.feature_space, self.selection)

    # -- shape and description: from the snapshot ------------------------------------------------------------------

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.selection.n_obs

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return self.selection.n_vars

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return self.n_obs, self.n_vars

    def __len__(self) -> int:
        return self.n_obs

    @cached_property
    def dataset_infos(self) -> tuple[DatasetInfo, ...]:
        """What the snapshot says of each dataset of the feature space, in store order, selected or not."""
        return tuple(self.snapshot.dataset[part.dataset] for part in self.selection.parts)

    @cached_property
    def obs_schema(self) -> tuple[ObsColumn, ...]:
        """Obs columns with the dtypes and categories that all datasets share."""
        return self.feature_space.obs

    @property
    def datasets(self) -> pd.DataFrame:
        """One row per dataset that has a selected cell, from the snapshot: cells, kind of X, non-zeros, facts."""
        rows = []
        for part, info in zip(self.selection.parts, self.dataset_infos, strict=True):
            if part.n_obs or not info.n_obs:
                x = info.matrix["X"]
                facts = {k: v for k, v in info.uns.items() if isinstance(v, str | int | float | bool)}
                rows.append(
                    {
                        "dataset": info.id,
                        "n_obs": part.n_obs,
                        "n_stored": info.n_obs,
                        "kind": x.kind,
                        "dtype": x.dtype,
                        "nnz": x.nnz,
                        "nbytes": info.nbytes,
                        **facts,
                    }
                )
        columns = ["dataset", "n_obs", "n_stored", "kind", "dtype", "nnz", "nbytes"]
        return pd.DataFrame(rows, columns=None if rows else columns).set_index("dataset")

    @property
    def uns(self) -> dict[str, dict[str, Any]]:
        """Facts of each dataset that has a selected cell, by dataset id, from the snapshot."""
        return {i: copy.deepcopy(dict(self.snapshot.dataset[i].uns)) for i in self.selection.datasets}

    def value_counts(self, column: str) -> pd.Series:
        """Selected cells per value of an obs column, most frequent first.

        For categorical columns and ``dataset`` of datasets that are selected as a whole this comes from the snapshot
        and reads nothing; anything else reads that one column of the datasets concerned (computes).

        Returns
        -------
        Series
            int64 counts, indexed by value; values that no selected cell has are left out.
        """
        self._require_columns({column})
        totals: dict[Any, int] = {}
        for number, part in enumerate(self.selection.parts):
            for value, count in self._part_counts(number, part, column):
                totals[value] = totals.get(value, 0) + count
        counts = pd.Series(totals, dtype=np.int64, name="count").rename_axis(column)
        return counts[counts > 0].sort_values(ascending=False, kind="stable")

    def _part_counts(self, number: int, part: Part, column: str) -> Iterable[tuple[Any, int]]:
        info = self.dataset_infos[number]
        if column == "dataset":
            return [(part.dataset, part.n_obs)]
        summary = info.column.get(column)
        if not part.n_obs or (summary is None and column != OBS_NAMES):
            return []
        if part.rows is None and summary is not None and summary.dtype == "category":
            return zip(summary.categories, summary.counts, strict=True)
        values = self.read_part_obs(number, [column])[column]
        return values.value_counts().items()

    # -- the lazy pieces -------------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> tuple[BlockAddress, ...]:
        """Where the blocks of the selection are: the unit of a dask chunk, an obs partition and a task."""
        parts, infos = self.selection.parts, self.dataset_infos
        # One a dataset, that its blocks share: there are many of them.
        where = [self.location / info.path for info in infos]
        copies = [copies_of(info, self.selection.n_stored_vars) for info in infos]
        return tuple(
            BlockAddress(where[b.part], infos[b.part].id, parts[b.part].offset, b.start, b.stop, b.rows, copies[b.part])
            for b in self.selection.blocks()
        )

    @property
    def X(self) -> da.Array:
        """Counts (or what the datasets' kind says) as a dask array of CSR blocks, ``(n_obs, n_vars)`` (lazy).

        Dask's own reductions and products work on it, and give dense arrays: ``X.sum(axis=0)``, ``X.var(axis=1)``,
        ``(X > 0).sum(axis=1)``, ``X @ W``. A block is a :class:`~daodask.sparse.CSRBlock`, which is a ``csr_matrix``:
        take single rows and columns by ranges, ``X[3:4]``, as scipy's matrices have two dimensions always.
        Values are float32, or float64 where float32 would round a stored value.
        """
        return self._matrix("X")

    @property
    def layers(self) -> Mapping[str, da.Array]:
        """Further matrices on the same cells and genes, by name (lazy)."""
        names = {m.name.removeprefix("layers/") for i in self._selected_infos for m in i.matrices if m.name != "X"}
        return _Lazy(sorted(names), lambda name: self._matrix(f"layers/{name}"), "layer")

    @property
    def obsm(self) -> Mapping[str, da.Array]:
        """Dense arrays per cell (embeddings), by name (lazy)."""
        return _Lazy(sorted({m.name for i in self._selected_infos for m in i.obsm}), self._obsm, "obsm array")

    @property
    def obs(self) -> dd.DataFrame:
        """Cell metadata as a dask dataframe (lazy): partition i has the cells of block i of :attr:`X`.

        Its index is the int64 row number in the store, with known divisions; categoricals have known categories, the
        same in every partition. ``dataset`` and ``obs_names`` are always there.
        """
        from daodask._graphs import lazy_obs

        held = None if self.held is None else self.held.frame(self.selection, self.empty_obs)
        if held is not None:
            return held
        where = SchemaAddress(self.location, self.snapshot.number, self.feature_space.name)
        return lazy_obs(self.blocks, where.of(self._schema))

    @property
    def _schema(self) -> ObsSchema:
        return ObsSchema(self.obs_schema, self.dataset_ids)

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Names of the columns of :attr:`obs`."""
        return ("dataset", OBS_NAMES, *(c.name for c in self.obs_schema))

    @cached_property
    def obs_dtypes(self) -> Mapping[str, Any]:
        """Dtype of each column of :attr:`obs`."""
        return dict(self.empty_obs.dtypes)

    @cached_property
    def empty_obs(self) -> pd.DataFrame:
        """What :attr:`obs` looks like, without a row."""
        return empty_obs(self.obs_schema, self.dataset_ids)

    @cached_property
    def features(self) -> FeatureSpace:
        """The whole feature space, selected or not (one read, then cached)."""
        where = self.location / feature_path(self.feature_space.hash)
        return _read_features(where, self.feature_space.name, self.feature_space.organism)

    @property
    def var(self) -> pd.DataFrame:
        """Selected genes: id as index, ``symbol`` and the reference's other columns."""
        return self._genes.var.copy()

    @cached_property
    def _genes(self) -> FeatureSpace:
        if self.selection.genes is None:
            return self.features
        return replace(self.features, var=self.features.var.iloc[self.selection.genes])

    @property
    def var_names(self) -> pd.Index:
        """Ids of the selected genes."""
        return self._genes.var.index

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Which of the selected genes each selected dataset measured, boolean ``(n_vars, datasets)`` (computes, small).

        A zero of a gene that a study did not measure is no observation: leave such genes out of means over studies.
        """
        infos = [self.snapshot.dataset[i] for i in self.selection.datasets]
        with ThreadPoolExecutor(PLAN_THREADS) as threads:
            frames = threads.map(lambda info: read_var(self.location / info.path)[VAR_MEASURED].to_numpy(), infos)
            masks = {info.id: mask for info, mask in zip(infos, frames, strict=True)}
        whole = pd.DataFrame(masks, index=self.features.var.index)
        return whole if self.selection.genes is None else whole.iloc[self.selection.genes]

    @property
    def _selected_infos(self) -> tuple[DatasetInfo, ...]:
        """The datasets that say what there is; all of them where none has a selected cell."""
        return tuple(self.snapshot.dataset[i] for i in self.selection.datasets) or self.dataset_infos

    @cached_property
    def dataset_ids(self) -> tuple[str, ...]:
        """Ids of all datasets of the feature space, selected or not: the categories of the obs column ``dataset``."""
        return tuple(part.dataset for part in self.selection.parts)

    def served_dtype(self, name: str = "X") -> np.dtype[np.floating]:
        """Dtype in which a matrix is handed out."""
        matrices = [i.matrix[name] for i in self._selected_infos if name in i.matrix]
        dtypes = [served_dtype(np.dtype(m.dtype), m.largest) for m in matrices]
        return np.result_type(np.float32, *dtypes)

    def stored_dtype(self, name: str = "X") -> np.dtype[Any]:
        """Smallest dtype that a matrix of the selected datasets is stored in, all of them together."""
        dtypes = [np.dtype(i.matrix[name].dtype) for i in self._selected_infos if name in i.matrix]
        return np.result_type(*(dtypes or [np.dtype(np.float32)]))

    def _matrix(self, name: str) -> da.Array:
        from daodask._graphs import lazy_matrix

        self._require_everywhere(name.removeprefix("layers/"), lambda info: name in info.matrix, "layer")
        held = None if self.held is None else self.held.array(name, self.selection)
        if held is not None:
            return held
        return lazy_matrix(self.blocks, name, self.selection.genes, self.n_vars, self.served_dtype(name))

    def _obsm(self, name: str) -> da.Array:
        from daodask._graphs import lazy_obsm

        self._require_everywhere(name, lambda info: any(m.name == name for m in info.obsm), "obsm array")
        found = [m for i in self._selected_infos for m in i.obsm if m.name == name]
        widths = sorted({m.width for m in found})
        if len(widths) > 1:
            raise SelectionError(
                f"obsm array {name!r} has {widths} columns in different datasets; subset to alike ones"
            )
        held = None if self.held is None else self.held.array(f"obsm/{name}", self.selection)
        if held is not None:
            return held
        return lazy_obsm(self.blocks, name, widths[0], np.result_type(*(m.dtype for m in found)).name)

    def _is_alike(self, obsm: str) -> bool:
        return len({next((m.width for m in i.obsm if m.name == obsm), None) for i in self._selected_infos}) == 1

    def _require_everywhere(self, name: str, has: Callable[[DatasetInfo], bool], what: str) -> None:
        lacking = [i.id for i in self._selected_infos if not has(i)]
        if lacking:
            raise UnknownNameError(
                f"{what} {name!r} is not in {len(lacking)} of the selected datasets ({', '.join(lacking[:5])}"
                f"{', …' if len(lacking) > 5 else ''}); leave them out with subset(exclude={{'dataset': [...]}})"
            )

    # -- narrowing -------------------------------------------------------------------------------------------------

    def subset(
        self,
        *conditions: str | CellFunction | Rows | None,
        exclude: Mapping[str, object] | None = None,
        columns: Collection[str] | None = None,
        missing: Missing = "error",
        **equal: object,
    ) -> Store:
        """Narrow to the cells that meet every condition; nothing is copied or merged.

        Datasets are pruned by the snapshot first; of those left undecided, only the columns named are read (computes).

        Parameters
        ----------
        *conditions
            Each is a query, a function, or rows. A query on columns, such as ``"n_counts > 500 and donor_id != 'D3'"``,
            is parsed, never evaluated as code. A function is called with each partition of :attr:`obs` (of the cells
            that all else leaves, one call at a time, in any order) and returns a boolean per cell. Rows are a mask over
            the cells of this store or increasing positions among them, as in ``store[rows]``.
        exclude
            Column to what cells must not have, as in ``equal``. Cells of unknown value stay.
        columns
            What functions are handed; by default all columns, which are then all read.
        missing
            ``"ignore"``: a column or label that the store does not have is no error. No cell has a value in such a
            column, and none has such a label: what asks for it is met by no cell, and what excludes it by each.
        **equal
            Column to what cells must have: a value, a list or tuple of values, or a range, which is
            ``daodask.Between(low, high)``. A column that is called as a parameter is goes into a query.

        Returns
        -------
        Store
            With the same genes.

        Raises
        ------
        UnknownNameError
            There is no such column, or no cell of the whole store has such a label; the message suggests the nearest.
        SelectionError
            A condition says something that can't be meant, or a function returns something else than a mask.

        Examples
        --------
        >>> store.subset(cell_type=["T cell", "NK cell"], exclude={"assay": "Smart-seq2"})  # doctest: +SKIP
        >>> store.subset("donor_id == 'D1' or not passed", n_counts=daodask.Between(500, 2000))  # doctest: +SKIP
        >>> store.subset(lambda obs: obs["score"].isna(), columns=["score"])  # doctest: +SKIP
        """
        chosen = narrow(self, conditions, equal, exclude or {}, columns=columns, missing=missing)
        return replace(self, selection=chosen)

    def isel(self, obs: object = None, var: object = None) -> Store:
        """Cells and genes by position, as xarray has it.

        Parameters
        ----------
        obs
            A slice, a mask over the cells of this store, or increasing positions; all by default.
        var
            A slice, a mask, or positions in any order; all by default.
        """
        if isinstance(var, str) or (isinstance(var, Iterable) and any(isinstance(v, str) for v in var)):
            raise SelectionError(f"isel takes positions, got the names {var!r}; use store[:, names]")
        every = slice(None)
        return self[every if obs is None else obs, every if var is None else var]

    def sample(
        self,
        n: int | None = None,
        *,
        frac: float | None = None,
        by: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> Store:
        """Cells drawn at random without replacement, in store order; reads the columns ``by`` alone (computes).

        Parameters
        ----------
        n, frac
            How many cells, or which share of them: exactly so many; of a share, the nearest number, and a half is one.
        by
            An obs column, or several. Of the cells of each label as many are drawn as is their share of all, by largest
            remainders: the numbers of all labels are within one cell of proportion. Cells without a label are a label
            of their own.
        seed
            Whether a cell is drawn before another depends on this, on its dataset's id and on its row there alone. So
            a larger sample contains a smaller one, where ``by`` is not given.

        Raises
        ------
        UnknownNameError
            There is no such column.
        SelectionError
            More cells are asked for than there are, or not just one of ``n`` and ``frac``.
        """
        return replace(self, selection=sample(self, n, frac, by, seed))

    def split(
        self, fractions: Mapping[str, float], *, by: str | Sequence[str] | None = None, seed: int = 0
    ) -> dict[str, Store]:
        """Disjoint parts that are the whole together, such as for training and validation.

        Reads the columns ``by`` alone (computes).

        Parameters
        ----------
        fractions
            Name of each part to its share of the cells; shares add up to 1.
        by
            An obs column, or several: cells of the same labels, such as those of a donor, go to the same part. Cells
            without a label go together, too, as they may be anyone's. Labels mean the same in all studies; where
            donors of two studies only share a number, split by ``["dataset", "donor_id"]``.
        seed
            The same seed, the same parts, on any machine and with any version of numpy.

        Returns
        -------
        dict
            A store per part, by name. Without ``by`` their numbers of cells are exact (largest remainders). With it the
            groups come in random order, each goes to the part that lacks most cells, and a part exceeds its share by
            less than the largest group, unless it has just one.

        Raises
        ------
        UnknownNameError
            There is no such column.
        SelectionError
            The shares are none, or there are fewer groups (or cells) than parts.

        Examples
        --------
        >>> parts = store.split({"train": 0.8, "val": 0.2}, by="donor_id")  # doctest: +SKIP
        >>> loader = daodask.BatchLoader(parts["train"])  # doctest: +SKIP
        """
        found = split(self, fractions, by, seed)
        return {name: replace(self, selection=selection) for name, selection in found.items()}

    def save_selection(self, url: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> None:
        """Write which cells and genes these are into a small parquet file; what is there is replaced (computes).

        The file has the store's URL, snapshot and genes, the checksum of each dataset, and runs of rows: about a byte
        for a cell that stands alone, and next to none for a dataset that is selected as a whole.

        Parameters
        ----------
        url
            A local path or any fsspec URL.
        options
            fsspec options.
        """
        StoreLocation.parse(url, options).write(SavedSelection.of(self).to_parquet())

    def load_selection(
        self, url: str | os.PathLike[str], *, changed: Changed = "error", options: Mapping[str, Any] | None = None
    ) -> Store:
        """The cells and genes of a saved selection, whatever is selected here; reads the file (computes).

        Cells are found by dataset and row, and datasets by id and content: the store may have moved, or have got other
        row numbers.

        Parameters
        ----------
        url
            What :meth:`save_selection` wrote.
        changed
            What to do where the datasets are not those that the store had then. ``"error"`` says which are gone, were
            replaced or added. ``"keep"`` selects the cells of those that are as they were;
            ``daodask.read_selection(url).changes(store)`` then says which are not.
        options
            fsspec options.

        Raises
        ------
        StateError
            Datasets were removed, replaced or added since.
        FeatureSpaceError
            It is a selection of other genes.
        FormatError
            The file is no selection, or a damaged one.
        StoreNotFoundError
            There is no such file.
        """
        return replace(self, selection=read_selection(url, options=options).apply(self, changed=changed))

    def __and__(self, other: Store) -> Store:
        """The cells of both."""
        return self._combined(other, operator.and_)

    def __or__(self, other: Store) -> Store:
        """The cells of either."""
        return self._combined(other, operator.or_)

    def __invert__(self) -> Store:
        """All other cells of the store that was opened, whatever was selected before; the same genes."""
        return replace(self, selection=~self.selection)

    def _combined(self, other: Store, combine: Callable[[Selection, Selection], Selection]) -> Store:
        if not isinstance(other, Store):
            return NotImplemented
        ours, theirs = ((s.location.url, f"snapshot {s.snapshot.number}", s.feature_space.name) for s in (self, other))
        if ours != theirs:
            raise SelectionError(
                f"expected two subsets of one store, got {', '.join(ours)} and {', '.join(theirs)}; "
                f"open the store once, and narrow that one in different ways"
            )
        return replace(self, selection=combine(self.selection, other.selection))

    def read_part_obs(self, number: int, columns: list[str]) -> pd.DataFrame:
        """Obs columns of the selected cells of the part of that number (computes)."""
        part, info = self.selection.parts[number], self.dataset_infos[number]
        whole = BlockAddress(self.location / info.path, info.id, part.offset, 0, info.n_obs, part.rows)
        return self.read_block_obs(whole, columns)

    def read_block_obs(self, block: BlockAddress, columns: list[str]) -> pd.DataFrame:
        """Obs columns of a block's cells, from memory where they are there (computes)."""
        found = None if self.held is None else self.held.read_obs(block.local_rows + block.offset, columns)
        if found is None:
            return read_obs(block, self.obs_schema, self.dataset_ids, columns)
        return self._with_plain_strings(found)

    def _with_plain_strings(self, obs: pd.DataFrame) -> pd.DataFrame:
        """As they are read; dask has them in a type of its own."""
        strings = self._schema.strings
        columns: dict[str, Any] = {name: obs[name] for name in obs.columns if name in strings}
        plain = {name: column.to_numpy(dtype=object, na_value=None) for name, column in columns.items()}
        return obs.assign(**{name: pd.Series(values, obs.index, dtype=object) for name, values in plain.items()})

    def _require_columns(self, columns: Iterable[str]) -> None:
        for column in columns:
            if column not in self.obs_columns:
                raise UnknownNameError(f"obs has no column {column!r}; {suggest(column, self.obs_columns)}")

    def __getitem__(self, key: object) -> Store:
        """Slice cells, or cells and genes: ``store[:1000]``, ``store[mask]``, ``store[:, ["CD3E", "CD8A"]]``.

        Cells are given by a slice, a mask or increasing row positions, and stay in store order; genes by id, unique
        symbol, slice, mask or position, in the order given.

        Cells that are not selected cost nothing. Genes do: matrices are stored by cells, so one gene is read and
        decoded with all others of these cells, and only takes less memory. Where a dataset has a copy by gene
        (``by_gene:`` of the build file's ``layout:``), few genes are read from that, alone. Ask for all genes of
        interest at once.
        """
        rows, genes = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        selection = self.selection
        if not _is_all(rows):
            selection = selection.take(row_positions(rows, selection))
        if not _is_all(genes):
            selection = selection.take_genes(self._gene_positions(genes))
        return replace(self, selection=selection)

    def _gene_positions(self, genes: object) -> Int64Array:
        if isinstance(genes, slice):
            return np.arange(self.n_vars, dtype=np.int64)[genes]
        listed = [genes] if isinstance(genes, str | int | np.integer) else list(genes)  # type: ignore[call-overload]
        if all(isinstance(g, str) for g in listed):
            return self._genes.positions(listed)
        positions = np.asarray(listed)
        if positions.dtype == bool:
            if len(positions) != self.n_vars:
                raise SelectionError(f"expected a mask over {self.n_vars} genes, got one of length {len(positions)}")
            return np.flatnonzero(positions).astype(np.int64)
        if positions.dtype.kind not in "iu" or (
            len(positions) and not -self.n_vars <= positions.min() <= positions.max() < self.n_vars
        ):
            raise SelectionError(f"expected gene names, a mask, or positions below {self.n_vars}; got {listed[:5]!r}")
        return np.where(positions < 0, positions + self.n_vars, positions).astype(np.int64)

    # -- keeping in memory -----------------------------------------------------------------------------------------

    def persist(self, *, layers: Sequence[str] = (), obsm: Sequence[str] = (), client: Client | None = None) -> Store:
        """Keep X and obs in memory: that of a Dask cluster, or of this process (computes).

        On a cluster this returns at once, and blocks are read meanwhile. What is made of the store that is returned,
        and of subsets of it, takes blocks from there: ``X``, ``obs``, and so :meth:`to_anndata` and :meth:`to_xarray`.
        Conditions on obs, samples and counts take its columns from there, too. It is let go with the last of them.
        ``BatchLoader`` and the functions of daodask such as ``pseudobulk`` read the store itself, as they need no block
        as a whole; cells or genes that are not in memory are read, too.

        Parameters
        ----------
        layers, obsm
            What else is kept, by name.
        client
            The cluster's client; by default where dask computes, which is this process or the client made last.

        Returns
        -------
        Store
            Of the same cells and genes. A copy that is pickled reads the store again.

        Raises
        ------
        UnknownNameError
            There is no such layer or obsm array.

        Examples
        --------
        >>> cells = store.subset(tissue="blood")[:, markers].persist(client=client)  # doctest: +SKIP
        """
        from daodask._held import hold

        arrays = {"X": self.X}
        arrays |= {f"layers/{name}": self.layers[name] for name in layers}
        arrays |= {f"obsm/{name}": self.obsm[name] for name in obsm}
        return replace(self, held=hold(self.selection, arrays, self.obs, client))

    # -- taking out ------------------------------------------------------------------------------------------------

    def to_anndata(self, *, lazy: bool = False) -> anndata.AnnData:
        """The selected cells and genes as AnnData.

        Parameters
        ----------
        lazy
            Keep X, layers and obsm as dask arrays, on which scanpy's dask-aware functions run; obs is loaded either
            way. By default everything is loaded into memory (computes).

        Returns
        -------
        AnnData
            obs has the column ``dataset`` added; obs_names are the studies' own and may repeat; layers and obsm that
            not every selected dataset has, or not in the same width, are left out; ``uns["datasets"]`` has the facts of
            each dataset.
        """
        layers = {n: self.layers[n] for n in self.layers if self._is_everywhere(f"layers/{n}")}
        obsm = {n: self.obsm[n] for n in self.obsm if self._is_alike(n)}
        arrays = {
            "X": self.X,
            **{f"layers/{n}": a for n, a in layers.items()},
            **{f"obsm/{n}": a for n, a in obsm.items()},
        }
        pieces: Mapping[str, Any] = arrays if lazy else compute_matrices(arrays)
        return to_anndata(
            X=pieces["X"],
            obs=self._load_obs(self.obs_columns),
            var=self.var,
            layers={n: pieces[f"layers/{n}"] for n in layers},
            obsm={n: pieces[f"obsm/{n}"] for n in obsm},
            uns={"datasets": self.uns},
        )

    def to_xarray(self, *, obs: Sequence[str] | None = None, blocks: BlockKind = "csr") -> xr.Dataset:
        """The selected cells and genes as an xarray Dataset, of which matrices are lazy (computes the columns of obs).

        Parameters
        ----------
        obs
            Columns that become coordinates; all by default.
        blocks
            Of X and layers. ``"csr"`` can be selected, grouped by and summed, and most functions of each value are
            refused; ``X.data`` is what :attr:`X` is. ``"coo"`` are arrays of the package `sparse
            <https://sparse.pydata.org>`_ (extra ``xarray``): numpy's functions of each value work, in half as much
            memory again and with means some ten times as slow. With ``"dense"`` everything works that xarray has, in
            4 bytes for each gene of each of a block's cells.

        Returns
        -------
        Dataset
            ``X`` and each layer by its name, ``(obs, var)``; arrays of obsm by theirs, ``(obs, <name>_dim)``; in
            ``attrs["datasets"]`` the facts of each dataset. ``obs`` are row numbers in the store, ``var`` ids of genes;
            columns of obs and of var (``symbol``) are coordinates of these. Labels are objects, missing ones None or,
            with pandas 3, NaN; numbers that may be missing are floats. What has a name that is taken gets ``layer_``,
            ``obsm_``, ``obs_`` or ``var_`` before it.

        Raises
        ------
        UnknownNameError
            There is no such column.
        DependencyError
            COO blocks are asked for without the package for them.
        SpecError
            There are no such blocks.

        Notes
        -----
        Where flox is installed xarray groups with it, unless within ``xr.set_options(use_flox=False)``. It knows dense
        blocks, of which it was slower than xarray alone; it does not know CSR, nor variances of COO blocks, nor COO
        blocks without a value. Medians of groups need dense blocks that are loaded.

        Examples
        --------
        >>> cells = store.to_xarray(obs=["cell_type"])  # doctest: +SKIP
        >>> with xr.set_options(use_flox=False):  # doctest: +SKIP
        ...     cells["X"].groupby("cell_type").mean().compute()
        >>> cells.set_xindex("symbol").sel(symbol=["CD3E", "CD8A"])  # doctest: +SKIP
        """
        columns = list(self.obs_columns if obs is None else obs)
        self._require_columns(columns)
        return to_xarray(
            X=self.X,
            obs=self._load_obs(columns),
            var=self.var,
            layers={n: self.layers[n] for n in self.layers if self._is_everywhere(f"layers/{n}")},
            obsm={n: self.obsm[n] for n in self.obsm if self._is_alike(n)},
            uns={"datasets": self.uns},
            blocks=blocks,
        )

    def _is_everywhere(self, matrix: str) -> bool:
        return all(matrix in info.matrix for info in self._selected_infos)

    def _load_obs(self, columns: Iterable[str]) -> pd.DataFrame:
        numbers, columns = [n for n, part in enumerate(self.selection.parts) if part.n_obs], list(columns)
        held = None if self.held is None else self.held.read_obs(self.selection.store_rows, columns)
        if held is not None:
            return self._with_plain_strings(held)
        with ThreadPoolExecutor(PLAN_THREADS) as threads:
            frames = list(threads.map(lambda n: self.read_part_obs(n, columns), numbers))
        return pd.concat(frames) if frames else self.empty_obs[columns]

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def plot(self) -> Plots:
        """Pictures of the selected cells: ``composition``, ``depth`` and ``genes``; of the extra ``plot``."""
        # Pictures are made of analyses, which are made of stores: no import can say so from here.
        found: Plots = importlib.import_module("daodask.plot").Plots(self)
        return found

    def __repr__(self) -> str:
        from daodask._repr import store_text

        return store_text(self)

    def _repr_html_(self) -> str:
        from daodask._repr import store_html

        return store_html(self)


@dataclass(frozen=True, repr=False)
class _Lazy(Mapping[str, V], Generic[V]):
    """Names that are known, values that are made when asked for."""

    names: list[str]
    make: Callable[[str], V]
    what: str

    def __getitem__(self, name: str) -> V:
        if name not in self.names:
            raise UnknownNameError(f"there is no {self.what} {name!r}; {suggest(name, self.names)}")
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"{self.what}s: {', '.join(self.names) or 'none'}"


def _is_all(key: object) -> bool:
    return key is Ellipsis or (isinstance(key, slice) and key == slice(None))
