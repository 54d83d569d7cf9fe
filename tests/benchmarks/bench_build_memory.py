"""Peak memory of the process that does all tasks of a build, per step, by kind of source and rows of a block.

    python tests/benchmarks/bench_build_memory.py --cells 65536 --genes 20480 --values 2048 csr csc dense mtx

Each build is a process of its own, so that it begins with nothing but what is imported. Linux only, as the peak is what
the kernel has in /proc and forgets when it is told to.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path

from daodask.testing.large import large_study

_PERIOD = 4096
_MIB = 2**20


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(source: Path, store: Path, block_rows: int, shuffle: str) -> dict[str, int]:
    """Peak bytes of each step, and before the first one what a process takes that has done a build."""
    from daodask.build.run import build_store
    from daodask.testing import random_store

    random_store(store / "warm")
    peaks = {"idle": _memory("VmRSS")}
    _forget_peak()

    def progress(study: str, step: str, done: int, tasks: int) -> None:
        peaks[step] = max(peaks.get(step, 0), _memory("VmHWM"))
        _forget_peak()

    spec = {
        "features": {"name": "genes", "reference": "union"},
        "layout": {"block_rows": block_rows},
        "shuffle": shuffle,
        "studies": [{"id": "large", "source": source}],
    }
    report = build_store(spec, store / "store", progress=progress)
    if not report.ok:
        raise SystemExit(str(report))
    return {step: peak for step, peak in peaks.items() if peak}


def main() -> None:
    """Measure what the command line asks for and print a line per build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["csr", "csc", "dense", "mtx"])
    parser.add_argument("--cells", type=int, default=16 * _PERIOD, help="rounded up to a multiple of 4096")
    parser.add_argument("--genes", type=int, default=20_480)
    parser.add_argument("--values", type=int, default=2048, help="non-zeros of a cell")
    parser.add_argument("--block-rows", type=int, nargs="+", default=[4096, 16_384])
    parser.add_argument("--shuffle", choices=["none", "within", "global"], default="none")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary one")
    arguments = parser.parse_args()
    repeats = -(-arguments.cells // _PERIOD)
    n_bytes = repeats * _PERIOD * arguments.values * 8
    cells = f"{repeats * _PERIOD:,} cells, {n_bytes / _MIB:,.0f} MiB as CSR of float32"
    sys.stdout.write(f"{cells}; peak MiB of a process\n")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for kind in arguments.kinds:
            source = large_study(Path(folder), kind, repeats, n_vars=arguments.genes, row_values=arguments.values)
            for block_rows in arguments.block_rows:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    store = Path(folder) / f"{kind}-{block_rows}"
                    peaks = pool.apply(measure, (source, store, block_rows, arguments.shuffle))
                steps = "  ".join(f"{step} {peak / _MIB:,.0f}" for step, peak in peaks.items())
                sys.stdout.write(f"{kind:6} blocks of {block_rows:,}: {steps}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
