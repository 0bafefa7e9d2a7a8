"""The driver is killed in the middle of an epoch; the same command goes on and ends. It has clusters of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from lungseg_ray import checkpoint
from lungseg_ray.storage import locate

ROOT = Path(__file__).parents[2]


def ray_processes() -> set[int]:
    """Processes of Ray on this machine: raylets, control stores, workers."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state != "Z" and (b"raylet" in command or b"gcs_server" in command or command.startswith(b"ray::")):
                found.add(int(entry.name))
    return found


def wait_until(condition: object, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


@pytest.mark.own_cluster
def test_kill_of_the_driver_in_an_epoch(tmp_path: Path) -> None:
    ray.shutdown()
    before = ray_processes()
    command = [
        *(sys.executable, str(ROOT / "jobs/train.py")),
        *("--shards.root", str(tmp_path / "shards"), "--runs.root", str(tmp_path), "--runs.name", "run"),
        *("--corpus.phantom.count", "40", "--corpus.phantom.size", "96"),
        *("--feed.size", "64", "--feed.batch", "4", "--model.architecture", "Unet", "--model.encoder", "resnet18"),
        *("--train.epochs", "4", "--train.precision", "fp32", "--evaluate.resamples", "20"),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    run = locate(str(tmp_path / "run"))
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    assert wait_until(lambda: checkpoint.newest(run, any_finished=False)[0] is not None, seconds=150)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "run/summary.json").exists()
    # Ray's agents notice within a minute or so that the driver is gone; the next command need not wait for them.
    place, damaged = checkpoint.newest(run, any_finished=False)
    assert place is not None
    done = json.loads((place / checkpoint.PROGRESS).read_text())["epoch"]

    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "Going on with the run" in again.stdout
    assert f"from epoch {done + 1}" in again.stdout
    assert ("Checkpoint passed over" in again.stdout) == bool(damaged)
    with (tmp_path / "run/history.csv").open() as lines:
        assert [int(row["epoch"]) for row in csv.DictReader(lines)] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run/summary.json").read_text())["epochs"] == 4
    assert wait_until(lambda: ray_processes() <= before, seconds=150), "Ray was left behind"
