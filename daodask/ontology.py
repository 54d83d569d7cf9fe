"""Ontologies: terms, their labels and synonyms, and what lies above and below them. Pure and offline.

Names are exact: a term goes by its id or its label. A synonym, another spelling or an obsolete term is never taken for
one, but the error says which term may be meant.
"""

from __future__ import annotations

import difflib
import gzip
import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Final

from daodask.errors import DependencyError, FormatError, SelectionError, SourceError, UnknownNameError, suggest
from daodask.types import LabelSet

__all__ = ["ORGANISMS", "Ontology", "Term", "ontology_version"]

#: Organisms that single-cell studies are of, by their id in NCBITaxon: all that is needed of an ontology of gigabytes.
ORGANISMS: Final[Mapping[str, str]] = {
    "NCBITaxon:6239": "Caenorhabditis elegans",
    "NCBITaxon:7227": "Drosophila melanogaster",
    "NCBITaxon:7955": "Danio rerio",
    "NCBITaxon:8364": "Xenopus tropicalis",
    "NCBITaxon:9031": "Gallus gallus",
    "NCBITaxon:9483": "Callithrix jacchus",
    "NCBITaxon:9541": "Macaca fascicularis",
    "NCBITaxon:9544": "Macaca mulatta",
    "NCBITaxon:9593": "Gorilla gorilla",
    "NCBITaxon:9598": "Pan troglodytes",
    "NCBITaxon:9606": "Homo sapiens",
    "NCBITaxon:9615": "Canis lupus familiaris",
    "NCBITaxon:9796": "Equus caballus",
    "NCBITaxon:9823": "Sus scrofa",
    "NCBITaxon:9913": "Bos taurus",
    "NCBITaxon:9940": "Ovis aries",
    "NCBITaxon:9986": "Oryctolagus cuniculus",
    "NCBITaxon:10090": "Mus musculus",
    "NCBITaxon:10116": "Rattus norvegicus",
    "NCBITaxon:30608": "Microcebus murinus",
}
_ORGANISMS_VERSION: Final = "1"

_NEAR: Final = 0.75
_MOST_NEAR: Final = 3


