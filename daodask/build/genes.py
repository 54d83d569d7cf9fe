"""Gene names onto a feature space: reference tables, name resolution and the checks on genes and organism."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from daodask.build.naming import GeneNames
from daodask.errors import SpecError, StreamlineError, suggest
from daodask.format.features import SYMBOL, FeatureSpace
from daodask.ontology import ORGANISMS
from daodask.types import BoolArray

if TYPE_CHECKING:
    from daodask.build.spec import FeatureSpec

__all__ = [
    "DROP_REASONS",
    "GeneLookup",
    "GeneMap",
    "check_matched",
    "check_organism",
    "feature_space",
    "gene_id",
    "gene_list",
    "infer_organism",
    "map_genes",
    "read_reference",
    "read_synonyms",
]

_REFERENCE_COLUMNS: Final = ("id", SYMBOL, "version", "length", "biotype")
_SYNONYM_COLUMNS: Final = (SYMBOL, "prev_symbol", "alias_symbol", "ensembl_gene_id")

#: Why a source gene is dropped, by its code in place of a target column.
DROP_REASONS: Final[Mapping[int, str]] = {
    -1: "unknown",
    -2: "other biotype",
    -3: "ambiguous",
    -4: "spike-in",
    -5: "antibody",
    -6: "excluded",
}
_UNKNOWN, _OTHER_BIOTYPE, _AMBIGUOUS, _SPIKE, _ANTIBODY, _EXCLUDED = DROP_REASONS
_NOT_GENES: Final = ("spike-in", "antibody", "excluded")
_DEFAULT_NAMES: Final = GeneNames()

#: Names of what is in a matrix beside genes, as far as no table knows them.
_SPIKE_IN: Final = re.compile(r"ERCC[-_]\d{5}(?:\.\d+)?")
_ANTIBODY_NAME: Final = re.compile(
    r"^(?:ADT|HTO|adt|hto|prot|protein|antibody)[-_:]|^(?:Hashtag|hashtag|HASHTAG)[-_ ]?\d"
    r"|[-_.](?:TotalSeq[-_]?[ABCD]?|Total[ABCD]|ADT|HTO|protein|antibody)(?:-\d+)?$"
)

_EXAMPLES: Final = 5
_CANDIDATES: Final = 8

#: Ids of flies' and worms' genes.
_OTHER_ID: Final = re.compile(r"FBgn\d{7}|WBGene\d{8}")
_ENSEMBL: Final = re.compile(r"(ENS([A-Z]*?)G\d{11})(?:\.\d+)?(?:_PAR_Y)?")
_ENSEMBL_SPECIES: Final = {
    "": "Homo sapiens",
    "MUS": "Mus musculus",
    "SSC": "Sus scrofa",
    "RNO": "Rattus norvegicus",
    "DAR": "Danio rerio",
    "GAL": "Gallus gallus",
    "MMU": "Macaca mulatta",
    "MFA": "Macaca fascicularis",
    "PTR": "Pan troglodytes",
    "CJA": "Callithrix jacchus",
    "MIC": "Microcebus murinus",
    "BTA": "Bos taurus",
    "OAR": "Ovis aries",
    "ECA": "Equus caballus",
    "CAF": "Canis lupus familiaris",
    "OCU": "Oryctolagus cuniculus",
    "XET": "Xenopus tropicalis",
}
#: Other ways to name an organism, in lower case.
_ORGANISMS: Final = {
    **{name.lower(): name for name in ORGANISMS.values()},
    **{identifier.lower(): name for identifier, name in ORGANISMS.items()},
    "human": "Homo sapiens",
    "mouse": "Mus musculus",
    "pig": "Sus scrofa",
    "rat": "Rattus norvegicus",
    "zebrafish": "Danio rerio",
}
_NO_ORGANISM: Final = frozenset({"", "unknown", "na", "nan", "none"})
_ORGANISM_COLUMNS: Final = ("organism", "organism_ontology_term_id")


# -- tables --------------------------------------------------------------------------------------------------------


def read_reference(data: bytes) -> pd.DataFrame:
    """Read a gene table: CSV without header, plain or gzipped, of id, symbol, version, length and biotype; or a list.

    Returns
    -------
    DataFrame
        ``symbol``, ``version``, ``length`` (int64) and ``biotype`` by ``id``, whose version suffix is stripped; no
        column for a list, which has an id or symbol per line.

    Raises
    ------
    SpecError
        It is no such table, or has an id twice.
    """
    frame = _read_table(data, ",", "the reference table", header=None)
    if len(frame.columns) == 1:
        return gene_list(frame[0])
    if len(frame.columns) != len(_REFERENCE_COLUMNS):
        wanted = ", ".join(_REFERENCE_COLUMNS)
        raise SpecError(
            f"the reference table: expected the columns {wanted} without a header, or one of ids or symbols, got "
            f"{len(frame.columns)} columns"
        )
    frame.columns = pd.Index(_REFERENCE_COLUMNS)
    try:
        frame["length"] = frame["length"].astype(np.int64)
    except ValueError as error:
        raise SpecError(f"the reference table: expected whole numbers as length and no header: {error}") from error
    full = [str(name) for name in frame.pop("id")]
    frame.index = pd.Index(list(map(gene_id, full)), dtype=object)
    # The copy of a pseudoautosomal gene on Y has the id of the one on X.
    on_y = np.array([name.endswith("_PAR_Y") for name in full], dtype=np.bool_)
    return _unique(frame.loc[~(frame.index.duplicated() & on_y)])


def gene_list(names: Iterable[str]) -> pd.DataFrame:
    """The table of a list of ids or symbols, in their order: an index without columns.

    Raises
    ------
    SpecError
        One of them is there twice.
    """
    return _unique(pd.DataFrame(index=pd.Index([gene_id(str(name).strip()) for name in names], dtype=object)))


def _unique(genes: pd.DataFrame) -> pd.DataFrame:
    repeated = genes.index[genes.index.duplicated()]
    if len(repeated):
        raise SpecError(f"the reference table: expected unique gene ids, got {repeated[0]!r} twice")
    return genes


def read_synonyms(data: bytes) -> pd.DataFrame:
    """Read the HGNC complete set (TSV with a header, plain or gzipped) as one row per name of a gene.

    Returns
    -------
    DataFrame
        ``name``; ``kind``: ``approved``, ``previous`` or ``alias``; the gene's approved ``symbol`` and Ensembl ``id``,
        which may be empty.

    Raises
    ------
    SpecError
        It lacks one of the columns symbol, prev_symbol, alias_symbol and ensembl_gene_id.
    """
    frame = _read_table(data, "\t", "the table of synonyms", header=0)
    absent = [c for c in _SYNONYM_COLUMNS if c not in frame]
    if absent:
        raise SpecError(f"the table of synonyms: expected a column {absent[0]!r}; {suggest(absent[0], frame.columns)}")
    rows = [
        (name, kind, symbol, identifier)
        for symbol, previous, alias, identifier in frame[list(_SYNONYM_COLUMNS)].itertuples(index=False)
        for kind, names in (("approved", symbol), ("previous", previous), ("alias", alias))
        for name in names.split("|")
        if name
    ]
    return pd.DataFrame(rows, columns=pd.Index(["name", "kind", SYMBOL, "id"]), dtype=object)


def _read_table(data: bytes, separator: str, what: str, header: int | None) -> pd.DataFrame:
    """A table of texts; no text means missing, as genes may be called NA or NAN."""
    try:
        plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        frame = pd.read_csv(
            io.BytesIO(plain), sep=separator, header=header, dtype=object, keep_default_na=False, na_filter=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise SpecError(f"{what}: expected text with columns, plain or gzipped: {error}") from error
    return frame.astype(object)


# -- the feature space ---------------------------------------------------------------------------------------------


def gene_id(name: str) -> str:
    """The name without the version suffix that Ensembl ids may have; any other name as it is."""
    match = _ENSEMBL.fullmatch(name)
    return match[1] if match else name


def feature_space(spec: FeatureSpec, reference: pd.DataFrame | None, studies: Sequence[Sequence[str]]) -> FeatureSpace:
    """The ordered genes that studies are streamlined onto.

    Parameters
    ----------
    spec
        What the build file says of it.
    reference
        The gene table; ``None`` where the studies' own names make the feature space.
    studies
        The gene names of each study; only the latter case looks at them.

    Raises
    ------
    SpecError
        There is no such biotype, no gene is left, or the gene ids are not of the declared organism, or of several.
    """
    if reference is not None:
        chosen = _of_biotypes(spec, reference)
        var = chosen[[c for c in (SYMBOL, "length", "biotype") if c in chosen]]
    else:
        var = pd.DataFrame(index=pd.Index(_own_names(str(spec.reference), studies), dtype=object))
    if not len(var):
        what = "a gene of these biotypes" if reference is not None else "studies that have a gene in common"
        raise SpecError(f"feature space {spec.name!r}: expected {what}, got none")
    several = _ensembl_organisms(var.index)
    if len(several) > 1:
        raise SpecError(
            f"feature space {spec.name!r}: expected genes of one organism, got Ensembl ids of {', '.join(several)}; "
            f"give each its own feature space"
        )
    declared, inferred = _canonical(spec.organism), several[0] if several else ""
    if declared and inferred and declared != inferred:
        raise SpecError(f"feature space {spec.name!r}: expected genes of {declared}, got Ensembl ids of {inferred}")
    return FeatureSpace(spec.name, var.copy(), declared or inferred)


def _of_biotypes(spec: FeatureSpec, reference: pd.DataFrame) -> pd.DataFrame:
    if not spec.biotypes:
        return reference
    if "biotype" not in reference:
        raise SpecError(f"feature space {spec.name!r}: expected a reference table to go with biotypes:, got a list")
    known = set(reference["biotype"])
    for biotype in spec.biotypes:
        if biotype not in known:
            hint = suggest(biotype, sorted(known))
            raise SpecError(f"feature space {spec.name!r}: the reference has no gene of biotype {biotype!r}; {hint}")
    return reference.loc[reference["biotype"].isin(spec.biotypes)]


def _own_names(how: str, studies: Sequence[Sequence[str]]) -> list[str]:
    """Union (by first appearance) or intersection (in the first study's order) of the studies' gene ids."""
    lists = [dict.fromkeys(gene_id(name) for name in names if name and not _not_a_gene(name)) for names in studies]
    if how == "union" or not lists:
        return list(dict.fromkeys(name for names in lists for name in names))
    return [name for name in lists[0] if all(name in names for names in lists[1:])]


# -- names to genes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GeneLookup:
    """What each known name stands for in a feature space: a column of it, or the reason why there is none.

    A name is, in this order, a gene id, a symbol of the reference, an approved symbol of the synonyms' table, a
    previous one or an alias. The first of them that knows the name decides; where that knows several genes, the name is
    ambiguous and never guessed. Only the table's own Ensembl id tells which gene of one symbol is the approved one.

    Parameters
    ----------
    space
        The feature space.
    genes
        Ids of the genes that are known, in the feature space or not.
    symbols
        Their symbols, empty where there is none.
    targets
        Column of each, or the code of :data:`DROP_REASONS` for genes of other biotypes.
    rows
        Number of the gene that a name stands for, or the code for ambiguous ones.
    candidates
        Numbers of the genes that an ambiguous name may stand for.
    """

    space: FeatureSpace
    genes: Sequence[str]
    symbols: Sequence[str]
    targets: Sequence[int]
    rows: Mapping[str, int]
    candidates: Mapping[str, tuple[int, ...]]

    @classmethod
    def build(
        cls, space: FeatureSpace, reference: pd.DataFrame | None = None, synonyms: pd.DataFrame | None = None
    ) -> GeneLookup:
        """Make the lookup of a feature space out of the tables of :func:`read_reference` and :func:`read_synonyms`."""
        column = {str(g): i for i, g in enumerate(space.var.index)}
        known = space.var if reference is None else reference
        ids = {str(g): i for i, g in enumerate(known.index)}
        symbols = [str(s) for s in known[SYMBOL]] if SYMBOL in known else [""] * len(ids)
        named: dict[str, set[int]] = {}
        for name, row in zip(symbols, ids.values(), strict=True):
            named.setdefault(name, set()).add(row)
        found = {**_synonym_rows(ids, named, synonyms), **named, **{g: {row} for g, row in ids.items()}}
        found.pop("", None)
        return cls(
            space=space,
            genes=list(ids),
            symbols=symbols,
            targets=[column.get(g, _OTHER_BIOTYPE) for g in ids],
            rows={name: next(iter(rows)) if len(rows) == 1 else _AMBIGUOUS for name, rows in found.items()},
            candidates={name: tuple(sorted(rows)) for name, rows in found.items() if len(rows) > 1},
        )

    def code(self, name: str, names: GeneNames = _DEFAULT_NAMES) -> int:
        """Column of a name, or a code of :data:`DROP_REASONS`.

        Raises
        ------
        StreamlineError
            The build file says that the name stands for something that is no gene.
        """
        if name in names.overrides:
            return self._override(name, names.overrides[name])
        row = self._row(name, names.case)
        if row >= 0:
            return self.targets[row]
        return _not_a_gene(name) or row if row == _UNKNOWN else row

    def symbol(self, name: str, names: GeneNames = _DEFAULT_NAMES) -> str:
        """Symbol of the one gene that a name stands for; empty where there is none."""
        row = self._row(names.overrides.get(name) or name, names.case)
        return self.symbols[row] if row >= 0 else ""

    def candidate_ids(self, name: str) -> tuple[str, ...]:
        """Ids of the genes that an ambiguous name may stand for: the first few, and how many more there are."""
        rows = (
            self.candidates.get(name)
            or self._folded(str.upper).get(name, ())
            or self._folded(_fold).get(_fold(name), ())
        )
        more = (f"{len(rows) - _CANDIDATES} more",) if len(rows) > _CANDIDATES else ()
        return (*(self.genes[row] for row in rows[:_CANDIDATES]), *more)

    def _override(self, name: str, gene: str | None) -> int:
        if gene is None:
            return _EXCLUDED
        row = self._row(gene, "exact")
        if row >= 0:
            return self.targets[row]
        why = "which stands for several genes" if row == _AMBIGUOUS else "which is none"
        raise StreamlineError(f"genes.overrides.{name}: expected the id or symbol of a gene, got {gene!r}, {why}")

    def _row(self, name: str, case: str) -> int:
        found = self.rows.get(name)
        if found is None:
            found = self.rows.get(gene_id(name))
        if found is None and case == "ignore":
            found = _only(self._folded(_fold).get(_fold(name), ()))
        elif found is None and case == "capitals":
            found = _only(self._folded(str.upper).get(name, ()))
        return _UNKNOWN if found is None else found

    def _folded(self, fold: Callable[[str], str]) -> Mapping[str, tuple[int, ...]]:
        """Genes by their symbols and ids in another case."""
        known = self._folds.get(fold)
        if known is None:
            table: dict[str, set[int]] = {}
            for names in (self.symbols, self.genes):
                for row, name in enumerate(names):
                    table.setdefault(fold(name), set()).add(row)
            table.pop("", None)
            known = self._folds[fold] = {name: tuple(sorted(rows)) for name, rows in table.items()}
        return known

    @cached_property
    def _folds(self) -> dict[Callable[[str], str], Mapping[str, tuple[int, ...]]]:
        return {}


def _fold(name: str) -> str:
    return name.casefold()


def _only(rows: Sequence[int]) -> int | None:
    """The one gene of several; that they are ambiguous; ``None`` where there is none."""
    return (rows[0] if len(rows) == 1 else _AMBIGUOUS) if rows else None


def _not_a_gene(name: str) -> int:
    """Why a name that no table knows is none of a gene; 0 where nothing tells."""
    if _SPIKE_IN.fullmatch(name):
        return _SPIKE
    return _ANTIBODY if _ANTIBODY_NAME.search(name) else 0


def _synonym_rows(
    ids: Mapping[str, int], named: dict[str, set[int]], synonyms: pd.DataFrame | None
) -> dict[str, set[int]]:
    """Genes of each further name; settles those of ``named`` that the table's Ensembl ids tell apart."""
    if synonyms is None:
        return {}
    levels: dict[str, dict[str, set[int]]] = {"alias": {}, "previous": {}, "approved": {}}
    for name, kind, symbol, identifier in synonyms[["name", "kind", SYMBOL, "id"]].itertuples(index=False):
        rows = {ids[identifier]} if identifier in ids else named.get(symbol, set())
        # A list of symbols has them as ids.
        rows = rows or ({ids[symbol]} if symbol in ids else set())
        if rows:
            levels[kind].setdefault(name, set()).update(rows)
    for name, rows in levels["approved"].items():
        if len(named.get(name, ())) > 1:
            named[name] = rows
    return levels["alias"] | levels["previous"] | levels["approved"]


@dataclass(frozen=True, eq=False)
class GeneMap:
    """Where each source gene goes.

    Parameters
    ----------
    target
        Column of the feature space per source gene, negative where it is dropped.
    n_vars
        Genes of the feature space.
    matched
        Source genes that have a target.
    summed
        Those of them beyond the first on one target.
    padded
        Genes of the feature space that the study did not measure.
    dropped
        Source genes without a target, by reason.
    examples
        The first few names of ``summed`` and of each reason.
    ambiguous
        Each ambiguous name, with the ids of the genes that it may stand for.
    """

    target: npt.NDArray[np.int32]
    n_vars: int
    matched: int
    summed: int
    padded: int
    dropped: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def measured(self) -> BoolArray:
        """Which genes of the feature space the study measured."""
        mask = np.zeros(self.n_vars, dtype=np.bool_)
        mask[self.target[self.target >= 0]] = True
        return mask

    @property
    def known(self) -> float:
        """Fraction of the source genes, without spike-ins and the like, that the reference knows."""
        genes = len(self.target) - sum(self.dropped.get(reason, 0) for reason in _NOT_GENES)
        return (genes - self.dropped["unknown"]) / max(1, genes)


def map_genes(
    names: Iterable[object], lookup: GeneLookup, duplicates: str = "sum", rules: GeneNames = _DEFAULT_NAMES
) -> GeneMap:
    """Map a study's gene names onto a feature space.

    Parameters
    ----------
    names
        Ids or symbols, one per column of the study's matrix.
    lookup
        What they stand for.
    duplicates
        What to do about several source genes on one target: ``"sum"`` them, or ``"error"``.
    rules
        What the build file says of names.

    Raises
    ------
    StreamlineError
        Several source genes have one target, which ``duplicates="error"`` refuses; a name stands for several genes,
        which ``ambiguous="error"`` refuses; or it must be an Ensembl id and is none.
    """
    texts = [str(n) for n in names]
    if rules.ensembl:
        _check_ids(texts)
    codes = np.fromiter((lookup.code(t, rules) for t in texts), dtype=np.int32, count=len(texts))
    ambiguous = {texts[i]: lookup.candidate_ids(texts[i]) for i in np.flatnonzero(codes == _AMBIGUOUS)}
    if ambiguous and rules.ambiguous == "error":
        raise _ambiguous_names(ambiguous)
    beyond_first = (codes >= 0) & pd.Series(codes).duplicated().to_numpy()
    if duplicates == "error" and beyond_first.any():
        raise _repeated_target(texts, codes, int(codes[beyond_first][0]), lookup.space)
    groups = {"summed": beyond_first, **{reason: codes == code for code, reason in DROP_REASONS.items()}}
    matched, summed = int((codes >= 0).sum()), int(beyond_first.sum())
    return GeneMap(
        target=np.maximum(codes, -1),
        n_vars=len(lookup.space),
        matched=matched,
        summed=summed,
        padded=len(lookup.space) - (matched - summed),
        dropped={reason: int(groups[reason].sum()) for reason in DROP_REASONS.values()},
        examples={g: tuple(texts[i] for i in np.flatnonzero(mask)[:_EXAMPLES]) for g, mask in groups.items()},
        ambiguous=ambiguous,
    )


def _check_ids(names: Sequence[str]) -> None:
    """Refuse names that are no ids, be it of genes or of spike-ins."""
    strange = [n for n in names if not (_ENSEMBL.fullmatch(n) or _OTHER_ID.fullmatch(n) or _SPIKE_IN.fullmatch(n))]
    if strange:
        shown = ", ".join(map(repr, strange[:_EXAMPLES]))
        raise StreamlineError(
            f"expected the Ensembl ids of genes, as the schema has them, got {len(strange):,} other names: {shown}; "
            f"say which var column has the ids (genes: <var column>)"
        )


def _ambiguous_names(names: Mapping[str, tuple[str, ...]]) -> StreamlineError:
    shown = "; ".join(f"{name!r} ({' or '.join(ids)})" for name, ids in list(names.items())[:_EXAMPLES])
    more = "; …" if len(names) > _EXAMPLES else ""
    return StreamlineError(
        f"expected names that stand for one gene each, got {len(names):,} that stand for several: {shown}{more}; say "
        f"which is meant (genes: {{overrides: {{<name>: <id>}}}}), or drop them (ambiguous: drop)"
    )


def _repeated_target(
    names: Sequence[str], codes: npt.NDArray[np.int32], target: int, space: FeatureSpace
) -> StreamlineError:
    sources = ", ".join(repr(names[int(i)]) for i in np.flatnonzero(codes == target))
    return StreamlineError(
        f"expected one source gene per gene of {space.name!r}, got {sources} for {space.var.index[target]!r}; "
        f"say duplicates: sum to add them up"
    )


def check_matched(genes: GeneMap, space: FeatureSpace, min_matched: float) -> None:
    """Refuse a study whose genes are not those of the feature space.

    Raises
    ------
    StreamlineError
        No source gene has a target, or fewer than ``min_matched`` of them are known at all.
    """
    if genes.matched and genes.known >= min_matched:
        return
    examples = ", ".join(repr(n) for n in genes.examples["unknown"] or genes.examples["other biotype"]) or "none"
    raise StreamlineError(
        f"expected genes of the feature space {space.name!r}, got {len(genes.target)} of which {genes.known:.1%} are "
        f"known (at least {min_matched:.1%} must be) and {genes.matched} have a place in it, for example {examples}; "
        f"say where the gene names are (genes: <var column>) or choose another feature space"
    )


# -- organisms -----------------------------------------------------------------------------------------------------


def infer_organism(names: Iterable[object]) -> str:
    """The organism whose Ensembl ids are among the names; empty where there are none or several organisms'."""
    found = _ensembl_organisms(names)
    return found[0] if len(found) == 1 else ""


def _ensembl_organisms(names: Iterable[object]) -> tuple[str, ...]:
    """The organisms whose Ensembl ids are among the names; a virus' genes come with those of its host."""
    matches = (_ENSEMBL.fullmatch(text) for n in names if (text := str(n)).startswith("ENS"))
    species = dict.fromkeys(m[2] for m in matches if m)
    return tuple(_ENSEMBL_SPECIES[s] for s in species if s in _ENSEMBL_SPECIES)


def check_organism(
    space: FeatureSpace, declared: str, names: Iterable[object], obs: pd.DataFrame, *, strict: bool = False
) -> str:
    """Refuse a study of another organism than the feature space's.

    Parameters
    ----------
    space
        The feature space; one without an organism takes every study.
    declared
        What the build file or the source says the organism is; empty where neither does.
    names
        The study's gene names.
    obs
        The source's cell metadata, whose columns ``organism`` and ``organism_ontology_term_id`` are looked at.
    strict
        The build file declares the feature space's organism, so that a study has to tell its own: symbols alone don't,
        as those of a pig are 92 % human.

    Returns
    -------
    str
        The organism of the study, empty where nothing tells it.

    Raises
    ------
    StreamlineError
        The organism is another one, or unknown where ``strict``.
    """
    found = list(_evidence(declared, names, obs))
    for organism, where in found:
        if space.organism and organism != space.organism:
            raise StreamlineError(
                f"expected a study of {space.organism}, the organism of the feature space {space.name!r}, got "
                f"{organism} ({where}); give the study a feature space of its organism"
            )
    if found:
        return found[0][0]
    if strict and space.organism:
        raise StreamlineError(
            f"expected a study of {space.organism}, the organism of the feature space {space.name!r}, got one whose "
            f"organism neither its obs nor its gene names tell; say uns: {{organism: …}}"
        )
    return ""


def _evidence(declared: str, names: Iterable[object], obs: pd.DataFrame) -> Iterable[tuple[str, str]]:
    """Organisms of a study, and what tells them, the most telling first."""
    if _canonical(declared):
        yield _canonical(declared), "uns.organism"
    for column in _ORGANISM_COLUMNS:
        if column in obs:
            for organism in dict.fromkeys(_canonical(v) for v in obs[column].dropna().unique()):
                if organism:
                    yield organism, f"obs column {column!r}"
    inferred = infer_organism(names)
    if inferred:
        yield inferred, "Ensembl ids"


def _canonical(organism: object) -> str:
    """The scientific name of an organism as far as it is a known one, else the text as it is."""
    text = " ".join(str(organism).replace("_", " ").split())
    return "" if text.lower() in _NO_ORGANISM else _ORGANISMS.get(text.lower(), text)
