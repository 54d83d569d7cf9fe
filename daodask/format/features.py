"""A feature space: the ordered genes that all its datasets share, as a frame, as parquet and as a content hash."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from daodask.errors import FormatError, UnknownNameError, suggest
from daodask.types import Int64Array

__all__ = ["GENE_ID", "SYMBOL", "FeatureSpace"]

#: Name of the index column in the parquet file.
GENE_ID = "gene_id"
#: Column of ``var`` by which genes are found beside their ids.
SYMBOL = "symbol"


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Ordered genes: ``var`` has unique string ids as index and plain columns (``symbol``, ``length``, ``biotype``, …).

    Two spaces are the same when their :attr:`hash` is.
    """

    name: str
    var: pd.DataFrame
    organism: str = ""

    def __post_init__(self) -> None:
        repeated = self.var.index[self.var.index.duplicated()]
        if len(repeated):
            raise FormatError(f"feature space {self.name!r}: expected unique gene ids, got {repeated[0]!r} twice")
        lacking = self.var.columns[self.var.isna().any()]
        if len(lacking):
            raise FormatError(
                f"feature space {self.name!r}: expected every gene to have a {lacking[0]!r}, got some without"
            )

    def __len__(self) -> int:
        return len(self.var)

    @cached_property
    def hash(self) -> str:
        """First 32 hex digits of the SHA-256 over number of genes, ids and columns; ``SPEC.md`` has each byte."""
        digest = hashlib.sha256(len(self.var).to_bytes(8, "little"))
        for title, values in [(GENE_ID, self.var.index), *((str(c), self.var[c]) for c in self.var.columns)]:
            texts = [str(text).encode() for text in (title, *values)]
            digest.update(b"".join(part for text in texts for part in (len(text).to_bytes(8, "little"), text)))
        return digest.hexdigest()[:32]

    def positions(self, genes: Iterable[Hashable]) -> Int64Array:
        """Columns of genes given by id or, where it is unique, by symbol; in the order given.

        Raises
        ------
        UnknownNameError
            A gene is not there, or its symbol stands for several ids.
        """
        found = [self._position(str(g)) for g in genes]
        return np.asarray(found, dtype=np.int64)

    def _position(self, gene: str) -> int:
        position = self._by_id.get(gene)
        if position is not None:
            return position
        candidates = self._by_symbol.get(gene, ())
        if len(candidates) == 1:
            return int(candidates[0])
        if len(candidates) > 1:
            ids = ", ".join(repr(self.var.index[i]) for i in candidates)
            raise UnknownNameError(f"symbol {gene!r} stands for several genes of {self.name!r}: {ids}; give the id")
        hint = suggest(gene, [*self._by_symbol, *self._by_id], most=3)
        raise UnknownNameError(f"feature space {self.name!r} has no gene {gene!r}; {hint}")

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {str(g): i for i, g in enumerate(self.var.index)}

    @cached_property
    def _by_symbol(self) -> dict[str, list[int]]:
        table: dict[str, list[int]] = {}
        if SYMBOL in self.var:
            for i, symbol in enumerate(self.var[SYMBOL]):
                table.setdefault(str(symbol), []).append(i)
        return table

    def to_parquet(self) -> bytes:
        """The feature space as a parquet file that any parquet tool reads: the id column first."""
        columns = {GENE_ID: pa.array(self.var.index.astype(str), pa.string())}
        for name in self.var.columns:
            array = pa.Array.from_pandas(self.var[name])
            # Some dtypes of text become large_string: the file is the same whatever pandas holds text in.
            columns[str(name)] = array.cast(pa.string()) if pa.types.is_large_string(array.type) else array
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes, *, name: str, organism: str = "") -> FeatureSpace:
        """Read what :meth:`to_parquet` wrote; text columns come back as ``object``."""
        table = pq.read_table(io.BytesIO(data))
        frame = table.to_pandas(ignore_metadata=True, strings_to_categorical=False)
        for column in frame.columns[frame.dtypes.map(pd.api.types.is_string_dtype)]:
            frame[column] = frame[column].astype(object)
        frame.index = pd.Index(frame.pop(GENE_ID).to_numpy(), dtype=object)
        return cls(name, frame, organism)
