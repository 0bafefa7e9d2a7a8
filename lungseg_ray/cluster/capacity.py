"""What a cluster has, what Ray's autoscaler can add to it, and the wait for the machines that a job needs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
import yaml
from ray._private import ray_constants
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg_ray.cluster.session import available, nodes_with_cpus
from lungseg_ray.cluster.watchdog import Watchdog, free_resources
from lungseg_ray.errors import UserError
from lungseg_ray.progress import say

AnyPlan = TypeVar("AnyPlan")
Bundle = Mapping[str, float]
"""What one process needs: an amount for each resource of Ray, such as CPU and GPU."""

MACHINES_SECONDS = 1800.0
"""Seconds without a new machine after which a job ends that waits for machines."""
_STATUS_SECONDS = 10.0
"""Seconds within which an autoscaler that has just started publishes its first status."""
_FIRST_REPORT_SECONDS = 2.0
_LONGEST_REPORT_SECONDS = 300.0
_HEAD = "node:__internal_head__"
"""The resource that Ray gives to the head node alone."""
_CONFIG = "--autoscaling-config="
"""The option by which Ray tells its autoscaler the configuration of the cluster."""
_FIXED = ("node_", "local.cluster.node")
"""How the types of nodes are named that Ray cannot start."""
_HEAD_SECONDS = 60.0


@dataclass(frozen=True)
class NodeType:
    """A type of machine that the autoscaler can start.

    Attributes:
        name: The name in the configuration of the cluster.
        resources: The resources of Ray that such a machine has.
        most: The largest number of machines of this type.
    """

    name: str
    resources: Bundle
    most: int


@dataclass(frozen=True)
class NodeTypes:
    """The types of machines that the autoscaler can start.

    Attributes:
        types: The types, without that of the head.
        most: The largest number of machines of all types together.
    """

    types: Sequence[NodeType]
    most: int

    def total(self, resource: str) -> float:
        """Returns the largest amount of a resource that machines of these types can have together."""
        found = sorted(one.resources.get(resource, 0.0) for one in self.types for _ in range(one.most))
        return sum(found[::-1][: self.most])

    def can_hold(self, bundle: Bundle) -> bool:
        """Returns whether a machine of some type can hold a process that needs these resources."""
        return any(one.most and _holds(one.resources, bundle) for one in self.types)

    def __str__(self) -> str:
        if not self.types:
            return "no machine"
        return " or ".join(f"{one.most} x {one.name} ({_words(one.resources)})" for one in self.types)


@dataclass(frozen=True)
class Capacity:
    """What a cluster can have.

    Attributes:
        cpus: The logical CPUs, rounded down to a whole number.
        gpus: The GPUs, rounded down to a whole number.
        nodes: The number of nodes that have CPUs, at least 1.
    """

    cpus: int
    gpus: int
    nodes: int


_UNLIMITED = Capacity(cpus=1 << 20, gpus=1 << 20, nodes=1 << 10)


def present_capacity() -> Capacity:
    """Returns what the connected cluster has at the moment."""
    cpus, gpus = available()
    return Capacity(cpus, gpus, max(nodes_with_cpus(), 1))


@dataclass(frozen=True)
class Planned(Generic[AnyPlan]):
    """A plan for the machines that a cluster can have.

    Attributes:
        plan: The plan. Where it is not known what the autoscaler can start, it is made for what the cluster has, or for
            a cluster without limits if that is not enough.
        make: Makes a plan for a cluster.
        needs: Returns what each process needs that a plan starts with.
        grows: Whether an autoscaler can add machines.
        types: The types of machines that it can start; None if they are not known.
    """

    plan: AnyPlan
    make: Callable[[Capacity], AnyPlan]
    needs: Callable[[AnyPlan], Sequence[Bundle]]
    grows: bool = False
    types: NodeTypes | None = None

    def when_up(self) -> AnyPlan:
        """Waits for the machines that the plan starts with.

        Returns:
            The plan for what the cluster has then.

        Raises:
            JobFailedError: If no machine comes for `MACHINES_SECONDS`.
        """
        if not self.grows:
            return self.plan
        wait_for(self.needs(self.plan), self.types)
        return self.make(present_capacity())


def plan_on_cluster(
    make: Callable[[Capacity], AnyPlan], needs: Callable[[AnyPlan], Sequence[Bundle]]
) -> Planned[AnyPlan]:
    """Plans a job for what its cluster has, or can have if it has an autoscaler.

    Args:
        make: Makes a plan for a cluster; raises a `UserError` if it does not fit.
        needs: Returns what each process needs that a plan starts with.

    Raises:
        UserError: If the plan does not fit.
    """
    present = present_capacity()
    refused: UserError | None = None
    try:
        plan = make(present)
    except UserError as error:
        refused = error
    if not _has_autoscaler(patient=refused is not None):
        if refused:
            raise refused
        return Planned(plan, make, needs)
    types = _node_types()
    if types:
        return Planned(_plan_for_most(make, needs, types, present), make, needs, grows=True, types=types)
    if refused:
        try:
            plan = make(replace(_UNLIMITED, gpus=present.gpus))
        except UserError:
            plan = make(_UNLIMITED)
    return Planned(plan, make, needs, grows=True)


def _plan_for_most(
    make: Callable[[Capacity], AnyPlan],
    needs: Callable[[AnyPlan], Sequence[Bundle]],
    types: NodeTypes,
    present: Capacity,
) -> AnyPlan:
    """Makes a plan for what the cluster has if all its machines are up.

    Raises:
        UserError: If the plan does not fit, or if no machine can hold one of its processes.
    """
    up = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    head: Bundle = next((resources for resources in up if _HEAD in resources), {})
    with_cpus = sum(one.most for one in types.types if one.resources.get("CPU"))
    most = Capacity(
        cpus=max(present.cpus, int(head.get("CPU", 0) + types.total("CPU"))),
        gpus=max(present.gpus, int(head.get("GPU", 0) + types.total("GPU"))),
        nodes=max(present.nodes, min(with_cpus, types.most)),
    )
    try:
        plan = make(most)
    except UserError as error:
        raise UserError(f"{error} The autoscaler of the cluster can start {types}.") from None
    for bundle in needs(plan):
        if not types.can_hold(bundle) and not any(_holds(resources, bundle) for resources in up):
            raise UserError(
                f"A process of this job needs {_words(bundle)}, which no machine of the cluster has. The autoscaler "
                f"can start {types}. Ask for less, or add a type of machine to the configuration of the cluster."
            )
    return plan


def wait_for(bundles: Sequence[Bundle], types: NodeTypes | None = None) -> None:
    """Waits until the cluster has room for some processes at the same time, and says what it waits for.

    The request is a placement group, which tells the autoscaler what is missing. It ends with this call, or with this
    process.

    Args:
        bundles: What each process needs.
        types: The types of machines that the autoscaler can start; None if they are not known.

    Raises:
        JobFailedError: If no machine comes for `MACHINES_SECONDS`.
    """
    wanted = ", ".join(f"{count} x {words}" for words, count in Counter(map(_words, bundles)).items())

    def waiting_for() -> str:
        does = _status() or "does not answer"
        return f"room for {wanted}; {free_resources()}; the autoscaler {does}" + (f", of {types}" if types else "")

    watchdog = Watchdog(MACHINES_SECONDS, lambda _: None)
    begun = time.monotonic()
    due = begun + _FIRST_REPORT_SECONDS
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    try:
        while not group.wait(timeout_seconds=1):
            now = time.monotonic()
            up = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
            watchdog.look({0: hash(tuple(up))}, now=now, waiting_for=waiting_for)
            if now >= due:
                say(f"Waiting for machines since {now - begun:.0f} s: {waiting_for()}")
                due = now + min(now - begun, _LONGEST_REPORT_SECONDS)
    finally:
        with suppress(ray.exceptions.RayError):
            remove_placement_group(group)
    if time.monotonic() > begun + _FIRST_REPORT_SECONDS:
        say(f"The machines are up, after {time.monotonic() - begun:.0f} s.")


def wait_for_cpu() -> bool:
    """Waits until the cluster has a CPU for data tasks.

    Returns:
        Whether an autoscaler adds machines to the cluster, so that there may be machines now that were not there
        before.

    Raises:
        UserError: If the cluster has no CPU and cannot have one.
        JobFailedError: If no machine comes for `MACHINES_SECONDS`.
    """
    planned = plan_on_cluster(require_cpu, lambda _: [{"CPU": 1}])
    planned.when_up()
    return planned.grows


def require_cpu(capacity: Capacity) -> Capacity:
    """Returns what it is given.

    Args:
        capacity: What a cluster has, or can have.

    Raises:
        UserError: If there is no CPU for data tasks.
    """
    if capacity.cpus < 1:
        raise UserError("The cluster has no CPU for this work. Add a node that has one.")
    return capacity


def _holds(resources: Bundle, bundle: Bundle) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in bundle.items())


def _words(bundle: Bundle) -> str:
    """Returns resources in words, such as "1 GPU, 4 CPU"; without those that Ray counts in bytes or per node."""
    left_out = ("memory", "object_store_memory")
    found = [f"{amount:g} {name}" for name, amount in bundle.items() if name not in left_out and ":" not in name]
    return ", ".join(found) or "nothing"


@dataclass(frozen=True)
class _Status:
    """What an autoscaler last reported.

    Attributes:
        types: The names of the types of the machines that are up.
        starting: The number of machines that start, by the name of their type.
        failed: The number of machines that did not start or were lost, by the name of their type.
    """

    types: Set[str]
    starting: Counter[str]
    failed: Counter[str]

    def __str__(self) -> str:
        parts = [f"starts {count} x {name}" for name, count in self.starting.items()]
        parts += [f"{count} x {name} failed" for name, count in self.failed.items()]
        return ", ".join(parts) or "starts none yet"


def _has_autoscaler(*, patient: bool) -> bool:
    """Returns whether an autoscaler adds machines to the connected cluster.

    Args:
        patient: Whether to wait for the first report of an autoscaler that has just started.
    """
    node = ray._private.worker._global_node
    if node and node.head:
        # This process has started the cluster, without an autoscaler.
        return False
    deadline = time.monotonic() + (_STATUS_SECONDS if patient else 0.0)
    while (status := _status()) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    # Ray reports each node of a cluster that it cannot change as a type of its own.
    return status is not None and any(name and not name.startswith(_FIXED) for name in status.types)


def _status() -> _Status | None:
    """Returns the last report of Ray's autoscaler; None if there is none, or not yet."""
    if is_autoscaler_v2():
        found = get_cluster_status(ray.get_runtime_context().gcs_address)
        if found.stats.autoscaler_version in (None, "0"):
            return None
        return _Status(
            types={one.ray_node_type_name for one in (*found.active_nodes, *found.idle_nodes)},
            starting=Counter(one.ray_node_type_name for one in found.pending_nodes)
            + Counter({one.ray_node_type_name: one.count for one in found.pending_launches}),
            failed=Counter(one.ray_node_type_name for one in found.failed_nodes)
            + Counter({one.ray_node_type_name: one.count for one in found.failed_launches}),
        )
    stored = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    report: dict[str, Any] | None = json.loads(stored).get("autoscaler_report") if stored else None
    if report is None:
        return None
    return _Status(
        types=set(report["active_nodes"]),
        starting=Counter(report["pending_launches"]) + Counter(name for _, name, _ in report["pending_nodes"]),
        failed=Counter(name for _, name in report["failed_nodes"]),
    )


