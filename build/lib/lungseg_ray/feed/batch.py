"""The batch that the feed passes to the training loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """The images and masks that one rank processes in one step.

    Attributes:
        step: In training, the global step, counted from 0 over all epochs; in validation, the number of the batch
            within this rank's share, from 0.
        images: uint8 (n, channels, size, size), channels last in memory.
        masks: uint8 (n, size, size), the label of each pixel.
        image_ids: The ids of the n images.
    """

    step: int
    images: torch.Tensor
    masks: torch.Tensor
    image_ids: list[str]
