"""A sound store is valid on every runner, and each kind of damage is found and named."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zarr

import daodask
from daodask.errors import FeatureSpaceError, FormatVersionError, StoreNotFoundError
from daodask.testing import random_store
from daodask.validate import STORE


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return the path of a store of three datasets, one of them without a cell, that nobody may change."""
    path = tmp_path_factory.mktemp("validate") / "store"
    random_store(path, block_rows=32)
    return path


@pytest.fixture
def store(sound, tmp_path):
    """Return the path of a store to damage."""
    path = tmp_path / "store"
    shutil.copytree(sound, path)
    return path


def _snapshot_file(store):
    return store / "snapshots" / "00000001.json"


def _edit_snapshot(store, change):
    file = _snapshot_file(store)
    value = json.loads(file.read_bytes())
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def _dataset(store, number=0):
    return store / json.loads(_snapshot_file(store).read_bytes())["datasets"][number]["path"]


def _seal(store, number=0):
    """Bring checksums in line with the damage, as if it had been written that way."""
    dataset = _dataset(store, number)
    entries = {}
    for file in sorted(dataset.rglob("*")):
        if file.is_file() and file.name != "checksums.json":
            data = file.read_bytes()
            name = file.relative_to(dataset).as_posix()
            entries[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    data = json.dumps(entries).encode()
    (dataset / "checksums.json").write_bytes(data)

    def change(value):
        value["datasets"][number]["checksum"] = hashlib.sha256(data).hexdigest()
        value["datasets"][number]["nbytes"] = sum(e["size"] for e in entries.values())

    _edit_snapshot(store, change)


def _found(report):
    return [(name, finding.where, finding.what) for name, found in report.errors.items() for finding in found]


def _check_found(report, where, what):
    found = _found(report)
    assert not report.ok
    assert any(where in w and what in said for _, w, said in found), found
    assert where in repr(report)


# -- sound stores --------------------------------------------------------------------------------------------------


def test_a_sound_store_is_valid(sound):
    report = daodask.validate_store(sound)
    assert _found(report) == []
    assert report.ok
    assert report.snapshot == 1
    assert report.n_obs == 103
    assert report.n_files > 100
    assert next(iter(report.findings)) == STORE
    assert len(report.findings) == 4
    assert "snapshot 1 is valid; checked 3 datasets, 103 cells" in repr(report)
    assert json.loads(report.to_json())["ok"] is True


def test_threads_find_the_same(sound, store):
    (_dataset(store) / "X" / "data" / "c" / "0").unlink()
    serial, threaded = daodask.validate_store(store), daodask.validate_store(store, threads=3)
    assert serial.findings == threaded.findings
    assert daodask.validate_store(sound, threads=3).ok


def test_a_cluster_finds_the_same(sound, store, client):
    (_dataset(store) / "X" / "data" / "c" / "0").unlink()
    assert daodask.validate_store(store, client=client).findings == daodask.validate_store(store).findings
    assert daodask.validate_store(sound, client=client).ok


def test_other_file_systems(sound):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(sound), "/validate-test", recursive=True)
    assert daodask.validate_store("memory://validate-test").ok
    memory.rm("/validate-test", recursive=True)


def test_progress_counts_every_task(sound):
    calls = []
    daodask.validate_store(sound, progress=lambda *call: calls.append(call))
    last = {(name, stage): (done, total) for name, stage, done, total in calls}
    assert {name for name, _ in last} == set(daodask.validate_store(sound).findings)
    assert all(done == total for done, total in last.values())


def test_what_can_not_be_validated_is_an_error(sound, tmp_path):
    with pytest.raises(StoreNotFoundError):
        daodask.validate_store(tmp_path / "nothing")
    with pytest.raises(StoreNotFoundError):
        daodask.validate_store(sound, snapshot=7)
    with pytest.raises(FeatureSpaceError, match="known"):
        daodask.validate_store(sound, features="other")


