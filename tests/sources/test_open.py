"""Formats by name, opening by address, and what is not accepted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask.sources
from daodask.errors import SourceError
from daodask.sources import (
    FORMATS,
    Fingerprint,
    detect_format,
    fingerprint_location,
    known_formats,
    open_source,
    register_source,
)
from daodask.sources.base import Source, SourceAddress
from daodask.sources.memory import MemorySource
from daodask.storage import StoreLocation


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("study.h5ad", "h5ad"),
        ("STUDY.H5AD", "h5ad"),
        ("study.10x.h5", "10x"),
        ("filtered_feature_bc_matrix.h5", "10x"),
        ("gs://bucket/study.h5ad", "h5ad"),
        ("study.zarr", "zarr"),
        ("study.loom", "loom"),
    ],
)
def test_the_suffix_tells_the_format(name: str, expected: str) -> None:
    assert detect_format(StoreLocation.parse(name)) == expected


@pytest.mark.parametrize("matrix", ["matrix.mtx", "matrix.mtx.gz"])
def test_a_directory_with_a_matrix_is_mtx(tmp_path: Path, matrix: str) -> None:
    (tmp_path / matrix).touch()
    assert detect_format(StoreLocation.parse(tmp_path)) == "mtx"


def test_other_names_are_refused_with_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "study.csv").touch()
    for path in (tmp_path, tmp_path / "study.csv"):
        with pytest.raises(
            SourceError, match=r"\*\.h5ad, \*\.loom, .* matrix\.mtx.*h5ad, zarr, 10x, mtx, loom, dao, dao_v1"
        ):
            detect_format(StoreLocation.parse(path))
    with pytest.raises(SourceError, match="found nothing; check the path"):
        detect_format(StoreLocation.parse(tmp_path / "none"))


def test_an_unknown_format_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"got 'h5da' \(did you mean 'h5ad'\?\)"):
        open_source(SourceAddress(StoreLocation.parse(tmp_path), "h5da"))


@pytest.mark.parametrize("format_", list(FORMATS))
def test_nothing_there(tmp_path: Path, format_: str) -> None:
    with pytest.raises(SourceError, match="found nothing"):
        open_source(SourceAddress(StoreLocation.parse(tmp_path / "none.h5"), format_))


class Own:
    """The least that a source is."""

    obsm_names = ()
    n_obs = 2

    def __init__(self, location: StoreLocation, offset: int = 0) -> None:
        self.location, self.offset = location, offset

    def obs(self) -> pd.DataFrame:
        return pd.DataFrame(index=["a", "b"])

    def var(self, matrix: str) -> pd.DataFrame:
        return pd.DataFrame(index=["g"])

    def uns(self) -> dict[str, Any]:
        return {}

    def read_matrix(self, matrix: str, start: int, stop: int) -> sp.csr_matrix:
        return sp.csr_matrix(np.array([[1], [2]])[start:stop] + self.offset)

    def read_obsm(self, name: str, start: int, stop: int) -> np.ndarray:
        raise KeyError(name)

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        return fingerprint_location(self.location, known)


@pytest.fixture
def study(tmp_path: Path) -> StoreLocation:
    (tmp_path / "study.own").write_text("1 2")
    return StoreLocation.parse(tmp_path / "study.own")


def test_a_registered_format(monkeypatch: pytest.MonkeyPatch, study: StoreLocation) -> None:
    monkeypatch.setattr(daodask.sources, "_registered", {})
    register_source("own", Own)
    assert known_formats()[-1] == "own"
    found = open_source(SourceAddress(study, "own", options=(("offset", 5),)))
    assert isinstance(found, Own)
    assert found.read_matrix("X", 0, 2).toarray().tolist() == [[6], [7]]
    with pytest.raises(SourceError, match="expected a name that no built-in format has, got 'zarr'"):
        register_source("zarr", Own)
    register_source("none", lambda location: location)
    with pytest.raises(SourceError, match="expected format 'none' to open a Source, got StoreLocation"):
        open_source(SourceAddress(study, "none"))


INSTALLED = """
import sys
from daodask.sources import known_formats, open_source, SourceAddress
from daodask.storage import StoreLocation
assert known_formats()[-2:] == ("broken", "own"), known_formats()
assert "own_package" not in sys.modules
location = StoreLocation.parse(sys.argv[1])
print(open_source(SourceAddress(location, "own")))
try:
    open_source(SourceAddress(location, "broken"))
except ValueError as error:
    print(error)
"""


def test_an_installed_format_is_found_in_any_process_and_loaded_late(tmp_path: Path, study: StoreLocation) -> None:
    (tmp_path / "own_package.py").write_text(
        "from types import SimpleNamespace\n"
        "NAMES = 'n_obs obs var uns obsm_names read_matrix read_obsm fingerprint'.split()\n"
        "class Own(SimpleNamespace):\n"
        "    __repr__ = lambda self: 'opened by a package'\n"
        "def opened(location):\n"
        "    return Own(**dict.fromkeys(NAMES, len))\n"
    )
    info = tmp_path / "own_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[daodask.sources]\nbroken = own_package:nothing\nown = own_package:opened\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", INSTALLED, str(study)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    opened, refused = run.stdout.splitlines()
    assert opened == "opened by a package"
    assert refused.startswith("expected own_package:nothing to be importable, as format 'broken' is there: ")


def test_an_open_source_passes_through() -> None:
    source = MemorySource(anndata.AnnData(np.eye(2, dtype=np.float32)))
    assert isinstance(source, Source)
    assert open_source(source) is source


def test_a_process_opens_a_file_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "study.h5ad"
    address = SourceAddress(StoreLocation.parse(path), "h5ad")
    anndata.AnnData(np.eye(2, dtype=np.float32)).write_h5ad(path)
    first = open_source(address)
    assert open_source(address) is first
    replacement = tmp_path / "new.h5ad"
    anndata.AnnData(np.eye(3, dtype=np.float32)).write_h5ad(replacement)
    os.utime(replacement, ns=(1, 1))
    replacement.replace(path)
    assert open_source(address).n_obs == 3


def test_importing_the_package_imports_no_reader() -> None:
    code = "import sys, daodask.sources; print(sorted({'anndata', 'h5py', 'dask', 'zarr'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
