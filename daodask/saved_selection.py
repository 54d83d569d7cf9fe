"""Selections as small files: a parquet file of runs of rows, with what they are rows of, to be applied again.

A file says of each dataset that it has cells of, and of each that the store held besides, which content that was. So
whoever loads it learns whether the rows still mean the same cells, whatever became of the store, and wherever it is.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daodask._format import human_count, human_date, list_some, plural
from daodask._version import __version__
from daodask.errors import FeatureSpaceError, FormatError, FormatVersionError, SelectionError, StateError
from daodask.format.manifest import DatasetInfo
from daodask.selection import Part, Selection
from daodask.storage import StoreLocation
from daodask.types import Int64Array

if TYPE_CHECKING:
    from daodask.store import Store

__all__ = ["Changed", "SavedSelection", "SelectionChanges", "read_selection"]

#: What to do where the store is no longer what it was.
Changed: TypeAlias = Literal["error", "keep"]

_VERSION: Final = 1
#: Where the facts are in the parquet file's metadata.
_KEY: Final = b"daodask.selection"
_SCHEMA: Final = pa.schema([("dataset", pa.int32()), ("start", pa.int64()), ("length", pa.int64())])


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A dataset as it was: its content and its cells."""

    id: str
    content: str
    n_obs: int

    @classmethod
    def of(cls, info: DatasetInfo) -> _Dataset:
        return cls(info.id, info.checksum or info.path, info.n_obs)


@dataclass(frozen=True, slots=True)
class SelectionChanges:
    """What became of a store since a selection of it was saved.

    Parameters
    ----------
    gone, replaced
        Datasets that are no longer there, or of another content: how many of their cells were selected, by id.
    added
        Ids of datasets that are new; none of their cells is selected.
    """

    gone: Mapping[str, int]
    replaced: Mapping[str, int]
    added: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.gone or self.replaced or self.added)

    def __str__(self) -> str:
        return "; ".join(self._lines()) or "nothing has changed"

    def _lines(self) -> Iterable[str]:
        for what, cells in (("gone", self.gone), ("replaced", self.replaced)):
            if cells:
                named = list_some([f"{name} ({plural(n, 'selected cell')})" for name, n in cells.items()], 5)
                yield f"{what}: {named}"
        if self.added:
            yield f"added: {list_some(list(self.added), 5)}"


