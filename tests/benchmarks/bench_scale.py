"""What a store of 1,000 datasets and 100 million cells costs the client: seconds, memory and requests.

    python tests/benchmarks/bench_scale.py

The store is a snapshot without data, so that nothing of this depends on disks or cells. Each step is the median of
several; memory is what stays with the result. Targets: to open it in less than 1 s and with as many requests as a small
one, and graphs in 2 s and 200 MB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import daodask
from daodask.testing.described import described_store
from daodask.testing.recording import recording

URL = "memory://bench-scale"
RECORDED = "recording://bench-scale"


def row(name: str, make: Callable[[], Any], repeats: int, seconds: float, megabytes: float | None = None) -> bool:
    """Print what a step costs, and say whether that is within its target."""
    with recording() as requests:
        make()
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        made = make()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
        # dask hands out the same dataframe again as long as it is there.
        del made
    tracemalloc.start()
    made = make()
    kept = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    del made
    wall = statistics.median(walls)
    ok = wall <= seconds and (megabytes is None or kept <= megabytes)
    target = f"{seconds:g} s" + ("" if megabytes is None else f", {megabytes:g} MB")
    print(
        f"{name:<36}{wall:>8.3f} s ({min(walls):.3f} to {max(walls):.3f}; {statistics.median(processors):.3f} of "
        f"processors){len(requests):>5} requests{kept:>8.1f} MB   target {target}: {'met' if ok else 'MISSED'}"
    )
    return ok


def fresh(store: daodask.Store) -> daodask.Store:
    """The same store with nothing remembered."""
    return daodask.Store(store.location, store.snapshot, store.feature_space, store.selection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=1_000)
    parser.add_argument("--cells", type=int, default=100_000, help="of each dataset")
    parser.add_argument("--block-rows", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    import dask.array
    import dask.dataframe  # noqa: F401

    location = described_store(URL, arguments.datasets, arguments.cells, block_rows=arguments.block_rows)
    n = arguments.repeats
    store = daodask.open_store(RECORDED)
    few = store.sample(frac=0.01)
    size = len((location / "snapshots/00000001.json").read()) / 1e6
    print(f"{len(store.datasets):,} datasets, {store.n_obs:,} cells, {len(store.blocks):,} blocks", end="; ")
    print(f"{len(store.obs_schema)} columns; a snapshot of {size:.1f} MB")
    met = [
        row("open", lambda: daodask.open_store(RECORDED), n, 1.0),
        row("value_counts", lambda: fresh(store).value_counts("label_1"), n, 0.2),
        row("prune by dataset", lambda: fresh(store).subset(dataset="study0003"), n, 0.2),
        row("prune by range", lambda: fresh(store).subset("number_2 > 5000"), n, 0.2),
        row("repr", lambda: repr(fresh(store)), n, 1.0),
        row("HTML repr", lambda: fresh(store)._repr_html_(), n, 1.0),
        row(f"X, {len(store.blocks):,} blocks", lambda: fresh(store).X, n, 2.0, 200),
        row("sum of X over cells", lambda: fresh(store).X.sum(axis=0), n, 10.0),
        row("obs, dask dataframe", lambda: fresh(store).obs, n, 2.0, 200),
        row("obs, as tasks", lambda: (obs := fresh(store).obs, obs.optimize().__dask_graph__()), n, 2.0, 200),
        row("sample of 1 %", lambda: fresh(store).sample(frac=0.01), n, 5.0),
        row(f"X of 1 % at random, {len(few.blocks):,} blocks", lambda: fresh(few).X, n, 2.0, 200),
        row("obs of 1 % at random", lambda: fresh(few).obs, n, 2.0, 200),
    ]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
