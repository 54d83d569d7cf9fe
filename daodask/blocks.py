"""Reading one block: all that a worker does for an analysis or a batch.

A :class:`BlockAddress` says which rows of which dataset; functions here turn it into a CSR matrix, a dense array or an
obs frame. They know no scheduler and keep no state but small caches of what is immutable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from daodask.arrays import open_group
from daodask.by_gene import GeneCopy, read_genes
from daodask.errors import CorruptStoreError
from daodask.format.manifest import ObsColumn
from daodask.format.spec import MEASURED_BY_SOURCE, OBS_NAMES
from daodask.gather import RowGroup, gather_csr, matrix_width
from daodask.parquet import parquet_metadata, read_row_groups
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, BoolArray, Int64Array

__all__ = ["BlockAddress", "empty_obs", "read_matrix", "read_measured_by_source", "read_obs", "read_obsm", "read_var"]

#: Runs of selected rows that are at most this far apart are read as one: decoding a few chunks of about 32 rows
#: costs less than another request.
_GAP_ROWS = 256


@dataclass(frozen=True, slots=True, eq=False)
class BlockAddress:
    """Some rows of one dataset.

    Parameters
    ----------
    dataset
        The dataset's directory.
    id
        The dataset's id, which its rows carry in the obs column ``dataset``.
    offset
        Number, in the opened store, of the dataset's first row.
    start, stop
        Row bounds within the dataset.
    rows
        The selected rows among these, increasing, as row numbers of the dataset; ``None`` for all.
    copies
        Of the dataset's matrices by gene, from which few genes are read.
    """

    dataset: StoreLocation
    id: str
    offset: int
    start: int
    stop: int
    rows: Int64Array | None = None
    copies: tuple[GeneCopy, ...] = ()

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.stop - self.start if self.rows is None else len(self.rows)

    @property
    def local_rows(self) -> Int64Array:
        """Row numbers within the dataset."""
        return np.arange(self.start, self.stop, dtype=np.int64) if self.rows is None else self.rows

    def by_gene(self, matrix: str, genes: Int64Array | None) -> GeneCopy | None:
        """The copy by gene of a matrix, where reading these genes from it takes fewer bytes; reads nothing."""
        if genes is None or not self.copies:
            return None
        rows = range(self.start, self.stop) if self.rows is None else self.rows
        found = next((copy for copy in self.copies if copy.matrix == matrix), None)
        return found if found is not None and found.pays(len(genes), rows) else None

    def runs(self) -> Iterator[tuple[int, int]]:
        """Row bounds to read: one run, or several where the selected rows lie far apart."""
        if self.rows is None:
            if self.stop > self.start:
                yield self.start, self.stop
            return
        for part in np.split(self.rows, np.flatnonzero(np.diff(self.rows) > _GAP_ROWS) + 1):
            if len(part):
                yield int(part[0]), int(part[-1]) + 1


def read_matrix(block: BlockAddress, name: str, genes: Int64Array | None, dtype: str) -> CSR:
    """Rows of X or a layer (computes).

    Parameters
    ----------
    block
        Which rows.
    name
        ``"X"`` or ``"layers/<name>"``.
    genes
        Columns to keep, in their order; ``None`` for all.
    dtype
        Of the values handed out.

    Returns
    -------
    csr_matrix
        ``(block.n_obs, genes)`` with sorted int32 indices.
    """
    rows, copy = block.local_rows, block.by_gene(name, genes)
    if copy is not None and genes is not None:
        return read_genes(block.dataset, copy, rows, genes, dtype)
    group = RowGroup(block.dataset, rows, np.arange(len(rows), dtype=np.int64))
    return gather_csr([group], name, matrix_width(block.dataset, name), genes=genes, dtype=dtype)


def read_obsm(block: BlockAddress, name: str, dtype: str) -> AnyArray:
    """Rows of a dense array per cell, ``(block.n_obs, width)``, in the dtype that all datasets share (computes)."""
    array = _open_array(block.dataset, f"obsm/{name}")
    runs = list(block.runs())
    whole: AnyArray = np.concatenate([array[:0], *(array[start:stop] for start, stop in runs)], dtype=dtype)
    if block.rows is None:
        return whole
    read = np.concatenate([np.empty(0, np.int64), *(np.arange(start, stop) for start, stop in runs)])
    return whole[np.searchsorted(read, block.rows)]


def read_obs(
    block: BlockAddress, schema: Sequence[ObsColumn], dataset_ids: Sequence[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Cell metadata of a block, in the dtypes that the whole store shares (computes).

    Parameters
    ----------
    block
        Which rows.
    schema
        The store's obs schema.
    dataset_ids
        Categories of the column ``dataset``.
    columns
        The columns wanted, in this order; all by default.

    Returns
    -------
    DataFrame
        Indexed by int64 row numbers in the store.
    """
    wanted = list(columns) if columns is not None else ["dataset", OBS_NAMES, *(c.name for c in schema)]
    shared = {c.name: c for c in (ObsColumn("dataset", "category", tuple(dataset_ids)), *schema)}
    shared[OBS_NAMES] = ObsColumn(OBS_NAMES, "string")
    table = _read_parquet_rows(block, [c for c in wanted if c != "dataset"])
    series = {}
    for name in wanted:
        column = shared[name]
        if name == "dataset":
            values = pd.Series(
                pd.Categorical.from_codes(
                    np.full(block.n_obs, list(dataset_ids).index(block.id)), dtype=category_dtype(column)
                )
            )
        elif name in table.column_names:
            values = conform(table.column(name), column)
        else:
            values = conform(pa.chunked_array([pa.nulls(block.n_obs, arrow_type(column))]), column)
        series[name] = values
    index = pd.Index(block.local_rows + block.offset, dtype=np.int64)
    frame = pd.DataFrame(series, columns=wanted)
    return frame.set_axis(index, axis=0)


