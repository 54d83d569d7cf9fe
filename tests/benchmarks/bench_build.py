"""How fast a study becomes a store, against peers and against what the machine allows, in one run.

    python tests/benchmarks/bench_build.py --cells 100000

The cells are those of ``bench_batches.py``. Each contender builds from the same h5ad file, each time in a process of
its own, so that its peak memory is its own, and there twice, of which the second build counts: a virtual machine may
have to ask its host for every page that was not in use just before, which can take longer than all of the work. All are
interleaved, and medians are printed with their spread. Imports and the start of Dask workers are not counted.

Peers: annbatch's collection, shuffled as its documentation recommends and not shuffled (with zarrs: ``pip install
'annbatch[zarrs]==0.3.1'``, Python 3.12 or newer), and a dense zarr array written by row chunks, as sfaira's
``write_distributed_store`` made it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr

#: As sfaira's: a chunk is so many rows of all genes.
DENSE_ROWS = 128

#: What a build says of itself: seconds of wall and processor time, MB of each worker, seconds by phase.
Result = dict[str, Any]


# -- contenders: each builds from `source` into `out` and says how long that took --------------------------------------


def daodask_threads(source: Path, out: Path, threads: int, spec: dict[str, Any]) -> Result:
    from daodask import build_store

    report, result = _second(out, lambda: build_store(spec, out, threads=threads))
    return {**result, "megabytes": [_peak_megabytes()], "phases": _phases(report)}


def daodask_workers(source: Path, out: Path, workers: int, spec: dict[str, Any]) -> Result:
    from daodask import build_store
    from daodask._cluster import open_client

    began = time.perf_counter()
    with open_client(workers) as client:
        started = time.perf_counter() - began
        cpu: list[float] = []

        def build() -> Any:
            cpu.append(sum(client.run(time.process_time).values()))
            return build_store(spec, out, client=client)

        report, result = _second(out, build)
        workers_cpu = sum(client.run(time.process_time).values()) - cpu[-1]
        megabytes = list(client.run(_peak_megabytes).values())
    return {
        **result,
        "cpu": result["cpu"] + workers_cpu,
        "megabytes": megabytes,
        "phases": _phases(report),
        "start": started,
    }


def annbatch(source: Path, out: Path, *, shuffle: bool) -> Result:
    from annbatch import DatasetCollection

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    _, result = _second(out, lambda: DatasetCollection(out).add_adatas([source], shuffle=shuffle))
    return {**result, "megabytes": [_peak_megabytes()]}


def dense(source: Path, out: Path) -> Result:
    import anndata as ad

    def build() -> None:
        adata = ad.read_h5ad(source)
        array = zarr.create_array(
            str(out / "X"),
            shape=adata.shape,
            dtype="float32",
            chunks=(DENSE_ROWS, adata.n_vars),
            compressors=zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
        )
        for start in range(0, adata.n_obs, DENSE_ROWS):
            array[start : start + DENSE_ROWS] = adata.X[start : start + DENSE_ROWS].toarray()
        adata.obs.to_csv(out / "obs.csv")

    _, result = _second(out, build)
    return {**result, "megabytes": [_peak_megabytes()]}


def _phases(report: Any) -> dict[str, float]:
    return dict(report.studies[0].phases)


def _second(out: Path, build: Callable[[], Any]) -> tuple[Any, Result]:
    """What a build returns, and its seconds, after one that is not counted."""
    build()
    shutil.rmtree(out)
    began, processor = time.perf_counter(), time.process_time()
    value = build()
    return value, {"seconds": time.perf_counter() - began, "cpu": time.process_time() - processor}


def _peak_megabytes() -> float:
    """Peak of this process alone: what it was forked from is in ``ru_maxrss`` too."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spec_of(source: Path, reference: Path | None = None) -> dict[str, Any]:
    features = {"name": "all", "reference": str(reference) if reference else "union"}
    return {"features": features, "studies": [{"id": "synthetic", "source": str(source), "keep": "all"}]}


Contender = Callable[[Path, Path], Result]

CONTENDERS: dict[str, Contender] = {
    "daodask, 2 threads": lambda source, out: daodask_threads(source, out, 2, spec_of(source)),
    "daodask, 1 thread": lambda source, out: daodask_threads(source, out, 1, spec_of(source)),
    "daodask, 2 processes": lambda source, out: daodask_workers(source, out, 2, spec_of(source)),
    "daodask, 1 process": lambda source, out: daodask_workers(source, out, 1, spec_of(source)),
    "daodask, 2 threads, genes in another order": lambda source, out: daodask_threads(
        source, out, 2, spec_of(source, _reordered(source))
    ),
    "annbatch, shuffle=True": lambda source, out: annbatch(source, out, shuffle=True),
    "annbatch, shuffle=False": lambda source, out: annbatch(source, out, shuffle=False),
    "dense zarr by row chunks": dense,
}


