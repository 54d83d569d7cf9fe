"""What can be wrong with inputs and machines: each has an outcome and a message, and none makes a wrong store.

Each case is a build of three studies of which one is bad, on the command line: the others are committed, the bad one is
reported in words, nothing of it can be seen in the store, and the store is valid.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml

import daodask
from daodask.cli import main
from daodask.storage import StoreLocation
from daodask.testing import coordinate_adata

pytestmark = [
    pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning"),
    pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning"),
]

N_VARS = 8


def good(first: int) -> anndata.AnnData:
    return coordinate_adata(20, N_VARS, first=first, density=0.6)


def with_value(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        adata = good(100)
        adata.X.data[len(adata.X.data) // 2] = value
        adata.write_h5ad(path)

    return write


def with_names(axis: str, names: list[str]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        adata = good(100)
        index = pd.Index([*names, *getattr(adata, axis)[len(names) :]], dtype=object)
        setattr(adata, axis, index)
        adata.write_h5ad(path)

    return write


def of_shape(n_obs: int, n_vars: int) -> Callable[[Path], None]:
    return lambda path: coordinate_adata(n_obs, n_vars).write_h5ad(path)


def truncated(path: Path) -> None:
    good(100).write_h5ad(path)
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def text_file(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>", encoding="utf-8")


def edited(change: Callable[[h5py.File], None], **how: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        good(100).write_h5ad(path, **how)
        with h5py.File(path, "r+") as file:
            change(file)

    return write


def corrupt_chunk(path: Path) -> None:
    good(100).write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"\xff" * 8)


def declares(n_obs: int, n_vars: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["X"].attrs["shape"] = [n_obs, n_vars]

    return change


def declares_a_dense_array_of(n_obs: int) -> Callable[[h5py.File], None]:
    """A file of a few kilobytes that says it has so many rows."""

    def change(file: h5py.File) -> None:
        del file["X"]
        X = file.create_dataset("X", shape=(n_obs, N_VARS), chunks=(1024, N_VARS), dtype="f4")
        X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    return change


def declares_names_of(n_obs: int) -> Callable[[h5py.File], None]:
    """As many cell names too, in a dataset that has no byte of them."""

    def change(file: h5py.File) -> None:
        declares_a_dense_array_of(n_obs)(file)
        for name in list(file["obs"]):
            del file["obs"][name]
        file["obs"].attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
        text = h5py.string_dtype()
        index = file["obs"].create_dataset("_index", shape=(n_obs,), chunks=(4096,), dtype=text)
        index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})

    return change


def out_of_range(file: h5py.File) -> None:
    file["X/indices"][3] = N_VARS + 5


def decreasing(file: h5py.File) -> None:
    file["X/indptr"][4] = 0


def without_matrix(file: h5py.File) -> None:
    del file["X"]


#: What is wrong, how it ends, and what the reason says.
BAD: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "negative": (
        with_value(-1),
        "refused",
        ("expected counts (integral, non-negative, finite), got -1.0", "kind: normal"),
    ),
    "fraction": (with_value(0.5), "refused", ("expected counts (integral, non-negative, finite), got 0.5",)),
    "NaN": (with_value(np.nan), "refused", ("expected counts (integral, non-negative, finite), got nan",)),
    "infinity": (with_value(np.inf), "refused", ("expected counts (integral, non-negative, finite), got inf",)),
    "huge": (with_value(1e30), "refused", ("expected counts up to 9007199254740992, got",)),
    "cells twice": (
        with_names("obs_names", ["x", "x", "x", "y", "y"]),
        "refused",
        ("expected unique cell names (obs_names), got 3 cells named as one before them: 'x', 'y'", "make_unique"),
    ),
    "truncated": (truncated, "failed", ("expected a whole HDF5 file at", "check that it is one")),
    "no bytes": (empty_file, "failed", ("expected a whole HDF5 file at",)),
    "a web page": (text_file, "failed", ("expected a whole HDF5 file at",)),
    "corrupt chunk": (corrupt_chunk, "failed", ("HDF5 file at", "can't be read")),
    "more rows": (edited(declares(10**12, N_VARS)), "failed", ("1000000000000", "20")),
    "fewer rows": (edited(declares(7, N_VARS)), "failed", ("7", "20")),
    "more genes": (edited(declares(20, 10**9)), "failed", ("1000000000", "8")),
    "dense rows": (edited(declares_a_dense_array_of(10**12)), "failed", ("1000000000000", "20")),
    "names": (edited(declares_names_of(10**12)), "failed", ("bad.h5ad",)),
    "no such gene": (edited(out_of_range), "failed", ("bad.h5ad",)),
    "rows go back": (edited(decreasing), "failed", ("bad.h5ad",)),
    "no matrix": (edited(without_matrix), "failed", ("X",)),
}

#: What is odd but has a meaning: it is in the store.
ODD: dict[str, tuple[Callable[[Path], None], int]] = {
    "cells as in other studies": (lambda path: good(0).write_h5ad(path), 20),
    "no cells": (of_shape(0, N_VARS), 0),
    "one cell": (of_shape(1, N_VARS), 1),
    "genes twice": (with_names("var_names", ["gene1", "gene1"]), 20),
    "no gene names": (with_names("var_names", ["", ""]), 20),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two good studies and a table of genes."""
    path = tmp_path_factory.mktemp("failures")
    good(0).write_h5ad(path / "one.h5ad")
    good(20).write_h5ad(path / "two.h5ad")
    genes = "".join(f"gene{j},Gene{j},1,1000,protein_coding\n" for j in range(N_VARS))
    (path / "genes.csv").write_text(genes, encoding="utf-8")
    return path


