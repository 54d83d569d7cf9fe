"""Studies larger than a worker's memory, written in seconds: the same few cells over and over, never held at once."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from daodask.types import CSR, AnyArray, Int64Array

__all__ = ["large_study"]

#: Cells that are repeated, cells of a chunk, sparse and dense, and genes that are written at a time.
_PERIOD: Final = 4096
_CHUNK: Final = 1024
_DENSE_CHUNK: Final = 256
_GENES: Final = 64


def large_study(folder: Path, kind: str, repeats: int, *, n_vars: int = 4096, row_values: int = 512) -> Path:
    """Write a study of ``repeats * 4096`` cells; the same cells whatever the kind, so that builds of them are alike.

    Parameters
    ----------
    folder
        Where to write it.
    kind
        ``"csr"``, ``"csc"`` or ``"dense"``, each compressed in an h5ad file, or ``"mtx"``, a 10x directory.
    repeats
        How often the same cells are there.
    n_vars
        Genes.
    row_values
        Non-zeros of each cell. In memory, as CSR of float32, a cell takes eight times as many bytes.

    Returns
    -------
    Path
        Of the file or directory.
    """
    random = np.random.default_rng(0)
    # One gene of each of as many equal stretches of them, so that they are in order and none is twice.
    stretch = n_vars // row_values
    genes = random.integers(0, stretch, (_PERIOD, row_values)) + np.arange(row_values) * stretch
    counts = random.geometric(0.4, genes.size)
    indptr = np.arange(_PERIOD + 1, dtype=np.int64) * row_values
    cells = sp.csr_matrix((counts.astype(np.float32), genes.ravel().astype(np.int32), indptr), shape=(_PERIOD, n_vars))
    if kind == "mtx":
        return _write_mtx(folder / "large_mtx", cells, repeats)
    path = folder / f"large_{kind}.h5ad"
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        _write_frame(file, "obs", "cell", repeats * _PERIOD)
        _write_frame(file, "var", "gene", n_vars)
        _WRITERS[kind](file, cells, repeats)
    return path


def _write_frame(file: h5py.File, name: str, of: str, length: int) -> None:
    group = file.create_group(name)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs.create("column-order", np.zeros(0, dtype=h5py.string_dtype()))
    names = np.char.add(of, np.arange(length).astype(np.str_)).astype(object)
    index = group.create_dataset("_index", data=names, dtype=h5py.string_dtype())
    index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def _sparse_group(file: h5py.File, kind: str, shape: tuple[int, int], indptr: Int64Array) -> h5py.Group:
    group = file.create_group("X")
    group.attrs.update({"encoding-type": f"{kind}_matrix", "encoding-version": "0.1.0", "shape": shape})
    group.create_dataset("indptr", data=indptr)
    return group


def _write_csr(file: h5py.File, cells: CSR, repeats: int) -> None:
    n_obs, n_vars = cells.shape[0] * repeats, cells.shape[1]
    row_values = int(cells.indptr[1])
    group = _sparse_group(file, "csr", (n_obs, n_vars), np.arange(n_obs + 1, dtype=np.int64) * row_values)
    for name, values in (("data", cells.data), ("indices", cells.indices)):
        _write_repeated(group, name, values, (len(values) * repeats,), (_CHUNK * row_values,), repeats)


def _write_dense(file: h5py.File, cells: CSR, repeats: int) -> None:
    n_rows, n_vars = cells.shape
    _write_repeated(file, "X", cells.toarray(), (n_rows * repeats, n_vars), (_DENSE_CHUNK, n_vars), repeats)
    file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _write_repeated(
    group: h5py.Group, name: str, values: AnyArray, shape: tuple[int, ...], chunk: tuple[int, ...], repeats: int
) -> None:
    """Compress each chunk once, and write it as often as it is there."""
    array = group.create_dataset(name, shape=shape, dtype=values.dtype, chunks=chunk, compression="gzip")
    for start in range(0, len(values), chunk[0]):
        data = zlib.compress(values[start : start + chunk[0]].tobytes(), 1)
        for repeat in range(repeats):
            array.id.write_direct_chunk((repeat * len(values) + start, *[0] * (len(shape) - 1)), data)


def _write_csc(file: h5py.File, cells: CSR, repeats: int) -> None:
    by_genes = sp.csc_matrix(cells)
    n_rows, n_vars = cells.shape
    group = _sparse_group(file, "csc", (n_rows * repeats, n_vars), by_genes.indptr.astype(np.int64) * repeats)
    options: dict[str, Any] = {"shape": (cells.nnz * repeats,), "chunks": (2**18,), "compression": "lzf"}
    data, indices = (group.create_dataset(n, dtype=d, **options) for n, d in (("data", "f4"), ("indices", "i4")))
    first = np.arange(repeats, dtype=np.int32)[:, None] * n_rows
    for gene in range(0, n_vars, _GENES):
        bounds = by_genes.indptr[gene : gene + _GENES + 1]
        columns = [slice(a, b) for a, b in itertools.pairwise(bounds.tolist())]
        at = slice(int(bounds[0]) * repeats, int(bounds[-1]) * repeats)
        indices[at] = np.concatenate([(first + by_genes.indices[c]).ravel() for c in columns])
        data[at] = np.concatenate([np.tile(by_genes.data[c], repeats) for c in columns])


def _write_mtx(folder: Path, cells: CSR, repeats: int) -> Path:
    folder.mkdir()
    n_rows, n_vars = cells.shape
    rows = np.repeat(np.arange(1, n_rows + 1), np.diff(cells.indptr))
    columns, values = cells.indices + 1, cells.data.astype(np.int32)
    with gzip.open(folder / "matrix.mtx.gz", "wb", compresslevel=1) as file:
        header = "%%MatrixMarket matrix coordinate integer general"
        file.write(f"{header}\n{n_vars} {n_rows * repeats} {cells.nnz * repeats}\n".encode())
        for repeat in range(repeats):
            lines = pd.DataFrame({"gene": columns, "cell": rows + repeat * n_rows, "value": values})
            lines.to_csv(file, sep=" ", header=False, index=False)
    (folder / "barcodes.tsv").write_text("".join(f"cell{i}\n" for i in range(n_rows * repeats)))
    (folder / "features.tsv").write_text("".join(f"gene{j}\n" for j in range(n_vars)))
    return folder


_WRITERS: Final[dict[str, Callable[[h5py.File, CSR, int], None]]] = {
    "csr": _write_csr,
    "csc": _write_csc,
    "dense": _write_dense,
}
