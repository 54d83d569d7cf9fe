"""A cluster of processes that talk over TLS: certificates come from Dask's configuration, on both sides."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.config
import distributed  # noqa: F401  what it adds to the configuration must be there before anything is changed
import pytest

import daodask
from daodask._cluster import open_client
from daodask.errors import ClusterError

trustme = pytest.importorskip("trustme", reason="certificates are made with trustme: pip install daodask[deploy-test]")


def certificates(folder: Path) -> dict[str, str]:
    """A new authority and one certificate for all, as settings of Dask's environment."""
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "node.pem"))
    prefix = "DASK_DISTRIBUTED__COMM__TLS"
    roles = {
        f"{prefix}__{r}__{k}": f"{folder}/node.pem" for r in ("SCHEDULER", "WORKER", "CLIENT") for k in ("CERT", "KEY")
    }
    return {f"{prefix}__CA_FILE": f"{folder}/ca.pem", "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True", **roles}


def configured(settings: dict[str, str]) -> Any:
    """What a process with these in its environment has as Dask's configuration, in this one."""
    return dask.config.set({name[5:].lower().replace("__", "."): value for name, value in settings.items()})


@pytest.fixture
def cluster(tmp_path: Path, processes: Any, free_port: Callable[[], int]) -> tuple[str, dict[str, str]]:
    """Run a scheduler and two workers; returns their address and the settings."""
    settings, port = certificates(tmp_path / "tls"), free_port()
    python, address = [sys.executable, "-m", "dask"], f"tls://127.0.0.1:{port}"
    scheduler = ["scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    processes.start(*python, *scheduler, "--dashboard-address", "127.0.0.1:0", env=settings)
    processes.listens(port)
    for _ in range(2):
        worker = ["worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--host", "127.0.0.1"]
        processes.start(*python, *worker, "--dashboard-address", "127.0.0.1:0", env=settings)
    return address, settings


def test_a_build_an_epoch_and_a_scan_over_tls(cluster, atlas, environment, tmp_path, assert_right):
    address, settings = cluster
    build = [sys.executable, "-m", "daodask", "build", str(atlas), str(tmp_path / "store"), "--scheduler", address]

    def run(**changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*build, "--quiet"], env=environment | changed, capture_output=True, text=True, check=False, timeout=120
        )

    bare = run()
    assert bare.returncode == 1
    assert f"expected certificates for {address} in Dask's configuration" in bare.stderr
    assert "DASK_DISTRIBUTED__COMM__TLS__CA_FILE" in bare.stderr
    assert not (tmp_path / "store").exists()

    done = run(**settings)
    assert done.returncode == 0, done.stderr
    with configured(settings), open_client(scheduler=address) as client:
        assert all(worker.startswith("tls://") for worker in client.nthreads())
        assert_right(tmp_path / "store", client)
        assert daodask.build_store(atlas, tmp_path / "again", client=client, progress=False).ok
        assert_right(tmp_path / "again", client)
        store = daodask.open_store(tmp_path / "again")
        found = daodask.pseudobulk(store, ["dataset"], client=client)
        assert (found.X == daodask.pseudobulk(store, ["dataset"]).X).all()
        assert found.obs["n_cells"].tolist() == [90, 61]


def test_certificates_of_another_authority_are_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("daodask._cluster._CONNECT_SECONDS", 3)
    address, _ = cluster
    other = certificates(tmp_path / "other")
    with (
        configured(other),
        pytest.raises(
            ClusterError, match=f"expected a Dask scheduler at {address}, none answered .* certificates of the"
        ),
        open_client(scheduler=address),
    ):
        pass
