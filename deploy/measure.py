"""Count what a store costs: requests, bytes and processor time per million cells.

Two stores that differ in their number of cells only are built, opened, subset and read in a file system that counts, in
memory: what grows with the cells is the slope between the two, what does not is the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import daodask
from daodask.testing.large import large_study

#: Names that a listing returns with one request, on GCS and S3.
PAGE = 1000


class CountingFileSystem(MemoryFileSystem):
    """Memory that counts requests as a bucket bills them: writes and listings (A), reads (B); deletes are free."""

    protocol = "counted"
    counts: ClassVar[dict[str, int]] = {}
    _lock = threading.Lock()
    _nested = threading.local()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("counted://", "memory://"))

    @classmethod
    def count(cls, **amounts: int) -> None:
        """Add to what was counted."""
        with cls._lock:
            for name, amount in amounts.items():
                cls.counts[name] = cls.counts.get(name, 0) + amount

    @contextmanager
    def _request(self, kind: str) -> Iterator[None]:
        """One request, however many others of this class answer it."""
        outermost = not getattr(self._nested, "busy", False)
        self._nested.busy = True
        try:
            yield
        finally:
            if outermost:
                self._nested.busy = False
                self.count(**{kind: 1})

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        """Count a listing."""
        with self._request("A"):
            return super().ls(path, detail, **kwargs)

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Count a listing of all below, page by page."""
        with self._request("A"):
            found = super().find(path, *args, **kwargs)
        self.count(A=math.ceil(len(found) / PAGE) - 1 if found else 0)
        return found

    def info(self, path: str, **kwargs: Any) -> Any:
        """Count a look at a file's size."""
        with self._request("B"):
            return super().info(path, **kwargs)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Count a look for a file."""
        with self._request("B"):
            return bool(super().exists(path, **kwargs))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Count a read of a file or of a range of it."""
        with self._request("B"):
            data: bytes = super().cat_file(path, start, end, **kwargs)
        self.count(read=len(data))
        return data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Count a write."""
        with self._request("A"):
            super().pipe_file(path, value, mode=mode, **kwargs)
        self.count(written=len(value))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode, **kwargs)
        if mode != "rb" or getattr(self._nested, "busy", False):
            return file
        return CountingFile(file.getvalue(), path)


class CountingFile(MemoryFile):
    """A file of which each read is a request, as a reader of parquet makes them."""

    def __init__(self, data: bytes, path: str) -> None:
        super().__init__(None, path, data)

    def read(self, size: int | None = -1) -> bytes:
        """Count a read."""
        data = super().read(size)
        CountingFileSystem.count(B=1, read=len(data))
        return data


fsspec.register_implementation("counted", CountingFileSystem, clobber=True)


def counted(run: Callable[[], Any]) -> dict[str, float]:
    """What running it takes: requests of both classes, bytes read and written, seconds of processor time."""
    CountingFileSystem.counts = {"A": 0, "B": 0, "read": 0, "written": 0}
    began = time.process_time()
    run()
    return {**CountingFileSystem.counts, "cpu": time.process_time() - began}


def measure(folder: Path, repeats: int, n_vars: int, row_values: int) -> dict[str, dict[str, float]]:
    """The counts of each thing that one does with a store of ``repeats * 4096`` cells."""
    url = f"counted://{folder.name}"
    folder.mkdir()
    source = large_study(folder, "csr", repeats, n_vars=n_vars, row_values=row_values)
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "studies": [{"id": "study", "source": str(source), "obs": {"label": {"value": "a"}}}],
    }

    def epoch(schedule: str) -> None:
        for _ in daodask.BatchLoader(daodask.open_store(url), 4096, schedule=schedule, seed=0):
            pass

    found = {
        "build": counted(lambda: daodask.build_store(spec, url, threads=2, progress=False)),
        "open": counted(lambda: daodask.open_store(url)),
        "select by a query on obs": counted(lambda: len(daodask.open_store(url).subset("obs_names != ''"))),
        "epoch, sequential": counted(lambda: epoch("sequential")),
        "epoch, shuffled": counted(lambda: epoch("shuffled")),
        "validate": counted(lambda: daodask.validate_store(url, threads=2)),
    }
    files = fsspec.filesystem("memory").find(f"/{folder.name}", detail=True).values()
    return {"store": {"files": len(files), "bytes": sum(file["size"] for file in files)}, **found}


def per_million(small: dict[str, Any], large: dict[str, Any], cells: tuple[int, int]) -> dict[str, dict[str, float]]:
    """The slope between two stores, for a million cells, and what is there whatever their number (``… at least``)."""
    found: dict[str, dict[str, float]] = {}
    for name, counts in large.items():
        found[name] = {}
        for what, value in counts.items():
            slope = (value - small[name][what]) / (cells[1] - cells[0])
            found[name][what] = slope * 1e6
            found[name][f"{what} at least"] = value - slope * cells[1]
    return found


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, nargs=2, default=(8, 24), help="of 4096 cells, in the two stores")
    parser.add_argument("--genes", type=int, default=20480)
    parser.add_argument("--values", type=int, default=2048, help="non-zeros of a cell")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder) / "first", 1, 512, 32)  # so that nothing is imported or compiled in the two that count
        small = measure(Path(folder) / "small", options.repeats[0], options.genes, options.values)
        large = measure(Path(folder) / "large", options.repeats[1], options.genes, options.values)
    found = per_million(small, large, tuple(n * 4096 for n in options.repeats))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("| | writes, lists | reads | GB read | GB written | core-hours |\n|---|---:|---:|---:|---:|---:|")
    for name, counts in found.items():
        if name == "store":
            print(f"| (in the store: {counts['files']:,.0f} files, {counts['bytes'] / 1e9:.2f} GB) | | | | | |")
            continue
        requests = " | ".join(f"{counts[k]:,.0f} + {max(0.0, counts[f'{k} at least']):,.0f}" for k in ("A", "B"))
        volumes = " | ".join(f"{counts[k] / 1e9:.2f}" for k in ("read", "written"))
        print(f"| {name} | {requests} | {volumes} | {counts['cpu'] / 3600:.3f} |")


if __name__ == "__main__":
    main()
