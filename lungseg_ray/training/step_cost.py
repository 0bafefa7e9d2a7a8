"""Measures what training costs on a device, before a run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.feed.batch import Batch
from lungseg_ray.training.device import allow_fast_products, used_memory
from lungseg_ray.training.learner import Learner
from lungseg_ray.training.precision import fastest_precision

if TYPE_CHECKING:
    from lungseg_ray.config import Settings
    from lungseg_ray.training.precision import Precision

_STEPS, _SECONDS = 3, 2.0
"""At least so many steps are timed, and for at least so long."""


@dataclass(frozen=True)
class StepCost:
    """The cost of training and of prediction in one worker, with images that are ready.

    Attributes:
        precision: The precision in which it was measured, which training would choose.
        images_per_s: Training, images per second.
        forward_images_per_s: Validation, images per second.
        memory: The memory that the worker needs, bytes: its own on a CPU, that of the device on a GPU.
        parameters: The number of learnable parameters.
    """

    precision: Precision
    images_per_s: float
    forward_images_per_s: float
    memory: int
    parameters: int


def measure_step(settings: Settings, *, device: torch.device, threads: int) -> StepCost:
    """Makes some training steps on images without content. It is best called in a process of its own.

    Args:
        settings: The settings of the run. The images have its largest size.
        device: The device to compute on.
        threads: The CPU threads of the worker.

    Returns:
        The cost.

    Raises:
        UserError: If the network cannot be built.
        torch.OutOfMemoryError: If the memory of the device is too small.
    """
    torch.set_num_threads(threads)
    reuse_memory()
    allow_fast_products(device)
    precision = fastest_precision(settings, device) if settings.train.precision == "auto" else settings.train.precision
    learner = Learner(settings, device=device, precision=precision, total_steps=1000, pretrained=False)
    count, size = settings.feed.batch // settings.train.workers, max([settings.feed.size, *settings.feed.sizes])
    generator = np.random.default_rng(0)
    shape = (count, size, size, settings.corpus.channels)
    images = torch.from_numpy(generator.integers(0, 256, shape, np.uint8)).permute(0, 3, 1, 2)
    masks = torch.from_numpy(generator.integers(0, 2, (count, size, size), np.uint8))
    batch = Batch(0, images, masks, ["nothing"] * count)
    learner.step(batch).result()
    steps: list[float] = []
    passes: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(steps) < _STEPS or time.perf_counter() < end:
        start = time.perf_counter()
        learner.step(batch).result()
        steps.append(time.perf_counter() - start)
    model = learner.evaluated.eval()
    with torch.no_grad():
        for _ in range(_STEPS + 1):
            start = time.perf_counter()
            learner.forward(model, images)[0].sum().item()
            passes.append(time.perf_counter() - start)
    return StepCost(
        precision=precision,
        images_per_s=count / statistics.median(steps),
        forward_images_per_s=count / statistics.median(passes[1:]),
        memory=used_memory(device),
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
    )
