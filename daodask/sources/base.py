"""What a study is read through: a small Protocol, and the value that says where and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from daodask.storage import StoreLocation
from daodask.types import CSR, AnyArray

__all__ = ["Fingerprint", "Source", "SourceAddress"]


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
        SHA-256 of the content for what is on a local disk or in memory; the stamp for what is remote.
    """

    size: int
    stamp: str
    digest: str


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """Where a study is and how to read it: what travels to the workers.

    ``format`` is one of the registered formats, never empty: whoever makes an address has resolved it.
    """

    location: StoreLocation
    format: str


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
