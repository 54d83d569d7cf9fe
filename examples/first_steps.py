"""First steps: two small studies into one store, and everything that can be done with it.

    python examples/first_steps.py

Runs in a few seconds, in a temporary directory, on studies that it makes up.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import daodask

GENES = [f"gene{i}" for i in range(200)]


def make_study(name: str, n_cells: int, genes: list[str], labels: list[str], seed: int) -> anndata.AnnData:
    """Counts drawn at random, and labels too."""
    generator = np.random.default_rng(seed)
    counts = sp.csr_matrix(generator.poisson(0.3, (n_cells, len(genes))).astype(np.float32))
    obs = pd.DataFrame(
        {
            "label": pd.Categorical(generator.choice(labels, n_cells)),
            "n_counts": np.asarray(counts.sum(axis=1), dtype=np.int64).ravel(),
        },
        index=[f"{name}-{i}" for i in range(n_cells)],
    )
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))


def main(directory: Path) -> None:
    # Two studies: they have other genes, in another order, and other words for the same cell types.
    lung = make_study("lung", 600, GENES[:150], ["B", "T"], seed=0)
    blood = make_study("blood", 400, GENES[:50:-1], ["B cell", "T cell", "NK cell"], seed=1)

    # 1. Build. `source` may also be a path or URL, and the whole dict a YAML file; see examples/atlas.yaml.
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "obs": {"cell_type": {"required": True}, "tissue": {}},
        "keep": ["n_counts"],
        "studies": [
            {
                "id": "lung",
                "source": lung,
                "obs": {
                    "cell_type": {"from": "label", "map": {"B": "B cell", "T": "T cell"}},
                    "tissue": {"value": "lung"},
                },
            },
            {"id": "blood", "source": blood, "obs": {"cell_type": "label", "tissue": {"value": "blood"}}},
        ],
    }
    report = daodask.build_store(spec, directory / "store")
    print(report, end="\n\n")

    # 2. Open: reads metadata only, however large the store is.
    store = daodask.open_store(directory / "store")
    print(store, end="\n\n")

    # 3. Subset: by labels, by conditions, by genes; nothing is copied.
    part = store.subset("n_counts > 40", cell_type=["T cell", "NK cell"])[:, GENES[60:70]]
    print(f"{part.n_obs} T and NK cells with more than 40 counts, {part.n_vars} genes")

    # 4. As AnnData, or lazily: X is a dask array of sparse blocks, obs a dask dataframe of the same blocks.
    print(part.to_anndata(), end="\n\n")
    print(store.X, end="\n\n")
    means = store.obs.groupby(["tissue", "cell_type"], observed=True)["n_counts"].mean().compute()
    print(means.sort_index().round(1), end="\n\n")

    # 5. Batches: each pass over the loader is an epoch in a new order, with every cell exactly once.
    loader = daodask.BatchLoader(store, batch_size=256, obs=["cell_type"], seed=0)
    for epoch in range(2):
        for batch in loader:
            labels = ", ".join(f"{n} {label}" for label, n in batch.obs["cell_type"].value_counts().items())
            print(f"epoch {epoch}: {batch.X.shape[0]} cells × {batch.X.shape[1]} genes: {labels}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
