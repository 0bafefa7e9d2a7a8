"""Measures how long it takes to list and recognise a corpus of 200,000 files, in a folder and in a bucket.

The bucket is a SeaweedFS server on this machine, behind a proxy that answers every request only after 30 ms. The peers
do nothing but list: `os.scandir` with the status of each file, and the pages of ListObjectsV2 through the same proxy.

Run it from the folder of the repository: python -m benchmarks.listing
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results import write_result
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import list_corpus
from tests.storage.object_store import FaultyProxy, ObjectStore

LATENCY = 0.03
BUCKET = "corpus"
KINDS = 97
"""The number of different images, which are repeated under other names."""


def pairs(number: int) -> tuple[str, str]:
    """Returns the paths of an image and its mask in two folders."""
    return f"images/{number // 3:08d}_{number % 3:03d}.png", f"masks/{number // 3:08d}_{number % 3:03d}.png"


def beside(number: int) -> tuple[str, str]:
    """Returns the paths of an image and its mask in one folder, told apart by their names."""
    return f"{number:06d}.png", f"{number:06d}_mask.png"


def patients(number: int) -> tuple[str, str]:
    """Returns the paths of an image and its mask in folders of patients and studies, as in CheXpert."""
    folder = f"patient{number // 3:05d}/study{number % 3 + 1}"
    return f"train/{folder}/view1_frontal.png", f"train/{folder}/view1_frontal_mask.png"


TREES: dict[str, Callable[[int], tuple[str, str]]] = {"pairs": pairs, "beside": beside, "patients": patients}


@lru_cache
def contents(number: int) -> tuple[bytes, bytes]:
    """Returns the content of an image and of its mask."""
    rng = np.random.default_rng(number)
    mask = np.zeros((64, 64), np.uint8)
    top, left = rng.integers(4, 30, 2)
    cv2.ellipse(mask, (int(left) + 10, int(top) + 15), (8, 14), 0, 0, 360, 255, cv2.FILLED)
    image = rng.integers(0, 64 + number % 128, (64, 64), np.uint8)
    return cv2.imencode(".png", image)[1].tobytes(), cv2.imencode(".png", mask)[1].tobytes()


def timed(work: Callable[[], int], repeats: int, expected: int) -> float:
    """Returns the median duration of some work, seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
        if found != expected:
            raise SystemExit(f"expected {expected}, found {found}")
    return round(statistics.median(seconds), 2)


def recognise(root: str, environment: dict[str, str] | None = None) -> int:
    """Lists a corpus and returns the number of images with masks."""
    os.environ.update(environment or {})
    return len(list_corpus(CorpusSettings.model_validate({"root": root})).records)


def scan(folder: str) -> int:
    """Returns the number of files below a folder, and asks for the status of each."""
    count, waiting = 0, [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    entry.stat()
                    count += 1
    return count


def in_folder(name: str, count: int, repeats: int) -> dict[str, float]:
    """Measures a tree in a folder of the local disk."""
    with tempfile.TemporaryDirectory(prefix="lungseg-listing-") as folder:
        made: set[Path] = set()
        for number in track(range(count // 2), f"Writing {name}"):
            for path, data in zip(TREES[name](number), contents(number % KINDS), strict=True):
                place = Path(folder, path)
                if place.parent not in made:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    made.add(place.parent)
                place.write_bytes(data)
        return {
            "seconds": timed(lambda: recognise(folder), repeats, count // 2),
            "peer_seconds": timed(lambda: scan(folder), repeats, count),
        }


@contextmanager
def store() -> Iterator[ObjectStore]:
    """Runs an object store for the block."""
    folder = Path(tempfile.mkdtemp(prefix="lungseg-store-"))
    try:
        with ObjectStore(folder) as running:
            running.create_bucket(BUCKET)
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_bucket(name: str, count: int, repeats: int, running: ObjectStore) -> dict[str, float]:
    """Measures a tree in a bucket behind the proxy."""
    client = running.client()

    def put(number: int) -> None:
        for path, data in zip(TREES[name](number), contents(number % KINDS), strict=True):
            client.put_object(Bucket=BUCKET, Key=f"{name}/{path}", Body=data)

    with ThreadPoolExecutor(8) as pool:
        for _ in track(pool.map(put, range(count // 2)), f"Uploading {name}", total=count // 2):
            pass
    with FaultyProxy(running, delay=LATENCY) as proxy:
        os.environ.update(proxy.environment)

        def pages() -> int:
            slow = running.client(proxy.url)
            found = slow.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{name}/")
            return sum(len(page.get("Contents", [])) for page in found)

        peer = timed(pages, repeats, count)
        proxy.seen.clear()
        seconds = timed(lambda: recognise(f"s3://{BUCKET}/{name}"), repeats, count // 2)
        return {"seconds": seconds, "peer_seconds": peer, "requests": len(proxy.seen) // repeats}


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000, help="files in each tree, half of them masks")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES), help="trees to measure")
    parser.add_argument("--no-bucket", action="store_true", help="measure folders alone")
    given = parser.parse_args()
    cases: dict[str, dict[str, float]] = {}
    console = Console()
    table = Table("where", "tree", "seconds", "listing alone", "ratio", "requests")

    def add(where: str, name: str, found: dict[str, float]) -> None:
        ratio = round(found["seconds"] / found["peer_seconds"], 2)
        cases[f"{where} {name}"] = {**found, "ratio": ratio}
        requests = f"{found['requests']:.0f}" if "requests" in found else ""
        table.add_row(where, name, f"{found['seconds']:.1f}", f"{found['peer_seconds']:.1f}", f"{ratio:.1f}", requests)

    for name in given.trees:
        add("folder", name, in_folder(name, given.files, given.repeats))
    if not given.no_bucket:
        with store() as running:
            for name in given.trees:
                add("bucket", name, in_bucket(name, given.files, given.repeats, running))
    console.print(table)
    write_result("listing", {"files": given.files, "latency_seconds": LATENCY, "cases": cases}, console)


if __name__ == "__main__":
    main()
