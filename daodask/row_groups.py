"""What the footer of a parquet file knows of its row groups, so that a condition may need no look at their cells."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow.parquet as pq

from daodask.predicates import Extent
from daodask.types import Label

__all__ = ["row_group_bounds", "row_group_extents"]


def row_group_bounds(metadata: pq.FileMetaData) -> list[int]:
    """Row bounds of the row groups, ``[0, …, n_rows]``."""
    bounds = [0]
    for group in range(metadata.num_row_groups):
        bounds.append(bounds[-1] + metadata.row_group(group).num_rows)
    return bounds


def row_group_extents(metadata: pq.FileMetaData, columns: Collection[str]) -> list[dict[str, Extent]]:
    """What is known of columns in each row group; one that is not there has no value in any of its rows."""
    places = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    wanted = {name: places[name] for name in columns if name in places}
    return [_extents(metadata.row_group(group), wanted) for group in range(metadata.num_row_groups)]


def _extents(group: pq.RowGroupMetaData, places: dict[str, int]) -> dict[str, Extent]:
    found = {}
    for name, place in places.items():
        statistics = group.column(place).statistics
        missing = _n_missing(statistics)
        if missing is None or missing < group.num_rows:
            found[name] = Extent(None, *_ends(statistics), missing=missing != 0)
    return found


def _n_missing(statistics: pq.Statistics | None) -> int | None:
    """Rows without a value; ``None`` where the writer didn't count them."""
    return int(statistics.null_count) if statistics is not None and statistics.has_null_count else None


def _ends(statistics: pq.Statistics | None) -> tuple[Label | None, Label | None]:
    if statistics is None or not statistics.has_min_max:
        return None, None
    ends: list[Any] = [statistics.min, statistics.max]
    # NaN is no end of anything; bytes are of a text whose writer didn't say so.
    known = all(isinstance(end, str | int | float) and end == end for end in ends)  # noqa: PLR0124
    return (ends[0], ends[1]) if known else (None, None)
