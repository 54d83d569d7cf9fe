"""Rows from anywhere in a store, gathered into one matrix in any order: decode, then scatter while still in cache.

A gather is first planned: which chunks of which rows go where. Chunks are then decoded piece by piece, on threads
where there are some, and each row's part of a chunk is copied once, to its final place. The kernels are imported
late, as the compiler behind them is slow to import.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from daodask._foreign import Decoders, find_decoders
from daodask.arrays import Array, Encoded, group_attributes, open_array, take
from daodask.buffers import BufferPool
from daodask.errors import CorruptStoreError
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, Int64Array
from daodask.waiting import as_fetched, side_by_side
from daodask.work_sharing import WorkSharingPool

__all__ = [
    "RowGroup",
    "csr_of",
    "decode_all",
    "decode_into",
    "gather_csr",
    "gather_dense",
    "gather_runs",
    "matrix_width",
]

#: Chunks of a piece, which is what a thread does at a time, at least: enough to outweigh what it costs in Python.
_LEAST_CHUNKS = 16
#: Chunks of a piece that has to be fetched, at most: the first are decoded while others are on their way.
_MOST_FETCHED = 64
#: Pieces for each processor: the other windows that are read give those that are done first something to do.
_SHARES = 2
#: Elements of what is taken for a chunk where only zarr-python knows the chunks.
_UNKNOWN_CHUNK = 65_536

#: What is larger has left the cache when it is read, so that it need not go through it when it is written.
_CACHE_BYTES = 32 * 2**20
#: That :func:`daodask.kernels.scatter_dense` may look at, or write, past the end of what it is given.
_SPARE_WORDS = 32
#: Codecs that compiled loops know.
_COMPILED = {"": 0, "blosc": 1}

Empty = Callable[[Any, Any], AnyArray]
#: Whether a column is wanted, as a bit and as a byte, and which one it becomes.
_DenseLookup = tuple[AnyArray, AnyArray, AnyArray]
#: Bounds among the needed chunks, and among the rows.
_Cut = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class RowGroup:
    """Rows of one dataset: ``rows`` in order, repeated or not, ``place`` the row of the result that each becomes."""

    dataset: StoreLocation
    rows: Int64Array
    place: Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Some chunks of arrays of one dataset, by number, and the rows that have elements in them.

    ``fetched`` are the chunks of each array, where they had to come from elsewhere and are here already.
    """

    arrays: tuple[Array, ...]
    chunks: Int64Array
    low: Int64Array
    high: Int64Array
    place: Int64Array
    fetched: tuple[Encoded, ...] = ()

    @property
    def dataset(self) -> StoreLocation:
        """Of the arrays."""
        return self.arrays[0].dataset

    @property
    def is_compiled(self) -> bool:
        """Whether compiled loops decode all of its chunks."""
        return None not in map(_decoders, self.arrays)


def matrix_width(dataset: StoreLocation, name: str) -> int:
    """Genes of a dataset's matrix."""
    return int(group_attributes(dataset, name)["shape"][1])


def gather_csr(
    groups: Sequence[RowGroup],
    name: str,
    n_vars: int,
    *,
    genes: Int64Array | None = None,
    dtype: str = "float32",
    workers: WorkSharingPool | None = None,
    pool: BufferPool | None = None,
) -> CSR:
    """Rows as CSR (computes).

    Parameters
    ----------
    groups
        Rows of datasets; their places are together ``0 … n - 1``.
    name
        ``"X"`` or ``"layers/<name>"``.
    n_vars
        Genes of the feature space.
    genes
        Columns to keep, in their order; all by default.
    dtype
        Of the values.
    workers
        Threads that do pieces side by side.
    pool
        Where to take the arrays of values and indices from.

    Returns
    -------
    csr_matrix
        int32 indices, sorted in each row.
    """
    empty: Empty = np.empty if pool is None else pool.empty
    bounds = _all_row_bounds(groups, name)
    indptr = _indptr(groups, [high - low for low, high in bounds])
    nnz = int(indptr[-1])
    data, indices = empty(nnz, dtype), empty(nnz, np.int32)
    work: list[tuple[Any, ...]] = [
        (piece, indptr, *outs)
        for group, (low, high) in zip(groups, bounds, strict=True)
        for paths, outs in _read_together(group.dataset, name, data, indices)
        for piece in _pieces(group, paths, low, high)
    ]
    _run(_scatter_piece, work, workers)
    n_obs = len(indptr) - 1
    if genes is None:
        return csr_of(data, indices, indptr, (n_obs, n_vars))
    return _select(data, indices, indptr, (n_obs, n_vars), genes, empty)


