"""U2-Net: a U-Net each of whose stages is a small U-Net itself.

Qin et al., U2-Net: Going deeper with nested U-structure for salient object detection, Pattern Recognition 106, 2020
(arXiv:2005.09007). The widths are those of its table 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from torch import Tensor, cat, nn
from torch.nn import functional as F

_HEIGHTS = (7, 6, 5, 4, 0, 0)
"""The height of the small U-Net of each stage; 0 for one that keeps the size and has dilated convolutions."""

U2NET_ENCODERS: Mapping[str, tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]] = {
    "rsu": (
        ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512)),
        ((16, 64), (32, 64), (64, 128), (128, 256), (256, 512)),
    ),
    "rsu_small": (((16, 64),) * 6, ((16, 64),) * 5),
}
"""The encoders of U2-Net, made of residual U-blocks (RSU): the inner and outer channels of the stages of the encoder
and of the decoder, from the finest. `rsu` has 44 million parameters, `rsu_small` 1.1 million."""


class U2Net(SegmentationModel):
    """U2-Net, which has no encoder but its own.

    In training it returns the joined output and those of all stages, from the finest to the coarsest, as the published
    network does, all of the size of the image; their losses are summed. In evaluation it returns the joined one alone.

    Args:
        encoder_name: One of `U2NET_ENCODERS`.
        encoder_weights: None; there are no published ones.
        in_channels: Channels of the images.
        classes: Channels of the output.
    """

    @supports_config_loading
    def __init__(
        self, encoder_name: str = "rsu", encoder_weights: str | None = None, in_channels: int = 3, classes: int = 1
    ) -> None:
        super().__init__()
        down, up = U2NET_ENCODERS[encoder_name]
        self.encoder = _Encoder(down, in_channels)
        self.decoder = _Decoder(down, up)
        widths = [*(outer for _, outer in up), down[-1][1]]
        self.sides = nn.ModuleList(nn.Conv2d(width, classes, 3, padding=1) for width in widths)
        self.segmentation_head = nn.Conv2d(len(widths) * classes, classes, 1)
        self.classification_head = None
        self.initialize()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps images (N, C, H, W) to logits (N, classes, H, W)."""
        self.check_input_shape(x)
        stages = self.decoder(self.encoder(x))
        sides = [_resize(side(stage), x) for side, stage in zip(self.sides, stages, strict=True)]
        joined: Tensor = self.segmentation_head(cat(sides, dim=1))
        return (joined, *sides) if self.training else joined


class _Encoder(nn.Module):
    output_stride = 32

    def __init__(self, widths: Sequence[tuple[int, int]], in_channels: int) -> None:
        super().__init__()
        inputs = (in_channels, *(outer for _, outer in widths[:-1]))
        self.out_channels = [in_channels, *(outer for _, outer in widths)]
        self.stages = nn.ModuleList(
            _Block(one, inner, outer, height)
            for one, (inner, outer), height in zip(inputs, widths, _HEIGHTS, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the features of the stages, from the finest."""
        features: list[Tensor] = []
        for stage in self.stages:
            features.append(stage(_halved(features[-1]) if features else x))
        return features


class _Decoder(nn.Module):
    def __init__(self, down: Sequence[tuple[int, int]], up: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        deeper = [*(outer for _, outer in up[1:]), down[-1][1]]
        self.stages = nn.ModuleList(
            _Block(below + beside, inner, outer, height)
            for below, (_, beside), (inner, outer), height in zip(deeper, down, up, _HEIGHTS, strict=False)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the features of the stages, from the finest to the deepest one of the encoder."""
        found = [features[-1]]
        for stage, feature in zip(reversed(self.stages), features[-2::-1], strict=True):
            found.append(stage(cat([_resize(found[-1], feature), feature], dim=1)))
        return found[::-1]


class _Block(nn.Module):
    """A residual U-block: a convolution, and a small U-Net on its result, which are added.

    Args:
        inputs: Channels of the input.
        inner: Channels within the small U-Net.
        outer: Channels of the output.
        height: The stages of the small U-Net; 0 for four stages of one size with dilated convolutions.
    """

    def __init__(self, inputs: int, inner: int, outer: int, height: int) -> None:
        super().__init__()
        self.halves = height > 0
        dilations = [1] * (height - 1) if height else [1, 2, 4]
        self.first = _convolution(inputs, outer)
        self.down = nn.ModuleList(
            _convolution(outer if number == 0 else inner, inner, dilation) for number, dilation in enumerate(dilations)
        )
        self.bottom = _convolution(inner, inner, 2 if height else 8)
        self.up = nn.ModuleList(
            _convolution(2 * inner, outer if number == 0 else inner, dilation)
            for number, dilation in enumerate(dilations)
        )

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        features = [self.down[0](first)]
        for down in self.down[1:]:
            features.append(down(_halved(features[-1]) if self.halves else features[-1]))
        below = self.bottom(features[-1])
        for up, feature in zip(reversed(self.up), reversed(features), strict=True):
            below = up(cat([_resize(below, feature), feature], dim=1))
        return first + below


def _convolution(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
