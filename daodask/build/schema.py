"""The store's obs schema: which columns every dataset has, of what dtype, in whose words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from daodask.build._section import Section, expected, label
from daodask.errors import SpecError, UnknownNameError
from daodask.format.spec import RESERVED_OBS_COLUMNS
from daodask.ontology import ontology_version
from daodask.types import Label

__all__ = ["SCHEMAS", "TERM_IDS", "SchemaColumn", "Vocabulary", "check_target", "read_schema"]

#: What is put behind the name of a column for that of its terms' ids, as CELLxGENE does.
TERM_IDS: Final = "_ontology_term_id"

_DTYPES: Final = ("category", "string", "int", "float", "bool")
#: What takes the place of a label under ``missing:``.
_POLICIES: Final = ("error", "keep")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The terms that a column's values are of.

    Parameters
    ----------
    ontologies
        Name and version of each.
    under
        Ids: a term must be one of them or lie below one; any term may be used where there is none.
    term_ids
        ``"no"``; ``"yes"``: their ids are stored in a second column; ``"required"``: and the source must have it,
        unless a study's own rule fills the column.
    obsolete
        What becomes of obsolete terms given by id: ``"error"`` or ``"keep"``.
    separators
        What stands between the ids of a cell that has several.
    """

    ontologies: tuple[tuple[str, str], ...]
    under: tuple[str, ...] = ()
    term_ids: str = "no"
    obsolete: str = "error"
    separators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SchemaColumn:
    """A column of the store's obs schema.

    Parameters
    ----------
    name
        Of the column.
    required
        Whether every study must give it.
    missing
        What stands for absent values; ``None``: nothing does.
    incomplete
        What to do where values are absent still: ``"error"``, ``"keep"``; by default an error where it is required.
    dtype
        ``category`` (of text), ``string``, ``int``, ``float`` or ``bool``; empty: as the source has it.
    values
        What its values may be, beside ``missing`` and the terms of the vocabulary; empty: anything.
    vocabulary
        The ontologies that its labels are of.
    """

    name: str
    required: bool = False
    missing: Label | None = None
    incomplete: str = ""
    dtype: str = ""
    values: tuple[Label, ...] = ()
    vocabulary: Vocabulary | None = None

    @property
    def may_lack(self) -> bool:
        """Whether cells may have no value."""
        return self.incomplete == "keep" or (not self.incomplete and not self.required)

    @property
    def term_ids(self) -> str:
        """Name of the column of its terms' ids."""
        return f"{self.name}{TERM_IDS}"


# -- ready-made ----------------------------------------------------------------------------------------------------

_NOT_KNOWN: Final = ("unknown", "na")
_TERMS: Final[Mapping[str, Any]] = {"required": True, "term_ids": "required"}

#: Columns of CELLxGENE's schema 5 to 7, as a build file would have them.
_CELLXGENE: Final[Mapping[str, Mapping[str, Any]]] = {
    "assay": {**_TERMS, "ontology": "EFO", "under": ["EFO:0002772", "EFO:0010183"]},
    "cell_type": {**_TERMS, "ontology": ["CL", "ZFA", "FBbt", "WBbt"], "values": _NOT_KNOWN},
    "development_stage": {
        **_TERMS,
        "ontology": ["HsapDv", "MmusDv", "UBERON", "ZFA", "FBdv", "WBls"],
        "values": _NOT_KNOWN,
        # Those that schema 5 told to use became obsolete in 2024, without one that replaces them.
        "obsolete": "keep",
    },
    "disease": {
        **_TERMS,
        "ontology": ["MONDO", "PATO"],
        "under": ["MONDO:0000001", "MONDO:0021178", "PATO:0000461"],
        "separator": ["||"],
    },
    "self_reported_ethnicity": {
        **_TERMS,
        "ontology": "HANCESTRO",
        "values": (*_NOT_KNOWN, "multiethnic"),
        "separator": ["||", ","],
    },
    "sex": {**_TERMS, "ontology": "PATO", "under": "PATO:0001894", "values": _NOT_KNOWN},
    "tissue": {**_TERMS, "ontology": ["UBERON", "CL", "CVCL", "ZFA", "FBbt", "WBbt"]},
    "tissue_type": {
        "required": True,
        "dtype": "category",
        "values": ["tissue", "organoid", "cell culture", "primary cell culture", "cell line"],
    },
    "suspension_type": {"required": True, "dtype": "category", "values": ["cell", "nucleus", "na"]},
    "donor_id": {"required": True, "dtype": "category"},
    "is_primary_data": {"required": True, "dtype": "bool"},
    "organism": {"ontology": "NCBITaxon", "term_ids": True},
}

