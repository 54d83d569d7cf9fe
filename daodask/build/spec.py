"""The build file: YAML (or a dict of the same shape) into a frozen, fully checked :class:`BuildSpec`."""

from __future__ import annotations

import datetime as dt
import fnmatch
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import yaml

from daodask.build._section import Section, expected, items, label, texts
from daodask.build.cell_names import NAME_RULES
from daodask.build.merge import StoredStudy, is_store_entry, read_feature_space, stored_studies
from daodask.build.naming import NAMING_KEYS, GeneNames, read_names
from daodask.build.qc import QCSpec, read_qc
from daodask.build.schema import SCHEMAS, SchemaColumn, check_target, read_schema
from daodask.build.shuffling import ShuffleSpec, read_shuffle
from daodask.errors import SourceError, SpecError, suggest
from daodask.format.codecs import CODECS
from daodask.format.features import FeatureSpace
from daodask.format.spec import ID_PATTERN, MATRIX_KINDS, Layout
from daodask.sources.base import Source, SourceAddress
from daodask.storage import StoreLocation
from daodask.types import Label

__all__ = ["BuildSpec", "FeatureSpec", "ObsRule", "StudySpec", "load_spec"]

#: References that are made of the studies' own gene names.
_OWN_NAMES: Final = ("union", "intersection")
_MIN_MATCHED: Final = 0.1
#: What a ready-made schema brings where the build file says nothing: the genes of its studies, and raw counts.
_READY_FEATURES: Final = "genes"
_READY_MATRIX: Final = "raw|X"
_JOIN: Final = "_"
_MATRIX: Final = re.compile(r"X|raw|layers/[^/]+")
_VARIABLE: Final = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?::-([^}]*))?\}|([A-Za-z_]\w*))")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG]i?)?B?")
_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """A feature space to streamline onto.

    ``reference`` is the location of a gene table or list, the very list of ids or symbols, or ``"union"`` /
    ``"intersection"`` of the studies' own names; or the feature space itself, onto which genes go by their ids alone.
    ``organism`` is empty unless the build file declares it, and ``min_matched`` is the fraction of a study's genes that
    must be known for it to be taken.
    """

    name: str
    reference: StoreLocation | str | tuple[str, ...] | FeatureSpace
    synonyms: StoreLocation | None = None
    biotypes: tuple[str, ...] = ()
    duplicates: str = "sum"
    organism: str = ""
    min_matched: float = _MIN_MATCHED
    names: GeneNames = field(default_factory=GeneNames)


@dataclass(frozen=True, slots=True)
class ObsRule:
    """How a study fills an obs column: from source columns (joined where several), mapped; or a constant ``value``.

    A label that is mapped to ``None`` becomes missing.
    """

    name: str
    columns: tuple[str, ...] = ()
    join: str = _JOIN
    map: Mapping[Label, Label | None] = field(default_factory=dict)
    value: Label | None = None


@dataclass(frozen=True, slots=True)
class StudySpec:
    """One study: where it is, what to read of it, and how it maps onto the store.

    ``matrix`` and the values of ``layers`` are ``"X"``, ``"raw"`` or ``"layers/<name>"``; ``matrix`` may be several
    with ``|`` between, of which the first that is there is read. ``obsm`` and ``keep`` hold shell patterns.
    ``obs_names`` is ``"unique"`` or ``"make_unique"``, see :func:`~daodask.build.cell_names.cell_names`.
    """

    id: str
    source: SourceAddress | Source
    features: str
    matrix: str = "X"
    kind: str = "counts"
    dtype: str = ""
    genes: str = "index"
    layers: Mapping[str, str] = field(default_factory=dict)
    obsm: tuple[str, ...] = ()
    obs: tuple[ObsRule, ...] = ()
    keep: tuple[str, ...] = ()
    uns: Mapping[str, Any] = field(default_factory=dict)
    obs_names: str = "unique"
    names: GeneNames = field(default_factory=GeneNames)
    qc: QCSpec = field(default_factory=QCSpec)

    @property
    def without_source(self) -> StudySpec:
        """The spec alone: what a fingerprint is made of, and what tasks get beside the source.

        The options that a source is opened with are of the spec: they decide what is read.
        """
        options = self.source.options if isinstance(self.source, SourceAddress) else ()
        return replace(self, source=SourceAddress(StoreLocation(""), "", options))


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """A whole build: feature spaces, the obs schema, the layout and the studies."""

    features: tuple[FeatureSpec, ...]
    studies: tuple[StudySpec, ...]
    schema: tuple[SchemaColumn, ...] = ()
    layout: Layout = field(default_factory=Layout)
    shuffle: ShuffleSpec = field(default_factory=ShuffleSpec)


