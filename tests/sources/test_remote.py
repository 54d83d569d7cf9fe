"""Sources at a URL: what is fetched of them, with which options, and copies that a worker makes for itself."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anndata
import fsspec
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

import daodask
from daodask.build.spec import load_spec
from daodask.errors import SourceError, SpecError
from daodask.sources import _hdf5, open_source
from daodask.sources.base import Source, SourceAddress
from daodask.sources.download import LocalCopy, downloaded
from daodask.storage import StoreLocation

N_OBS, N_VARS = 20_000, 300


class _Ranged(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        RangedFileSystem.ranges.append((self.path, start, end))
        return MemoryFileSystem.cat_file(self.fs, self.path, start=start, end=end)


class RangedFileSystem(MemoryFileSystem):
    """What is at ``memory://x`` is at ``ranged://x``, read by ranges as files of a bucket are; which ones is noted."""

    protocol = "ranged"
    ranges: ClassVar[list[tuple[str, int, int]]] = []
    regions: ClassVar[list[str]] = []

    def __init__(self, region: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.regions.append(region)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("ranged://", "memory://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **options)
        known = {name: options[name] for name in ("block_size", "cache_type") if options.get(name)}
        return _Ranged(self, path, mode=mode, size=self.info(path)["size"], **known)


fsspec.register_implementation("ranged", RangedFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    RangedFileSystem.ranges.clear()


def rows_of(start: int, stop: int) -> sp.csr_matrix:
    """Rows of incompressible values, so that the file is large."""
    generator = np.random.default_rng(start)
    return sp.csr_matrix(generator.random((stop - start, N_VARS), dtype=np.float32) * (np.arange(N_VARS) % 3 == 0))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A study of 16 MB as h5ad, csr and dense, as loom and as 10x."""
    matrix = sp.vstack([rows_of(i, i + 1000) for i in range(0, N_OBS, 1000)], format="csr")
    made = {}
    for name, values, options in (("csr.h5ad", matrix, {}), ("dense.h5ad", matrix.toarray(), {"compression": "gzip"})):
        made[name] = as_file(lambda file, v=values, o=options: write_anndata(file, v, o))
    made["a.loom"] = as_file(lambda file: write_loom(file, matrix))
    made["a.h5"] = as_file(lambda file: write_tenx(file, matrix))
    return made


def as_file(write: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write(file)
    return buffer.getvalue()


def write_anndata(file: h5py.File, values: Any, options: dict[str, Any]) -> None:
    anndata.io.write_elem(file, "/", anndata.AnnData(values), dataset_kwargs={})
    if options:
        del file["X"]
        anndata.io.write_elem(file, "X", values, dataset_kwargs=options)


def write_loom(file: h5py.File, matrix: sp.csr_matrix) -> None:
    file.create_dataset("matrix", data=matrix.toarray().T, chunks=(64, 64), compression="lzf")
    file["row_attrs/Gene"] = [f"g{j}" for j in range(N_VARS)]
    file["col_attrs/CellID"] = [f"c{i}" for i in range(N_OBS)]


def write_tenx(file: h5py.File, matrix: sp.csr_matrix) -> None:
    group = file.create_group("matrix")
    group["shape"] = [N_VARS, N_OBS]
    for part in ("data", "indices", "indptr"):
        group.create_dataset(part, data=getattr(matrix, part), chunks=(4096,), compression="gzip")
    group["barcodes"] = np.array([f"c{i}" for i in range(N_OBS)], dtype="S")
    group["features/id"] = np.array([f"g{j}" for j in range(N_VARS)], dtype="S")
    group["features/name"] = group["features/id"]
    group["features/feature_type"] = np.array(["Gene Expression"] * N_VARS, dtype="S")


@pytest.mark.parametrize(
    ("name", "format_"), [("csr.h5ad", "h5ad"), ("dense.h5ad", "h5ad"), ("a.loom", "loom"), ("a.h5", "10x")]
)
def test_a_block_of_a_large_remote_file_is_not_the_file(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str, format_: str
) -> None:
    # Of what is cached: as large to this file as 2 MB are to one of a hundred.
    monkeypatch.setattr(_hdf5, "_CACHED_BLOCK", 2**16)
    size = len(files[name])
    assert size > 7e6
    fsspec.filesystem("ranged").pipe_file(f"/big/{name}", files[name])
    source = open_source(SourceAddress(StoreLocation.parse(f"ranged://big/{name}"), format_))
    opened = fetched()
    rows = source.read_matrix("X", 2000, 2500)
    assert (rows != rows_of(2000, 3000)[:500]).nnz == 0
    block = fetched() - opened
    # A fortieth of the rows; of a loom file in every band of its chunks.
    assert opened < 0.2 * size
    assert 0 < block < 0.15 * size
    # What was fetched once is not fetched again.
    source.read_matrix("X", 2000, 2500)
    assert fetched() == opened + block


def fetched() -> int:
    return sum(stop - start for _, start, stop in RangedFileSystem.ranges)


def test_options_of_the_file_system_go_along(files: dict[str, bytes]) -> None:
    fsspec.filesystem("ranged").pipe_file("/big/csr.h5ad", files["csr.h5ad"])
    study = {"id": "a", "source": "ranged://big/csr.h5ad", "storage_options": {"region": "here"}}
    spec = load_spec({"features": {"name": "g", "reference": "union"}, "studies": [study]})
    address = spec.studies[0].source
    assert isinstance(address, SourceAddress)
    assert address.location.options == (("region", "here"),)
    assert open_source(address).n_obs == N_OBS
    assert "here" in RangedFileSystem.regions
    assert spec.studies[0].without_source.source.location.options == ()


def test_credentials_in_a_build_file_are_refused() -> None:
    study = {"id": "a", "source": "s3://big/csr.h5ad", "storage_options": {"key": "AKIA1", "secret": "swordfish"}}
    with pytest.raises(SpecError, match=r"expected no credentials, .* got key, secret; set them where") as caught:
        load_spec({"features": {"name": "g", "reference": "union"}, "studies": [study]})
    assert "swordfish" not in str(caught.value)


# -- copies --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def test_a_worker_makes_one_copy_of_what_it_is_to_download(
    files: dict[str, bytes], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("ranged").pipe_file("/big/copy.h5ad", files["csr.h5ad"])
    got: list[str] = []
    get_file = RangedFileSystem.get_file
    monkeypatch.setattr(
        RangedFileSystem,
        "get_file",
        lambda self, path, *args, **kw: got.append(path) or get_file(self, path, *args, **kw),
    )
    location = StoreLocation.parse("ranged://big/copy.h5ad")
    address = SourceAddress(location, "h5ad", download=True)
    source = open_source(address)
    assert open_source(address) is source
    assert got == ["/big/copy.h5ad"]
    before = fetched()
    assert (source.read_matrix("X", 2000, 2500) != rows_of(2000, 3000)[:500]).nnz == 0
    assert fetched() == before
    # It is the original's fingerprint, which does not tell whether it was copied.
    assert source.fingerprint() == open_source(SourceAddress(location, "h5ad")).fingerprint()
    assert [p.name for p in scratch.glob("*/*")] == ["copy.h5ad"]


def test_a_copy_is_gone_with_the_last_who_uses_it(scratch: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("a", "sub/b"):
        fs.pipe_file(f"/copies/tree/{name}", name.encode())
    copy = downloaded(StoreLocation.parse("memory://copies/tree"))
    assert isinstance(copy, LocalCopy)
    assert str(copy) == "memory://copies/tree"
    assert copy.is_local
    assert (copy / "sub/b").read() == b"sub/b"
    (kept,) = scratch.iterdir()
    del copy
    gc.collect()
    assert not kept.exists()


def test_there_must_be_room_for_a_copy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/copies/large", bytes(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(
        SourceError, match=r"expected room for the 1,000 bytes of memory://copies/large .*got 1,000 bytes free"
    ):
        downloaded(StoreLocation.parse("memory://copies/large"))
    gc.collect()
    assert list(scratch.iterdir()) == []
    with pytest.raises(SourceError, match="expected a study at memory://copies/none, found nothing"):
        downloaded(StoreLocation.parse("memory://copies/none"))


def test_a_file_that_grows_while_it_is_copied(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/copies/growing", b"12345")
    get_file = MemoryFileSystem.get_file

    def grow(self: MemoryFileSystem, path: str, *args: Any, **options: Any) -> None:
        self.pipe_file(path, b"123456789")
        get_file(self, path, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", grow)
    with pytest.raises(SourceError, match=r"expected 5 bytes of .*growing.*, got 9; build again when nobody writes"):
        downloaded(StoreLocation.parse("memory://copies/growing"))


def test_a_store_is_built_of_copies(scratch: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    fsspec.filesystem("memory").pipe_file("/copies/study.h5ad", files["csr.h5ad"])
    spec = {
        "features": {"name": "g", "reference": "union"},
        "X": {"kind": "normalised"},
        "studies": [{"id": "a", "source": "memory://copies/study.h5ad", "download": True}],
    }
    report = daodask.build_store(spec, tmp_path / "store")
    assert [s.status for s in report.studies] == ["built"]
    del spec["studies"][0]["download"]  # type: ignore[attr-defined]
    assert [s.status for s in daodask.build_store(spec, tmp_path / "store").studies] == ["unchanged"]


# -- options of formats --------------------------------------------------------------------------------------------


def test_options_that_a_format_does_not_take(tmp_path: Path) -> None:
    anndata.AnnData(np.eye(2, dtype=np.float32)).write_h5ad(tmp_path / "a.h5ad")
    address = SourceAddress(StoreLocation.parse(tmp_path / "a.h5ad"), "h5ad", options=(("cells", "x"),))
    with pytest.raises(SourceError, match="expected options that format 'h5ad' takes, got cells"):
        open_source(address)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"options": {"a": [1]}}, r"studies\[0\].options.a: expected text, a finite number or a boolean"),
        ({"options": ["a"]}, r"studies\[0\].options: expected a mapping"),
        ({"download": "yes"}, r"studies\[0\].download: expected true or false"),
        ({"format": "tsv"}, r"studies\[0\].format: expected one of h5ad, zarr, 10x, mtx, loom, dao, dao_v1, got 'tsv'"),
    ],
)
def test_what_can_not_be_meant(study: dict[str, Any], message: str) -> None:
    entry = {"id": "a", "source": "a.h5ad", **study}
    with pytest.raises(SpecError, match=message):
        load_spec({"features": {"name": "g", "reference": "union"}, "studies": [entry]})


def test_options_are_part_of_what_a_dataset_is_made_from() -> None:
    def study(**changes: Any) -> Any:
        entry = {"id": "a", "source": "a.loom", **changes}
        return (
            load_spec({"features": {"name": "g", "reference": "union"}, "studies": [entry]}).studies[0].without_source
        )

    assert study(options={"cells": "x"}) != study()
    assert study(download=True, storage_options={"anon": True}) == study()


def test_an_object_takes_none_of_them() -> None:
    adata = anndata.AnnData(np.eye(2, dtype=np.float32))
    entry = {"id": "a", "source": adata, "download": True}
    with pytest.raises(SpecError, match=r"studies\[0\].download: expected none, as the source is an object"):
        load_spec({"features": {"name": "g", "reference": "union"}, "studies": [entry]})
    del entry["download"]
    spec = load_spec({"features": {"name": "g", "reference": "union"}, "studies": [entry]})
    assert isinstance(spec.studies[0].source, Source)
