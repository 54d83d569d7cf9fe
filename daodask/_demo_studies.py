"""The studies of the demo: real cells laid out as three studies that differ, or the user's own files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml

from daodask.errors import DependencyError, SourceError, SpecError, suggest
from daodask.sources.h5ad import H5adSource
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray

if TYPE_CHECKING:
    import anndata

__all__ = ["NO_LABEL", "Studies", "embedded_studies", "own_studies", "recover_counts", "totals_of"]

#: What cells without a label are totalled under.
NO_LABEL: Final = "(no value)"

_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class Studies:
    """What the demo builds from.

    Parameters
    ----------
    spec
        The build file.
    features
        Name of its feature space.
    by
        Obs column of the store to total by.
    notes
        What there is to say of the studies.
    totals
        Cells and counts per label, straight from the file of a study, by its id.
    """

    spec: Path
    features: str
    by: str
    notes: tuple[str, ...]
    totals: Callable[[str], pd.DataFrame]


def totals_of(matrix: Any, labels: pd.Series[Any]) -> pd.DataFrame:
    """Number of ``cells`` and sum of ``counts`` per label, of one block of rows."""
    names = labels.astype(object).where(labels.notna(), NO_LABEL).map(str).to_numpy()
    counts = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    return pd.DataFrame({"cells": np.ones(len(names), dtype=np.int64), "counts": counts}).groupby(names).sum()


# -- the embedded studies ------------------------------------------------------------------------------------------

#: The h5ad files, by id: what differs between them is what streamlining is there for.
_LAYOUTS: Final = {
    "by_symbol": "csr, genes by symbol, cell types in 'celltype'",
    "by_id": "csc, genes by id in a column of var, 150 genes fewer, cell types in 'cell_type'",
    "by_version": "dense, genes by id with version, log-normalised X, counts in a layer, cell types in 'annotation'",
}
_LABELS: Final = {"by_symbol": "celltype", "by_id": "cell_type", "by_version": "annotation"}
#: How one of the studies spells a label that the others spell ``CD14+ Monocyte``.
_SPELLED: Final = ("CD14+ Monocyte", "CD14+ Monocytes")
#: Counts that come back from logarithms in single precision are this near to an integer.
_MOST_OFF: Final = 0.2

_SPEC: Final = """\
features:
  name: demo
  reference: genes.csv             # id, symbol, version, length, biotype; ids ENSDEMOG… are made up by the demo
X: {kind: counts}                  # checked: whole, not negative, finite
obs:
  cell_type: {required: true}
keep: [phase, percent_*]           # source columns that are kept as they are
layout: {block_rows: 100}          # a block is a task: small, so that these few cells make several
studies:
  - id: by_symbol                  # genes by symbol, X is csr
    source: studies/by_symbol.h5ad
    obs: {cell_type: celltype}
    uns: &facts {organism: Homo sapiens, title: Fresh 68k PBMCs (subsampled), doi: 10.1038/ncomms14049}
  - id: by_id                      # genes by id, X is csc
    source: studies/by_id.h5ad
    genes: gene_ids
    obs: {cell_type: cell_type}
    uns: *facts
  - id: by_version                 # genes by id with version, counts in a dense layer
    source: studies/by_version.h5ad
    layer: layers/counts
    obs:
      cell_type: {from: annotation, map: {CD14+ Monocytes: CD14+ Monocyte}}
    uns: *facts