def _reordered(source: Path) -> Path:
    """A reference of the same genes and half as many more, in an order of its own."""
    import anndata as ad

    path = source.with_suffix(".genes.csv")
    names = ad.read_h5ad(source, backed="r").var_names
    genes = [*names, *(f"other{i}" for i in range(len(names) // 2))]
    np.random.default_rng(0).shuffle(genes)
    path.write_text("".join(f"{gene},{gene},1,1000,protein_coding\n" for gene in genes))
    return path


# -- what the machine allows -------------------------------------------------------------------------------------------


def bound(source: Path, store: Path) -> dict[str, float]:
    """Processor seconds of what any build has to do: read the source, compress what is stored, digest both."""
    from daodask.format.chunks import encode_shard
    from daodask.format.codecs import Codec
    from daodask.sources import open_source
    from daodask.sources.fingerprint import fingerprint_location
    from daodask.sources.h5ad import H5adSource
    from daodask.storage import StoreLocation

    study = open_source(H5adSource(StoreLocation.parse(source)))
    seconds = dict.fromkeys(("read", "encode", "digest"), 0.0)
    for start in range(0, study.n_obs, 2048):
        with _counted(seconds, "read"):
            study.read_matrix("X", start, min(start + 2048, study.n_obs))
    with _counted(seconds, "digest"):
        fingerprint_location(StoreLocation.parse(source))
    for path in sorted(store.glob("datasets/*/X/*/zarr.json")):
        array = zarr.open_array(path.parent, mode="r")
        chunk, shard = array.chunks[0], (array.shards or array.chunks)[0]
        for start in range(0, array.shape[0], shard):
            values = array[start : start + shard]
            with _counted(seconds, "encode"):
                encoded = encode_shard(values, chunk, shard, Codec.named("lz4"))
            with _counted(seconds, "digest"):
                hashlib.sha256(encoded)
    return seconds


@contextmanager
def _counted(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.thread_time()
    yield
    seconds[phase] += time.thread_time() - began


def print_bound(source: Path, store: Path, n_cells: int) -> None:
    # In another thread than the main one, in which Blosc would use several threads.
    with ThreadPoolExecutor(1) as pool:
        seconds = pool.submit(bound, source, store).result()
    parts = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items())
    print(f"\nbound: {parts} s of processor time: {2 * n_cells / sum(seconds.values()):,.0f} cells/s on two processors")


# -- measuring ---------------------------------------------------------------------------------------------------------


def build_once(name: str, source: Path, out: Path) -> Result:
    """Build in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--contender", name, "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}:\n{done.stderr}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def interleaved(names: list[str], source: Path, folder: Path, repeats: int) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            results[name].append(build_once(name, source, folder / "built"))
    shutil.rmtree(folder / "built", ignore_errors=True)
    return results


def median(results: list[Result], key: str) -> float:
    return statistics.median(result[key] for result in results)


def print_table(results: dict[str, list[Result]], n_cells: int) -> None:
    best = next(iter(results))
    print(f"\nload average {os.getloadavg()[0]:.1f}\n")
    print(f"{'':<44}{'cells/s':>9}  {'(min to max)':<18}{'s':>6}{'cpu s':>7}{'MB a worker':>13}   times {best}")
    for name, repeats in results.items():
        seconds = [r["seconds"] for r in repeats]
        middle = n_cells / statistics.median(seconds)
        between = f"({n_cells / max(seconds):,.0f} to {n_cells / min(seconds):,.0f})"
        megabytes = max(max(r["megabytes"]) for r in repeats)
        ratio = statistics.median(r["seconds"] / b["seconds"] for r, b in zip(repeats, results[best], strict=True))
        numbers = f"{statistics.median(seconds):>6.1f}{median(repeats, 'cpu'):>7.1f}{megabytes:>13,.0f}"
        print(f"{name:<44}{middle:>9,.0f}  {between:<18}{numbers}{ratio:>10.2f}")


def print_scaling(results: dict[str, list[Result]]) -> None:
    print()
    for one, two in (("1 thread", "2 threads"), ("1 process", "2 processes")):
        names = f"daodask, {one}", f"daodask, {two}"
        if set(names) <= set(results):
            ratio = median(results[names[0]], "seconds") / median(results[names[1]], "seconds")
            print(f"from {one} to {two}: {ratio:.2f} times as fast")
    for name, repeats in results.items():
        if repeats[0].get("phases"):
            middle = {phase: statistics.median(r["phases"][phase] for r in repeats) for phase in repeats[0]["phases"]}
            print(f"{name}: " + ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in middle.items()))
    started = [r["start"] for r in results.get("daodask, 2 processes", [])]
    if started:
        print(f"not counted: the start of 2 processes, {statistics.median(started):.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--nnz", type=int, default=2_000, help="genes a cell")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the cells here (default: a temporary directory)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="these contenders")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(CONTENDERS[arguments.contender](arguments.source, arguments.out)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(folder, arguments)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    from bench_batches import synthetic

    source = folder / f"cells{arguments.cells}_{arguments.nnz}.h5ad"
    if not source.exists():
        synthetic(arguments.cells, arguments.nnz, source)
    names = [n for n in arguments.only or CONTENDERS if not n.startswith("annbatch") or find_spec("annbatch")]
    results = interleaved(names, source, folder, arguments.repeats)
    print_table(results, arguments.cells)
    print_scaling(results)
    build_once("daodask, 2 threads", source, folder / "built")
    print_bound(source, folder / "built", arguments.cells)
    shutil.rmtree(folder / "built")


if __name__ == "__main__":
    main()