def load_spec(
    source: str | os.PathLike[str] | StoreLocation | Mapping[str, Any], *, options: Mapping[str, Any] | None = None
) -> BuildSpec:
    """Read and check a build file.

    Parameters
    ----------
    source
        URL or path of a YAML file, or a dict of the same shape, where ``source`` of a study may also be an ``AnnData``
        or any :class:`~daodask.sources.base.Source`.
    options
        fsspec options to read the build file with, and what its relative paths name. Other URLs are opened with the
        credentials of the environment.

    Raises
    ------
    SpecError
        Something in it can't be meant; the message starts with its path, as in ``studies[2].obs.cell_type``.
    StoreNotFoundError
        There is no such file.
    """
    if isinstance(source, Mapping):
        return _build_spec(source, None)
    location = StoreLocation.parse(source, options)
    return _build_spec(_read_yaml(location), location)


# -- YAML ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without tags, where a key given twice is a mistake and not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _read_yaml(location: StoreLocation) -> Any:
    try:
        return yaml.load(location.read(), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SpecError(f"{location.url}{line}: expected YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{location.url}: expected YAML in UTF-8: {error}") from error


# -- paths ---------------------------------------------------------------------------------------------------------


def _expand(text: str, path: str) -> str:
    """Replace ``$VAR``, ``${VAR}`` and ``${VAR:-default}`` by the environment."""

    def replace(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        value = os.environ.get(name) or default
        if value is None:
            raise SpecError(
                f"{path}: expected the environment variable {name} to be set, got {text!r} without it; "
                f"set it, or say ${{{name}:-default}}"
            )
        return value

    return _VARIABLE.sub(replace, text)


def _locate(value: object, path: str, base: StoreLocation | None) -> StoreLocation:
    """The location that a path of the build file names; relative ones are below the build file's directory."""
    if isinstance(value, StoreLocation):
        return value
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise expected(path, "a path or URL", value)
    text = _expand(str(os.fspath(value)), path)
    if base is None or "://" in text or "::" in text or text.startswith(("/", "~")):
        return StoreLocation.parse(text)
    scheme, separator, rest = base.url.rpartition("://")
    relative = posixpath.normpath(posixpath.join(posixpath.dirname(rest), text))
    return StoreLocation(f"{scheme}{separator}{relative}", base.options)


# -- the whole file ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a study takes from the top level."""

    base: StoreLocation | None
    features: tuple[FeatureSpec, ...]
    matrix: str
    kind: str
    dtype: str
    keep: tuple[str, ...]
    obs_names: str
    qc: QCSpec


def _build_spec(document: object, base: StoreLocation | None) -> BuildSpec:
    keys = ("schema", "features", "X", "obs", "obs_names", "keep", "qc", "shuffle", "layout", "studies")
    top = Section.of(document, "", keys)
    schema_name = top.choice("schema", ("", *SCHEMAS), "")
    features = _features(top, schema_name, base)
    kind, dtype = _values(top, "counts", "")
    defaults = _Defaults(
        base=base,
        features=features,
        matrix=_READY_MATRIX if schema_name else "X",
        kind=kind,
        dtype=dtype,
        keep=_keep(top, ()),
        obs_names=_names(top, NAME_RULES[0]),
        qc=read_qc(top, QCSpec()),
    )
    entries = items(top.required("studies"), "studies")
    studies = tuple(study for path, value in entries for study in _studies(value, path, defaults))
    _refuse_repeated((s.id for s in studies), "studies", "id")
    schema = read_schema(top, schema_name)
    for number, study in enumerate(studies):
        _refuse_measured(study, schema, f"studies[{number}]")
    layout = _layout(top)
    _refuse_unmatched(layout, studies)
    return BuildSpec(features, studies, schema, layout, read_shuffle(top))


def _refuse_unmatched(layout: Layout, studies: Iterable[StudySpec]) -> None:
    """Refuse a pattern of matrices to store by gene that is of none."""
    matrices = {"X", *(f"layers/{name}" for study in studies for name in study.layers)}
    for pattern in layout.by_gene:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in matrices):
            raise SpecError(f"layout.by_gene: no study has a matrix {pattern!r}; {suggest(pattern, sorted(matrices))}")


def _refuse_measured(study: StudySpec, schema: Iterable[SchemaColumn], path: str) -> None:
    """Refuse columns that are both measured and made of the source's; what is merely kept gives way."""
    made = {c.name for c in schema} | {r.name for r in study.obs}
    for name in study.qc.names:
        if name in made:
            raise SpecError(f"{path}: expected {name!r} from obs: or from qc:, got both; give one another name")


def _refuse_repeated(names: Iterable[str], path: str, key: str) -> None:
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if first.setdefault(name, i) != i:
            raise SpecError(f"{path}[{i}].{key}: expected unique names, got {name!r} as in {path}[{first[name]}]")


def _identifier(section: Section, key: str) -> str:
    name = section.text(key)
    _check_identifier(name, section.at(key))
    return name


def _check_identifier(name: str, path: str) -> None:
    if not ID_PATTERN.fullmatch(name):
        raise expected(path, "letters, digits, '_' and '-', at most 128 of them, the first a letter or digit", name)


def _features(top: Section, schema: str, base: StoreLocation | None) -> tuple[FeatureSpec, ...]:
    names = GeneNames(ensembl=bool(schema))
    if schema and "features" not in top:
        return (FeatureSpec(_READY_FEATURES, "union", names=names),)
    return tuple(replace(f, names=replace(f.names, ensembl=bool(schema))) for f in _given_features(top, base))


def _given_features(top: Section, base: StoreLocation | None) -> tuple[FeatureSpec, ...]:
    value = top.required("features")
    if isinstance(value, Mapping):
        return (_feature(value, "features", base),)
    found = tuple(_feature(v, path, base) for path, v in items(value, "features"))
    _refuse_repeated((f.name for f in found), "features", "name")
    return found


def _feature(value: object, path: str, base: StoreLocation | None) -> FeatureSpec:
    keys = ("name", "reference", "synonyms", "biotypes", "duplicates", "organism", "min_matched")
    section = Section.of(value, path, (*keys, *NAMING_KEYS))
    given = section.required("reference")
    own = isinstance(given, str) and given in _OWN_NAMES
    listed = isinstance(given, list | tuple)
    for key in ("synonyms", "biotypes"):
        if key in section and (own or is_store_entry(given) or (listed and key == "biotypes")):
            raise SpecError(f"{section.at(key)}: expected a reference table to go with it, got reference: {given}")
    return FeatureSpec(
        name=_identifier(section, "name"),
        reference=_reference(section, base),
        synonyms=_locate(section.get("synonyms"), section.at("synonyms"), base) if "synonyms" in section else None,
        biotypes=section.texts("biotypes"),
        duplicates=section.choice("duplicates", ("sum", "error"), "sum"),
        organism=section.text("organism", ""),
        min_matched=section.fraction("min_matched", _MIN_MATCHED),
        names=read_names(section, GeneNames()),
    )


def _reference(section: Section, base: StoreLocation | None) -> StoreLocation | str | tuple[str, ...] | FeatureSpace:
    given, path = section.required("reference"), section.at("reference")
    if is_store_entry(given):
        return read_feature_space(given, path, _identifier(section, "name"), lambda s, key: _stored_at(s, key, base))
    if isinstance(given, str) and given in _OWN_NAMES:
        return given
    if not isinstance(given, list | tuple):
        return _locate(given, path, base)
    genes = texts(given, path)
    if not genes or len(set(genes)) < len(genes):
        raise expected(path, "a list of different ids or symbols", given)
    return genes


def _values(parent: Section, kind: str, dtype: str) -> tuple[str, str]:
    """Kind and dtype of ``X:``, over the defaults given."""
    section = parent.section("X", ("kind", "dtype"))
    return section.choice("kind", MATRIX_KINDS, kind), section.choice("dtype", ("", "float32"), dtype)


def _keep(section: Section, default: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of the source columns to keep."""
    return _patterns(section, "keep", default)


def _patterns(section: Section, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """``all``, ``none`` or patterns."""
    value = section.get(key)
    if value is None:
        return default
    if isinstance(value, str):
        if value not in ("all", "none"):
            raise expected(section.at(key), "all, none or a list of patterns", value)
        return ("*",) if value == "all" else ()
    return texts(value, section.at(key))


def _names(section: Section, default: str) -> str:
    """What becomes of cell names that occur twice in a study."""
    return section.choice("obs_names", NAME_RULES, default)


def _layout(top: Section) -> Layout:
    section = top.section("layout", ("block_rows", "codec", "chunk_rows", "shard_bytes", "by_gene"))
    default = Layout()
    return Layout(
        block_rows=section.positive("block_rows", default.block_rows),
        codec=section.choice("codec", CODECS, default.codec),
        chunk_rows=section.positive("chunk_rows", default.chunk_rows),
        shard_bytes=_nbytes(section, "shard_bytes", default.shard_bytes),
        by_gene=_patterns(section, "by_gene", default.by_gene),
    )


def _nbytes(section: Section, key: str, default: int) -> int:
    """A number of bytes, or a text such as ``64MiB``."""
    value = section.get(key)
    if not isinstance(value, str):
        return section.positive(key, default)
    match = _SIZE.fullmatch(value.strip())
    unit = (match[2] or "").replace("K", "k") if match else ""
    nbytes = int(float(match[1]) * _UNITS[unit]) if match else 0
    if nbytes < 1:
        raise expected(section.at(key), "a size such as 64MiB, or a number of bytes", value)
    return nbytes


# -- obs ----------------------------------------------------------------------------------


def _rules(study: Section) -> tuple[ObsRule, ...]:
    section = study.section("obs")
    return tuple(_rule(name, section) for name in section.values)


def _rule(name: str, parent: Section) -> ObsRule:
    check_target(name, parent)
    value, path = parent.get(name), parent.at(name)
    if isinstance(value, str) and value:
        return ObsRule(name, (value,))
    if not isinstance(value, Mapping):
        raise expected(path, "a source column, or a mapping with from: or value:", value)
    section = Section.of(value, path, ("from", "join", "map", "value"))
    if ("from" in section) == ("value" in section):
        raise SpecError(f"{path}: expected either from: (a source column) or value: (a constant)")
    if "value" in section:
        return _constant(name, section)
    columns = section.texts("from")
    if not columns:
        raise expected(section.at("from"), "a source column or several", section.get("from"))
    join = section.get("join") if "join" in section else _JOIN
    if not isinstance(join, str):
        raise expected(section.at("join"), "text", join)
    return ObsRule(name, columns, join, _map(section))


def _constant(name: str, section: Section) -> ObsRule:
    for key in ("join", "map"):
        if key in section:
            raise SpecError(f"{section.at(key)}: expected from: to go with it, got value:")
    return ObsRule(name, value=label(section.get("value"), section.at("value")))


def _map(section: Section) -> Mapping[Label, Label | None]:
    value, path = section.get("map"), section.at("map")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise expected(path, "a mapping of the source's labels to the store's", value)
    return {label(k, path): None if v is None else label(v, f"{path}.{k}") for k, v in value.items()}


# -- studies -------------------------------------------------------------------------------------------------------


#: Keys of a study that say where it is and how it is opened, beside the source itself.
_OPENING: Final = ("format", "options", "storage_options", "download")


def _studies(value: object, path: str, defaults: _Defaults) -> tuple[StudySpec, ...]:
    """The study of an entry, or those of the store that it names."""
    if not is_store_entry(value):
        return (_study(value, path, defaults),)
    found = stored_studies(value, path, lambda section, key: _stored_at(section, key, defaults.base))
    return tuple(_stored_study(study, path, defaults) for study in found)


def _stored_study(study: StoredStudy, path: str, defaults: _Defaults) -> StudySpec:
    """A dataset of a store as it is stored there: all of it is kept, under the names that it has."""
    _check_identifier(study.id, f"{path}: id of a dataset")
    known = [f.name for f in defaults.features]
    named = study.chosen or (study.features if study.features in known else "")
    features = _feature_space(Section(path, {"features": named or None}), defaults.features)
    return StudySpec(
        id=study.id,
        source=study.source,
        features=features.name,
        kind=study.kind,
        dtype=study.dtype,
        layers=study.layers,
        obsm=("*",),
        keep=("*",),
        uns=study.uns,
        obs_names=defaults.obs_names,
        names=features.names,
        qc=defaults.qc,
    )


def _study(value: object, path: str, defaults: _Defaults) -> StudySpec:
    keys = ("id", "source", "features", "layer", "X", "genes", "layers", "obsm", "obs", "obs_names", "keep")
    section = Section.of(value, path, (*keys, *_OPENING, "qc", "uns"))
    features = _feature_space(section, defaults.features)
    genes, names = _gene_names(section, features.names)
    kind, dtype = _values(section, defaults.kind, defaults.dtype)
    layers = section.section("layers")
    for name in layers.values:
        _check_identifier(name, layers.at(name))
    return StudySpec(
        id=_identifier(section, "id"),
        source=_source(section, defaults.base),
        features=features.name,
        matrix=_first_matrix(section, defaults.matrix),
        kind=kind,
        dtype=dtype,
        genes=genes,
        layers={name: _matrix(layers, name) for name in layers.values},
        obsm=section.texts("obsm"),
        obs=_rules(section),
        keep=_keep(section, defaults.keep),
        uns=_uns(section),
        obs_names=_names(section, defaults.obs_names),
        names=names,
        qc=read_qc(section, defaults.qc),
    )


def _feature_space(section: Section, features: tuple[FeatureSpec, ...]) -> FeatureSpec:
    known = {f.name: f for f in features}
    if "features" not in section:
        if len(known) > 1:
            raise SpecError(f"{section.at('features')}: expected the name of a feature space; {suggest('', known)}")
        return features[0]
    name = section.text("features")
    if name not in known:
        raise SpecError(f"{section.at('features')}: unknown feature space {name!r}; {suggest(name, known)}")
    return known[name]


def _gene_names(section: Section, names: GeneNames) -> tuple[str, GeneNames]:
    """The var column with names, and how they are read, over what holds for the feature space."""
    if not isinstance(section.get("genes"), Mapping):
        return section.text("genes", "index"), names
    genes = section.section("genes", ("from", "symbols", *NAMING_KEYS))
    return genes.text("from", "index"), replace(read_names(genes, names), symbols=genes.text("symbols", ""))


def _first_matrix(section: Section, default: str) -> str:
    """Matrices of which the first that is there is read."""
    for name in section.text("layer", default).split("|"):
        if not _MATRIX.fullmatch(name):
            raise expected(section.at("layer"), f"X, raw or layers/<name> (layers/{name}?)", name)
    return section.text("layer", default)


def _matrix(section: Section, key: str) -> str:
    name = section.text(key)
    if not _MATRIX.fullmatch(name):
        raise expected(section.at(key), f"X, raw or layers/<name> (layers/{name}?)", name)
    return name


def _source(section: Section, base: StoreLocation | None) -> SourceAddress | Source:
    value = section.required("source")
    if isinstance(value, str | os.PathLike | StoreLocation):
        return _address(section, _stored_at(section, "source", base))
    for key in _OPENING:
        if key in section:
            raise SpecError(f"{section.at(key)}: expected none, as the source is an object and not a file")
    if _is_anndata(value):
        from daodask.sources.memory import MemorySource

        return MemorySource(value)
    if isinstance(value, Source):
        return value
    raise expected(section.at("source"), "a path or URL, an AnnData or a Source", value)


def _stored_at(section: Section, key: str, base: StoreLocation | None) -> StoreLocation:
    """The location under a key, opened with the section's own options where it has some."""
    location = _locate(section.required(key), section.at(key), base)
    options = _plain_mapping(section.section("storage_options"))
    return StoreLocation(location.url, tuple(sorted(options.items()))) if options else location


def _address(section: Section, location: StoreLocation) -> SourceAddress:
    from daodask.sources import detect_format, known_formats

    given = section.section("options")
    options = tuple((name, label(given.get(name), given.at(name))) for name in sorted(given.values))
    download = section.flag("download")
    if "format" in section:
        return SourceAddress(location, section.choice("format", known_formats(), ""), options, download)
    try:
        return SourceAddress(location, detect_format(location), options, download)
    except SourceError as error:
        raise SpecError(f"{section.at('source')}: {error}") from error


def _is_anndata(value: object) -> bool:
    """Whether it is an AnnData; nothing can be one before anndata, which is slow to import, has been imported."""
    module = sys.modules.get("anndata")
    return module is not None and isinstance(value, module.AnnData)


def _uns(section: Section) -> Mapping[str, Any]:
    facts = section.section("uns")
    if "organism" in facts:
        facts.text("organism")
    return _plain_mapping(facts)


def _plain_mapping(section: Section) -> dict[str, Any]:
    for key in section.values:
        if not key or "/" in key:
            raise SpecError(f"{section.path}: expected keys without '/', got {key!r}")
    return {key: _plain(value, section.at(key)) for key, value in section.values.items()}


def _plain(value: object, path: str) -> Any:
    """What JSON holds; a date, which YAML makes of ``2017-01-16``, goes back to its text."""
    if value is None:
        return None
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_plain(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        return _plain_mapping(Section.of(value, path))
    return label(value, path)