def test_a_newer_format_is_an_error(store):
    _edit_snapshot(store, lambda value: value.update(format=99))
    with pytest.raises(FormatVersionError, match="newer daodask"):
        daodask.validate_store(store)


# -- damaged files -------------------------------------------------------------------------------------------------


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def _remove(file):
    file.unlink()


def _empty(file):
    file.write_bytes(b"")


FILES = [
    ("X/data/c/0", _flip, "SHA-256"),
    ("X/data/c/0", _truncate, "bytes, got"),
    ("X/data/c/0", _remove, "missing"),
    ("X/data/c/0", _empty, "bytes, got 0"),
    ("X/indices/c/0", _flip, "SHA-256"),
    ("X/indptr/c/0", _truncate, "bytes, got"),
    ("layers/half/data/c/0", _remove, "missing"),
    ("obsm/place/c/1/0", _flip, "SHA-256"),
    ("obs/cell_type/codes/c/0", _flip, "SHA-256"),
    ("obs.parquet", _flip, "SHA-256"),
    ("obs.parquet", _truncate, "bytes, got"),
    ("obs.parquet", _remove, "missing"),
    ("zarr.json", _flip, "SHA-256"),
    ("zarr.json", _remove, "missing"),
    ("zarr.json", _empty, "bytes, got 0"),
    ("checksums.json", _flip, ""),
    ("checksums.json", _remove, "found none"),
    ("checksums.json", _empty, "can't be read"),
]


@pytest.mark.parametrize(("path", "damage", "what"), FILES)
def test_damaged_files_are_found(store, path, damage, what):
    damage(_dataset(store) / path)
    report = daodask.validate_store(store)
    _check_found(report, path, what)
    assert set(report.errors) == {_dataset(store).name.partition(".")[0]}


def test_a_whole_dataset_gone_is_found(store):
    shutil.rmtree(_dataset(store))
    _check_found(daodask.validate_store(store), "checksums.json", "found none")


def test_extra_files_are_notes(store):
    (_dataset(store) / "X" / "leftover.tmp").write_bytes(b"x")
    report = daodask.validate_store(store)
    assert report.ok
    assert "note: X/leftover.tmp: not a file of the dataset" in repr(report)


def test_feature_spaces_are_checked(store):
    (file,) = (store / "features").iterdir()
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    report = daodask.validate_store(store)
    _check_found(report, file.name, "expected 32 genes")
    _check_found(report, file.name, "content hash")
    file.unlink()
    _check_found(daodask.validate_store(store), "feature space", "found none")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "number": "x"}'])
def test_an_unreadable_snapshot_is_a_finding(store, content):
    _snapshot_file(store).write_bytes(content)
    report = daodask.validate_store(store)
    _check_found(report, "snapshots", "00000001.json")
    assert "the store is NOT valid: 1 error" in repr(report)


# -- damaged content whose checksums are right ---------------------------------------------------------------------


def _edit_array(store, path, change):
    """Write an array anew with zarr itself, and its metadata also where the root has a copy of all."""
    dataset = _dataset(store)
    array = zarr.open_array(store=dataset / path, mode="r")
    changed, attributes = change(array[...]), dict(array.attrs)
    zarr.create_array(store=dataset / path, data=changed, overwrite=True, attributes=attributes)
    root = json.loads((dataset / "zarr.json").read_bytes())
    root["consolidated_metadata"]["metadata"][path] = json.loads((dataset / path / "zarr.json").read_bytes())
    (dataset / "zarr.json").write_text(json.dumps(root), encoding="utf-8")


def _put(position, value):
    def change(values):
        values[position] = value
        return values

    return change


def _swap(values):
    values[[0, 1]] = values[[1, 0]]
    return values


