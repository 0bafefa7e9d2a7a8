"""Construction of a network from an architecture and an encoder of segmentation_models_pytorch, with checks."""

import copy
import difflib
from collections.abc import Sequence

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from lungseg_ray.errors import UserError
from lungseg_ray.models.pranet import PraNet
from lungseg_ray.models.u2net import U2NET_ENCODERS, U2Net
from lungseg_ray.models.weights import load_encoder_weights
from lungseg_ray.names import ARCHITECTURES, WITH_DECODER_CHANNELS


def build(
    *,
    architecture: str,
    encoder: str,
    in_channels: int,
    classes: int,
    decoder_channels: Sequence[int] | None = None,
    encoder_weights: str = "none",
) -> nn.Module:
    """Builds a network that maps images (N, in_channels, H, W) to logits (N, classes, H, W).

    H and W must be divisible by the encoder's output stride (32). Weights that are not pretrained are drawn from the
    global random generator of PyTorch: seed it first.

    Args:
        architecture: One of `ARCHITECTURES`, in upper or lower case.
        encoder: Name of the encoder, as for `resolve_encoder`.
        in_channels: Number of channels of the images: 1 for grey, 3 for RGB; other numbers work as well.
        classes: Number of output channels: 1 for a binary mask, otherwise the number of labels including the
            background.
        decoder_channels: Channels of the five stages of the decoder, from the deepest one; by default those of the
            architecture. Only for those in `WITH_DECODER_CHANNELS`.
        encoder_weights: "imagenet" or another name of published weights (needs network access unless they are cached),
            "none", or the path of a weights file; see `load_encoder_weights`.

    Returns:
        The network in training mode, on the default device of PyTorch.

    Raises:
        UserError: If the architecture, the encoder or the weights do not exist, or if they do not fit together.
    """  # noqa: DOC501 - `_refused` and `_one_value` return a UserError
    architecture, encoder = _resolve_architecture(architecture), resolve_encoder(encoder)
    try:
        model = _create(
            architecture, encoder, in_channels=in_channels, classes=classes, decoder_channels=decoder_channels
        )
    except Exception as error:
        raise _refused(architecture, encoder, error) from error
    load_encoder_weights(model.get_submodule("encoder"), encoder_weights, name=encoder, in_channels=in_channels)
    return model


