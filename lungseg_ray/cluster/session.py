"""The connection of a job to a Ray cluster, and the resources of that cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from lungseg_ray.cluster.planning import cores
from lungseg_ray.errors import UserError


@contextmanager
def cluster(*, processes: int) -> Iterator[None]:
    """Provides a Ray cluster for the duration of the block.

    It is the cluster that this process is connected to already, else the one that `RAY_ADDRESS` names, else a local
    one that is started here. A local cluster has a logical CPU for each process and at least one for the data, whatever
    the number of cores, and is stopped at the end of the block. The other two keep running.

    Args:
        processes: The number of training or evaluation processes that need a CPU each.

    Raises:
        UserError: If the cluster that `RAY_ADDRESS` names does not answer, or if a local cluster does not start.
    """
    if ray.is_initialized():
        quiet_data()
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(**quiet)
        else:
            ray.init(address="local", num_cpus=max(cores(), processes + 1), **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}). Start one with `ray start --head`, set "
            "RAY_AUTH_MODE=token if it asks for one, or unset RAY_ADDRESS to run on this machine alone."
            if address
            else f"Ray does not start on this machine: {error}"
        ) from error
    try:
        quiet_data()
        yield
    finally:
        ray.shutdown()


def quiet_data() -> None:
    """Removes the progress bars of Ray Data from the output of this process and of those that it starts."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def available() -> tuple[int, int]:
    """Returns the logical CPUs and the GPUs of the connected cluster, each rounded down to a whole number."""
    found = ray.cluster_resources()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))
