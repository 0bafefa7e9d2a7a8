"""The division of the CPUs and GPUs of a cluster among training workers, data tasks and trials."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lungseg_ray.errors import UserError

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class TrainingPlan:
    """The resources of a run: its training workers, their device, and what remains for the data.

    Attributes:
        workers: The number of training workers.
        device: The device that each worker computes on.
        cpus_per_worker: The logical CPUs that Ray reserves for each worker; 0 on GPUs, so that all CPUs serve the data.
        data_cpus: The logical CPUs that remain for Ray Data with the smallest number of workers.
        data_tasks: The logical CPUs for the data tasks of each worker; 0 if none remains for them, in which case the
            worker prepares its own images.
    """

    workers: int
    device: Literal["cpu", "cuda"]
    cpus_per_worker: int
    data_cpus: int
    data_tasks: int

    def needs(self, workers: int, tasks: int = 0) -> list[dict[str, float]]:
        """Returns the resources of Ray that some workers and their data tasks need, each by itself.

        Args:
            workers: The number of workers.
            tasks: The number of data tasks for each worker; 0 for one data task in all.
        """
        worker: dict[str, float] = {"GPU": 1} if self.device == "cuda" else {"CPU": self.cpus_per_worker}
        return [worker] * workers + [{"CPU": 1}] * max(workers * tasks, 1)


def cores() -> int:
    """Returns the number of CPU cores that the affinity and the container quota of this process allow, at least 1."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return found if quota is None else min(found, max(int(quota), 1))


def _quota() -> float | None:
    """Returns the cores that the control groups of a container allow, of version 2 or 1; None without a limit."""
    try:
        allowed, period = (_CGROUP / "cpu.max").read_text().split()
    except FileNotFoundError:
        try:
            allowed = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except FileNotFoundError:
            return None
    return None if allowed in ("max", "-1") else int(allowed) / int(period)


def plan_training(
    *,
    cpus: int,
    gpus: int,
    workers: int,
    min_workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    tasks: int = 0,
) -> TrainingPlan:
    """Divides the CPUs and GPUs of a cluster among training workers and data tasks.

    Only whole CPUs are assigned. Ray Data gets the remainder, rounded down to a whole number; a remainder below one
    CPU would leave it without any.

    Args:
        cpus: The logical CPUs of the cluster.
        gpus: The GPUs of the cluster.
        workers: The number of training workers, at least 1.
        min_workers: The smallest number of workers that is sufficient; 0 if all of them are needed.
        device: The device of the workers: "cpu", "cuda", or "auto", which is "cuda" if the cluster has a GPU for each
            of the smallest number of workers and "cpu" otherwise.
        tasks: The largest number of CPUs for the data tasks of each worker; 0 for as many as there are.

    Returns:
        The plan.

    Raises:
        UserError: If the workers do not fit, or if no CPU would remain for the data.
    """
    least, setting = (min_workers, "train.min_workers") if min_workers else (workers, "train.workers")
    on_gpu = device == "cuda" or (device == "auto" and gpus >= least)
    if on_gpu and gpus < least:
        raise UserError(
            f"train.device = cuda needs a GPU for each of {least} worker(s); the cluster has {gpus}. "
            f"Lower {setting} to {gpus} or add GPUs."
            if gpus
            else f"train.device = cuda needs {least} GPU(s); the cluster has none. Use train.device = cpu."
        )
    cpus_per_worker = 0 if on_gpu else 1
    if cpus - least * cpus_per_worker < 1:
        most = 0 if on_gpu else max(cpus - 1, 0)
        raise UserError(
            f"{setting} = {least} needs {least * cpus_per_worker} of the cluster's {cpus} CPU(s) and leaves "
            "none for reading data, which needs at least 1; the run would wait for ever. "
            + (f"Lower {setting} to {most} or add CPUs." if most else "Add CPUs.")
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
    """Computes how many CPUs the data tasks of each worker have.

    Args:
        cpus: The logical CPUs of the cluster.
        workers: The number of training workers.
        cpus_per_worker: The logical CPUs that Ray reserves for each worker.

    Returns:
        Their number: at least 1 if any CPU remains, else 0.
    """
    left = cpus - workers * cpus_per_worker
    return max(left // workers, 1) if left > 0 else 0


def tasks_for(cpus: int, nodes: int) -> tuple[int, float]:
    """Computes how many data tasks keep some CPUs busy.

    Ray Data takes up to a tenth of a second to start a task after another has ended. With one task more than CPUs, no
    CPU waits for that. On several nodes, the shares of CPUs would not add up on each of them, and a task that fits
    nowhere would make an autoscaler start a machine; and a single CPU would become two.

    Args:
        cpus: The logical CPUs, at least 1.
        nodes: The nodes that have CPUs.

    Returns:
        The number of tasks, and the share of a CPU that Ray reserves for each, up to 1.
    """
    if cpus == 1 or nodes > 1:
        return cpus, 1.0
    # Ray counts in ten-thousandths of a CPU.
    return cpus + 1, cpus * 10_000 // (cpus + 1) / 10_000


@dataclass(frozen=True)
class TrialsPlan:
    """The division of a cluster among the trials of a sweep.

    Attributes:
        concurrent: The number of trials that run at the same time.
        cpus: The logical CPUs that Ray reserves for the process of each trial.
        gpus: The share of a GPU that Ray reserves for the process of each trial; 0 if the trial computes on CPUs or has
            several workers.
        together: The number of trials that may share the cores of a node.
        training: The plan of each trial. With one worker, the process of the trial is the worker.
    """

    concurrent: int
    cpus: int
    gpus: float
    together: int
    training: TrainingPlan

    def needs(self) -> list[dict[str, float]]:
        """Returns the resources of Ray that the processes of one trial need, each by itself."""
        own: dict[str, float] = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        workers = self.training.workers
        return [own, *(self.training.needs(workers)[:workers] if workers > 1 else [])]


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
    """Divides a cluster among as many trials as fit, so that no trial waits for resources that another one holds.

    On CPUs, a trial prepares its images in its own processes. On GPUs, the remaining CPUs run data tasks.

    Args:
        cpus: The logical CPUs of the cluster.
        gpus: The GPUs of the cluster.
        workers: The number of training workers of a trial.
        device: The device of the trials: "cpu", "cuda", or "auto", which is "cuda" if a trial fits on the GPUs and
            "cpu" otherwise.
        gpus_per_trial: The share of a GPU for a trial with one worker, more than 0 and at most 1.
        concurrent: The largest number of trials that run at the same time; 0 for as many as fit.
        nodes: The number of nodes of the cluster.

    Returns:
        The plan.

    Raises:
        UserError: If not a single trial fits.
    """
    on_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
    # A trial with several workers has one more process, which is not a worker.
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


def trials_in_memory(nodes: Sequence[float], need: float) -> int:
    """Computes how many trials the memory of a cluster is enough for, at least 1.

    Args:
        nodes: The memory that tasks may use on each node, bytes.
        need: The memory of the largest trial so far, bytes; 0 while none is measured, when each node gets one.
    """
    return max(sum(int(memory // need) for memory in nodes) if need else len(nodes), 1)
