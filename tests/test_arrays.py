"""Element ranges read from byte ranges: what zarr-python reads of them, or an error, and never anything else."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from daodask import arrays
from daodask.arrays import Array, open_array, take
from daodask.errors import CorruptStoreError
from daodask.format.chunks import ArraySpec
from daodask.format.codecs import Codec, without_delta_warning
from daodask.storage import StoreLocation
from daodask.testing import random_store

COMPRESSORS: dict[str, tuple[Any, ...]] = {
    "lz4": (BloscCodec(cname="lz4", shuffle="shuffle"),),
    "lz4hc": (BloscCodec(cname="lz4hc", shuffle="noshuffle"),),
    "blosclz": (BloscCodec(cname="blosclz", shuffle="bitshuffle"),),
    "blosc-zstd": (BloscCodec(cname="zstd", shuffle="shuffle"),),
    "zlib": (BloscCodec(cname="zlib", shuffle="shuffle"),),
    "zstd": (ZstdCodec(level=3),),
    "zstd-checked": (ZstdCodec(level=1, checksum=True),),
    "none": (),
    "gzip": (GzipCodec(),),
    "two": (ZstdCodec(level=1), GzipCodec()),
}
#: What is left to zarr-python.
UNKNOWN = {"gzip", "two"}
DTYPES = (
    "bool",
    "int8",
    "uint8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
)


@pytest.fixture(autouse=True)
def no_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()


def forget() -> None:
    """Files below change, which those of a dataset never do."""
    for cache in (arrays._INDEXES, arrays._CHUNKS):
        cache._items.clear()
        cache._bytes = 0
    arrays._zarr_array.cache_clear()


@dataclass(frozen=True)
class Written:
    """An array as zarr-python wrote it, and its values."""

    folder: Path
    values: np.ndarray

    @property
    def spec(self) -> ArraySpec | None:
        return ArraySpec.parse(json.loads((self.folder / "a" / "zarr.json").read_text()))

    @property
    def array(self) -> Array:
        return Array(StoreLocation(os.fspath(self.folder)), "a", self.spec, strict=False)

    @property
    def files(self) -> list[Path]:
        return sorted(p for p in (self.folder / "a").rglob("*") if p.is_file() and p.name != "zarr.json")


@without_delta_warning()
def write(
    folder: Path,
    values: np.ndarray,
    chunk: int,
    *,
    shard: int = 0,
    codec: str = "lz4",
    checksum: bool = True,
    endian: str = "little",
    at_end: bool = True,
    index_checksum: bool = True,
    fill_value: Any = 0,
    absent: tuple[tuple[int, int], ...] = (),
    separator: str = "/",
    delta: bool = False,
) -> Written:
    """Write with zarr-python; ``absent`` elements are not written, and so read as the fill value."""
    filters = Codec("", 0, delta).zarr_filters(values.dtype.name)
    inner: list[Any] = [BytesCodec(endian=endian), *COMPRESSORS[codec], *([Crc32cCodec()] if checksum else [])]  # type: ignore[arg-type]
    if shard:
        index_codecs = [BytesCodec(), *([Crc32cCodec()] if index_checksum else [])]
        location: Any = "end" if at_end else "start"
        serializer: Any = ShardingCodec(
            chunk_shape=(chunk,), codecs=[*filters, *inner], index_codecs=index_codecs, index_location=location
        )
        compressors: tuple[Any, ...] = ()
    else:
        serializer, compressors = inner[0], tuple(inner[1:])
    array = zarr.create_array(
        zarr.storage.LocalStore(folder),
        name="a",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(shard or chunk,),
        serializer=serializer,
        compressors=compressors,
        filters=() if shard else filters,
        fill_value=fill_value,
        chunk_key_encoding={"name": "default", "separator": separator},
    )
    written, expected = np.ones(len(values), dtype=bool), values.copy()
    for low, high in absent:
        written[low:high] = False
        expected[low:high] = fill_value
    edges = np.flatnonzero(np.diff(written, prepend=False, append=False))
    for low, high in edges.reshape(-1, 2).tolist():
        array[low:high] = values[low:high]
    np.testing.assert_array_equal(np.asarray(array[:]), expected)
    return Written(folder, expected)


@st.composite
def written(draw: st.DrawFn) -> tuple[dict[str, Any], np.ndarray]:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    length = draw(st.integers(0, 150))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    values = generator.integers(0, 2 if dtype.kind == "b" else 100, length).astype(dtype)
    chunk = draw(st.integers(1, 40))
    bounds = st.integers(0, length)
    options = {
        "chunk": chunk,
        "shard": chunk * draw(st.integers(0, 6)),
        "codec": draw(st.sampled_from(sorted(COMPRESSORS))),
        "checksum": draw(st.booleans()),
        "endian": draw(st.sampled_from(["little", "big"])),
        "at_end": draw(st.booleans()),
        "index_checksum": draw(st.sampled_from([True, True, False])),
        "fill_value": draw(st.sampled_from([0, 1])) if dtype.kind != "f" else draw(st.sampled_from([0.0, 1.5, np.nan])),
        "absent": tuple(draw(st.lists(st.tuples(bounds, bounds).map(sorted).map(tuple), max_size=3))),
        "separator": draw(st.sampled_from(["/", "."])),
    }
    # zarr-python itself does not read differences that are big-endian.
    options["delta"] = dtype.kind in "iu" and options["endian"] == "little" and draw(st.booleans())
    return options, values


@given(written=written(), data=st.data())
@settings(max_examples=150)
def test_what_zarr_reads_is_read(written, data):
    options, values = written
    with tempfile.TemporaryDirectory() as folder:
        forget()
        found = write(Path(folder), values, **options)
        array = found.array
        big = options["endian"] == "big" and values.itemsize > 1
        unchecked = bool(options["shard"]) and not options["index_checksum"]
        unknown = options["codec"] in UNKNOWN or big or unchecked or np.isnan(float(options["fill_value"]))
        assert (array.spec is None) == unknown
        for _ in range(4):
            start = data.draw(st.integers(0, len(values)))
            stop = data.draw(st.integers(start, len(values)))
            read = array.read(start, stop)
            assert read.dtype.newbyteorder("=") == values.dtype
            np.testing.assert_array_equal(read, found.values[start:stop])
        if len(values):
            positions = np.array(sorted(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1))), np.int64)
            for _ in range(2):
                np.testing.assert_array_equal(take(array, positions), found.values[positions])


def differences(dtype: str, **more: str) -> dict[str, Any]:
    return {"name": "numcodecs.delta", "configuration": {"dtype": dtype, **more}}


def test_differences_are_known(tmp_path):
    metadata = json.loads((write(tmp_path, np.arange(9), 2, shard=4).folder / "a" / "zarr.json").read_text())
    for filters in (differences("<i8"), differences("<i8", astype="<i8"), differences("<i8", id="delta")):
        changed = json.loads(json.dumps(metadata))
        changed["codecs"][0]["configuration"]["codecs"].insert(0, filters)
        spec = ArraySpec.parse(changed)
        assert spec is not None
        assert spec.delta


@pytest.mark.parametrize("change", ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"])
def test_metadata_that_says_more_than_is_known_here_is_left_to_zarr(tmp_path, change):
    metadata = json.loads((write(tmp_path, np.arange(9), 2, shard=4).folder / "a" / "zarr.json").read_text())
    assert ArraySpec.parse(metadata) is not None
    sharding = metadata["codecs"][0]["configuration"]
    changes: dict[str, Any] = {
        "a": lambda: metadata.update(shape=[3, 3]),
        "b": lambda: metadata.update(storage_transformers=[{"name": "x"}]),
        "c": lambda: metadata["chunk_key_encoding"].update(name="v2"),
        "d": lambda: metadata.update(data_type="string"),
        "e": lambda: sharding["codecs"].insert(0, {"name": "transpose", "configuration": {"order": [0]}}),
        "f": lambda: metadata["chunk_grid"].update(name="rectilinear"),
        "g": lambda: metadata["codecs"].append({"name": "crc32c"}),
        "h": lambda: metadata.pop("fill_value"),
        "i": lambda: sharding["codecs"].insert(0, differences("<i4")),
        "j": lambda: sharding["codecs"].insert(0, differences("<i8", astype="<i4")),
        "k": lambda: sharding["codecs"].insert(0, {"name": "numcodecs.delta"}),
    }
    changes[change]()
    assert ArraySpec.parse(metadata) is None


# -- what is not as it was written -------------------------------------------------------------------------------------


def outcomes(found: Written, path: Path, damaged: Iterator[bytes]) -> Iterator[bool]:
    """Whether each damage raised; if it did not, the values are what they were."""
    whole = path.read_bytes()
    for data in damaged:
        path.write_bytes(data)
        forget()
        try:
            read = found.array.read(0, len(found.values))
        except CorruptStoreError:
            yield True
        else:
            np.testing.assert_array_equal(read, found.values)
            yield False
    path.write_bytes(whole)


CASES = [(codec, shard, False) for codec in COMPRESSORS if codec not in UNKNOWN for shard in (0, 24)]
CASES += [("lz4", shard, True) for shard in (0, 24)]


@pytest.mark.parametrize(("codec", "shard", "delta"), CASES)
@pytest.mark.parametrize("at_end", [True, False])
def test_no_flipped_byte_is_read_as_data(tmp_path, codec, shard, delta, at_end):
    values = np.arange(20, dtype=np.uint16)
    found = write(tmp_path, values, 8, shard=shard, codec=codec, delta=delta, at_end=at_end)
    path = found.files[0]
    whole = path.read_bytes()
    flipped = (bytes([*whole[:i], whole[i] ^ bits, *whole[i + 1 :]]) for i in range(len(whole)) for bits in (1, 0xFF))
    # The checksum of each chunk, and that of the index, leaves no byte out.
    assert all(outcomes(found, path, flipped))


@pytest.mark.parametrize(("codec", "shard", "delta"), CASES)
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("at_end", [True, False])
def test_no_short_file_is_read_as_data(tmp_path, codec, shard, delta, checksum, at_end):
    values = np.arange(20, dtype=np.uint16)
    found = write(tmp_path, values, 8, shard=shard, codec=codec, delta=delta, checksum=checksum, at_end=at_end)
    path = found.files[0]
    whole = path.read_bytes()
    assert all(outcomes(found, path, (whole[:stop] for stop in range(len(whole)))))
    if not shard or at_end:
        assert all(outcomes(found, path, (whole + bytes(more) for more in (1, 7, 100))))


@pytest.mark.parametrize("shard", [0, 24])
def test_chunks_of_another_array_are_not_read_as_this_one_s(tmp_path, shard):
    found = write(tmp_path / "x", np.arange(20, dtype=np.uint16), 8, shard=shard)
    other = write(tmp_path / "y", np.arange(20, dtype=np.uint16), 5, shard=shard and 30)
    assert list(outcomes(found, found.files[0], iter([other.files[0].read_bytes()]))) == [True]


@pytest.mark.parametrize("shard", [0, 8])
def test_an_absent_file_is_the_fill_value_or_a_loss(tmp_path, shard):
    found = write(tmp_path, np.arange(1, 21), 4, shard=shard, fill_value=0)
    found.files[1].unlink()
    lost = slice(8, 16) if shard else slice(4, 8)
    expected = found.values.copy()
    expected[lost] = 0
    np.testing.assert_array_equal(found.array.read(0, 20), expected)
    strict = replace(found.array, strict=True)
    np.testing.assert_array_equal(strict.read(0, lost.start), expected[: lost.start])
    for read in (lambda: strict.read(0, 20), lambda: take(strict, np.array([0, lost.start]))):
        with pytest.raises(CorruptStoreError, match="found none|absent"):
            read()


def test_an_absent_chunk_is_a_loss_to_a_strict_array(tmp_path):
    found = write(tmp_path, np.arange(1, 21), 4, shard=20, absent=((4, 8),))
    np.testing.assert_array_equal(found.array.read(0, 20), found.values)
    with pytest.raises(CorruptStoreError, match="chunk 1 is absent from a/c/0; restore the file"):
        replace(found.array, strict=True).read(0, 20)


def test_a_dataset_says_what_it_lacks(tmp_path):
    store = random_store(tmp_path / "store", (20,))
    dataset = store.location / store.dataset_infos[0].path
    assert open_array(dataset, "X/indptr").strict
    with pytest.raises(CorruptStoreError, match="expected an array 'X/values' in"):
        open_array(dataset, "X/values")
    (Path(dataset.url) / "X" / "data" / "c" / "0").unlink()
    with pytest.raises(CorruptStoreError, match="found none"):
        open_array(dataset, "X/data").read(0, 5)


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int, int]]]:
    """Ranges of each call of a file system that is asked for ranges."""
    calls: list[list[tuple[str, int, int]]] = []
    original = MemoryFileSystem.cat_ranges

    def recorded(self: Any, paths: Any, starts: Any, ends: Any, **options: Any) -> Any:
        calls.append(list(zip((p.rsplit("/", 1)[-1] for p in paths), starts, ends, strict=True)))
        return original(self, paths, starts, ends, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", recorded)
    return calls


def in_memory(found: Written, name: str) -> Array:
    target = StoreLocation(f"memory://{name}")
    for path in found.files:
        (target / path.relative_to(found.folder).as_posix()).write(path.read_bytes())
    return Array(target, "a", found.spec)


def test_neighbouring_chunks_are_one_request(tmp_path, requests):
    found = write(tmp_path, np.arange(100, dtype=np.int32), 4, shard=40, codec="none", checksum=False)
    array = in_memory(found, "neighbours")
    np.testing.assert_array_equal(array.read(5, 33), found.values[5:33])
    # The index first, and then chunks 1 to 8 of 16 bytes each at once.
    assert requests == [[("0", -164, None)], [("0", 16, 144)]]
    requests.clear()
    np.testing.assert_array_equal(array.read(30, 95), found.values[30:95])
    # Two more indexes at once, and one call for what is in three files.
    assert requests == [[("1", -164, None), ("2", -164, None)], [("0", 112, 160), ("1", 0, 160), ("2", 0, 64)]]
    requests.clear()
    np.testing.assert_array_equal(array.read(0, 100), found.values)
    assert [len(call) for call in requests] == [3]


def test_a_gap_is_not_requested(tmp_path, requests):
    found = write(tmp_path, np.arange(40, dtype=np.int32), 4, shard=40, codec="none", checksum=False)
    array = in_memory(found, "gap")
    array.read(0, 1)
    requests.clear()
    read = array.dataset.read_ranges([("a/c/0", 0, 16), ("a/c/0", 16, 32), ("a/c/0", 48, 64), ("a/c/0", 0, 8)])
    assert requests == [[("0", 0, 32), ("0", 48, 64), ("0", 0, 8)]]
    assert read.view(np.int32).tolist() == [*range(8), *range(12, 16), 0, 1]


def test_indptr_is_asked_for_once(tmp_path, requests):
    found = write(tmp_path, np.arange(100, dtype=np.int32), 10, shard=100)
    array = in_memory(found, "indptr")
    for _ in range(3):
        np.testing.assert_array_equal(take(array, np.array([3, 4, 71])), [3, 4, 71])
    # The index, and two chunks at once.
    assert [len(call) for call in requests] == [1, 2]


def test_a_chunk_that_is_a_file_is_one_request(tmp_path, requests):
    found = write(tmp_path, np.arange(40, dtype=np.int32), 10)
    array = in_memory(found, "files")
    np.testing.assert_array_equal(take(array, np.array([3, 4, 31])), [3, 4, 31])
    assert requests == [[("0", 0, None), ("3", 0, None)]]


def test_what_is_cached_is_bounded():
    cache = arrays._ByteCache(100)
    for number in range(50):
        cache.put(number, np.zeros(10, np.uint8))
    assert [n for n in range(50) if cache.get(n) is not None] == list(range(40, 50))
    cache.get(40)
    cache.put("large", np.zeros(85, np.uint8))
    assert [n for n in [*range(50), "large"] if cache.get(n) is not None] == [40, "large"]
    assert cache._bytes == 95
    cache.put("larger", np.zeros(500, np.uint8))
    assert [n for n in [40, "large", "larger"] if cache.get(n) is not None] == ["larger"]