def gather_dense(
    groups: Sequence[RowGroup],
    name: str,
    n_vars: int,
    *,
    genes: Int64Array | None = None,
    dtype: str = "float32",
    workers: WorkSharingPool | None = None,
    pool: BufferPool | None = None,
) -> AnyArray:
    """Rows as a dense array ``(rows, genes)`` (computes); parameters as of :func:`gather_csr`."""
    empty: Empty = np.empty if pool is None else pool.empty
    n_obs = sum(len(group.rows) for group in groups)
    out = empty((n_obs, n_vars if genes is None else len(genes)), dtype)
    lookup = _dense_lookup(genes, n_vars)
    work: list[tuple[Any, ...]] = []
    for group, (low, high) in zip(groups, _all_row_bounds(groups, name), strict=True):
        out[group.place[low == high]] = 0
        if not _chunks_match(group.dataset, name):
            alone = RowGroup(group.dataset, group.rows, np.arange(len(group.rows), dtype=np.int64))
            out[group.place] = gather_csr([alone], name, n_vars, genes=genes, dtype=dtype).toarray()
        else:
            paths = (f"{name}/indices", f"{name}/data")
            work += [(piece, lookup, out) for piece in _pieces(group, paths, low, high, whole_rows=True)]
    _run(_scatter_dense_piece, work, workers)
    return out


def gather_runs(
    dataset: StoreLocation,
    outs: Sequence[tuple[str, AnyArray]],
    low: Int64Array,
    high: Int64Array,
    begins: Int64Array,
) -> None:
    """Runs of elements of arrays of the same length (computes).

    Parameters
    ----------
    dataset
        Directory of a zarr group.
    outs
        Path of each array, and where its elements go, in the dtype of that.
    low, high
        Bounds of the runs, increasing.
    begins
        Where each run goes to.
    """
    runs = RowGroup(dataset, low, np.arange(len(low), dtype=np.int64))
    work = [(piece, begins, out) for path, out in outs for piece in _pieces(runs, (path,), low, high)]
    _run(_scatter_piece, work, None)


def _run(function: Callable[..., None], work: Sequence[tuple[Any, ...]], workers: WorkSharingPool | None) -> None:
    """Do all pieces; what has to be fetched is asked for at once, and decoded as it comes."""
    if _is_remote([arguments[0].dataset for arguments in work]):
        _run_fetched(function, work, workers)
        return
    if workers is not None and len(work) > 1:
        workers.run(function, work)
        return
    for arguments in work:
        function(*arguments)


def _run_fetched(
    function: Callable[..., None], work: Sequence[tuple[Any, ...]], workers: WorkSharingPool | None
) -> None:
    _load_indexes([arguments[0] for arguments in work])
    decoding = []
    try:
        for arguments in as_fetched(_fetch, work):
            if workers is None:
                function(*arguments)
            else:
                decoding.append(workers.submit(function, *arguments))
        for future in decoding:
            future.result()
    finally:
        for future in decoding:
            future.cancel()


def _is_remote(datasets: Sequence[StoreLocation]) -> bool:
    return any(not dataset.is_local for dataset in dict.fromkeys(datasets))


def _load_indexes(pieces: Sequence[_Piece]) -> None:
    """Of each shard once: the pieces of one would all ask for it."""
    chunks: dict[Array, list[Int64Array]] = {}
    for piece in pieces:
        for array in piece.arrays:
            if array.spec is not None:
                chunks.setdefault(array, []).append(piece.chunks)
    known = [(array, np.concatenate(numbers)) for array, numbers in chunks.items()]
    side_by_side(lambda needed: needed[0].load_indexes(needed[1]), known, remote=True)


