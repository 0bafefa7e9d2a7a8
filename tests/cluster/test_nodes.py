"""Work in chunks on a cluster of three nodes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.cluster.session import cluster
from tests.faults.small import Cluster


@dataclass(frozen=True)
class Place:
    chunk: int
    node: str


class Where:
    """Work that takes a moment, and says on which node it was done."""

    def prepare(self, chunk: int) -> int:
        return chunk

    def compute(self, prepared: int, device: str) -> int:
        time.sleep(0.3)
        return prepared

    def finish(self, computed: int) -> list[Place]:
        return [Place(computed, ray.get_runtime_context().get_node_id())]


@pytest.mark.own_cluster
def test_tasks_run_on_all_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(tmp_path, cpus=1) as nodes:
        for _ in range(2):
            nodes.add_node(cpus=1)
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        with cluster(processes=1):
            found = list(map_chunks(Where(), 60, Place, device="cpu"))
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert [place.chunk for place in found] == list(range(60))
    assert {place.node for place in found} == alive
    assert len(alive) == 3
