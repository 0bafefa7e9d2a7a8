from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Literal

import pytest

from lungseg_ray.cluster.planning import (
    TrainingPlan,
    cores,
    data_tasks,
    plan_training,
    plan_trials,
    tasks_for,
    trials_in_memory,
)
from lungseg_ray.errors import UserError

Device = Literal["auto", "cpu", "cuda"]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_every_cluster_is_dealt_or_refused(device: Device) -> None:
    for cpus, gpus, workers, tasks in itertools.product(range(1, 65), range(9), range(1, 17), range(5)):
        case = f"{cpus} CPUs, {gpus} GPUs, {workers} workers, {tasks} tasks"
        on_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
        fits = gpus >= workers if on_gpu else cpus >= workers + 1
        try:
            layout = plan_training(cpus=cpus, gpus=gpus, workers=workers, device=device, tasks=tasks)
        except UserError:
            assert not fits, case
            continue
        assert fits, case
        assert layout.workers == workers, case
        if on_gpu:
            assert (layout.device, layout.cpus_per_worker) == ("cuda", 0), case
        else:
            assert (layout.device, layout.cpus_per_worker) == ("cpu", 1), case
            assert workers * layout.cpus_per_worker + 1 <= cpus, case
        assert layout.data_cpus == cpus - workers * layout.cpus_per_worker, case
        assert layout.data_tasks >= 1, case
        # Each worker has its task, even if they must take turns; more than one only where all have them at once.
        assert layout.data_tasks == 1 or workers * layout.data_tasks <= layout.data_cpus, case
        assert not tasks or layout.data_tasks <= tasks, case


def test_every_elastic_layout_leaves_a_cpu_for_the_data_of_its_fewest_workers() -> None:
    for cpus, workers in itertools.product(range(1, 65), range(1, 17)):
        for least in range(1, workers + 1):
            case = f"{cpus} CPUs, {least} to {workers} workers"
            try:
                layout = plan_training(cpus=cpus, gpus=0, workers=workers, min_workers=least)
            except UserError:
                assert cpus < least + 1, case
                continue
            assert (layout.workers, layout.data_cpus) == (workers, cpus - least), case
            assert layout.data_cpus >= 1, case


def test_data_tasks_of_the_workers_that_are_there() -> None:
    for cpus, workers, each in itertools.product(range(1, 65), range(1, 65), (0, 1)):
        tasks = data_tasks(cpus, workers, each)
        left = cpus - workers * each
        # Without a CPU for any, each worker prepares its own images.
        assert (tasks == 0) == (left <= 0), (cpus, workers, each)
        assert tasks <= 1 or tasks * workers <= left, (cpus, workers, each)


@pytest.mark.parametrize(
    ("cpus", "workers", "tasks", "expected"),
    [
        (2, 1, 0, TrainingPlan(1, "cpu", 1, 1, 1)),
        (4, 1, 0, TrainingPlan(1, "cpu", 1, 3, 3)),
        (4, 2, 0, TrainingPlan(2, "cpu", 1, 2, 1)),
        (4, 3, 4, TrainingPlan(3, "cpu", 1, 1, 1)),
        (16, 4, 0, TrainingPlan(4, "cpu", 1, 12, 3)),
        (16, 4, 2, TrainingPlan(4, "cpu", 1, 12, 2)),
        (16, 15, 0, TrainingPlan(15, "cpu", 1, 1, 1)),
    ],
)
def test_cpus(cpus: int, workers: int, tasks: int, expected: TrainingPlan) -> None:
    assert plan_training(cpus=cpus, gpus=0, workers=workers, tasks=tasks) == expected


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "device", "expected"),
    [
        (1, 1, 1, "auto", TrainingPlan(1, "cuda", 0, 1, 1)),
        (16, 2, 2, "auto", TrainingPlan(2, "cuda", 0, 16, 8)),
        (16, 2, 2, "cpu", TrainingPlan(2, "cpu", 1, 14, 7)),
        (16, 2, 4, "auto", TrainingPlan(4, "cpu", 1, 12, 3)),
        (2, 4, 4, "cuda", TrainingPlan(4, "cuda", 0, 2, 1)),
    ],
)
def test_gpus(cpus: int, gpus: int, workers: int, device: Device, expected: TrainingPlan) -> None:
    assert plan_training(cpus=cpus, gpus=gpus, workers=workers, device=device) == expected


def test_refusals_say_what_would_fit() -> None:
    with pytest.raises(UserError, match=r"train\.workers = 1 needs 1 of the cluster's 1 CPU\(s\).*Add CPUs"):
        plan_training(cpus=1, gpus=0, workers=1)
    with pytest.raises(UserError, match=r"Lower train\.workers to 3 or add CPUs"):
        plan_training(cpus=4, gpus=0, workers=4)
    assert plan_training(cpus=4, gpus=0, workers=3)
    with pytest.raises(UserError, match=r"needs a GPU for each of 4 worker\(s\); the cluster has 2\. Lower .* to 2"):
        plan_training(cpus=16, gpus=2, workers=4, device="cuda")
    with pytest.raises(UserError, match=r"needs 1 GPU\(s\); the cluster has none\. Use train\.device = cpu"):
        plan_training(cpus=16, gpus=0, workers=1, device="cuda")
    with pytest.raises(UserError, match=r"for each of 4 worker\(s\).*Lower train\.min_workers to 2 or add GPUs"):
        plan_training(cpus=16, gpus=2, workers=8, min_workers=4, device="cuda")
    with pytest.raises(UserError, match=r"needs 0 of the cluster's 0 CPU\(s\) .* wait for ever\. Add CPUs\.$"):
        plan_training(cpus=0, gpus=2, workers=2)