def _fetch(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same work with the chunks of its piece, of such arrays as are not left to zarr-python."""
    piece, *others = arguments
    if any(array.spec is None for array in piece.arrays):
        return arguments
    return replace(piece, fetched=tuple(array.fetch(piece.chunks) for array in piece.arrays)), *others


# -- planning ----------------------------------------------------------------------------------------------------------


def _row_bounds(group: RowGroup, name: str) -> tuple[Int64Array, Int64Array]:
    """Element bounds of each row."""
    indptr = open_array(group.dataset, f"{name}/indptr")
    if not len(group.rows):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if not group.dataset.is_local:  # both at once
        take(indptr, np.unique(np.concatenate([group.rows, group.rows + 1])))
    return take(indptr, group.rows).astype(np.int64), take(indptr, group.rows + 1).astype(np.int64)


def _all_row_bounds(groups: Sequence[RowGroup], name: str) -> list[tuple[Int64Array, Int64Array]]:
    remote = _is_remote([group.dataset for group in groups])
    return side_by_side(lambda group: _row_bounds(group, name), groups, remote=remote)


def _indptr(groups: Sequence[RowGroup], lengths: Sequence[Int64Array]) -> Int64Array:
    indptr = np.zeros(sum(len(group.rows) for group in groups) + 1, dtype=np.int64)
    for group, length in zip(groups, lengths, strict=True):
        indptr[group.place + 1] = length
    return np.cumsum(indptr, out=indptr)


def _read_together(
    dataset: StoreLocation, name: str, data: AnyArray, indices: AnyArray
) -> list[tuple[tuple[str, ...], tuple[AnyArray, ...]]]:
    """Paths of arrays that are read together, and what they are read into: as few Python steps as there can be.

    What has to be fetched is fetched apart, all at once.
    """
    of_data, of_indices = f"{name}/data", f"{name}/indices"
    if dataset.is_local and _chunks_match(dataset, name):
        return [((of_data, of_indices), (data, indices))]
    return [((of_data,), (data,)), ((of_indices,), (indices,))]


def _chunks_match(dataset: StoreLocation, name: str) -> bool:
    """Whether values and indices are cut alike, so that chunks of both can be read side by side."""
    specs = [open_array(dataset, f"{name}/{what}").spec for what in ("data", "indices")]
    return all(s is not None for s in specs) and len({s.chunk_length for s in specs if s is not None}) == 1


def _pieces(
    group: RowGroup, paths: tuple[str, ...], low: Int64Array, high: Int64Array, *, whole_rows: bool = False
) -> Iterator[_Piece]:
    """Share the chunks that hold a group's rows out over pieces, however far apart they lie.

    A row whose elements lie in two pieces is in both, and each copies its part; with ``whole_rows`` pieces are cut
    between rows, and a chunk may be in two.
    """
    filled = high > low
    low, high, place = low[filled], high[filled], group.place[filled]
    arrays = tuple(open_array(group.dataset, path) for path in paths)
    spec = arrays[0].spec
    chunk = _UNKNOWN_CHUNK if spec is None else spec.chunk_length
    first, last = low // chunk, (high - 1) // chunk
    needed = _needed_chunks(first, last)
    step = 1 if spec is None else _piece_chunks(len(needed), group.dataset.is_local)
    for begin, end, a, b in (_cut_rows if whole_rows else _cut_chunks)(needed, first, last, step):
        yield _Piece(arrays, needed[begin:end], low[a:b], high[a:b], place[a:b])


def _piece_chunks(n_chunks: int, is_local: bool) -> int:
    """Into pieces of how many chunks so many are cut."""
    fair = max(_LEAST_CHUNKS, -(-n_chunks // (_SHARES * len(os.sched_getaffinity(0)))))
    return fair if is_local else min(fair, _MOST_FETCHED)


def _needed_chunks(first: Int64Array, last: Int64Array) -> Int64Array:
    """Numbers of the chunks from each row's first to its last one, increasing."""
    if not len(first):
        return first
    # Rows are in order; marking is faster than sorting what is nearly sorted.
    begin = int(first[0])
    needed = np.zeros(int(last[-1]) + 1 - begin, dtype=bool)
    for k in range(int((last - first).max()) + 1):
        needed[np.minimum(first + k, last) - begin] = True
    return np.flatnonzero(needed) + begin


def _cut_chunks(needed: Int64Array, first: Int64Array, last: Int64Array, step: int) -> Iterator[_Cut]:
    for begin in range(0, len(needed), step):
        end = min(begin + step, len(needed))
        a = int(np.searchsorted(last, needed[begin], side="left"))
        b = int(np.searchsorted(first, needed[end - 1], side="right"))
        yield begin, end, a, b


def _cut_rows(needed: Int64Array, first: Int64Array, last: Int64Array, step: int) -> Iterator[_Cut]:
    # Rows of one piece begin in the same few chunks.
    begins, ends = np.searchsorted(needed, first), np.searchsorted(needed, last) + 1
    cuts = [0, *(np.flatnonzero(np.diff(begins // step)) + 1).tolist(), len(first)]
    for a, b in pairwise(cuts if len(first) else []):
        yield int(begins[a]), int(ends[b - 1]), a, b


# -- one piece ---------------------------------------------------------------------------------------------------------


def _scatter_piece(piece: _Piece, indptr: Int64Array, *outs: AnyArray) -> None:
    """Put the rows' elements of each array of a piece into the one of the result that it is for."""
    rows = piece.low, piece.high, indptr[piece.place]
    if not piece.is_compiled:
        from daodask.kernels import scatter

        for which, out in enumerate(outs):
            for first, values in _decoded(piece, which):
                scatter(values, first, *rows, out, False)
        return
    from daodask.decoding import scatter_chunks

    scratches = [array.scratch() for array in piece.arrays]
    for each in _encoded(piece):
        for array, encoded, scratch, out in zip(piece.arrays, each, scratches, outs, strict=True):
            chunks = _form(array), _source(encoded), encoded.bounds, encoded.numbers, array.n_elements
            bad = scatter_chunks(find_decoders(), *chunks, rows, scratch, out, out.nbytes > _CACHE_BYTES)
            _check_decoded(array, encoded, bad)


def _scatter_dense_piece(piece: _Piece, lookup: _DenseLookup, out: AnyArray) -> None:
    arrays = piece.arrays
    n_vars = len(lookup[-1])
    rows = piece.low, piece.high, piece.place
    flat, row, past_cache = out.reshape(-1), np.empty(out.shape[1], out.dtype), out.nbytes > _CACHE_BYTES
    if not piece.is_compiled:
        from daodask.kernels import scatter_dense

        for (first, column), (_, value) in zip(_decoded(piece, 0), _decoded(piece, 1), strict=True):
            room = _positions(column), row
            strange = scatter_dense(column, value, first, *rows, lookup, room, flat, False)
            _check_columns(strange, n_vars)
        return
    from daodask.decoding import scatter_dense_chunks

    forms, scratches = tuple(map(_form, arrays)), (arrays[0].scratch(), arrays[1].scratch())
    room, length = (_positions(scratches[0]), row), arrays[0].n_elements
    for encoded in _encoded(piece):
        sources, bounds = tuple(map(_source, encoded)), tuple(e.bounds for e in encoded)
        chunks = forms, sources, bounds, encoded[0].numbers
        which, bad, strange = scatter_dense_chunks(
            find_decoders(), *chunks, length, rows, lookup, scratches, room, flat, past_cache
        )
        _check_decoded(arrays[which], encoded[which], bad)
        _check_columns(strange, n_vars)


def _encoded(piece: _Piece) -> Iterator[Sequence[Encoded]]:
    """A piece's chunks of each array: in local files, for the compiled loops to read, file by file; else fetched."""
    arrays, chunks = piece.arrays, piece.chunks
    if piece.fetched or not piece.dataset.is_local:
        yield piece.fetched or [array.fetch(chunks) for array in arrays]
        return
    others = np.zeros(max(0, len(chunks) - 1), dtype=bool)
    for array in arrays:
        others |= np.diff(chunks // array.chunks_per_shard) > 0
    for low, high in pairwise([0, *(np.flatnonzero(others) + 1).tolist(), len(chunks)]):
        with contextlib.ExitStack() as files:
            yield [array.open_file(chunks[low:high], files) for array in arrays]


def decode_all(array: Array, encoded: Encoded) -> None:
    """Decode chunks to nowhere: what no gather is faster than.

    Raises
    ------
    CorruptStoreError
        A chunk can't be decoded.
    """
    functions, scratch = _decoders(array), array.scratch()
    if functions is None:
        for number, chunk in encoded:
            array.decode(number, chunk, scratch)
        return
    from daodask.decoding import decode_chunks

    bad = decode_chunks(functions, _form(array), _source(encoded), encoded.bounds, scratch)
    _check_decoded(array, encoded, bad)


def decode_into(array: Array, encoded: Encoded, out: AnyArray) -> None:
    """Decode chunks one after another into ``out``, which is of the array's dtype and as long as all of them.

    Raises
    ------
    CorruptStoreError
        A chunk can't be decoded.
    """
    functions, chunk = _decoders(array), len(out) // max(1, len(encoded.numbers))
    if functions is None:
        for place, (number, compressed) in enumerate(encoded):
            array.decode(number, compressed, out[place * chunk : (place + 1) * chunk])
        return
    from daodask.decoding import decode_side_by_side

    bad = decode_side_by_side(functions, _form(array), _source(encoded), encoded.bounds, chunk, out)
    _check_decoded(array, encoded, bad)


def _decoders(array: Array) -> Decoders | None:
    """What decodes an array's chunks without the GIL, where there is such a thing."""
    if array.spec is None or array.spec.compression not in _COMPILED or not array.spec.dtype.isnative:
        return None
    return find_decoders()


def _form(array: Array) -> tuple[int, bool, bool]:
    """How an array's chunks are encoded, as compiled loops take it."""
    if array.spec is None:
        raise TypeError(f"{array.where} is read by zarr-python")
    return _COMPILED[array.spec.compression], array.spec.checksum, array.spec.delta


def _source(encoded: Encoded) -> tuple[int, AnyArray]:
    """Where chunks are, as compiled loops take it."""
    return encoded.descriptor, encoded.data


def _check_decoded(array: Array, encoded: Encoded, bad: int) -> None:
    """Say what is wrong with a chunk that can't be decoded."""
    if bad < 0:
        return
    number = int(encoded.numbers[bad])
    if encoded.descriptor >= 0:
        encoded, bad = array.fetch([number]), 0
    array.decode(number, list(encoded)[bad][1], array.scratch())
    raise CorruptStoreError(f"{array.where}: chunk {number} can't be read; restore the file")


def _check_columns(strange: int, n_vars: int) -> None:
    """Refuse a matrix with indices that are no columns."""
    if strange:
        raise CorruptStoreError(
            f"expected indices below {n_vars}, got others in {strange} places; check the store with daodask validate"
        )


def _decoded(piece: _Piece, which: int) -> Iterator[tuple[int, AnyArray]]:
    """First element and values of each chunk of one array of a piece; values are gone when the next are asked for."""
    array = piece.arrays[which]
    if array.spec is None:
        start, stop = int(piece.low[0]), int(piece.high[-1])
        yield start, array.read(start, stop)
        return
    scratch = array.scratch()
    for number, data in piece.fetched[which] if piece.fetched else array.fetch(piece.chunks):
        yield array.decode(number, data, scratch)


# -- results -----------------------------------------------------------------------------------------------------------


def _lookup(genes: Int64Array | None, n_vars: int) -> AnyArray:
    """New column per column of the feature space, -1 where it is not selected."""
    if genes is None:
        return np.arange(n_vars, dtype=np.int32)
    lookup = np.full(n_vars, -1, dtype=np.int32)
    lookup[genes] = np.arange(len(genes), dtype=np.int32)
    return lookup


def _dense_lookup(genes: Int64Array | None, n_vars: int) -> _DenseLookup:
    """What :func:`daodask.kernels.scatter_dense` asks of each column; of the smallest types, so as to stay in cache."""
    selected = _lookup(genes, n_vars)
    width = n_vars if genes is None else len(genes)
    wanted = np.append(selected >= 0, True)
    words = np.zeros(n_vars // 32 + 1 + _SPARE_WORDS, dtype=np.uint32)
    words.view(np.uint8)[: n_vars // 8 + 1] = np.packbits(wanted, bitorder="little")
    return words, wanted.view(np.uint8), selected.astype(np.uint16 if width <= 2**16 else np.uint32)


def _positions(chunk: AnyArray) -> AnyArray:
    """Room for what is found in a chunk, and for what is put down beyond it, many at a time."""
    return np.empty(len(chunk) + _SPARE_WORDS, dtype=np.uint32)


def _select(
    data: AnyArray, indices: AnyArray, indptr: Int64Array, shape: tuple[int, int], genes: Int64Array, empty: Empty
) -> CSR:
    from daodask.kernels import count_selected, gather_selected

    lookup = _lookup(genes, shape[1])
    selected = np.zeros_like(indptr)
    _check_columns(count_selected(indices, indptr, lookup, selected[1:]), len(lookup))
    np.cumsum(selected, out=selected)
    nnz = int(selected[-1])
    kept, columns = empty(nnz, data.dtype), empty(nnz, np.int32)
    gather_selected(indices, data, indptr, lookup, selected, columns, kept)
    matrix = csr_of(kept, columns, selected, (shape[0], len(genes)))
    if np.any(np.diff(genes) < 0):
        matrix.has_sorted_indices = False
        matrix.sort_indices()
    return matrix


def csr_of(data: AnyArray, indices: AnyArray, indptr: AnyArray, shape: tuple[int, int]) -> CSR:
    """A canonical CSR matrix of these very arrays.

    scipy's constructor would copy each array that is a small part of a larger one.
    """
    matrix = copy.copy(_without_elements(shape, data.dtype))
    # The bounds are of the type that indices are, as scipy's loops and tensors want them, unless that is too narrow.
    narrow = indptr.astype(np.int32, copy=False) if indptr[-1] < 2**31 else indptr
    matrix.data, matrix.indices, matrix.indptr = data, indices, narrow
    matrix.has_canonical_format = True
    return matrix


@lru_cache(maxsize=64)
def _without_elements(shape: tuple[int, int], dtype: np.dtype[Any]) -> CSR:
    # To be copied: scipy takes three times as long to make one. What it has for each row is not kept here.
    matrix = sp.csr_matrix(shape, dtype=dtype)
    matrix.indptr = np.empty(0, dtype=np.int32)
    return matrix
