"""Chooses the floating-point precision in which a run computes."""

from __future__ import annotations

import time
from typing import Literal

import torch

from lungseg_ray import models
from lungseg_ray.config import Settings
from lungseg_ray.training.model import build_model, probe_size

Precision = Literal["fp32", "bf16", "fp16"]
PROBE_SIZE = 128
"""Height and width of the probe's images in pixels, unless `feed.size` is smaller or the network accepts no other."""
PROBE_BATCH = 2
"""Images of a probe step."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Returns the context in which operations compute in a precision.

    Args:
        device: The device that computes.
        precision: The precision.
    """
    return torch.autocast(device.type, dtype=TYPES[precision], enabled=precision != "fp32")


def fastest_precision(settings: Settings, device: torch.device) -> Precision:
    """Returns the faster of fp32 and bf16, found by timing a few small steps of each; on GPUs, bf16 or else fp16.

    bf16 is several times faster where the processor has instructions for it, and ten times slower where it has none.

    Args:
        settings: The settings of the run.
        device: The device that the run computes on.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    model = build_model(settings, pretrained=False)
    size = probe_size(model, settings, PROBE_SIZE)
    memory_format = models.memory_format(model, device=device)
    model = model.to(memory_format=memory_format)
    images = torch.rand(PROBE_BATCH, settings.corpus.channels, size, size).to(memory_format=memory_format)
    kinds: tuple[Precision, ...] = ("bf16", "fp32")
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    # The kinds alternate and the fastest step of each counts, since other processes can only slow a step down.
    for kind in kinds * 4:
        start = time.perf_counter()
        with autocast(device, kind):
            outputs = models.as_outputs(model(images))
            torch.stack([one.float().mean() for one in outputs]).sum().backward()
        seconds[kind].append(time.perf_counter() - start)
    return min(kinds, key=lambda kind: min(seconds[kind]))
