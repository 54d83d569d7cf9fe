"""``import daodask`` is quick, quiet and touches no network: what is heavy is imported when it is first used."""

import json
import subprocess
import sys

HEAVY = (
    "anndata",
    "dask",
    "distributed",
    "fsspec",
    "gcsfs",
    "h5py",
    "jax",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "rich",
    "s3fs",
    "scanpy",
    "scipy",
    "tensorflow",
    "torch",
    "xarray",
    "zarr",
)

PROBE = """
import json, socket, sys, time

def refuse(*args, **kwargs):
    raise OSError("import daodask went to the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
known = set(sys.modules)
start = time.perf_counter()
import daodask
seconds = time.perf_counter() - start
{then}
json.dump({{"seconds": seconds, "modules": sorted(set(sys.modules) - known)}}, sys.stdout)
"""


def _imported(then=""):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE.format(then=then)], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_importing_the_package_imports_nothing_heavy(record_property, capsys):
    result = _imported()
    packages = {module.partition(".")[0] for module in result["modules"]}
    assert not packages & set(HEAVY)
    record_property("import_seconds", result["seconds"])
    with capsys.disabled():
        print(f"\nimport daodask: {result['seconds'] * 1000:.0f} ms", end=" ")  # noqa: T201 - stated, not asserted: it is the machine's


def test_the_names_that_open_and_build_leave_frameworks_alone():
    result = _imported("daodask.open_store, daodask.build_store, daodask.BatchLoader, daodask.validate_store")
    late = {"anndata", "dask.dataframe", "distributed", "gcsfs", "jax", "numba", "scanpy", "tensorflow", "torch"}
    assert not late & set(result["modules"])
