"""Measures the feed beside its peers: PyTorch's DataLoader, LitData and MosaicML Streaming.

All of them give batches of the same augmented pairs, with two processes, and nothing is done with these. Whole epochs
are measured: the first one from the start of the process, so that imports and the start of Ray count, and with an empty
cache; then the others, the pauses between epochs included. The DataLoader
reads the same shards, row by row; LitData and Streaming read the same pixels in their own formats, as arrays without
compression, which is their default. The bucket is a SeaweedFS server on this machine, behind a proxy that answers every
request only after 30 ms.

Each case runs in a process of its own. Run it from the folder of the repository, with the extra `bench` installed:
python -m benchmarks.peers
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmarks.feed import BATCH, LATENCY, SIZE, TASKS, make_shards
from benchmarks.results import write_result
from lungseg_ray.feed.augment import build_augmentation
from lungseg_ray.shards.format import read_pairs
from lungseg_ray.shards.index import read_index
from lungseg_ray.storage import locate

ROOT = Path(__file__).resolve().parent.parent
IMAGES, EPOCHS, BUCKET = 2048, 5, "peers"
"""The training images, the epochs of a run, and the bucket."""
KINDS = ("lungseg-ray", "torch DataLoader", "LitData", "MosaicML Streaming")

Pair = dict[str, Any]


class _Augmented:
    """Augments a pair, in whichever process."""

    _change: Any = None

    def __call__(self, pair: Pair) -> Pair:
        if self._change is None:
            cv2.setNumThreads(0)
            self._change = build_augmentation("medium", size=SIZE)
        image, mask = self._change(pair["image"], pair["mask"], seed=int(torch.randint(2**62, ())))
        return {"image": image, "mask": mask}


class _Rows(Dataset[Pair]):
    """The training rows of shards, for a DataLoader."""

    def __init__(self, root: str) -> None:
        self._root = locate(root)
        shards = read_index(self._root).of("train")
        self._rows = [(shard, row) for shard in shards for row in shard.usable]
        self._augment = _Augmented()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Pair:
        shard, row = self._rows[number]
        (pair,) = read_pairs(self._root, shard, [row])
        return self._augment({"image": pair.image, "mask": pair.mask})


def pairs(root: str) -> Iterator[Pair]:
    """Yields the pixels of all training rows of shards."""
    place = locate(root)
    for shard in read_index(place).of("train"):
        for pair in read_pairs(place, shard, shard.usable):
            yield {"image": pair.image, "mask": pair.mask}


def write_litdata(root: str, out: Path) -> None:
    """Writes the pairs in the format of LitData."""
    from litdata.streaming import Cache

    cache = Cache(str(out), chunk_bytes="64MB")
    for number, pair in enumerate(pairs(root)):
        cache[number] = {name: np.ascontiguousarray(pixels) for name, pixels in pair.items()}
    cache.done()
    cache.merge()


def write_streaming(root: str, out: Path) -> None:
    """Writes the pairs in the format of MosaicML Streaming."""
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"image": "ndarray", "mask": "ndarray"}) as writer:
        for pair in pairs(root):
            writer.write({name: np.ascontiguousarray(pixels) for name, pixels in pair.items()})


@contextmanager
def _ours(place: str, cache: str, epochs: int) -> Iterator[Callable[[], int]]:
    """Provides a function that reads the next epoch with this project's feed, and returns the number of pairs."""
    from lungseg_ray.cluster.session import cluster
    from lungseg_ray.feed.cache import ShardCache
    from lungseg_ray.feed.stream import CHUNK_IMAGES, Feed, Source

    root = locate(place)
    cached = ShardCache(cache, 1 << 40) if "://" in place else None
    source = Source(root, read_index(root), "medium", SIZE, BATCH, 64, seed=0, cache=cached)
    with cluster(processes=TASKS):
        stream = Feed(source, 0, 1, TASKS, ahead=4 * CHUNK_IMAGES).train(step=0, epochs=epochs)
        yield lambda: sum(len(batch.image_ids) for batch in islice(stream, source.steps_per_epoch))
        stream.close()


@contextmanager
def _theirs(kind: str, place: str, cache: str) -> Iterator[Callable[[], int]]:
    """Provides a function that reads the next epoch with a peer, and returns the number of pairs."""
    loader = _loader(kind, place, cache)
    yield lambda: sum(len(batch["image"]) for batch in loader)


def _loader(kind: str, place: str, cache: str) -> Iterable[Pair]:
    if kind == "torch DataLoader":
        return DataLoader(
            _Rows(place),
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=TASKS,
            persistent_workers=True,
            multiprocessing_context="forkserver",
        )
    if kind == "LitData":
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming import downloader

        # The bucket has no TLS, and LitData has no setting that allows it.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
        endpoint = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if "://" in place else {}
        given: Any = {"cache_dir": cache, "storage_options": endpoint} if endpoint else {}
        data: Any = StreamingDataset(place, shuffle=True, drop_last=True, transform=_Augmented(), **given)
        loaded: Iterable[Pair] = StreamingDataLoader(data, batch_size=BATCH, num_workers=TASKS, persistent_workers=True)
        return loaded
    from streaming import StreamingDataset as Streamed

    class Pairs(Streamed):
        _augment = _Augmented()

        def __getitem__(self, at: Any) -> Any:
            return self._augment(super().__getitem__(at))

    source: Any = {"remote": place, "local": cache} if "://" in place else {"local": place}
    return DataLoader(
        Pairs(**source, shuffle=True, batch_size=BATCH),
        batch_size=BATCH,
        drop_last=True,
        num_workers=TASKS,
        persistent_workers=True,
    )


