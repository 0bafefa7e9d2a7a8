"""Nodes that have CPUs alone, beside one whose GPU a trainer takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.faults.small import Cluster, shard_job


def test_data_tasks_run_on_the_nodes_with_cpus(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    with shard_job(str(shards)) as job:
        assert job.wait() == 0, job.output
    with Cluster(tmp_path, cpus=0) as cluster:
        cluster.add_node(cpus=0, gpus=1)
        for _ in range(2):
            cluster.add_node(cpus=1)
        data = {node for node, cpus in cluster.nodes().items() if cpus == 1}
        command = (sys.executable, "-m", "tests.machines.feed_a_trainer", str(shards))
        done = subprocess.run(command, env=cluster.started, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout.splitlines()[-1])
    for found in (one, two):
        assert found["trainer"] not in data
        assert sum(found["ran"].values()) > 0
        assert set(found["ran"]) <= data
    assert set(two["ran"]) == data
    assert one["images"] == two["images"] > 0
    print(f"one data node: {one['rate']:.0f} images/s, two: {two['rate']:.0f}; chunks {two['ran']}")
