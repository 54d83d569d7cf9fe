"""Clusters of real processes, whose every process can be killed, frozen and started anew by its test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

import daodask

if TYPE_CHECKING:
    from distributed import Client

FORGE = Path(__file__).with_name("forge.py")
#: A worker that is silent is looked for so often, and given up after ten heartbeats: Dask takes no less than 5 s.
TTL = "1s"


class Forge:
    """Asks forge.py, which has imported everything, for processes."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(daodask.__file__).parents[1])}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, str(FORGE)], text=True, env=environment, **pipes)
        assert self._answer() == {"ready": True}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def start(self, role: str, **request: Any) -> int:
        """Start a process; returns its number."""
        return int(self._ask(role=role, **request)["pid"])

    def next(self, pid: int) -> dict[str, Any]:
        """What that process says next: where it is, once it is up."""
        return self._ask(next=pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


class Cluster:
    """A scheduler and workers of one thread each, without nannies, so that nothing starts them again.

    Parameters
    ----------
    forge
        Of the processes.
    folder
        For what workers spill.
    config
        Dask's, of all processes.
    """

    def __init__(self, forge: Forge, folder: Path, config: dict[str, Any] | None = None, **scheduler: Any) -> None:
        self._forge, self._folder = forge, folder
        self._config = {"distributed.scheduler.worker-ttl": TTL, **(config or {})}
        self.scheduler = forge.start("scheduler", config=self._config, **scheduler)
        self.address: str = forge.next(self.scheduler)["address"]
        self._workers: dict[int, str] = {}
        self._begun = [self.scheduler]

    def add(self, n: int = 1, **options: Any) -> list[int]:
        """Start workers; returns their numbers, once they are there."""
        pids = [self.begin(**options) for _ in range(n)]
        for pid in pids:
            self._workers[pid] = self._forge.next(pid)["address"]
        return pids

    def begin(self, **options: Any) -> int:
        """Begin to start a worker."""
        options = {"local_directory": str(self._folder), "death_timeout": 30, **options}
        self._begun.append(self._forge.start("worker", address=self.address, config=self._config, **options))
        return self._begun[-1]

    def says(self, pid: int) -> dict[str, Any]:
        """What a worker that is starting says next."""
        answer = self._forge.next(pid)
        if "address" in answer:
            self._workers[pid] = answer["address"]
        return answer

    @property
    def workers(self) -> list[int]:
        """Numbers of those that were not killed."""
        return list(self._workers)

    def address_of(self, pid: int) -> str:
        return self._workers[pid]

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._workers.pop(pid, None)

    def freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)

    def wake(self, pid: int) -> None:
        os.kill(pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pid in self._begun:  # nobody else has these numbers, as the forge has not waited for them
            os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def connected(self, timeout: float = 10) -> Iterator[Client]:
        from distributed import Client

        with Client(self.address, timeout=timeout, set_as_default=False) as client:
            yield client


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    running = Forge()
    yield running
    running.close()


@pytest.fixture
def start_cluster(forge: Forge, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Return what starts a scheduler and so many workers; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(n: int = 0, config: dict[str, Any] | None = None, *, scheduler: Any = None, **worker: Any) -> Cluster:
            cluster = stack.enter_context(Cluster(forge, tmp_path, config, **(scheduler or {})))
            cluster.add(n, **worker)
            return cluster

        yield start


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Return what waits until something is so, and fails when that takes too long."""

    def wait(condition: Callable[[], Any], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not so within {seconds} s"
            time.sleep(0.01)

    return wait
