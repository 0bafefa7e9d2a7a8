"""Four figures in two minutes: is training with the feed as fast as a plain script, and how soon does it start?

Each speed is a ratio to a peer measured in the same run: the training loop against the same step on batches that lie in
memory, and the feed against a bare loop that unpacks and augments in as many processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lungseg_ray.cluster.planning import cores
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import Settings
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.stream import CHUNK_IMAGES, Feed, Source, prepare
from lungseg_ray.shards.format import read_index
from lungseg_ray.storage import locate
from lungseg_ray.training.learner import Learner

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PHANTOMS, SIZE, EPOCHS = 96, 128, 4
FEED_SIZE, FEED_EPOCHS, REPEATS = 256, 6, 3


def run_job(name: str, *arguments: str) -> None:
    """Runs a job as a user does."""
    subprocess.run(
        [sys.executable, str(ROOT / "jobs" / name), *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def train_run(folder: Path) -> tuple[dict[str, Any], list[float]]:
    """Runs the main job on shards that are there.

    Returns:
        Its summary, and the images per second of each epoch.
    """
    shards = ("--shards.root", str(folder / "shards"))
    run_job("shard.py", *shards, "--corpus.phantom.count", str(PHANTOMS))
    run = ("--runs.root", str(folder), "--runs.name", "run")
    length = ("--feed.size", str(SIZE), "--train.epochs", str(EPOCHS), "--train.precision", "bf16")
    run_job("train.py", *shards, *run, *length)
    with (folder / "run" / "history.csv").open() as lines:
        speeds = [float(row["images_per_second"]) for row in csv.DictReader(lines)]
    return json.loads((folder / "run" / "summary.json").read_text()), speeds


def steps_in_memory(settings: Settings, steps: int) -> float:
    """Images per second of the same step on a batch that lies in memory."""
    torch.set_num_threads(cores())
    learner = Learner(settings=settings, device=torch.device("cpu"), precision="bf16", total_steps=steps + 3)
    generator = np.random.default_rng(0)
    shape = (settings.feed.batch, SIZE, SIZE)
    images = torch.from_numpy(generator.integers(0, 256, (*shape, 1), np.uint8)).permute(0, 3, 1, 2)
    batch = Batch(0, images, torch.from_numpy(generator.integers(0, 2, shape, np.uint8)), ["memory"] * shape[0])
    seconds = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        learner.step(batch)
        seconds.append(time.perf_counter() - start)
    return settings.feed.batch / statistics.median(seconds[3:])


def feed_alone(source: Source, tasks: int) -> float:
    """Pairs per second that one rank takes from the feed while it does nothing else."""
    stream = Feed(source, 0, 1, tasks, ahead=4 * CHUNK_IMAGES).train(step=0, epochs=FEED_EPOCHS)
    for _ in range(CHUNK_IMAGES // source.batch):
        next(stream)
    start = time.perf_counter()
    pairs = sum(len(batch.image_ids) for batch in stream)
    seconds = time.perf_counter() - start
    stream.close()
    return pairs / seconds


def bare_loop(source: Source, processes: int) -> float:
    """Pairs per second of as many processes that only unpack and augment, and hand nothing on."""
    places = source.steps_per_epoch * source.batch
    chunks = [
        (epoch, np.arange(start, min(start + CHUNK_IMAGES, places)))
        for epoch in range(FEED_EPOCHS)
        for start in range(0, places, CHUNK_IMAGES)
    ]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(_bare_chunk, [(source, *chunks[0])] * processes * 2))
        start = time.perf_counter()
        pairs = sum(pool.map(_bare_chunk, [(source, *chunk) for chunk in chunks]))
        return pairs / (time.perf_counter() - start)


def _bare_chunk(task: tuple[Source, int, Any]) -> int:
    source, epoch, slots = task
    return len(prepare(source, "train", epoch, slots)["slot"])


def main() -> None:
    """Measures, prints a table, and writes the figures to benchmarks/results/smoke.json."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    console = Console()
    settings = Settings.model_validate({"feed": {"size": SIZE}, "train": {"precision": "bf16"}})
    with tempfile.TemporaryDirectory(prefix="lungseg-bench-") as name:
        folder = Path(name)
        before = steps_in_memory(settings, 12)
        summary, speeds = train_run(folder)
        after = steps_in_memory(settings, 12)
        root = locate(str(folder / "shards"))
        source = Source(root, read_index(root), "medium", FEED_SIZE, 8, 64, seed=0)
        processes = cores()
        with cluster(processes=processes):
            feeds = [feed_alone(source, processes) for _ in range(REPEATS)]
        bares = [bare_loop(source, processes) for _ in range(REPEATS)]
    memory = statistics.mean([before, after])
    speed = statistics.median(speeds)
    feed, bare = statistics.median(feeds), statistics.median(bares)
    figures = {
        "training_images_per_second": speed,
        "in_memory_images_per_second": memory,
        "training_over_in_memory": speed / memory,
        "data_wait_share": summary["data_wait_share"],
        "feed_pairs_per_second": feed,
        "bare_pairs_per_second": bare,
        "feed_over_bare": feed / bare,
        "seconds_to_first_step": summary["seconds"]["to_first_step"],
    }
    table = Table("figure", "measured", "aim", title=f"{processes} cores")
    table.add_row("training / same step in memory", f"{speed:.1f} / {memory:.1f} = {speed / memory:.2f}", ">= 0.95")
    table.add_row("share of time waiting for data", f"{summary['data_wait_share']:.1%}", "<= 3 %")
    table.add_row("feed / bare loop, pairs per second", f"{feed:.0f} / {bare:.0f} = {feed / bare:.2f}", ">= 0.7")
    table.add_row("seconds from command to first step", f"{summary['seconds']['to_first_step']:.1f}", "<= 20")
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "smoke.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
