"""How fast batches come, against peers and against decoding alone, in one run.

    python tests/benchmarks/bench_batches.py --cells 100000

Counts of a real study (``$DAODASK_DATA``, or drawn at random where that is absent) are resampled: cells with
replacement, counts thinned. Each peer gets its own store, made as its documentation recommends, with the same cells;
epochs of all are interleaved, after one that is not counted, and medians are printed with their spread. Peers that are
not installed are left out: ``pip install 'annbatch[zarrs]==0.3.1' numba scdataset`` (Python 3.12 or newer).
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

import daodask
from daodask.batches.schedule import Sequential, Shuffled
from daodask.bench import DecodeBound, _metered, run_pass, wait_times

WINDOW = 16_384
N_GENES = 20_000
GENES_SELECTED = 2_000


# -- data --------------------------------------------------------------------------------------------------------------


def real_counts(nnz: int) -> sp.csr_matrix:
    """Counts of a real study with about this many genes a cell, or random ones."""
    folder = os.environ.get("DAODASK_DATA", Path(__file__).parents[2].parent / "shared" / "data")
    path = Path(folder) / "studies" / "pbmc_1k_v2_mtx" / "matrix.mtx.gz"
    if not path.exists():
        generator = np.random.default_rng(0)
        return sp.random(
            2_000, N_GENES, nnz / N_GENES, "csr", np.float32, generator, lambda n: generator.geometric(0.5, n)
        )
    counts = sp.csr_matrix(scipy.io.mmread(path).T).astype(np.float32)
    expressed = np.sort(np.argsort(-counts.getnnz(axis=0), kind="stable")[:N_GENES])
    return counts[:, expressed]


def synthetic(n_cells: int, nnz: int, path: Path) -> None:
    """Resample to ``n_cells``; the counts of two cells are added up until a cell has about ``nnz`` genes."""
    generator = np.random.default_rng(0)
    counts = real_counts(nnz)
    parts = []
    for start in range(0, n_cells, 5_000):
        n = min(5_000, n_cells - start)
        cells = counts[generator.integers(counts.shape[0], size=n)].copy()
        while cells.nnz / n < 0.9 * nnz:
            cells = cells + counts[generator.integers(counts.shape[0], size=n)]
        cells.data = generator.binomial(cells.data.astype(int), 0.95).astype(np.float32)
        cells.eliminate_zeros()
        parts.append(cells)
    X = sp.vstack(parts, format="csr")
    labels = pd.Categorical(generator.choice(["B", "T", "NK", "monocyte"], n_cells))
    obs = pd.DataFrame({"cell_type": labels}, index=[f"cell{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(X.shape[1])])
    ad.AnnData(X, obs=obs, var=var).write_h5ad(path)
    print(f"data: {n_cells:,} cells x {X.shape[1]:,} genes, {X.nnz / n_cells:,.0f} non-zeros a cell (synthetic)")


# -- loaders: each returns a function that runs an epoch and yields the number of cells of each batch ------------------

Epoch = Callable[[], Iterator[float]]


def ours(store: daodask.Store, batch_size: int, run_rows: int, dense: bool, genes: np.ndarray) -> Epoch:
    cells = store[:, genes] if dense else store
    schedule = Shuffled(run_rows=run_rows, window_rows=WINDOW)
    loader = daodask.BatchLoader(cells, batch_size, schedule=schedule, obs=["cell_type"], dense=dense)
    return lambda: (len(batch) for batch in loader)


def annbatch(path: Path, batch_size: int, run_rows: int, dense: bool, genes: np.ndarray) -> Epoch:
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})

    def load(group: zarr.Group) -> ad.AnnData:
        return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[["cell_type"]])

    loader = Loader(
        chunk_size=run_rows,
        preload_nchunks=WINDOW // run_rows,
        batch_size=batch_size,
        shuffle=True,
        preload_to_gpu=False,
    ).use_collection(DatasetCollection(path), load_adata=load)

    def epoch() -> Iterator[int]:
        for batch in loader:
            X = batch["X"][:, genes].toarray() if dense else batch["X"]
            yield X.shape[0]

    return epoch


def scdataset(path: Path, batch_size: int, run_rows: int, dense: bool, genes: np.ndarray) -> Epoch:
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    adata = ad.read_h5ad(path, backed="r")

    def fetch(collection: ad.AnnData, rows: object) -> sp.csr_matrix:
        return collection[rows].to_memory().X

    dataset = scDataset(
        adata,
        BlockShuffling(block_size=run_rows),
        batch_size=batch_size,
        fetch_factor=WINDOW // batch_size,
        fetch_callback=fetch,
    )

    def epoch() -> Iterator[int]:
        for X in DataLoader(dataset, batch_size=None):
            yield (X[:, genes].toarray() if dense else X).shape[0]

    return epoch


def annloader(path: Path, batch_size: int, run_rows: int, dense: bool, genes: np.ndarray) -> Epoch:
    from anndata.experimental import AnnLoader

    adata = ad.read_h5ad(path, backed="r")
    loader = AnnLoader(adata, batch_size=batch_size, shuffle=True)

    def epoch() -> Iterator[int]:
        # A hundredth of an epoch: it reads row by row.
        for number, batch in enumerate(loader):
            if number * batch_size > adata.n_obs // 100:
                return
            yield (batch.X[:, genes] if dense else batch.X).shape[0]

    return epoch


def decode_bound(store: daodask.Store) -> Epoch:
    """Decompression and checksums alone, of the same chunks on as many threads as there are processors."""
    bound = DecodeBound(store)
    return lambda: iter([bound.decode()])


def times_read(store: daodask.Store, run_rows: int) -> float:
    """How often such an epoch reads each chunk: those at the ends of runs are read for the rows of either side."""
    found = []
    for schedule in (Sequential(), Shuffled(run_rows, WINDOW)):
        cells, meter = _metered(store)
        found.append(run_pass(daodask.BatchLoader(cells, 4096, schedule=schedule), meter=meter).nbytes)
    return found[1] / found[0]


# -- measuring ---------------------------------------------------------------------------------------------------------


def rate(epoch: Epoch) -> float:
    gc.collect()
    began = time.perf_counter()
    cells = sum(epoch())
    return cells / (time.perf_counter() - began)


def interleaved(contenders: dict[str, Epoch], repeats: int) -> dict[str, list[float]]:
    """Cells a second of each, several times in turn, after one epoch that is not counted."""
    for epoch in contenders.values():
        rate(epoch)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, epoch in contenders.items():
            rates[name].append(rate(epoch))
    return rates


def table(title: str, rates: dict[str, list[float]], times: float) -> None:
    print(f"\n{title}")
    best = statistics.median(rates["daodask"])
    share = best / statistics.median(rates["decode"])
    print(f"  {share:.0%} of decoding each chunk once, {times * share:.0%} of decoding what is read, {times:.2f} times")
    for name, values in rates.items():
        middle = statistics.median(values)
        between = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"  {name:<12}{middle:>10,.0f} cells/s  {between}  daodask is {best / middle:.2f}x")


def consumer(store: daodask.Store, batch_size: int) -> None:
    """First batch, longest wait and memory of a consumer that works for 2 ms a batch."""
    import psutil

    process, peak, done = psutil.Process(), [0], threading.Event()
    gc.collect()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loader = daodask.BatchLoader(store, batch_size, schedule=Shuffled(64, WINDOW), obs=["cell_type"])
    print(f"\nconsumer of 2 ms a batch of {batch_size}")
    for title in ("first epoch", *["warm"] * 3, "first epoch of a loader after it"):
        if title.endswith("after it"):
            # Its buffers are new as well, of memory that this process has had before.
            loader = loader.copy()
        first, *others = wait_times(loader)
        waits = others[WINDOW // batch_size - 1 :]
        print(
            f"  first batch {first:.3f} s, longest wait after the first window {max(waits) * 1e3:.0f} ms, "
            f"median {statistics.median(waits) * 1e3:.2f} ms ({title})"
        )
    done.set()
    watcher.join()
    print(
        f"  memory at most {(peak[0] - before) / 2**20:,.0f} MiB above the start, "
        f"budget {loader.memory / 2**20:,.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--nnz", type=int, default=2_000, help="non-zeros a cell, about")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--codec", default="lz4", help="of daodask's store, as a build file has it")
    parser.add_argument("--folder", type=Path, help="keep stores here, and use those that are there")
    parser.add_argument("--peers", nargs="*", default=["annbatch", "scdataset", "annloader"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(folder, arguments)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    source = folder / f"cells{arguments.cells}_{arguments.nnz}.h5ad"
    if not source.exists():
        synthetic(arguments.cells, arguments.nnz, source)
    began = time.perf_counter()
    features = {"name": "all", "reference": "union"}
    studies = [{"id": "synthetic", "source": str(source), "keep": "all"}]
    spec = {"features": features, "studies": studies, "layout": {"codec": arguments.codec}}
    url = folder / f"daodask_{arguments.codec}"
    daodask.build_store(spec, url, threads=2)
    print(f"daodask store, {arguments.codec}: {time.perf_counter() - began:.1f} s")
    store = daodask.open_store(url)
    peers = [p for p in arguments.peers if _installed(p)]
    collection = folder / "annbatch.zarr"
    if "annbatch" in peers and not collection.exists():
        from annbatch import DatasetCollection

        began = time.perf_counter()
        DatasetCollection(collection).add_adatas([source], shuffle=True)
        print(f"annbatch store: {time.perf_counter() - began:.1f} s")
    genes = np.sort(np.random.default_rng(1).choice(store.n_vars, GENES_SELECTED, replace=False))
    makers = {"annbatch": (annbatch, collection), "scdataset": (scdataset, source), "annloader": (annloader, source)}
    read = {run_rows: times_read(store, run_rows) for run_rows in (512, 64)}
    for dense in (False, True):
        for batch_size in (512, 4_096):
            for run_rows in (512, 64):
                contenders = {"daodask": ours(store, batch_size, run_rows, dense, genes), "decode": decode_bound(store)}
                slow = batch_size == 512 and run_rows == 64
                for peer in peers:
                    if peer == "annbatch" or slow:
                        make, path = makers[peer]
                        contenders[peer] = make(path, batch_size, run_rows, dense, genes)
                what = f"dense batches of {GENES_SELECTED} genes" if dense else "CSR batches"
                title = f"{what}, {batch_size} cells, runs of {run_rows}, windows of {WINDOW}"
                table(title, interleaved(contenders, arguments.repeats), read[run_rows])
    consumer(store, 512)


def _installed(peer: str) -> bool:
    from importlib.util import find_spec

    module = "anndata" if peer == "annloader" else peer
    if find_spec(module) is None or (peer != "annbatch" and find_spec("torch") is None):
        print(f"{peer} is not installed: left out", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    main()
