"""Measures the feed: pairs of image and mask per second, and the time to the first batch, by the size of the corpus and
by the place of the shards.

Shards of 6,016 phantoms are made once. An index of a million images names hard links to the same files, so that the
pixels and the disk are the same for every size. The bucket is a SeaweedFS server on this machine; the slow one is
behind a proxy that answers every request only after 30 ms.

Each case runs in a process of its own, which starts Ray. Run it from the folder of the repository:
python -m benchmarks.feed
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results import write_result
from tests.processes import processes

ROOT = Path(__file__).resolve().parent.parent
LATENCY = 0.03
IMAGES, STORED, ROWS, SIZE, BATCH, TASKS = 6016, 512, 64, 256, 16, 2
SIZES = (IMAGES, 100_000, 1_000_000, 10_000_000)
BUCKET, PREFIX = "shards", "phantoms"


def case(root: str, seconds: float, started: float, cached: str) -> dict[str, float]:
    """Reads the training images of some shards with two data tasks, and does nothing with them.

    Args:
        root: The folder of the shards.
        seconds: How long the feed is measured after its start.
        started: The time at which the case began, seconds since 1970.
        cached: The folder of the cache; empty for none.

    Returns:
        `first_batch`, seconds from the start of the process to the first batch; `start_pairs_per_s`, the speed from the
        start of the feed to the end of the first epoch, or of 4 chunks of a large corpus; `pairs_per_s`, the speed
        after that; and `task_mib`, the largest private memory of a data task.
    """
    from lungseg_ray.cluster.session import cluster
    from lungseg_ray.feed.cache import ShardCache
    from lungseg_ray.feed.stream import CHUNK_IMAGES, Feed, Source
    from lungseg_ray.shards.index import read_index
    from lungseg_ray.storage import locate

    place = locate(root)
    cache = ShardCache(cached, 1 << 40) if cached else None
    source = Source(place, read_index(place), "medium", SIZE, BATCH, 64, seed=0, cache=cache)
    with cluster(processes=TASKS):
        begun = time.perf_counter()
        stream = Feed(source, 0, 1, TASKS, ahead=4 * CHUNK_IMAGES).train(step=0, epochs=1_000)
        next(stream)
        found = {"first_batch": time.time() - started}
        warm_up = 4 * CHUNK_IMAGES // BATCH if source.index.count("train") > IMAGES else source.steps_per_epoch
        for _ in range(warm_up - 1):
            next(stream)
        found["start_pairs_per_s"] = warm_up * BATCH / (time.perf_counter() - begun)
        start, pairs = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            pairs += len(next(stream).image_ids)
        found["pairs_per_s"] = pairs / (time.perf_counter() - start)
        found["task_mib"] = _task_mib()
        threading.Thread(target=stream.close, daemon=True).start()
    return found


def _task_mib() -> float:
    """Returns the private memory of the largest data task, MiB."""
    found = [0.0]
    for pid, command in processes().items():
        if command.startswith("ray::") and "Task" in command:
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                found.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
    return max(found)


def run_case(root: str, seconds: float, cached: str) -> dict[str, float]:
    """Runs a case in a process of its own, with a cold cache, and returns its figures."""
    if cached:
        shutil.rmtree(cached, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.feed", "--case", root, str(seconds), str(time.time()), cached]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_shards(folder: Path, images: int = IMAGES) -> None:
    """Makes the shards of the phantoms, nearly all of them for training."""
    corpus = ("--corpus.phantom.count", str(images * 66 // 64), "--corpus.phantom.size", str(STORED))
    split = ("--corpus.split.val", "0.01", "--corpus.split.test", "0.005")
    command = [sys.executable, "jobs/shard.py", "--shards.root", str(folder), *corpus, *split]
    subprocess.run([*command, "--shards.rows", str(ROWS)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def with_images(made: Path, folder: Path, images: int) -> None:
    """Makes a folder whose index has about so many training images, with hard links to the same shards."""
    from lungseg_ray.shards.index import read_index, write_index
    from lungseg_ray.storage import locate

    index = read_index(locate(str(made)))
    train, others = index.of("train"), [shard for shard in index.shards if shard.split != "train"]
    whole = [shard for shard in train if shard.rows == ROWS]
    folder.mkdir()
    for shard in others:
        os.link(made / shard.file, folder / shard.file)
    shards = list(others)
    for number in range(-(-images // ROWS)):
        shard = whole[number % len(whole)]
        shards.append(shard.model_copy(update={"file": f"train-{number:06d}.parquet"}))
        os.link(made / shard.file, folder / shards[-1].file)
    figures = index.splits["train"].model_copy(update={"images": ROWS * (len(shards) - len(others))})
    changed = {"shards": shards, "splits": {**index.splits, "train": figures}, "fingerprint": str(images)}
    write_index(locate(str(folder)), index.model_copy(update=changed))


def measure(root: str, seconds: float, repeats: int, what: str, cached: str = "") -> dict[str, Any]:
    """Returns the medians of the figures of several runs of a case, and the speed in each of them."""
    found = [run_case(root, seconds, cached) for _ in track(range(repeats), what)]
    medians = {name: round(statistics.median(one[name] for one in found), 1) for name in found[0]}
    return {**medians, "each": [round(one["pairs_per_s"], 1) for one in found]}


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=SIZES, help="training images in the index")
    parser.add_argument("--seconds", type=float, default=20, help="how long each run is measured")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument(
        "--bucket",
        choices=("none", "slow", "all"),
        default="all",
        help="none: the local disk alone; slow: also a bucket with a delay, with the cache; all: also one without a "
        "delay, both of them also without the cache",
    )
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        root, seconds, started, cached = given.case
        print(json.dumps(case(root, float(seconds), float(started), cached)), flush=True)
        return
    console = Console()
    cases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="lungseg-feed-") as name:
        folder = Path(name)
        make_shards(folder / "made")
        for images in given.images:
            with_images(folder / "made", folder / str(images), images)
            what = f"{images:,} images, local disk"
            cases[what] = measure(str(folder / str(images)), given.seconds, given.repeats, what)
            shutil.rmtree(folder / str(images))
        if given.bucket != "none":
            with_images(folder / "made", folder / "bucket", IMAGES)
            cases |= in_bucket(folder / "bucket", given.seconds, given.repeats, slow_only=given.bucket == "slow")
    table = Table("case", "first batch, s", "pairs/s, first epoch", "pairs/s, then", "memory of a task, MiB")
    for what, found in cases.items():
        keys = ("first_batch", "start_pairs_per_s", "pairs_per_s", "task_mib")
        table.add_row(what, *(f"{found[key]:.0f}" for key in keys))
    console.print(table)
    sizes = {"stored_px": STORED, "size": SIZE, "tasks": TASKS, "latency_seconds": LATENCY}
    write_result("feed", {**sizes, "cases": cases}, console)


def in_bucket(shards: Path, seconds: float, repeats: int, *, slow_only: bool) -> dict[str, Any]:
    """Measures the shards of a folder in a bucket, without and with a delay of each request and the cache.

    Args:
        shards: The folder.
        seconds: How long each run is measured.
        repeats: The runs of each case.
        slow_only: Whether only the bucket with a delay is measured, with the cache.
    """
    from tests.storage.object_store import FaultyProxy, ObjectStore

    result = {}
    place = Path(tempfile.mkdtemp(prefix="lungseg-store-"))
    try:
        with ObjectStore(place) as running:
            running.create_bucket(BUCKET)
            client = running.client()
            for file in sorted(shards.iterdir()):
                client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{file.name}", Body=file.read_bytes())
            buckets = {"bucket": 0.0, "bucket, 30 ms per request": LATENCY}
            for what, delay in list(buckets.items())[slow_only:]:
                with FaultyProxy(running, delay=delay) as proxy:
                    os.environ.update(proxy.environment if delay else running.environment)
                    root = f"s3://{BUCKET}/{PREFIX}"
                    result[what] = measure(root, seconds, repeats, what, str(place / "cache"))
                    if not slow_only:
                        without = f"{what}, no cache"
                        result[without] = measure(root, seconds, repeats, without)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return result


if __name__ == "__main__":
    main()
