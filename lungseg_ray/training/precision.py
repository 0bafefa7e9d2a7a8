"""Chooses the floating-point precision in which a run computes."""

from __future__ import annotations

import time
from typing import Literal

import torch

from lungseg_ray import models
from lungseg_ray.config import Settings
from lungseg_ray.training.model import build_model

Precision = Literal["fp32", "bf16", "fp16"]
PROBE_SIZE = 128
PROBE_BATCH = 2


def fastest_precision(settings: Settings, device: torch.device) -> Precision:
    """Chooses fp32 or bf16 by timing steps of each at a small size.

    bf16 is several times faster where the processor has instructions for it, and ten times slower where it has none.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    size = min(settings.feed.size, PROBE_SIZE)
    model = build_model(settings, weights="none")
    layout = models.memory_format(model, device=device)
    model = model.to(memory_format=layout)
    images = torch.rand(PROBE_BATCH, settings.corpus.channels, size, size).to(memory_format=layout)
    kinds: tuple[Precision, ...] = ("bf16", "fp32")
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    # In turns, and the quickest of each counts: whatever else runs on the machine can only slow a step down.
    for kind in kinds * 4:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
            model(images).float().mean().backward()
        seconds[kind].append(time.perf_counter() - start)
    return min(kinds, key=lambda kind: min(seconds[kind]))
