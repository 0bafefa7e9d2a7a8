"""The places of tasks on a cluster of three nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.nodes import CHUNKS
from tests.faults.small import Cluster
from tests.helpers import ROOT


def test_where_tasks_run(tmp_path: Path) -> None:
    """The head has two CPUs, each of the two other nodes one."""
    with Cluster(tmp_path, cpus=2) as nodes:
        for _ in range(2):
            nodes.add_node(cpus=1)
        command = [sys.executable, "-c", "from tests.faults import nodes; nodes.main()", str(tmp_path)]
        environment = {**os.environ, **nodes.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found["cpus"].values()) == [1, 1, 2]
    assert [chunk for chunk, _ in found["chunks"]] == list(range(CHUNKS))
    assert {node for _, node in found["chunks"]} == found["cpus"].keys()
    # The images of a worker are prepared on its node first, and on others when that is busy.
    assert found["feed"]["1"] == [found["here"]]
    assert set(found["feed"]["4"]) == found["cpus"].keys()
