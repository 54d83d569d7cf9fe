"""One gene, ten and 200 genes of all cells: from a matrix's rows, and from its copy by gene.

    python tests/benchmarks/bench_genes.py --cells 100000

Two stores are built of the same cells (see ``bench_batches.py``), one with ``layout: {by_gene: [X]}``. Random genes are
read as CSR from both in turn, and must be the same; each time they are others. Medians are printed, with those
of the ratios. Bytes are those that are read of files by a process that has read nothing of the store yet, counted in a
file system that writes down what it is asked for. What the copy costs is printed, too: bytes, and time of the build,
which is repeated in turn as well. Figures of either layout alone say little on a busy machine; their ratios do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import dask
import fsspec
import numpy as np
from bench_batches import synthetic

import daodask
from daodask._format import human_bytes
from daodask.testing.recording import recording

SIZES = (1, 10, 200)
LAYOUTS: dict[str, dict[str, object]] = {"rows": {}, "genes": {"by_gene": ["X"]}}


def build(source: Path, url: Path, layout: str) -> float:
    """Seconds that it takes."""
    spec = {
        "features": {"name": "all", "reference": "union"},
        "layout": LAYOUTS[layout],
        "studies": [{"id": "study", "source": str(source)}],
    }
    began = time.perf_counter()
    report = daodask.build_store(spec, url, progress=False)
    if not report.ok:
        raise SystemExit(str(report))
    return time.perf_counter() - began


def stores(source: Path, folder: Path, builds: int) -> dict[str, str]:
    """A store of each layout, unless they are there; what the copy costs is printed."""
    urls = {layout: folder / f"store_{layout}" for layout in LAYOUTS}
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    if not all((url / "snapshots").exists() for url in urls.values()):
        for number in range(builds):
            for layout, url in urls.items():
                target = url if number == builds - 1 else folder / f"again_{layout}_{number}"
                seconds[layout].append(build(source, target, layout))
        rows, genes = (statistics.median(seconds[layout]) for layout in LAYOUTS)
        print(f"build: {rows:.1f} s by rows, {genes:.1f} s with the copy by gene ({genes / rows:.2f}x)")
    nbytes = {name: daodask.open_store(url).dataset_infos[0].nbytes for name, url in urls.items()}
    more = nbytes["genes"] - nbytes["rows"]
    print(f"on disk: {human_bytes(nbytes['rows'])}, the copy {human_bytes(more)} ({more / nbytes['rows']:.0%} more)")
    return {name: str(url) for name, url in urls.items()}


# -- bytes -------------------------------------------------------------------------------------------------------------


def count(arguments: tuple[str, list[int]]) -> tuple[int, int]:
    """Requests and bytes that reading genes takes."""
    url, genes = arguments
    store = daodask.open_store(url)
    with recording() as requests, dask.config.set(scheduler="synchronous"):
        store[:, np.array(genes)].X.compute()
    return len(requests), sum(r.n_bytes for r in requests)


def counted(urls: dict[str, str], chosen: dict[int, list[int]]) -> dict[tuple[str, int], tuple[int, int]]:
    """For each layout and number of genes, each in a process of its own."""
    memory = fsspec.filesystem("memory")
    for name, url in urls.items():
        memory.put(url, f"/bench/{name}", recursive=True)
    jobs = [(name, n) for n in SIZES for name in urls]
    # Forked, so that the files in memory are there.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(count, [(f"recording://bench/{name}", chosen[n]) for name, n in jobs], chunksize=1)
    memory.rm("/bench", recursive=True)
    return dict(zip(jobs, found, strict=True))


# -- time --------------------------------------------------------------------------------------------------------------


def timed(urls: dict[str, str], repeats: int) -> dict[tuple[str, int], list[float]]:
    """Seconds of each layout and number of genes, in turn, after a first time that is not counted."""
    opened = {name: daodask.open_store(url) for name, url in urls.items()}
    seconds: dict[tuple[str, int], list[float]] = {(name, n): [] for name in urls for n in SIZES}
    generator = np.random.default_rng(1)
    for repeat in range(repeats + 1):
        for n in SIZES:
            genes = generator.choice(opened["rows"].n_vars, n, replace=False)
            found = []
            for name, store in opened.items():
                began = time.perf_counter()
                (matrix,) = dask.compute(store[:, genes].X, scheduler="threads")
                if repeat:
                    seconds[name, n].append(time.perf_counter() - began)
                found.append(matrix)
            if any(getattr(found[0], what).tobytes() != getattr(found[1], what).tobytes() for what in _ARRAYS):
                raise SystemExit(f"expected the same of {n} genes by rows and by gene, got others")
    return seconds


_ARRAYS = ("data", "indices", "indptr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--nnz", type=int, default=2_000, help="non-zeros a cell, about")
    parser.add_argument("--source", type=Path, help="an h5ad with cells, in place of synthetic ones")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep stores here, and use those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = arguments.source or folder / "cells.h5ad"
        if not source.exists():
            synthetic(arguments.cells, arguments.nnz, source)
        urls = stores(source, folder, arguments.builds)
        store = daodask.open_store(urls["rows"])
        nnz = store.dataset_infos[0].matrix["X"].nnz
        print(f"{store.n_obs:,} cells x {store.n_vars:,} genes, {nnz / store.n_obs:,.0f} non-zeros a cell")
        generator = np.random.default_rng(0)
        chosen = {n: generator.choice(store.n_vars, n, replace=False).tolist() for n in SIZES}
        read = counted(urls, chosen)
        report(read, timed(urls, arguments.repeats))


def report(read: dict[tuple[str, int], tuple[int, int]], seconds: dict[tuple[str, int], list[float]]) -> None:
    print(f"\n{'':<12}{'by rows':>24}{'by gene':>24}{'ratio':>18}")
    for n in SIZES:
        rows, genes = seconds["rows", n], seconds["genes", n]
        ratio = statistics.median(a / b for a, b in zip(rows, genes, strict=True))
        times = [f"{statistics.median(values) * 1000:,.0f} ms" for values in (rows, genes)]
        print(f"{n:>4} genes  {times[0]:>25}{times[1]:>24}{ratio:>17.1f}x")
        (n_rows, by_rows), (n_genes, by_gene) = read["rows", n], read["genes", n]
        sizes = [f"{human_bytes(b)} in {k} requests" for k, b in ((n_rows, by_rows), (n_genes, by_gene))]
        print(f"{'':<12}{sizes[0]:>24}{sizes[1]:>24}{by_rows / by_gene:>17.1f}x")


if __name__ == "__main__":
    main()
