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
    from daodask.batches.loader import BatchLoader
    from daodask.build.plan import BuildPlan
    from daodask.build.report import BuildReport
    from daodask.build.run import build_store, plan_build
    from daodask.build.spec import load_spec
    from daodask.errors import DaodaskError
    from daodask.store import Store, open_store
    from daodask.validate import validate_store

__all__ = [
    "BatchLoader",
    "BuildPlan",
    "BuildReport",
    "DaodaskError",
    "Store",
    "__version__",
    "build_store",
    "load_spec",
    "open_store",
    "plan_build",
    "validate_store",
]

_HOMES: Final = {
    "BatchLoader": "daodask.batches.loader",
    "BuildPlan": "daodask.build.plan",
    "BuildReport": "daodask.build.report",
    "DaodaskError": "daodask.errors",
    "Store": "daodask.store",
    "build_store": "daodask.build.run",
    "load_spec": "daodask.build.spec",
    "open_store": "daodask.store",
    "plan_build": "daodask.build.run",
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
