"""A format of one's own: counts as tab-separated tables of genes x cells, which many studies are published as.

    python examples/custom_source.py

A source is any class with the members of `TableSource`. Here it is registered for this process. For the workers of a
cluster, install it: a package says in its pyproject.toml

    [project.entry-points."daodask.sources"]
    table = "my_package:TableSource"

and from then on every build file may say `format: table`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

import daodask
from daodask.sources import fingerprint_location, register_source


# -- the source ----------------------------------------------------------------------------------------------------
class TableSource:
    """A table with a gene per line and a cell per column; `sep` is an option that a build file may give."""

    obsm_names = ()

    def __init__(self, location, sep="\t"):
        self.location = location
        with location.fs.open(location.path, "rt") as file:
            self._table = pd.read_csv(file, sep=sep, index_col=0)

    @property
    def n_obs(self):
        return self._table.shape[1]

    def obs(self):
        return pd.DataFrame(index=self._table.columns)

    def var(self, matrix):
        return pd.DataFrame(index=self._table.index)

    def uns(self):
        return {"title": self.location.name}

    def read_matrix(self, matrix, start, stop):
        return sp.csr_matrix(self._table.iloc[:, start:stop].to_numpy().T)

    def read_obsm(self, name, start, stop):
        raise KeyError(name)

    def fingerprint(self, known=None):
        return fingerprint_location(self.location, known)


# -- a store of two tables -----------------------------------------------------------------------------------------
def write_table(path: Path, n_cells: int, n_genes: int, sep: str) -> None:
    counts = np.random.default_rng(n_cells).poisson(0.5, (n_genes, n_cells))
    cells, genes = ([f"{name}{i}" for i in range(n)] for name, n in (("cell", n_cells), ("gene", n_genes)))
    pd.DataFrame(counts, index=genes, columns=cells).to_csv(path, sep=sep)


def main(directory: Path) -> None:
    register_source("table", TableSource)
    write_table(directory / "lung.tsv", 30, 20, "\t")
    write_table(directory / "blood.csv", 20, 25, ",")
    spec = {
        "features": {"name": "genes", "reference": "union"},
        "studies": [
            {"id": "lung", "source": directory / "lung.tsv", "format": "table"},
            {"id": "blood", "source": directory / "blood.csv", "format": "table", "options": {"sep": ","}},
        ],
    }
    print(daodask.build_store(spec, directory / "store"), end="\n\n")
    store = daodask.open_store(directory / "store")
    print(store.datasets[["n_obs", "kind"]])
    table = pd.read_csv(directory / "lung.tsv", sep="\t", index_col=0)
    print("counts of lung:", int(store.subset(dataset="lung").to_anndata().X.sum()), "of", int(table.to_numpy().sum()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
