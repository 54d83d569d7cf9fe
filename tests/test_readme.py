"""What README.md shows is what happens."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from daodask.cli import EXIT_CODES, _parser, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str, language: str) -> str:
    """The first code block of a language below a mark."""
    found = re.search(rf"^```{language}\n(.*?)^```$", README.partition(f"<!-- {mark} -->")[2], re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.skipif(find_spec("scanpy") is None, reason="the demo's cells come with scanpy")
def test_the_example_prints_what_is_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = block("command: demo", "sh").split()
    where = command.index("demo", command.index("&&"))
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*command[where:], "--workers", "0"]) == 0
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("example", "python"), "README.md", "exec"), {})  # noqa: S102
    assert printed.getvalue() == block("example", "text")


def test_the_example_has_five_lines() -> None:
    lines = block("example", "python").splitlines()
    assert len([line for line in lines if line and not line.startswith("import")]) == 5


def test_the_build_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from daodask.build.spec import load_spec

    monkeypatch.setenv("DATA", "data")
    (tmp_path / "atlas.yaml").write_text(block("build file", "yaml"), encoding="utf-8")
    spec = load_spec(tmp_path / "atlas.yaml")
    (study,) = spec.studies
    assert (study.id, study.matrix, study.genes) == ("pbmc_facs", "layers/counts", "gene_ids")
    assert [rule.name for rule in study.obs] == ["donor_id", "cell_type", "tissue", "sample"]
    # Defaults are stated as they are.
    assert spec.layout == type(spec.layout)()


def test_the_commands_are_all_there() -> None:
    (commands,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    shown = re.findall(r"^\| `daodask (\w+)", README, re.MULTILINE)
    assert shown == list(commands.choices)


def test_the_exit_codes_are_all_there() -> None:
    table = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    assert f"|---:|---|\n{table}\n\n" in README


def test_the_schedules_are_those_that_there_are() -> None:
    from daodask.batches import schedule

    section = README.partition("## Training")[2].partition("\n## ")[0]
    for text in re.findall(r"`((?:Shuffled|Balanced|Grouped)\(.*?\))`", section):
        made = eval(text, vars(schedule))  # noqa: S307
        assert isinstance(made, schedule.Schedule)
    for name in re.findall(r'^\| `"(\w+)"`', section, re.MULTILINE):
        assert schedule.named_schedule(name) is not None
    assert repr(schedule.Shuffled()) in section


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target


def test_no_section_is_left_to_be_written() -> None:
    marks = {"command: demo", "command: test", "example", "build file", "build file: streamlining", "gene names"}
    assert set(re.findall(r"<!-- (.*?) -->", README)) == marks