CONTENT = {
    "a gene beyond the last": ("X/indices", _put(3, 32), "X/indices", "expected genes 0 to 31, got 32 in row"),
    "unsorted genes": ("X/indices", _swap, "X/indices", "strictly rising order, they aren't in row 0"),
    "a stored zero": ("X/data", _put(5, 0), "X/data", "expected no stored zero, got 1 others: 0 in row"),
    "another largest value": ("X/data", _put(5, 60_000), "X", "expected largest value"),
    "another dtype": ("X/data", lambda v: v.astype(np.int64), "X/data", "expected dtype uint16, as the snapshot says"),
    "halves of counts": ("X/data", lambda v: v + np.float32(0.5), "X/data", "expected counts (whole, not negative"),
    "missing values": ("X/data", lambda v: v * np.float64(np.nan), "X/data", "expected counts (whole, not negative"),
    "fewer values": ("X/data", lambda v: v[:-1], "X/data", "expected length"),
    "a falling indptr": ("X/indptr", _put(20, 0), "X/indptr", "expected it to rise over rows 0 to 32"),
    "an indptr that begins late": ("X/indptr", _put(0, 1), "X/indptr", "expected start 0, as the snapshot says, got 1"),
    "an indptr beyond the data": ("X/indptr", _put(-1, 10**9), "X/indptr", "expected bounds within the data"),
    "a short indptr": ("X/indptr", lambda v: v[:-1], "X/indptr", "expected length 71"),
    "a layer's genes": ("layers/half/indices", _put(0, 40), "layers/half/indices", "got 40 in row 0"),
    "an embedding": ("obsm/place", lambda v: v[:, :1], "obsm/place", "expected shape (70, 2)"),
    "obs in zarr": ("obs/n_counts", _put(40, -7), "obs, column 'n_counts'", "row 40 differs"),
    "a label in zarr": ("obs/cell_type/codes", _put(1, 0), "obs, column 'cell_type'", "row 1 differs"),
    "a code without a label": ("obs/cell_type/codes", _put(1, 99), "obs", "can't be read"),
    "a missing value in zarr": ("obs/score", _put(2, np.nan), "obs, column 'score'", "row 2 differs"),
    "measured genes as numbers": ("var/measured", lambda v: v.astype(np.int8), "var/measured", "expected booleans"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_damaged_content_is_found(store, case):
    path, change, where, what = CONTENT[case]
    _edit_array(store, path, change)
    _seal(store)
    report = daodask.validate_store(store)
    _check_found(report, where, what)
    assert not [found for found in _found(report) if "SHA-256" in found[2]]


def _edit_parquet(store, change):
    file = _dataset(store) / "obs.parquet"
    pq.write_table(change(pq.read_table(file)), file, row_group_size=16)
    _seal(store)


def _relabelled(table):
    labels = table["cell_type"].to_pylist()
    labels[3] = "B cell" if labels[3] != "B cell" else "T cell"
    column = pa.array(labels).dictionary_encode()
    return table.set_column(table.column_names.index("cell_type"), "cell_type", column)


def _replaced(name, change):
    return lambda table: table.set_column(table.column_names.index(name), name, change(table[name]))


PARQUET = {
    "a label": (_relabelled, "obs, column 'cell_type'", "row 3 differs"),
    "the counts of labels": (_relabelled, "snapshot, obs column 'cell_type'", "expected cells of"),
    "a row less": (lambda t: t.slice(0, 69), "obs.parquet", "expected number of cells 70"),
    "a column less": (lambda t: t.drop_columns(["odd"]), "obs.parquet", "expected columns"),
    "another dtype": (_replaced("n_counts", lambda c: c.cast("int32")), "column 'n_counts'", "expected dtype int64"),
    "another range": (_replaced("row", lambda c: pc.add(c, 1)), "obs column 'row'", "expected largest value 69"),
    "names": (_replaced("obs_names", pc.utf8_upper), "obs, column 'obs_names'", "row 0 differs"),
}


@pytest.mark.parametrize("case", PARQUET)
def test_damaged_parquet_is_found(store, case):
    change, where, what = PARQUET[case]
    _edit_parquet(store, change)
    _check_found(daodask.validate_store(store), where, what)


def test_other_genes_in_a_dataset_are_found(store):
    var = zarr.open_group(store=_dataset(store) / "var", mode="r+", use_consolidated=False)
    var[var.attrs["_index"]][0] = "another"
    _seal(store)
    _check_found(daodask.validate_store(store), "var", "expected the 32 genes")


# -- a snapshot that says something else ---------------------------------------------------------------------------


def _column(dataset, name):
    return next(column for column in dataset["columns"] if column["name"] == name)


def _setting(*path, value):
    def change(snapshot):
        at = snapshot["datasets"][0]
        for key in path[:-1]:
            at = _column(at, key) if isinstance(at, dict) and key in ("cell_type", "n_counts", "score") else at[key]
        at[path[-1]] = value

    return change


SNAPSHOT = {
    "non-zeros": (_setting("matrices", 0, "nnz", value=7), "X", "expected number of non-zeros 7"),
    "largest": (_setting("matrices", 0, "largest", value=7.0), "X", "expected largest value 7"),
    "dtype": (_setting("matrices", 0, "dtype", value="uint32"), "X/data", "expected dtype uint32"),
    "blocks that don't begin": (_setting("blocks", 0, value=1), "snapshot, blocks", "rise from 0 to 70"),
    "blocks that don't end": (_setting("blocks", -1, value=69), "snapshot, blocks", "rise from 0 to 70"),
    "blocks that fall": (_setting("blocks", 1, value=65), "snapshot, blocks", "rise from 0 to 70"),
    "bytes": (_setting("nbytes", value=7), "checksums.json", "expected 7 bytes in all"),
    "checksum": (_setting("checksum", value="0" * 64), "checksums.json", "expected the SHA-256 of the snapshot"),
    "obsm width": (_setting("obsm", 0, "width", value=3), "obsm/place", "expected shape (70, 3)"),
    "cells of a label": (_setting("cell_type", "counts", 0, value=7), "'cell_type'", "expected cells of 'B cell' 7"),
    "missing cells": (_setting("cell_type", "n_missing", value=7), "'cell_type'", "expected cells without a value 7"),
    "order of labels": (_setting("cell_type", "ordered", value=True), "obs/cell_type", "expected order of categories"),
    "lowest": (_setting("n_counts", "low", value=-7), "'n_counts'", "expected smallest value -7"),
    "highest": (_setting("score", "high", value=7.5), "'score'", "expected largest value 7.5"),
}


@pytest.mark.parametrize("case", SNAPSHOT)
def test_a_snapshot_that_says_something_else_is_found(store, case):
    change, where, what = SNAPSHOT[case]
    _edit_snapshot(store, change)
    _check_found(daodask.validate_store(store), where, what)


def test_another_number_of_cells_is_found(store):
    _edit_snapshot(store, lambda value: value["datasets"][0].update(n_obs=71))
    _check_found(daodask.validate_store(store), "X", "expected shape (71, 32)")


def test_another_feature_hash_is_found(store):
    def change(value):
        value["features"][0]["hash"] = "0" * 32

    _edit_snapshot(store, change)
    _check_found(daodask.validate_store(store), "feature space", "found none")


def test_a_schema_of_other_labels_is_found(store):
    def change(value):
        column = next(c for c in value["features"][0]["obs"] if c["name"] == "cell_type")
        column["categories"] = column["categories"][:-1]

    _edit_snapshot(store, change)
    _check_found(daodask.validate_store(store), "obs column 'cell_type'", "categories")


def test_a_dataset_of_no_feature_space_is_found(store):
    _edit_snapshot(store, lambda value: value["datasets"][0].update(features="gone"))
    _check_found(daodask.validate_store(store), "snapshot", "a feature space that is not there: 'gone'")