def check(
    *,
    architecture: str,
    encoder: str,
    in_channels: int = 1,
    classes: int = 1,
    decoder_channels: Sequence[int] | None = None,
    size: int = 256,
    images: int = 2,
) -> None:
    """Checks that a pair of architecture and encoder exists and works; takes a fraction of a second and no memory.

    The network is built and run on the meta device, where tensors have shapes but no values. A pair that reads values
    while it is built is checked on the CPU instead.

    Args:
        architecture: One of `ARCHITECTURES`, in upper or lower case.
        encoder: Name of the encoder, as for `resolve_encoder`.
        in_channels: Number of channels of the images.
        classes: Number of output channels.
        decoder_channels: Channels of the stages of the decoder, as for `build`.
        size: Height and width of the images, pixels.
        images: The number of images of a training pass in a worker.

    Raises:
        UserError: If the pair does not exist, does not work, or cannot be trained with so many images. The message
            contains the reason, and the nearest names if a name is unknown.
    """  # noqa: DOC501 - `_refused` and `_one_value` return a UserError
    architecture, encoder = _resolve_architecture(architecture), resolve_encoder(encoder)

    def passes(device: str) -> Tensor:
        """Builds the network, and runs it in evaluation and, where one image may not be enough, in training mode."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            with torch.device(device):
                model = _create(
                    architecture, encoder, in_channels=in_channels, classes=classes, decoder_channels=decoder_channels
                )
            # If the first convolution is adapted to `in_channels`, its weights are created outside the default device.
            model, empty = model.to(device), torch.zeros(1, in_channels, size, size, device=device)
            output: Tensor = model.eval()(empty)
            if images == 1:
                model.train()(empty)
            return output

    try:
        try:
            output = passes("meta")
        except Exception as error:
            if "meta tensor" not in str(error):
                raise
            # The pair reads values while it is built, such as one with a Mix Transformer encoder.
            output = passes("cpu")
    except Exception as error:
        if _ONE_VALUE in str(error):
            raise _one_value(architecture, encoder, size) from None
        raise _refused(architecture, encoder, error) from error
    if output.shape[2:] != (size, size):
        height, width = output.shape[2:]
        raise UserError(
            f"{architecture} with encoder {encoder} makes a mask of {height} x {width} pixels from an image of "
            f"{size} x {size}: expected the same size. Take a size that is divisible by 32."
        )


_ONE_VALUE = "Expected more than 1 value per channel"
"""How PyTorch begins the message of a batch normalisation that cannot be computed."""


def resolve_encoder(name: str) -> str:
    """Returns the name of an encoder in segmentation_models_pytorch.

    Args:
        name: A name in that library ("resnet34"), a timm model with its prefix ("tu-regnety_004") or without it
            ("regnety_004"), or an older name ("timm-regnety_004").

    Returns:
        The name in segmentation_models_pytorch; for a timm model, the name with the prefix "tu-".

    Raises:
        UserError: If there is no such encoder; the message contains the nearest names.
    """
    if name in encoders or name in U2NET_ENCODERS:
        return name
    bare = name.removeprefix("tu-").removeprefix("timm-")
    candidates = [f"tf_{bare}", bare] if name.startswith("timm-mobilenetv3") else [bare]
    for candidate in candidates:
        if timm.is_model(candidate):
            return f"tu-{candidate}"
    known = [*encoders, *U2NET_ENCODERS, *(f"tu-{model}" for model in timm.list_models())]
    raise UserError(f"There is no encoder {name!r}.{_nearest(name, known)} Any timm model works as tu-<name>.")


def known_encoder(name: str) -> str:
    """Returns the spelling of an encoder's name that may be written in any case.

    Args:
        name: A name as for `resolve_encoder`, in upper or lower case.

    Raises:
        UserError: If there is no such encoder; the message has the nearest names.
    """
    by_lower = {known.lower(): known for known in (*encoders, *U2NET_ENCODERS)}
    spelled = by_lower.get(name.lower(), name.lower())
    try:
        resolve_encoder(name)
    except UserError:
        resolve_encoder(spelled)
        return spelled
    return name


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


def network_class(architecture: str) -> type[SegmentationModel]:
    """Returns the class of a network.

    Args:
        architecture: One of `ARCHITECTURES`.
    """
    return _OWN.get(architecture) or smp.MODEL_ARCHITECTURES_MAPPING[architecture.lower()]


_OWN: dict[str, type[SegmentationModel]] = {"PraNet": PraNet, "U2Net": U2Net}
"""The networks that segmentation_models_pytorch lacks."""


def output_layers(architecture: str) -> tuple[str, ...]:
    """Returns how the names of the tensors of a network begin that depend on its classes.

    Args:
        architecture: One of `ARCHITECTURES`.
    """
    return _OUTPUTS.get(architecture, ("segmentation_head.",))


_OUTPUTS = {
    "PraNet": (
        "decoder.coarse.last.1.",
        *(f"decoder.reverse_attention.{stage}.layers.{last}." for stage, last in enumerate((7, 5, 5))),
    ),
    "U2Net": ("segmentation_head.", "sides."),
}


def _create(
    architecture: str, encoder: str, *, in_channels: int, classes: int, decoder_channels: Sequence[int] | None
) -> nn.Module:
    if (architecture == "U2Net") != (encoder in U2NET_ENCODERS):
        raise ValueError(f"U2Net has encoders of its own, {' and '.join(U2NET_ENCODERS)} (model.encoder)")
    decoder = {}
    if decoder_channels is not None:
        if architecture not in WITH_DECODER_CHANNELS:
            raise ValueError(
                "the channels of its decoder cannot be set (model.decoder_channels), only those of "
                f"{', '.join(WITH_DECODER_CHANNELS)}"
            )
        decoder["decoder_channels"] = tuple(decoder_channels)
    return network_class(architecture)(
        encoder_name=encoder, encoder_weights=None, in_channels=in_channels, classes=classes, **decoder
    )


def _one_value(architecture: str, encoder: str, size: int) -> UserError:
    return UserError(
        f"{architecture} with encoder {encoder} pools an image of {size} x {size} to a single pixel, whose batch "
        "normalisation needs several images in a pass, found 1. Raise feed.batch to at least 2 for each worker and "
        "each pass (train.workers x train.accumulate), or choose another architecture."
    )


def _refused(architecture: str, encoder: str, error: Exception) -> UserError:
    reason = str(error).strip().rstrip(".!") or f"it raises {type(error).__name__}"
    return UserError(f"{architecture} does not work with encoder {encoder}: {reason}. Choose another pair.")


def find_unused_parameters(model: nn.Module, *, in_channels: int, size: int) -> list[str]:
    """Returns the names of the trainable parameters that get no gradient.

    They are found by one forward and backward pass on a copy of the model; the model and the random state are not
    changed. Distributed data parallel training waits for the gradient of every trainable parameter, and fails if one
    gets none. Such pairs include VGG11 with UNet++, and EfficientNet with every architecture.

    Args:
        model: A model from `build`, on any device, not wrapped.
        in_channels: Number of channels of the images.
        size: Height and width of the probe image, pixels; 64 is enough unless the encoder accepts only one size.

    Returns:
        The names, as in `named_parameters`.
    """
    probe = copy.deepcopy(model).train()
    probe.zero_grad()
    device = next(probe.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        # Two images are needed: with one image, batch normalisation fails in a branch that pools to one pixel.
        outputs = probe(torch.zeros(2, in_channels, size, size, device=device))
        torch.stack([one.sum() for one in as_outputs(outputs)]).sum().backward()
    return [name for name, parameter in probe.named_parameters() if parameter.requires_grad and parameter.grad is None]


def as_outputs(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns the outputs of a network as a tuple: the main one, and in training those that some have besides."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def freeze_unused_parameters(model: nn.Module, *, in_channels: int, size: int) -> list[str]:
    """Freezes the parameters that `find_unused_parameters` finds, in place.

    Call this before the model is wrapped for DDP and before the optimiser is built.

    Args:
        model: A model from `build`, on any device, not wrapped.
        in_channels: Number of channels of the images.
        size: Height and width of the probe image, pixels.

    Returns:
        The names of the frozen parameters.
    """
    unused = find_unused_parameters(model, in_channels=in_channels, size=size)
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    return unused


def memory_format(model: nn.Module, *, device: torch.device) -> torch.memory_format:
    """Returns the fastest memory layout of images and weights in which a model can safely be trained.

    This is channels last, except on CPUs for a model that has a 1 x 1 convolution with a stride above 1 and fewer than
    16 input channels. With channels last, oneDNN overruns its memory when it computes the gradient of the weights of
    such a convolution (https://github.com/uxlfoundation/oneDNN/issues/6035): training crashes, or learns from wrong
    gradients. GERNet-S and the MobileOne encoders have such convolutions.

    Args:
        model: A model from `build`.
        device: The device on which it is trained.

    Returns:
        `torch.channels_last`, or `torch.contiguous_format` where channels last is not safe.
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
