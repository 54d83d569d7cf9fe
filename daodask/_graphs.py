"""Block addresses into lazy collections: partition i, chunk i of X and chunk i of any layer are the same cells."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from dask.base import normalize_token, tokenize

from daodask.blocks import BlockAddress, empty_obs, read_matrix, read_obs, read_obsm
from daodask.caching import cached
from daodask.format.spec import OBS_NAMES
from daodask.schemas import ObsSchema, SchemaAddress
from daodask.sparse import CSRBlock, as_block
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Int64Array

if TYPE_CHECKING:
    import dask.array as da
    import dask.dataframe as dd
    import pandas as pd

__all__ = ["lazy_matrix", "lazy_obs", "lazy_obsm"]


def lazy_matrix(
    blocks: Sequence[BlockAddress], name: str, genes: Int64Array | None, n_vars: int, dtype: np.dtype[np.floating]
) -> da.Array:
    """A dask array of CSR blocks, one task a block, which dask can reduce (lazy)."""
    import dask.array as da

    token = _token("read-x" if name == "X" else "read-layer", blocks, name, genes, dtype)
    # The genes are one node that all tasks refer to, so that a long list is not in every task.
    shared = f"genes-{token}"
    served = dtype.name
    graph: dict[object, object] = {
        (token, i, 0): (_read_block, block, name, shared, served) for i, block in enumerate(blocks)
    }
    graph[shared] = genes
    chunks = (_row_chunks(blocks), (n_vars,))
    if not blocks:
        graph[token, 0, 0] = CSRBlock((0, n_vars), dtype=dtype)
    return da.Array(graph, token, chunks, meta=CSRBlock((0, 0), dtype=dtype))


def _read_block(block: BlockAddress, name: str, genes: Int64Array | None, dtype: str) -> CSRBlock:
    key = (*_cells(block), name, None if genes is None else _digest(genes), dtype)
    # A matrix of its own around the same arrays, as its attributes can be set.
    return as_block(cached(key, lambda: read_matrix(block, name, genes, dtype), _freeze_matrix))


def _read_dense(block: BlockAddress, name: str, dtype: str) -> AnyArray:
    found: AnyArray = cached((*_cells(block), f"obsm/{name}", dtype), lambda: read_obsm(block, name, dtype), _freeze)
    return found


def _cells(block: BlockAddress) -> tuple[Hashable, ...]:
    """Which cells a block has, as a cache knows them."""
    rows = None if block.rows is None else _digest(block.rows)
    return block.dataset, block.offset, block.start, block.stop, rows


def _digest(numbers: Int64Array) -> bytes:
    return hashlib.sha256(numbers.tobytes()).digest()


def _freeze(array: AnyArray) -> int:
    """Make an array that is kept read-only; its size."""
    array.flags.writeable = False
    return array.nbytes


def _freeze_matrix(matrix: CSR) -> int:
    return sum(_freeze(array) for array in (matrix.data, matrix.indices, matrix.indptr))


def lazy_obsm(blocks: Sequence[BlockAddress], name: str, width: int, dtype: str) -> da.Array:
    """A dask array of dense blocks, one task a block (lazy)."""
    import dask.array as da

    token = _token("read-obsm", blocks, name, dtype)
    graph: dict[object, object] = {(token, i, 0): (_read_dense, block, name, dtype) for i, block in enumerate(blocks)}
    if not blocks:
        graph[token, 0, 0] = np.empty((0, width), dtype=dtype)
    return da.Array(graph, token, (_row_chunks(blocks), (width,)), meta=np.empty((0, 0), dtype=dtype))


def lazy_obs(blocks: Sequence[BlockAddress], address: SchemaAddress) -> dd.DataFrame:
    """A dask dataframe with known divisions (row numbers in the store) and known categories (lazy)."""
    import dask
    import dask.dataframe as dd

    schema = address.schema()
    empty = empty_obs(schema.columns, schema.dataset_ids)
    # What dask's configuration asks for.
    string = dd.from_pandas(empty[[OBS_NAMES]], npartitions=1).dtypes[OBS_NAMES]
    meta = _with_strings(empty, schema, string)
    if not blocks:
        return cast(dd.DataFrame, dd.from_pandas(meta, npartitions=1))
    first = [block.offset + int(block.start if block.rows is None else block.rows[0]) for block in blocks]
    final = blocks[-1]
    last = final.offset + int(final.stop - 1 if final.rows is None else final.rows[-1])
    # dask would add a step to each task, for strings that reads return as it wants them.
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.from_map(
            _read_obs_partition,
            _Addresses(blocks),
            args=(address, string),
            meta=meta,
            divisions=(*first, last),
            label="read-obs",
            enforce_metadata=False,
        )
    return cast(dd.DataFrame, frame)


def _read_obs_partition(
    block: BlockAddress, address: SchemaAddress, string: Any, columns: list[str] | None = None
) -> pd.DataFrame:
    # dask projects columns into reads whose function has an argument of this name.
    schema = address.schema()

    def read() -> pd.DataFrame:
        return _with_strings(read_obs(block, schema.columns, schema.dataset_ids, columns), schema, string)

    key = (*_cells(block), address, str(string), None if columns is None else tuple(columns))
    kept: pd.DataFrame = cached(key, read, lambda obs: int(obs.memory_usage(deep=True).sum()))
    return kept.copy()


def _with_strings(obs: pd.DataFrame, schema: ObsSchema, dtype: Any) -> pd.DataFrame:
    return obs.astype({name: dtype for name in obs.columns if name in schema.strings})


def _row_chunks(blocks: Sequence[BlockAddress]) -> tuple[int, ...]:
    return tuple(block.n_obs for block in blocks) or (0,)


def _token(label: str, blocks: Sequence[BlockAddress], *arguments: object) -> str:
    """A name that is the same for the same read, so that dask shares it between what is computed together."""
    return f"{label}-{tokenize(_Addresses(blocks), *arguments)}"


class _Addresses(Sequence[BlockAddress]):
    """Blocks as dask takes them: it would look at each field of 100,000 of them to tell two reads apart."""

    def __init__(self, blocks: Sequence[BlockAddress]) -> None:
        self._blocks = tuple(blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, index: int) -> BlockAddress: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BlockAddress]: ...
    def __getitem__(self, index: int | slice) -> BlockAddress | Sequence[BlockAddress]:
        return self._blocks[index]

    def __dask_tokenize__(self) -> object:
        datasets: dict[tuple[StoreLocation, str, int], int] = {}
        rows, digest = [], hashlib.sha256()
        for b in self._blocks:
            number = datasets.setdefault((b.dataset, b.id, b.offset), len(datasets))
            rows.append((number, b.start, b.stop, -1 if b.rows is None else len(b.rows)))
            digest.update(b"" if b.rows is None else b.rows.tobytes())
        return normalize_token([list(datasets), np.array(rows), digest.hexdigest()])
