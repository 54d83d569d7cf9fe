"""The examples run as they stand, in a process of their own."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from daodask.batches.schedule import Shuffled
from daodask.bench import Spread

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: anndata asks pandas for an option that pandas 3 deprecates.
NOT_OURS = "ignore:The 'future.infer_string' option is deprecated"


def run(*arguments: object, stdin: str | None = None, **environment: str) -> str:
    """Run Python with warnings as errors and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", NOT_OURS, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_example_is_n_tested() -> None:
    # That gene_names.py prints what the README shows is tested in tests/build/test_gene_names.py.
    tested = {"custom_source.py", "first_steps.py", "gene_names.py", "train_cell_types.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_first_steps() -> None:
    shown = run(EXAMPLES / "first_steps.py")
    assert "2 built, 0 unchanged, 0 refused or failed" in shown
    assert "<daodask.Store> 1,000 cells x 200 genes" in shown
    assert "397 T and NK cells with more than 40 counts, 10 genes" in shown
    assert "n_obs × n_vars = 397 × 10" in shown
    assert "chunktype=daodask.CSRBlock" in shown
    assert re.search(r"blood +B cell +44.4\n", shown)
    for epoch in (0, 1):
        sizes = re.findall(rf"^epoch {epoch}: (\d+) cells × 200 genes", shown, re.MULTILINE)
        assert sizes == ["256", "256", "256", "232"]


def test_a_source_of_ones_own() -> None:
    shown = run(EXAMPLES / "custom_source.py")
    assert "2 built, 0 unchanged, 0 refused or failed" in shown
    assert re.search(r"^lung +30 +counts$", shown, re.MULTILINE)
    (kept, given) = re.findall(r"counts of lung: (\d+) of (\d+)", shown)[0]
    assert kept == given
    code = (EXAMPLES / "custom_source.py").read_text(encoding="utf-8")
    source = code[code.index("class TableSource") : code.index("# -- a store of two")]
    assert len(source.strip().splitlines()) <= 40


def test_training_without_pytorch_says_so_and_is_no_failure() -> None:
    script = str(EXAMPLES / "train_cell_types.py")
    probe = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    assert "PyTorch, which is not installed: pip install 'daodask[torch]'" in run("-c", probe, script)


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.skipif(find_spec("scanpy") is None, reason="the demo's cells come with scanpy")
def test_training_on_the_cells_of_the_demo(tmp_path: Path) -> None:
    shown = run(EXAMPLES / "train_cell_types.py", tmp_path, DAODASK_DATA=str(tmp_path / "none"))
    assert "560 cells to train with, 140 to test with; 765 genes" in shown
    assert n_tested(shown) == 140
    assert accuracy(shown) > 0.7


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_training_on_the_atlas(data: Path, tmp_path: Path) -> None:
    shown = run(EXAMPLES / "train_cell_types.py", tmp_path, DAODASK_DATA=str(data))
    assert "11 built, 0 unchanged, 0 refused or failed" in shown
    assert "10,562 cells to train with, 2,641 to test with; 20,120 genes" in shown
    assert n_tested(shown) == 2641
    assert accuracy(shown) > 0.95


@pytest.mark.skipif(find_spec("scanpy") is None, reason="the demo's cells come with scanpy")
def test_the_notebook_prints_what_it_shows(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "lazy_analysis.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    # What libraries warn of depends on their versions.
    script = f"""
import contextlib, io, json, os, subprocess, sys, warnings
warnings.simplefilter("ignore")
os.chdir({str(tmp_path)!r})
demo = [sys.executable, "-m", "daodask", "demo", "pbmc", "--workers", "0"]
subprocess.run(demo, check=True, stdout=subprocess.DEVNULL)
names, shown = {{}}, []
for source in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(source, names)
    shown.append(printed.getvalue())
json.dump(shown, sys.stdout)
"""
    shown = json.loads(run("-c", script, stdin=json.dumps(["".join(cell["source"]) for cell in code])))
    for cell, printed in zip(code, shown, strict=True):
        assert printed == "".join(text for output in cell["outputs"] for text in output["text"])


def test_the_plot_of_speed_against_mixing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    names = runpy.run_path(str(EXAMPLES / "mixing" / "plot.py"))
    speed = Spread(3e4, 2e4, 5e4, 5)
    points = {
        Shuffled(run_rows, window_rows): names["Point"](speed, 1 - run_rows / 2000)
        for run_rows in names["RUN_ROWS"]
        for window_rows in names["WINDOW_ROWS"]
    }
    names["draw"](points, speed, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- measured -->\nold\n<!-- end -->\nbelow\n", encoding="utf-8")
    names["write"](names["table"](points, speed), readme)
    written = readme.read_text(encoding="utf-8")
    assert re.fullmatch(r"above\n<!-- measured -->\n.*medians of 5 passes.*<!-- end -->\nbelow\n", written, re.DOTALL)
    assert "| 64 | 30 (20–50), **96.8%** | 30 (20–50), **96.8%** | 30 (20–50), **96.8%** |" in written


def n_tested(shown: str) -> int:
    """Sum of the table of true and predicted types."""
    rows = re.findall(r"^ ?\d+ .*?((?: +\d+)+) +\d+%$", shown, re.MULTILINE)
    return sum(int(number) for row in rows for number in row.split())


def accuracy(shown: str) -> float:
    (percent,) = re.findall(r"^accuracy ([\d.]+)%", shown, re.MULTILINE)
    return float(percent) / 100
