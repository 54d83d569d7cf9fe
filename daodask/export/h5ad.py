"""A selection into one h5ad file, block by block: memory is that of a few blocks and of obs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from daodask.errors import SpecError
from daodask.export.content import Content, Matrix
from daodask.export.ordered import in_order
from daodask.export.rows import Rows, bounds, cut, read_dense, read_rows
from daodask.store import Store
from daodask.types import CSR, AnyArray, Int64Array

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["CODECS", "write_h5ad"]

#: Compression of the arrays, of what every build of HDF5 can read.
CODECS: Final = ("none", "gzip")
#: Elements of an HDF5 chunk of the long arrays.
_CHUNK: Final = 2**17


def write_h5ad(
    path: str,
    store: Store,
    content: Content,
    *,
    block_rows: int,
    codec: str,
    client: Client | None,
    threads: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write the file (computes), and return the number of non-zeros of X.

    Parameters
    ----------
    path
        Of a file on this machine; nothing is there yet.
    store, content
        What to write.
    block_rows
        Cells that are read at once.
    codec
        One of :data:`CODECS`.
    client, threads
        Read the blocks; this process writes them, one after another.
    progress
        Called with blocks done and blocks in all.
    """
    import h5py
    from anndata.io import write_elem

    if codec not in CODECS:
        raise SpecError(f"codec: expected {' or '.join(CODECS)} for an h5ad file, got {codec!r}")
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if codec == "gzip" else {}
    runs = bounds(store.n_obs, block_rows)
    read = (content.matrices, content.obsm, store.selection.n_stored_vars, store.selection.genes)
    calls = [(cut(store, start, stop), *read) for start, stop in runs]
    with h5py.File(path, "w-") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", content.obs, dataset_kwargs=_frame_options(options))
        write_elem(file, "var", content.var, dataset_kwargs=_frame_options(options))
        write_elem(file, "uns", dict(content.uns))
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            file.create_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        matrices = [_Appended(file, m, store.n_obs, content, options) for m in content.matrices]
        dense = [_create_dense(file, m, store.n_obs, block_rows, options) for m in content.obsm]
        blocks = in_order(_read, calls, client=client, threads=threads)
        for number, ((start, stop), (csrs, arrays)) in enumerate(zip(runs, blocks, strict=True)):
            for matrix, csr in zip(matrices, csrs, strict=True):
                matrix.append(csr)
            for array, values in zip(dense, arrays, strict=True):
                array[start:stop] = values
            progress(number + 1, len(runs))
        for matrix in matrices:
            matrix.finish()
    return matrices[0].nnz


def _read(
    rows: Rows, matrices: tuple[Matrix, ...], obsm: tuple[Matrix, ...], n_stored_vars: int, genes: Int64Array | None
) -> tuple[list[CSR], list[AnyArray]]:
    """One block of everything."""
    return (
        [read_rows(rows, m.name, n_stored_vars, genes, m.dtype) for m in matrices],
        [read_dense(rows, m.name, m.width, m.dtype) for m in obsm],
    )


def _frame_options(options: dict[str, Any]) -> dict[str, Any]:
    """What text takes too: HDF5 shuffles bytes of numbers alone."""
    return {name: value for name, value in options.items() if name != "shuffle"}


@dataclass
class _Appended:
    """A CSR matrix in the file, which grows by the rows of a block at a time."""

    file: Any
    matrix: Matrix
    n_obs: int
    content: Content
    options: dict[str, Any]
    nnz: int = 0
    _lengths: list[Int64Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._group = self.file.create_group(self.matrix.name)
        self._group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (self.n_obs, self.matrix.width)}
        )
        chunk = max(1, min(_CHUNK, self.content.most_values))
        cutting = {"shape": (0,), "maxshape": (None,), "chunks": (chunk,), **self.options}
        self._data = self._group.create_dataset("data", dtype=self.matrix.dtype, **cutting)
        self._indices = self._group.create_dataset("indices", dtype=self.content.index_dtype, **cutting)

    def append(self, csr: CSR) -> None:
        """Write the rows that come next."""
        stop = self.nnz + csr.nnz
        for array, values in ((self._data, csr.data), (self._indices, csr.indices)):
            array.resize((stop,))
            array[self.nnz : stop] = values
        self._lengths.append(np.diff(csr.indptr).astype(np.int64))
        self.nnz = stop

    def finish(self) -> None:
        """Write the row bounds, which are known at the end."""
        indptr = np.cumsum(np.concatenate([np.zeros(1, np.int64), *self._lengths]), dtype=self.content.index_dtype)
        self._group.create_dataset("indptr", data=indptr, **self.options)


def _create_dense(file: Any, array: Matrix, n_obs: int, block_rows: int, options: dict[str, Any]) -> Any:
    chunks = (max(1, min(block_rows, n_obs)), max(1, array.width)) if n_obs and array.width else None
    dataset = file.create_dataset(
        f"obsm/{array.name}",
        shape=(n_obs, array.width),
        dtype=array.dtype,
        chunks=chunks,
        **(options if chunks else {}),
    )
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return dataset