@dataclass(frozen=True, eq=False, repr=False)
class SavedSelection:
    """A selection out of a file, see :func:`read_selection`.

    Parameters
    ----------
    store, snapshot
        URL and snapshot number of the store that it was made of.
    features, features_hash
        Name and content hash of the feature space.
    created, written_by
        When, in UTC, and by which version.
    datasets
        Of the feature space, in store order: all that the store held then.
    genes
        Positions of the selected genes; ``None`` for all.
    runs
        Of selected rows: the dataset's position, the first row in it, and how many there are; ``int64 (n, 3)``.
    """

    store: str
    snapshot: int
    features: str
    features_hash: str
    created: str
    written_by: str
    datasets: tuple[_Dataset, ...]
    genes: Int64Array | None
    runs: Int64Array

    @classmethod
    def of(cls, store: Store) -> SavedSelection:
        """What is selected of a store, as it would be saved."""
        return cls(
            store=store.location.url,
            snapshot=store.snapshot.number,
            features=store.feature_space.name,
            features_hash=store.feature_space.hash,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            written_by=f"daodask {__version__}",
            datasets=tuple(_Dataset.of(info) for info in store.dataset_infos),
            genes=store.selection.genes,
            runs=_runs(store.selection.parts),
        )

    @property
    def n_obs(self) -> int:
        """Number of selected cells."""
        return int(self.runs[:, 2].sum())

    @cached_property
    def cells(self) -> Mapping[str, int]:
        """Selected cells of each dataset that has any, by id."""
        counts = np.zeros(len(self.datasets), np.int64)
        np.add.at(counts, self.runs[:, 0], self.runs[:, 2])
        return {d.id: int(n) for d, n in zip(self.datasets, counts, strict=True) if n}

    def _repr_html_(self) -> str:
        from daodask._html import card, selected_section

        sizes = {d.id: d.n_obs for d in self.datasets}
        facts = {
            "Of": f"snapshot {self.snapshot}",
            "Genes": f"{'all' if self.genes is None else human_count(len(self.genes))} of {self.features}",
            "Written": f"{human_date(self.created)} · {self.written_by}",
        }
        body = selected_section({name: (n, sizes[name]) for name, n in self.cells.items()}, len(self.datasets))
        kind, title = "daodask.SavedSelection", plural(self.n_obs, "cell", sum(sizes.values()))
        return card(kind, title, repr(self), body, url=self.store, facts=facts)

    def __repr__(self) -> str:
        genes = "all genes" if self.genes is None else plural(len(self.genes), "gene")
        datasets = plural(len(self.cells), "dataset", len(self.datasets))
        return (
            f"<daodask.SavedSelection> {plural(self.n_obs, 'cell')} of {datasets}, {genes} of {self.features}\n"
            f"  of {self.store}, snapshot {self.snapshot}; {self.created}, {self.written_by}"
        )

    # -- to and from a file ----------------------------------------------------------------------------------------

    def to_parquet(self) -> bytes:
        """The bytes of the file: a row per run of cells, and everything else as JSON in the metadata."""
        facts = {
            "version": _VERSION,
            "snapshot": self.snapshot,
            **{name: getattr(self, name) for name in _FACTS},
            "datasets": [dataclasses.asdict(d) for d in self.datasets],
            "genes": None if self.genes is None else self.genes.tolist(),
        }
        columns = [pa.array(self.runs[:, i], field.type) for i, field in enumerate(_SCHEMA)]
        table = pa.table(columns, schema=_SCHEMA.with_metadata({_KEY: json.dumps(facts)}))
        buffer = io.BytesIO()
        # Runs are in order, so that differences are small: about a byte for a cell that stands alone.
        encodings = dict.fromkeys(_SCHEMA.names, "DELTA_BINARY_PACKED")
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False, column_encoding=encodings)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes, *, where: str = "selection") -> SavedSelection:
        """Read what :meth:`to_parquet` wrote.

        Raises
        ------
        FormatVersionError
            A newer daodask wrote it.
        FormatError
            It is no selection, or a damaged one.
        """
        try:
            table = pq.read_table(pa.BufferReader(data))
            facts = json.loads((table.schema.metadata or {})[_KEY])
            version = facts["version"]
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{where}: expected a selection that daodask saved, got another file") from error
        if version != _VERSION:
            raise FormatVersionError(
                f"{where}: {facts.get('written_by', 'unknown')} wrote it in version {version!r}, this daodask reads "
                f"version {_VERSION}; upgrade daodask"
            )
        try:
            runs = np.stack([_whole_numbers(table.column(n), n) for n in _SCHEMA.names], axis=1)
            datasets = tuple(_Dataset(str(d["id"]), str(d["content"]), int(d["n_obs"])) for d in facts["datasets"])
            genes = None if facts["genes"] is None else np.array(facts["genes"], dtype=np.int64)
            texts = {name: str(facts[name]) for name in _FACTS}
            found = cls(**texts, snapshot=int(facts["snapshot"]), datasets=datasets, genes=genes, runs=runs)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"{where}: not a valid selection: {error!r}") from error
        found._check(where)
        return found

    def _check(self, where: str) -> None:
        """Runs lie in their datasets, one after another."""
        dataset, start, length = self.runs.T
        valid = (dataset >= 0) & (dataset < len(self.datasets)) & (start >= 0) & (length > 0)
        sizes = np.array([*(d.n_obs for d in self.datasets), 0], dtype=np.int64)
        if valid.all():
            valid &= length <= sizes[dataset] - start
            valid[1:] &= (dataset[1:] > dataset[:-1]) | (start[1:] >= start[:-1] + length[:-1])
        if not valid.all():
            raise FormatError(f"{where}: the selection is damaged: run {int(np.argmin(valid))} is not where it can be")

    def _check_genes(self, n_vars: int) -> None:
        if self.genes is not None and len(self.genes) and not 0 <= self.genes.min() <= self.genes.max() < n_vars:
            raise FormatError(f"the selection is damaged: it has genes beyond the {n_vars} of {self.features!r}")

    # -- applied to a store ----------------------------------------------------------------------------------------

    def changes(self, store: Store) -> SelectionChanges:
        """What became of the datasets, compared by content: a copy of the store elsewhere has not changed."""
        now = {info.id: _Dataset.of(info) for info in store.dataset_infos}
        then = {d.id: d for d in self.datasets}
        gone = {name: self.cells.get(name, 0) for name in then if name not in now}
        replaced = {name: self.cells.get(name, 0) for name in then if name in now and now[name] != then[name]}
        return SelectionChanges(gone, replaced, tuple(name for name in now if name not in then))

    def apply(self, store: Store, *, changed: Changed = "error") -> Selection:
        """The selection of a store, see :meth:`daodask.Store.load_selection`."""
        if changed not in ("error", "keep"):
            raise SelectionError(f'expected changed="error" or "keep", got {changed!r}')
        if store.feature_space.hash != self.features_hash:
            raise FeatureSpaceError(
                f"expected a store of the feature space {self.features!r} ({self.features_hash}), got "
                f"{store.feature_space.name!r} ({store.feature_space.hash}); open it with features={self.features!r}"
            )
        self._check_genes(store.feature_space.n_vars)
        changes = self.changes(store)
        if changes and changed == "error":
            raise StateError(
                f"{store.location} is not what the selection was made of, which is snapshot {self.snapshot} of "
                f"{self.store}: {changes}. Open that with open_store(url, snapshot={self.snapshot}), or pass "
                f'changed="keep" for the {plural(self._n_left(changes), "cell")} of datasets that are as they were'
            )
        return self._on(store.selection, {*changes.gone, *changes.replaced})

    def _n_left(self, changes: SelectionChanges) -> int:
        return self.n_obs - sum(changes.gone.values()) - sum(changes.replaced.values())

    def _on(self, whole: Selection, lost: set[str]) -> Selection:
        cuts = np.searchsorted(self.runs[:, 0], np.arange(len(self.datasets) + 1))
        rows = {
            dataset.id: _rows(self.runs[low:high, 1], self.runs[low:high, 2])
            for dataset, low, high in zip(self.datasets, cuts[:-1], cuts[1:], strict=True)
            if dataset.id not in lost
        }
        none = np.empty(0, np.int64)
        parts = tuple(part.with_rows(rows.get(part.dataset, none)) for part in whole.parts)
        every = dataclasses.replace(whole, parts=parts, genes=None)
        return every if self.genes is None else every.take_genes(self.genes)


