"""What a snapshot says of a store, for people and for programs; no data is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from daodask._format import human_bytes, human_count, human_date, human_share, list_some, plural, public_url, shorten
from daodask._repr import column_summary_lines
from daodask.errors import FeatureSpaceError, suggest
from daodask.format.manifest import DatasetInfo, ObsColumn, Snapshot
from daodask.snapshots import read_snapshot
from daodask.storage import StoreLocation
from daodask.store import Store, open_store
from daodask.types import Label

__all__ = ["info_text", "info_values", "open_spaces"]

_FREQUENT = 5
_LABEL_WIDTH = 32
_TITLE_WIDTH = 60


def open_spaces(
    url: str | os.PathLike[str] | StoreLocation, *, features: str | None = None, snapshot: int | None = None
) -> tuple[Store, ...]:
    """A store of each feature space at the URL, or of the named one (lazy: nothing but the snapshot is read).

    Raises
    ------
    StoreNotFoundError
        There is no store, or no such snapshot.
    FeatureSpaceError
        It has no such feature space, or none at all.
    """
    location = StoreLocation.parse(url)
    found = read_snapshot(location, snapshot)
    names = [space.name for space in found.features]
    if features is not None and features not in names:
        raise FeatureSpaceError(f"{location} has no feature space {features!r}; {suggest(features, names)}")
    if not names:
        raise FeatureSpaceError(f"{location} has no feature space: nothing was built into it yet")
    chosen = names if features is None else [features]
    return tuple(open_store(location, features=name, snapshot=found.number) for name in chosen)


# -- for programs --------------------------------------------------------------------------------------------------


def info_values(stores: tuple[Store, ...]) -> dict[str, Any]:
    """All of it as what JSON holds: labels with their counts, most frequent first."""
    snapshot = stores[0].snapshot
    return {
        "url": public_url(stores[0].location.url),
        "snapshot": snapshot.number,
        "created": snapshot.created,
        "written_by": snapshot.written_by,
        "features": [_space_values(store) for store in stores],
    }


def _space_values(store: Store) -> dict[str, Any]:
    space, datasets = store.feature_space, store.dataset_infos
    return {
        "name": space.name,
        "organism": space.organism,
        "n_vars": space.n_vars,
        "n_obs": store.n_obs,
        "nbytes": _nbytes(datasets),
        "datasets": [_dataset_values(info) for info in datasets],
        "obs": [_column_values(column, datasets) for column in store.obs_schema],
    }


def _dataset_values(info: DatasetInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "n_obs": info.n_obs,
        "nbytes": info.nbytes,
        "matrices": {
            m.name: {"kind": m.kind, "dtype": m.dtype, "nnz": m.nnz, "by_gene": m.by_gene > 0} for m in info.matrices
        },
        "obsm": {m.name: m.width for m in info.obsm},
        "uns": dict(info.uns),
    }


def _column_values(column: ObsColumn, datasets: tuple[DatasetInfo, ...]) -> dict[str, Any]:
    summaries = [info.column[column.name] for info in datasets if column.name in info.column]
    n_missing = sum(i.column[column.name].n_missing if column.name in i.column else i.n_obs for i in datasets)
    values: dict[str, Any] = {"name": column.name, "dtype": column.dtype, "n_missing": n_missing}
    if column.dtype == "category":
        values["counts"] = [[label, n] for label, n in _counts(column, datasets).most_common()]
    lows = [s.low for s in summaries if s.low is not None]
    highs = [s.high for s in summaries if s.high is not None]
    if lows and highs:
        values |= {"low": min(lows), "high": max(highs)}
    return values


def _counts(column: ObsColumn, datasets: Iterable[DatasetInfo]) -> Counter[Label]:
    totals: Counter[Label] = Counter()
    for info in datasets:
        if column.name in info.column:
            summary = info.column[column.name]
            totals.update(dict(zip(summary.categories, summary.counts, strict=True)))
    return +totals


def _nbytes(datasets: Iterable[DatasetInfo]) -> int:
    return sum(info.nbytes for info in datasets)


# -- for people ----------------------------------------------------------------------------------------------------


def info_text(stores: tuple[Store, ...]) -> str:
    """Datasets, cells, genes and sizes, and a summary of each obs column with its most frequent values."""
    snapshot = stores[0].snapshot
    sections = [_head(public_url(stores[0].location.url), snapshot, stores), *map(_space_text, stores)]
    return "\n\n".join(sections)


def _head(url: str, snapshot: Snapshot, stores: tuple[Store, ...]) -> str:
    datasets = [info for store in stores for info in store.dataset_infos]
    n_obs = sum(info.n_obs for info in datasets)
    lines = [
        url,
        f"snapshot {snapshot.number}, {human_date(snapshot.created)}, {snapshot.written_by}",
        ", ".join(
            [
                plural(len(stores), "feature space"),
                plural(len(datasets), "dataset"),
                plural(n_obs, "cell"),
                human_bytes(_nbytes(datasets)),
            ]
        ),
    ]
    return "\n".join(lines)


def _space_text(store: Store) -> str:
    space = store.feature_space
    facts = [plural(space.n_vars, "gene"), *([space.organism] if space.organism else [])]
    totals = f"{plural(store.n_obs, 'cell')}, {human_bytes(_nbytes(store.dataset_infos))}"
    lines = [f"features {space.name!r}: {', '.join(facts)}; {totals}", ""]
    lines += [f"  {line}" for line in _aligned(_DATASET_HEADER, map(_dataset_row, store.dataset_infos))]
    lines += ["", f"  obs: {plural(len(store.obs_schema), 'column')}, and dataset, obs_names"]
    lines += [f"    {line}" for line in _column_lines(store)]
    return "\n".join(lines).rstrip()


_DATASET_HEADER = ("dataset", "cells", "non-zeros a cell", "on disk", "X", "about")


def _dataset_row(info: DatasetInfo) -> tuple[str, ...]:
    x = info.matrix["X"]
    density = human_count(round(x.nnz / info.n_obs)) if info.n_obs else ""
    about = ", ".join(_facts(info.uns))
    kind = f"{x.kind}, {x.dtype}{', by gene too' if x.by_gene else ''}"
    return info.id, human_count(info.n_obs), density, human_bytes(info.nbytes), kind, about


def _facts(uns: Mapping[str, Any]) -> Iterator[str]:
    for name in ("title", "organism", "doi"):
        if isinstance(uns.get(name), str) and uns[name]:
            yield shorten(uns[name], _TITLE_WIDTH)


def _aligned(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Columns of text: names and facts to the left, numbers to the right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        sides = ("<", ">", ">", ">", "<", "<")
        yield "  ".join(f"{c:{side}{w}}" for c, side, w in zip(row, sides, widths, strict=True)).rstrip()


def _column_lines(store: Store) -> Iterator[str]:
    for line, column in zip(column_summary_lines(store), store.obs_schema, strict=True):
        yield line
        counts = _counts(column, store.dataset_infos)
        if counts:
            frequent = (f"{shorten(x, _LABEL_WIDTH)} {human_share(n, store.n_obs)}" for x, n in counts.most_common())
            yield f"  {list_some(frequent, _FREQUENT)}"
