"""What fits: the Ray cluster to run on, and how its CPUs and GPUs are dealt to training and to data."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import pyarrow as pa
import ray
import ray.data
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg_ray.errors import UserError
from lungseg_ray.storage import PATIENCE_SECONDS, Location, retry

_JOB_COPY = "runtime_resources/working_dir_files"


@dataclass(frozen=True)
class Layout:
    """Who gets what.

    Attributes:
        workers: training processes.
        device: what each of them computes on.
        cpus_per_worker: logical CPUs that Ray reserves for each; 0 on GPUs, so that all serve the data.
        data_cpus: logical CPUs left for Ray Data, with the fewest workers.
        data_tasks: data tasks at a time for each worker.
    """

    workers: int
    device: Literal["cpu", "cuda"]
    cpus_per_worker: int
    data_cpus: int
    data_tasks: int


def cores() -> int:
    """CPU cores that this process may use, as its affinity and its container's quota allow; at least 1."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            found = min(found, max(int(allowed) // int(period), 1))
    return found


def plan(
    *,
    cpus: int,
    gpus: int,
    workers: int,
    min_workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    tasks: int = 0,
) -> Layout:
    """Deals a cluster's CPUs and GPUs to training workers and data tasks, or says why that cannot be.

    Whole CPUs alone are dealt: Ray Data gets what is left, floored to a whole number, and a fraction would starve it.

    Args:
        cpus: logical CPUs of the cluster.
        gpus: GPUs of the cluster.
        workers: training processes, at least 1.
        min_workers: how few of them will do; 0: all are needed.
        device: `auto` takes GPUs where there is one for each worker.
        tasks: data tasks at a time for each worker; 0 for as many as fit.

    Raises:
        UserError: if the workers do not fit, or if no CPU would be left for the data.
    """
    least = min_workers or workers
    on_gpu = device == "cuda" or (device == "auto" and gpus >= least)
    if on_gpu and gpus < least:
        raise UserError(
            f"train.device = cuda needs a GPU for each of {least} worker(s); the cluster has {gpus}. "
            f"Lower train.workers to {gpus} or add GPUs."
            if gpus
            else f"train.device = cuda needs {least} GPU(s); the cluster has none. Use train.device = cpu."
        )
    cpus_per_worker = 0 if on_gpu else 1
    if cpus - least * cpus_per_worker < 1:
        most = max((cpus - 1) if not on_gpu else least, 0)
        raise UserError(
            f"train.workers = {least} needs {least * cpus_per_worker} of the cluster's {cpus} CPU(s) and leaves "
            "none for reading data, which needs at least 1; the run would wait for ever. "
            + (f"Lower train.workers to {most} or add CPUs." if most else "Add CPUs.")
        )
    fit = data_tasks(cpus, least, cpus_per_worker)
    return Layout(
        workers=workers,
        device="cuda" if on_gpu else "cpu",
        cpus_per_worker=cpus_per_worker,
        data_cpus=cpus - least * cpus_per_worker,
        data_tasks=min(tasks, fit) if tasks else fit,
    )


