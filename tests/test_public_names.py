"""The public names: a change of this list is a change of the interface, and belongs in the changelog."""

import importlib
import pkgutil
import tomllib
from pathlib import Path

import pytest

import daodask
import daodask.errors

PUBLIC = (
    "BatchLoader",
    "Between",
    "BuildPlan",
    "BuildReport",
    "DaodaskError",
    "ExportReport",
    "Normalise",
    "Ontology",
    "PrincipalComponents",
    "RankedGenes",
    "Reduction",
    "SavedSelection",
    "Store",
    "StoreLog",
    "VacuumPlan",
    "__version__",
    "build_store",
    "cache",
    "export_store",
    "group_means",
    "highly_variable_genes",
    "load_spec",
    "map_blocks",
    "mean_var",
    "open_store",
    "pca",
    "plan_build",
    "plan_vacuum",
    "pseudobulk",
    "rank_genes_groups",
    "read_log",
    "read_selection",
    "reduce",
    "remove_datasets",
    "validate_store",
)

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(daodask.__path__, "daodask.")
    if not any(part.startswith("_") for part in module.name.split("."))
)


def test_the_package_exports_these_names():
    assert tuple(daodask.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_there_under_its_own_name(name):
    value = getattr(daodask, name)
    assert name in dir(daodask)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__.startswith("daodask.")
        assert value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'daodask' has no attribute 'load_store'"):
        daodask.load_store  # noqa: B018


def test_the_version_has_one_source():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "daodask/_version.py"
    assert daodask.__version__ == importlib.import_module("daodask._version").__version__


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_exports_exists_and_is_sorted(module):
    try:
        names = getattr(importlib.import_module(module), "__all__", ())
    except daodask.errors.DependencyError as error:
        pytest.skip(str(error))
    assert list(names) == sorted(set(names), key=_as_ruff_sorts)
    missing = [name for name in names if not hasattr(importlib.import_module(module), name)]
    assert not missing


def _as_ruff_sorts(name):
    """Constants, then classes, then the rest: the order that ruff keeps ``__all__`` in (RUF022)."""
    stripped = name.strip("_")
    return (0 if stripped.isupper() and len(stripped) > 1 else 1 if stripped[:1].isupper() else 2, name)
