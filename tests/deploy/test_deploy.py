"""deploy/ as a whole: commands first, memory by the sizing rule, what is counted is counted."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dask.utils import parse_bytes

ROOT = Path(__file__).parents[2]
FOLDERS = ["docker", "gateway", "gcp", "kubernetes", "slurm"]

#: The first words of each folder's command, and the files of this repository that it names.
COMMANDS = {
    "docker": ("JUPYTER_TOKEN=choose-one docker compose", ["deploy/docker/compose.yaml"]),
    "gateway": ("DAODASK_GATEWAY_PASSWORD=choose-one dask-gateway-server", ["deploy/gateway/dask_gateway_config.py"]),
    "gcp": ("deploy/gcp/bucket.sh PROJECT BUCKET", ["deploy/gcp/bucket.sh"]),
    "kubernetes": ("sed", []),
    "slurm": ("sbatch", ["deploy/slurm/build.sbatch"]),
}


def test_each_folder_begins_with_the_command_that_uses_it(deploy):
    assert (
        sorted(p.name for p in deploy.iterdir() if p.is_dir() and p.name != "__pycache__")
        == FOLDERS
        == sorted(COMMANDS)
    )
    for folder, (words, files) in COMMANDS.items():
        text = (deploy / folder / "README.md").read_text()
        assert text.startswith("```sh\n"), folder
        command = text.partition("\n")[2].partition("```")[0]
        assert command.startswith(words)
        assert re.findall(r"deploy/\S+", command)[: len(files)] == files
        assert all((ROOT / file).is_file() for file in files)


def test_links_between_readmes_lead_somewhere(deploy):
    for path in deploy.rglob("README.md"):
        text = path.read_text()
        for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), f"{path}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
                assert anchor in [h.lower().replace(" ", "-") for h in headings], f"{path}: {target}"


# -- memory --------------------------------------------------------------------------------------------------------

BASE, TASK, SPILL = 0.5 * 2**30, 512_000_000, 0.7


def workers(deploy: Path) -> Iterator[tuple[str, int, float]]:
    """Threads and bytes of the workers of each way."""

    def option(command: list[str], name: str) -> str:
        return command[command.index(name) + 1]

    compose = yaml.safe_load((deploy / "docker" / "compose.yaml").read_text())["services"]["worker"]
    limit = option(compose["command"], "--memory-limit")
    yield "compose", int(option(compose["command"], "--nthreads")), parse_bytes(limit)
    assert parse_bytes(compose["mem_limit"].replace("m", "MiB")) >= parse_bytes(limit) + 2 * 2**30  # tmpfs is memory
    for name in ("cluster.yaml", "build.yaml"):
        for resource in yaml.safe_load_all((deploy / "kubernetes" / name).read_text()):
            spec = resource.get("spec", {})
            spec = spec["cluster"]["spec"] if resource["kind"] == "DaskJob" else spec
            if "worker" in spec:
                (container,) = spec["worker"]["spec"]["containers"]
                threads, limit = (option(container["args"], o) for o in ("--nthreads", "--memory-limit"))
                for what in container["resources"].values():
                    assert parse_bytes(what["memory"] + "B") == parse_bytes(limit)
                    assert what["cpu"] == threads
                yield name, int(threads), parse_bytes(limit)
    values = yaml.safe_load((deploy / "gateway" / "values.yaml").read_text())["gateway"]["backend"]["worker"]
    # dask-gateway reads 4G as 4 GiB.
    yield "helm", values["threads"], parse_bytes(values["memory"]["limit"] + "iB")
    jobqueue = yaml.safe_load((deploy / "slurm" / "jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    yield "jobqueue", jobqueue["cores"] // jobqueue["processes"], parse_bytes(jobqueue["memory"])
    batch = dict(
        re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (deploy / "slurm" / "build.sbatch").read_text(), re.MULTILINE)
    )
    threads = int(batch["cpus-per-task"])
    yield "sbatch", threads, threads * parse_bytes(batch["mem-per-cpu"] + "iB")


def test_every_worker_has_the_memory_of_the_rule_and_not_twice_that(deploy):
    found = list(workers(deploy))
    assert [name for name, _, _ in found] == ["compose", "cluster.yaml", "build.yaml", "helm", "jobqueue", "sbatch"]
    for name, threads, memory in found:
        needed = (BASE + threads * TASK) / SPILL
        assert needed <= memory < 2 * needed, f"{name}: {threads} threads need {needed:,.0f} bytes, have {memory:,.0f}"


def test_frozen_workers_are_given_up_after_a_minute_everywhere(deploy):
    files = ["docker/compose.yaml", "gateway/dask_gateway_config.py", "gateway/values.yaml", "kubernetes/cluster.yaml"]
    for name in [*files, "kubernetes/build.yaml", "slurm/jobqueue.yaml", "slurm/build.sbatch"]:
        assert re.search(r"worker-ttl: 60s|WORKER_TTL.{1,12}60s", (deploy / name).read_text(), re.IGNORECASE), name


def test_no_file_names_a_private_host_or_holds_a_secret(deploy):
    public = {"127.0.0.1", "fake-gcs", "helm.dask.org", "scheduler", "10.0.0.5", "daodask-scheduler.daodask"}
    for path in (p for p in deploy.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        text = path.read_text()
        assert set(re.findall(r"(?:https?|tcp|tls)://([a-z0-9][\w.-]*)", text)) <= public, path
        assert "PRIVATE KEY" not in text
    images = re.findall(
        r"^(?:FROM| +image:) (\S+)", "".join(p.read_text() for p in deploy.glob("docker/*e*")), re.MULTILINE
    )
    assert set(images) == {
        "python:3.12.12-slim-bookworm",
        "build",
        "daodask",
        "daodask-notebook",
        "fsouza/fake-gcs-server:1.52.2",
    }


# -- what is measured ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Run deploy/measure.py as its README has it, with few values."""
    command = [
        sys.executable,
        ROOT / "deploy" / "measure.py",
        "--repeats",
        "1",
        "2",
        "--genes",
        "512",
        "--values",
        "32",
    ]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*command, "--json"], env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_opening_is_one_listing_and_one_read_whatever_the_size(measured):
    counts = measured["open"]
    assert (counts["A"], counts["B"]) == (0, 0)
    assert (round(counts["A at least"]), round(counts["B at least"])) == (1, 1)


