"""Atlas-scale single-cell collections on a Dask cluster.

Build one store of many studies, open it lazily, subset it by cell metadata, and take it into AnnData or random
mini-batches::

    import daodask

    report = daodask.build_store("atlas.yaml", "gs://bucket/atlas")
    store = daodask.open_store("gs://bucket/atlas")
    cells = store.subset(cell_type=["B cell", "T cell"], exclude={"assay": "Smart-seq2"})
    adata = cells.to_anndata()

Importing the package imports nothing else: each name below brings its own module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from daodask._version import __version__

if TYPE_CHECKING:
    from daodask.analysis.hvg import highly_variable_genes
    from daodask.analysis.markers import RankedGenes, rank_genes_groups
    from daodask.analysis.pca import PrincipalComponents, pca
    from daodask.analysis.pseudobulk import group_means, mean_var, pseudobulk, reduce
    from daodask.analysis.reductions import Reduction
    from daodask.analysis.run import map_blocks
    from daodask.analysis.transforms import Normalise
    from daodask.batches.loader import BatchLoader
    from daodask.build.plan import BuildPlan
    from daodask.build.report import BuildReport
    from daodask.build.run import build_store, plan_build
    from daodask.build.spec import load_spec
    from daodask.caching import cache
    from daodask.errors import DaodaskError
    from daodask.export.run import ExportReport, export_store
    from daodask.history import StoreLog, read_log
    from daodask.ontology import Ontology
    from daodask.predicates import Between
    from daodask.removal import remove_datasets
    from daodask.saved_selection import SavedSelection, read_selection
    from daodask.store import Store, open_store
    from daodask.vacuum import VacuumPlan, plan_vacuum
    from daodask.validate import validate_store

__all__ = [
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
]

_HOMES: Final = {
    "BatchLoader": "daodask.batches.loader",
    "Between": "daodask.predicates",
    "BuildPlan": "daodask.build.plan",
    "BuildReport": "daodask.build.report",
    "DaodaskError": "daodask.errors",
    "ExportReport": "daodask.export.run",
    "Normalise": "daodask.analysis.transforms",
    "Ontology": "daodask.ontology",
    "PrincipalComponents": "daodask.analysis.pca",
    "RankedGenes": "daodask.analysis.markers",
    "Reduction": "daodask.analysis.reductions",
    "SavedSelection": "daodask.saved_selection",
    "Store": "daodask.store",
    "StoreLog": "daodask.history",
    "VacuumPlan": "daodask.vacuum",
    "build_store": "daodask.build.run",
    "cache": "daodask.caching",
    "export_store": "daodask.export.run",
    "group_means": "daodask.analysis.pseudobulk",
    "highly_variable_genes": "daodask.analysis.hvg",
    "load_spec": "daodask.build.spec",
    "map_blocks": "daodask.analysis.run",
    "mean_var": "daodask.analysis.pseudobulk",
    "open_store": "daodask.store",
    "plan_build": "daodask.build.run",
    "plan_vacuum": "daodask.vacuum",
    "pca": "daodask.analysis.pca",
    "pseudobulk": "daodask.analysis.pseudobulk",
    "rank_genes_groups": "daodask.analysis.markers",
    "read_log": "daodask.history",
    "read_selection": "daodask.saved_selection",
    "reduce": "daodask.analysis.pseudobulk",
    "remove_datasets": "daodask.removal",
    "validate_store": "daodask.validate",
}

# Hidden from type checkers, for which a module with __getattr__ has every name that anyone can misspell.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