@dataclass(frozen=True, slots=True)
class Term:
    """A term of an ontology.

    Parameters
    ----------
    id, label
        As in ``CL:0000084`` and ``T cell``; the label may be empty.
    ancestors
        Ids of all terms above it, each with the number of steps to it.
    synonyms
        Exact ones.
    obsolete
        Whether it is no longer to be used.
    replaced_by, consider
        Ids of the term to use in its place; and of those one of which may do.
    """

    id: str
    label: str
    ancestors: Mapping[str, int] = field(default_factory=dict)
    synonyms: tuple[str, ...] = ()
    obsolete: bool = False
    replaced_by: str = ""
    consider: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Ontology:
    """The terms of an ontology, made by :meth:`load` or :meth:`from_obo`.

    Each method takes a term by id or by label, and answers in kind: ids for an id, labels for a label.

    Parameters
    ----------
    name, version
        As in ``CL`` and ``v2026-03-26``.
    terms
        By id, obsolete ones too.
    """

    name: str
    version: str
    terms: Mapping[str, Term]

    @classmethod
    def load(cls, name: str) -> Ontology:
        """An ontology of the extra ``ontology``: CL, UBERON, EFO, MONDO, HANCESTRO, PATO, HsapDv, …; offline.

        ``NCBITaxon`` is a table of 20 organisms, for which nothing has to be installed: the whole needs gigabytes.

        Raises
        ------
        DependencyError
            The extra is not installed.
        UnknownNameError
            There is no such ontology in it.
        """
        return _load(name)

    @classmethod
    def from_obo(cls, path: str | os.PathLike[str], *, relations: Iterable[str] = ("is_a",)) -> Ontology:
        """Read an OBO file, plain or gzipped.

        Parameters
        ----------
        path
            A local file.
        relations
            What makes a term lie above another: ``is_a``, ``part_of``, …

        Raises
        ------
        SourceError
            There is no such file.
        FormatError
            It is no OBO file.
        """
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise SourceError(f"expected an OBO file at {os.fspath(path)}: {error.strerror}") from error
        return _parse_obo(data, os.fspath(path), frozenset(relations))

    # -- terms -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.terms)

    def __contains__(self, name: object) -> bool:
        """Whether it is the id or the label of a term that is not obsolete."""
        found = self.find(str(name))
        return found is not None and not found.obsolete

    def __repr__(self) -> str:
        obsolete = sum(t.obsolete for t in self.terms.values())
        version = f" {self.version}" if self.version else ""
        return f"<daodask.Ontology> {self.name}{version}: {len(self) - obsolete:,} terms, {obsolete:,} obsolete"

    def find(self, name: str) -> Term | None:
        """The term of this id or label; obsolete where no other has the label, ``None`` where there is none."""
        return self.terms.get(name) or self._by_label.get(name)

    def term(self, name: str) -> Term:
        """The term of this id or label.

        Raises
        ------
        UnknownNameError
            There is none, or it is obsolete; the message says what may be meant.
        """
        found = self.find(name)
        if found is None or found.obsolete:
            raise UnknownNameError(f"{self.name} has no term {name!r}: {self.explain(name)}")
        return found

    def id(self, name: str) -> str:
        """Id of a term, as in ``CL:0000084``."""
        return self.term(name).id

    def label(self, name: str) -> str:
        """Label of a term, as in ``T cell``."""
        return self.term(name).label

    @cached_property
    def _by_label(self) -> dict[str, Term]:
        """Terms by label; those in use before obsolete ones, and of several obsolete ones the first."""
        table: dict[str, Term] = {}
        for term in sorted(self.terms.values(), key=lambda t: t.obsolete):
            known = table.setdefault(term.label, term)
            if known is not term and not term.obsolete and term.label:
                raise FormatError(
                    f"ontology {self.name}: expected unique labels, got {term.label!r} for {known.id} and {term.id}"
                )
        table.pop("", None)
        return table

    # -- above and below -------------------------------------------------------------------------------------------

    def ancestors(self, name: str, *, include_self: bool = True) -> LabelSet:
        """All terms above a term and, unless it is asked not to, the term itself."""
        term = self.term(name)
        return self._answer(name, (*term.ancestors, *((term.id,) if include_self else ())))

    def descendants(self, name: str, *, include_self: bool = True) -> LabelSet:
        """All terms below a term and, unless it is asked not to, the term itself; what ``store.subset`` takes.

        Examples
        --------
        ``store.subset(cell_type=cl.descendants("T cell"))``, and by id
        ``store.subset(cell_type_ontology_term_id=cl.descendants("CL:0000084"))``.
        """
        term = self.term(name)
        below = (i for i, t in self.terms.items() if term.id in t.ancestors and not t.obsolete)
        return self._answer(name, (*below, *((term.id,) if include_self else ())))

    def children(self, name: str) -> LabelSet:
        """The terms one step below a term."""
        term = self.term(name)
        return self._answer(name, (i for i, t in self.terms.items() if t.ancestors.get(term.id) == 1))

    def _answer(self, asked: str, ids: Iterable[str]) -> LabelSet:
        if asked in self.terms:
            return LabelSet(ids)
        return LabelSet(self.terms[i].label for i in ids if i in self.terms)

    def coarsen(self, names: Iterable[str], to: Iterable[str], *, other: str | None = None) -> dict[str, str]:
        """What each term is at a coarser level, for ``obs["cell_type"].map(…)``.

        Parameters
        ----------
        names
            Labels or ids of terms, in any order and number.
        to
            The terms that make up the level, such as ``["T cell", "B cell", "myeloid cell"]`` or
            ``children("leukocyte")``.
        other
            What stands for a term that none of them is above; left out where it is ``None``.

        Returns
        -------
        dict
            Name to the most specific of ``to`` that is the term itself or lies above it.

        Raises
        ------
        UnknownNameError
            A name is of no term.
        SelectionError
            A term lies below several of ``to`` of which none is below another.
        """
        level = {self.id(name): name for name in to}
        coarse: dict[str, str] = {}
        for name in dict.fromkeys(names):
            found = self._coarse(name, level)
            if found is not None or other is not None:
                coarse[name] = level[found] if found is not None else str(other)
        return coarse

    def _coarse(self, name: str, level: Mapping[str, str]) -> str | None:
        term = self.term(name)
        above = [i for i in level if i == term.id or i in term.ancestors]
        lowest = [i for i in above if not any(i in self.terms[j].ancestors for j in above)]
        if len(lowest) > 1:
            several = ", ".join(repr(level[i]) for i in lowest)
            raise SelectionError(f"{name!r} is below {several}, of which none is below another; leave one of them out")
        return lowest[0] if lowest else None

    # -- what may be meant -----------------------------------------------------------------------------------------

    def explain(self, name: str) -> str:
        """Why a name is of no term in use, and what may be meant, as a clause."""
        found = self.find(name)
        if found is not None:
            return self._obsolete(found) if found.obsolete else f"it is {self._shown(found.id)}"
        meant = self._spelled.get(_plain(name), ())
        if meant:
            return f"did you mean {' or '.join(map(self._shown, meant[:_MOST_NEAR]))}?"
        ids = dict.fromkeys(i for spelling in self._near(_plain(name)) for i in self._spelled[spelling])
        return f"did you mean {' or '.join(map(self._shown, list(ids)[:_MOST_NEAR]))}?" if ids else "no name is near"

    def _near(self, spelling: str) -> list[str]:
        """Names that have all its words, the shortest first, then names of nearly the same letters."""
        words = set(spelling.split())
        longer = sorted((s for s in self._spelled if words and words <= set(s.split())), key=lambda s: (len(s), s))
        similar = difflib.get_close_matches(spelling, self._spelled, n=_MOST_NEAR, cutoff=_NEAR)
        return [*longer[: _MOST_NEAR - 1], *similar]

    def suggestion(self, name: str) -> str:
        """Label of the one term that a name is a synonym or another spelling of, or that replaces it; else empty."""
        found = self.find(name)
        if found is not None:
            target = self.terms.get(found.replaced_by) if found.obsolete else found
            return target.label if target else ""
        meant = self._spelled.get(_plain(name), ())
        return self.terms[meant[0]].label if len(meant) == 1 else ""

    def _obsolete(self, term: Term) -> str:
        if term.replaced_by:
            return f"{self._shown(term.id)} is obsolete, replaced by {self._shown(term.replaced_by)}"
        if term.consider:
            return f"{self._shown(term.id)} is obsolete; consider {' or '.join(map(self._shown, term.consider))}"
        return f"{self._shown(term.id)} is obsolete, and nothing replaces it"

    def _shown(self, identifier: str) -> str:
        term = self.terms.get(identifier)
        return f"{term.label!r} ({identifier})" if term else identifier

    @cached_property
    def _spelled(self) -> dict[str, list[str]]:
        """Ids of terms in use by each of their names, spelled plainly; labels before synonyms."""
        table: dict[str, list[str]] = {}
        live = [t for t in self.terms.values() if not t.obsolete and t.label]
        for term, name in [(t, t.label) for t in live] + [(t, s) for t in live for s in t.synonyms]:
            ids = table.setdefault(_plain(name), [])
            if term.id not in ids:
                ids.append(term.id)
        return table


