"""Measures prediction: against a bare loop, with a device that costs nothing, and for a million images.

- CPUs: images per second of `jobs.predict.predict`, which writes masks of 2000 x 2000 px, beside a bare loop that
  reads, decodes, computes and encodes the same files in as many processes.
- Stand-in: the same with a resource of Ray in place of a GPU and a network that returns zeros, for one and two CPUs,
  beside a bare loop that decodes and encodes in as many processes.
- Million: a folder of a million hard links to 64 small images, and a work that does nothing but name the images: the
  seconds and the largest memory of the driver. It is done for fewer images, too.

The start of Ray does not count: speeds are computed from the images and the seconds by which two folders differ.
Run it from the folder of the repository: python -m benchmarks.predict
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
import time
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results import largest_mib, write_result
from benchmarks.sharding import write_corpus
from lungseg_ray import models
from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.config import PredictJob
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.jobs import predict as job
from lungseg_ray.run.exported import Sidecar, save_model
from lungseg_ray.run.folder import BEST
from lungseg_ray.storage import locate

ROOT = Path(__file__).resolve().parent.parent
STAND_IN, SIZE, SMALL, PROCESSES = "stand_in", 256, 64, 2
DRAWN = 48
"""The images that are drawn; folders have hard links to them."""
IMAGES = {"real": (16, 80), "free": (48, 288)}
"""The images of the smaller and of the larger folder, by the work."""
BATCH = {"real": 4, "free": 16, "named": None}
"""Those that a device or a CPU has by default in folders of a thousand images or more."""
NAMED = (10_000, 100_000, 1_000_000)


class _Free(job._Predict):
    """Prediction with a network that takes no time."""

    def compute(self, given: Any, device: str) -> Any:
        return [np.zeros((*images.shape[:3], 1), np.float32) for images in given]


class _Named(job._Predict):
    """Prediction that does nothing but name the images."""

    def prepare(self, chunk: int) -> Any:
        names = self.names.slice(chunk * self.size, self.size).to_pylist()
        return [job.Prediction(os.fsdecode(name), "done", "", 8, 8, {"lung": 0.5}) for name in names], None

    def compute(self, given: Any, device: str) -> Any:
        return given

    def finish(self, prepared: Any, computed: Any) -> Any:
        return prepared


_KINDS: dict[str, type[job._Predict]] = {"real": job._Predict, "free": _Free, "named": _Named}


def case(kind: str, cpus: int, run: str, out: str, folders: list[str]) -> dict[str, Any]:
    """Predicts folders one after the other on a Ray cluster of this process.

    Args:
        kind: One of `_KINDS`; with `free`, the network runs on the stand-in for a device.
        cpus: The CPUs of the cluster.
        run: The folder of the run.
        out: The folder of the masks, which is deleted before each folder of images.
        folders: The folders of images.

    Returns:
        `seconds` for each folder, and `mib`, the largest memory of this process.
    """
    job._Predict = _KINDS[kind]  # type: ignore[misc]
    if kind == "free":
        job.map_chunks = partial(map_chunks, resource=STAND_IN)  # type: ignore[attr-defined]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=cpus, resources={STAND_IN: 1}, include_dashboard=False, log_to_driver=False)
    seconds = []
    for folder in folders:
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        found = job.predict(
            PredictJob(run=run, images=folder, out=out, device="cpu" if kind == "real" else "auto", batch=BATCH[kind])
        )
        seconds.append(time.perf_counter() - start)
        assert found.counts.keys() == {"done"}, found
    ray.shutdown()
    return {"seconds": seconds, "mib": largest_mib()}


def run_case(*arguments: str) -> dict[str, Any]:
    """Runs `case` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.predict", "--case", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@lru_cache(maxsize=1)
def _network(folder: str) -> torch.nn.Module:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return models.load_export(Path(folder)).eval()


