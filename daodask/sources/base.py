"""What a study is read through: a small Protocol, and the value that says where and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray

__all__ = ["Coordinates", "Fingerprint", "PartedSource", "Parts", "Source", "SourceAddress"]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identity of a source's content.

    Parameters
    ----------
    size
        Bytes, over all its files.
    stamp
        What the file system says without reading: modification times or etags. Equal stamp and size: not read again.
    digest
        SHA-256 of the content for what is on a local disk or in memory, of large files that of their pieces'
        checksums; the stamp for what is remote.
    """

    size: int
    stamp: str
    digest: str


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """Where a study is and how to read it: what travels to the workers.

    Parameters
    ----------
    location
        Of its file or directory.
    format
        One of the known formats, never empty: whoever makes an address has resolved it.
    options
        What the format is opened with, as sorted pairs of names and plain values.
    download
        Whether each worker first makes a copy of its own, and reads that.
    """

    location: StoreLocation
    format: str
    options: tuple[tuple[str, Any], ...] = ()
    download: bool = False


@runtime_checkable
class Source(Protocol):
    """A study, read block by block.

    Opening reads metadata only. ``obs`` and ``var`` have their names as index, in the order of the rows and columns of
    every matrix. Nothing is renamed, reordered or converted here: that is streamlining.
    """

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        ...

    def obs(self) -> pd.DataFrame:
        """All cell metadata (computes)."""
        ...

    def var(self, matrix: str) -> pd.DataFrame:
        """Gene metadata of a matrix; ``raw`` may have other genes than ``X`` (computes)."""
        ...

    def uns(self) -> Mapping[str, Any]:
        """Facts about the study, as far as the file holds them as plain strings and numbers."""
        ...

    @property
    def obsm_names(self) -> tuple[str, ...]:
        """Names of the dense arrays per cell."""
        ...

    def read_matrix(self, matrix: str, start: int, stop: int) -> CSR:
        """Rows ``[start, stop)`` of a matrix (computes).

        Parameters
        ----------
        matrix
            ``"X"``, ``"raw"`` or ``"layers/<name>"``.

        Returns
        -------
        csr_matrix
            In the source's own dtype; sorted or not, with explicit zeros or not, as the source has it.

        Raises
        ------
        SourceError
            There is no such matrix, or its content does not fit its declared shape.
        """
        ...

    def read_obsm(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows ``[start, stop)`` of a dense array per cell, 2-D (computes)."""
        ...

    def fingerprint(self, known: Fingerprint | None = None) -> Fingerprint:
        """Identity of the content; ``known`` is returned as it is where size and stamp are still the same."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """How a matrix that has no row ranges is read: in this many parts, each of a bounded number of values.

    Parameters
    ----------
    number
        Of parts.
    dtype
        Of the values of every part.
    sequential
        Whether a part is only found by reading all before it, as in a compressed text: one task then reads them all.
    """

    number: int
    dtype: str
    sequential: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """Values of a matrix in any order, each with the row (cell) and column (gene) that it is at; integers both."""

    rows: AnyArray
    columns: AnyArray
    values: AnyArray


@runtime_checkable
class PartedSource(Source, Protocol):
    """A source of which some matrices have no row ranges: compressed by columns, or a text of coordinates.

    A build transposes such a matrix through scratch space: it reads every part once and never asks for its rows, so
    that its memory is that of a part. ``read_matrix`` must still answer, at the cost of reading all parts.
    """

    def matrix_parts(self, matrix: str) -> Parts | None:
        """How the matrix is cut into parts; ``None`` where ``read_matrix`` reads a range of rows at the range's cost.

        A part holds about :data:`~daodask.sources._parts.PART_VALUES` values. What fits one part is best kept and
        answered by ``read_matrix``.
        """
        ...

    def read_parts(self, matrix: str, start: int, stop: int) -> Iterator[Coordinates]:
        """Parts ``[start, stop)`` one after another (computes each as it is taken).

        Raises
        ------
        SourceError
            The content does not fit its declared shape.
        """
        ...
