"""Sweeps that are killed, stopped and run where there is hardly room for them."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from lungseg_ray.config import SweepJob
from lungseg_ray.jobs.tune import tune
from lungseg_ray.run import checkpoint
from lungseg_ray.storage import locate
from lungseg_ray.sweep.ledger import Sweep
from tests.faults.conftest import Record
from tests.faults.small import SIZE, now, shard_job
from tests.processes import Job, processes
from tests.storage.object_store import ObjectStore

SPACE = (
    '{"model.encoder": {"grid": ["timm-regnety_002", "mobilenet_v2", "resnet18"]}, '
    '"model.architecture": {"grid": ["Linknet", "Unet"]}}'
)


def tune_job(root: Path | str, name: str, shards: Path | str, *more: str, **options: Any) -> Job:
    """A sweep of six trials of 12 steps an epoch and up to 6 epochs, and two finalists with one other seed."""
    return Job(
        "tune.py",
        *("--runs.root", str(root), "--runs.name", name, "--shards.root", str(shards), *SIZE),
        *("--train.epochs", "6", "--checkpoint.every_steps", "3", "--checkpoint.keep", "1"),
        *("--sweep.space", SPACE, "--sweep.finalists", "2", "--sweep.seeds", "1", "--sweep.concurrent", "2"),
        *more,
        **options,
    )


def scores(place: Sweep) -> dict[tuple[str, int], tuple[float, ...]]:
    """The scores of each trial, by its values and its seed."""
    return {(trial.description, trial.seed): trial.scores for trial in place.trials()}


@pytest.mark.timeout(1200)
def test_sweep_killed(store: ObjectStore, record: Record) -> None:
    """The driver and all its Ray die three times, at any moment, in a bucket; the scores are those of a whole sweep."""
    bucket = "s3://lungs/sweeps"
    with shard_job(f"{bucket}/shards", environment=store.environment) as job:
        assert job.wait() == 0, job.output
    with pytest.MonkeyPatch.context() as patch:
        for key, value in store.environment.items():
            patch.setenv(key, value)
        with tune_job(bucket, "whole", f"{bucket}/shards", environment=store.environment) as job:
            assert job.wait(seconds=400) == 0, job.output
        whole, cut = (Sweep(locate(f"{bucket}/{name}")) for name in ("whole", "cut"))
        seconds: list[float] = []
        for kill in range(3):
            with tune_job(bucket, "cut", f"{bucket}/shards", environment=store.environment) as job:
                start = now()
                seconds.append(job.saw("epochs, IoU", times=2) - start)
                time.sleep(random.uniform(0, 6))
                before = {trial.name: trial for trial in cut.trials()}
                family = job.descendants()
                job.signal(signal.SIGKILL)
                for pid in family & processes().keys():
                    # Some end by themselves when they notice that the driver is gone.
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                print(f"kill {kill + 1}:\n{job.output}")
            kept = {name: len(checkpoint.list_checkpoints(cut.run(trial).place)) for name, trial in before.items()}
            assert all(kept[name] for name, trial in before.items() if trial.epochs)
        with tune_job(bucket, "cut", f"{bucket}/shards", environment=store.environment) as job:
            assert job.wait(seconds=400) == 0, job.output
            print(f"to the end:\n{job.output}")
            ended = job.count("epochs, IoU")
        assert ended < len([trial for trial in cut.trials() if trial.scores])
        # Which trials are promoted early depends on which of them are at the rung first, since halving does not wait
        # for the others. What a trial has learned after a number of epochs depends on nothing else.
        undisturbed, found = scores(whole), scores(cut)
        common = undisturbed.keys() & found.keys()
        assert {trial.description for trial in cut.trials()} == {trial.description for trial in whole.trials()}
        assert len(common) >= 7
        for one in common:
            least = min(len(undisturbed[one]), len(found[one]))
            assert found[one][:least] == undisturbed[one][:least], one
        best = [summary["ranking"][0] for place in (cut, whole) if (summary := place.summary())]
        assert best == [best[0]] * 2
        for trial in cut.trials():
            assert [row["epoch"] for row in cut.history(trial)] == list(range(1, trial.epochs + 1))
        assert cut.summary() is not None
    rest = "no trial runs twice, and each trial has the scores that it has in an undisturbed sweep"
    lost = f"the steps since each trial's last checkpoint; {rest}"
    record(
        "the driver of a sweep and its whole Ray cluster are killed three times; resumed with the same command",
        lost=lost,
        seconds=max(seconds[1:]),
    )


def test_sweep_interrupted(shards: Path, tmp_path: Path) -> None:
    """Ctrl-C saves what runs, and the same command resumes."""
    with tune_job(tmp_path, "sweep", shards) as job:
        job.saw("epochs, IoU", times=1)
        job.signal(signal.SIGINT)
        assert job.wait(seconds=60) == 130, job.output
        assert "each trial has saved where it was" in job.output
    place = Sweep(locate(str(tmp_path / "sweep")))
    assert "running" not in {trial.state for trial in place.trials()}
    with tune_job(tmp_path, "sweep", shards) as job:
        assert job.wait(seconds=400) == 0, job.output
    assert len(place.trials()) == 8
    assert place.summary() is not None


def test_trial_killed(shards: Path, tmp_path: Path) -> None:
    """A trial whose process dies goes on from its checkpoint within the same sweep."""
    with tune_job(tmp_path, "sweep", shards, "--sweep.finalists", "0", "--sweep.stop", "none") as job:
        job.saw("epochs, IoU", times=1)
        trials = [pid for pid, command in processes().items() if command.startswith("ray::ImplicitFunc")]
        os.kill(next(pid for pid in trials if pid in job.descendants()), signal.SIGKILL)
        assert job.wait(seconds=400) == 0, job.output
    place = Sweep(locate(str(tmp_path / "sweep")))
    assert [(trial.state, trial.epochs) for trial in place.trials()] == [("done", 6)] * 6


@pytest.mark.parametrize(
    ("cpus", "concurrent", "workers"), [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1), (4, 2, 1), (4, 2, 2)]
)
def test_sweep_that_has_hardly_room(cpus: int, concurrent: int, workers: int, shards: Path, tmp_path: Path) -> None:
    """Clusters of others with few CPUs: three trials and a finalist come to their end, and do not wait for ever."""
    tree = {
        "shards": {"root": str(shards)},
        "corpus": {"phantom": {"count": 60, "size": 96}},
        "feed": {"size": 64, "batch": 4, "window": 2},
        "model": {"architecture": "Linknet"},
        "optim": {"lookahead_k": 0},
        "train": {"epochs": 2, "precision": "fp32", "threads": 1, "workers": workers, "stall_seconds": 120},
        "evaluate": {"resamples": 20, "robustness": 0},
        "runs": {"root": str(tmp_path), "name": "sweep"},
        "sweep": {
            "space": {"model.encoder": {"grid": ["timm-regnety_002", "mobilenet_v2", "resnet18"]}},
            "concurrent": concurrent,
            "finalists": 1,
            "seeds": 1,
        },
    }
    ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.ERROR)
    try:
        tune(SweepJob.model_validate(tree), Console())
    finally:
        ray.shutdown()
    place = Sweep(locate(str(tmp_path / "sweep")))
    # Of three at the first rung one goes on, and is the finalist.
    assert sorted(trial.state for trial in place.trials()) == ["done", "done", "paused", "paused"]
