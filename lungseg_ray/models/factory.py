"""One way to a network: an architecture and an encoder of segmentation_models_pytorch, checked before it is built."""

import copy
import difflib

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import nn

from lungseg_ray.errors import UserError
from lungseg_ray.models.weights import load_encoder_weights

ARCHITECTURES = ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet")


def build(
    *, architecture: str, encoder: str, in_channels: int, classes: int, encoder_weights: str = "none"
) -> nn.Module:
    """Return a network that takes images (N, in_channels, H, W) to logits (N, classes, H, W).

    H and W must be divisible by the encoder's output stride (32). Weights that are not pretrained come from torch's
    global generator: seed it first.

    Args:
        architecture: one of `ARCHITECTURES`, in any case.
        encoder: as for `resolve_encoder`.
        in_channels: 1 for grey, 3 for RGB; others work.
        classes: number of output channels; 1 for binary, otherwise background included.
        encoder_weights: "imagenet" (asks the network), "none", or the path of a weights file.

    Raises:
        UserError: there is no such architecture, encoder or weights, or they do not fit together.
    """
    architecture, encoder = _resolve_architecture(architecture), resolve_encoder(encoder)
    try:
        model = _create(architecture, encoder, in_channels=in_channels, classes=classes)
    except Exception as error:
        raise _refused(architecture, encoder, error) from error
    load_encoder_weights(model.get_submodule("encoder"), encoder_weights, name=encoder, in_channels=in_channels)
    return model


def check(*, architecture: str, encoder: str, in_channels: int = 1, classes: int = 1, size: int = 256) -> None:
    """Raise if the pair does not exist or cannot work; costs a fraction of a second and no memory.

    The network is built and run on the meta device, where tensors have shapes but no values.

    Args:
        architecture: one of `ARCHITECTURES`, in any case.
        encoder: as for `resolve_encoder`.
        in_channels: channels of the images.
        classes: output channels.
        size: height and width of the images in pixels.

    Raises:
        UserError: with the reason, and the nearest names for an unknown one.
    """
    architecture, encoder = _resolve_architecture(architecture), resolve_encoder(encoder)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            with torch.device("meta"):
                model = _create(architecture, encoder, in_channels=in_channels, classes=classes)
            # A patched first convolution is made outside the default device.
            output = model.to("meta").eval()(torch.empty(1, in_channels, size, size, device="meta"))
    except Exception as error:
        if "meta tensor" in str(error):
            return _check_on_cpu(architecture, encoder, in_channels=in_channels, classes=classes, size=size)
        raise _refused(architecture, encoder, error) from error
    if output.shape[2:] != (size, size):
        height, width = output.shape[2:]
        raise UserError(
            f"{architecture} with encoder {encoder} makes a mask of {height} x {width} pixels from an image of "
            f"{size} x {size}: expected the same size. Take a size that is divisible by 32."
        )


def _check_on_cpu(architecture: str, encoder: str, *, in_channels: int, classes: int, size: int) -> None:
    """Check a pair that reads values while it is built, such as Mix Transformer encoders."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = _create(architecture, encoder, in_channels=in_channels, classes=classes)
            model.eval()(torch.zeros(1, in_channels, size, size))
    except Exception as error:
        raise _refused(architecture, encoder, error) from error


def resolve_encoder(name: str) -> str:
    """Return the name under which segmentation_models_pytorch knows an encoder.

    Args:
        name: a name of that library ("resnet34"), a timm model with its prefix ("tu-regnety_004") or without
            ("regnety_004"), or an older name ("timm-regnety_004").

    Raises:
        UserError: there is no such encoder; the nearest names are in the message.
    """
    if name in encoders:
        return name
    bare = name.removeprefix("tu-").removeprefix("timm-")
    candidates = [f"tf_{bare}", bare] if name.startswith("timm-mobilenetv3") else [bare]
    for candidate in candidates:
        if timm.is_model(candidate):
            return f"tu-{candidate}"
    known = [*encoders, *(f"tu-{model}" for model in timm.list_models())]
    raise UserError(f"There is no encoder {name!r}.{_nearest(name, known)} Any timm model works as tu-<name>.")


def _resolve_architecture(name: str) -> str:
    for architecture in ARCHITECTURES:
        if architecture.lower() == name.lower():
            return architecture
    raise UserError(
        f"There is no architecture {name!r}.{_nearest(name, ARCHITECTURES)} Expected one of {', '.join(ARCHITECTURES)}."
    )


def _nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _create(architecture: str, encoder: str, *, in_channels: int, classes: int) -> nn.Module:
    model: nn.Module = smp.create_model(
        architecture, encoder_name=encoder, encoder_weights=None, in_channels=in_channels, classes=classes
    )
    return model


def _refused(architecture: str, encoder: str, error: Exception) -> UserError:
    reason = str(error).strip().rstrip(".!") or f"it raises {type(error).__name__}"
    return UserError(f"{architecture} does not work with encoder {encoder}: {reason}. Choose another pair.")


def find_unused_parameters(model: nn.Module, *, in_channels: int, size: int) -> list[str]:
    """Return the names of the trainable parameters that get no gradient, found in one step on a copy of the model.

    Distributed data parallel training waits for the gradient of every trainable parameter and fails on such ones; among
    the pairs that have them are VGG11 with UNet++ and EfficientNet with everything. The model and the random state stay
    as they are.

    Args:
        model: from `build`, on any device, not wrapped.
        in_channels: channels of the images.
        size: height and width of the probe in pixels; 64 does, unless the encoder takes one size only.
    """
    probe = copy.deepcopy(model).train()
    probe.zero_grad()
    device = next(probe.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        # Two images: normalisation over a batch of one fails where a branch pools to one pixel.
        probe(torch.zeros(2, in_channels, size, size, device=device)).sum().backward()
    return [name for name, parameter in probe.named_parameters() if parameter.requires_grad and parameter.grad is None]


def freeze_unused_parameters(model: nn.Module, *, in_channels: int, size: int) -> list[str]:
    """Freeze what `find_unused_parameters` finds, in place, and return the names; call it before DDP and the optimiser.

    Args:
        model: from `build`, on any device, not wrapped.
        in_channels: channels of the images.
        size: height and width of the probe in pixels.
    """
    unused = find_unused_parameters(model, in_channels=in_channels, size=size)
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    return unused


def memory_format(model: nn.Module, *, device: torch.device) -> torch.memory_format:
    """Return the fastest layout of images and weights that a model can be trained in: channels last where it is safe.

    On CPUs, the gradient of the weights of a 1 x 1 convolution with a stride over fewer than 16 channels, channels
    last, overruns its memory in oneDNN (https://github.com/uxlfoundation/oneDNN/issues/6035): training crashes, or
    learns from wrong gradients. GERNet-S and the MobileOne encoders have one.

    Args:
        model: from `build`.
        device: that it is trained on.
    """
    overruns = device.type == "cpu" and any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.groups == 1
        and module.in_channels < 16
        for module in model.modules()
    )
    return torch.contiguous_format if overruns else torch.channels_last