def build_file(folder: Path, path: Path, bad: Path, **of_bad: Any) -> Path:
    document = {
        "features": {"name": "genes", "reference": str(folder / "genes.csv")},
        "layout": {"block_rows": 8, "chunk_rows": 2, "shard_bytes": 4096},
        "keep": ["row"],
        "studies": [
            {"id": "one", "source": str(folder / "one.h5ad")},
            {"id": "bad", "source": str(bad), **of_bad},
            {"id": "two", "source": str(folder / "two.h5ad")},
        ],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def run(tmp_path: Path, spec: Path, store: Path) -> tuple[int, dict[str, Any]]:
    """Exit code, and the report of the bad study."""
    report = tmp_path / "report.json"
    code = main(["build", str(spec), str(store), "--workers", "0", "--quiet", "--report", str(report)])
    studies = json.loads(report.read_text(encoding="utf-8"))["studies"]
    return code, next(s for s in studies if s["id"] == "bad")


@pytest.mark.parametrize("case", BAD)
def test_a_bad_study(case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, status, parts = BAD[case]
    write(tmp_path / "bad.h5ad")
    store = tmp_path / "store"
    code, report = run(tmp_path, build_file(folder, tmp_path / "atlas.yaml", tmp_path / "bad.h5ad"), store)
    assert (code, report["status"]) == (1, status), report["reason"]
    for part in parts:
        assert part in report["reason"]
    assert "0 built" not in capsys.readouterr().out
    opened = daodask.open_store(store)
    assert [d.id for d in opened.snapshot.datasets] == ["one", "two"]
    assert opened.to_anndata().obs_names.tolist() == [f"cell{r}" for r in range(40)]
    found = daodask.validate_store(store)
    assert found.ok, found
    assert [p for p in store.rglob("*") if "bad" in str(p.relative_to(store))] == []
    assert not (store / "scratch").exists()


@pytest.mark.parametrize("case", ODD)
def test_an_odd_study(case: str, folder: Path, tmp_path: Path) -> None:
    write, n_obs = ODD[case]
    write(tmp_path / "bad.h5ad")
    store = tmp_path / "store"
    code, report = run(tmp_path, build_file(folder, tmp_path / "atlas.yaml", tmp_path / "bad.h5ad"), store)
    assert (code, report["status"], report["reason"], report["n_obs"]) == (0, "built", "", n_obs)
    assert daodask.validate_store(store).ok
    opened = daodask.open_store(store)
    source = anndata.read_h5ad(tmp_path / "bad.h5ad")
    # Genes without a place, and no others, are dropped; those of one name are added up.
    expected = np.zeros((n_obs, N_VARS))
    for name, column in zip(source.var_names, sp.csc_matrix(source.X).T.toarray(), strict=True):
        if name in opened.var_names:
            expected[:, opened.var_names.get_loc(name)] += column
    np.testing.assert_array_equal(opened.subset(dataset="bad").to_anndata().X.toarray(), expected)


def test_no_genes(folder: Path, tmp_path: Path) -> None:
    of_shape(5, 0)(tmp_path / "bad.h5ad")
    spec = build_file(folder, tmp_path / "atlas.yaml", tmp_path / "bad.h5ad")
    code, report = run(tmp_path, spec, tmp_path / "store")
    assert (code, report["status"]) == (1, "refused"), report
    assert "gene" in report["reason"]
    assert daodask.validate_store(tmp_path / "store").ok


def test_names_of_cells_made_unique(folder: Path, tmp_path: Path) -> None:
    with_names("obs_names", ["x", "x", "x-1", "x", "y"])(tmp_path / "bad.h5ad")
    spec = build_file(folder, tmp_path / "atlas.yaml", tmp_path / "bad.h5ad", obs_names="make_unique")
    code, report = run(tmp_path, spec, tmp_path / "store")
    assert (code, report["status"]) == (0, "built")
    cells = daodask.open_store(tmp_path / "store").subset(dataset="bad").to_anndata()
    assert cells.obs_names.tolist()[:6] == ["x", "x-2", "x-1", "x-3", "y", "cell105"]
    assert cells.obs["row"].tolist() == list(range(100, 120))


# -- machines ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(folder: Path, tmp_path: Path) -> Path:
    good(100).write_h5ad(tmp_path / "bad.h5ad")
    return build_file(folder, tmp_path / "atlas.yaml", tmp_path / "bad.h5ad")


@pytest.mark.parametrize("where", ["scratch/bad.", "datasets/bad."])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails(
    where: str, number: int, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = tmp_path / "store", StoreLocation.write

    def failing(location: StoreLocation, data: bytes, **options: bool) -> None:
        if where in location.url and "/X/" in location.url:
            raise OSError(number, os.strerror(number), location.path)
        write(location, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StoreLocation, "write", failing)
        code, report = run(tmp_path, spec, store)
    assert (code, report["status"]) == (1, "failed")
    assert os.strerror(number) in report["reason"]
    assert "what is finished is kept" in report["reason"]
    assert [d.id for d in daodask.open_store(store).snapshot.datasets] == ["one", "two"]
    assert daodask.validate_store(store).ok
    assert run(tmp_path, spec, store)[0] == 0
    assert daodask.validate_store(store).ok
    assert not (store / "scratch").exists()


@pytest.mark.parametrize("what", ["features/", "snapshots/"])
def test_a_disk_that_fails_at_the_commit(
    what: str, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    methods = {name: getattr(StoreLocation, name) for name in ("write", "create")}
    with monkeypatch.context() as patch:
        for name, method in methods.items():

            def full(location: StoreLocation, data: bytes, _method: Any = method, **options: bool) -> Any:
                if what in location.url:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), location.path)
                return _method(location, data, **options)

            patch.setattr(StoreLocation, name, full)
        assert main(["build", str(spec), str(store), "--workers", "0", "--quiet"]) == 1
    shown = capsys.readouterr().err
    assert "the next snapshot can't be written: [Errno 28] No space left on device" in shown
    assert "run the same build again, and it goes on from there" in shown
    assert main(["info", str(store)]) == 3
    assert main(["build", str(spec), str(store), "--workers", "0", "--quiet"]) == 0
    assert daodask.validate_store(store).ok


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a real file system of 200 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(spec: Path, tmp_path: Path, tiny_disk: Path) -> None:
    store, roomy = tiny_disk / "store", tmp_path / "roomy"
    code, report = run(tmp_path, spec, store)
    assert (code, report["status"]) == (1, "failed")
    assert "No space left on device" in report["reason"]
    assert "what is finished is kept" in report["reason"]
    subprocess.run(["mount", "-o", "remount,size=20m", str(tiny_disk)], check=True)
    assert run(tmp_path, spec, store)[0] == run(tmp_path, spec, roomy)[0] == 0
    assert daodask.validate_store(store).ok
    assert contents(store) == contents(roomy)


def contents(store: Path) -> dict[str, bytes]:
    """Every file but the snapshots, which tell the time."""
    paths = (p for p in store.rglob("*") if p.is_file() and p.parent.name != "snapshots")
    return {str(p.relative_to(store)): p.read_bytes() for p in paths}
