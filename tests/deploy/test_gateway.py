"""dask-gateway with the configuration of deploy/gateway: the real server, its proxy, a cluster behind both."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import daodask

pytest.importorskip("dask_gateway_server", reason="needs dask-gateway-server: pip install daodask[deploy-test]")
dask_gateway = pytest.importorskip("dask_gateway", reason="needs dask-gateway: pip install daodask[deploy-test]")

# It closes what is closed, at whatever time garbage is collected, for which its event loop is no longer there.
dask_gateway.Gateway.__del__ = lambda self: None


def answers(url: str) -> bool:
    """Whether the proxy knows its way to the server."""
    try:
        with urllib.request.urlopen(url) as answer:  # noqa: S310  its own server
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def gateway(deploy: Path, processes: Any, free_port: Callable[[], int]) -> Iterator[Any]:
    """Log in at a server of the test's own."""
    address, api = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    settings = {
        "DAODASK_GATEWAY_PASSWORD": "correct horse",
        "DAODASK_GATEWAY_ADDRESS": address,
        "DAODASK_GATEWAY_API": api,
    }
    command = [sys.executable, "-m", "dask_gateway_server", "-f", deploy / "gateway" / "dask_gateway_config.py"]
    processes.start(*command, env=settings)
    processes.wait(lambda: answers(f"http://{address}/api/health"))
    with dask_gateway.Gateway(f"http://{address}", auth=dask_gateway.BasicAuth("ann", "correct horse")) as connected:
        yield connected


def test_a_store_is_built_and_read_on_a_gateway_cluster(gateway, atlas, tmp_path, assert_right):
    options = gateway.cluster_options()
    assert options.worker_threads == 4
    options.worker_threads = 2
    with gateway.new_cluster(options, shutdown_on_close=True) as cluster:
        cluster.scale(1)
        with cluster.get_client() as client:
            client.wait_for_workers(1, timeout=60)
            (worker,) = client.scheduler_info()["workers"].values()
            assert (worker["nthreads"], worker["memory_limit"]) == (2, int((2**29 + 2 * 512_000_000) / 0.7))
            assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl) == 60
            assert daodask.build_store(str(atlas), tmp_path / "store", client=client, progress=False).ok
            assert_right(tmp_path / "store", client)
    assert not gateway.list_clusters()


def test_a_wrong_password_is_refused(gateway):
    stranger = dask_gateway.Gateway(gateway.address, auth=dask_gateway.BasicAuth("ann", "battery staple"))
    with stranger, pytest.raises(Exception, match="Unauthorized|401"):
        stranger.list_clusters()


def test_the_values_for_kubernetes_start_the_same_commands(deploy):
    values = yaml.safe_load((deploy / "gateway" / "values.yaml").read_text())
    config = type("Config", (), {"ClusterConfig": type("ClusterConfig", (), {})})
    for text in values["gateway"]["extraConfig"].values():
        exec(compile(text, "values.yaml", "exec"), {"c": config})  # noqa: S102
    assert config.ClusterConfig.scheduler_cmd == ["dask", "scheduler"]
    assert config.ClusterConfig.worker_cmd == ["dask", "worker"]
    from dask_gateway_server.backends.kubernetes import KubeClusterConfig

    set_here = {name for name in vars(config.ClusterConfig) if not name.startswith("_")}
    assert set_here <= set(KubeClusterConfig.class_trait_names(config=True))
