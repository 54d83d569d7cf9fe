"""From a spec and what its studies are, to a frozen plan: what will be done to each study, and where. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import pandas as pd

from daodask.build.genes import GeneLookup, GeneMap, check_matched, check_organism, map_genes
from daodask.build.known import known_study, shuffled_with
from daodask.build.qc import QCColumn, gene_masks, qc_columns
from daodask.build.report import table
from daodask.build.schema import SchemaColumn
from daodask.build.shuffling import ShuffleSpec
from daodask.build.spec import BuildSpec, FeatureSpec, StudySpec
from daodask.errors import FeatureSpaceError, SelectionError, StreamlineError
from daodask.format.features import FeatureSpace
from daodask.format.manifest import ColumnSummary, DatasetInfo, FeatureSpaceInfo, ObsmInfo, Snapshot, merge_schema
from daodask.format.spec import DATASETS, FORMAT_VERSION, SCRATCH, Layout, dataset_path
from daodask.sources.base import Fingerprint, Parts
from daodask.storage import StoreLocation
from daodask.types import BoolArray

__all__ = ["BuildPlan", "Recipe", "Space", "StudyFacts", "StudyPlan", "group_path", "make_plan", "with_datasets"]

#: Part of every dataset's fingerprint: raised when the same input would be streamlined to other bytes.
_STREAMLINE_VERSION: Final = 1


@cache
def _encoders() -> str:
    """Libraries, with their versions, that decide how content becomes bytes."""
    return ", ".join(f"{name} {version(name)}" for name in ("anndata", "numcodecs", "numpy", "pyarrow", "zarr"))


_TO_BUILD: Final = ("build", "replace")
_MISSED: Final = (
    "the cells of {0!r} were shuffled together with those of {1}, which this build does not have or can't build; add "
    "them to the build file, as all are built again"
)
_SHOWN: Final = 8


@dataclass(frozen=True, eq=False)
class StudyFacts:
    """What looking at a study's metadata tells.

    Parameters
    ----------
    n_obs
        Cells.
    genes
        Gene names per matrix of the source that is read (``X``, ``raw`` or ``layers/…``).
    columns
        Its obs as streamlining will make it.
    obsm
        Dense arrays per cell that will be kept.
    uns
        Facts, of the source and of the build file.
    organisms
        The few distinct values of the obs columns that name an organism.
    fingerprint
        Identity of its content.
    parts
        Of the matrices that have no row ranges: how they are cut.
    matrix
        That with the study's values, where the build file names several of which the first that is there is read.
    symbols
        Of its genes, where the build file says which var column has them.
    """

    n_obs: int
    genes: Mapping[str, Sequence[str]]
    columns: tuple[ColumnSummary, ...]
    obsm: tuple[ObsmInfo, ...]
    uns: Mapping[str, Any]
    organisms: pd.DataFrame
    fingerprint: Fingerprint
    parts: Mapping[str, Parts] = field(default_factory=dict)
    matrix: str = ""
    symbols: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Space:
    """A feature space with what maps names onto it."""

    spec: FeatureSpec
    features: FeatureSpace
    lookup: GeneLookup


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything that a study's dataset is made from.

    Parameters
    ----------
    study, space
        Its spec and its feature space.
    facts, genes
        What it is, and where its genes go, per matrix.
    blocks
        Row bounds of its blocks.
    fingerprint
        Of all that the dataset's content depends on; with the versions of the libraries that write it, its token in
        paths, so that the same input finds its own receipts again and writes the same bytes to the same place.
    qc_masks
        Which source genes each percentage of ``qc`` is over.
    """

    study: StudySpec
    space: Space
    facts: StudyFacts
    genes: Mapping[str, GeneMap]
    blocks: tuple[int, ...]
    fingerprint: str
    qc_masks: BoolArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.bool_))

    @property
    def qc(self) -> tuple[QCColumn, ...]:
        """What is measured of each cell."""
        return qc_columns(self.study.qc, self.study.kind)

    @property
    def dataset_path(self) -> str:
        """Where the dataset will be, below the store's URL: other libraries may encode the content to other bytes."""
        token = hashlib.sha256(f"{self.fingerprint} {_encoders()}".encode()).hexdigest()
        return dataset_path(self.study.id, token[:12])

    @property
    def scratch_path(self) -> str:
        """Where staged blocks and receipts will be, below the store's URL."""
        return self.dataset_path.replace(DATASETS, SCRATCH, 1)

    @property
    def unshuffled_path(self) -> str:
        """Where a dataset is built that will be shuffled into another, below the store's URL."""
        return f"{self.scratch_path}/unshuffled"


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """What will be done to one study.

    Parameters
    ----------
    id
        The study.
    action
        ``"build"``, ``"replace"``, ``"unchanged"``, ``"refused"`` or ``"failed"``.
    reason
        Why it is refused or failed.
    recipe
        What it will be made from; absent where looking at it failed.
    known
        Its dataset in the store, where there is one already.
    """

    id: str
    action: str
    reason: str = ""
    recipe: Recipe | None = None
    known: DatasetInfo | None = None


