from __future__ import annotations

import itertools
from typing import Literal

import pytest

from lungseg_ray.errors import UserError
from lungseg_ray.resources import Layout, plan

Device = Literal["auto", "cpu", "cuda"]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_every_cluster_is_dealt_or_refused(device: Device) -> None:
    for cpus, gpus, workers, tasks in itertools.product(range(1, 65), range(9), range(1, 17), range(5)):
        case = f"{cpus} CPUs, {gpus} GPUs, {workers} workers, {tasks} tasks"
        on_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
        fits = gpus >= workers if on_gpu else cpus >= workers + 1
        try:
            layout = plan(cpus=cpus, gpus=gpus, workers=workers, device=device, tasks=tasks)
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


@pytest.mark.parametrize(
    ("cpus", "workers", "tasks", "expected"),
    [
        (2, 1, 0, Layout(1, "cpu", 1, 1, 1)),
        (4, 1, 0, Layout(1, "cpu", 1, 3, 3)),
        (4, 2, 0, Layout(2, "cpu", 1, 2, 1)),
        (4, 3, 4, Layout(3, "cpu", 1, 1, 1)),
        (16, 4, 0, Layout(4, "cpu", 1, 12, 3)),
        (16, 4, 2, Layout(4, "cpu", 1, 12, 2)),
        (16, 15, 0, Layout(15, "cpu", 1, 1, 1)),
    ],
)
def test_cpus(cpus: int, workers: int, tasks: int, expected: Layout) -> None:
    assert plan(cpus=cpus, gpus=0, workers=workers, tasks=tasks) == expected


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "device", "expected"),
    [
        (1, 1, 1, "auto", Layout(1, "cuda", 0, 1, 1)),
        (16, 2, 2, "auto", Layout(2, "cuda", 0, 16, 8)),
        (16, 2, 2, "cpu", Layout(2, "cpu", 1, 14, 7)),
        (16, 2, 4, "auto", Layout(4, "cpu", 1, 12, 3)),
        (2, 4, 4, "cuda", Layout(4, "cuda", 0, 2, 1)),
    ],
)
def test_gpus(cpus: int, gpus: int, workers: int, device: Device, expected: Layout) -> None:
    assert plan(cpus=cpus, gpus=gpus, workers=workers, device=device) == expected


def test_refusals_say_what_would_fit() -> None:
    with pytest.raises(UserError, match=r"train\.workers = 1 needs 1 of the cluster's 1 CPU\(s\).*Add CPUs"):
        plan(cpus=1, gpus=0, workers=1)
    with pytest.raises(UserError, match=r"Lower train\.workers to 3 or add CPUs"):
        plan(cpus=4, gpus=0, workers=4)
    assert plan(cpus=4, gpus=0, workers=3)
    with pytest.raises(UserError, match=r"needs a GPU for each of 4 worker\(s\); the cluster has 2\. Lower .* to 2"):
        plan(cpus=16, gpus=2, workers=4, device="cuda")
    with pytest.raises(UserError, match=r"needs 1 GPU\(s\); the cluster has none\. Use train\.device = cpu"):
        plan(cpus=16, gpus=0, workers=1, device="cuda")
