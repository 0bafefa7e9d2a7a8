"""Divides the CPUs and GPUs of a cluster among training workers, data tasks and trials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lungseg_ray.errors import UserError


@dataclass(frozen=True)
class TrainingPlan:
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


def plan_training(
    *,
    cpus: int,
    gpus: int,
    workers: int,
    min_workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    tasks: int = 0,
) -> TrainingPlan:
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
    return TrainingPlan(
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
class TrialsPlan:
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
    training: TrainingPlan


def plan_trials(
    *,
    cpus: int,
    gpus: int,
    workers: int,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    gpus_per_trial: float = 1.0,
    concurrent: int = 0,
    nodes: int = 1,
) -> TrialsPlan:
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
    training = TrainingPlan(
        workers=workers,
        device="cuda" if on_gpu else "cpu",
        cpus_per_worker=0 if on_gpu else 1,
        data_cpus=left * workers * together,
        data_tasks=left,
    )
    gpu_share = gpus_per_trial if on_gpu and workers == 1 else 0.0
    return TrialsPlan(concurrent=together, cpus=1, gpus=gpu_share, together=-(-together // nodes), training=training)
