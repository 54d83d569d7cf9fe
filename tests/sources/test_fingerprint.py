"""Identity of what a study is read from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import anndata
import fsspec
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from daodask.errors import SourceError
from daodask.sources.base import Fingerprint
from daodask.sources.fingerprint import fingerprint_location, stamp_location
from daodask.sources.memory import MemorySource
from daodask.storage import StoreLocation


def test_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    location = StoreLocation.parse(path)
    found = fingerprint_location(location)
    assert found == Fingerprint(3, "1700000000123456789", hashlib.sha256(b"abc").hexdigest())
    assert stamp_location(location) == found.stamp


@pytest.mark.parametrize("how", ["compiled", "fallback", "no file that can be read so"])
def test_parts_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "fallback":
        monkeypatch.setattr("daodask.sources.fingerprint.find_decoders", lambda: None)
    if how == "no file that can be read so":
        monkeypatch.setattr("daodask.decoding.file_checksums", lambda *_: False)
    monkeypatch.setattr("daodask.sources.fingerprint._PART", 8)
    monkeypatch.setattr("daodask.sources.fingerprint._PIECE", 4)
    contents = [b"abcdefgh", b"abcdefghi", b"abcdefgi" + b"abcdefgh", b"abcdefgh" + b"abcdefgi", b"i" * 23, b"i" * 24]
    found = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        found.append(fingerprint_location(StoreLocation.parse(tmp_path / str(number))).digest)
    assert found[0] == hashlib.sha256(b"abcdefgh").hexdigest()
    # CRC32C of "abcd", of "efgh"; of "i" and of nothing.
    checksums = ["310ac892d431fd74", "ff1b094b00000000"]
    parts = [hashlib.sha256(bytes.fromhex(part)).hexdigest() for part in checksums]
    assert found[1] == hashlib.sha256("\n".join(repr((part,)) for part in parts).encode()).hexdigest()
    assert len(set(found)) == len(contents)


def test_a_known_one_is_returned_unread_while_size_and_stamp_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    location = StoreLocation.parse(path)
    found = fingerprint_location(location)
    known = Fingerprint(found.size, found.stamp, "of earlier")
    assert fingerprint_location(location, known) is known
    os.utime(path, ns=(1, 1))
    assert fingerprint_location(location, known) == Fingerprint(3, "1", found.digest)


def test_a_directory_is_all_its_files_with_their_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a").write_bytes(b"abc")
        (tmp_path / name / "sub" / "b").write_bytes(b"de")
    one, two = (StoreLocation.parse(tmp_path / name) for name in ("one", "two"))
    found = fingerprint_location(one)
    assert found.size == 5
    assert found.digest == fingerprint_location(two).digest
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert found.digest != fingerprint_location(two).digest
    assert found.stamp != fingerprint_location(two).stamp


def test_a_directory_with_one_file_is_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    file, directory = StoreLocation.parse(tmp_path / "a"), StoreLocation.parse(tmp_path)
    assert fingerprint_location(file).digest != fingerprint_location(directory).digest


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing"):
        fingerprint_location(StoreLocation.parse(tmp_path / "none"))
    with pytest.raises(SourceError, match="empty directory"):
        fingerprint_location(StoreLocation.parse(tmp_path))


def test_a_remote_file_is_its_size_and_time_where_there_is_no_etag() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/fingerprint/file", b"abc")
    found = fingerprint_location(StoreLocation.parse("memory://fingerprint/file"))
    assert found.size == 3
    assert found.stamp == found.digest == f"created={fs.info('/fingerprint/file')['created']}"


@pytest.mark.parametrize(
    ("facts", "stamp"),
    [
        ({"ETag": '"x"', "LastModified": "today"}, 'etag="x"'),
        ({"md5Hash": "m", "crc32c": "c", "etag": "e", "mtime": 1}, "md5hash=m crc32c=c etag=e"),
        ({"mtime": 1}, "mtime=1"),
        ({"ETag": None}, hashlib.sha256(b"abc").hexdigest()),
    ],
)
def test_a_remote_file_is_what_its_server_says(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], stamp: str
) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/fingerprint/etag", b"abc")
    monkeypatch.setattr(type(fs), "info", lambda *_, **__: {"type": "file", "size": 3} | facts)
    assert fingerprint_location(StoreLocation.parse("memory://fingerprint/etag")) == Fingerprint(3, stamp, stamp)


def study() -> anndata.AnnData:
    return anndata.AnnData(
        sp.csr_matrix(np.array([[0, 2], [3, 0]], dtype=np.int32)),
        obs=pd.DataFrame({"type": pd.Categorical(["a", "b"])}, index=["x", "y"]),
        var=pd.DataFrame(index=["g", "h"]),
        uns={"title": "T"},
    )


def set_value(adata: anndata.AnnData) -> None:
    adata.X.data[0] = 9


def set_dtype(adata: anndata.AnnData) -> None:
    adata.X = adata.X.astype(np.int64)


def set_label(adata: anndata.AnnData) -> None:
    adata.obs.iloc[0, 0] = "b"


def set_order(adata: anndata.AnnData) -> None:
    adata.obs["type"] = adata.obs["type"].cat.reorder_categories(["b", "a"])


def set_column(adata: anndata.AnnData) -> None:
    adata.obs.columns = ["kind"]


def set_gene(adata: anndata.AnnData) -> None:
    adata.var_names = ["g", "i"]


def set_layer(adata: anndata.AnnData) -> None:
    adata.layers["more"] = np.ones((2, 2))


def set_fact(adata: anndata.AnnData) -> None:
    adata.uns["title"] = "U"


@pytest.mark.parametrize(
    "change", [set_value, set_dtype, set_label, set_order, set_column, set_gene, set_layer, set_fact]
)
def test_in_memory_every_change_is_seen(change: Callable[[anndata.AnnData], None]) -> None:
    adata = study()
    source = MemorySource(adata)
    before = source.fingerprint()
    assert source.fingerprint(before) is before
    assert before == MemorySource(study()).fingerprint()
    change(adata)
    assert source.fingerprint(before).digest != before.digest
