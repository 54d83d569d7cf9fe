"""The command line: what it prints, what it leaves, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import daodask
from daodask.cli import EXIT_CODES, main
from daodask.testing import coordinate_adata, random_store

ROOT = Path(daodask.__file__).parents[1]

SPEC = """\
features: {name: genes, reference: union}
obs:
  cell_type: {missing: unknown}
keep: [n_counts]
studies:
  - {id: one, source: one.h5ad, obs: {cell_type: cell_type}, uns: {title: The first}}
  - {id: two, source: two.h5ad, obs: {cell_type: cell_type}}
"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Return a directory of two studies and their build file."""
    directory = tmp_path_factory.mktemp("studies")
    coordinate_adata(30).write_h5ad(directory / "one.h5ad")
    coordinate_adata(20, first=30).write_h5ad(directory / "two.h5ad")
    halves = coordinate_adata(10)
    halves.X = halves.layers["half"]
    halves.write_h5ad(directory / "halves.h5ad")
    (directory / "atlas.yaml").write_text(SPEC, encoding="utf-8")
    refused = SPEC + "  - {id: halves, source: halves.h5ad}\n"
    (directory / "refused.yaml").write_text(refused, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def store(studies, tmp_path_factory):
    """Return the path of the store of these studies, that nobody may change."""
    path = tmp_path_factory.mktemp("cli") / "store"
    assert main(["build", str(studies / "atlas.yaml"), str(path), "--workers", "0", "--quiet"]) == 0
    return path


def _files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def _run(*arguments, **options):
    """Run the command in a process of its own, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "daodask", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=_environment(),
        **options,
    )


def _environment():
    quiet = "ignore:The 'future.infer_string' option is deprecated"
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": quiet}


# -- help and usage ------------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy():
    probe = (
        "import sys, daodask.cli\n"
        "try: daodask.cli.main(['build', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & set(sys.argv[1].split(','))))"
    )
    heavy = "anndata,dask,distributed,fsspec,h5py,numpy,pandas,pyarrow,rich,scanpy,yaml,zarr"
    run = subprocess.run(
        [sys.executable, "-c", probe, heavy], capture_output=True, text=True, check=True, env=_environment()
    )
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["build", "info", "validate", "demo"])
def test_each_command_teaches_by_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"daodask {command}" in shown
    assert "exit codes:" in shown


def test_the_main_help_has_commands_and_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for meaning in EXIT_CODES.values():
        assert meaning in shown
    assert "daodask demo" in shown


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"daodask {daodask.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bild"],
        ["build", "atlas.yaml"],
        ["build", "atlas.yaml", "store", "--workers", "-1"],
        ["build", "atlas.yaml", "store", "--threads", "0"],
        ["build", "atlas.yaml", "store", "--workers", "2", "--scheduler", "tcp://10.0.0.5:8786"],
        ["info"],
        ["validate", "store", "--snapshot", "new"],
    ],
)
def test_usage_errors_are_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: daodask" in capsys.readouterr().err


# -- exit codes and messages ---------------------------------------------------------------------------------------


def _failing(studies, store, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("features: {name: genes}\nstudies: []\n", encoding="utf-8")
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.write_text(SPEC.replace("union", "nowhere.csv"), encoding="utf-8")
    newer = tmp_path / "newer"
    (newer / "snapshots").mkdir(parents=True)
    (newer / "snapshots" / "00000001.json").write_text('{"format": 99, "written_by": "daodask 9"}', encoding="utf-8")
    broken = tmp_path / "broken"
    (broken / "snapshots").mkdir(parents=True)
    (broken / "snapshots" / "00000001.json").write_text("{", encoding="utf-8")
    out, atlas = tmp_path / "out", studies / "atlas.yaml"
    return {
        "a study is refused": (["build", studies / "refused.yaml", out, "--workers", 0], 1, ""),
        "a dry run that refuses": (["build", studies / "gone.yaml", out, "--dry-run"], 1, ""),
        "no scheduler": (["build", atlas, out, "--scheduler", "tcp://127.0.0.1:1"], 1, "expected a Dask scheduler"),
        "no build file": (["build", tmp_path / "no.yaml", out], 2, "expected a file at"),
        "a bad build file": (["build", bad, out], 2, "features.reference: expected a value"),
        "no reference": (["build", nowhere, out, "--workers", 0], 2, "reference: expected a file at"),
        "no such protocol": (["info", "foo://bar/atlas"], 2, "expected a path or a URL"),
        "no store to show": (["info", tmp_path / "none"], 3, "expected a daodask store at"),
        "no store to validate": (["validate", tmp_path / "none"], 3, "expected a daodask store at"),
        "no such snapshot": (["info", store, "--snapshot", 9], 3, "has no snapshot 9"),
        "no such features": (["info", store, "--features", "gene"], 2, "did you mean 'genes'?"),
        "no such features to validate": (["validate", store, "--features", "x"], 2, "has no feature space 'x'"),
        "a newer store": (["info", newer], 3, "written by a newer daodask: daodask 9"),
        "a newer store to validate": (["validate", newer], 3, "written by a newer daodask: daodask 9"),
        "a store that can't be read": (["info", broken], 3, "expected a daodask snapshot"),
        "a store that is not valid": (["validate", broken], 1, ""),
        "a store in a file": (["info", atlas / "store"], 3, ""),
    }


CASES = tuple(_failing(Path(), Path(), Path(os.devnull).parent / "nowhere")) if False else (
    "a study is refused",
    "a dry run that refuses",
    "no scheduler",
    "no build file",
    "a bad build file",
    "no reference",
    "no such protocol",
    "no store to show",
    "no store to validate",
    "no such snapshot",
    "no such features",
    "no such features to validate",
    "a newer store",
    "a newer store to validate",
    "a store that can't be read",
    "a store that is not valid",
    "a store in a file",
)
