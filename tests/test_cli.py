"""The command line: what it prints, what it leaves, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import daodask
from daodask.cli import CODECS, EXIT_CODES, main
from daodask.export import h5ad
from daodask.format import codecs
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
        **{"env": _environment(), **options},
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


@pytest.mark.parametrize("command", ["build", "info", "validate", "vacuum", "remove", "log", "export", "bench", "demo"])
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


def test_codecs_of_exports_are_all_there_are():
    assert {*CODECS} == {*codecs.CODECS, *h5ad.CODECS}


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

#: Arguments, exit code, and what stderr says of it.
CASES = {
    "a study is refused": ("build {studies}/refused.yaml {out} --workers 0 --quiet", 1, ""),
    "a dry run that fails": ("build {bad}/gone.yaml {out} --dry-run --quiet", 1, ""),
    "no scheduler": ("build {studies}/atlas.yaml {out} --scheduler tcp://127.0.0.1:1", 1, "expected a Dask scheduler"),
    "no build file": ("build {bad}/none.yaml {out}", 2, "give the path or URL of a build file"),
    "a bad build file": ("build {bad}/bad.yaml {out}", 2, "features.reference: expected a value"),
    "no reference": ("build {bad}/nowhere.yaml {out} --workers 0 --quiet", 2, "reference: expected a file at"),
    "other genes": ("build {bad}/other.yaml {store} --workers 0 --quiet", 2, "has other genes"),
    "no such protocol": ("info foo://bar/atlas", 2, "expected a path or a URL"),
    "no store to show": ("info {bad}/none", 3, "expected a daodask store at"),
    "no store to validate": ("validate {bad}/none", 3, "expected a daodask store at"),
    "no such snapshot": ("info {store} --snapshot 9", 3, "has no snapshot 9"),
    "no such features": ("info {store} --features gene", 2, "did you mean 'genes'?"),
    "no such features to validate": ("validate {store} --features x", 2, "has no feature space 'x'"),
    "a newer store": ("info {bad}/newer", 3, "written by a newer daodask: daodask 9"),
    "a newer store to validate": ("validate {bad}/newer", 3, "written by a newer daodask: daodask 9"),
    "a store that can't be read": ("info {bad}/broken", 3, "expected a daodask snapshot"),
    "a store that is not valid": ("validate {bad}/broken --quiet", 1, ""),
    "a store in a file": ("info {studies}/atlas.yaml/store", 3, "atlas.yaml"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory, studies):
    """Return a directory of build files and stores that are not right."""
    directory = tmp_path_factory.mktemp("bad")
    spec = SPEC.replace("source: ", f"source: {studies}/")
    for name, text in {
        "bad": "features: {name: genes}\nstudies: []\n",
        "nowhere": spec.replace("union", "nowhere.csv"),
        "gone": spec.replace("two.h5ad", "gone.h5ad"),
        "other": spec.replace("id: one", "id: three").replace("one.h5ad", "fewer.h5ad").partition("  - {id: two")[0],
    }.items():
        (directory / f"{name}.yaml").write_text(text, encoding="utf-8")
    coordinate_adata(5, 7).write_h5ad(studies / "fewer.h5ad")
    for name, text in {"newer": '{"format": 99, "written_by": "daodask 9"}', "broken": "{"}.items():
        (directory / name / "snapshots").mkdir(parents=True)
        (directory / name / "snapshots" / "00000001.json").write_text(text, encoding="utf-8")
    return directory


@pytest.mark.parametrize("case", CASES)
def test_exit_codes(case, studies, store, bad, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("daodask._cluster._CONNECT_SECONDS", 0.5)
    template, code, message = CASES[case]
    arguments = template.format(studies=studies, store=store, bad=bad, out=tmp_path / "out").split()
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    if message:
        assert message in shown.err
        (line,) = shown.err.splitlines()
        assert line.startswith(f"daodask {arguments[0]}: ")
    else:
        assert shown.out


def test_an_interrupt_is_130(studies, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("daodask.build.run.build_store", interrupted)
    assert main(["build", str(studies / "atlas.yaml"), str(tmp_path / "out"), "--workers", "0"]) == 130
    assert "interrupted; the store is at its last snapshot" in capsys.readouterr().err


def test_an_output_that_nobody_reads_is_no_error(store):
    command = f"'{sys.executable}' -m daodask info '{store}' --json | head -c 1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=_environment())  # noqa: S602
    assert run.stdout == "{"
    assert run.stderr == ""


# -- build ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(studies, store, tmp_path, capsys):
    before = _files(studies)
    assert main(["build", str(studies / "atlas.yaml"), str(tmp_path / "out"), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert _files(studies) == before
    shown = capsys.readouterr().out
    assert f"build into {tmp_path / 'out'}, now at snapshot none" in shown
    assert "one    build      30" in shown
    before = _files(store)
    assert main(["build", str(studies / "atlas.yaml"), str(store), "--dry-run", "--quiet"]) == 0
    assert "one    unchanged" in capsys.readouterr().out
    assert _files(store) == before


def test_building_twice_changes_nothing_and_says_so(studies, store, capsys):
    before = _files(store)
    assert main(["build", str(studies / "atlas.yaml"), str(store), "--workers", "0"]) == 0
    assert "nothing to commit; 0 built, 2 unchanged, 0 refused or failed" in capsys.readouterr().out
    assert _files(store) == before


def test_a_refused_study_is_reported_and_the_others_are_in(studies, tmp_path, capsys):
    arguments = ["build", str(studies / "refused.yaml"), str(tmp_path / "out"), "--workers", "0"]
    report = tmp_path / "report.json"
    assert main([*arguments, "--report", str(report)]) == 1
    shown = capsys.readouterr()
    assert "snapshot 1 committed; 2 built, 0 unchanged, 1 refused or failed" in shown.out
    assert "halves: refused: expected counts" in shown.out
    written = json.loads(report.read_text(encoding="utf-8"))
    page = tmp_path / "report.html"
    assert main([*arguments, "--quiet", "--report", str(page)]) == 1
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [study["status"] for study in written["studies"]] == ["built", "built", "refused"]
    assert daodask.open_store(tmp_path / "out").n_obs == 50


def test_changed_studies_need_replace(studies, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["build", str(studies / "atlas.yaml"), out, "--workers", "0", "--quiet"]) == 0
    changed = tmp_path / "changed.yaml"
    spec = SPEC.replace("source: ", f"source: {studies}/").replace("missing: unknown", "missing: other")
    changed.write_text(spec, encoding="utf-8")
    capsys.readouterr()
    assert main(["build", str(changed), out, "--workers", "0"]) == 1
    assert "--replace" in capsys.readouterr().out
    assert main(["build", str(changed), out, "--workers", "0", "--replace"]) == 0
    assert "replaced" in capsys.readouterr().out


def test_progress_is_lines_where_there_is_no_terminal(studies, tmp_path, capsys):
    arguments = ["build", str(studies / "atlas.yaml"), str(tmp_path / "out"), "--workers", "0", "--threads", "2"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    lines = {line.partition(" %  ")[2] for line in shown.err.splitlines()}
    assert {"one: inspect 1/1", "one: stage 1/1", "two: inspect 1/1", "two: stage 1/1"} <= lines
    assert " 100 %  " in shown.err.splitlines()[-1]
    assert "\x1b" not in shown.out + shown.err


def test_quiet_is_one_line(studies, store, capsys):
    assert main(["build", str(studies / "atlas.yaml"), str(store), "--workers", "0", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert len(shown.out.splitlines()) == 1


def test_a_build_on_a_local_cluster_leaves_nothing_but_the_store(studies, store, tmp_path):
    work, temporary = tmp_path / "work", tmp_path / "tmp"
    work.mkdir()
    temporary.mkdir()
    arguments = ["build", studies / "atlas.yaml", "atlas", "--workers", 1]
    run = _run(*arguments, cwd=work, env={**_environment(), "TMPDIR": str(temporary)})
    assert run.returncode == 0, run.stderr
    assert "snapshot 1 committed; 2 built" in run.stdout
    assert {line.partition(" %  ")[2].partition(":")[0] for line in run.stderr.splitlines()} == {"one", "two"}
    assert [p.name for p in work.iterdir()] == ["atlas"]
    assert list(temporary.iterdir()) == []
    datasets = {path: data for path, data in _files(work / "atlas").items() if path.parts[0] == "datasets"}
    assert datasets == {path: data for path, data in _files(store).items() if path.parts[0] == "datasets"}


# -- info and validate ---------------------------------------------------------------------------------------------


def test_info_shows_datasets_and_columns(store, capsys):
    assert main(["info", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "1 feature space, 2 datasets, 50 cells" in shown
    assert "features 'genes': 32 genes; 50 cells" in shown
    assert "counts, uint16  The first" in shown
    assert "cell_type  category  4 categories" in shown
    assert "T cell 30%, B cell 28%, Größenzelle 28%, unknown 14%" in shown


def test_info_as_json(store, capsys):
    assert main(["info", str(store), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    (space,) = value["features"]
    assert value["snapshot"] == 1
    assert (space["name"], space["n_obs"], space["n_vars"]) == ("genes", 50, 32)
    assert [dataset["n_obs"] for dataset in space["datasets"]] == [30, 20]
    assert space["nbytes"] == sum(dataset["nbytes"] for dataset in space["datasets"])
    cell_type, n_counts = space["obs"]
    assert cell_type["counts"] == [["T cell", 15], ["B cell", 14], ["Größenzelle", 14], ["unknown", 7]]
    assert n_counts["low"] >= 0


def test_info_lists_several_feature_spaces(studies, tmp_path, capsys):
    out, mouse = str(tmp_path / "out"), tmp_path / "mouse.yaml"
    spec = SPEC.replace("source: ", f"source: {studies}/")
    mouse.write_text(
        spec.replace("genes", "mouse").replace("one,", "three,").replace("two,", "four,"), encoding="utf-8"
    )
    assert main(["build", str(studies / "atlas.yaml"), out, "--workers", "0", "--quiet"]) == 0
    assert main(["build", str(mouse), out, "--workers", "0", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["info", out]) == 0
    shown = capsys.readouterr().out
    assert "2 feature spaces, 4 datasets, 100 cells" in shown
    assert "features 'genes'" in shown
    assert "features 'mouse'" in shown
    assert main(["info", out, "--features", "mouse"]) == 0
    shown = capsys.readouterr().out
    assert "features 'genes'" not in shown
    assert "three" in shown
    assert main(["info", out, "--snapshot", "1"]) == 0
    assert "mouse" not in capsys.readouterr().out


def test_validate_says_what_is_damaged(tmp_path, capsys):
    random_store(tmp_path / "store", (20,))
    assert main(["validate", str(tmp_path / "store"), "--quiet"]) == 0
    assert "snapshot 1 is valid" in capsys.readouterr().out
    (file,) = (tmp_path / "store").glob("datasets/*/X/data/c/0")
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["validate", str(tmp_path / "store")]) == 1
    shown = capsys.readouterr()
    assert "snapshot 1 is NOT valid" in shown.out
    assert "study0: error: X/data/c/0: expected" in shown.out
    assert "study0: check" in shown.err
    assert main(["validate", str(tmp_path / "store"), "--json", "--quiet"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