def test_an_epoch_reads_the_matrix_once(measured):
    # 32 values a cell of 2 bytes each for the gene and 1 or 2 for the count, compressed; and the chunks' index.
    assert 1e6 * 32 < measured["epoch, sequential"]["read"] < 1e6 * 32 * 4
    assert measured["epoch, sequential"]["written"] == measured["epoch, shuffled"]["written"] == 0
    assert measured["build"]["written"] > measured["store"]["bytes"]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda fs: fs.pipe_file("/counts/a", b"12345"), {"A": 1, "written": 5}),
        (lambda fs: fs.cat_file("/counts/b", 1, 3), {"B": 1, "read": 2}),
        (lambda fs: fs.cat_ranges(["/counts/b"] * 3, [0, 1, 2], [1, 2, 4]), {"B": 3, "read": 4}),
        (lambda fs: fs.ls("/counts"), {"A": 1}),
        (lambda fs: fs.find("/counts"), {"A": 1}),
        (lambda fs: fs.exists("/counts/b"), {"B": 1}),
        (lambda fs: fs.open("/counts/b").read(3), {"B": 1, "read": 3}),
    ],
    ids=["write", "range", "ranges", "list", "list all", "exists", "file"],
)
def test_requests_are_counted_as_a_bucket_bills_them(act: Callable[[Any], Any], expected: dict[str, int]) -> None:
    specification = importlib.util.spec_from_file_location("measure", ROOT / "deploy" / "measure.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    fs = module.CountingFileSystem()
    fs.pipe_file("/counts/b", b"0123456789")
    found = module.counted(lambda: act(fs))
    assert {name: found[name] for name in ("A", "B", "read", "written")} == {
        "A": 0,
        "B": 0,
        "read": 0,
        "written": 0,
    } | expected
