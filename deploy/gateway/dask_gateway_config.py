"""dask-gateway on one machine: `dask-gateway-server -f` reads it. README.md has the command.

All that differs between installations comes from the environment:

DAODASK_GATEWAY_PASSWORD   with which users log in; there is no default
DAODASK_GATEWAY_ADDRESS    where users reach it; 127.0.0.1:8000 by default
DAODASK_GATEWAY_API        where the server itself listens, for its proxy and the clusters; 127.0.0.1:8001 by default
"""

import os
import shutil
from typing import Any

from dask_gateway_server.options import Integer, Options

c: Any = get_config()  # noqa: F821  what traitlets gives a file of this kind

GIB = 2**30
#: Memory of a worker as ../README.md has it: (base + threads * task) / share that Dask fills before it spills.
BASE, TASK, SPILL = 0.5 * GIB, 512_000_000, 0.7


def worker(options: Any) -> dict[str, Any]:
    """What a user's choice of threads means for each worker."""
    memory = int((BASE + options.worker_threads * TASK) / SPILL)
    return {
        "worker_cores": options.worker_threads,
        "worker_threads": options.worker_threads,
        "worker_memory": memory,
    }


# Clusters are processes of the account that the server runs under: for one person's machine, or one team's. The backend
# that changes to each user's own account does not run with this release, as it hands the letters of its paths to chown;
# where users must be kept apart, take Kubernetes (values.yaml).
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.address = os.environ.get("DAODASK_GATEWAY_API", "127.0.0.1:8001")
c.Proxy.address = os.environ.get("DAODASK_GATEWAY_ADDRESS", "127.0.0.1:8000")

c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = os.environ["DAODASK_GATEWAY_PASSWORD"]

# The commands that dask-gateway-server 2026.3 has by default are gone from Dask. `dask` is the one of the environment
# that the server was started from, so that clusters have its versions.
dask = shutil.which("dask") or "dask"
c.ClusterConfig.scheduler_cmd = [dask, "scheduler"]
c.ClusterConfig.worker_cmd = [dask, "worker"]
c.ClusterConfig.environment = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "60s",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}
c.ClusterConfig.scheduler_memory = "2 G"
c.ClusterConfig.idle_timeout = 1800.0
c.ClusterConfig.cluster_max_workers = 32
c.Backend.cluster_options = Options(
    Integer("worker_threads", default=4, min=1, max=64, label="Threads of each worker"), handler=worker
)