class TestPlanTrials:
    @pytest.mark.parametrize(
        ("cpus", "asked", "together"), [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 2), (4, 1, 1), (4, 2, 2), (4, 0, 4)]
    )
    def test_one_worker_on_cpus_takes_one_and_prepares_its_own_images(
        self, cpus: int, asked: int, together: int
    ) -> None:
        layout = plan_trials(cpus=cpus, gpus=0, workers=1, concurrent=asked)
        assert (layout.concurrent, layout.cpus, layout.gpus) == (together, 1, 0.0)
        assert layout.training.data_tasks == 0

    @pytest.mark.parametrize(("cpus", "asked", "together"), [(3, 2, 1), (4, 2, 1), (6, 2, 2), (6, 1, 1)])
    def test_two_workers_on_cpus_take_three(self, cpus: int, asked: int, together: int) -> None:
        layout = plan_trials(cpus=cpus, gpus=0, workers=2, concurrent=asked)
        assert (layout.concurrent, layout.cpus) == (together, 1)
        assert layout.concurrent * (layout.cpus + 2 * layout.training.cpus_per_worker) <= cpus

    @pytest.mark.parametrize("cpus", [1, 2])
    def test_two_workers_without_room_are_refused(self, cpus: int) -> None:
        with pytest.raises(UserError, match=r"needs 3 CPU\(s\); the cluster has"):
            plan_trials(cpus=cpus, gpus=0, workers=2)

    def test_two_trials_share_a_gpu_and_the_cpus_that_are_left_prepare_images(self) -> None:
        layout = plan_trials(cpus=16, gpus=2, workers=1, gpus_per_trial=0.5)
        assert (layout.concurrent, layout.gpus) == (4, 0.5)
        # 16 CPUs, of which the trials' processes take 4; 12 // 4 = 3 for each.
        assert layout.training.data_tasks == 3
        assert layout.training.device == "cuda"

    def test_gpus_of_trials_with_several_workers(self) -> None:
        layout = plan_trials(cpus=8, gpus=4, workers=2)
        assert (layout.concurrent, layout.gpus, layout.training.cpus_per_worker) == (2, 0.0, 0)
        # 8 CPUs, of which the trials' processes take 2; 6 // (2 * 2) = 1 for each worker.
        assert layout.training.data_tasks == 1

    def test_no_gpu_where_one_is_asked_for(self) -> None:
        with pytest.raises(UserError, match=r"1 GPU\(s\); the cluster has 4 CPU\(s\) and 0 GPU\(s\)"):
            plan_trials(cpus=4, gpus=0, workers=1, device="cuda")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
        ({}, 8),
    ],
)
def test_the_quota_of_a_container_limits_the_cores(
    files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr("lungseg_ray.cluster.planning._CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cores() == expected


def test_what_is_asked_for() -> None:
    plan = plan_training(cpus=16, gpus=0, workers=2)
    assert plan.needs(2) == [{"CPU": 1}] * 3
    assert plan.needs(1, tasks=6) == [{"CPU": 1}] * 7
    plan = plan_training(cpus=16, gpus=2, workers=2, tasks=3)
    assert plan.needs(2, tasks=3) == [{"GPU": 1}] * 2 + [{"CPU": 1}] * 6
    trials = plan_trials(cpus=16, gpus=4, workers=1, gpus_per_trial=0.5)
    assert trials.needs() == [{"CPU": 1, "GPU": 0.5}]
    trials = plan_trials(cpus=16, gpus=4, workers=2)
    assert trials.needs() == [{"CPU": 1}, {"GPU": 1}, {"GPU": 1}]
    trials = plan_trials(cpus=16, gpus=0, workers=2)
    assert trials.needs() == [{"CPU": 1}] * 3


@pytest.mark.parametrize(
    ("nodes", "need", "fit"),
    [
        ([8e9], 3e9, 2),
        ([8e9, 8e9], 5e9, 2),
        ([2e9], 3e9, 1),  # one trial is tried in any case
        ([8e9, 8e9, 8e9], 0, 3),
        ([], 0, 1),
    ],
)
def test_trials_in_memory(nodes: list[float], need: float, fit: int) -> None:
    assert trials_in_memory(nodes, need) == fit


@pytest.mark.parametrize("cpus", [2, 3, 7, 64, 1000])
def test_one_data_task_more_than_cpus_fits_them(cpus: int) -> None:
    tasks, share = tasks_for(cpus, nodes=1)
    assert tasks == cpus + 1
    # Ray compares in ten-thousandths of a CPU.
    assert 0.99 * cpus * 10_000 < tasks * round(share * 10_000) <= cpus * 10_000


def test_on_several_nodes_and_on_one_cpu_each_data_task_has_a_whole_one() -> None:
    assert tasks_for(8, nodes=2) == (8, 1.0)
    assert tasks_for(1, nodes=1) == (1, 1.0)