def bare(task: tuple[str, str | None, str]) -> None:
    """What a plain script does for an image: it decodes, computes and encodes.

    Args:
        task: The image, the folder of the model (None for a network that takes no time), and the mask.
    """
    image, folder, mask = task
    cv2.setNumThreads(1)
    pixels: Any = cv2.imread(image, cv2.IMREAD_GRAYSCALE)
    small = cv2.resize(cv2.resize(pixels, (1024, 1024), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    probability = np.zeros((SIZE, SIZE), np.float32)
    if folder:
        with torch.inference_mode():
            logits = _network(folder)(torch.from_numpy(small)[None, None].float() / 255)
            probability = logits.sigmoid()[0, 0].numpy()
    labels = (cv2.resize(probability, pixels.shape[::-1]) > 0.5).astype(np.uint8)
    cv2.imwrite(mask, labels * 255)


def bare_speed(images: Path, folder: str | None, processes: int) -> float:
    """Returns the images per second of the bare loop, without the start of its processes."""
    masks = images.parent / "bare"
    shutil.rmtree(masks, ignore_errors=True)
    masks.mkdir()
    tasks = [(str(image), folder, str(masks / image.name)) for image in sorted(images.iterdir())]
    with get_context("spawn").Pool(processes) as pool:
        pool.map(bare, tasks[: 2 * processes], chunksize=1)
        start = time.perf_counter()
        for _ in pool.imap_unordered(bare, tasks, chunksize=4):
            pass
        return len(tasks) / (time.perf_counter() - start)


def ratio(kind: str, cpus: int, folder: Path, run: str, repeats: int) -> dict[str, Any]:
    """Measures prediction beside the bare loop, in turn."""
    few, many = (folder / f"{kind}-{count}" / "images" for count in IMAGES[kind])
    model = f"{run}/{BEST}" if kind == "real" else None
    rounds = []
    for _ in track(range(repeats), f"Predicting, {kind}, {cpus} CPU(s)"):
        plain = bare_speed(few, model, cpus)
        # The first folder starts the processes.
        found = run_case(kind, str(cpus), run, str(folder / "out"), str(few), str(few), str(many))
        speed = (IMAGES[kind][1] - IMAGES[kind][0]) / (found["seconds"][2] - found["seconds"][1])
        rounds.append({"images_per_s": speed, "bare_images_per_s": plain, "ratio": speed / plain})
    return {**{key: statistics.median(one[key] for one in rounds) for key in rounds[0]}, "rounds": rounds}


def named(count: int, folder: Path, run: str) -> dict[str, Any]:
    """Measures what the driver does for many images, of which no pixel is read."""
    images = folder / "named"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir()
    for number in range(count):
        os.link(folder / "small" / f"{number % 64}.png", images / f"{number:07d}.png")
    found = run_case("named", str(PROCESSES), run, str(folder / "out"), str(images))
    return {"seconds": found["seconds"][0], "mib": found["mib"]}


def main() -> None:
    """Measures, prints tables and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--named", type=int, nargs="*", default=NAMED, help="images of the folders that are only named")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        kind, cpus, run, out, *folders = given.case
        print(json.dumps(case(kind, int(cpus), run, out, folders)), flush=True)
        return
    console = Console()
    result: dict[str, Any] = {"size": SIZE, "named": {}}
    with tempfile.TemporaryDirectory(prefix="lungseg-predict-") as name:
        folder = Path(name)
        run = str(folder / "run")
        model = models.build(architecture="UnetPlusPlus", encoder="timm-regnety_004", in_channels=1, classes=1)
        side = {"size": SIZE, "channels": 1, "longer_side": 1024, "classes": 1, "class_names": ["lung"]}
        save_model(locate(run) / BEST, model, Sidecar.model_validate({**side, "threshold": 0.5}), "# Random weights\n")
        write_corpus(folder / "drawn", DRAWN)
        drawn = sorted((folder / "drawn/images").iterdir())
        for kind, counts in IMAGES.items():
            for count in counts:
                images = folder / f"{kind}-{count}/images"
                images.mkdir(parents=True)
                for number in range(count):
                    os.link(drawn[number % DRAWN], images / f"{number:04d}.png")
        result["real"] = ratio("real", PROCESSES, folder, run, given.repeats)
        for cpus in range(1, PROCESSES + 1):
            result[f"free, {cpus} CPU"] = ratio("free", cpus, folder, run, given.repeats)
        (folder / "small").mkdir()
        for number in range(64):
            cv2.imwrite(str(folder / "small" / f"{number}.png"), draw(number, seed=0, size=SMALL)[0])
        for count in track(given.named, "Naming"):
            result["named"][str(count)] = named(count, folder, run)
    table = Table("prediction", "images/s", "bare loop", "ratio")
    for what in ("real", *(f"free, {cpus} CPU" for cpus in range(1, PROCESSES + 1))):
        table.add_row(what, *(f"{result[what][key]:.2f}" for key in ("images_per_s", "bare_images_per_s", "ratio")))
    console.print(table)
    table = Table("images", "seconds", "memory of the driver, MiB")
    for count, found in result["named"].items():
        table.add_row(count, f"{found['seconds']:.0f}", f"{found['mib']:.0f}")
    console.print(table)
    write_result("predict", result, console)


if __name__ == "__main__":
    main()
