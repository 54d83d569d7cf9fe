"""What Cell Ranger writes: HDF5 of versions 2 and 3, and the directory with a matrix market file."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import re
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final, cast

import h5py
import numpy as np
import pandas as pd

from daodask.errors import SourceError
from daodask.sources._compressed import CompressedGroup
from daodask.sources._direct import read_elements
from daodask.sources._hdf5 import check_stored, open_hdf5, reading
from daodask.sources._matrix import check_rows, no_such, plain_facts
from daodask.sources._parts import PART_VALUES, number_of_parts, rows_of_parts
from daodask.sources.base import Coordinates, Fingerprint, Parts
from daodask.sources.fingerprint import fingerprint_location
from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray, BoolArray, Label

__all__ = ["MtxSource", "TenxSource"]

_GENES: Final = "Gene Expression"
#: What becomes of features that are no genes.
_OTHERS: Final = ("obsm", "drop", "refuse")
#: Features of a type that still make a dense array per cell, and those whose names are a fact to keep beside it.
_MOST_DENSE: Final = 8192
_MOST_NAMED: Final = 512

#: Lines of a matrix market file that are parsed at a time.
_LINES: Final = 2**18


class _CellRanger:
    """What both forms share: one matrix, cells that are barcodes only, features of which genes are taken.

    Where features have types, only those of the type "Gene Expression" are columns: antibodies, guides and peaks are
    other measurements. ``other_features`` says what becomes of these: ``"obsm"``, a dense array per type, such as
    ``antibody_capture``, and the names of its features as a fact of that name (a type of very many, as peaks are, makes
    no dense array and is left out); ``"drop"``; or ``"refuse"``, where there should be none.
    """

    def __init__(
        self, location: StoreLocation, barcodes: list[str], features: pd.DataFrame, other_features: str
    ) -> None:
        if other_features not in _OTHERS:
            raise SourceError(f"expected other_features to be one of {', '.join(_OTHERS)}, got {other_features!r}")
        self.location = location
        self._barcodes = barcodes
        self._features = features
        self._genes = _gene_columns(features)
        self._other_features = other_features
        types = features.loc[~self._genes, "feature_type"] if "feature_type" in features else pd.Series(dtype=object)
        if other_features == "refuse" and len(types):
            found = ", ".join(f"{number} of {kind!r}" for kind, number in types.value_counts().items())
            raise SourceError(
                f"expected genes alone at {location}, as other_features is 'refuse', got {found}; "
                "say other_features: obsm (and which in obsm:), or drop"
            )
        kinds = [] if other_features == "drop" else types.unique().tolist()
        self._others = {_slug(kind): (features["feature_type"] == kind).to_numpy(dtype=bool) for kind in kinds}

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

    def uns(self) -> Mapping[str, Any]:
        """The names of those features that :attr:`obsm_names` has arrays of, by its names."""
        return {name: self._names(name) for name in self.obsm_names if self._others[name].sum() <= _MOST_NAMED}

    def _names(self, other: str) -> list[str]:
        """Ids of the features of a type."""
        return [str(name) for name in self._features.index[self._others[other]]]

    @property
    def obsm_names(self) -> tuple[str, ...]:
        """A name per type of features that are no genes, such as ``antibody_capture``."""
        return tuple(name for name, columns in self._others.items() if columns.sum() <= _MOST_DENSE)

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
        """Rows ``[start, stop)`` of the features of a type, dense (computes).

        Raises
        ------
        SourceError
            There are none of such a type.
        """
        check_rows(start, stop, self.n_obs)
        if name not in self.obsm_names:
            raise no_such("a dense array in obsm named", name, self.location, self.obsm_names)
        values: AnyArray = self._rows(start, stop)[:, self._others[name]].toarray()
        return values

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
    other_features
        What becomes of features that are no genes: ``"obsm"``, ``"drop"`` or ``"refuse"``.

    Raises
    ------
    SourceError
        There is no file, it is truncated or not HDF5, it is HDF5 of something else, or it has several genomes in a
        group each.
    """

    def __init__(self, location: StoreLocation, other_features: str = "obsm") -> None:
        self._file = open_hdf5(location)
        with reading(location, "the list of genes and barcodes"):
            self._group = _matrix_group(self._file, location)
            n_features, n_cells = (int(n) for n in self._group["shape"][()])
            check_stored(location, self._group["barcodes"])
            barcodes, features = _texts(self._group["barcodes"]), _hdf5_features(self._group, location)
        super().__init__(location, barcodes, features, other_features)
        _check_lengths(location, n_features, n_cells, self._features, self._barcodes)
        self._compressed = CompressedGroup(
            self._group, n_cells, n_features, location, partial(reading, location), read_elements
        )

    def __reduce__(self) -> tuple[type[TenxSource], tuple[StoreLocation, str]]:
        return TenxSource, (self.location, self._other_features)

    def uns(self) -> Mapping[str, Any]:
        """Attributes of the file that are one value, ``genome`` where genes are of one, names of other features."""
        with reading(self.location, "the attributes"):
            return {**plain_facts(dict(self._file.attrs)), **self._genome(), **super().uns()}

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

    The matrix is a text that can only be read from its beginning. One that fits a part is parsed when rows of it are
    first read, and kept; a larger one is parsed in parts, all of them for any rows.

    Parameters
    ----------
    location
        The directory, local or remote.
    other_features
        What becomes of features that are no genes: ``"obsm"``, ``"drop"`` or ``"refuse"``.

    Raises
    ------
    SourceError
        One of the three files is missing or does not parse.
    """

    def __init__(self, location: StoreLocation, other_features: str = "obsm") -> None:
        names = location.list()
        self._matrix_file = location / _one_of(location, names, "matrix.mtx")
        barcodes = _table(location / _one_of(location, names, "barcodes.tsv"))[0]
        features = _table(location / _one_of(location, names, "features.tsv", "genes.tsv"))
        super().__init__(location, barcodes.tolist(), _named_features(features.iloc[:, :3]), other_features)
        self._parsed: CSR | None = None
        self._parse = threading.Lock()

    def __reduce__(self) -> tuple[type[MtxSource], tuple[StoreLocation, str]]:
        return MtxSource, (self.location, self._other_features)

    def matrix_parts(self, matrix: str) -> Parts | None:
        """How the text is cut into parts, one task's work as each follows from the last; ``None`` where one holds all.

        Raises
        ------
        SourceError
            There is no such matrix, or what is there is no Matrix Market file of these features and barcodes.
        """
        self._check_matrix(matrix)
        with self._open_matrix() as (_, size):
            if size.n_values <= PART_VALUES:
                return None
            return Parts(number_of_parts(size.n_values), size.dtype, sequential=True)

    def read_parts(self, matrix: str, start: int, stop: int) -> Iterator[Coordinates]:
        """Parts ``[start, stop)`` of the genes' values, in the order of the text (computes each).

        Raises
        ------
        SourceError
            The text does not parse, or does not hold what its header says.
        """
        self._check_matrix(matrix)
        column = np.cumsum(self._genes, dtype=np.int32) - 1
        for part in self._read_text(start, stop):
            if self._genes.all():
                yield part
            else:
                kept = self._genes[part.columns]
                yield Coordinates(part.rows[kept], column[part.columns[kept]], part.values[kept])

    def _rows(self, start: int, stop: int) -> CSR:
        with self._open_matrix() as (_, size):
            number, dtype = number_of_parts(size.n_values), size.dtype
        n_vars = len(self._features)
        if number > 1:
            return rows_of_parts(self._read_text(0, number), start, stop, n_vars, dtype)
        with self._parse:
            if self._parsed is None:
                self._parsed = rows_of_parts(self._read_text(0, 1), 0, self.n_obs, n_vars, dtype)
            return self._parsed[start:stop]

    @contextlib.contextmanager
    def _open_matrix(self) -> Iterator[tuple[IO[bytes], _Size]]:
        """The text behind its header, and what the header says."""
        try:
            with _open_text(self._matrix_file) as file:
                size = _read_header(file)
                _check_lengths(self.location, size.n_features, size.n_cells, self._features, self._barcodes)
                yield file, size
        except (ConnectionError, TimeoutError):
            raise  # The network's fault, not the file's.
        except SourceError:
            raise
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise _unreadable(self._matrix_file, "a Matrix Market file", error) from error

    def _read_text(self, start: int, stop: int) -> Iterator[Coordinates]:
        """Parts over all features."""
        with self._open_matrix() as (file, size):
            number, n_read = number_of_parts(size.n_values), 0
            for part, table in enumerate(_tables(file, size)):
                n_read += len(table)
                if part >= start:
                    yield _coordinates(table, size)
                if part + 1 == stop < number:
                    return
            if n_read != size.n_values:
                raise ValueError(f"expected {size.n_values} values, as its header says, got {n_read}")


@dataclass(frozen=True, slots=True)
class _Size:
    """What the header of a Matrix Market file says."""

    n_features: int
    n_cells: int
    n_values: int
    dtype: str

    @property
    def columns(self) -> tuple[str, str, str]:
        """Dtypes of the three columns of the text."""
        return "int32", "int32", self.dtype


def _read_header(file: IO[bytes]) -> _Size:
    """Read the banner, comments and the line of sizes; raises ``ValueError`` where they are anything else."""
    banner = file.readline(1024).decode("ascii", "replace").lower().split()
    if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[3:] not in (
        ["integer", "general"],
        ["real", "general"],
    ):
        raise ValueError(f"its first line is not '%%MatrixMarket matrix coordinate integer|real general' but {banner}")
    line = file.readline(1024)
    while line.startswith(b"%") or (line and not line.strip()):
        line = file.readline()
    numbers = line.split()
    if len(numbers) != 3:
        raise ValueError(f"expected the numbers of features, cells and values, got {line[:80]!r}")
    n_features, n_cells, n_values = map(int, numbers)
    if min(n_features, n_cells, n_values) < 0 or n_values > n_features * n_cells:
        raise ValueError(f"{n_values} values don't fit {n_features} features x {n_cells} cells")
    return _Size(n_features, n_cells, n_values, "int64" if banner[3] == "integer" else "float64")


def _tables(file: IO[bytes], size: _Size) -> Iterator[pd.DataFrame]:
    """The lines behind the header, as many at a time as a part has."""
    # Parsing takes several times the memory of what is parsed: a part is put together of a few runs of lines.
    lines = min(PART_VALUES, _LINES)
    options: dict[str, Any] = {"dtype": dict(enumerate(size.columns)), "na_filter": False, "chunksize": lines}
    try:
        tables = pd.read_csv(file, sep=r"\s+", header=None, **options)
    except pd.errors.EmptyDataError:
        return
    with tables:
        while part := list(itertools.islice(tables, PART_VALUES // lines)):
            whole = pd.concat(part)
            part.clear()  # what is in it is in the whole
            yield whole


def _coordinates(table: pd.DataFrame, size: _Size) -> Coordinates:
    """A part of the text, in which features and cells are counted from 1."""
    if table.shape[1] != 3:
        raise ValueError(f"expected three numbers a line, got {table.shape[1]}")
    features, cells, values = (table[i].to_numpy() for i in table)
    for what, numbers, most in (("feature", features, size.n_features), ("cell", cells, size.n_cells)):
        if len(numbers) and not 1 <= int(numbers.min()) <= int(numbers.max()) <= most:
            raise ValueError(f"expected {what} numbers from 1 to {most}, got {numbers.min()} to {numbers.max()}")
    return Coordinates(cells - 1, features - 1, values)


def _slug(kind: str) -> str:
    """Name of a type of features, as arrays are called: ``Antibody Capture`` is ``antibody_capture``."""
    return re.sub(r"[^0-9a-z]+", "_", kind.lower()).strip("_") or "other"


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


def _hdf5_features(group: h5py.Group, location: StoreLocation) -> pd.DataFrame:
    check_stored(location, group["features/id" if "features" in group else "genes"])
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
