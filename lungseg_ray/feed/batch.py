"""What the feed hands to the training loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """What one rank takes in one step.

    Attributes:
        step: global step, from 0, over all epochs.
        images: uint8 (n, channels, size, size), channels last in memory.
        masks: uint8 (n, size, size), a label for each pixel.
        image_ids: n names.
    """

    step: int
    images: torch.Tensor
    masks: torch.Tensor
    image_ids: list[str]
