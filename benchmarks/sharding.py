"""Measures the speed of jobs/shard.py, and whether its memory grows with the corpus, on PNG pairs of 2000 x 2000 px.

The peer is a bare loop in two processes that reads, decodes and resizes the same files and writes nothing. The speed of
the job is computed from the images and the seconds by which two corpora differ, so that the start of Ray does not
count; the speed with the start is reported beside it. The memory is the proportional set size (PSS), summed over all
processes of the job: the private memory of each process and its share of the memory that they have in common. It is
read twice a second, in separate runs, because reading it takes time.

Run it from the folder of the repository: python -m benchmarks.sharding
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results import write_result
from lungseg_ray.corpus.phantom import draw

ROOT = Path(__file__).resolve().parent.parent
SIDE, LONGER_SIDE, DRAWN, PROCESSES = 2000, 1024, 24, 2
_PNG_HEADER_BYTES = 33


def write_corpus(root: Path, count: int) -> None:
    """Writes a corpus of PNG pairs: `DRAWN` phantoms, repeated with different comments, so that no two files are equal.

    Args:
        root: The folder of the corpus, which must not exist.
        count: Number of pairs.
    """
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    drawn = [
        tuple(cv2.imencode(".png", pixels)[1].tobytes() for pixels in (image, mask * np.uint8(255)))
        for image, mask in (draw(number, seed=0, size=SIDE) for number in track(range(DRAWN), "Drawing"))
    ]
    for number in range(count):
        for folder, data in zip(("images", "masks"), drawn[number % DRAWN], strict=True):
            (root / folder / f"x{number:05d}.png").write_bytes(_commented(data, number))


def _commented(data: bytes, number: int) -> bytes:
    content = b"tEXt" + f"Comment\0{number}".encode()
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:_PNG_HEADER_BYTES] + chunk + data[_PNG_HEADER_BYTES:]


def decode_and_resize(image: Path) -> int:
    """Does the work of the peer for one pair: decodes and resizes the image and the mask.

    Args:
        image: The path of the image; the mask has the same name in `masks/`.

    Returns:
        1, the number of pairs.

    Raises:
        ValueError: If a file cannot be decoded.
    """
    cv2.setNumThreads(1)
    for path, interpolation in ((image, cv2.INTER_AREA), (image.parent.parent / "masks" / image.name, cv2.INTER_AREA)):
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError(f"{path} cannot be decoded")
        cv2.resize(pixels, (LONGER_SIDE, LONGER_SIDE), interpolation=interpolation)
    return 1


def peer(root: Path, count: int) -> float:
    """Measures the speed of the bare loop, without the start of its processes.

    Args:
        root: The folder of the corpus.
        count: Number of pairs.

    Returns:
        Images per second.
    """
    images = sorted((root / "images").iterdir())[:count]
    with get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(decode_and_resize, images[: 2 * PROCESSES])
        start = time.perf_counter()
        done = sum(pool.imap_unordered(decode_and_resize, images, chunksize=8))
        return done / (time.perf_counter() - start)


def job(root: Path, out: Path, *, watched: bool = False) -> tuple[float, float]:
    """Runs jobs/shard.py once.

    Args:
        root: The folder of the corpus.
        out: The folder of the shards; deleted first.
        watched: Whether to measure the memory.

    Returns:
        The seconds of the job, and its peak memory in MiB; 0 if the memory is not measured.

    Raises:
        SystemExit: If the job fails.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(ROOT / "jobs/shard.py"), "--corpus.root", str(root), "--shards.root", str(out)]
    start = time.perf_counter()
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    peak = 0.0
    while watched and running.poll() is None:
        peak = max(peak, sum(map(_pss, _tree(running.pid))))
        time.sleep(0.5)
    running.wait()
    seconds = time.perf_counter() - start
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return seconds, peak


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))
    except OSError:
        return


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def measure(folder: Path, few: int, many: int, repeats: int) -> dict[str, Any]:
    """Measures all figures. Each round measures the peer and both corpora, one after the other.

    Args:
        folder: An empty folder for the corpora and the shards.
        few: Pairs of the smaller corpus.
        many: Pairs of the larger corpus.
        repeats: Number of rounds.

    Returns:
        The content of benchmarks/results/sharding.json.
    """
    write_corpus(folder / "many", many)
    for part in ("images", "masks"):
        (folder / "few" / part).mkdir(parents=True)
        for path in sorted((folder / "many" / part).iterdir())[:few]:
            (folder / "few" / part / path.name).hardlink_to(path)
    rounds = []
    for _ in track(range(repeats), "Measuring speed"):
        bare = peer(folder / "many", few)
        few_seconds, many_seconds = (job(folder / name, folder / "out")[0] for name in ("few", "many"))
        speed = (many - few) / (many_seconds - few_seconds)
        rounds.append(
            {
                "peer_images_per_s": bare,
                "images_per_s": speed,
                "ratio": speed / bare,
                "images_per_s_with_start": many / many_seconds,
                "ratio_with_start": many / many_seconds / bare,
            }
        )
    peaks = [job(folder / name, folder / "out", watched=True)[1] for name in ("few", "many")]
    return {
        "pairs": {"few": few, "many": many},
        "median": {key: statistics.median(one[key] for one in rounds) for key in rounds[0]},
        "rounds": rounds,
        "peak_mib": {"few": peaks[0], "many": peaks[1], "growth": peaks[1] / peaks[0]},
    }


def main() -> None:
    """Measures, prints the figures, and writes them to benchmarks/results/sharding.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=500, help="pairs of the smaller corpus")
    parser.add_argument("--many", type=int, default=2000, help="pairs of the larger corpus")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.few, arguments.many, arguments.repeats)
    table = Table("figure", "median", *(f"round {number + 1}" for number in range(arguments.repeats)))
    for key, value in result["median"].items():
        table.add_row(key, f"{value:.4g}", *(f"{one[key]:.4g}" for one in result["rounds"]))
    console = Console()
    console.print(table)
    console.print("Peak memory, MiB:", result["peak_mib"])
    write_result("sharding", result, console)


if __name__ == "__main__":
    main()
