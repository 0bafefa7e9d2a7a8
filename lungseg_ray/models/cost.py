"""The cost of a network, computed without its weights or an image: parameters and floating point operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lungseg_ray.errors import UserError
from lungseg_ray.models.factory import build, check


class _Network(TypedDict):
    architecture: str
    encoder: str
    in_channels: int
    classes: int
    decoder_channels: Sequence[int] | None


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        parameters: Number of learnable parameters, including those that get no gradient with this pair of architecture
            and encoder.
        gflops: Floating point operations of the forward pass of one image in evaluation mode, in 10^9. A multiplication
            and an addition count as two operations. Only convolutions and matrix products are counted.
    """

    parameters: int
    gflops: float


def cost(
    *,
    architecture: str,
    encoder: str,
    in_channels: int,
    classes: int,
    size: int,
    decoder_channels: Sequence[int] | None = None,
    images: int = 2,
) -> Cost:
    """Computes the cost of a pair of architecture and encoder.

    Like `check`, this builds the network on the meta device where possible: it takes about a second and no memory.

    Args:
        architecture: One of `ARCHITECTURES`, in upper or lower case.
        encoder: Name of the encoder, as for `resolve_encoder`.
        in_channels: Number of channels of the images.
        classes: Number of output channels.
        size: Height and width of the image, pixels.
        decoder_channels: Channels of the stages of the decoder, as for `build`.
        images: The number of images of a training pass in a worker, as for `check`.

    Returns:
        The cost of the network for one image of this size.

    Raises:
        UserError: If the pair does not exist or does not work, as in `check`.
    """
    network: _Network = {
        "architecture": architecture,
        "encoder": encoder,
        "in_channels": in_channels,
        "classes": classes,
        "decoder_channels": decoder_channels,
    }
    check(**network, size=size, images=images)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = build(**network)
        except UserError:
            # The pair has passed `check`, so the meta device is the cause. Some encoders read values while they are
            # built, such as Mix Transformers.
            model = build(**network)
    # The count needs only shapes. It runs on the meta device because fused attention counts as nothing on the CPU.
    model = model.to("meta").eval()
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=flops(model, torch.empty(1, in_channels, size, size, device="meta")) / 1e9,
    )


def flops(model: nn.Module, images: Tensor) -> int:
    """Counts the floating point operations of the convolutions and matrix products in a forward pass.

    Args:
        model: A network on the device of the images; it is not changed.
        images: (N, C, H, W).

    Returns:
        The number of operations for all N images.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()
