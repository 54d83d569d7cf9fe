"""How a study's gene names are read: where they are, and what to do about those that no table settles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from daodask.build._section import Section, expected

__all__ = ["NAMING_KEYS", "GeneNames", "read_names"]

_AMBIGUOUS: Final = ("drop", "error")
_CASES: Final = ("exact", "capitals", "ignore")

#: Keys of a feature space that say how names are read; a study has them under ``genes:``.
NAMING_KEYS: Final = ("overrides", "ambiguous", "case")


@dataclass(frozen=True, slots=True)
class GeneNames:
    """How names become genes.

    Parameters
    ----------
    overrides
        What a name stands for, whatever the tables say: the id or symbol of a gene, or ``None`` to drop it.
    ambiguous
        What becomes of names that stand for several genes: ``"drop"``, which is reported, or ``"error"``.
    case
        ``"exact"``: names are taken as the organism's are written, so that ``Cd3e`` is of a mouse and no human
        ``CD3E``; ``"capitals"``: names all in capitals, too; or ``"ignore"``. Older annotations have genes that case
        alone tells apart, such as ``C2orf15`` and ``C2ORF15``: the latter two are for studies that are known to need
        them.
    ensembl
        Whether every name must be the id of a gene, as CELLxGENE has it.
    symbols
        Column of the source's var with symbols, which only the patterns of ``qc:`` look at.
    """

    overrides: Mapping[str, str | None] = field(default_factory=dict)
    ambiguous: str = "drop"
    case: str = "exact"
    ensembl: bool = False
    symbols: str = ""


def read_names(section: Section, default: GeneNames) -> GeneNames:
    """What a section says of names, over what holds for its feature space."""
    return replace(
        default,
        overrides={**default.overrides, **_overrides(section)},
        ambiguous=section.choice("ambiguous", _AMBIGUOUS, default.ambiguous),
        case=section.choice("case", _CASES, default.case),
    )


def _overrides(section: Section) -> dict[str, str | None]:
    given = section.section("overrides")
    for name, gene in given.values.items():
        if not name or not (gene is None or (isinstance(gene, str) and gene)):
            raise expected(given.at(name), "the id or symbol of a gene, or null to drop the name", gene)
    return dict(given.values)
