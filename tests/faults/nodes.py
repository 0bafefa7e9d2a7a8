"""A program that says where tasks run on the cluster that RAY_ADDRESS names: `main` with a folder as its argument."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.cluster.session import cluster
from lungseg_ray.feed import stream
from lungseg_ray.feed.plan import ChunkTask
from lungseg_ray.feed.stream import Feed, Source
from lungseg_ray.shards.index import ShardIndex, read_index
from lungseg_ray.storage import locate
from tests.helpers import write_shards

CHUNKS, EPOCHS, IMAGES = 60, 24, 128


@dataclass(frozen=True)
class Place:
    chunk: int
    node: str


class Where:
    """Work that takes a moment, and says on which node it was done."""

    def prepare(self, chunk: int) -> tuple[int, None]:
        return chunk, None

    def compute(self, given: None, device: str) -> None:
        time.sleep(0.3)

    def finish(self, prepared: int, computed: None) -> list[Place]:
        return [Place(prepared, ray.get_runtime_context().get_node_id())]


@dataclass(frozen=True)
class WatchedTask(ChunkTask):
    """A data task that leaves a file named after its node."""

    folder: Path = Path()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(0.3)
        return super().__call__(batch)


def feed(folder: Path, tasks: int) -> list[str]:
    """Reads some epochs with data tasks, and returns the nodes that these ran on."""
    root = locate(str(folder / "shards"))
    seen = folder / f"with {tasks} tasks"
    seen.mkdir()
    setattr(stream, "ChunkTask", partial(WatchedTask, folder=seen))  # noqa: B010
    source = Source(root, index_of(folder), "valid", 32, 4, 8, seed=0)
    batches = Feed(source, 0, 1, tasks, ahead=64).train(step=0, epochs=EPOCHS)
    assert sum(len(batch.image_ids) for batch in batches) == EPOCHS * IMAGES
    batches.close()
    return sorted(path.name for path in seen.iterdir())


def index_of(folder: Path) -> ShardIndex:
    """Makes small shards, once, and returns their index."""
    root = folder / "shards"
    if root.exists():
        return read_index(locate(str(root)))
    return write_shards(locate(str(root)), rows={"train": [16] * (IMAGES // 16), "val": [4]}, skip={})


def main() -> None:
    folder = Path(sys.argv[1])
    with cluster(processes=1):
        found = {
            "here": ray.get_runtime_context().get_node_id(),
            "cpus": {node["NodeID"]: int(node["Resources"]["CPU"]) for node in ray.nodes() if node["Alive"]},
            "chunks": [[place.chunk, place.node] for place in map_chunks(Where(), CHUNKS, Place, device="cpu")],
            "feed": {tasks: feed(folder, tasks) for tasks in (1, 4)},
        }
    print(json.dumps(found))
