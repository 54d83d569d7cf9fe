"""Train a small classifier of cell types with PyTorch, out of a store, and look at what it gets right.

    python examples/train_cell_types.py [DIRECTORY]

The store is that of examples/atlas.yaml where its studies are at hand ($DAODASK_DATA), else the one of `daodask demo`.
It is built in the directory, or found there; by default in a temporary one. Takes less than a minute on two cores.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import daodask

try:
    import torch
    from torch.utils.data import DataLoader
except ImportError:
    print("this example trains with PyTorch, which is not installed: pip install 'daodask[torch]'")
    raise SystemExit(0) from None

EXAMPLES = Path(__file__).parent
BATCH_SIZE = 256
#: Batches to train on, in whole epochs.
STEPS = 120
HIDDEN = 64


# -- the cells ---------------------------------------------------------------------------------------------------------


def open_cells(directory: Path) -> daodask.Store:
    """Cells of known type of the atlas, or of the demo where the atlas's studies are not at hand."""
    data = Path(os.environ.get("DAODASK_DATA", EXAMPLES / "../../shared/data"))
    if data.is_dir():
        # What is in the store already is not built again.
        report = daodask.build_store(EXAMPLES / "atlas.yaml", directory / "atlas")
        print(report.headline())
        return daodask.open_store(report.url, features="human").subset(exclude={"cell_type": "unknown"})
    demo = [sys.executable, "-m", "daodask", "demo", str(directory / "demo"), "--workers", "0"]
    subprocess.run(demo, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return daodask.open_store(directory / "demo" / "store")


def split(store: daodask.Store, share: float, seed: int = 0) -> tuple[daodask.Store, daodask.Store]:
    """Cells to train with and a share of them to test with, drawn at random; nothing is copied."""
    order = np.random.default_rng(seed).permutation(store.n_obs)
    n_test = round(share * store.n_obs)
    return store[np.sort(order[n_test:])], store[np.sort(order[:n_test])]


# -- the model ---------------------------------------------------------------------------------------------------------


class Classifier(torch.nn.Module):
    """Sparse counts, log-normalised, through one hidden layer."""

    def __init__(self, n_genes: int, n_types: int) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.randn(n_genes, HIDDEN) * 0.01)
        self.rest = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(HIDDEN, n_types))

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        return self.rest(torch.sparse.mm(log_normalised(counts), self.weights))


def log_normalised(counts: torch.Tensor) -> torch.Tensor:
    """log1p of counts per 10,000, which leaves zeros zeros."""
    starts, values = counts.crow_indices(), counts.values()
    cell = torch.repeat_interleave(starts.diff())
    totals = torch.zeros(len(counts)).index_add_(0, cell, values)
    logged = torch.log1p(values * (1e4 / totals)[cell])
    return torch.sparse_csr_tensor(starts, counts.col_indices(), logged, counts.shape, check_invariants=False)


def train(model: Classifier, cells: daodask.Store) -> None:
    batch_size = min(BATCH_SIZE, cells.n_obs // 20)
    loader = daodask.BatchLoader(cells, batch_size, schedule="shuffled", obs=["cell_type"], seed=0)
    # Batches are made, and read ahead, by the loader; each pass is a new epoch in another order.
    batches = DataLoader(loader.to_torch(), batch_size=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for epoch in range(math.ceil(STEPS / len(loader))):
        began, total = time.perf_counter(), 0.0
        for batch in batches:
            labels = batch["obs"]["cell_type"]
            loss = torch.nn.functional.cross_entropy(model(batch["X"]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        seconds = time.perf_counter() - began
        print(f"epoch {epoch}: loss {total / cells.n_obs:.3f}, {cells.n_obs / seconds:,.0f} cells/s")


@torch.no_grad()
def predict(model: Classifier, cells: daodask.Store) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the true and of the predicted types, in store order."""
    loader = daodask.BatchLoader(cells, BATCH_SIZE, schedule="sequential", obs=["cell_type"])
    model.eval()
    batches = DataLoader(loader.to_torch(), batch_size=None)
    pairs = [(batch["obs"]["cell_type"], model(batch["X"]).argmax(dim=1)) for batch in batches]
    true, predicted = (torch.cat(codes).numpy() for codes in zip(*pairs, strict=True))
    return true, predicted


def confusion(true: np.ndarray, predicted: np.ndarray, types: tuple[str, ...]) -> pd.DataFrame:
    """A row per true type, a column per predicted one, by number; and the share of each that is right."""
    counts = np.zeros((len(types), len(types)), dtype=int)
    np.add.at(counts, (true, predicted), 1)
    kept = counts.sum(axis=1) > 0
    table = pd.DataFrame(counts, [f"{i:>2} {name}" for i, name in enumerate(types)], range(len(types)))
    table["right"] = [f"{share:.0%}" for share in counts.diagonal() / np.maximum(1, counts.sum(axis=1))]
    return table[kept]


def main(directory: Path) -> None:
    torch.manual_seed(0)
    store = open_cells(directory)
    types = tuple(store.obs_dtypes["cell_type"].categories)
    training, testing = split(store, share=0.2)
    print(f"{training.n_obs:,} cells to train with, {testing.n_obs:,} to test with; {store.n_vars:,} genes")
    model = Classifier(store.n_vars, len(types))
    train(model, training)
    true, predicted = predict(model, testing)
    print(f"\n{confusion(true, predicted, types).to_string()}\n\naccuracy {np.mean(true == predicted):.1%}", end=", ")
    frequent = np.bincount(true).max() / len(true)
    print(f"where always saying the most frequent type would be right in {frequent:.1%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
