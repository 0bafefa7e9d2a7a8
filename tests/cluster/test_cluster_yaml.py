"""cluster.yaml against Ray's own schema, loader and AWS code, without a network."""

from __future__ import annotations

import copy
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from lungseg_ray.config import SearchSettings, Settings
from tests.helpers import ROOT

TEXT = (ROOT / "cluster.yaml").read_text()
GUIDE = (ROOT / "docs" / "cluster.md").read_text()
AWS = "ray.autoscaler._private.aws"


@pytest.fixture
def written() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does before it asks AWS anything: defaults, merged commands, the schema and Ray's own checks."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    found: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(found)
    return found


def test_passes_the_loader_and_its_schema(written: dict[str, Any]) -> None:
    found = prepared(written)

    assert written["head_node_type"] == "head"
    assert {name: kind["max_workers"] for name, kind in found["available_node_types"].items()} == {
        "head": 0,
        "gpu": 4,
        "cpu": 2,
    }
    assert found["max_workers"] == 4 + 2


def test_leaves_no_field_to_the_defaults_of_another_ray_version(written: dict[str, Any]) -> None:
    assert set(prepared(written)) - set(written) == set()


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.update(max_worker=6),
        lambda config: config.update(max_workers=-1),
        lambda config: config["docker"].update(shm_size="4g"),
        lambda config: config["available_node_types"]["gpu"].pop("node_config"),
        lambda config: config["available_node_types"]["gpu"]["resources"].update(GPU="one"),
        lambda config: config["setup_commands"].append({"run": "pip install"}),
    ],
    ids=["unknown field", "negative", "unknown docker field", "no machine", "text for a number", "not a command"],
)
def test_a_broken_copy_fails_the_schema(written: dict[str, Any], damage: Callable[[dict[str, Any]], None]) -> None:
    damage(written)

    with pytest.raises(jsonschema.ValidationError):
        prepared(written)


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.update(head_node_type="master"),
        lambda config: config["available_node_types"]["gpu"].update(min_workers=7),
    ],
    ids=["unknown head", "more workers than allowed"],
)
def test_a_contradiction_fails_the_loader(written: dict[str, Any], damage: Callable[[dict[str, Any]], None]) -> None:
    damage(written)

    with pytest.raises(ValueError, match=r"head_node_type|max_workers"):
        prepared(written)


