"""Pretrained weights of an encoder, from published downloads or from a file."""

from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders, get_encoder
from timm.models import adapt_input_conv
from torch import Tensor, nn

from lungseg_ray.errors import UserError
from lungseg_ray.text import shown

_REACH_SECONDS = 10
"""The hub counts as unreachable if it does not respond within this time, seconds."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Checkpoints hold the state dict of the model under one of these keys, or directly."""
_PREFIXES = ("module", "model", "encoder", "backbone")
"""Wrappers add these prefixes to the names of an encoder's tensors."""


def load_encoder_weights(encoder: nn.Module, weights: str, *, name: str, in_channels: int) -> None:
    """Loads pretrained weights into an encoder, in place.

    Args:
        encoder: The `.encoder` of a model that was built for `in_channels`.
        weights: "none"; "imagenet" or another name of weights that segmentation_models_pytorch publishes for the
            encoder; or the path of a weights file, which is .safetensors, or .pt, .pth or .bin (these are read without
            executing pickled code).
        name: The name of the encoder, as `resolve_encoder` returns it.
        in_channels: Number of channels of the images. Weights for three channels are summed for one channel, and
            repeated and scaled for other numbers.

    Raises:
        UserError: If the weights cannot be downloaded, if the file cannot be read, or if it does not hold the weights
            of this encoder.
    """
    if weights == "none":
        return
    published = _published(name)
    if weights == "imagenet" or weights in published:
        encoder.load_state_dict(_download(name, weights, in_channels=in_channels))
    elif Path(weights).is_file():
        _fill(encoder, _read(Path(weights)), source=weights, name=name, in_channels=in_channels)
    else:
        raise UserError(
            f"Encoder weights {weights!r}: expected {', '.join(published)}, none or the path of a weights file, found "
            "none of these and no such file. Check the path; it must be readable on every node."
        )


def _published(name: str) -> list[str]:
    return ["imagenet"] if name.startswith("tu-") else list(encoders.get(name, {}).get("pretrained_settings", ()))


def _download(name: str, weights: str, *, in_channels: int) -> dict[str, Tensor]:
    """Downloads published weights, or reads them from the local cache, as a state dict of the encoder."""
    if weights not in _published(name):
        raise UserError(
            f"Encoder {name} has no weights named {weights!r}, only {', '.join(_published(name)) or 'random ones'}. "
            "Name one of these, or give the path of a weights file, or none."
        )
    universal = name.startswith("tu-")
    if universal:
        config = timm.models.get_pretrained_cfg(name.removeprefix("tu-"))
        repository, revision = config.hf_hub_id if config is not None else None, None
    else:
        settings = encoders[name]["pretrained_settings"][weights]
        repository, revision = settings["repo_id"], settings["revision"]
    advice = (
        "Without a network, download the file elsewhere and give its path as the encoder weights, or start from "
        "random weights with 'none'."
    )
    if repository is not None:
        # The hub's client retries for up to a minute per file if the network is unreachable. One short request avoids
        # this wait.
        cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors", revision=revision)
        if not isinstance(cached, str) and (reason := _unreachable()):
            raise UserError(
                f"The {weights} weights of encoder {name} ({repository}) are not in the local cache, and "
                f"{huggingface_hub.constants.ENDPOINT} cannot be reached: {reason}. {advice}"
            )
    try:
        donor = get_encoder(name, in_channels=in_channels, weights=True if universal else weights)
    except Exception as error:
        reason = str(error).rstrip(".")
        raise UserError(f"The {weights} weights of encoder {name} cannot be had: {reason}. {advice}") from error
    state: dict[str, Tensor] = donor.state_dict()
    return state


def _unreachable() -> str | None:
    """Returns the reason why the hub cannot be reached, or None if it can."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_REACH_SECONDS)
    except Exception as error:
        return str(error).rstrip(".") or type(error).__name__
    return None


def _read(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a weights file by name, without the outer dictionaries that checkpoints usually have."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # For a damaged file, the libraries raise errors of many kinds.
        raise UserError(
            f"{path}: cannot be read as a weights file ({error}). Expected .safetensors, or a .pt or .pth file that "
            "holds tensors only."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    for key, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
            raise UserError(f"{path}: expected plain tensors, found {shown(key)} that is sparse, quantised or complex.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: expected finite numbers, found NaN or infinity in {shown(key)}.")
    return found


def _fill(encoder: nn.Module, found: dict[str, Tensor], *, source: str, name: str, in_channels: int) -> None:
    """Copies the tensors of a file into the encoder; other tensors of the file, such as a classifier's, are ignored."""
    by_name = {_plain(key): value for key, value in found.items()}
    state = encoder.state_dict()
    missing, misshapen = [], []
    for key, own in state.items():
        value = by_name.get(_plain(key))
        if value is None:
            # Files from before PyTorch 0.4.1 lack this counter. It is not read as long as the momentum is set.
            if not key.endswith("num_batches_tracked"):
                missing.append(key)
            continue
        if value.ndim == 4 and value.shape[1] == 3 and own.shape[1] == in_channels != 3:
            value = adapt_input_conv(in_channels, value)
        if value.shape != own.shape:
            misshapen.append(f"{key} {tuple(own.shape)} (file: {tuple(value.shape)})")
        else:
            state[key] = value
    if missing or misshapen:
        raise UserError(
            f"{source}: does not hold the weights of encoder {name}: of its {len(state)} tensors, {len(missing)} are "
            f"missing and {len(misshapen)} have another shape; the file holds {len(found)} tensors. "
            f"First: {(missing + misshapen)[0]}. Give a file of this very encoder."
        )
    encoder.load_state_dict(state)


def _plain(key: str) -> str:
    """Normalises a tensor's name for comparison: timm may write `_` for `.`, and wrappers add prefixes."""
    parts = key.replace("_", ".").split(".")
    while len(parts) > 1 and parts[0] in _PREFIXES:
        parts = parts[1:]
    return ".".join(parts)
