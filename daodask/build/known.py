"""What a store knows of a study: its dataset, or its share of those that several were shuffled into. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from daodask.format.manifest import DatasetInfo, Snapshot

__all__ = ["known_study", "members_of", "shared_source", "shuffled_with"]

#: In the source of a shuffled dataset: what is known of each study that it has cells of.
_STUDIES = "studies"


def known_study(snapshot: Snapshot | None, study: str) -> DatasetInfo | None:
    """The entry of a study, as if it had a dataset of its own; ``None`` where the store has none of its cells."""
    if snapshot is None:
        return None
    own = snapshot.dataset.get(study)
    if own is not None:
        return own
    shared = next(_having(snapshot, study), None)
    if shared is None:
        return None
    entry = members_of(shared)[study]
    facts = {name: entry[name] for name in ("n_obs", "fingerprint", "source", "report")}
    return replace(shared, id=study, columns=(), nbytes=0, **facts)


def shuffled_with(snapshot: Snapshot, study: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Datasets that the study was shuffled into with others, and all studies in them; none where it was not."""
    datasets = tuple(_having(snapshot, study))
    return tuple(d.id for d in datasets), tuple(dict.fromkeys(s for d in datasets for s in members_of(d)))


def members_of(dataset: DatasetInfo) -> Mapping[str, Any]:
    """What is known of each study of a shuffled dataset, by its id; nothing of a dataset of one study."""
    members: Mapping[str, Any] = dataset.source.get(_STUDIES, {})
    return members


def shared_source(datasets: Iterable[DatasetInfo]) -> dict[str, Any]:
    """The source of a dataset that these are shuffled into."""
    kept = ("n_obs", "fingerprint", "source", "report")
    return {_STUDIES: {d.id: {name: getattr(d, name) for name in kept} for d in datasets}}


def _having(snapshot: Snapshot, study: str) -> Iterator[DatasetInfo]:
    return (d for d in snapshot.datasets if study in members_of(d))