def case(kind: str, place: str, cache: str, epochs: int, started: float) -> dict[str, float]:
    """Reads some epochs.

    Args:
        kind: One of `KINDS`.
        place: The folder of the pairs, or its place in the bucket.
        cache: A folder for copies; it does not exist.
        epochs: The epochs, at least 2.
        started: When the process was started, seconds since 1970.

    Returns:
        `start_pairs_per_s`, the speed in the first epoch, and `pairs_per_s`, that in the others together.
    """
    reading = _ours(place, cache, epochs) if kind == KINDS[0] else _theirs(kind, place, cache)
    with reading as next_epoch:
        first = next_epoch() / (time.time() - started)
        start = time.perf_counter()
        then = sum(next_epoch() for _ in range(epochs - 1)) / (time.perf_counter() - start)
    return {"start_pairs_per_s": first, "pairs_per_s": then}


def run_case(kind: str, place: str, cache: Path, epochs: int) -> dict[str, float]:
    """Runs a case in a process of its own, with an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    case = (kind, place, str(cache), str(epochs), str(time.time()))
    command = [sys.executable, "-m", "benchmarks.peers", "--case", *case]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def slow_bucket(folders: dict[str, Path]) -> Iterator[None]:
    """Uploads folders, and serves them through a proxy that delays each request, to the processes started meanwhile."""
    from tests.storage.object_store import FaultyProxy, ObjectStore

    with tempfile.TemporaryDirectory(prefix="lungseg-store-") as place, ObjectStore(Path(place)) as store:
        store.create_bucket(BUCKET)
        client = store.client()
        for name, folder in folders.items():
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                key = f"{name}/{file.relative_to(folder)}"
                client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        with FaultyProxy(store, delay=LATENCY) as proxy:
            more = {**proxy.environment, "S3_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
            before = {name: os.environ.get(name) for name in more}
            os.environ.update(more)
            try:
                yield
            finally:
                for name, value in before.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--images", type=int, default=IMAGES, help="training images, about")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of a run, at least 2")
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        kind, place, cache, epochs, started = given.case
        print(json.dumps(case(kind, place, cache, int(epochs), float(started))), flush=True)
        return
    console = Console()
    result: dict[str, Any] = {"size": SIZE, "processes": TASKS, "latency_seconds": LATENCY, "cases": {}}
    with tempfile.TemporaryDirectory(prefix="lungseg-peers-") as name:
        folder = Path(name)
        shards = folder / "shards"
        make_shards(shards, images=given.images)
        writers: dict[str, Callable[[str, Path], None]] = {KINDS[2]: write_litdata, KINDS[3]: write_streaming}
        for kind, write in writers.items():
            write(str(shards), folder / kind)
        places = dict(zip(KINDS, (shards, shards, folder / KINDS[2], folder / KINDS[3]), strict=True))
        names = {"shards": shards, "litdata": folder / KINDS[2], "streaming": folder / KINDS[3]}
        keys = {place: key for key, place in names.items()}

        def measure(where: str, at: Callable[[Path], str]) -> None:
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
            for _ in track(range(given.repeats), where):
                for kind in KINDS:
                    try:
                        found[kind].append(run_case(kind, at(places[kind]), folder / "cache", given.epochs))
                    except subprocess.CalledProcessError:
                        # A peer that fails is named on the page, and measured by its other runs.
                        if kind == KINDS[0]:
                            raise
            for kind, runs in found.items():
                if not runs:
                    console.print(f"{kind}, {where}: no run came to its end")
                    result["cases"][f"{kind}, {where}"] = {"each": [], "failed": given.repeats}
                    continue
                medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                own = {"each": [run["pairs_per_s"] for run in runs], "failed": given.repeats - len(runs)}
                result["cases"][f"{kind}, {where}"] = {**medians, **own}
                console.print(f"{kind}, {where}: {medians}, {own}")

        measure("local disk", str)
        with slow_bucket(names):
            measure("bucket, 30 ms per request", lambda place: f"s3://{BUCKET}/{keys[place]}")
    table = Table("feed", "pairs/s, first epoch", "pairs/s, then")
    for what, figures in result["cases"].items():
        table.add_row(what, *(f"{figures.get(key, math.nan):.0f}" for key in ("start_pairs_per_s", "pairs_per_s")))
    console.print(table)
    write_result("peers", result, console)


if __name__ == "__main__":
    main()
