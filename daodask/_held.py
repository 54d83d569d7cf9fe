"""Blocks that are kept in the memory of a cluster, or of this process, and what narrower selections take of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from dask.base import tokenize

from daodask.selection import BlockRows, Selection
from daodask.types import Int64Array

if TYPE_CHECKING:
    import dask.array as da
    import dask.dataframe as dd
    import pandas as pd
    from distributed import Client

__all__ = ["Held", "hold"]

#: A held block, by number, and rows of it.
_Piece: TypeAlias = tuple[int, "slice | Int64Array"]


@dataclass(frozen=True, eq=False)
class Held:
    """Persisted collections of the cells and genes of a selection.

    Parameters
    ----------
    selection
        The selection.
    arrays
        ``"X"``, ``"layers/<name>"`` or ``"obsm/<name>"`` to a dask array.
    obs
        Cell metadata, in as many partitions as arrays have blocks.
    """

    selection: Selection
    arrays: Mapping[str, da.Array]
    obs: dd.DataFrame

    def array(self, name: str, selection: Selection) -> da.Array | None:
        """A matrix of a selection (lazy); ``None`` where not all of it is held."""
        import dask.array as da
        from dask.highlevelgraph import HighLevelGraph

        held = self.arrays.get(name)
        if held is None or selection is self.selection:
            return held
        genes = None if name.startswith("obsm/") else self._gene_positions(selection)
        blocks = selection.blocks()
        pieces = [self._pieces(block) for block in blocks]
        if not blocks or genes is _ABSENT or any(p is None for p in pieces):
            return None
        token = f"held-{tokenize(held.name, genes, pieces)}"
        columns = f"genes-{token}"
        graph: dict[Any, Any] = {columns: genes}
        for i, found in enumerate(pieces):
            taken = found or []
            keys = [(held.name, number, 0) for number, _ in taken]
            graph[token, i, 0] = (_take, keys, [rows for _, rows in taken], columns)
        width = held.shape[1] if genes is None else len(genes)
        chunks = (tuple(block.n_obs for block in blocks), (width,))
        source: Any = held
        layers = HighLevelGraph.from_collections(token, graph, dependencies=[source])
        return da.Array(layers, token, chunks, meta=held)

    def frame(self, selection: Selection, meta: pd.DataFrame) -> dd.DataFrame | None:
        """Cell metadata of a selection (lazy), which looks like ``meta``; ``None`` where not all of it is held."""
        import dask
        import dask.dataframe as dd

        if selection is self.selection:
            return self.obs
        blocks = selection.blocks()
        pieces = [self._pieces(block) for block in blocks]
        if not blocks or any(p is None for p in pieces):
            return None
        partitions = self.obs.to_delayed()
        call = dask.delayed(_take_frames, pure=True, traverse=True)
        frames = [call([partitions[i] for i, _ in found or []], [rows for _, rows in found or []]) for found in pieces]
        ends = [self._row_numbers(block)[[0, -1]] for block in blocks]
        divisions = (*(int(first) for first, _ in ends), int(ends[-1][1]))
        found: dd.DataFrame = dd.from_delayed(frames, meta=meta, divisions=divisions, verify_meta=False)
        return found

    def read_obs(self, rows: Int64Array, columns: Sequence[str]) -> pd.DataFrame | None:
        """Columns of cell metadata by row numbers in the store (computes); ``None`` where not all of them are held."""
        held = self.selection.store_rows
        places = np.searchsorted(held, rows)
        if not len(rows) or places[-1] == len(held) or (held[places] != rows).any():
            return None
        numbers = np.unique(np.searchsorted(self._bounds, places, side="right") - 1)
        found: pd.DataFrame = self.obs.partitions[numbers.tolist()][list(columns)].compute()
        return found if len(found) == len(rows) else found.loc[rows]

    @cached_property
    def _bounds(self) -> Int64Array:
        """Where held blocks begin among the selected rows, and where the last ends."""
        return np.cumsum([0, *(block.n_obs for block in self.selection.blocks())], dtype=np.int64)

    def _row_numbers(self, block: BlockRows) -> Int64Array:
        local = np.arange(block.start, block.stop, dtype=np.int64) if block.rows is None else block.rows
        return local + self.selection.parts[block.part].offset

    def _pieces(self, block: BlockRows) -> list[_Piece] | None:
        """Where the rows of a block are held."""
        part = self.selection.parts[block.part]
        rows = self._row_numbers(block) - part.offset
        if part.rows is not None:
            places = np.searchsorted(part.rows, rows)
            if not len(part.rows) or (part.rows[np.minimum(places, len(part.rows) - 1)] != rows).any():
                return None
            rows = places
        positions = rows + self.selection.bounds[block.part]
        numbers = np.searchsorted(self._bounds, positions, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        return [
            (int(numbers[low]), _as_slice(positions[low:high] - self._bounds[numbers[low]]))
            for low, high in pairwise(cuts)
        ]

    def _gene_positions(self, selection: Selection) -> Any:
        held, wanted = self.selection.genes, selection.genes
        if held is None or wanted is None:
            return wanted if held is None else _ABSENT
        place = {gene: position for position, gene in enumerate(held.tolist())}
        if not place.keys() >= set(wanted.tolist()):
            return _ABSENT
        return np.array([place[gene] for gene in wanted.tolist()], dtype=np.int64)


_ABSENT = object()


def hold(selection: Selection, arrays: Mapping[str, da.Array], obs: dd.DataFrame, client: Client | None = None) -> Held:
    """Keep collections in memory: of a client's cluster, or of what dask computes on (computes)."""
    persist: Any = _persisted if client is None else client.persist
    # Arrays and frames apart: dask warns where graphs of both kinds are computed together.
    kept = dict(zip(arrays, persist(list(arrays.values())), strict=True))
    return Held(selection, kept, persist([obs])[0])


def _persisted(collections: Sequence[Any]) -> Sequence[Any]:
    import dask

    kept: Sequence[Any] = dask.persist(*collections)
    return kept


def _as_slice(rows: Int64Array) -> slice | Int64Array:
    first, n = int(rows[0]), len(rows)
    return slice(first, first + n) if int(rows[-1]) == first + n - 1 else rows


def _take(blocks: Sequence[Any], rows: Sequence[Any], columns: Int64Array | None) -> Any:
    from dask.array.core import concatenate_lookup

    taken = [block[some] for block, some in zip(blocks, rows, strict=True)]
    whole = taken[0] if len(taken) == 1 else concatenate_lookup.dispatch(type(taken[0]))(taken, axis=0)
    return whole if columns is None else whole[:, columns]


def _take_frames(frames: Sequence[Any], rows: Sequence[Any]) -> Any:
    import pandas as pd

    return pd.concat([frame.iloc[some] for frame, some in zip(frames, rows, strict=True)])
