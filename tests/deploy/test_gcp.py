"""deploy/gcp: what the script asks gcloud for, first and again, with a gcloud that only writes it down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EMAIL = "daodask-{}@a-project.iam.gserviceaccount.com"
SETTINGS = ["--uniform-bucket-level-access", "--public-access-prevention", "--soft-delete-duration=7d"]


def test_scripts_pass_shellcheck(deploy, program):
    scripts = sorted(p for pattern in ("*/*.sh", "*/*.sbatch") for p in deploy.glob(pattern))
    assert [p.name for p in scripts] == ["lock.sh", "bucket.sh", "build.sbatch"]
    done = subprocess.run([program("shellcheck"), *scripts], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def asked(tmp_path: Path, deploy: Path) -> Callable[..., list[list[str]]]:
    """Return what runs the script where nothing is there yet, or all is, and tells the commands that it ran."""

    def run(*arguments: str, there: bool) -> list[list[str]]:
        stub, said = tmp_path / "gcloud", tmp_path / "said"
        said.write_text("")
        stub.write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            f"with open({str(said)!r}, 'a') as file:\n"
            "    print(json.dumps(sys.argv[1:]), file=file)\n"
            f"sys.exit('describe' in sys.argv and not {there})\n"
        )
        stub.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["bash", deploy / "gcp" / "bucket.sh", *arguments], env=environment, check=True)
        return [json.loads(line) for line in said.read_text().splitlines()]

    return run


def test_a_first_run_makes_the_bucket_and_the_accounts(asked, deploy):
    settings = [*SETTINGS, f"--lifecycle-file={deploy}/gcp/lifecycle.json"]
    calls = [call for call in asked("a-project", "a-bucket", "us-east1", there=False) if "describe" not in call]
    assert calls[0] == [
        *["storage", "buckets", "create", "gs://a-bucket", "--project=a-project", "--location=us-east1"],
        *settings,
    ]
    made = [call[:4] for call in calls if call[1:3] == ["service-accounts", "create"]]
    assert made == [["iam", "service-accounts", "create", name] for name in ("daodask-builder", "daodask-reader")]
    granted = {(call[3], call[4], call[5]) for call in calls if "add-iam-policy-binding" in call}
    # The bucket's roles are for the bucket, and the project gives none.
    assert granted == {
        ("gs://a-bucket", f"--member=serviceAccount:{EMAIL.format('builder')}", "--role=roles/storage.objectUser"),
        ("gs://a-bucket", f"--member=serviceAccount:{EMAIL.format('reader')}", "--role=roles/storage.objectViewer"),
        (EMAIL.format("builder"), "--project=a-project", "--role=roles/iam.workloadIdentityUser"),
    }
    assert calls[-1][-1] == "--member=serviceAccount:a-project.svc.id.goog[daodask/daodask]"


def test_a_second_run_brings_what_is_there_to_the_same(asked, deploy):
    calls = [call for call in asked("a-project", "a-bucket", there=True) if "describe" not in call]
    assert not any("create" in call for call in calls)
    assert calls[0] == [
        *["storage", "buckets", "update", "gs://a-bucket", "--project=a-project", *SETTINGS],
        f"--lifecycle-file={deploy}/gcp/lifecycle.json",
    ]


@pytest.mark.parametrize("there", [False, True])
def test_gcloud_has_these_commands_and_flags(asked, program, there):
    """By the table that an installed gcloud completes command lines with."""
    table = Path(program("gcloud")).resolve().parents[1] / "data" / "cli" / "gcloud_completions.py"
    if not table.is_file():
        pytest.skip(f"this gcloud has no table of its commands at {table}")
    names: dict[str, Any] = {}
    exec(compile(table.read_text(), str(table), "exec"), names)  # noqa: S102  a table, of the installed gcloud
    for call in asked("a-project", "a-bucket", there=there):
        known = names["STATIC_COMPLETION_CLI_TREE"]
        flags = set(known["flags"])
        for word in call:
            if word not in known["commands"]:
                break
            known = known["commands"][word]
            flags |= set(known["flags"])
        assert not known["commands"], f"{call}: not a whole command"
        assert {word.partition("=")[0] for word in call if word.startswith("--")} <= flags, call


def test_the_lifecycle_never_touches_what_a_snapshot_may_name(deploy):
    from daodask.format.spec import DATASETS, FEATURES, SCRATCH, SNAPSHOTS

    rules = json.loads((deploy / "gcp" / "lifecycle.json").read_text())["rule"]
    prefixes = [p for rule in rules if rule["action"]["type"] == "Delete" for p in rule["condition"]["matchesPrefix"]]
    assert prefixes == [f"atlas/{SCRATCH}/"]
    assert SCRATCH not in (DATASETS, FEATURES, SNAPSHOTS)
    # A build goes on where it was cut off as long as its scratch is there: a day is never enough.
    assert all(rule["condition"]["age"] >= 2 for rule in rules)