"""


def embedded_studies(directory: Path) -> Studies:
    """Lay the cells that come with scanpy out as three studies below ``directory``, unless that was done before.

    Raises
    ------
    DependencyError
        scanpy is not installed.
    """
    spec = directory / "daodask-demo.yaml"
    notes = ["they are there already, from a run before"] if spec.exists() else _write_studies(directory)
    listed = [f"studies/{name}.h5ad: {about}" for name, about in _LAYOUTS.items()]
    spec.write_text(_SPEC, encoding="utf-8")  # last: where it is, all of them are
    return Studies(spec, "demo", "cell_type", (*notes, *listed), lambda study: _direct_totals(directory, study))


def _write_studies(directory: Path) -> list[str]:
    cells = _counted_cells()
    (directory / "studies").mkdir(parents=True, exist_ok=True)
    genes = _reference(cells.symbols)
    genes.to_csv(directory / "genes.csv", header=False, index=False)
    for number, name in enumerate(_LAYOUTS):
        _laid_out(name, cells.counts[number::3], cells.obs.iloc[number::3], genes).write_h5ad(_file(directory, name))
    n_obs, n_vars = cells.counts.shape
    return [
        f"{n_obs} real cells × {n_vars} genes (scanpy.datasets.pbmc68k_reduced), a third of them in each",
        f"counts recovered from log-normalised values: the largest distance from an integer is {cells.off:.3f}",
    ]


def _file(directory: Path, study: str) -> Path:
    return directory / "studies" / f"{study}.h5ad"


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """The cells with their counts, and how far these were from integers before they were rounded."""

    counts: CSR
    obs: pd.DataFrame
    symbols: pd.Index[str]
    off: float


def _counted_cells() -> _Cells:
    try:
        # What scanpy and the packages that it imports warn of is theirs: nothing to be done about it here.
        with warnings.catch_warnings(action="ignore"):
            import scanpy

            source = scanpy.datasets.pbmc68k_reduced()
    except ImportError as error:
        raise DependencyError(
            "the demo's cells come with scanpy, which is not installed: pip install 'daodask[demo]', or run the demo "
            "on your own files with --input"
        ) from error
    counts, off = recover_counts(source.raw.X, source.obs["n_counts"].to_numpy())
    obs = source.obs[["bulk_labels", "phase", "percent_mito"]]
    return _Cells(counts, obs, source.raw.var_names, off)


def recover_counts(logged: CSR, depth: AnyArray) -> tuple[CSR, float]:
    """Counts that were scaled to 10 000 a cell and logged, ``log1p(counts / depth * 1e4)``; and how far from integers.

    Raises
    ------
    SourceError
        They come back too far from integers to have been counts.
    """
    values = sp.csr_matrix(logged, dtype=np.float64)
    scale = np.repeat(depth.astype(np.float64) / 1e4, np.diff(values.indptr))
    exact = np.expm1(values.data) * scale
    values.data = np.rint(exact)
    off = float(np.abs(exact - values.data).max(initial=0))
    if off > _MOST_OFF:
        raise SourceError(
            f"expected counts within {_MOST_OFF} of integers from the cells that scanpy ships, got one {off:.3f} off; "
            f"this scanpy ships other cells: run the demo on your own files with --input"
        )
    values.eliminate_zeros()
    return values.astype(np.float32), off


def _reference(symbols: pd.Index[str]) -> pd.DataFrame:
    """A gene table with ids like Ensembl's that can't be taken for them; lengths and biotypes are not known here."""
    ids = [f"ENSDEMOG{number:011d}" for number in range(1, len(symbols) + 1)]
    return pd.DataFrame({"id": ids, "symbol": symbols.astype(object), "version": 1, "length": 0, "biotype": "unknown"})


def _laid_out(name: str, counts: CSR, obs: pd.DataFrame, genes: pd.DataFrame) -> anndata.AnnData:
    import anndata

    obs = obs.rename(columns={"bulk_labels": _LABELS[name]})
    if name == "by_symbol":
        return anndata.AnnData(counts, obs=obs, var=_named(genes["symbol"]))
    if name == "by_id":
        fewer = genes[:-150]
        var = _named(fewer["symbol"]).assign(gene_ids=fewer["id"].to_numpy())
        return anndata.AnnData(sp.csc_matrix(counts[:, :-150]), obs=obs, var=var)
    spelled, otherwise = _SPELLED
    labels = obs[_LABELS[name]].cat.rename_categories({spelled: otherwise})
    obs = obs.drop(columns="phase").assign(**{_LABELS[name]: labels})
    dense = counts.toarray()
    logged = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)
    return anndata.AnnData(logged, obs=obs, var=_named(genes["id"] + ".1"), layers={"counts": dense})


def _named(names: pd.Series[str]) -> pd.DataFrame:
    return pd.DataFrame(index=pd.Index(names.to_numpy(), dtype=object))


def _direct_totals(directory: Path, study: str) -> pd.DataFrame:
    """Totals with anndata and pandas alone: none of daodask's readers."""
    import anndata

    adata = anndata.read_h5ad(_file(directory, study))
    matrix = adata.layers["counts"] if study == "by_version" else adata.X
    spelled, otherwise = _SPELLED
    return totals_of(matrix, adata.obs[_LABELS[study]].astype(object).replace(otherwise, spelled))


