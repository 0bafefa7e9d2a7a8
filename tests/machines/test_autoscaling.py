"""Jobs on a cluster with Ray's own autoscaler, which starts and ends real nodes on this machine, from none."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lungseg_ray.corpus.phantom import draw
from lungseg_ray.imaging import png
from lungseg_ray.storage import locate
from lungseg_ray.sweep.ledger import Sweep
from tests.faults.small import CORPUS, SIZE, Cluster
from tests.processes import Job, ray_processes, wait_until

TYPES = {
    "small": {"resources": {"CPU": 2}, "max_workers": 3},
    "device": {"resources": {"CPU": 1, "GPU": 1}, "max_workers": 1},
}


@pytest.fixture(scope="module", params=[1, 2], ids=["version 1", "version 2"])
def cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head without CPUs, and up to 3 nodes with 2 CPUs and one with what Ray takes for a GPU."""
    before = ray_processes()
    with Cluster(tmp_path_factory.mktemp("cluster"), cpus=0, types=TYPES, version=request.param) as one:
        yield one
    # Ray starts agents again while it ends, which notice that they are alone after a minute and a half.
    assert wait_until(lambda: ray_processes() <= before, seconds=150), "nodes were left behind"


def run(cluster: Cluster, script: str, *arguments: str, code: int = 0) -> Job:
    with Job(script, *arguments, environment=cluster.environment) as job:
        assert job.wait() == code, job.output
    print(job.output)
    return job


def gone(cluster: Cluster) -> bool:
    """Whether the cluster has only its head."""
    return wait_until(lambda: len(cluster.nodes()) == 1, seconds=90)


def test_every_job_from_no_machine(cluster: Cluster, tmp_path: Path) -> None:
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    job = run(cluster, "shard.py", "--shards.root", str(shards), *CORPUS)
    assert job.count(r"^Waiting for machines since \d+ s: room for 1 x 1 CPU; free in the cluster: 0 of 0 CPU") >= 1
    assert job.count(r"^The machines are up, after") == 1
    assert gone(cluster)

    common = ("--runs.root", str(runs), "--shards.root", str(shards), *SIZE, "--train.device", "cpu")
    job = run(cluster, "train.py", "--runs.name", "run", *common, "--train.epochs", "2", "--train.workers", "2")
    assert job.count(r"room for 3 x 1 CPU; .*; the autoscaler .*, of 3 x small \(2 CPU\)") >= 1
    summary = json.loads((runs / "run/summary.json").read_text())
    assert (summary["epochs"], summary["test"]["n"]) == (2, 2)
    assert gone(cluster)

    job = run(cluster, "evaluate.py", "--run", str(runs / "run"), "--split", "val", "--device", "cpu")
    assert job.count(r"^The machines are up, after") == 1
    assert gone(cluster)

    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        (images / f"{number}.png").write_bytes(png(draw(number, seed=1, size=96)[0]))
    predict = ("--run", str(runs / "run"), "--images", str(images), "--out", str(tmp_path / "masks"))
    run(cluster, "predict.py", *predict, "--device", "cpu", "--batch", "4")
    assert len([*(tmp_path / "masks/masks").iterdir()]) == 20
    assert gone(cluster)


def test_a_sweep_from_no_machine(cluster: Cluster, tmp_path: Path) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(
        "sweep:\n  search: grid\n  finalists: 0\n  space:\n    optim.encoder_lr: {grid: [0.0005, 0.001]}\n"
        "    optim.lr: {grid: [0.005, 0.002]}\n"
    )
    roots = ("--runs.root", str(tmp_path / "runs"), "--shards.root", str(tmp_path / "shards"), *CORPUS)
    more = (*SIZE, "--train.device", "cpu", "--train.epochs", "2")
    job = run(cluster, "tune.py", "--config", str(config), *roots, "--runs.name", "sweep", *more)
    assert job.count(r"^Winner: ") == 1
    assert len(Sweep(locate(str(tmp_path / "runs/sweep"))).trials()) == 4
    assert gone(cluster)


def test_what_no_machine_can_hold(cluster: Cluster, tmp_path: Path) -> None:
    roots = ("--runs.root", str(tmp_path / "runs"), "--shards.root", str(tmp_path / "shards"), *SIZE)
    more = ("--train.device", "cpu", "--train.workers", "8", "--feed.batch", "8")
    job = run(cluster, "train.py", *roots, *more, code=2)
    assert "train.workers = 8 needs 8 of the cluster's 7 CPU(s)" in job.output
    assert "The autoscaler of the cluster can start 3 x small (2 CPU) or 1 x device (1 CPU, 1 GPU)." in job.output
    job = run(cluster, "train.py", *roots, "--train.device", "cuda", "--train.workers", "2", code=2)
    assert "train.device = cuda needs a GPU for each of 2 worker(s); the cluster has 1." in job.output
    assert "Waiting" not in job.output
    assert len(cluster.nodes()) == 1


def test_an_interrupted_wait_asks_for_nothing_more(cluster: Cluster, tmp_path: Path) -> None:
    roots = ("--runs.root", str(tmp_path / "runs"), "--shards.root", str(tmp_path / "shards"), *SIZE, *CORPUS)
    with Job("train.py", *roots, "--train.device", "cpu", environment=cluster.environment) as job:
        job.saw("^Waiting for machines since")
        job.signal(signal.SIGINT)
        assert job.wait() == 130, job.output
    assert gone(cluster)
    # A machine that was asked for would come within seconds.
    time.sleep(20)
    assert len(cluster.nodes()) == 1
