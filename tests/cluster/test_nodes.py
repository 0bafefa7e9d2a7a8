"""The places of tasks on a cluster of three nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.cluster.session import cluster
from lungseg_ray.feed import stream
from lungseg_ray.feed.plan import ChunkTask
from lungseg_ray.feed.stream import Feed, Source
from lungseg_ray.storage import locate
from tests.faults.small import Cluster
from tests.helpers import write_shards


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


@dataclass(frozen=True)
class WatchedTask(ChunkTask):
    """A data task that leaves a file named after its node."""

    folder: Path = Path()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(0.1)
        return super().__call__(batch)


@pytest.fixture
def three_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A cluster of a head with two CPUs and two nodes with one; the CPUs of each node."""
    with Cluster(tmp_path, cpus=2) as nodes:
        for _ in range(2):
            nodes.add_node(cpus=1)
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        with cluster(processes=1):
            yield {node["NodeID"]: int(node["Resources"]["CPU"]) for node in ray.nodes() if node["Alive"]}


@pytest.mark.own_cluster
def test_where_tasks_run(three_nodes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(three_nodes.values()) == [1, 1, 2]
    found = list(map_chunks(Where(), 60, Place, device="cpu"))
    assert [place.chunk for place in found] == list(range(60))
    assert {place.node for place in found} == three_nodes.keys()

    # The images of a worker are prepared on its node, as far as that has CPUs.
    here = ray.get_runtime_context().get_node_id()
    index = write_shards(locate(str(tmp_path / "shards")), rows={"train": [16] * 8, "val": [4]}, skip={})
    for tasks, expected in ((2, {here}), (4, three_nodes.keys())):
        folder = tmp_path / f"with {tasks} tasks"
        folder.mkdir()
        monkeypatch.setattr(stream, "ChunkTask", partial(WatchedTask, folder=folder))
        source = Source(locate(str(tmp_path / "shards")), index, "valid", 32, 4, 8, seed=0)
        feed = Feed(source, 0, 1, tasks, ahead=64)
        batches = feed.train(step=0, epochs=6)
        assert sum(len(batch.image_ids) for batch in batches) == 6 * 128
        batches.close()
        assert {path.name for path in folder.iterdir()} == expected
