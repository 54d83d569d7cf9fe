"""deploy/slurm: what dask-jobqueue makes of its configuration, and both of its ways on a real Slurm of one node."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.config
import pytest
import yaml

import daodask

pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install daodask[deploy-test]")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from dask_jobqueue import SLURMCluster

CONFIG = """\
ClusterName=daodask-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def configured(deploy: Path) -> Iterator[None]:
    """Have deploy/slurm/jobqueue.yaml as Dask's configuration, as DASK_CONFIG would."""
    values = yaml.safe_load((deploy / "slurm" / "jobqueue.yaml").read_text())
    with dask.config.set(dask.config.merge(dask.config.global_config, values)):
        yield


@pytest.mark.usefixtures("configured")
def test_a_job_asks_for_what_its_worker_takes():
    # Not the cluster's, whose scheduler would be started for it.
    from dask_jobqueue.slurm import SLURMJob

    job = SLURMJob("tcp://10.0.0.5:8786", name="0", protocol="tcp://", cores=8, processes=1, memory="7GiB")
    lines = job.job_script().splitlines()
    assert lines[:7] == [
        "#!/usr/bin/env bash",
        "",
        "#SBATCH -J daodask",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=7G",
        "#SBATCH -t 04:00:00",
    ]
    assert "export GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false" in lines
    (command,) = (line for line in lines if "distributed.cli.dask_worker" in line)
    expected = "tcp://10.0.0.5:8786 --name 0 --nthreads 8 --memory-limit 7.00GiB --nanny --death-timeout 60 "
    assert re.sub(r"^\S+ -m distributed.cli.dask_worker ", "", command) == (
        f"{expected}--local-directory /tmp --lifetime 230m --lifetime-stagger 5m --protocol tcp://"
    )


@pytest.mark.usefixtures("configured")
def test_the_configuration_names_only_what_dask_jobqueue_has(deploy):
    values = yaml.safe_load((deploy / "slurm" / "jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    defaults = yaml.safe_load(
        (Path(SLURMCluster.__init__.__globals__["__file__"]).parent / "jobqueue.yaml").read_text()
    )
    assert set(values) <= set(defaults["jobqueue"]["slurm"])
    assert dask.config.get("distributed.scheduler.worker-ttl") == "60s"


# -- on Slurm ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(
    tmp_path: Path, processes: Any, environment: dict[str, str], free_port: Callable[[], int]
) -> Iterator[dict[str, str]]:
    """Start a Slurm of one node, with its own munge; yields the environment in which its commands find it."""
    wanted = os.environ.get("DAODASK_TEST_SLURM") == "1"
    if not wanted and (os.geteuid() != 0 or not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged")))):
        pytest.skip("needs root and the packages slurm-wlm and munge; with DAODASK_TEST_SLURM=1 this fails")
    munge = tmp_path / "munge"
    for folder in (munge, tmp_path / "state", tmp_path / "spool"):
        folder.mkdir(mode=0o700)
    (munge / "key").touch(0o400)
    (munge / "key").write_bytes(os.urandom(1024))
    host = socket.gethostname().partition(".")[0]
    config = tmp_path / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=tmp_path, ports=[free_port(), free_port()]))
    found = environment | {"SLURM_CONF": str(config)}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    daemon = ["munged", "--force", "--foreground", *(f"--{option}={munge}/{name}" for option, name in files.items())]
    processes.start(*daemon)
    processes.wait((munge / "socket").exists)
    processes.start("slurmctld", "-D", env=found)
    processes.start("slurmd", "-D", env=found)
    state = ["sinfo", "--noheader", "--format=%T"]
    processes.wait(lambda: subprocess.run(state, env=found, capture_output=True, check=False).stdout.strip() == b"idle")
    yield found
    # Each step has a process of its own, which would outlive the daemons that it has to tell of its end.
    processes.wait(lambda: not [path for path in (tmp_path / "spool").iterdir() if path.is_socket()])


def test_a_store_is_built_by_the_batch_script(slurm, processes, deploy, atlas, tmp_path, assert_right):
    def ask(*command: str | Path) -> str:
        return subprocess.run(command, env=slurm, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    options = ["--parsable", "--ntasks=2", "--cpus-per-task=2", "--output=out.log"]
    job = ask("sbatch", *options, deploy / "slurm" / "build.sbatch", atlas, tmp_path / "store").strip()
    states = re.compile(r"JobState=(COMPLETED|FAILED|TIMEOUT|NODE_FAIL|CANCELLED)")
    (state,) = processes.wait(lambda: states.findall(ask("scontrol", "show", "job", job)), seconds=120)
    assert (state, "2 built" in (tmp_path / "out.log").read_text()) == ("COMPLETED", True)
    assert not list(tmp_path.glob(".daodask-scheduler-*"))
    assert_right(tmp_path / "store")


@pytest.mark.usefixtures("configured")
def test_a_store_is_built_by_jobs_that_come_and_go(slurm, atlas, tmp_path, assert_right, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    options = {
        "cores": 2,
        "memory": "2GiB",
        "log_directory": str(tmp_path),
        "local_directory": str(tmp_path),
        "scheduler_options": {"dashboard_address": "127.0.0.1:0", "dashboard": False, "host": "127.0.0.1"},
    }
    with SLURMCluster(**options) as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=2)
        with cluster.get_client() as client:
            client.wait_for_workers(1, timeout=60)
            assert daodask.build_store(str(atlas), tmp_path / "store", client=client, progress=False).ok
            assert_right(tmp_path / "store", client)
