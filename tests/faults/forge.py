"""Schedulers and workers to be killed, frozen and cut off, forked from a process that has imported everything.

Run as a script. At each line of JSON, ``{"role": "scheduler" | "worker", "config": {…}, …}``, it forks a process of
that role and answers with its number; at ``{"next": number}`` with what that says next, such as its address once it is
up. When nobody writes to it any more it kills all that it has forked, also where they are frozen, and ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import anndata  # noqa: F401
import dask
import pyarrow.parquet  # noqa: F401
import zarr  # noqa: F401
from distributed import Scheduler, Worker

import daodask.analysis.run
import daodask.batches.readers
import daodask.build.run
import daodask.sources.h5ad
import daodask.storage
from daodask.storage import StoreLocation

CLONE_NEWNET = 0x40000000


def tell(file: Any, **message: Any) -> None:
    file.write(json.dumps(message) + "\n")
    file.flush()


# -- what goes wrong in a worker ---------------------------------------------------------------------------------------


def slowed(pause: float) -> None:
    """Wait before each file is opened to be read and each write, as a slow disk does."""
    opened, write = daodask.storage._opened, StoreLocation.write

    def slow_opened(path: str) -> Any:
        time.sleep(pause)
        return opened(path)

    def slow_write(location: StoreLocation, *arguments: Any, **options: Any) -> None:
        time.sleep(pause)
        write(location, *arguments, **options)

    daodask.storage._opened, StoreLocation.write = slow_opened, slow_write  # type: ignore[method-assign]


def held_up(pattern: str, when: str, mark: str) -> None:
    """Wait for long, once, before the first file whose path has the pattern is written, or when half of it is.

    The file ``mark`` says that this is so, and ``mark.done`` that the write has then ended, well or not.
    """

    def waiting(function: Callable[..., Any], path_of: Callable[..., str]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if pattern not in path_of(*arguments) or os.path.exists(mark):
                return function(*arguments, **options)
            open(mark, "w").close()
            time.sleep(4)
            try:
                return function(*arguments, **options)
            finally:
                open(f"{mark}.done", "w").close()

        return run

    if when == "before":
        StoreLocation.write = waiting(StoreLocation.write, lambda location, *_: location.path)  # type: ignore[method-assign]
    else:
        os.replace = waiting(os.replace, lambda _, path: path)


# -- the roles ---------------------------------------------------------------------------------------------------------


async def scheduler(out: Any, host: str = "127.0.0.1") -> None:
    async with Scheduler(host=host, port=0, dashboard=False, dashboard_address="127.0.0.1:0") as running:
        tell(out, address=running.address)
        await running.finished()


async def worker(
    out: Any,
    address: str,
    pause: float = 0,
    held: list[str] | None = None,
    alone: list[str] | None = None,
    **options: Any,
) -> None:
    slowed(pause)
    if held:
        held_up(*held)
    if alone:
        in_own_network(out, *alone)
    async with Worker(address, nthreads=1, dashboard=False, dashboard_address="127.0.0.1:0", **options) as running:
        tell(out, address=running.address)
        await running.finished()


def in_own_network(out: Any, device: str, network: str) -> None:
    """Move into a network namespace of its own, and wait for the device that somebody puts there."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        tell(out, refused=os.strerror(ctypes.get_errno()))
        os._exit(0)
    tell(out, unshared=True)
    while device not in {name for _, name in socket.if_nameindex()}:
        time.sleep(0.01)
    for command in (f"address add {network} dev {device}", f"link set {device} up", "link set lo up"):
        subprocess.run(["ip", *command.split()], check=True)


def forked(request: dict[str, Any]) -> tuple[int, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, os.fdopen(reader)
    try:
        sys.stdin.close()
        role = {"scheduler": scheduler, "worker": worker}[request.pop("role")]
        dask.config.set(request.pop("config"))
        logging.disable(logging.CRITICAL)
        asyncio.run(role(os.fdopen(writer, "w"), **request))
    except BaseException:  # noqa: BLE001  the child must end here, whatever it is
        traceback.print_exc()
    finally:
        os._exit(0)


def main() -> None:
    children, answers = [], {}
    tell(sys.stdout, ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "role" in request:
            child, answers[child] = forked(request)
            children.append(child)
            tell(sys.stdout, pid=child)
        else:  # what the child of this number says next
            tell(sys.stdout, **json.loads(answers[request["next"]].readline() or "{}"))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
