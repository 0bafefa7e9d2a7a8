"""Measures in two minutes whether training with the feed is as fast as a plain script, and how soon it starts.

The result is four figures. Each speed is reported as a ratio to that of a peer measured in the same run. The peer of
the training loop is the same step on batches in memory. The peer of the feed is a bare loop that unpacks and augments
in the same number of processes.
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

from benchmarks.results import write_result
from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.cluster.planning import cores
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import Settings
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.stream import CHUNK_IMAGES, Feed, Source
from lungseg_ray.shards.index import read_index
from lungseg_ray.storage import locate
from lungseg_ray.training.learner import Learner

ROOT = Path(__file__).resolve().parent.parent
PHANTOMS, SIZE, EPOCHS = 96, 128, 4
FEED_SIZE, FEED_EPOCHS, REPEATS = 256, 6, 3


def run_job(name: str, *arguments: str) -> None:
    """Runs a job in the way that a user runs it.

    Args:
        name: The file name of the script in jobs/.
        *arguments: The command-line arguments of the job.

    Raises:
        CalledProcessError: If the job fails.
    """
    subprocess.run(
        [sys.executable, str(ROOT / "jobs" / name), *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def train_run(folder: Path) -> tuple[dict[str, Any], list[float]]:
    """Builds shards of phantoms and runs a training job on them.

    Args:
        folder: The folder for the shards and the run.

    Returns:
        The content of the run's `summary.json`, and the images per second of each epoch.
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
    """Measures the training step on a batch in memory.

    Args:
        settings: The settings of the run.
        steps: Number of measured steps; three more come first as a warm-up.

    Returns:
        Images per second, from the median time of a step.
    """
    torch.set_num_threads(cores())
    reuse_memory()
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
    """Measures the feed of one rank that does nothing but read from it, after the first chunk of images.

    Args:
        source: The data.
        tasks: Number of data tasks that run at the same time.

    Returns:
        Pairs of image and mask per second.
    """
    stream = Feed(source, 0, 1, tasks, ahead=4 * CHUNK_IMAGES).train(step=0, epochs=FEED_EPOCHS)
    for _ in range(CHUNK_IMAGES // source.batch):
        next(stream)
    start = time.perf_counter()
    pairs = sum(len(batch.image_ids) for batch in stream)
    seconds = time.perf_counter() - start
    stream.close()
    return pairs / seconds


def bare_loop(source: Source, processes: int) -> float:
    """Measures processes that only unpack and augment, and return nothing but the number of pairs.

    Args:
        source: The data.
        processes: Number of processes.

    Returns:
        Pairs of image and mask per second.
    """
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
    return len(source.plan("train", [source.rows("train", epoch, slots)]).prepare(0)["slot"])


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
    write_result("smoke", figures, console)


if __name__ == "__main__":
    main()
