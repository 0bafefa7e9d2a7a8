"""Trains one recipe in this process, and measures it on the validation images as they are and changed.

Changed validation images stand in for those of other hospitals, so that recipes can be chosen without the test images.
The images are kept in memory and nothing is resumed, so that several recipes can run beside each other, each with one
thread. The recipe itself is trained by jobs/train.py with the same settings. Run it from the folder of the repository:

    python -m benchmarks.recipes NAME OUT [--config FILE] [--shards.root DIR] [--section.key value ...]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.config import CorporaSettings, Settings, load_settings
from lungseg_ray.evaluation.robustness import dice_of_image
from lungseg_ray.feed.augment import build_augmentation
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.shifts import SHIFTS
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Predictor
from lungseg_ray.run.exported import Sidecar
from lungseg_ray.shards.format import ShardRow, read_rows
from lungseg_ray.shards.index import ShardIndex, read_index
from lungseg_ray.shards.reuse import with_shard_settings
from lungseg_ray.storage import Location
from lungseg_ray.training.learner import Learner
from lungseg_ray.training.precision import fastest_precision

SHOWN = 8
"""The epochs between two lines of progress."""
THREADS = "RECIPE_THREADS"
"""The environment variable with the CPU threads; 1 by default."""


def main() -> None:
    """Trains and measures, and writes OUT/NAME.json."""
    name, out, *arguments = sys.argv[1:]
    threads = int(os.environ.get(THREADS, "1"))
    torch.set_num_threads(threads)
    cv2.setNumThreads(0)
    reuse_memory()
    settings = load_settings(Settings, arguments)
    index = read_index(settings.shards.root)
    settings = with_shard_settings(settings, index)
    training, validation = (_rows(settings.shards.root, index, split) for split in ("train", "val"))
    learner, seconds, history = _trained(name, settings, training, validation)
    plain = [(row.sample.image, row.sample.mask) for row in validation]
    shifted = {
        f"{kind} {level:g}": _dice(learner, settings, [shift.change(*pair, level) for pair in plain])
        for kind, shift in SHIFTS.items()
        for level in shift.levels
    }
    result = {
        "settings": arguments,
        "threads": threads,
        "train_seconds": seconds,
        "history": history,
        "val": _dice(learner, settings, plain),
        "val_shifted": float(np.mean(list(shifted.values()))),
        "shifts": shifted,
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}: val {result['val']:.4f}, shifted {result['val_shifted']:.4f}, {seconds:.0f} s", flush=True)


def _rows(root: Location, index: ShardIndex, split: str) -> list[ShardRow]:
    shards = [shard for shard in index.shards if shard.split == split]
    return [row for shard in shards for row in read_rows(root, shard, shard.usable)]


def _used(corpus: CorporaSettings, moment: float) -> bool:
    return corpus.first <= moment < corpus.until


def _mixed(
    own: list[ShardRow], others: list[tuple[float, list[ShardRow]]], generator: np.random.Generator
) -> list[ShardRow]:
    """Returns the images of an epoch in their order: as many as of its own corpus, with shares of other corpora."""
    taken = [(min(round(share * len(own)), len(rows)), rows) for share, rows in others]
    taken.append((len(own) - sum(count for count, _ in taken), own))
    drawn = [rows[number] for count, rows in taken for number in generator.permutation(len(rows))[:count]]
    return [drawn[place] for place in generator.permutation(len(drawn))]


def _trained(
    name: str, settings: Settings, training: list[ShardRow], validation: list[ShardRow]
) -> tuple[Learner, float, list[tuple[int, float, float]]]:
    """Returns the learner, the seconds of its steps, and at times the epoch, the training loss and the Dice."""
    feed, epochs = settings.feed, settings.train.epochs
    steps = len(training) // feed.batch
    device = torch.device("cpu")
    precision = fastest_precision(settings, device) if settings.train.precision == "auto" else settings.train.precision
    learner = Learner(settings, device=device, precision=precision, total_steps=steps * epochs)
    sizes = settings.size_of_epochs or [feed.size] * epochs
    augment = {size: build_augmentation(feed.preset, size=size, fit=feed.fit) for size in {*sizes}}
    plain = [(row.sample.image, row.sample.mask) for row in validation]
    others = [(one, _rows(one.root, read_index(one.root), "train")) for one in settings.corpora]
    seconds, history = 0.0, []
    for epoch, size in enumerate(sizes):
        start, loss = time.perf_counter(), 0.0
        generator = np.random.default_rng([settings.train.seed, epoch])
        rows = _mixed(training, [(one.share, more) for one, more in others if _used(one, epoch / epochs)], generator)
        for step in range(steps):
            of_step = rows[step * feed.batch : (step + 1) * feed.batch]
            drawn = [
                augment[size](
                    row.sample.image, row.sample.mask, seed=(settings.train.seed, epoch, step * feed.batch + place)
                )
                for place, row in enumerate(of_step)
            ]
            images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
            masks = torch.from_numpy(np.stack([mask for _, mask in drawn]))
            names = [row.image_id for row in of_step]
            sums = learner.step(Batch(epoch * steps + step, images, masks, names)).result().sums
            loss += sums["loss"] / sums["images"] / steps
        seconds += time.perf_counter() - start
        if (epoch + 1) % SHOWN == 0 or epoch + 1 == epochs:
            history.append((epoch + 1, loss, _dice(learner, settings, plain)))
            print(f"{name}: epoch {epoch + 1}, loss {loss:.4f}, val {history[-1][2]:.4f}, {seconds:.0f} s", flush=True)
    return learner, seconds, history


def _dice(learner: Learner, settings: Settings, pairs: list[tuple[Pixels, Pixels]]) -> float:
    """Returns the mean Dice of images, predicted as the finished model would."""
    corpus, model, feed = settings.corpus, settings.model, settings.feed
    sidecar = Sidecar(
        size=feed.size,
        fit=feed.fit,
        normalise=model.normalise,
        channels=corpus.channels,
        longer_side=settings.shards.longer_side,
        classes=corpus.classes,
        class_names=corpus.class_names,
        threshold=0.5 if model.threshold == "validation" else model.threshold,
        flips=model.flips,
        clean_up=model.clean_up,
    )
    use = Predictor([(learner.evaluated, sidecar)])
    found = [dice_of_image(use.labels(use([image])[0]), mask, corpus.classes) for image, mask in pairs]
    return float(np.mean(found))


if __name__ == "__main__":
    main()
