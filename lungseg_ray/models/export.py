"""Export of a trained model to a folder; that of a network of segmentation_models_pytorch can be opened by it alone."""

import contextlib
import inspect
import io
import json
from pathlib import Path

from safetensors import SafetensorError
from segmentation_models_pytorch.base import SegmentationModel

from lungseg_ray.errors import UserError
from lungseg_ray.models.factory import network_class, resolve_encoder
from lungseg_ray.names import ARCHITECTURES
from lungseg_ray.text import named, shown

_NOTHING = ("encoder_weights", "activation", "aux_params")
"""Parts of a configuration that must not be set: weights of a hub, and what changes the output from logits."""


def export(model: SegmentationModel, directory: Path) -> None:
    """Writes `config.json`, `model.safetensors` and a model card, for `segmentation_models_pytorch.from_pretrained`.

    The configuration names no pretrained encoder weights: the folder holds all weights itself, and `from_pretrained`
    would otherwise download the encoder weights.

    Args:
        model: A model from `build`, not wrapped, in any mode and on any device.
        directory: The folder to write; it is created if it does not exist, and files of an earlier export are
            overwritten.
    """
    config = {name: value for name, value in model.config.items() if name != "pretrained_cfg_overlay"}
    config |= {"encoder_weights": None, "_model_class": type(model).__name__}
    model.save_pretrained(directory, config=config)


def _check_config(file: Path) -> str:
    """Refuses a configuration by which the loader would ask a network, or call something else than our networks.

    Returns:
        The architecture.

    Raises:
        UserError: If it is such a configuration, or none.
    """
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected the configuration of a network, found something else.")
    architecture, encoder = config.get("_model_class"), config.get("encoder_name")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{file}: expected one of {', '.join(ARCHITECTURES)}, found {shown(str(architecture))}.")
    try:
        resolve_encoder(str(encoder))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    known = inspect.signature(network_class(architecture)).parameters.values()
    allowed = {one.name for one in known if one.kind is not one.VAR_KEYWORD} | {"_model_class"}
    others = sorted(config.keys() - allowed)
    others += [f"{key} = {config[key]}" for key in _NOTHING if config.get(key) is not None]
    if others:
        raise UserError(
            f"{file}: expected a network whose weights are all in the folder, found {named(others)}. Give the folder "
            "that a finished run wrote its best model to."
        )
    return str(architecture)


def load_export(directory: Path) -> SegmentationModel:
    """Opens a folder that `export` wrote; no network access is needed.

    Args:
        directory: The folder.

    Returns:
        The model in evaluation mode on the CPU; its output is logits of shape (N, classes, H, W).

    Raises:
        UserError: If the folder lacks a file, if its files do not fit together, or if its configuration names anything
            but a network of ours, such as a model of a hub.
    """
    missing = [name for name in ("config.json", "model.safetensors") if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory}: not an exported model, expected config.json and model.safetensors, found no "
            f"{' and no '.join(missing)}. Give the folder that a finished run wrote its best model to."
        )
    architecture = _check_config(directory / "config.json")
    try:
        # The loader of huggingface_hub prints a line for each folder that it opens.
        with contextlib.redirect_stdout(io.StringIO()):
            model: SegmentationModel = network_class(architecture).from_pretrained(str(directory), strict=True)
    except (AttributeError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{directory}: the files of this exported model do not fit together: {error}") from error
    return model.eval()
