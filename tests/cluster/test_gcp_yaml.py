"""deploy/gcp.yaml against Ray's own schema, and beside cluster.yaml, of which it is a copy for another provider."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.cluster.test_cluster_yaml import prepared
from tests.helpers import ROOT

OTHER = {"metadata", "provider", "available_node_types", "head_setup_commands"}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


@pytest.fixture
def gcp() -> dict[str, Any]:
    return read("deploy/gcp.yaml")


def test_passes_the_loader_and_its_schema(gcp: dict[str, Any]) -> None:
    found = prepared(gcp)
    assert set(found) - set(gcp) == set()
    workers = {name: kind["max_workers"] for name, kind in found["available_node_types"].items()}
    assert workers == {"head": 0, "gpu": 4, "cpu": 2}


def test_is_cluster_yaml_for_another_provider(gcp: dict[str, Any]) -> None:
    aws = read("cluster.yaml")
    assert gcp.keys() == aws.keys()
    assert {key for key in aws if aws[key] != gcp[key]} == OTHER
    for name, kind in aws["available_node_types"].items():
        mine = gcp["available_node_types"][name]
        assert {**kind, "node_config": None} == {**mine, "node_config": None}


def test_workers_are_spot_and_have_an_account_without_roles(gcp: dict[str, Any]) -> None:
    configs = {name: kind["node_config"] for name, kind in gcp["available_node_types"].items()}
    spot = {name for name, one in configs.items() if one.get("scheduling", {}).get("provisioningModel") == "SPOT"}
    assert spot == {"gpu", "cpu"}
    blank = gcp["metadata"]["fill_in"]["worker_account"]
    assert {name: [one["email"] for one in found.get("serviceAccounts", [])] for name, found in configs.items()} == {
        "head": [],
        "gpu": [blank],
        "cpu": [blank],
    }


def test_the_guide_explains_every_placeholder(gcp: dict[str, Any]) -> None:
    guide = (ROOT / "docs" / "cluster.md").read_text().partition("## Google Cloud")[2]
    assert [name for name in gcp["metadata"]["fill_in"] if f"`{name}`" not in guide] == []
