"""Whether the processes of a cluster have what this one has: found before a job starts, and explained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from daodask.errors import ClusterError, ClusterVersionError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["check_cluster", "compare_versions"]

#: Other versions of these give other bytes in a store, or can't read what this process sends: to their minor release
#: they must be the same. Of daodask itself any other release has other tasks.
_REQUIRED: Final = ("python", "daodask", "anndata", "dask", "distributed", "numcodecs", "numpy", "pandas", "zarr")
#: These only read and compute: another minor release is worth a warning.
_COMPARED: Final = ("fsspec", "gcsfs", "h5py", "numba", "pyarrow", "scipy")

#: Addresses of the workers that were looked at, per client.
_CHECKED: WeakKeyDictionary[Client, frozenset[str]] = WeakKeyDictionary()


def check_cluster(client: Client) -> None:
    """Compare the versions of the scheduler and of all workers with those of this process (computes).

    One request to all workers, once per client, and again when workers are there that it has not seen. Nothing is
    pickled for it, as that is what differing versions break. Workers that join while a job runs are not looked at
    before the next.

    Raises
    ------
    ClusterError
        The scheduler does not answer.
    ClusterVersionError
        A process of the cluster lacks daodask or a library that decides what is read and written, or has another
        release of it.

    Warns
    -----
    UserWarning
        Another library differs.
    """
    try:
        workers = frozenset(client.nthreads())
        if workers and workers <= _CHECKED.get(client, frozenset()):
            return
        versions: Any = client.get_versions(packages=[*_REQUIRED[1:], *_COMPARED])
    except OSError as error:
        raise ClusterError(
            f"expected the Dask scheduler to say what is installed on the cluster, it does not answer ({error}); "
            f"connect to one that runs"
        ) from error
    packages = {address: _packages(found) for address, found in versions["workers"].items()}
    packages["the scheduler"] = _packages(versions["scheduler"])
    wrong, other = compare_versions(_packages(versions["client"]), packages)
    if wrong:
        raise ClusterVersionError(
            f"expected the cluster to have the versions of this process, got {'; '.join(wrong)}; install the same on "
            f"both sides, such as one container image or one lock file, and start the cluster again"
        )
    if other:
        warnings.warn(f"the cluster and this process differ in {'; '.join(other)}", UserWarning, stacklevel=2)
    _CHECKED[client] = workers


def _packages(found: Any) -> Mapping[str, str | None]:
    """Versions as a process tells them; nothing of one that died before it answered."""
    packages: Mapping[str, str | None] = found["packages"] if isinstance(found, Mapping) else {}
    return packages


def compare_versions(
    here: Mapping[str, str | None], there: Mapping[str, Mapping[str, str | None]]
) -> tuple[list[str], list[str]]:
    """Say in which versions processes differ from this one.

    Parameters
    ----------
    here
        Version of each package in this process, ``None`` where it is not installed; such are not compared.
    there
        The same for each process of the cluster, by address. A process without any is passed over.

    Returns
    -------
    tuple of list of str
        Differences that forbid a job, and those that are worth a warning: a clause for each package and version.
    """
    answered = {address: found for address, found in there.items() if found}
    return _differences(_REQUIRED, here, answered), _differences(_COMPARED, here, answered)


def _differences(
    packages: tuple[str, ...], here: Mapping[str, str | None], there: Mapping[str, Mapping[str, str | None]]
) -> list[str]:
    clauses = []
    for package in packages:
        ours = here.get(package)
        if ours is None:
            continue
        where: dict[str | None, list[str]] = {}
        for address, found in sorted(there.items()):
            if _release(package, found.get(package)) != _release(package, ours):
                where.setdefault(found.get(package), []).append(address)
        clauses += [
            f"{package} {_plain(ours)} here and {_plain(theirs)} at {_listed(addresses)}"
            for theirs, addresses in where.items()
        ]
    return clauses


def _release(package: str, version: str | None) -> str | None:
    """As much of a version as has to be the same."""
    if version is None or package == "daodask":
        return version
    return ".".join(version.split(".")[:2])


def _plain(version: str | None) -> str:
    """A version without what Python adds to its own (``3.11.4.final.0``)."""
    return "none" if version is None else version.partition(".final")[0]


def _listed(addresses: list[str], most: int = 3) -> str:
    shown = ", ".join(addresses[:most])
    return f"{shown} and {len(addresses) - most} more" if len(addresses) > most else shown
