"""What a notebook shows of a build before it is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from daodask._format import human_count, human_share, list_some, plural
from daodask._html import Column, bar, card, pill, section, table
from daodask._markup import Html

if TYPE_CHECKING:
    from daodask.build.plan import BuildPlan, StudyPlan

__all__ = ["plan_card"]

_MOST_STUDIES: Final = 60
_COLUMNS: Final = (
    Column("study", "ds-name"),
    Column("action"),
    Column("cells", "ds-number"),
    Column(""),
    Column("blocks", "ds-number"),
    Column("genes matched", "ds-number"),
    Column("not measured", "ds-number"),
    Column("dropped", "ds-number"),
    Column("", "ds-tail"),
)
_CSS_OF: Final = {"build": "ds-good", "replace": "ds-good", "refused": "ds-bad", "failed": "ds-bad"}


def plan_card(plan: BuildPlan) -> Html:
    """The card of a plan: where, onto which genes, and what is done to each study."""
    actions = Counter(study.action for study in plan.studies)
    n_obs = sum(recipe.facts.n_obs for recipe in plan.todo)
    shards = f"shards of {plan.layout.shard_bytes / 2**20:.0f} MiB"
    shuffle = "" if plan.shuffle.kind == "none" else f"{plan.shuffle.kind}, seed {plan.shuffle.seed}"
    facts = {
        "Snapshot": f"now {plan.snapshot or 'none'}",
        "Feature spaces" if len(plan.spaces) > 1 else "Feature space": "; ".join(
            " · ".join(filter(None, (s.features.name, s.features.organism, plural(len(s.features), "gene"))))
            for s in plan.spaces
        ),
        "obs": ", ".join(column.name for column in plan.schema),
        "Layout": f"blocks of {plan.layout.block_rows:,} cells, {plan.layout.codec}, {shards}",
        "Shuffle": shuffle,
        "Studies": ", ".join(f"{human_count(n)} {action}" for action, n in actions.items()),
    }
    studies = section("Studies", human_count(len(plan.studies)), _table(plan.studies))
    title = f"{plural(len(plan.todo), 'study')} to build, {plural(n_obs, 'cell')}"
    return card("daodask.BuildPlan", title, repr(plan), studies, url=plan.location.url, facts=facts)


def _table(studies: Sequence[StudyPlan]) -> Html:
    largest = max((s.recipe.facts.n_obs for s in studies if s.recipe), default=0)
    return table(_COLUMNS, (_row(s, largest) for s in studies), _MOST_STUDIES, "print(plan)")


def _row(study: StudyPlan, largest: int) -> tuple[str, ...]:
    action, recipe = pill(study.action, _CSS_OF.get(study.action, "")), study.recipe
    if recipe is None:
        return study.id, action, "", "", "", "", "", "", study.reason
    genes, n_obs = recipe.genes[recipe.study.matrix], recipe.facts.n_obs
    named = len(recipe.facts.genes[recipe.study.matrix])
    numbers = (len(recipe.blocks) - 1, genes.matched, genes.padded, sum(genes.dropped.values()))
    n_blocks, matched, padded, dropped = map(human_count, numbers)
    ambiguous = list_some(genes.ambiguous, 3)
    note = study.reason or (f"stand for several genes: {ambiguous}" if ambiguous else "")
    share = f"{matched} ({human_share(genes.matched, named)})" if named else matched
    return study.id, action, human_count(n_obs), bar(n_obs, largest), n_blocks, share, padded, dropped, note
