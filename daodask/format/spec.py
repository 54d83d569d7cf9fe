"""Names, numbers and layout rules of the store format; ``SPEC.md`` beside this file is the normative text."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = [
    "BY_GENE",
    "CHECKSUMS",
    "DATASETS",
    "DEFAULT_BLOCK_ROWS",
    "FEATURES",
    "FORMAT_VERSION",
    "ID_PATTERN",
    "MATRIX_KINDS",
    "MEASURED_BY_SOURCE",
    "OBS_NAMES",
    "RESERVED_OBS_COLUMNS",
    "SCRATCH",
    "SNAPSHOTS",
    "SOURCE_DATASET",
    "SOURCE_ROW",
    "VAR_MEASURED",
    "Layout",
    "block_row_dtype",
    "dataset_path",
    "exact_integer_dtype",
    "feature_path",
    "index_dtype",
    "served_dtype",
    "snapshot_path",
]

#: What this daodask writes, and the newest that it reads.
FORMAT_VERSION: Final = 1

SNAPSHOTS: Final = "snapshots"
FEATURES: Final = "features"
DATASETS: Final = "datasets"
#: The file of a dataset that has size and SHA-256 of each of its other files.
CHECKSUMS: Final = "checksums.json"
#: The zarr group of a dataset with copies of matrices by gene; no member of the dataset's own group.
BY_GENE: Final = "by_gene"
#: What builds in progress leave for their resumption; never part of a store's content.
SCRATCH: Final = "scratch"

#: Ids become path parts and URL parts, so they hold no separator, no space and no leading dot.
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

#: Every store has these obs columns, the last one as AnnData's name of the index; a study may not bring its own.
OBS_NAMES: Final = "obs_names"
RESERVED_OBS_COLUMNS: Final = ("dataset", OBS_NAMES, "_index")

#: The obs columns of a shuffled dataset that say where each cell was: the study, and its row there.
SOURCE_DATASET: Final = "source_dataset"
SOURCE_ROW: Final = "source_row"
#: The file of a dataset of several studies that has which genes each of them measured.
MEASURED_BY_SOURCE: Final = "measured.parquet"

#: The boolean column of a dataset's var that says which genes the study measured.
VAR_MEASURED: Final = "measured"

#: What the values of a matrix are: proven counts, declared normalised values, or anything else.
MATRIX_KINDS: Final = ("counts", "normalised", "other")

DEFAULT_BLOCK_ROWS: Final = 16_384
_CHUNK_ROWS: Final = 32
_SHARD_BYTES: Final = 256 * 2**20
#: Elements of an inner chunk by gene, at most: a gene of a block of 16,384 cells has about 1,600. With fewer, the index
#: of the shard, which is read first, would be larger than what is read of a few genes; with more, that itself.
_GENE_CHUNK: Final = 8_192
_CHUNK_STEP: Final = 1_024


@dataclass(frozen=True, slots=True)
class Layout:
    """How the arrays of a dataset are cut and compressed.

    Parameters
    ----------
    block_rows
        Rows of a block: the unit of a dask chunk, an obs partition and a worker's task.
    codec
        ``"lz4"`` (fast to write), ``"lz4hc"`` (fast to read), ``"zstd"`` (smaller), ``"zstd-delta"`` (half of lz4, for
        what is read over a network) or ``"none"``.
    chunk_rows
        Rows whose mean number of non-zeros makes an inner chunk: what one random row costs to decode.
    shard_bytes
        Raw bytes of a shard, which is one file or object.
    by_gene
        Shell patterns of the matrices (``"X"``, ``"layers/<name>"``) that are stored by gene, too.
    """

    block_rows: int = DEFAULT_BLOCK_ROWS
    codec: str = "lz4"
    chunk_rows: int = _CHUNK_ROWS
    shard_bytes: int = _SHARD_BYTES
    by_gene: tuple[str, ...] = ()

    def chunk_length(self, nnz: int, n_obs: int) -> int:
        """Elements of an inner chunk: the non-zeros of ``chunk_rows`` average rows, as a multiple of 1024."""
        mean = nnz / n_obs if n_obs else 0
        return max(1024, -(-int(mean * self.chunk_rows) // 1024) * 1024)

    def shard_length(self, chunk_length: int, nnz: int, itemsize: int) -> int:
        """Elements of a shard: a multiple of the chunk, no longer than the array needs."""
        most = max(1, self.shard_bytes // (chunk_length * itemsize))
        needed = max(1, -(-nnz // chunk_length))
        return chunk_length * min(most, needed)

    def is_by_gene(self, matrix: str) -> bool:
        """Whether the matrix of that name is stored by gene, too."""
        return any(fnmatch.fnmatchcase(matrix, pattern) for pattern in self.by_gene)

    def gene_chunk_length(self, most: int) -> int:
        """Elements of an inner chunk by gene, where the block with most non-zeros has so many."""
        return min(_GENE_CHUNK, max(1, -(-most // _CHUNK_STEP)) * _CHUNK_STEP)

    def gene_shard_length(self, most: int) -> int:
        """Elements of a shard by gene, which holds a block, whatever ``shard_bytes`` says."""
        chunk = self.gene_chunk_length(most)
        return chunk * max(1, -(-most // chunk))

    def block_bounds(self, n_obs: int) -> tuple[int, ...]:
        """Row bounds ``(0, …, n_obs)`` of the blocks of a dataset; ``(0,)`` where it has no row."""
        return (*range(0, n_obs, self.block_rows), n_obs) if n_obs else (0,)


def snapshot_path(number: int) -> str:
    """Path of a snapshot below the store's URL."""
    return f"{SNAPSHOTS}/{number:08d}.json"


def feature_path(content_hash: str) -> str:
    """Path of a feature space below the store's URL."""
    return f"{FEATURES}/{content_hash}.parquet"


def dataset_path(dataset_id: str, token: str) -> str:
    """Path of a dataset below the store's URL."""
    return f"{DATASETS}/{dataset_id}.{token}"


def index_dtype(nnz: int, n_vars: int) -> np.dtype[np.signedinteger]:
    """Dtype of ``indices`` and ``indptr`` alike: SciPy's loops refuse them where they differ or have no sign.

    A narrower dtype of ``indices`` would save no bytes, as the compressor takes the zeros out, and a seventh of the
    decoding.
    """
    return np.dtype(np.int32 if max(nnz, n_vars) < 2**31 else np.int64)


def block_row_dtype(block_rows: int) -> np.dtype[np.integer]:
    """Dtype of row numbers within a block, of a copy by gene."""
    return np.dtype(np.uint16 if block_rows <= 2**16 else np.int64)


def exact_integer_dtype(largest: int) -> np.dtype[np.unsignedinteger]:
    """Smallest unsigned dtype for counts up to ``largest``; never uint8, which overflows silently when multiplied."""
    for dtype in (np.uint16, np.uint32, np.uint64):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise OverflowError(f"{largest} does not fit 64 bits")


def served_dtype(stored: np.dtype[np.generic], largest: float) -> np.dtype[np.floating]:
    """Floating dtype that daodask hands out: float32, but float64 where float32 would round a stored value.

    float32 holds every integer up to 2**24.
    """
    exact = largest <= 2**24 if stored.kind in "iu" else stored.itemsize <= 4
    return np.dtype(np.float32 if exact else np.float64)
