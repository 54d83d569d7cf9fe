"""What these tests share: studies in files, processes that end with the test, and the proof that a store is right."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SIZES = (90, 61)
N_VARS = 16


@pytest.fixture(scope="session")
def deploy() -> Path:
    """Return the folder under test."""
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two studies and a build file with absolute paths, so that any process builds from it."""
    from daodask.testing import coordinate_adata

    folder = tmp_path_factory.mktemp("studies")
    first, studies = 0, ""
    for number, size in enumerate(SIZES):
        coordinate_adata(size, N_VARS, first=first).write_h5ad(folder / f"study{number}.h5ad")
        studies += f"  - {{id: study{number}, source: {folder}/study{number}.h5ad}}\n"
        first += size
    spec = folder / "atlas.yaml"
    spec.write_text(f"features: {{name: genes, reference: union}}\nlayout: {{block_rows: 16}}\nstudies:\n{studies}")
    return spec


@pytest.fixture(scope="session")
def assert_right() -> Callable[..., None]:
    """Return what compares a store with the studies, value by value, read by a cluster where there is a client."""
    from daodask import BatchLoader, open_store, validate_store
    from daodask.testing import coordinate_counts

    def check(url: str | Path, client: Any = None) -> None:
        store = open_store(url)
        expected = coordinate_counts(np.arange(sum(SIZES)), N_VARS)
        batches = list(BatchLoader(store, 32, schedule="sequential", client=client))
        assert np.concatenate([b.index for b in batches]).tolist() == list(range(sum(SIZES)))
        for batch in batches:
            assert (expected[batch.index] != batch.X).nnz == 0
        report = validate_store(url, client=client)
        assert report.ok, report

    return check


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment for processes that has this daodask and these programs, and nothing that steers Dask."""
    kept = {k: v for k, v in os.environ.items() if not re.match(r"DASK_|FSSPEC_|STORAGE_EMULATOR|SLURM_", k)}
    # The command, also where this daodask is not installed.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "daodask").write_text(f'#!/bin/sh\nexec {sys.executable} -m daodask "$@"\n')
    (programs / "daodask").chmod(0o755)
    path = os.pathsep.join([str(programs), os.path.dirname(sys.executable), "/usr/sbin", kept.get("PATH", "")])
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PATH": path,
        "HOME": str(tmp_path),
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path / "scratch"),
        "GCE_METADATA_HOST": "127.0.0.1:9",
        "NO_GCE_CHECK": "true",
    }


class Processes:
    """Starts processes, each with a log, and ends them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self, *command: str | Path, env: Mapping[str, str] | None = None) -> Path:
        """Start a program and return where its output goes."""
        log = self._folder / f"process{len(self._running)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(part) for part in command],
                env={**self._environment, **(env or {})},
                cwd=self._folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append((process, log))
        return log

    def wait(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """What the condition comes to, as soon as it is true; fails when a process ends before, or takes too long."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            for process, log in self._running:
                assert process.poll() in (None, 0), f"{process.args} ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, "\n".join(log.read_text() for _, log in self._running)
            time.sleep(0.05)
        return found

    def listens(self, port: int) -> None:
        """Wait until somebody listens at a port of this machine."""

        def answers() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", port)) == 0

        self.wait(answers)

    def stop(self) -> None:
        """End all."""
        for process, _ in reversed(self._running):
            process.terminate()
        for process, _ in reversed(self._running):
            try:
                process.wait(30)  # a gateway stops its clusters, which would outlive it otherwise
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def processes(tmp_path: Path, environment: dict[str, str]) -> Iterator[Processes]:
    """Start processes that end with the test."""
    running = Processes(tmp_path, environment)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return what finds a port that nobody listens at."""

    def find() -> int:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return int(found.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Return what finds a program, beside this Python or anywhere; without it the test is skipped."""

    def find(name: str) -> str:
        places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", ""), "/usr/sbin"])
        found = shutil.which(name, path=places)
        if found is None:
            pytest.skip(f"{name} is not installed here: daodask[deploy-test] has most of what is needed")
        return found

    return find