#: Texts that are in the file under their own names.
_FACTS: Final = ("store", "features", "features_hash", "created", "written_by")


def read_selection(url: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> SavedSelection:
    """Read a file that :meth:`daodask.Store.save_selection` wrote, without applying it to a store.

    Parameters
    ----------
    url
        A local path or any fsspec URL.
    options
        fsspec options.

    Returns
    -------
    SavedSelection
        Its repr says of which store and snapshot it is; ``.changes(store)`` says what became of that.

    Raises
    ------
    StoreNotFoundError
        There is no such file.
    FormatError
        It is no selection, or a damaged one; a newer one is a FormatVersionError.
    """
    location = StoreLocation.parse(url, options)
    return SavedSelection.from_parquet(location.read(), where=str(location))


def _whole_numbers(column: pa.ChunkedArray, name: str) -> Int64Array:
    if not pa.types.is_integer(column.type) or column.null_count:
        raise TypeError(f"expected whole numbers in column {name!r}, got {column.type}, {column.null_count} missing")
    return column.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _runs(parts: Iterable[Part]) -> Int64Array:
    """Runs of neighbouring selected rows."""
    runs = [np.empty((0, 3), np.int64)]
    for number, part in enumerate(parts):
        if part.rows is not None:
            first = np.flatnonzero(np.diff(part.rows, prepend=-2) != 1)
            lengths = np.diff(first, append=len(part.rows))
            runs.append(np.stack([np.full(len(first), number), part.rows[first], lengths], axis=1))
        elif part.n_stored:
            runs.append(np.array([[number, 0, part.n_stored]], dtype=np.int64))
    return np.concatenate(runs)


def _rows(starts: Int64Array, lengths: Int64Array) -> Int64Array:
    """The rows of runs."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)
