"""deploy/kuberay against the fields of KubeRay's and of Kubernetes' resources, without a cluster."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray._private import ray_constants

from lungseg_ray.config import Settings, load_settings
from lungseg_ray.jobs.command import SETTINGS
from tests.deploy.kuberay import SCHEMAS
from tests.helpers import ROOT

FOLDER = ROOT / "deploy/kuberay"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
JOBS = [name for name in FILES if name != "cluster.yaml"]


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def pods(cluster: Any) -> list[Any]:
    return [group["template"] for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"])]


def check(resource: Any) -> None:
    """Raises an error for a field that KubeRay or Kubernetes does not know, or of another type."""
    jsonschema.validate(resource, SCHEMAS[resource["kind"]])
    if resource["kind"] == "RayCluster":
        for pod in pods(resource):
            whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod["spec"]}
            kubernetes_validate.validate(whole, "1.30", strict=True)


@pytest.mark.parametrize("name", FILES)
def test_the_fields_are_known(name: str) -> None:
    check(load(name))


@pytest.mark.parametrize(
    "damage",
    [
        lambda spec: spec.update(enableInTreeAutoscalling=True),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(imagee="x"),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].update(terminationGracePeriodSeconds="long"),
    ],
)
def test_a_mistake_is_found(damage: Callable[[Any], None]) -> None:
    resource = copy.deepcopy(load("cluster.yaml"))
    damage(resource["spec"])
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(resource)


def test_pods_have_no_more_rights_than_they_need() -> None:
    spec = load("cluster.yaml")["spec"]
    for pod in pods(load("cluster.yaml")):
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not any("key" in variable["name"].lower() for variable in container.get("env", []))
    assert spec["authOptions"] == {"mode": "token", "secretName": "lungseg-ray-token"}


def test_the_object_store_fits_in_shared_memory() -> None:
    spec = load("cluster.yaml")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (shared,) = [one for one in group["template"]["spec"]["volumes"] if one["name"] == "shm"]
        size = int(shared["emptyDir"]["sizeLimit"].removesuffix("M")) * 10**6
        assert size == int(group["rayStartParams"]["object-store-memory"]) * 11 // 10


def test_a_pod_has_the_time_to_save_a_checkpoint() -> None:
    """Ray kills its processes after the time of the variable, and Kubernetes the pod after the other."""
    gpu = load("cluster.yaml")["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    (time,) = [one for one in gpu["containers"][0]["env"] if one["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    assert 60 < float(time["value"]) < gpu["terminationGracePeriodSeconds"] - 10
    assert hasattr(ray_constants, time["name"])


def test_the_version_of_ray_is_the_pinned_one() -> None:
    version = str(load("cluster.yaml")["spec"]["rayVersion"])
    assert f"\nray=={version}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("name", JOBS)
def test_the_commands_are_those_of_the_jobs(name: str) -> None:
    """Their settings are read as the job would read them."""
    job = load(name)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": load("cluster.yaml")["metadata"]["name"]}
    python, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", f"/app/jobs/{name.removesuffix('.yaml')}.py")
    assert (ROOT / script.removeprefix("/app/")).is_file()
    here = [word.replace("/app/", f"{ROOT}/") for word in arguments]
    settings = load_settings(SETTINGS[name.removesuffix(".yaml")], here)
    if isinstance(settings, Settings):
        assert str(settings.shards.root).startswith("s3://")


def test_the_jobs_are_all_there() -> None:
    assert {name.removesuffix(".yaml") for name in JOBS} == {"shard", "train", "tune", "evaluate", "predict"}