def test_versions_are_those_of_the_constraints(written: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned
    images = [written["docker"]["image"]]
    images += [kind["docker"]["worker_image"] for kind in written["available_node_types"].values() if "docker" in kind]

    assert len(images) == 2
    for image in images:
        assert image.startswith(f"rayproject/ray:{pinned[1]}-py311-"), image
    installs = [command for command in prepared(written)["head_setup_commands"] if "pip install" in command]
    assert len(installs) == 2
    assert all("-c /tmp/lungseg-ray/constraints.txt" in command for command in installs)


def test_what_an_installation_needs_is_mounted(written: dict[str, Any]) -> None:
    mounts = written["file_mounts"]
    for name in ("lungseg_ray", "jobs", "configs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        assert (ROOT / name).exists()
        assert mounts.pop(f"~/lungseg-ray/{name}") == name
    assert mounts == {"~/.ray/auth_token": "~/.ray/auth_token"}
    # The files that pyproject.toml names are among them.
    project = (ROOT / "pyproject.toml").read_text()
    assert 'readme = "README.md"' in project
    assert 'license-files = ["LICENSE"]' in project


def start_commands(config: dict[str, Any]) -> dict[str, str]:
    """The command of the head and that of the workers that start Ray."""
    return {
        who: next(command for command in config[f"{who}_start_ray_commands"] if "ray start" in command)
        for who in ("head", "worker")
    }


def test_ray_starts_with_a_token_on_every_node(written: dict[str, Any]) -> None:
    for command in start_commands(written).values():
        assert re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b[^;]*;", command)
    assert "-e RAY_AUTH_MODE=token" in written["docker"]["run_options"]
    assert "RAY_AUTH_TOKEN" not in TEXT, "the token itself stands in no file"


def test_the_object_store_is_what_shared_memory_allows(written: dict[str, Any]) -> None:
    shared = [int(found[1]) for option in written["docker"]["run_options"] if (found := SHM.fullmatch(option))]
    stores = {who: int(STORE.findall(command)[0]) for who, command in start_commands(written).items()}

    # Ray's own rule: shared memory is the object store's size and a tenth more.
    assert shared == [4_400_000_000]
    assert stores == {"head": 4_000_000_000, "worker": 4_000_000_000}
    assert stores["head"] * 11 == shared[0] * 10


SHM = re.compile(r"--shm-size=(\d+)b")
STORE = re.compile(r"--object-store-memory=(\d+)\b")


def test_a_stopped_job_has_a_minute(written: dict[str, Any]) -> None:
    assert "-e RAY_JOB_STOP_WAIT_TIME_S=60" in written["docker"]["head_run_options"]


def test_training_has_gpus_and_the_head_runs_no_task(written: dict[str, Any]) -> None:
    kinds = written["available_node_types"]

    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["gpu"]["resources"] == {"CPU": 4, "GPU": 1}
    assert kinds["cpu"]["resources"] == {"CPU": 8}
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"gpu", "cpu"}


def test_holds_no_secret() -> None:
    for secret in (r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", r"(?i)aws_(access|secret|session)", r"PRIVATE KEY", r"[0-9a-f]{64}"):
        assert not re.search(secret, TEXT), secret


def test_nodes_have_roles_and_only_the_head_has_the_heads(written: dict[str, Any]) -> None:
    kinds, blanks = written["available_node_types"], written["metadata"]["fill_in"]
    roles = {name: kind["node_config"]["IamInstanceProfile"]["Arn"] for name, kind in kinds.items()}

    head, worker = blanks["head_profile"], blanks["worker_profile"]
    assert roles == {"head": head, "gpu": worker, "cpu": worker}
    assert head != worker
    assert "aws_credentials" not in written["provider"]


def test_no_port_is_open_to_the_world(written: dict[str, Any]) -> None:
    everything = json.dumps(prepared(written))

    assert "0.0.0.0" not in everything
    assert "::/0" not in everything
    assert "security_group" not in written["provider"]
    # The dashboard takes jobs; it listens on the head alone.
    assert "--dashboard-host=127.0.0.1 " in start_commands(written)["head"]
    ranges = re.findall(r"--cidr (\S+)", GUIDE)
    assert ranges == ["203.0.113.0/24"]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray's AWS code over an account in which nothing exists; making anything there fails the test."""

    class Nothing:
        def all(self) -> list[Any]:
            return []

        def filter(self, **_: Any) -> list[Any]:
            return []

    class Account:
        security_groups = subnets = Nothing()

    boto3 = ModuleType("boto3")
    parts = {name: ModuleType(name) for name in ("boto3.exceptions", "boto3.resources", "boto3.resources.base")}
    vars(boto3).update(__version__="1.43", resource=lambda *_, **__: Account())
    vars(parts["boto3.exceptions"])["ResourceNotExistsError"] = KeyError
    vars(parts["boto3.resources.base"])["ServiceResource"] = object
    for name, module in {"boto3": boto3, **parts}.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = {name for name in sys.modules if name.startswith(AWS)}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    yield importlib.import_module(f"{AWS}.config")
    for name in [name for name in sys.modules if name.startswith(AWS)]:
        del sys.modules[name]


def test_ray_makes_no_role_no_group_and_takes_no_old_image(written: dict[str, Any], aws: Any) -> None:
    config = {**prepared(written), "head_node": {}}
    before = copy.deepcopy(config)

    for step in (aws._configure_iam_role, aws._configure_security_group, aws._check_ami):
        config = step(config) or config

    assert config == before


def test_blanks_are_noticed(written: dict[str, Any], aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def abort(message: str, **_: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(aws.cli_logger, "abort", abort)
    if "00000000000" not in written["metadata"]["fill_in"]["security_group"]:
        pytest.skip("the blanks are filled in")

    with pytest.raises(RuntimeError, match="Failed to detect a security group"):
        aws._configure_subnet(prepared(written))


def test_a_group_that_ray_makes_would_be_open(aws: Any) -> None:
    """The reason why the group is made beforehand; when this fails, Ray has changed its mind."""
    rules = aws._create_default_inbound_rules({"sg-1"})

    ports = [(rule["FromPort"], rule["IpRanges"]) for rule in rules if "IpRanges" in rule]
    assert ports == [(22, [{"CidrIp": "0.0.0.0/0"}])]


def test_the_guide_explains_every_field(written: dict[str, Any]) -> None:
    names = [*written, *written["metadata"]["fill_in"], *written["available_node_types"]]

    assert [name for name in names if not re.search(rf"^\| [^|]*`{name}`", GUIDE, flags=re.MULTILINE)] == []


def test_the_settings_in_the_guide_exist() -> None:
    tree = {**Settings().model_dump(), "sweep": SearchSettings.model_fields}
    named = re.findall(r"--([a-z]+)\.([a-z_]+)", GUIDE)

    assert ("train", "min_workers") in named
    assert [f"{section}.{key}" for section, key in named if key not in tree.get(section, {})] == []
