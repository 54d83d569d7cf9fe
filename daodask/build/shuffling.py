"""What the build file says about shuffling. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from daodask.build._section import Section, expected

__all__ = ["ShuffleSpec", "read_shuffle"]

_KINDS: Final = ("none", "within", "global")
_DATASET_ROWS: Final = 2**20


@dataclass(frozen=True, slots=True)
class ShuffleSpec:
    """How cells are shuffled on writing.

    Parameters
    ----------
    kind
        ``"none"``: not; ``"within"``: the cells of each study among themselves; ``"global"``: those of all studies of a
        feature space that this build adds, which become one dataset or several.
    seed
        Of the permutation.
    dataset_rows
        Of a global shuffle: the most cells of a dataset. All datasets have as many, to within one.
    """

    kind: str = "none"
    seed: int = 0
    dataset_rows: int = _DATASET_ROWS

    @property
    def within(self) -> bool:
        """Whether each study is shuffled by itself."""
        return self.kind == "within"

    @property
    def across(self) -> bool:
        """Whether studies are shuffled together."""
        return self.kind == "global"


def read_shuffle(top: Section) -> ShuffleSpec:
    """``shuffle:`` of a build file: a kind, or a mapping with one."""
    value, path = top.get("shuffle"), top.at("shuffle")
    if value is None:
        return ShuffleSpec()
    if isinstance(value, str):
        return ShuffleSpec(top.choice("shuffle", _KINDS, "none"))
    if not isinstance(value, Mapping):
        raise expected(path, "none, within, global, or a mapping with kind: and seed:", value)
    keys = ("kind", "seed", "dataset_rows") if value.get("kind") == "global" else ("kind", "seed")
    section = Section.of(value, path, keys)
    section.required("kind")
    seed = section.get("seed") if "seed" in section else 0
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise expected(section.at("seed"), "a whole number of at least 0", seed)
    return ShuffleSpec(section.choice("kind", _KINDS, "none"), seed, section.positive("dataset_rows", _DATASET_ROWS))
