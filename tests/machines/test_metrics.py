"""The figures of a run as Prometheus reads them from a node of Ray."""

from __future__ import annotations

import re
from pathlib import Path

import urllib3

from lungseg_ray.workers.metrics import COUNTERS, GAUGES
from tests.faults.small import Cluster, shard_job, train_job
from tests.processes import wait_until

PORT = 8399


def read() -> dict[tuple[str, str, str], float]:
    """The values by metric, run and rank."""
    text = urllib3.request("GET", f"http://127.0.0.1:{PORT}/metrics").data.decode()
    found = {}
    for name, tags, value in re.findall(r"^(ray_lungseg_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tag = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        found[name, tag["run"], tag["rank"]] = float(value)
    return found


def test_what_prometheus_reads(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    with shard_job(str(shards)) as job:
        assert job.wait() == 0, job.output
    with Cluster(tmp_path, cpus=3, metrics_port=PORT) as cluster:
        more = ("--train.device", "cpu")
        with train_job(tmp_path / "runs", "run", shards, *more, epochs=200, environment=cluster.environment) as job:
            job.saw("^epoch +3")
            # Ray's processes hand their figures on every ten seconds.
            assert wait_until(lambda: ("ray_lungseg_validation_iou", "run", "0") in read(), seconds=60)
            served = read()
            job.process.terminate()
            job.wait()
    names = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS} - {
        "ray_lungseg_skipped_steps_total"
    }
    assert {name for name, _, _ in served} == names
    assert served["ray_lungseg_workers", "run", "0"] == 2
    assert served["ray_lungseg_starts_total", "run", "0"] == 1
    assert 0 < served["ray_lungseg_loss", "run", "1"] < 3
    assert 0 <= served["ray_lungseg_data_wait_share", "run", "1"] <= 1
