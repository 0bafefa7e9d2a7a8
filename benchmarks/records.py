"""Measures what the driver of jobs/shard.py does by itself, for corpora of 10,000 to a million images.

The corpus is a manifest of hard links to 64 images. What the tasks that write the shards would return is made up. Each
size is measured in a process of its own, phase by phase, with its largest memory. The exponent says how the seconds
grow with the images: 1 is in proportion to them.

Run it from the folder of the repository: python -m benchmarks.records
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results import largest_mib, write_result

ROOT = Path(__file__).resolve().parent.parent
FILES, ROWS = 64, 64
SIZES = (10_000, 100_000, 1_000_000)
Made = TypeVar("Made")


def write_corpus(folder: Path, images: int) -> None:
    """Writes a manifest of images with masks, which are hard links to a few files."""
    for name in ("files", "images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(FILES):
        rng, mask = np.random.default_rng(number), np.zeros((64, 64), np.uint8)
        cv2.ellipse(mask, (20 + number % 20, 30), (8, 14), 0, 0, 360, 255, cv2.FILLED)
        cv2.imwrite(str(folder / f"files/image{number}.png"), rng.integers(0, 64 + number, (64, 64), np.uint8))
        cv2.imwrite(str(folder / f"files/mask{number}.png"), mask)
    with (folder / "index.csv").open("w") as manifest:
        manifest.write("image_uri,mask_uri,patient_id,sex\n")
        for number in range(images):
            for kind in ("image", "mask"):
                os.link(folder / f"files/{kind}{number % FILES}.png", folder / f"{kind}s/x{number:07d}.png")
            manifest.write(f"images/x{number:07d}.png,masks/x{number:07d}.png,p{number // 3},{'FM'[number % 2]}\n")


def case(folder: str) -> dict[str, float]:
    """Measures the phases of one corpus, in seconds, and the largest memory of the process, MiB."""
    from lungseg_ray.config import ShardJob, load_settings
    from lungseg_ray.corpus.layouts import list_corpus
    from lungseg_ray.corpus.split import assign_splits
    from lungseg_ray.shards.build import deal, source_of
    from lungseg_ray.shards.index import read_index, write_index
    from lungseg_ray.shards.index_builder import IndexBuilder
    from lungseg_ray.storage import locate

    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Made]) -> Made:
        start = time.perf_counter()
        made = work()
        found[name] = time.perf_counter() - start
        return made

    place = locate(folder)
    settings = load_settings(ShardJob, ["--corpus.root", f"{folder}/index.csv", "--shards.root", f"{folder}/shards"])
    listing = timed("listing", lambda: list_corpus(settings.corpus, settings.outputs))
    settings = settings.model_copy(update={"corpus": listing.corpus})
    source = timed("fingerprint", lambda: source_of(listing, settings))
    records = timed("splits", lambda: assign_splits(listing.records, settings.corpus.split))
    plan = timed("dealing", lambda: list(deal(records, ROWS, source)))
    made = _contents()
    builder = IndexBuilder(settings, source=source, layout=listing.layout)

    def build() -> None:
        for number, (file, some) in enumerate(plan):
            builder.add(file, made(number, some))
        write_index(place, builder.finish()[0])

    timed("index", build)
    timed("reading the index", lambda: read_index(place))
    found["total"] = sum(found.values())
    found["peak_mib"] = largest_mib()
    return found


def _contents() -> Callable[[int, list[Any]], Any]:
    """Returns a function that makes up what a shard contains."""
    from lungseg_ray.corpus.plausible import Appearance
    from lungseg_ray.shards.checks import Check
    from lungseg_ray.shards.format import Contents

    facts = {"height": 64, "width": 64, "channels": 1, "intensity_mean": 0.4, "intensity_square": 0.2}

    def make(number: int, records: list[Any]) -> Contents:
        rows: list[dict[str, Any]] = []
        checks: list[Mapping[str, Any]] = []
        for record in records:
            sums = [hashlib.sha256(f"{kind} {record.image_id}".encode()).hexdigest() for kind in ("image", "mask")]
            own = {"image_id": record.image_id, "patient_id": record.patient_id, "label_pixels": {0: 4000, 1: 96}}
            rows.append({**facts, **own, "image_sha256": sums[0], "mask_sha256": sums[1]})
            look = Appearance(record.image_id, flat=False, dark=False, empty=False, inverted=False, outline=False)
            checks.append(asdict(Check(record.image_id, record.split, sums[0], sums[1], 0.5, 0.5, look)))
        return Contents.from_json(Contents(rows, [], checks, f"{number:064x}").to_json())

    return make


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=SIZES, help="images of each corpus")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(case(given.case)), flush=True)
        return
    result: dict[int, dict[str, float]] = {}
    for images in track(given.images, "Measuring"):
        with tempfile.TemporaryDirectory(prefix="lungseg-records-") as folder:
            write_corpus(Path(folder), images)
            command = [sys.executable, "-m", "benchmarks.records", "--case", folder]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            result[images] = json.loads(done.stdout.splitlines()[-1])
    console = Console()
    table = Table("phase", *(f"{images:,}" for images in result), "exponent")
    first, last = min(result), max(result)
    for phase in result[first]:
        growth = math.log(result[last][phase] / result[first][phase]) / math.log(last / first) if last > first else 0.0
        table.add_row(phase, *(f"{one[phase]:.1f}" for one in result.values()), f"{growth:.2f}")
    console.print(table)
    write_result("records", {"cases": result}, console)


if __name__ == "__main__":
    main()