#: Ready-made schemas by name.
SCHEMAS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {"cellxgene": _CELLXGENE}


# -- of the build file ---------------------------------------------------------------------------------------------


def read_schema(top: Section, name: str) -> tuple[SchemaColumn, ...]:
    """The columns of the ready-made schema of that name, empty for none, with what ``obs:`` says over it."""
    given = top.section("obs")
    ready = SCHEMAS.get(name, {})
    columns = {column: {**ready.get(column, {}), **given.section(column).values} for column in given.values}
    merged = Section(given.path, {**ready, **columns})
    return tuple(_schema_column(column, merged) for column in merged.values)


def check_target(name: str, parent: Section) -> None:
    """Refuse names that a column of a store can't have."""
    if name in RESERVED_OBS_COLUMNS:
        raise SpecError(f"{parent.at(name)}: {name!r} is a column that every store has by itself; choose another name")
    if not name or "/" in name:
        raise SpecError(f"{parent.path}: expected a column name without '/', got {name!r}")


_KEYS: Final = (
    "required",
    "missing",
    "dtype",
    "values",
    "ontology",
    "under",
    "term_ids",
    "obsolete",
    "separator",
)


def _schema_column(name: str, parent: Section) -> SchemaColumn:
    check_target(name, parent)
    section = parent.section(name, _KEYS)
    missing, incomplete = _missing(section)
    vocabulary = _vocabulary(section)
    dtype = section.choice("dtype", ("", *_DTYPES), "category" if vocabulary else "")
    if vocabulary and dtype != "category":
        raise SpecError(f"{section.at('dtype')}: expected category to go with ontology:, got {dtype!r}")
    column = SchemaColumn(
        name, section.flag("required"), missing, incomplete, dtype, _labels(section, "values"), vocabulary
    )
    for key, values in (("missing", () if missing is None else (missing,)), ("values", column.values)):
        _check_kinds(section.at(key), dtype, values)
    return column


def _missing(section: Section) -> tuple[Label | None, str]:
    """The label that stands for absent values, and the policy where there is none."""
    if "missing" not in section:
        return None, ""
    value = label(section.get("missing"), section.at("missing"))
    return (None, value) if isinstance(value, str) and value in _POLICIES else (value, "")


def _labels(section: Section, key: str) -> tuple[Label, ...]:
    value = section.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not value:
        raise expected(section.at(key), "a list of labels", value)
    return tuple(label(v, f"{section.at(key)}[{i}]") for i, v in enumerate(value))


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "category": (str,),
    "string": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


def _check_kinds(path: str, dtype: str, values: tuple[Label, ...]) -> None:
    """Refuse labels that a column of the dtype can't have."""
    for value in values:
        kinds = _KINDS.get(dtype)
        if kinds is not None and (not isinstance(value, kinds) or isinstance(value, bool) != (dtype == "bool")):
            raise expected(path, f"what a column of dtype {dtype} holds", value)


def _vocabulary(section: Section) -> Vocabulary | None:
    if "ontology" not in section:
        for key in ("under", "term_ids", "obsolete", "separator"):
            if key in section:
                raise SpecError(f"{section.at(key)}: expected ontology: to go with it")
        return None
    return Vocabulary(
        ontologies=tuple((name, _version(name, section.at("ontology"))) for name in section.texts("ontology")),
        under=section.texts("under"),
        term_ids=_term_ids(section),
        obsolete=section.choice("obsolete", ("error", "keep"), "error"),
        separators=section.texts("separator"),
    )


def _term_ids(section: Section) -> str:
    value = section.get("term_ids")
    if value == "required":
        return "required"
    return "yes" if section.flag("term_ids") else "no"


def _version(name: str, path: str) -> str:
    try:
        return ontology_version(name)
    except UnknownNameError as error:
        raise SpecError(f"{path}: {error}") from error