_WORDS: Final = re.compile(r"[^\W_]+")


def _plain(name: str) -> str:
    """A name without what spellings differ in: case, hyphens, spaces, the plural of its last word."""
    text = " ".join(_WORDS.findall(name.casefold()))
    return text[:-1] if text.endswith("s") and not text.endswith("ss") else text


# -- of the extra --------------------------------------------------------------------------------------------------


def ontology_version(name: str) -> str:
    """Version of an ontology that :meth:`Ontology.load` loads, without loading it.

    Raises
    ------
    DependencyError, UnknownNameError
        As of :meth:`Ontology.load`.
    """
    if name == "NCBITaxon":
        return _ORGANISMS_VERSION
    known = _guide().CXGSchema().supported_ontologies
    if name not in known:
        raise UnknownNameError(f"there is no ontology {name!r}; {suggest(name, sorted(known), most=20)}")
    return str(known[name]["version"])


def _guide() -> ModuleType:
    try:
        return importlib.import_module("cellxgene_ontology_guide.supported_versions")
    except ImportError as error:
        raise DependencyError(
            "ontologies come with the package cellxgene-ontology-guide, which is not installed: "
            "pip install 'daodask[ontology]'"
        ) from error


@cache
def _load(name: str) -> Ontology:
    version = ontology_version(name)
    if name == "NCBITaxon":
        return Ontology(name, version, {i: Term(i, label) for i, label in ORGANISMS.items()})
    guide = _guide()
    terms = {i: _term(i, entry) for i, entry in guide.CXGSchema().ontology(name).items()}
    guide.clear_ontology_file_cache()  # it would keep the descriptions of all terms, tens of MB
    return Ontology(name, version, terms)


