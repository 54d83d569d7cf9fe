"""How a study's rows are cut for tasks: into blocks, and each block into runs that are held at a time. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from daodask.types import AnyArray, Int64Array

__all__ = ["RUN_ROWS", "Runs"]

#: Rows that a task holds as they come from the source: with 2,000 non-zeros each they take about 200 MB to streamline.
RUN_ROWS: Final = 1024


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows in blocks of ``block_rows``, and each block in runs of ``run_rows``; the last of each has what is left."""

    n_rows: int
    block_rows: int
    run_rows: int = RUN_ROWS

    @property
    def number(self) -> int:
        """Of runs."""
        blocks, rest = divmod(self.n_rows, self.block_rows)
        return blocks * self._per_block + -(-rest // self.run_rows)

    @property
    def _per_block(self) -> int:
        return -(-self.block_rows // self.run_rows)

    def of_block(self, block: int) -> range:
        """The runs of a block."""
        first = block * self._per_block
        return range(first, min(first + self._per_block, self.number))

    def bounds(self, run: int) -> tuple[int, int]:
        """Row bounds of a run."""
        block, within = divmod(run, self._per_block)
        start = block * self.block_rows + within * self.run_rows
        return start, min(start + self.run_rows, (block + 1) * self.block_rows, self.n_rows)

    def locate(self, rows: AnyArray) -> tuple[Int64Array, Int64Array]:
        """The run that each row is of, and its number within that."""
        blocks, within = divmod(rows.astype("int64"), self.block_rows)
        runs, within = divmod(within, self.run_rows)
        return blocks * self._per_block + runs, within