def empty_obs(schema: Sequence[ObsColumn], dataset_ids: Sequence[str]) -> pd.DataFrame:
    """The frame that :func:`read_obs` returns, without a row: its dtypes are the store's."""
    columns = (ObsColumn("dataset", "category", tuple(dataset_ids)), ObsColumn(OBS_NAMES, "string"), *schema)
    series = {c.name: conform(pa.chunked_array([pa.nulls(0, arrow_type(c))]), c) for c in columns}
    return pd.DataFrame(series).set_axis(pd.Index([], dtype=np.int64), axis=0)


def read_var(dataset: StoreLocation) -> pd.DataFrame:
    """A dataset's gene metadata, with its measured-gene mask (computes)."""
    import anndata

    frame: pd.DataFrame = anndata.io.read_elem(_open_group(dataset)["var"])
    return frame


@lru_cache(maxsize=64)
def read_measured_by_source(dataset: StoreLocation) -> Mapping[str, BoolArray]:
    """Which genes each study measured that a dataset was shuffled of; of any other nothing (computes once)."""
    if not (dataset / MEASURED_BY_SOURCE).exists():
        return {}
    metadata = parquet_metadata(dataset / MEASURED_BY_SOURCE)
    names = metadata.schema.to_arrow_schema().names
    table = read_row_groups(dataset / MEASURED_BY_SOURCE, range(metadata.num_row_groups), names)
    return {name: table.column(name).to_numpy() for name in names}


# -- obs: arrow -> the shared dtypes -------------------------------------------------------------------------------


def _read_parquet_rows(block: BlockAddress, columns: Sequence[str]) -> pa.Table:
    location = block.dataset / "obs.parquet"
    metadata = parquet_metadata(location)
    present = set(metadata.schema.to_arrow_schema().names)
    bounds = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
    stored = [c for c in columns if c in present]
    if block.rows is None:
        groups = [i for i in range(metadata.num_row_groups) if bounds[i] < block.stop and bounds[i + 1] > block.start]
        table = read_row_groups(location, groups, stored)
        return table.slice(block.start - (int(bounds[groups[0]]) if groups else 0), block.stop - block.start)
    # Row groups without a selected row are left out, and with them their rows before any that is selected.
    n_selected = np.diff(np.searchsorted(block.rows, bounds))
    left_out = np.cumsum(np.where(n_selected, 0, np.diff(bounds)))
    table = read_row_groups(location, np.flatnonzero(n_selected).tolist(), stored)
    return table.take(pa.array(block.rows - np.repeat(left_out, n_selected)))


def arrow_type(column: ObsColumn) -> pa.DataType:
    if column.dtype in ("category", "string"):
        return pa.string()
    return pa.bool_() if column.dtype == "bool" else pa.from_numpy_dtype(np.dtype(column.dtype))


def category_dtype(column: ObsColumn) -> pd.CategoricalDtype:
    categories = pd.Index(list(column.categories), dtype=None if column.categories else object)
    if categories.inferred_type == "string":
        categories = categories.astype(object)
    return pd.CategoricalDtype(categories, column.ordered)


def conform(values: pa.ChunkedArray, column: ObsColumn) -> pd.Series:
    """Values of one dataset in the dtype of the store."""
    if pa.types.is_dictionary(values.type) and column.dtype != "category":
        values = values.cast(values.type.value_type)
    if column.dtype == "category":
        return _categorical(values, category_dtype(column))
    if column.dtype == "string":
        return pd.Series(values.to_numpy(zero_copy_only=False), dtype=object)
    target = np.dtype(column.dtype)
    if column.nullable and target.kind in "iub":
        name = "boolean" if target.kind == "b" else target.name.replace("int", "Int").replace("uI", "UI")
        nullable = pd.api.types.pandas_dtype(name)
        converted: pd.Series = values.cast(arrow_type(column)).to_pandas(types_mapper=lambda _: nullable)
        return converted
    return pd.Series(values.to_numpy(zero_copy_only=False)).astype(target)


def _categorical(values: pa.ChunkedArray, dtype: pd.CategoricalDtype) -> pd.Series:
    """Codes by looking up the few distinct labels, never the many cells."""
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    encoded = encoded.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], encoded.type)
    labels = encoded.dictionary.to_pylist()
    position = {label: code for code, label in enumerate(dtype.categories)}
    unknown = [label for label in labels if label is not None and label not in position]
    if unknown:
        raise CorruptStoreError(f"obs.parquet has the label {unknown[0]!r} that the snapshot's schema does not know")
    lookup = np.array([*(position.get(label, -1) for label in labels), -1], dtype=np.int64)
    indices = encoded.indices.fill_null(len(labels)).to_numpy(zero_copy_only=False)
    return pd.Series(pd.Categorical.from_codes(lookup[indices], dtype=dtype))


# -- opened arrays -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _open_group(dataset: StoreLocation) -> Any:
    return open_group(dataset)


@lru_cache(maxsize=1024)
def _open_array(dataset: StoreLocation, path: str) -> Any:
    return _open_group(dataset)[path]
