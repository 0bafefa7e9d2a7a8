"""Checks that what a job writes to a location outlives the job, and that every node of the cluster sees it."""

from __future__ import annotations

import uuid

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location
from lungseg_ray.text import first_line

_JOB_COPY = "runtime_resources/working_dir_files"


def check_lasting(place: Location) -> None:
    """Checks that what is written to a location outlives the job.

    Args:
        place: The location that the job writes to.

    Raises:
        UserError: If the location lies in the copy of the working directory that Ray makes for a submitted job and
            deletes afterwards.
    """
    if place.is_local and f"/{_JOB_COPY}/" in place.path:
        name = place.path.split(f"/{_JOB_COPY}/", 1)[1].split("/", 1)[-1]
        raise UserError(
            f"{name}: a submitted job runs in a copy of your folder that Ray deletes, and what it writes there would "
            "be lost. Give an absolute path that all nodes see, or a bucket (s3://...)."
        )


def check_shared(place: Location) -> None:
    """Checks that every node of the cluster sees the same location.

    The check runs at the start of a job, since the job would otherwise fail only after hours of work. The driver writes
    a probe file, every node reads it with its own credentials, and the driver deletes it. A cluster with one node is
    not checked.

    Args:
        place: The folder that the nodes share.

    Raises:
        UserError: If a node does not answer within 60 s, does not find the probe file, or cannot read it with its own
            credentials.
        OSError: If the driver cannot write the probe file.
    """
    nodes = {
        node["NodeID"]: f"{node['NodeManagerHostname']} (node {node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"]
    }
    if len(nodes) < 2:
        return
    probe = place / f".probe-{uuid.uuid4().hex[:8]}"
    probe.write_text("seen")
    try:
        asked = {
            node: _sees.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(probe)
            for node in nodes
        }
        found = {node: _answer(of) for node, of in asked.items()}
    finally:
        probe.delete()
    # A machine that has gone in the meantime need not see it.
    up = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    blind = {nodes[node]: why for node, why in found.items() if why and node in up}
    if blind:
        listed = "\n".join(f"  {host}: {why}" for host, why in blind.items())
        raise UserError(
            f"{place}: not every node of the cluster sees this place:\n{listed}\n"
            "Use a bucket (s3://...) that all may read, or a folder that all have mounted."
        )


def _answer(sees: ray.ObjectRef[str]) -> str:
    """Returns why a node does not see the probe file; empty if it does."""
    try:
        return ray.get(sees, timeout=60)
    except ray.exceptions.GetTimeoutError:
        return "it did not answer within 60 s"
    except ray.exceptions.RayError as error:
        # Such as a node without this package.
        return f"it cannot run this job ({first_line(error)})"


@ray.remote
def _sees(probe: Location) -> str:
    try:
        return "" if probe.read_text() == "seen" else "another file is there"
    except FileNotFoundError:
        return "the file that the driver wrote is not there"
    except (OSError, UserError) as error:
        return str(error)
