"""Measures training: images per second of the job beside plain scripts, its pauses, and how soon it starts.

All of them train the same network, loss and optimiser on the same PNG files of 2000 x 2000 px, with the same
augmentation, on all cores of this machine:

- published: a script as in the tutorial that the recipe is from. It decodes the files in every epoch with PyTorch's
  DataLoader and two workers, and computes in fp32.
- careful: the same with the images decoded once and kept in memory, channels last, and bf16 where that is faster.
- in memory: `Learner.step` on batches that are ready; also beside a local Ray cluster that has nothing to do.
- job: `jobs/train.py` on shards of the files; with one worker and, for the comparison, with two.

Each round measures all of them, one after the other, but for two workers and the step beside an idle Ray, which follow
the last round. The threads of a step wait for each other, so that a process that takes a core for a moment holds up all
of them. Therefore the job and the step in memory are measured once more with one thread, which leaves the other cores
to Ray and to the data. Run it from the folder of the repository: python -m benchmarks.train
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
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from timm.optim import Lookahead
from torch.utils.data import DataLoader, Dataset

from benchmarks.results import write_result
from benchmarks.sharding import write_corpus
from lungseg_ray import models
from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.cluster.planning import cores
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import Settings
from lungseg_ray.feed.augment import build_augmentation
from lungseg_ray.feed.batch import Batch
from lungseg_ray.training.learner import Learner
from lungseg_ray.training.precision import Precision, fastest_precision

ROOT = Path(__file__).resolve().parent.parent
SIZE, BATCH, EPOCHS, LONGER_SIDE = 256, 8, 3, 1024
"""The size of the images, those of a step, the epochs of a run, and the size of the shards, pixels."""
FEWEST, MOST, EPOCH_SECONDS = 32, 96, 10
"""The bounds of the images of an epoch of the job, and about how long it takes; scripts have half as many images."""
ENCODER = "timm-regnety_004"
ACTORS = 7
"""The actors that a training job has besides its worker: those of Ray Train, of Ray Data, and the mailbox."""

Pixels = NDArray[np.uint8]


class _Pairs(Dataset[tuple[Pixels, Pixels]]):
    """The pairs of a corpus, augmented; decoded each time, or once."""

    def __init__(self, root: Path, *, keep: bool) -> None:
        # Few images are enough, since the speed of a script is the same in every step.
        images = sorted((root / "images").iterdir())
        self._images = images[: len(images) // 2 // BATCH * BATCH]
        self._change = build_augmentation("medium", size=SIZE)
        self._kept = [self._decode(number) for number in range(len(self._images))] if keep else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Pixels, Pixels]:
        cv2.setNumThreads(0)
        image, mask = self._kept[number] if self._kept else self._decode(number)
        return self._change(image, mask, seed=int(torch.randint(2**62, ())))

    def _decode(self, number: int) -> tuple[Pixels, Pixels]:
        found = []
        for folder, interpolation in (("images", cv2.INTER_AREA), ("masks", cv2.INTER_NEAREST_EXACT)):
            file = self._images[number].parent.parent / folder / self._images[number].name
            pixels: Any = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            found.append(cv2.resize(pixels, (LONGER_SIDE, LONGER_SIDE), interpolation=interpolation))
        image, mask = found
        return image[:, :, None], (mask > 0).astype(np.uint8)


def script(root: Path, *, careful: bool, precision: Precision) -> Iterator[float]:
    """Trains with a plain script.

    Args:
        root: The folder of the corpus.
        careful: Whether the images are kept in memory, and channels last in memory.
        precision: The precision.

    Yields:
        The images per second of each epoch.
    """
    torch.manual_seed(0)
    torch.set_num_threads(cores())
    loader = DataLoader(
        _Pairs(root, keep=careful),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=careful,
    )
    model = smp.UnetPlusPlus(models.resolve_encoder(ENCODER), encoder_weights=None, in_channels=1, classes=1).train()
    layout = torch.channels_last if careful else torch.contiguous_format
    model = model.to(memory_format=layout)
    encoder = [parameter for name, parameter in model.named_parameters() if name.startswith("encoder.")]
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("encoder.")]
    rates = [
        {"params": others, "lr": 5e-3, "weight_decay": 3e-4},
        {"params": encoder, "lr": 5e-4, "weight_decay": 3e-5},
    ]
    optimizer = Lookahead(torch.optim.RAdam(rates, decoupled_weight_decay=True), k=5, alpha=0.5)
    dice, bce = smp.losses.DiceLoss("binary"), torch.nn.BCEWithLogitsLoss()
    for _ in range(EPOCHS):
        start, count = time.perf_counter(), 0
        for images, masks in loader:
            inputs = images.permute(0, 3, 1, 2).to(torch.float32).div_(255).contiguous(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = model(inputs)
            target = masks[:, None].float()
            loss = dice(logits.float(), target) + 0.8 * bce(logits.float(), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            count += len(images)
        yield count / (time.perf_counter() - start)


def settings() -> Settings:
    """Returns the settings of the job that matter to its speed."""
    model = {"architecture": "UnetPlusPlus", "encoder": ENCODER}
    return Settings.model_validate({"model": model, "feed": {"size": SIZE, "batch": BATCH}})


def in_memory(precision: Precision, *, steps: int, threads: int = 0) -> Iterator[float]:
    """Yields the images per second of groups of training steps on batches that are ready.

    Args:
        precision: The precision.
        steps: The steps of a group.
        threads: The threads of a step; 0 for one on each core.
    """
    torch.set_num_threads(threads or cores())
    reuse_memory()
    learner = Learner(settings(), device=torch.device("cpu"), precision=precision, total_steps=100)
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (BATCH, SIZE, SIZE, 1), np.uint8)).permute(0, 3, 1, 2)
    masks = torch.from_numpy(generator.integers(0, 2, (BATCH, SIZE, SIZE), np.uint8))
    batch = Batch(0, images, masks, ["memory"] * BATCH)
    learner.step(batch)
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for _ in range(steps):
            learner.step(batch)
        yield steps * BATCH / (time.perf_counter() - start)


def epoch_images(precision: Precision) -> int:
    """Returns the images of an epoch: so many that it takes about `EPOCH_SECONDS` on this machine, within bounds."""
    speed = max(in_memory(precision, steps=1))
    return BATCH * round(min(max(speed * EPOCH_SECONDS, FEWEST), MOST) / BATCH)


def beside_ray(precision: Precision, *, steps: int) -> Iterator[float]:
    """Yields as `in_memory`, beside a local Ray cluster with as many idle actors as a training job has."""
    with cluster(processes=1):
        idle = ray.remote(num_cpus=0)(_Idle)
        actors = [idle.remote() for _ in range(ACTORS)]
        ray.get([actor.__ray_ready__.remote() for actor in actors])
        yield from in_memory(precision, steps=steps)


class _Idle:
    """Does nothing."""


def run_job(folder: Path, name: str, *more: str, epochs: int = EPOCHS) -> dict[str, float]:
    """Runs the training job as a user runs it.

    Returns:
        `images_per_s`, the median of the epochs; `data_wait_share`, the share of the time in which it waits for images;
        `later_wait_share`, the same after the first epoch, the median of the epochs; `pause`, the longest time between
        the validation of an epoch and the first step of the next, seconds; and `first_step`, seconds from the command
        to the first step.
    """
    shards = ("--shards.root", str(folder / "shards"), "--corpus.root", str(folder / "corpus"))
    split = ("--corpus.split.val", "0.1", "--corpus.split.test", "0.0")
    run = ("--runs.root", str(folder), "--runs.name", name, "--train.epochs", str(epochs))
    size = (
        "--feed.size",
        str(SIZE),
        "--feed.batch",
        str(BATCH),
        "--feed.preset",
        "medium",
        "--feed.ahead",
        str(4 * BATCH),
    )
    more = ("--train.device", "cpu", *more)
    command = [sys.executable, "jobs/train.py", *shards, *split, *run, *size, "--model.encoder", ENCODER, *more]
    ends = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        for line in running.stdout:
            if line.startswith("epoch "):
                ends.append(time.perf_counter())
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    with (folder / name / "history.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    summary = json.loads((folder / name / "summary.json").read_text())
    between = [later - earlier for earlier, later in pairwise(ends)]
    return {
        "images_per_s": statistics.median(float(row["images_per_second"]) for row in rows),
        "data_wait_share": summary["data_wait_share"],
        "later_wait_share": statistics.median(float(row["data_wait_share"]) for row in rows[1:]),
        "pause": max(gap - float(row["seconds"]) for gap, row in zip(between, rows[1:], strict=True)),
        "first_step": summary["seconds"]["to_first_step"],
    }


def measured(kind: str, root: str, precision: str) -> float:
    """Runs a script in a process of its own, and returns the median of its epochs, images per second."""
    command = [sys.executable, "-m", "benchmarks.train", "--case", kind, root, precision]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def case(kind: str, root: str, precision: Precision) -> float:
    """Returns the median of the epochs of a script, or of the step in memory."""
    steps = len(list((Path(root) / "images").iterdir())) // 2 // BATCH
    kinds: dict[str, Callable[[], Iterator[float]]] = {
        "published": lambda: script(Path(root), careful=False, precision="fp32"),
        "careful": lambda: script(Path(root), careful=True, precision=precision),
        "in_memory": lambda: in_memory(precision, steps=steps),
        "beside_ray": lambda: beside_ray(precision, steps=steps),
        "one_thread": lambda: in_memory(precision, steps=max(steps // 2, 1), threads=1),
    }
    return statistics.median(kinds[kind]())


def main() -> None:
    """Measures, prints tables and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        kind, root, precision = given.case
        print(case(kind, root, precision), flush=True)
        return
    console = Console()
    torch.set_num_threads(cores())
    precision = fastest_precision(settings(), torch.device("cpu"))
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="lungseg-train-") as name:
        folder = Path(name)
        images = epoch_images(precision)
        write_corpus(folder / "corpus", images * 10 // 9)
        root = str(folder / "corpus")
        # The shards are made before the first round.
        run_job(folder, "first", "--train.precision", precision, epochs=2)
        for number in range(given.repeats):
            console.print(f"Round {number + 1} of {given.repeats}")
            figures = {kind: measured(kind, root, precision) for kind in ("published", "careful", "in_memory")}
            figures |= run_job(folder, f"one-{number}", "--train.precision", precision)
            for peer in ("published", "careful", "in_memory"):
                figures[f"job_over_{peer}"] = figures["images_per_s"] / figures[peer]
            rounds.append(figures)
        two = run_job(folder, "two", "--train.precision", precision, "--train.workers", "2")["images_per_s"]
        idle = measured("beside_ray", root, precision)
        step = measured("one_thread", root, precision)
        job = run_job(folder, "thread", "--train.precision", precision, "--train.threads", "1")["images_per_s"]
    result: dict[str, Any] = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    table = Table("figure", "median", *(f"round {number + 1}" for number in range(given.repeats)))
    for key, value in result.items():
        table.add_row(key, f"{value:.3g}", *(f"{one[key]:.3g}" for one in rounds))
    console.print(table)
    console.print(f"One thread: job {job:.2f}, step in memory {step:.2f} images/s, ratio {job / step:.2f}")
    result["images"] = images
    result["two_workers"], result["two_workers_over_one"] = two, two / rounds[-1]["images_per_s"]
    result["beside_ray"] = idle
    result["one_thread"] = {"images_per_s": job, "in_memory": step, "ratio": job / step}
    write_result("train", {**result, "precision": precision, "size": SIZE, "batch": BATCH, "rounds": rounds}, console)


if __name__ == "__main__":
    main()
