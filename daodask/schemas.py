"""What obs of a store looks like, as tasks have it: an address and a digest, of tens of kilobytes of labels.

Each process reads the snapshot once for it, and one that has opened the store not at all.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from daodask.errors import StateError
from daodask.format.manifest import ObsColumn
from daodask.format.spec import OBS_NAMES
from daodask.snapshots import read_snapshot
from daodask.storage import StoreLocation

__all__ = ["ObsSchema", "SchemaAddress"]

#: Schemas that a process keeps: of the stores that are worked with at a time.
_MOST_KEPT: Final = 16

_kept: OrderedDict[SchemaAddress, ObsSchema] = OrderedDict()
_turn = threading.Lock()


@dataclass(frozen=True)
class ObsSchema:
    """Columns and datasets of a feature space: what gives a block's obs the dtypes that the whole store shares.

    Parameters
    ----------
    columns
        Columns, with their dtypes and labels.
    dataset_ids
        Labels of the column ``dataset``.
    """

    columns: tuple[ObsColumn, ...]
    dataset_ids: tuple[str, ...]

    @property
    def strings(self) -> frozenset[str]:
        """The columns of text, the names of the cells among them."""
        return frozenset({OBS_NAMES, *(column.name for column in self.columns if column.dtype == "string")})

    @property
    def digest(self) -> str:
        """Hash of all of it, 32 hexadecimal digits."""
        return hashlib.sha256(repr((self.columns, self.dataset_ids)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class SchemaAddress:
    """Where a schema is found.

    Parameters
    ----------
    store
        The store.
    snapshot
        Number of the snapshot.
    features
        Name of the feature space.
    digest
        Of the schema: at the same URL there may be another store by now.
    """

    store: StoreLocation
    snapshot: int
    features: str
    digest: str = ""

    def of(self, schema: ObsSchema) -> SchemaAddress:
        """The address of this schema, which this process need not read."""
        address = replace(self, digest=schema.digest)
        with _turn:
            _keep(address, schema)
        return address

    def schema(self) -> ObsSchema:
        """The schema (computes: a listing and a read, once in a process).

        Raises
        ------
        StateError
            The store there is another one than that of the address.
        StoreNotFoundError
            The snapshot is gone.
        """
        # Others that wait for their turn are here for the same one.
        with _turn:
            found = _kept.get(self) or self._read()
            _keep(self, found)
        return found

    def _read(self) -> ObsSchema:
        snapshot = read_snapshot(self.store, self.snapshot)
        columns = next((space.obs for space in snapshot.features if space.name == self.features), ())
        found = ObsSchema(columns, tuple(dataset.id for dataset in snapshot.of_features(self.features)))
        if found.digest != self.digest:
            raise StateError(
                f"expected the store that was opened at {self.store}, found another with a snapshot {self.snapshot} of "
                f"its own; open it again"
            )
        return found


def _keep(address: SchemaAddress, schema: ObsSchema) -> None:
    _kept[address] = schema
    _kept.move_to_end(address)
    while len(_kept) > _MOST_KEPT:
        _kept.popitem(last=False)
