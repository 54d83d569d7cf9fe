"""Elements of HDF5 arrays read past the library: the same as it reads itself, whatever their chunks and filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daodask.errors import SourceError
from daodask.sources import _direct
from daodask.sources._direct import read_elements
from daodask.sources._hdf5 import reading
from daodask.storage import StoreLocation

LENGTH = 10_000
FILTERS: list[dict[str, Any]] = [
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"compression": "lzf"},
    {"compression": "gzip", "fletcher32": True},
    {"shuffle": True},
]


def written(path: Path, dtype: str = "<i4", chunk: int = 4096, **filters: Any) -> h5py.Dataset:
    values = np.random.default_rng(0).integers(0, 100, LENGTH).astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(chunk,), **filters)
    return h5py.File(path, "r")["x"]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> list[h5py.Dataset]:
    folder = tmp_path_factory.mktemp("direct")
    kinds = [(f, dtype) for f in FILTERS for dtype in ("<i4", ">f8", "u8")]
    return [written(folder / f"{i}.h5", dtype, **f) for i, (f, dtype) in enumerate(kinds)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_range_is_what_hdf5_reads(arrays: list[h5py.Dataset], data: st.DataObject) -> None:
    array = data.draw(st.sampled_from(arrays))
    start = data.draw(st.integers(0, LENGTH))
    stop = data.draw(st.integers(start, LENGTH))
    found = read_elements(array, start, stop)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array[start:stop])


@pytest.mark.parametrize(
    ("filters", "direct"), list(zip(FILTERS, [True, True, True, False, False, False], strict=True))
)
def test_known_filters_are_not_left_to_hdf5(
    filters: dict[str, Any], direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[object] = []
    read = _direct._read_chunk
    monkeypatch.setattr(_direct, "_read_chunk", lambda *args: (chunks.append(args[1]), read(*args)))
    read_elements(written(tmp_path / "x.h5", **filters), 5, 9000)
    assert len(chunks) == (3 if direct else 0)


def test_what_is_left_to_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_direct, "_read_chunk", None)
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=512) as file:
        file["block"] = file.create_dataset("chunked", data=np.arange(LENGTH), chunks=(4096,))
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["contiguous"] = np.arange(LENGTH)
        file.create_dataset("small", data=np.arange(LENGTH), chunks=(100,))
        file.create_dataset("bool", data=np.arange(LENGTH) % 3 == 0, chunks=(LENGTH,), compression="gzip")
        file.create_dataset("never", shape=(LENGTH,), dtype="i4", fillvalue=7, chunks=(4096 * 2,))
    with h5py.File(tmp_path / "x.h5") as file:
        assert read_elements(file["chunked"], 10, 5000).tolist() == list(range(10, 5000))
    with h5py.File(tmp_path / "y.h5") as file:
        assert read_elements(file["contiguous"], 10, 13).tolist() == [10, 11, 12]
        assert read_elements(file["small"], 99, 101).tolist() == [99, 100]
        assert read_elements(file["bool"], 2, 5).tolist() == [False, True, False]
        assert set(read_elements(file["never"], 5, LENGTH).tolist()) == {7}
    with (tmp_path / "y.h5").open("rb") as remote, h5py.File(remote) as file:
        assert read_elements(file["small"], 0, 2).tolist() == [0, 1]
    assert read_elements(np.arange(5), 1, 3).tolist() == [1, 2]


def test_chunks_may_have_skipped_a_filter(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        array = file.create_dataset("x", (8192,), "<i4", chunks=(4096,), compression="gzip", shuffle=True)
        first = np.arange(4096, dtype="<i4")
        array.id.write_direct_chunk((0,), first.tobytes(), filter_mask=0b11)
        array.id.write_direct_chunk((4096,), np.ascontiguousarray(first.view("u1").reshape(-1, 4).T).tobytes(), 0b10)
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(read_elements(file["x"], 0, 8192), np.tile(first, 2))
        np.testing.assert_array_equal(file["x"][:], np.tile(first, 2))


@pytest.mark.parametrize(
    ("damage", "filters"), [("cut", FILTERS[0]), *((d, f) for d in ("cut", "flipped") for f in FILTERS[1:3])], ids=str
)
def test_damage_is_told(damage: str, filters: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    array = written(path, **filters)
    info = array.id.get_chunk_info_by_coord((8192,))
    with path.open("r+b") as file:
        if damage == "cut":
            file.truncate(info.byte_offset + info.size // 2)
        else:
            file.seek(info.byte_offset + info.size // 2)
            file.write(b"\0\xff\0\xff\0\xff")
    with pytest.raises(SourceError, match="x can't be read: .*chunk"), reading(StoreLocation.parse(path), "x"):
        read_elements(array, 0, LENGTH)


def test_where_chunks_are_is_asked_once_an_opened_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = written(tmp_path / "x.h5")
    before = _direct._plan.cache_info()
    for start in (0, 5000, 9000):
        assert read_elements(array.file["x"], start, start + 1000).tolist() == array[start : start + 1000].tolist()
    after = _direct._plan.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)
    array.file.close()
    # The same path and place in the file, but another file.
    other = np.arange(LENGTH, dtype="<i4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=other, chunks=(2048,))
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(read_elements(file["x"], 0, LENGTH), other)
