"""Pseudobulk, means and variances of a whole store, against scanpy in memory, anndata's lazy reading, decoding alone.

    python tests/benchmarks/bench_analysis.py --cells 500000

Counts of a real study (``$DAODASK_DATA``, or drawn at random where that is absent) are resampled: cells with
replacement, counts thinned. Ten studies are written as h5ad, which scanpy loads and concatenates, and as zarr as
anndata writes it, which ``anndata.experimental.read_lazy`` opens, with its own chunks and with larger ones; a store is
built of
the same. What each computes is compared with the others, and timed in turn after one run that is not counted: medians
are printed with their spread. scanpy 1.12 aggregates dask arrays; with an older one that peer is left out.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import dask
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from bench_batches import real_counts

import daodask
from daodask.bench import DecodeBound

STUDIES = 10
BY = ["donor", "cell_type"]
DECODE = "decode alone"

# -- data --------------------------------------------------------------------------------------------------------------


def synthetic(n_cells: int, nnz: int, number: int, counts: sp.csr_matrix) -> ad.AnnData:
    """Cells drawn with replacement, their counts thinned until they have about so many genes."""
    generator = np.random.default_rng(number)
    mean = counts.nnz / counts.shape[0]
    parts = []
    for start in range(0, n_cells, 5_000):
        cells = counts[generator.integers(counts.shape[0], size=min(5_000, n_cells - start))].copy()
        # Most counts are 1: about as many genes go as counts do.
        cells.data = generator.binomial(cells.data.astype(int), min(0.95, 0.9 * nnz / mean)).astype(np.float32)
        cells.eliminate_zeros()
        parts.append(cells)
    X = sp.vstack(parts, format="csr")
    names = np.array(["B cell", "NK cell", "T cell", "monocyte", "dendritic cell", "platelet"], dtype=object)
    labels = pd.Categorical(generator.choice(names, n_cells, p=[0.2, 0.1, 0.4, 0.2, 0.07, 0.03]))
    donors = pd.Categorical(
        np.array([f"D{number}{i}" for i in range(3)], dtype=object)[generator.integers(3, size=n_cells)]
    )
    index = pd.Index([f"cell{number}_{i}" for i in range(n_cells)], dtype=object)
    obs = pd.DataFrame({"cell_type": labels, "donor": donors}, index=index)
    var = pd.DataFrame(index=pd.Index([f"gene{i}" for i in range(X.shape[1])], dtype=object))
    return ad.AnnData(X, obs=obs, var=var)


def make_data(folder: Path, n_cells: int, nnz: int) -> daodask.Store:
    """Ten studies as h5ad and as zarr, and the store of them, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    url = folder / "store"
    if not (url / "snapshots").exists():
        counts = real_counts(nnz)
        for number in range(STUDIES):
            adata = synthetic(n_cells // STUDIES, nnz, number, counts)
            adata.write_h5ad(folder / f"study{number}.h5ad")
            adata.write_zarr(folder / f"study{number}.zarr")
        studies = [{"id": f"study{n}", "source": str(folder / f"study{n}.h5ad"), "keep": "all"} for n in range(STUDIES)]
        daodask.build_store({"features": {"name": "all", "reference": "union"}, "studies": studies}, url, threads=2)
    store = daodask.open_store(url)
    values = sum(info.matrix["X"].nnz for info in store.dataset_infos)
    print(f"{store.n_obs:,} cells x {store.n_vars:,} genes, {values / store.n_obs:,.0f} non-zeros a cell (synthetic)")
    return store


# -- contenders: each returns pseudobulk sums by group name, or means and variances by gene ---------------------------

Run = Callable[[], pd.DataFrame]


def by_group(X: object, obs: pd.DataFrame, var_names: pd.Index) -> pd.DataFrame:
    index = obs[BY].astype(str).agg("_".join, axis=1)
    return pd.DataFrame(np.asarray(X), index=pd.Index(index.to_numpy()), columns=var_names).sort_index()


def our_pseudobulk(store: daodask.Store) -> pd.DataFrame:
    adata = daodask.pseudobulk(store, BY)
    return by_group(adata.X, adata.obs, adata.var_names)


def our_mean_var(store: daodask.Store) -> pd.DataFrame:
    return daodask.mean_var(store)[["mean", "var"]]


def in_memory(folder: Path) -> ad.AnnData:
    studies = [ad.read_h5ad(folder / f"study{n}.h5ad") for n in range(STUDIES)]
    return ad.concat(studies, join="outer", index_unique=None)


def lazily(folder: Path, rows: int | None) -> ad.AnnData:
    """With chunks as ``read_lazy`` makes them, or of so many rows."""
    import zarr

    studies = []
    for n in range(STUDIES):
        path = folder / f"study{n}.zarr"
        lazy = ad.experimental.read_lazy(path)
        X = lazy.X
        if rows is not None:
            X = ad.experimental.read_elem_lazy(zarr.open_group(path, mode="r")["X"], chunks=(rows, lazy.n_vars))
        obs = pd.DataFrame({name: lazy.obs[name].to_numpy() for name in BY}, index=lazy.obs_names)
        studies.append(ad.AnnData(X, obs=obs, var=pd.DataFrame(index=lazy.var_names)))
    return ad.concat(studies, join="outer")


def scanpy_pseudobulk(adata: ad.AnnData) -> pd.DataFrame:
    for name in BY:
        adata.obs[name] = adata.obs[name].astype("category")
    found = sc.get.aggregate(adata, by=BY, func="sum")
    (X,) = dask.compute(found.layers["sum"], scheduler="threads")
    return by_group(X.toarray() if sp.issparse(X) else X, found.obs, found.var_names)


def scanpy_mean_var(adata: ad.AnnData) -> pd.DataFrame:
    from fast_array_utils import stats

    (found,) = dask.compute(stats.mean_var(adata.X, axis=0, correction=1), scheduler="threads")
    mean, var = (np.asarray(values).ravel() for values in found)
    return pd.DataFrame({"mean": mean, "var": var}, index=adata.var_names)


# -- measuring ---------------------------------------------------------------------------------------------------------


def interleaved(contenders: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, several times in turn, after one that is not counted; all must find the same."""
    expected = None
    for name, run in contenders.items():
        found = run()
        if isinstance(found, pd.DataFrame):
            expected = found if expected is None else expected
            ordered = found.loc[list(expected.index), list(expected.columns)]
            np.testing.assert_allclose(ordered, expected, rtol=1e-3, atol=1e-6, err_msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            gc.collect()
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def table(title: str, seconds: dict[str, list[float]], n_obs: int) -> None:
    print(f"\n{title}")
    ours = statistics.median(seconds["daodask"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        between = f"({min(values):.2f} to {max(values):.2f})"
        print(
            f"  {name:<28}{middle:>8.2f} s  {between:<18}{n_obs / middle:>10,.0f} cells/s  {middle / ours:>6.2f}x ours"
        )
    if DECODE in seconds:
        print(f"  daodask reaches {statistics.median(seconds[DECODE]) / ours:.0%} of the decode bound")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500_000)
    parser.add_argument("--nnz", type=int, default=1_000, help="non-zeros a cell, about; fewer than the study's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep studies and stores here, and use those that are there")
    parser.add_argument("--peers", nargs="*", default=["scanpy", "read_lazy", "read_lazy-16384"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        run(folder, make_data(folder, arguments.cells, arguments.nnz), arguments)


def run(folder: Path, store: daodask.Store, arguments: argparse.Namespace) -> None:
    bound = DecodeBound(store, most_bytes=2**30)
    share = store.n_obs / bound.cells

    def decode() -> None:
        # As long as all of the store would take, of which a sample is held.
        began = time.perf_counter()
        bound.decode()
        time.sleep((time.perf_counter() - began) * (share - 1))

    makers = {
        "scanpy": lambda: in_memory(folder),
        "read_lazy": lambda: lazily(folder, None),
        "read_lazy-16384": lambda: lazily(folder, 16_384),
    }
    jobs: dict[str, tuple[Run, Callable[[ad.AnnData], pd.DataFrame]]] = {
        "pseudobulk: sums per donor and cell type": (lambda: our_pseudobulk(store), scanpy_pseudobulk),
        "mean and variance per gene": (lambda: our_mean_var(store), scanpy_mean_var),
    }
    for title, (ours, theirs) in jobs.items():
        contenders: dict[str, Run] = {"daodask": ours, DECODE: decode}  # type: ignore[dict-item]
        for peer in arguments.peers:
            contenders[peer] = lambda peer=peer, theirs=theirs: theirs(makers[peer]())  # type: ignore[misc]
        table(f"{title}, loading included", interleaved(contenders, arguments.repeats), store.n_obs)


if __name__ == "__main__":
    main()