def data_tasks(cpus: int, workers: int, cpus_per_worker: int) -> int:
    """Data tasks at a time that fit for each worker: at least one if any CPU is left, else none."""
    left = cpus - workers * cpus_per_worker
    return max(left // workers, 1) if left > 0 else 0


@dataclass(frozen=True)
class TrialLayout:
    """How the trials of a sweep share a cluster.

    Attributes:
        concurrent: trials at a time.
        cpus: logical CPUs that Ray reserves for the process of each.
        gpus: share of a GPU for it; 0 where it computes on CPUs, or has workers of its own.
        together: trials that may share a node's cores.
        training: of each trial; with one worker, the trial's process is the worker.
    """

    concurrent: int
    cpus: int
    gpus: float
    together: int
    training: Layout


def plan_trials(
    *,
    cpus: int,
    gpus: int,
    workers: int,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    gpus_per_trial: float = 1.0,
    concurrent: int = 0,
    nodes: int = 1,
) -> TrialLayout:
    """Deals a cluster to as many trials as fit, so that none waits for what another holds.

    On CPUs a trial prepares its images in its own processes; on GPUs the CPUs that are left serve as data tasks.

    Args:
        cpus: logical CPUs of the cluster.
        gpus: GPUs of the cluster.
        workers: training processes of a trial.
        device: `auto` takes GPUs where a trial fits on them.
        gpus_per_trial: share of a GPU for a trial of one worker.
        concurrent: trials at a time at most; 0 for as many as fit.
        nodes: of the cluster.

    Raises:
        UserError: if not one trial fits.
    """
    on_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
    # A trial of several workers has a process of its own beside them.
    cpus_per_trial = 1 + (workers if workers > 1 and not on_gpu else 0)
    fit = cpus // cpus_per_trial
    if on_gpu:
        fit = min(fit, gpus // workers if workers > 1 else gpus * int(1 / gpus_per_trial))
    if fit < 1:
        needed = f"{cpus_per_trial} CPU(s)" + (f" and {workers} GPU(s)" if on_gpu else "")
        raise UserError(
            f"A trial with train.workers = {workers} needs {needed}; the cluster has {cpus} CPU(s) and {gpus} GPU(s), "
            "and the sweep would wait for ever. Lower train.workers, or add nodes."
        )
    together = min(fit, concurrent or fit)
    left = (cpus - together * cpus_per_trial) // (together * workers) if on_gpu else 0
    training = Layout(
        workers=workers,
        device="cuda" if on_gpu else "cpu",
        cpus_per_worker=0 if on_gpu else 1,
        data_cpus=left * workers * together,
        data_tasks=left,
    )
    gpu_share = gpus_per_trial if on_gpu and workers == 1 else 0.0
    return TrialLayout(concurrent=together, cpus=1, gpus=gpu_share, together=-(-together // nodes), training=training)


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


def map_chunks(
    work: Callable[[int, str], list[dict[str, Any]]],
    count: int,
    *,
    workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Iterator[dict[str, Any]]:
    """Does work in data tasks, each of which makes one chunk; processes, and what they cache, serve many.

    Args:
        work: takes a chunk's number and the device to compute on; returns JSON-able rows.
        count: of chunks.
        workers: tasks at a time; 0 for as many as fit.
        device: `auto` takes GPUs where there are any, one for each task.

    Yields:
        The rows, in the order in which they are done.

    Raises:
        OSError: if a place cannot be read or written; a bucket is tried again for some minutes first.
    """
    cpus, gpus = available()
    if device == "cuda" and not gpus:
        raise UserError("device = cuda needs a GPU; the cluster has none. Use device = cpu.")
    on_gpu = device != "cpu" and gpus > 0
    if cpus < 1:
        raise UserError(
            "The cluster has no CPU for this work at the moment. Add a node, or ask an autoscaled cluster for one with "
            "ray.autoscaler.sdk.request_resources."
        )
    fit = gpus if on_gpu else max(min(cpus, cores()), 1)
    done = ray.data.range(count, override_num_blocks=count).map_batches(
        # Put once: what the work holds, such as the records of a corpus, would else be unpacked for each chunk.
        _ChunkTask(ray.put(work), "cuda" if on_gpu else "cpu"),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(workers or fit, cpus, count)),
        num_gpus=1 if on_gpu else None,
        max_calls=0,
    )
    for row in done.iter_rows():
        if row["trouble"]:
            # An exception would lose its kind on the way through Ray.
            raise OSError(row["trouble"])
        yield json.loads(row["row"])


@dataclass(frozen=True)
class _ChunkTask:
    work: ray.ObjectRef
    device: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        cv2.setNumThreads(0)
        if self.device == "cpu":
            # One thread each, so that the order of a sum does not depend on the number of processes.
            torch.set_num_threads(1)
        try:
            rows = [row for number in batch.column("id").to_pylist() for row in self._patiently(number)]
        except OSError as error:
            return pa.table({"row": [""], "trouble": [str(error)]})
        return pa.table({"row": [json.dumps(row) for row in rows], "trouble": [""] * len(rows)})

    def _patiently(self, number: int) -> list[dict[str, Any]]:
        return retry(lambda: _unpacked(self.work)(number, self.device), seconds=PATIENCE_SECONDS)


@lru_cache(maxsize=1)
def _unpacked(work: ray.ObjectRef) -> Callable[[int, str], list[dict[str, Any]]]:
    return ray.get(work)


def check_lasting(place: Location) -> None:
    """Makes sure that what is written outlives the job.

    Raises:
        UserError: if the place lies in the copy of the working directory that Ray makes for a submitted job.
    """
    if place.is_local and f"/{_JOB_COPY}/" in place.path:
        name = place.path.split(f"/{_JOB_COPY}/", 1)[1].split("/", 1)[-1]
        raise UserError(
            f"{name}: a submitted job runs in a copy of your folder that Ray deletes, and what it writes there would "
            "be lost. Give an absolute path that all nodes see, or a bucket (s3://...)."
        )


def check_shared(place: Location) -> None:
    """Makes sure that every node of the cluster sees the same place, before hours of work show that one does not.

    Raises:
        UserError: if a node does not, or not with its own credentials.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe = place / f".probe-{uuid.uuid4().hex[:8]}"
    probe.write_text("seen")
    try:
        asked = {
            f"{node['NodeManagerHostname']} (node {node['NodeID'][:8]})": _sees.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(probe)
            for node in nodes
        }
        found = {host: ray.get(answer, timeout=60) for host, answer in asked.items()}
    finally:
        probe.delete()
    blind = {host: why for host, why in found.items() if why}
    if blind:
        listed = "\n".join(f"  {host}: {why}" for host, why in blind.items())
        raise UserError(
            f"{place}: not every node of the cluster sees this place:\n{listed}\n"
            "Use a bucket (s3://...) that all may read, or a folder that all have mounted."
        )


@ray.remote
def _sees(probe: Location) -> str:
    try:
        return "" if probe.read_text() == "seen" else "another file is there"
    except FileNotFoundError:
        return "the file that the driver wrote is not there"
    except OSError as error:
        return str(error)


def quiet_data() -> None:
    """Keeps Ray Data's bars out of the output of this process and of those it starts."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def available() -> tuple[int, int]:
    """Logical CPUs and GPUs of the connected cluster."""
    found = ray.cluster_resources()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))
