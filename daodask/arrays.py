"""Element ranges of a dataset's one-dimensional arrays, read from byte ranges.

An array whose codecs are known (see :class:`~daodask.format.chunks.ArraySpec`) is read directly: the shard's index is
cached, chunks are fetched together and decoded one by one. Any other is left to zarr-python, with equal results.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from daodask.errors import CorruptStoreError
from daodask.format.chunks import ArraySpec, decode_chunk, decode_index
from daodask.format.codecs import without_delta_warning
from daodask.storage import StoreLocation
from daodask.types import AnyArray, Int64Array

__all__ = ["Array", "Encoded", "group_attributes", "open_array", "open_group", "take"]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Chunks as they are stored, in memory or in an open file.

    Parameters
    ----------
    numbers
        Of the chunks.
    bounds
        Where each begins and ends, ``(chunks, 2)``: in the data, or in the file.
    data
        All their bytes, or room for the largest of them.
    descriptor
        Of the file; negative where the bytes are in memory.
    """

    numbers: Int64Array
    bounds: Int64Array
    data: npt.NDArray[np.uint8]
    descriptor: int = -1

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of each chunk, of such as are in memory."""
        for number, (begin, end) in zip(self.numbers.tolist(), self.bounds.tolist(), strict=True):
            yield number, self.data[begin:end].tobytes()


@dataclass(frozen=True, slots=True)
class Array:
    """A one-dimensional array of a dataset.

    Parameters
    ----------
    dataset
        The dataset's directory.
    path
        Of the array below it.
    spec
        How it is stored; ``None`` where only zarr-python knows.
    strict
        Whether an absent chunk is a loss. zarr-python writes none where all elements are the fill value, but a dataset
        has all of its chunks.
    """

    dataset: StoreLocation
    path: str
    spec: ArraySpec | None
    strict: bool = True

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.dataset}/{self.path}"

    def fetch(self, chunks: Sequence[int] | Int64Array) -> Encoded:
        """Chunks, by increasing number, of an array with a spec; absent ones are passed over.

        Raises
        ------
        CorruptStoreError
            A chunk of a strict array is absent, or a file is short.
        """
        numbers = np.asarray(chunks, dtype=np.int64)
        if not _known(self).sharded and not self.dataset.is_local:
            return self._fetch_files(numbers)
        self.load_indexes(numbers)
        shards = numbers // self.chunks_per_shard
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(numbers)]
        found = [self._of_shard(numbers[low:high]) for low, high in pairwise(cuts) if low < high]
        ranges = [(path, start, stop) for path, _, bounds in found for start, stop in bounds.tolist()]
        sizes = np.array([stop - start for _, start, stop in ranges], dtype=np.int64)
        present = np.concatenate([numbers[:0], *(n for _, n, _ in found)])
        return _side_by_side(present, sizes, self.dataset.read_ranges(ranges) if ranges else np.empty(0, np.uint8))

    def _fetch_files(self, numbers: Int64Array) -> Encoded:
        """Chunks that are a file each, whose sizes nobody has to know."""
        paths = [self.file_of(number) for number in numbers.tolist()]
        files = self.dataset.read_ends(paths)
        if self.strict and None in files:
            raise CorruptStoreError(
                f"expected a file at {self.dataset}/{paths[files.index(None)]}, found none; restore it"
            )
        present = np.array([data is not None for data in files], dtype=bool)
        parts = [data for data in files if data is not None]
        sizes = np.array([len(data) for data in parts], dtype=np.int64)
        return _side_by_side(numbers[present], sizes, np.frombuffer(b"".join(parts), dtype=np.uint8))

    def load_indexes(self, chunks: Int64Array) -> None:
        """Fetch the indexes of the shards of some chunks, as far as they are not cached, all at once."""
        spec = _known(self)
        if not spec.sharded:
            return
        keys = [(self.dataset, self.file_of(shard)) for shard in np.unique(chunks // spec.chunks_per_shard).tolist()]
        absent = [path for dataset, path in keys if _INDEXES.get((dataset, path)) is None]
        if not absent:
            return
        if spec.index_at_end:
            found = self.dataset.read_ends(absent, spec.index_bytes)
        else:
            found = [self._index_at_start(path) for path in absent]
        for path, data in zip(absent, found, strict=True):
            if data is not None:
                _INDEXES.put((self.dataset, path), self._index(path, data))
            elif self.strict:
                raise CorruptStoreError(f"expected a file at {self.dataset}/{path}, found none; restore it")

    def _index_at_start(self, path: str) -> bytes | None:
        try:
            return (self.dataset / path).read_range(0, _known(self).index_bytes)
        except FileNotFoundError:
            return None

    def _index(self, path: str, data: bytes) -> AnyArray:
        spec = _known(self)
        if len(data) < spec.index_bytes:
            raise CorruptStoreError(
                f"{self.dataset}/{path}: expected a shard with an index, got {len(data)} bytes; restore it"
            )
        return decode_index(data, spec, f"{self.dataset}/{path}")

    def file_of(self, shard: int) -> str:
        """Path of a shard's file below the dataset."""
        return f"{self.path}/{_known(self).prefix}{shard}"

    def open_file(self, numbers: Int64Array, files: contextlib.ExitStack) -> Encoded:
        """Chunks of one shard of a local dataset, in its file, which is closed with the stack.

        Raises
        ------
        CorruptStoreError
            A chunk of a strict array, or the file, is absent.
        """
        path, present, bounds = self._of_shard(numbers)
        room = np.empty(int((bounds[:, 1] - bounds[:, 0]).max(initial=0)), dtype=np.uint8)
        return Encoded(present, bounds, room, files.enter_context((self.dataset / path).open_local()))

    @property
    def n_elements(self) -> int:
        """Elements of an array with a spec."""
        return _known(self).length

    @property
    def chunks_per_shard(self) -> int:
        """Chunks of a file."""
        return _known(self).chunks_per_shard

    def _of_shard(self, numbers: Int64Array) -> tuple[str, Int64Array, Int64Array]:
        """The file of chunks that are in one, those that are there, and where; reads its index if it is not cached."""
        spec = _known(self)
        shard = int(numbers[0]) // spec.chunks_per_shard
        path = self.file_of(shard)
        bounds = _chunk_bounds(self, shard)[numbers % spec.chunks_per_shard]
        present = bounds[:, 0] >= 0
        if not present.all():
            if self.strict:
                number = int(numbers[~present][0])
                raise CorruptStoreError(f"{self.where}: chunk {number} is absent from {path}; restore the file")
            numbers, bounds = numbers[present], bounds[present]
        return path, numbers, bounds

    def decode(self, number: int, data: bytes, scratch: AnyArray) -> tuple[int, AnyArray]:
        """First element and values of a chunk; the values are gone when the scratch is used again."""
        spec = _known(self)
        decode_chunk(data, spec, scratch, self.where)
        first = number * spec.chunk_length
        return first, scratch[: spec.length - first]

    def scratch(self) -> AnyArray:
        """Room for one decoded chunk."""
        spec = _known(self)
        return np.empty(spec.chunk_length, dtype=spec.dtype)

    def read(self, start: int, stop: int) -> AnyArray:
        """Elements ``[start, stop)`` (computes)."""
        if self.spec is None:
            return np.asarray(_zarr_array(self.dataset, self.path)[start:stop])
        out = np.full(stop - start, self.spec.fill_value, dtype=self.spec.dtype)
        if stop <= start:
            return out
        scratch = self.scratch()
        for number, data in self.fetch(np.arange(start // self.spec.chunk_length, -(-stop // self.spec.chunk_length))):
            first, values = self.decode(number, data, scratch)
            low, high = max(first, start), min(first + len(values), stop)
            out[low - start : high - start] = values[low - first : high - first]
        return out


def _side_by_side(numbers: Int64Array, sizes: Int64Array, data: npt.NDArray[np.uint8]) -> Encoded:
    """Chunks that lie one after another."""
    ends = np.cumsum(sizes)
    return Encoded(numbers, np.stack([ends - sizes, ends], axis=1), data)


def _known(array: Array) -> ArraySpec:
    if array.spec is None:
        raise TypeError(f"{array.where} is read by zarr-python")
    return array.spec


# -- metadata ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Metadata:
    specs: dict[str, ArraySpec | None]
    attributes: dict[str, dict[str, Any]]


@lru_cache(maxsize=4096)
def _metadata(dataset: StoreLocation) -> _Metadata:
    """Specs and attributes of all that is in a dataset, of the consolidated metadata: one request."""
    root = json.loads((dataset / "zarr.json").read())
    members = (root.get("consolidated_metadata") or {}).get("metadata")
    if members is None:
        raise CorruptStoreError(f"expected consolidated metadata in {dataset}/zarr.json, found none; restore the file")
    specs = {path: ArraySpec.parse(m) for path, m in members.items() if m["node_type"] == "array"}
    return _Metadata(specs, {path: m.get("attributes", {}) for path, m in members.items()})


def open_array(dataset: StoreLocation, path: str) -> Array:
    """An array of a dataset by its path, such as ``"X/indptr"``.

    Raises
    ------
    CorruptStoreError
        The dataset has no such array.
    """
    metadata = _metadata(dataset)
    if path not in metadata.specs:
        raise CorruptStoreError(f"expected an array {path!r} in {dataset}, found none; restore the dataset's zarr.json")
    return Array(dataset, path, metadata.specs[path])


def group_attributes(dataset: StoreLocation, path: str) -> dict[str, Any]:
    """Attributes of a member of a dataset; of none where there is no such member."""
    return _metadata(dataset).attributes.get(path, {})


def open_group(dataset: StoreLocation) -> Any:
    """A dataset as zarr-python has it: one request, as its consolidated metadata tells of all arrays."""
    import zarr

    with without_delta_warning():
        return zarr.open_group(dataset.zarr_store(), mode="r")


@lru_cache(maxsize=256)
def _zarr_array(dataset: StoreLocation, path: str) -> Any:
    import zarr

    with without_delta_warning():
        return zarr.open_array(dataset.zarr_store(), path=path, mode="r")


# -- caches of what is small and asked for again -----------------------------------------------------------------------


class _ByteCache:
    """The most recently used arrays, up to a number of bytes; any thread may use it."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._items: OrderedDict[object, AnyArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object) -> AnyArray | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: object, value: AnyArray) -> AnyArray:
        with self._lock:
            if key not in self._items:
                self._items[key] = value
                self._bytes += value.nbytes
            while self._bytes > self._most_bytes and len(self._items) > 1:
                self._bytes -= self._items.popitem(last=False)[1].nbytes
        return value

    def renew_lock(self) -> None:
        """A process that was forked may have inherited a lock that nobody will release."""
        self._lock = threading.Lock()


#: 16 bytes a chunk: a million chunks, which is 64 million cells.
_INDEXES = _ByteCache(32 * 2**20)
#: Chunks of indptr and obs columns, which the runs of a shuffle ask for again and again: 8 million rows of indptr.
_CHUNKS = _ByteCache(64 * 2**20)
os.register_at_fork(after_in_child=_INDEXES.renew_lock)
os.register_at_fork(after_in_child=_CHUNKS.renew_lock)


def _chunk_bounds(array: Array, shard: int) -> AnyArray:
    """Where each chunk of a shard begins and ends; negative where there is none."""
    spec, path = _known(array), array.file_of(shard)
    key = (array.dataset, path)
    found = _INDEXES.get(key)
    if found is not None:
        return found
    if spec.sharded:
        array.load_indexes(np.array([shard * spec.chunks_per_shard], dtype=np.int64))
        found = _INDEXES.get(key)
        return np.full((spec.chunks_per_shard, 2), -1, dtype=np.int64) if found is None else found
    try:
        size = (array.dataset / path).size()
    except CorruptStoreError:
        if array.strict:
            raise
        return np.full((1, 2), -1, dtype=np.int64)
    return _INDEXES.put(key, np.array([[0, size]], dtype=np.int64))


def take(array: Array, positions: Int64Array) -> AnyArray:
    """Elements at increasing positions, through a cache of decoded chunks (computes)."""
    if array.spec is None:
        first, last = int(positions[0]), int(positions[-1])
        return array.read(first, last + 1)[positions - first]
    out = np.empty(len(positions), dtype=array.spec.dtype)
    numbers = positions // array.spec.chunk_length
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(positions)]
    runs = [(low, high, int(numbers[low])) for low, high in pairwise(cuts) if low < high]
    chunks = _cached_chunks(array, [number for _, _, number in runs])
    for (low, high, number), values in zip(runs, chunks, strict=True):
        out[low:high] = values[positions[low:high] - number * array.spec.chunk_length]
    return out


def _cached_chunks(array: Array, numbers: Sequence[int]) -> list[AnyArray]:
    """Decoded chunks by their increasing numbers; those that are not cached are fetched together."""
    found = {number: _CHUNKS.get((array.dataset, array.path, number)) for number in numbers}
    absent = [number for number, values in found.items() if values is None]
    if absent:
        spec, scratch = _known(array), array.scratch()
        lengths = [min(spec.chunk_length, spec.length - number * spec.chunk_length) for number in absent]
        decoded = {n: np.full(k, spec.fill_value, dtype=spec.dtype) for n, k in zip(absent, lengths, strict=True)}
        for number, data in array.fetch(absent):
            decoded[number][:] = array.decode(number, data, scratch)[1]
        for number, values in decoded.items():
            found[number] = _CHUNKS.put((array.dataset, array.path, number), values)
    return [values for values in found.values() if values is not None]
