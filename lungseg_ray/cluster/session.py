"""What fits: the Ray cluster to run on, and how its CPUs and GPUs are dealt to training and to data."""

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
    """A Ray cluster for the time of the block: the one at hand, the one `RAY_ADDRESS` names, or one of our own.

    Our own has a logical CPU for each process and at least one for the data, whatever the number of cores, and is
    stopped at the end; others are left as they are.

    Args:
        processes: training or evaluating processes that will want a CPU each.

    Raises:
        UserError: if `RAY_ADDRESS` names a cluster that does not answer.
    """
    if ray.is_initialized():
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
    """Keeps Ray Data's bars out of the output of this process and of those it starts."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def available() -> tuple[int, int]:
    """Logical CPUs and GPUs of the connected cluster."""
    found = ray.cluster_resources()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))
