"""PraNet: a coarse map from the deep features, refined from stage to stage where it has not found anything yet.

Fan et al., PraNet: Parallel Reverse Attention Network for Polyp Segmentation, MICCAI 2020 (arXiv:2006.11392). Its
partial decoder is that of Wu et al., Cascaded Partial Decoder, CVPR 2019 (arXiv:1904.08739), and its receptive field
blocks are those of Liu et al., Receptive Field Block Net, ECCV 2018 (arXiv:1711.07767).
"""

from __future__ import annotations

from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.hub_mixin import supports_config_loading
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, cat, nn
from torch.nn import functional as F

_WIDTH = 32
"""Channels of the partial decoder."""


class PraNet(SegmentationModel):
    """PraNet with any encoder of segmentation_models_pytorch that has features at strides 8, 16 and 32.

    In training it returns its outputs from the finest to the coarsest, as the published network does, all of the size
    of the image; their losses are summed. In evaluation it returns the finest alone.

    With several classes, attention goes to where the probability of the background is high, which is the same as in the
    published network for one class.

    Args:
        encoder_name: The name of the encoder.
        encoder_weights: None; weights are loaded afterwards.
        in_channels: Channels of the images.
        classes: Channels of the output.
    """

    @supports_config_loading
    def __init__(
        self, encoder_name: str, encoder_weights: str | None = None, in_channels: int = 3, classes: int = 1
    ) -> None:
        super().__init__()
        self.encoder = get_encoder(encoder_name, in_channels=in_channels, weights=encoder_weights)
        self.decoder = _Decoder(self.encoder.out_channels[-3:], classes)
        self.segmentation_head = nn.Identity()
        self.classification_head = None
        self.initialize()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps images (N, C, H, W) to logits (N, classes, H, W)."""
        self.check_input_shape(x)
        outputs = self.decoder(self.encoder(x)[-3:])
        sized = [_resize(one, x) for one in (outputs if self.training else outputs[:1])]
        return tuple(sized) if self.training else sized[0]


class _Decoder(nn.Module):
    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        self.receptive_fields = nn.ModuleList(_ReceptiveField(one) for one in channels)
        self.coarse = _PartialDecoder(classes)
        fine, middle, deep = channels
        self.reverse_attention = nn.ModuleList(
            [
                _ReverseAttention(deep, 256, classes, kernel=5, depth=3, last=1),
                _ReverseAttention(middle, 64, classes, kernel=3, depth=2, last=3),
                _ReverseAttention(fine, 64, classes, kernel=3, depth=2, last=3),
            ]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns the maps from the finest to the coarsest."""
        outputs = [self.coarse(*(field(one) for field, one in zip(self.receptive_fields, features, strict=True)))]
        for attention, feature in zip(self.reverse_attention, features[::-1], strict=True):
            outputs.append(attention(feature, _resize(outputs[-1], feature)))
        return outputs[::-1]


class _ReceptiveField(nn.Module):
    """Branches with small and large receptive fields, of which the larger have dilated convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_convolution(channels, _WIDTH, 1)])
        for length in (3, 5, 7):
            branch = [
                _convolution(channels, _WIDTH, 1),
                _convolution(_WIDTH, _WIDTH, (1, length)),
                _convolution(_WIDTH, _WIDTH, (length, 1)),
                _convolution(_WIDTH, _WIDTH, 3, dilation=length),
            ]
            self.branches.append(nn.Sequential(*branch))
        self.join = _convolution(4 * _WIDTH, _WIDTH, 3)
        self.shortcut = _convolution(channels, _WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.join(cat([branch(x) for branch in self.branches], dim=1))
        return F.relu(joined + self.shortcut(x))


class _PartialDecoder(nn.Module):
    """Multiplies the features of three stages and joins them, at the size of the finest."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(_convolution(_WIDTH, _WIDTH, 3) for _ in range(4))
        self.up_joined = _convolution(2 * _WIDTH, 2 * _WIDTH, 3)
        self.join_two = _convolution(2 * _WIDTH, 2 * _WIDTH, 3)
        self.join_three = _convolution(3 * _WIDTH, 3 * _WIDTH, 3)
        self.last = nn.Sequential(_convolution(3 * _WIDTH, 3 * _WIDTH, 3), nn.Conv2d(3 * _WIDTH, classes, 1))

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        deep_to_middle = _resize(deep, middle)
        middle_product = self.up[0](deep_to_middle) * middle
        fine_product = self.up[1](_resize(deep, fine)) * self.up[2](_resize(middle, fine)) * fine
        two = self.join_two(cat([middle_product, self.up[3](deep_to_middle)], dim=1))
        three = self.join_three(cat([fine_product, self.up_joined(_resize(two, fine))], dim=1))
        found: Tensor = self.last(three)
        return found


class _ReverseAttention(nn.Module):
    """Refines a map by the features where it has found nothing yet."""

    def __init__(self, channels: int, width: int, classes: int, *, kernel: int, depth: int, last: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(channels, width, 1)]
        for _ in range(depth):
            layers += [_convolution(width, width, kernel), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _convolution(width, classes, last))

    def forward(self, feature: Tensor, coarse: Tensor) -> Tensor:
        # What is not found is 1 - p for one class, and the probability of the background for several.
        coarse32 = coarse.float()
        attention = (-coarse32).sigmoid() if coarse.shape[1] == 1 else coarse32.softmax(dim=1)[:, :1]
        refined: Tensor = self.layers(attention.to(feature.dtype) * feature) + coarse
        return refined


def _convolution(inputs: int, outputs: int, kernel: int | tuple[int, int], *, dilation: int = 1) -> nn.Sequential:
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (high // 2), dilation * (wide // 2))
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, (high, wide), padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
