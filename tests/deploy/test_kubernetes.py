"""deploy/kubernetes, as its README's commands send it: fields that nobody knows are refused."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from daodask.build.spec import load_spec

SETTINGS = {"PROJECT": "a-project", "BUCKET": "a-bucket", "IMAGE": "example.org/daodask:0.1.0"}
VERSION = "1.33"


def commands(deploy: Path) -> list[str]:
    """The shell commands of the README, in order."""
    text = (deploy / "kubernetes" / "README.md").read_text()
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run the README's commands with a kubectl that repeats what it gets."""
    root = Path(__file__).parents[2]
    stub = tmp_path_factory.mktemp("bin") / "kubectl"
    stub.write_text('#!/bin/sh\ntest "$*" = "apply -f -" && cat\n')
    stub.chmod(0o755)
    environment = SETTINGS | {"PATH": f"{stub.parent}:/usr/bin:/bin"}
    found: list[dict[str, Any]] = []
    for command in commands(root / "deploy"):
        if "kubectl apply" in command:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                env=environment,
                cwd=root,
                check=True,
                capture_output=True,
                text=True,
            )
            found += yaml.safe_load_all(done.stdout)
    return found


def of_kind(sent: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [resource for resource in sent if resource["kind"] == kind]


def pods(resource: Any) -> Iterator[dict[str, Any]]:
    """All pod specs within a resource."""
    if isinstance(resource, dict):
        if "containers" in resource:
            yield resource
        for value in resource.values():
            yield from pods(value)
    elif isinstance(resource, list):
        for value in resource:
            yield from pods(value)


def test_the_commands_send_all_of_it(sent, deploy):
    assert [(r["kind"], r["metadata"]["name"]) for r in sent] == [
        ("Namespace", "daodask"),
        ("ServiceAccount", "daodask"),
        ("DaskCluster", "daodask"),
        ("DaskAutoscaler", "daodask"),
        ("CronJob", "daodask-vacuum"),
        ("ConfigMap", "daodask-build"),
        ("DaskJob", "daodask-build"),
    ]
    assert {p.stem for p in (deploy / "kubernetes").glob("*.yaml")} <= set(
        re.findall(r"\w+", " ".join(commands(deploy)))
    )
    assert all(r["metadata"].get("namespace", "daodask") == "daodask" for r in sent)
    text = yaml.safe_dump_all(sent)
    assert not re.search(r"PROJECT|BUCKET|IMAGE", text)
    assert {c["image"] for r in sent for pod in pods(r) for c in pod["containers"]} == {SETTINGS["IMAGE"]}


# -- schemas -------------------------------------------------------------------------------------------------------


def resources_of_the_operator() -> tuple[dict[str, Any], dict[str, Any]]:
    """The operator's resource definitions by kind, and the templates that they refer to."""
    package = pytest.importorskip("dask_kubernetes", reason="needs dask-kubernetes: pip install daodask[deploy-test]")
    folder = Path(package.__file__).parent / "operator" / "customresources"
    templates = yaml.safe_load((folder / "templates.yaml").read_text())["definitions"]
    found = {}
    for path in folder.glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        if isinstance(definition, dict) and definition.get("kind") == "CustomResourceDefinition":
            (version,) = definition["spec"]["versions"]
            api = f"{definition['spec']['group']}/{version['name']}"
            found[definition["spec"]["names"]["kind"]] = (api, version["schema"]["openAPIV3Schema"])
    return found, templates


#: Fields of a custom resource that its definition leaves to Kubernetes, and the pod that shows them to be right.
KUBERNETES = {
    "PodSpec": lambda value: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": value},
    "ServiceSpec": lambda value: {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": value},
}


def check(value: Any, schema: dict[str, Any], templates: dict[str, Any], where: str = "") -> None:
    """Refuse what a schema does not allow, and fields that it does not name; parts of Kubernetes by its own schemas."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install daodask[deploy-test]")
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        if name in templates:
            check(value, templates[name], templates, where)
        else:
            validate.validate(KUBERNETES[name.rpartition(".")[2]](value), VERSION, strict=True)
    elif "properties" in schema:
        assert isinstance(value, dict), f"{where}: expected fields, got {value!r}"
        unknown = set(value) - set(schema["properties"]) - ({"apiVersion", "kind", "metadata"} if not where else set())
        assert not unknown, f"{where}: unknown fields {unknown}"
        assert set(schema.get("required", ())) <= set(value), f"{where}: {schema['required']} are required"
        for key in set(value) & set(schema["properties"]):
            check(value[key], schema["properties"][key], templates, f"{where}.{key}")
    elif kind := schema.get("type"):
        types = {"string": str, "integer": int, "object": dict}
        assert isinstance(value, types[kind]), f"{where}: expected {kind}, got {value!r}"
        assert not isinstance(value, bool)


def check_resource(resource: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install daodask[deploy-test]")
    custom, templates = resources_of_the_operator()
    if resource["kind"] not in custom:
        validate.validate(resource, VERSION, strict=True)
        return
    api, schema = custom[resource["kind"]]
    assert resource["apiVersion"] == api
    check(resource, schema, templates)


def test_each_resource_follows_its_definition(sent):
    for resource in sent:
        check_resource(resource)


@pytest.mark.parametrize("kind", ["DaskCluster", "DaskAutoscaler", "DaskJob", "CronJob", "ServiceAccount"])
def test_an_unknown_field_anywhere_is_refused(sent, kind):
    """The check itself: each mapping of the resource in turn gets a field that nobody knows."""
    (resource,) = of_kind(sent, kind)

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        if isinstance(value, dict):
            yield path
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in pairs:
            yield from places(inner, (*path, key))

    free = {"labels", "annotations", "requests", "limits", "selector", "metadata"}  # any names may be there
    tried = 0
    for path in places(resource):
        if path and path[-1] in free:
            continue
        changed = copy.deepcopy(resource)
        place = changed
        for key in path:
            place = place[key]
        place["unheardOf"] = "x"
        with pytest.raises(Exception, match=r"unheardOf"):
            check_resource(changed)
        tried += 1
    assert tried >= (1 if kind == "ServiceAccount" else 2)


def test_what_the_operator_makes_of_a_cluster_is_valid(sent):
    """The deployments, the service and the pod that it builds, by its own functions."""
    pytest.importorskip("dask_kubernetes", reason="needs dask-kubernetes: pip install daodask[deploy-test]")
    validate = pytest.importorskip("kubernetes_validate", reason="pip install daodask[deploy-test]")
    from dask_kubernetes.operator.controller import controller
    from dask_kubernetes.operator.validation import validate_cluster_name

    job = of_kind(sent, "DaskJob")[0]
    clusters = [of_kind(sent, "DaskCluster")[0], {"metadata": job["metadata"], "spec": job["spec"]["cluster"]["spec"]}]
    for cluster in clusters:
        name, spec = cluster["metadata"]["name"], cluster["spec"]
        validate_cluster_name(name)
        worker = controller.build_worker_deployment_spec(
            f"{name}-default", "daodask", name, "0", spec["worker"]["spec"], {}, {}
        )
        scheduler = controller.build_scheduler_deployment_spec(name, spec["scheduler"]["spec"], {}, {})
        service = controller.build_scheduler_service_spec(name, spec["scheduler"]["service"], {}, {})
        for made in (worker, scheduler, service):
            validate.validate(made, VERSION, strict=True)
        # The service finds the scheduler's pod and its ports.
        labels = scheduler["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        ports = {p["name"] for p in spec["scheduler"]["spec"]["containers"][0]["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports
        assert_expands(worker["spec"]["template"]["spec"])
    pod = controller.build_job_pod_spec("daodask-build", "daodask-build", "daodask", job["spec"]["job"]["spec"], {}, {})
    validate.validate(pod, VERSION, strict=True)
    assert_expands(pod["spec"])


def assert_expands(pod: dict[str, Any]) -> None:
    """Each $(NAME) of a command is a variable of its container: the operator adds those of the cluster."""
    (container,) = pod["containers"]
    used = set(re.findall(r"\$\((\w+)\)", " ".join(container["args"])))
    assert used
    assert used <= {variable["name"] for variable in container["env"]}


# -- what pods may, and have ---------------------------------------------------------------------------------------


def test_pods_have_no_key_and_no_privilege(sent):
    (account,) = of_kind(sent, "ServiceAccount")
    assert account["metadata"]["annotations"] == {
        "iam.gke.io/gcp-service-account": "daodask-builder@a-project.iam.gserviceaccount.com"
    }
    found = [pod for resource in sent for pod in pods(resource)]
    assert len(found) == 6
    for pod in found:
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not any("secret" in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
            assert not any("KEY" in v["name"] or "TOKEN" in v["name"] for v in container["env"])
            # What is written, with a root that can't be, is in a volume.
            assert {"name": "scratch", "mountPath": "/tmp"} in container["volumeMounts"]  # noqa: S108


def test_the_build_file_can_be_built_from(sent):
    (config,) = of_kind(sent, "ConfigMap")
    spec = load_spec(yaml.safe_load(config["data"]["atlas.yaml"]))
    assert [study.id for study in spec.studies] == ["pbmc"]
    (container,) = of_kind(sent, "DaskJob")[0]["spec"]["job"]["spec"]["containers"]
    assert container["args"][:4] == ["daodask", "build", "/build/atlas.yaml", "gs://a-bucket/atlas"]


def test_the_commands_in_pods_are_commands(sent):
    from daodask.cli import _parser

    ours = [c["args"] for r in sent for pod in pods(r) for c in pod["containers"] if c["args"][0] == "daodask"]
    assert {args[1] for args in ours} == {"build", "vacuum"}
    for args in ours:
        _parser().parse_args(args[1:])


def test_helm_takes_the_values_of_the_gateway(deploy, tmp_path):
    """Where helm is, and the chart: its own repository is asked for it."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not installed here")
    chart = tmp_path / "chart"
    source = re.search(r"https://\S+", (deploy / "gateway" / "README.md").read_text())
    assert source is not None
    pulled = subprocess.run(
        [helm, "pull", "dask-gateway", "--repo", source[0], "--untar", "--untardir", chart],
        capture_output=True,
        check=False,
        timeout=60,
    )
    if pulled.returncode:
        pytest.skip("the chart of dask-gateway can't be got here")
    values = deploy / "gateway" / "values.yaml"
    subprocess.run(
        [helm, "template", "gateway", chart / "dask-gateway", "--values", values], check=True, capture_output=True
    )