# -- the user's own ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Own:
    """One of the user's files: its id, and the matrix that has its counts."""

    id: str
    source: H5adSource
    matrix: str
    note: str


def own_studies(directory: Path, files: Sequence[str], by: str | None = None) -> Studies:
    """A build file for the user's own h5ad files, on the union of their genes.

    Raises
    ------
    SourceError
        A file can't be read.
    SpecError
        No file has the obs column to total by.
    """
    owns = [_own(file, number, files) for number, file in enumerate(files)]
    columns = {str(column) for own in owns for column in own.source.obs().columns}
    if by not in (None, "dataset") and by not in columns:
        raise SpecError(f"--by: none of the files has the obs column {by!r}; {suggest(by, sorted(columns))}")
    directory.mkdir(parents=True, exist_ok=True)
    spec = directory / "daodask-input.yaml"
    spec.write_text(yaml.safe_dump(_own_spec(owns), sort_keys=False, allow_unicode=True), encoding="utf-8")
    by_id = {own.id: own for own in owns}
    column = by or "dataset"
    return Studies(
        spec, "input", column, tuple(own.note for own in owns), lambda study: _own_totals(by_id[study], column)
    )


def _own(file: str, number: int, files: Sequence[str]) -> _Own:
    source = H5adSource(StoreLocation.parse(file))
    matrix, why = _find_counts(source)
    note = f"{file}: {source.n_obs:,} cells, counts in {matrix}{why}"
    return _Own(_ids(files)[number], source, matrix, note)


def _ids(files: Sequence[str]) -> list[str]:
    """An id per file, of its name; numbered where names repeat."""
    stems = [
        re.sub(r"[^A-Za-z0-9_-]+", "_", StoreLocation.parse(f).name.removesuffix(".h5ad")).strip("_-") for f in files
    ]
    stems = [stem[:100] or "study" for stem in stems]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems, 1)]


def _find_counts(source: H5adSource) -> tuple[str, str]:
    """The first matrix whose first rows are counts, and why not one before it."""
    names = sorted(source.matrix_names, key=lambda name: (name != "X", name != "raw", name != "layers/counts"))
    others: list[str] = []
    for name in names:
        odd = _not_a_count(source.read_matrix(name, 0, min(_ROWS, source.n_obs)).data)
        if odd is None:
            return name, f" ({', '.join(others)})" if others else ""
        others.append(f"{name} has {odd:.4g}")
    return "X", f" taken for counts, though no matrix looks like it ({', '.join(others)})"


def _not_a_count(values: AnyArray) -> float | None:
    odd = values[~((values >= 0) & (values == np.floor(values)) & (values < np.inf))]
    return float(odd[0]) if len(odd) else None


def _own_spec(owns: Sequence[_Own]) -> dict[str, Any]:
    studies = [{"id": own.id, "source": own.source.location.url, "layer": own.matrix} for own in owns]
    return {"features": {"name": "input", "reference": "union"}, "keep": "all", "studies": studies}


def _own_totals(own: _Own, by: str) -> pd.DataFrame:
    """Totals of a file, read by blocks of rows as it may be large."""
    obs = own.source.obs()
    labels = obs[by] if by in obs else pd.Series([own.id if by == "dataset" else None] * len(obs), dtype=object)
    parts = (totals_of(rows, labels.iloc[start:stop]) for start, stop, rows in _blocks(own))
    whole = pd.concat([totals_of(sp.csr_matrix((0, 1)), labels[:0]), *parts])
    return whole.groupby(level=0).sum()


def _blocks(own: _Own) -> Iterator[tuple[int, int, CSR]]:
    for start in range(0, own.source.n_obs, _ROWS):
        stop = min(start + _ROWS, own.source.n_obs)
        yield start, stop, own.source.read_matrix(own.matrix, start, stop)