def _node_types() -> NodeTypes | None:
    """Returns the types of machines of the connected cluster; None if they are not known.

    They are in the configuration that the autoscaler was started with, which lies on the head node.
    """
    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]), None)
    if head is None:
        return None
    here = NodeAffinitySchedulingStrategy(head, soft=False)
    address = ray.get_runtime_context().gcs_address
    try:
        found: NodeTypes | None = ray.get(
            _read_node_types.options(scheduling_strategy=here).remote(address), timeout=_HEAD_SECONDS
        )
    except ray.exceptions.RayError as error:
        say(f"The types of machines of this cluster are not known: {getattr(error, 'cause', None) or error}")
        return None
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _read_node_types(address: str) -> NodeTypes | None:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            config = next((word.removeprefix(_CONFIG) for word in words if word.startswith(_CONFIG)), "")
            if config and f"--gcs-address={address}" in words:
                return parse_node_types((folder / "cwd" / Path(config).expanduser()).read_text())
    return None


def parse_node_types(text: str) -> NodeTypes:
    """Reads the types of machines from the configuration of a cluster, in the format of Ray's cluster launcher.

    Args:
        text: The content of the YAML file.
    """
    config = yaml.safe_load(text)
    most = config.get("max_workers", 2)
    types = [
        NodeType(name, content.get("resources") or {}, min(content.get("max_workers", most), most))
        for name, content in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]
    return NodeTypes(types, most)
