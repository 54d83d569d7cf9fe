"""Formats by name, opening by address, and what is not accepted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

from daodask.errors import SourceError
from daodask.sources import FORMATS, detect_format, open_source
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
        with pytest.raises(SourceError, match=r"\*\.h5ad, \*\.10x\.h5 or \*\.h5 .* matrix\.mtx.*h5ad, 10x, mtx"):
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
