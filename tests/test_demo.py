"""The demo: it runs, its totals agree, and run again it finds its store."""

import json
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import daodask
from daodask._demo_studies import NO_LABEL, recover_counts, totals_of
from daodask.cli import main
from daodask.errors import SourceError
from daodask.testing import coordinate_adata


@pytest.fixture
def scanpy():
    with warnings.catch_warnings(action="ignore"):
        return pytest.importorskip("scanpy", reason="the demo's cells come with scanpy")


def test_the_demo_runs_and_its_store_is_found_again(scanpy, tmp_path, capsys):
    path = tmp_path / "demo"
    assert main(["demo", str(path), "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "the largest distance from an integer is 0.08" in shown
    assert "3 built, 0 unchanged, 0 refused or failed" in shown
    assert "all 10 totals agree" in shown
    assert "every cell exactly once" in shown
    assert "counts in all batches: 451,284, expected 451,284" in shown
    assert "\x1b" not in shown
    assert daodask.validate_store(path / "store").ok
    assert main(["demo", str(path), "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "nothing to commit; 0 built, 3 unchanged" in shown
    assert "all 10 totals agree" in shown


def test_the_demos_cells_are_those_of_scanpy(scanpy, tmp_path):
    assert main(["demo", str(tmp_path), "--workers", "0"]) == 0
    store = daodask.open_store(tmp_path / "store")
    with warnings.catch_warnings(action="ignore"):
        source = scanpy.datasets.pbmc68k_reduced()
    obs = store.obs.compute()
    assert sorted(obs["obs_names"]) == sorted(source.obs_names)
    labels = source.obs["bulk_labels"].astype(str)
    assert dict(zip(obs["obs_names"], obs["cell_type"], strict=True)) == labels.to_dict()
    exact = np.expm1(source.raw.X.toarray().astype(np.float64)) * source.obs[["n_counts"]].to_numpy() / 1e4
    counts = pd.DataFrame(np.rint(exact), index=source.obs_names, columns=source.raw.var_names)
    ours = store.subset(dataset="by_symbol").to_anndata()
    assert np.array_equal(ours.X.toarray(), counts.loc[ours.obs_names, ours.var["symbol"]])
    measured = store.measured
    assert measured.sum().to_dict() == {"by_symbol": 765, "by_id": 615, "by_version": 765}


def test_the_demo_says_what_is_missing_without_scanpy(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    assert main(["demo", str(tmp_path), "--workers", "0"]) == 1
    assert "pip install 'daodask[demo]'" in capsys.readouterr().err


def test_the_demo_takes_a_new_directory_and_names_it(scanpy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["demo", "--workers", "0"]) == 0
    (directory,) = tmp_path.glob("daodask-demo-*")
    assert f"working in {directory}" in capsys.readouterr().out


def _own(directory):
    """Three files with counts in X, in raw and in a layer."""
    first = coordinate_adata(30)
    second = coordinate_adata(20, first=30)
    second.raw = second.copy()
    second.X = sp.csr_matrix(np.log1p(second.X.toarray()))
    third = coordinate_adata(10, 40, first=50)
    third.layers["counts"] = third.X.copy()
    third.X = third.layers["half"]
    files = []
    for name, adata in {"first.h5ad": first, "my second!.h5ad": second, "third.h5ad": third}.items():
        adata.write_h5ad(directory / name)
        files.append(str(directory / name))
    return files


def test_the_demo_on_own_files(tmp_path, capsys):
    files = _own(tmp_path)
    assert main(["demo", str(tmp_path / "out"), "--workers", "0", "--input", *files]) == 0
    shown = capsys.readouterr().out
    assert "first.h5ad: 30 cells, counts in X\n" in shown
    assert "my second!.h5ad: 20 cells, counts in raw (X has" in shown
    assert "third.h5ad: 10 cells, counts in layers/counts (X has" in shown
    assert "all 3 totals agree" in shown
    store = daodask.open_store(tmp_path / "out" / "store")
    assert list(store.datasets.index) == ["first", "my_second", "third"]
    assert store.shape == (60, 40)


def test_the_demo_on_own_files_by_a_column(tmp_path, capsys):
    files = _own(tmp_path)
    assert main(["demo", str(tmp_path / "out"), "--workers", "0", "--by", "cell_type", "--input", *files]) == 0
    shown = capsys.readouterr().out
    assert "all 4 totals agree" in shown
    assert NO_LABEL in shown
    assert main(["demo", str(tmp_path / "out"), "--workers", "0", "--by", "cel_type", "--input", *files]) == 2
    assert "did you mean 'cell_type'?" in capsys.readouterr().err


def test_own_files_that_are_refused_are_said(tmp_path, capsys):
    halves = coordinate_adata(10)
    halves.X = halves.layers["half"]
    halves.write_h5ad(tmp_path / "halves.h5ad")
    coordinate_adata(10).write_h5ad(tmp_path / "whole.h5ad")
    arguments = ["demo", str(tmp_path / "out"), "--workers", "0", "--input"]
    assert main([*arguments, str(tmp_path / "halves.h5ad"), str(tmp_path / "whole.h5ad")]) == 1
    shown = capsys.readouterr().out
    assert "though no matrix looks like it" in shown
    assert "halves: refused: expected counts" in shown
    assert "THE TOTALS DIFFER" not in shown
    assert main(["demo", str(tmp_path / "none"), "--workers", "0", "--input", str(tmp_path / "halves.h5ad")]) == 1
    assert main(["demo", str(tmp_path / "none"), "--workers", "0", "--input", str(tmp_path / "gone.h5ad")]) == 1


def test_counts_that_do_not_come_back_are_refused():
    counts = np.array([[1.0, 3.0], [0.0, 2.0]])
    depth = counts.sum(axis=1)
    logged = sp.csr_matrix(np.log1p(counts / depth[:, None] * 1e4))
    recovered, off = recover_counts(logged, depth)
    assert np.array_equal(recovered.toarray(), counts)
    assert off < 1e-9
    with pytest.raises(SourceError, match="expected counts within 0.2 of integers"):
        recover_counts(logged, depth * 1.1)


def test_totals_per_label():
    labels = pd.Series(["b", None, "a", "b"], dtype="category")
    totals = totals_of(sp.csr_matrix(np.arange(8).reshape(4, 2)), labels)
    assert json.loads(totals.to_json(orient="index")) == {
        NO_LABEL: {"cells": 1, "counts": 5.0},
        "a": {"cells": 1, "counts": 9.0},
        "b": {"cells": 2, "counts": 14.0},
    }