@dataclass(frozen=True, eq=False, repr=False)
class BuildPlan:
    """What a build will do: printable, and nothing is written by making one."""

    location: StoreLocation
    layout: Layout
    schema: tuple[SchemaColumn, ...]
    spaces: tuple[Space, ...]
    studies: tuple[StudyPlan, ...]
    snapshot: int
    shuffle: ShuffleSpec = field(default_factory=ShuffleSpec)
    gone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def todo(self) -> tuple[Recipe, ...]:
        """What will be built."""
        return tuple(s.recipe for s in self.studies if s.recipe is not None and s.action in _TO_BUILD)

    def __repr__(self) -> str:
        header = ("study", "action", "cells", "blocks", "genes matched", "padded", "dropped")
        lines = [f"build into {self.location}, now at snapshot {self.snapshot or 'none'}"]
        lines += [
            f"feature space {s.features.name!r}: {len(s.features):,} genes{_of(s.features.organism)}"
            for s in self.spaces
        ]
        lines += [
            _layout_line(self.layout),
            "",
            table(header, map(_row, self.studies)),
        ]
        lines += [f"\n{s.id}: {s.action}: {s.reason}" for s in self.studies if s.reason]
        lines += [f"\n{s.id}: {_ambiguous(s.recipe)}" for s in self.studies if s.recipe and _ambiguous(s.recipe)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from daodask.build._plan_html import plan_card

        return plan_card(self)


def _layout_line(layout: Layout) -> str:
    shards = f"shards of {layout.shard_bytes / 2**20:.0f} MiB"
    return f"layout: blocks of {layout.block_rows:,} cells, {layout.codec}, {shards}"


def _of(organism: str) -> str:
    return f" of {organism}" if organism else ""


def _ambiguous(recipe: Recipe) -> str:
    """The names that stand for several genes and so are dropped; empty where there are none."""
    names = recipe.genes[recipe.study.matrix].ambiguous
    shown = "; ".join(f"{name} ({' or '.join(ids)})" for name, ids in list(names.items())[:_SHOWN])
    more = "; …" if len(names) > _SHOWN else ""
    return f"{len(names)} names stand for several genes and are dropped: {shown}{more}" if names else ""


def _row(plan: StudyPlan) -> tuple[str, ...]:
    recipe = plan.recipe
    if recipe is None:
        return plan.id, plan.action, "", "", "", "", ""
    genes = recipe.genes[recipe.study.matrix]
    n_blocks = len(recipe.blocks) - 1
    numbers = (recipe.facts.n_obs, n_blocks, genes.matched, genes.padded, sum(genes.dropped.values()))
    return plan.id, plan.action, *(f"{n:,}" for n in numbers)


def make_plan(
    location: StoreLocation,
    spec: BuildSpec,
    spaces: Sequence[Space],
    facts: Mapping[str, StudyFacts | Exception],
    snapshot: Snapshot | None,
    *,
    replace_changed: bool,
) -> BuildPlan:
    """Decide what to do with each study.

    Raises
    ------
    FeatureSpaceError
        The store has a feature space of the same name with other genes.
    """
    current = snapshot or Snapshot(0, "", "")
    by_name = {space.features.name: space for space in spaces}
    _check_spaces(current, by_name)
    studies = tuple(
        _plan_study(study, by_name.get(study.features), facts[study.id], spec, current, replace_changed)
        for study in spec.studies
    )
    gone: dict[str, tuple[str, ...]] = {}
    if spec.shuffle.across:
        studies, gone = _regroup(studies, current)
    checked = _check_schema(studies, current, gone)
    return BuildPlan(location, spec.layout, spec.schema, tuple(spaces), checked, current.number, spec.shuffle, gone)


def _regroup(
    studies: Iterable[StudyPlan], snapshot: Snapshot
) -> tuple[tuple[StudyPlan, ...], dict[str, tuple[str, ...]]]:
    """Have all studies built again that were shuffled with one that is replaced.

    Returns them, and the datasets that go then, each with the studies that are in it.
    """
    plans = {s.id: s for s in studies}
    gone: dict[str, tuple[str, ...]] = {}
    for plan in [p for p in plans.values() if p.action == "replace"]:
        datasets, members = shuffled_with(snapshot, plan.id)
        absent = [m for m in members if m not in plans or plans[m].recipe is None or plans[m].action == "refused"]
        if absent:
            plans[plan.id] = replace(plan, action="refused", reason=_MISSED.format(plan.id, ", ".join(absent)))
            continue
        gone |= dict.fromkeys(datasets or (plan.id,), members or (plan.id,))
        plans |= {m: replace(plans[m], action="replace") for m in members}
    return tuple(plans.values()), gone


def _check_spaces(snapshot: Snapshot, spaces: Mapping[str, Space]) -> None:
    for known in snapshot.features:
        space = spaces.get(known.name)
        if space is not None and space.features.hash != known.hash:
            raise FeatureSpaceError(
                f"the store's feature space {known.name!r} has other genes ({known.n_vars:,}, hash {known.hash[:8]}) "
                f"than the build's ({len(space.features):,}, hash {space.features.hash[:8]}); give the build's another "
                f"name, or use the reference and biotypes that the store was begun with"
            )


def _plan_study(
    study: StudySpec,
    space: Space | None,
    facts: StudyFacts | Exception,
    spec: BuildSpec,
    snapshot: Snapshot,
    replace_changed: bool,
) -> StudyPlan:
    if isinstance(facts, Exception):
        return StudyPlan(study.id, *_refusal(facts))
    if space is None:  # the genes of its feature space could not be made: every study of it failed to be looked at
        return StudyPlan(study.id, "failed", f"feature space {study.features!r} could not be made")
    study = replace(study, matrix=facts.matrix or study.matrix)
    try:
        organism, genes = _map_genes(study, space, facts)
        masks = _qc_masks(study, space, facts, organism)
    except StreamlineError as error:
        return StudyPlan(study.id, *_refusal(error))
    fingerprint = _fingerprint(study, spec, space, facts, genes, masks)
    recipe = Recipe(study, space, facts, genes, spec.layout.block_bounds(facts.n_obs), fingerprint, masks)
    action, reason = _action(study, fingerprint, snapshot, replace_changed)
    return StudyPlan(study.id, action, reason, recipe, known_study(snapshot, study.id))


def _refusal(error: Exception) -> tuple[str, str]:
    return ("refused" if isinstance(error, StreamlineError) else "failed"), str(error)


def _map_genes(study: StudySpec, space: Space, facts: StudyFacts) -> tuple[str, dict[str, GeneMap]]:
    """The study's organism, empty where nothing tells it, and where its genes go."""
    names = facts.genes[study.matrix]
    declared = str(facts.uns.get("organism") or facts.uns.get("organism_ontology_term_id") or "")
    organism = check_organism(space.features, declared, names, facts.organisms, strict=bool(space.spec.organism))
    rules = space.spec.duplicates, study.names
    maps = {matrix: map_genes(g, space.lookup, *rules) for matrix, g in facts.genes.items()}
    check_matched(maps[study.matrix], space.features, space.spec.min_matched)
    return organism or space.features.organism, maps


def _qc_masks(study: StudySpec, space: Space, facts: StudyFacts, organism: str) -> BoolArray:
    """Which of the study's genes each percentage is over, by name, symbol of the reference or of the study itself."""
    names = facts.genes[study.matrix]
    symbols = facts.symbols or [space.lookup.symbol(name, study.names) for name in names if study.qc.shares]
    return gene_masks(study.qc, names, symbols, organism)


def _action(study: StudySpec, fingerprint: str, snapshot: Snapshot, replace_changed: bool) -> tuple[str, str]:
    known = known_study(snapshot, study.id)
    if known is None:
        return "build", ""
    if known.fingerprint == fingerprint:
        return "unchanged", ""
    if replace_changed:
        return "replace", ""
    return "refused", (
        f"the store already has a dataset {study.id!r}, made from another content, spec, feature space or layout; "
        f"build with --replace (replace=True) to put this one in its place, or give it another id"
    )


def _fingerprint(
    study: StudySpec,
    spec: BuildSpec,
    space: Space,
    facts: StudyFacts,
    genes: Mapping[str, GeneMap],
    masks: BoolArray,
) -> str:
    """SHA-256 over everything that the dataset's bytes depend on, and nothing else: not where the source is."""
    made_from = {
        "format": FORMAT_VERSION,
        "streamline": _STREAMLINE_VERSION,
        "source": facts.fingerprint.digest,
        "study": study.without_source,
        "schema": spec.schema,
        "features": space.features.hash,
        "genes": {m: hashlib.sha256(g.target.tobytes()).hexdigest() for m, g in genes.items()},
        "qc": hashlib.sha256(masks.tobytes()).hexdigest(),
        "layout": spec.layout,
        **({"shuffle": spec.shuffle} if spec.shuffle.kind != "none" else {}),
    }
    return hashlib.sha256(_canonical(made_from).encode()).hexdigest()


def _canonical(value: Any) -> str:
    """Text that is the same for the same content: entries of mappings in order of their keys."""
    if is_dataclass(value) and not isinstance(value, type):
        return _canonical({f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{k!r}:{_canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return repr(value)


def group_path(recipes: Iterable[Recipe]) -> str:
    """Where the cells of studies that are shuffled together will be, below the store's URL, as if in one dataset.

    The id is of what they are made from, the token of what encodes them, too.
    """
    made_from = " ".join(r.fingerprint for r in recipes)
    name = hashlib.sha256(made_from.encode()).hexdigest()[:8]
    token = hashlib.sha256(f"{made_from} {_encoders()}".encode()).hexdigest()[:12]
    return dataset_path(f"shuffled_{name}", token)


def _check_schema(studies: tuple[StudyPlan, ...], snapshot: Snapshot, gone: Iterable[str]) -> tuple[StudyPlan, ...]:
    """Refuse studies whose obs columns don't go together with the store's, or with those of the studies before them."""
    accepted: dict[str, list[DatasetInfo]] = {}
    checked = []
    for plan in studies:
        recipe = plan.recipe
        if recipe is None or plan.action not in _TO_BUILD:
            checked.append(plan)
            continue
        name = recipe.space.features.name
        staying = [d for d in snapshot.of_features(name) if d.id not in gone and d.id != plan.id]
        others = accepted.setdefault(name, staying)
        columns = (*recipe.facts.columns, *(c.summary for c in recipe.qc))
        candidate = DatasetInfo(plan.id, "", name, recipe.facts.n_obs, recipe.blocks, (), columns=columns)
        try:
            merge_schema([*others, candidate])
        except SelectionError as error:
            checked.append(replace(plan, action="refused", reason=str(error)))
        else:
            others.append(candidate)
            checked.append(plan)
    return tuple(checked)


def with_datasets(snapshot: Snapshot, spaces: Iterable[FeatureSpace], datasets: Iterable[DatasetInfo]) -> Snapshot:
    """The snapshot with these datasets in it: in the place of one of the same id, or at the end.

    Raises
    ------
    SelectionError
        Obs columns don't go together.
    FeatureSpaceError
        Another builder has meanwhile committed a feature space of the same name with other genes.
    """
    named = {s.name: s for s in snapshot.features}
    for space in spaces:
        known = named.setdefault(space.name, FeatureSpaceInfo(space.name, space.hash, len(space), space.organism))
        if known.hash != space.hash:
            raise FeatureSpaceError(
                f"the store meanwhile has a feature space {space.name!r} with other genes; name yours anew"
            )
    merged = {**{d.id: d for d in snapshot.datasets}, **{d.id: d for d in datasets}}
    changed = replace(snapshot, datasets=tuple(merged.values()))
    with_schema = tuple(replace(s, obs=merge_schema(changed.of_features(s.name), s.obs)) for s in named.values())
    return replace(changed, features=with_schema)
