"""A network with what happens right before and after it, as one module: from pixels to probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lungseg_ray.names import Flips
from lungseg_ray.numerics.inputs import scale_pixels
from lungseg_ray.numerics.metrics import probabilities
from lungseg_ray.run.exported import Sidecar

AXES: dict[Flips, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (3,)),
    "all": ((), (3,), (2,), (2, 3)),
}
"""The passes of the network for each value of `flips`, each given by the axes of (N, C, H, W) that it reverses."""


class WholeNetwork(nn.Module):
    """Scales pixels, runs a network, and averages its probabilities over mirror images.

    Args:
        network: The network, whose output is logits.
        sidecar: How its input is scaled, and which labels change places in mirror images.
        flips: The mirror images that are averaged over; by default those of the sidecar.
    """

    def __init__(self, network: nn.Module, sidecar: Sidecar, *, flips: Flips | None = None) -> None:
        super().__init__()
        self.network = network
        self._scale, self._normalise = sidecar.scale, sidecar.normalise
        self._axes = AXES[flips or sidecar.flips]
        self._mirrored = sidecar.mirrored

    def scaled(self, images: Tensor) -> Tensor:
        """Returns the input of the network, (N, C, size, size) float32, from (N, size, size, C) uint8."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        return scale_pixels(pixels, scale=self._scale, normalise=self._normalise)

    def forward(self, images: Tensor) -> Tensor:
        """Computes probabilities.

        Args:
            images: (N, size, size, C) uint8.

        Returns:
            (N, size, size, K) float32, 0 to 1: K = 1 for one class, otherwise one channel for each label.
        """
        inputs = self.scaled(images)
        # The passes run one after the other, so that mirror images do not enlarge the batch that must fit in memory.
        found = [
            _exchanged(
                probabilities(self.network(inputs.flip(axes))).flip(axes),
                self._mirrored if len(axes) % 2 else [],
            )
            for axes in self._axes
        ]
        return torch.stack(found).mean(dim=0).permute(0, 2, 3, 1)


def _exchanged(maps: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Exchanges the channels of labels that name a side, in maps (N, K, H, W) of a mirrored image."""
    order = list(range(maps.shape[1]))
    for one, other in pairs:
        order[one], order[other] = other, one
    return maps[:, order] if pairs else maps
