"""Names of cells: unique within a study, as a study's id and a cell's name are the key of the cell. Pure."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd

from daodask.errors import StreamlineError

__all__ = ["NAME_RULES", "cell_names"]

#: What to do where a name occurs twice in a study: refuse it, or number those after the first.
NAME_RULES: Final = ("unique", "make_unique")

_SHOWN: Final = 3


def cell_names(names: pd.Index[Any], rule: str, dataset_id: str) -> pd.Index[str]:
    """The names of a study's cells as the store has them.

    Parameters
    ----------
    names
        As the source has them.
    rule
        ``"unique"``: they must be; ``"make_unique"``: those that occur before get ``-1``, ``-2``, … at their end, as
        ``AnnData.obs_names_make_unique`` does it.
    dataset_id
        What errors call the study.

    Returns
    -------
    Index
        Unique texts, ``object``.

    Raises
    ------
    StreamlineError
        A name occurs twice and the rule is ``"unique"``.
    """
    texts = pd.Index([str(n) for n in names.to_numpy(dtype=object)], dtype=object)
    repeated = texts.duplicated()
    if not repeated.any():
        return texts
    if rule == "make_unique":
        return _numbered(texts, repeated.tolist())
    again = list(dict.fromkeys(texts[repeated]))
    shown = ", ".join(map(repr, again[:_SHOWN])) + (", …" if len(again) > _SHOWN else "")
    raise StreamlineError(
        f"study {dataset_id!r}: expected unique cell names (obs_names), got {int(repeated.sum()):,} cells named as one "
        f"before them: {shown}; if they are different cells, say obs_names: make_unique"
    )


def _numbered(texts: pd.Index[str], repeated: list[bool]) -> pd.Index[str]:
    taken, counts, numbered = set(texts), dict.fromkeys(texts, 0), []
    for text, again in zip(texts, repeated, strict=True):
        name = text
        while again and name in taken:
            counts[text] += 1
            name = f"{text}-{counts[text]}"
        taken.add(name)
        numbered.append(name)
    return pd.Index(numbered, dtype=object)
