"""Reads the batches of a feed in an actor that has a GPU of the cluster, and prints where the data tasks ran.

A GPU is only counted here, not used: a node is started with one whether or not the machine has any.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

import ray
from ray.util.state import list_tasks

from lungseg_ray.feed.stream import Feed, Source
from lungseg_ray.shards.index import read_index
from lungseg_ray.storage import locate

EPOCHS = 6


@ray.remote(num_gpus=1, num_cpus=0)
def read(root: str, tasks: int) -> tuple[str, int, float]:
    """Returns the node of the actor, the images that it got, and those per second after the first batch."""
    place = locate(root)
    source = Source(place, read_index(place), preset="chest", size=128, batch=8, window=2, seed=0)
    batches = Feed(source, rank=0, world_size=1, tasks=tasks, ahead=64).train(step=0, epochs=EPOCHS)
    count, start = 0, 0.0
    for batch in batches:
        start = start or time.perf_counter()
        count += len(batch.image_ids)
    return ray.get_runtime_context().get_node_id(), count, (count - 8) / (time.perf_counter() - start)


def main() -> None:
    """Reads with one data task, and with two."""
    ray.init(log_to_driver=False, logging_level=50)
    found = []
    for tasks in (1, 2):
        before = {task.task_id for task in list_tasks(limit=10_000)}
        node, images, rate = ray.get(read.remote(sys.argv[1], tasks))
        # Tasks are reported a moment after they have ended.
        time.sleep(3)
        ran = Counter(
            task.node_id for task in list_tasks(limit=10_000) if task.task_id not in before and "ChunkTask" in task.name
        )
        found.append({"tasks": tasks, "trainer": node, "images": images, "rate": rate, "ran": dict(ran)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
