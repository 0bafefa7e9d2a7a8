"""What a network costs, found without its weights or an image: its parameters and its floating point operations."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lungseg_ray.errors import UserError
from lungseg_ray.models.factory import build, check


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: numbers that it learns, those included that get no gradient with this pair.
        gflops: 10^9 floating point operations of one image's forward pass in evaluation mode, a multiplication and an
            addition counted as two; those of convolutions and matrix products, nothing else.
    """

    parameters: int
    gflops: float


def cost(*, architecture: str, encoder: str, in_channels: int, classes: int, size: int) -> Cost:
    """Return what a pair costs; takes a second or so, and no memory, as `check` does.

    Args:
        architecture: one of `ARCHITECTURES`, in any case.
        encoder: as for `resolve_encoder`.
        in_channels: channels of the images.
        classes: output channels.
        size: height and width of the image in pixels.

    Raises:
        UserError: as `check`, with the reason.
    """
    check(architecture=architecture, encoder=encoder, in_channels=in_channels, classes=classes, size=size)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = build(architecture=architecture, encoder=encoder, in_channels=in_channels, classes=classes)
        except UserError:
            # What can be built all the same reads values meanwhile, as Mix Transformer encoders do.
            model = build(architecture=architecture, encoder=encoder, in_channels=in_channels, classes=classes)
    # Shapes are enough from here on; on the CPU, fused attention would count as nothing.
    model = model.to("meta").eval()
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=flops(model, torch.empty(1, in_channels, size, size, device="meta")) / 1e9,
    )


def flops(model: nn.Module, images: Tensor) -> int:
    """Return the floating point operations of the convolutions and matrix products in a forward pass.

    Args:
        model: on the device of the images; it stays as it is.
        images: (N, C, H, W).
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()
