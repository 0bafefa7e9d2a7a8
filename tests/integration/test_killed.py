"""The driver is killed in the middle of an epoch; the same command resumes and ends. It has clusters of its own."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path

import pytest
import ray

from lungseg_ray.run import checkpoint
from lungseg_ray.storage import locate
from tests.processes import Job, ray_processes, wait_until


@pytest.mark.own_cluster
def test_kill_of_the_driver_in_an_epoch(tmp_path: Path) -> None:
    ray.shutdown()
    before = ray_processes()
    command = (
        *("--shards.root", str(tmp_path / "shards"), "--runs.root", str(tmp_path), "--runs.name", "run"),
        *("--corpus.phantom.count", "40", "--corpus.phantom.size", "96"),
        *("--feed.size", "64", "--feed.batch", "4", "--model.architecture", "Unet", "--model.encoder", "resnet18"),
        *("--train.epochs", "4", "--train.precision", "fp32", "--evaluate.resamples", "20"),
        *("--checkpoint.every_steps", "3"),
    )
    run = locate(str(tmp_path / "run"))
    with Job("train.py", *command) as driver:
        assert wait_until(lambda: len(checkpoint.list_checkpoints(run)) > 1, seconds=150), driver.output
        driver.signal(signal.SIGKILL)
        driver.wait()
    assert not (tmp_path / "run/summary.json").exists()
    # Ray's agents notice within a minute or so that the driver is gone; the next command need not wait for them.
    place = checkpoint.find_newest(run, any_finished=True, read=checkpoint.read_checkpoint).place
    assert place is not None
    done = json.loads((place / checkpoint.PROGRESS).read_text())["epoch"]

    with Job("train.py", *command) as again:
        assert again.wait() == 0, again.output
    assert "Taking the run over from process" in again.output
    assert "Resuming the run" in again.output
    # Its workers may have saved some more before they noticed.
    from_epoch = re.search(r"Training from epoch (\d+)", again.output)
    assert from_epoch is not None
    assert int(from_epoch.group(1)) >= done + 1
    with (tmp_path / "run/history.csv").open() as lines:
        assert [int(row["epoch"]) for row in csv.DictReader(lines)] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run/summary.json").read_text())["epochs"] == 4
    assert wait_until(lambda: ray_processes() <= before, seconds=150), "Ray was left behind"