def _term(identifier: str, entry: Mapping[str, Any]) -> Term:
    return Term(
        id=identifier,
        label=entry.get("label") or "",
        ancestors=entry["ancestors"],
        synonyms=tuple(entry.get("synonyms", ())),
        obsolete=bool(entry.get("deprecated")),
        replaced_by=entry.get("replaced_by", ""),
        consider=tuple(i.removeprefix("obo.").replace("_", ":") for i in entry.get("consider", ())),
    )


# -- OBO -----------------------------------------------------------------------------------------------------------

_SYNONYM: Final = re.compile(r'"((?:[^"\\]|\\.)*)"\s+EXACT\b')
_ESCAPED: Final = re.compile(r"\\(.)")
_COMMENT: Final = re.compile(r"(?<!\\)\s!.*$|\s*(?<!\\)\{[^{}]*\}\s*$")

_Stanza = dict[str, list[str]]


def _parse_obo(data: bytes, where: str, relations: frozenset[str]) -> Ontology:
    """An ontology of the tags that matter: ids, names, synonyms, what is above, what is obsolete and replaced."""
    try:
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise FormatError(f"{where}: expected an OBO file in UTF-8, plain or gzipped: {error}") from error
    (_, header), *stanzas = _stanzas(text)
    found = [s for kind, s in stanzas if kind == "Term"]
    if not found or any("id" not in s for s in found):
        raise FormatError(f"{where}: expected an OBO file with [Term] stanzas that have an id")
    parents = {s["id"][0]: _parents(s, relations) for s in found}
    stem = os.path.basename(where).partition(".")[0]
    name = header.get("ontology", [stem])[0]
    terms = {s["id"][0]: _obo_term(s, _above(s["id"][0], parents.get)) for s in found}
    return Ontology(name.upper() if name.islower() else name, header.get("data-version", [""])[0], terms)


def _stanzas(text: str) -> Iterator[tuple[str, _Stanza]]:
    """Kind and tags of the header (of no kind) and of each stanza."""
    kind, tags = "", _Stanza()
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            yield kind, tags
            kind, tags = line[1:-1], _Stanza()
            continue
        tag, separator, value = line.partition(":")
        if separator and not line.startswith("!"):
            tags.setdefault(tag, []).append(value.strip() if tag == "synonym" else _value(value))
    yield kind, tags


def _value(text: str) -> str:
    """The value of a tag, without trailing comment and modifiers, and unescaped."""
    return _ESCAPED.sub(r"\1", _COMMENT.sub("", _COMMENT.sub("", text))).strip()


def _parents(stanza: _Stanza, relations: frozenset[str]) -> list[str]:
    above = list(stanza.get("is_a", ())) if "is_a" in relations else []
    for pair in stanza.get("relationship", ()):
        relation, _, target = pair.partition(" ")
        if relation in relations:
            above.append(target.strip())
    return above


def _above(start: str, parents: Callable[[str, list[str]], list[str]]) -> dict[str, int]:
    """Each term above, by the least number of steps."""
    steps: dict[str, int] = {}
    level, distance = parents(start, []), 1
    while level:
        new = [i for i in dict.fromkeys(level) if i not in steps and i != start]
        steps.update(dict.fromkeys(new, distance))
        level, distance = [p for i in new for p in parents(i, [])], distance + 1
    return steps


def _obo_term(stanza: _Stanza, ancestors: Mapping[str, int]) -> Term:
    matches = (_SYNONYM.match(s) for s in stanza.get("synonym", ()))
    return Term(
        id=stanza["id"][0],
        label=stanza.get("name", [""])[0],
        ancestors=ancestors,
        synonyms=tuple(_ESCAPED.sub(r"\1", m[1]) for m in matches if m),
        obsolete=stanza.get("is_obsolete", ["false"])[0] == "true",
        replaced_by=stanza.get("replaced_by", [""])[0],
        consider=tuple(stanza.get("consider", ())),
    )
