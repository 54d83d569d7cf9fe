"""Processes to be killed: a server that has imported everything forks one per build, so that each begins at once.

Run as a script. It reads a line of JSON each, ``{"spec": …, "url": …, "scheduler": … | null, "pause": seconds}``, forks
a process that builds, and answers with its number. At the next line, whatever it is, it waits for the end of that
process and answers with its exit code, or minus the signal. The build sleeps ``pause`` seconds before each write, so
that there is an instant between any two of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

import anndata  # noqa: F401
import pyarrow.parquet  # noqa: F401
import zarr  # noqa: F401
from distributed import Client

import daodask.build.run
import daodask.sources.h5ad
from daodask.errors import DaodaskError
from daodask.storage import StoreLocation


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def slowed(pause: float) -> None:
    write, create = StoreLocation.write, StoreLocation.create

    def slow_write(location: StoreLocation, data: bytes, **options: bool) -> None:
        time.sleep(pause)
        write(location, data, **options)

    def slow_create(location: StoreLocation, data: bytes) -> bool:
        time.sleep(pause)
        return create(location, data)

    StoreLocation.write, StoreLocation.create = slow_write, slow_create  # type: ignore[method-assign]


def build(spec: str, url: str, scheduler: str | None, pause: float) -> int:
    slowed(pause)
    try:
        if scheduler is None:
            return 0 if daodask.build.run.build_store(spec, url, progress=False).ok else 1
        with Client(scheduler, timeout=10) as client:
            return 0 if daodask.build.run.build_store(spec, url, client=client, progress=False).ok else 1
    except DaodaskError as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return 2


def forked(request: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        code = build(**request)
    except BaseException:  # noqa: BLE001  the child must end here, whatever it is
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    say({"ready": True})
    for line in sys.stdin:
        child = forked(json.loads(line))
        say({"child": child})
        sys.stdin.readline()  # until then its number stays its own, and can be killed
        _, status = os.waitpid(child, 0)
        say({"ended": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()
