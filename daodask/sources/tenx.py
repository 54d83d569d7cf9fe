"""What Cell Ranger writes: HDF5 of versions 2 and 3, and the directory with a matrix market file."""

from __future__ import annotations

import contextlib
import csv
import gzip
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import h5py
import numpy as np
import pandas as pd
import scipy.io

from daodask.errors import SourceError
from daodask.sources._hdf5 import CompressedGroup, open_hdf5, reading
from daodask.sources._matrix import as_csr, check_rows, no_such, plain_facts
from daodask.sources.base import Fingerprint
from daodask.sources.fingerprint import fingerprint_location
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, BoolArray, Label

__all__ = ["MtxSource", "TenxSource"]

_GENES = "Gene Expression"


class _CellRanger:
    """What both forms share: one matrix, cells that are barcodes only, features of which genes are taken.

    Where features have types, only those of the type "Gene Expression" are columns: antibodies, guides and peaks are
    other measurements.
    """

    def __init__(self, location: StoreLocation, barcodes: list[str], features: pd.DataFrame) -> None:
        self.location = location
        self._barcodes = barcodes
        self._features = features
        self._genes = _gene_columns(features)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location.url!r})"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self._barcodes)

    def obs(self) -> pd.DataFrame:
        """The barcodes as index; there are no columns."""
        return pd.DataFrame(index=pd.Index(self._barcodes).astype(str))

    def var(self, matrix: str) -> pd.DataFrame:
        """The genes: ids as index, ``symbol``, and ``feature_type`` where there are types."""
        self._check_matrix(matrix)
        return self._features[self._genes]

    def uns(self) -> Mapping[str, Label]:
        """Facts about the study."""
        return {}

    @property
    def obsm_names(self) -> tuple[str, ...]:
        """There are no arrays per cell."""
        return ()

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of ``"X"``, the only matrix (computes).

        Raises
        ------
        SourceError
            Another matrix was asked for, or the content does not fit its declared shape.
        """
        self._check_matrix(matrix)
        check_rows(start, stop, self.n_obs)
        rows = self._rows(start, stop)
        return rows if self._genes.all() else rows[:, self._genes]

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Refused, as there are none."""
        check_rows(start, stop, self.n_obs)
        raise no_such("a dense array in obsm named", name, self.location, ())

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the content; ``known`` is returned where size and stamp are still the same."""
        return fingerprint_location(self.location, known)

    def _check_matrix(self, matrix: str) -> None:
        if matrix != "X":
            raise no_such("a matrix", matrix, self.location, ("X",))

    def _rows(self, start: int, stop: int) -> CSR:
        """Rows over all features."""
        raise NotImplementedError


class TenxSource(_CellRanger):
    """A study in a 10x HDF5 file of Cell Ranger 2 (a group per genome) or later (a group ``matrix``).

    The file holds CSC of genes x cells, which is CSR of cells x genes: rows are read by ranges, straight from the file.

    Parameters
    ----------
    location
        The file, local or remote.

    Raises
    ------
    SourceError
        There is no file, it is truncated or not HDF5, it is HDF5 of something else, or it has several genomes in a
        group each.
    """

    def __init__(self, location: StoreLocation) -> None:
        self._file = open_hdf5(location)
        with reading(location, "the list of genes and barcodes"):
            self._group = _matrix_group(self._file, location)
            n_features, n_cells = (int(n) for n in self._group["shape"][()])
            super().__init__(location, _texts(self._group["barcodes"]), _hdf5_features(self._group))
        _check_lengths(location, n_features, n_cells, self._features, self._barcodes)
        self._compressed = CompressedGroup(self._group, n_cells, n_features, location)

    def __reduce__(self) -> tuple[type[TenxSource], tuple[StoreLocation]]:
        return TenxSource, (self.location,)

    def uns(self) -> Mapping[str, Label]:
        """Attributes of the file that are one value, and ``genome`` where all features are of one."""
        with reading(self.location, "the attributes"):
            return plain_facts(dict(self._file.attrs)) | self._genome()

    def _genome(self) -> dict[str, Label]:
        if "features" not in self._group:
            return {"genome": self._group.name.lstrip("/")}
        named = self._group["features"].get("genome")
        genomes = set(np.array(_texts(named))[self._genes]) if named is not None else set()
        return {"genome": str(genomes.pop())} if len(genomes) == 1 else {}

    def _rows(self, start: int, stop: int) -> CSR:
        return self._compressed.read(start, stop)


class MtxSource(_CellRanger):
    """A study in a 10x directory: ``matrix.mtx``, ``features.tsv`` or ``genes.tsv``, ``barcodes.tsv``; or gzipped.

    The matrix is a text that can only be read from its beginning: it is parsed whole when a block is first read and
    kept as CSR, so that its memory is the matrix's and not the block's.

    Parameters
    ----------
    location
        The directory, local or remote.

    Raises
    ------
    SourceError
        One of the three files is missing or does not parse.
    """

    def __init__(self, location: StoreLocation) -> None:
        names = location.list()
        self._matrix_file = location / _one_of(location, names, "matrix.mtx")
        barcodes = _table(location / _one_of(location, names, "barcodes.tsv"))[0]
        features = _table(location / _one_of(location, names, "features.tsv", "genes.tsv"))
        super().__init__(location, barcodes.tolist(), _named_features(features.iloc[:, :3]))
        self._parsed: CSR | None = None
        self._parse = threading.Lock()

    def __reduce__(self) -> tuple[type[MtxSource], tuple[StoreLocation]]:
        return MtxSource, (self.location,)

    def _rows(self, start: int, stop: int) -> CSR:
        with self._parse:
            if self._parsed is None:
                self._parsed = self._read_text()
        return self._parsed[start:stop]

    def _read_text(self) -> CSR:
        try:
            with _open_text(self._matrix_file) as file:
                matrix = scipy.io.mmread(file, spmatrix=False)
        except (ValueError, EOFError, OSError) as error:
            raise _unreadable(self._matrix_file, "a Matrix Market file", error) from error
        _check_lengths(self.location, *matrix.shape, self._features, self._barcodes)
        return as_csr(matrix.T)


def _gene_columns(features: pd.DataFrame) -> BoolArray:
    if "feature_type" not in features:
        return np.ones(len(features), dtype=bool)
    return (features["feature_type"] == _GENES).to_numpy(dtype=bool)


def _check_lengths(
    location: StoreLocation, n_features: int, n_cells: int, features: pd.DataFrame, barcodes: list[str]
) -> None:
    if (n_features, n_cells) != (len(features), len(barcodes)):
        raise SourceError(
            f"expected a matrix of {len(features)} features x {len(barcodes)} barcodes at {location}, as listed there, "
            f"got one of {n_features} x {n_cells}; the files don't belong together or one is damaged"
        )


def _matrix_group(file: h5py.File, location: StoreLocation) -> h5py.Group:
    if "matrix" in file:
        return file["matrix"]
    genomes = [name for name, node in file.items() if isinstance(node, h5py.Group) and "barcodes" in node]
    if len(genomes) > 1:
        raise SourceError(
            f"expected one genome at {location}, got {', '.join(genomes)} in a group each; write one file per genome"
        )
    if not genomes:
        raise SourceError(
            f"expected 10x HDF5 at {location} (a group 'matrix', or one named after the genome), got HDF5 with "
            f"{sorted(file)}; if it is an AnnData, say format: h5ad"
        )
    return file[genomes[0]]


def _hdf5_features(group: h5py.Group) -> pd.DataFrame:
    if "features" not in group:
        return _features(_texts(group["genes"]), symbol=_texts(group["gene_names"]))
    columns = {"symbol": "name", "feature_type": "feature_type"}
    named = group["features"]
    return _features(_texts(named["id"]), **{to: _texts(named[name]) for to, name in columns.items() if name in named})


def _named_features(table: pd.DataFrame) -> pd.DataFrame:
    """Columns by position: ids, then symbols and types where the file has them."""
    ids, *others = (table[i].tolist() for i in table)
    return _features(ids, **dict(zip(("symbol", "feature_type"), others, strict=False)))


def _features(ids: list[str], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(ids).astype(str))


def _texts(dataset: h5py.Dataset) -> list[str]:
    """Strings of fixed or variable length."""
    return cast("list[str]", dataset.asstr()[()].tolist())


def _one_of(location: StoreLocation, names: tuple[str, ...], *stems: str) -> str:
    accepted = [f"{stem}{suffix}" for stem in stems for suffix in (".gz", "")]
    found = [name for name in accepted if name in names]
    if not found:
        raise SourceError(
            f"expected {' or '.join(accepted)} in {location}, found {list(names) or 'nothing'}; "
            "a 10x directory has a matrix, its features and its barcodes"
        )
    return found[0]


@contextlib.contextmanager
def _open_text(location: StoreLocation) -> Iterator[IO[bytes]]:
    with location.fs.open(location.path, "rb") as file:
        if location.name.endswith(".gz"):
            with gzip.open(file) as text:
                yield cast("IO[bytes]", text)
        else:
            yield file


def _table(location: StoreLocation) -> pd.DataFrame:
    """Tab-separated strings without a header; ``NA`` is a name and not a missing one, quotes are characters."""
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_filter": False, "quoting": csv.QUOTE_NONE}
    try:
        with _open_text(location) as file:
            table: pd.DataFrame = pd.read_csv(file, sep="\t", header=None, **options)
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(location, "a tab-separated table", error) from error
    return table


def _unreadable(location: StoreLocation, what: str, error: Exception) -> SourceError:
    return SourceError(
        f"expected {what} at {location}, which can't be read: {error}; check that its transfer was completed"
    )
