"""Builds the network that the settings of a run describe."""

from __future__ import annotations

from inspect import signature
from typing import Any, TypedDict, TypeVar

import torch
from torch import nn

from lungseg_ray import models
from lungseg_ray.config import Settings
from lungseg_ray.errors import UserError
from lungseg_ray.names import WITH_DECODER_CHANNELS
from lungseg_ray.numerics.losses import SegmentationLoss
from lungseg_ray.run.exported import Sidecar, find_export, open_model
from lungseg_ray.run.started_with import ConfigFile


class _Pass(TypedDict):
    """A training pass of the network of a run in one worker."""

    architecture: str
    encoder: str
    in_channels: int
    classes: int
    decoder_channels: list[int] | None
    size: int
    images: int


AnySettings = TypeVar("AnySettings", bound=Settings)


def _training_pass(settings: Settings) -> _Pass:
    return {
        "architecture": settings.model.architecture,
        "encoder": settings.model.encoder,
        "in_channels": settings.corpus.channels,
        "classes": settings.corpus.classes,
        "decoder_channels": settings.model.decoder_channels,
        "size": settings.feed.size,
        "images": settings.images_per_pass,
    }


def check_model(settings: Settings) -> None:
    """Checks that the network of a run exists and can be trained as the settings ask; takes a fraction of a second.

    Args:
        settings: The settings of the run.

    Raises:
        UserError: If it does not exist, or cannot be trained on images of this size or so few at a time, or if the
            weights of the labels are not one for each.
    """
    SegmentationLoss(classes=settings.corpus.classes, label_weights=settings.loss.label_weights)
    for size in {settings.feed.size, *settings.feed.sizes}:
        one = _training_pass(settings)
        one["size"] = size
        models.check(**one)


def model_cost(settings: Settings) -> models.Cost:
    """Returns the size and the cost of the network of a run.

    Args:
        settings: The settings of the run.
    """
    return models.cost(**_training_pass(settings))


def probe_size(model: nn.Module, settings: Settings, size: int) -> int:
    """Returns the size of images for a trial pass: a small one, or `feed.size` where the network accepts no other.

    Args:
        model: The network of the run.
        settings: The settings of the run.
        size: The small size, pixels.
    """
    size = min(size, settings.feed.size)
    small = torch.zeros(1, settings.corpus.channels, size, size, device=next(model.parameters()).device)
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(small)
    except (AssertionError, RuntimeError, ValueError):
        return settings.feed.size
    finally:
        model.train(training)
    return size


def build_model(settings: Settings, *, pretrained: bool = True) -> nn.Module:
    """Builds the network of a run. Its initial weights depend on `train.seed`.

    Args:
        settings: The settings of the run.
        pretrained: Whether to load the weights that `model.weights` or `model.from` names.

    Raises:
        UserError: If the network cannot be built, or the weights cannot be loaded.
        OSError: If a bucket that holds the weights cannot be used.
    """
    torch.manual_seed(settings.train.seed)
    model = models.build(
        architecture=settings.model.architecture,
        encoder=settings.model.encoder,
        in_channels=settings.corpus.channels,
        classes=settings.corpus.classes,
        decoder_channels=settings.model.decoder_channels,
        encoder_weights=settings.model.weights if pretrained else "none",
    )
    if pretrained and settings.model.start:
        start, sidecar = open_model(find_export(settings.model.start))
        weights = start.state_dict()
        if not _same_classes(settings, sidecar):
            heads = models.output_layers(settings.model.architecture)
            weights |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(heads)}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{settings.model.start}: these weights do not fit the network (model.from): {error}"
            ) from None
    return model


def with_start(settings: AnySettings, begun: ConfigFile[Any]) -> tuple[AnySettings, str]:
    """Takes architecture, encoder and input size from the model that training starts from (`model.from`).

    Args:
        settings: The settings of the job, with the classes and channels of its shards.
        begun: The configuration of the run or the sweep. If it exists, it has these settings, and the model is not
            needed any more.

    Returns:
        The settings, and a sentence for the user; empty if training starts from no model or has begun.

    Raises:
        UserError: If there is no such model, or if it has another architecture, encoder or number of channels than the
            user asks for.
        OSError: If a bucket cannot be used.
    """
    if settings.model.start is None:
        return settings, ""
    if begun.place.exists():
        before = begun.read().settings
        of_run = {key: getattr(before.model, key) for key in _OF_MODEL}
        return _with(settings, of_run, {"size": before.feed.size, "fit": before.feed.fit}), ""
    place = find_export(settings.model.start)
    model, sidecar = open_model(place)
    of_model = {
        "architecture": type(model).__name__,
        "encoder": str(model.config["encoder_name"]),
        "decoder_channels": _decoder_channels(model),
        "normalise": sidecar.normalise,
    }
    found = _with(settings, of_model, {"size": sidecar.size, "fit": sidecar.fit})
    asked = {key: getattr(found.model, key) for key in _OF_MODEL} | {
        "encoder": models.resolve_encoder(found.model.encoder)
    }
    if type(model).__name__ in WITH_DECODER_CHANNELS and asked["decoder_channels"] == _usual_channels(model):
        asked["decoder_channels"] = None
    wrong = [
        f"{key} is {there}, and {wanted} is asked for"
        for key, there, wanted in (
            *((f"model.{key}", of_model[key], asked[key]) for key in _OF_MODEL),
            ("feed.fit", sidecar.fit, found.feed.fit),
            ("corpus.channels", sidecar.channels, found.corpus.channels),
        )
        if there != wanted
    ]
    if wrong:
        raise UserError(f"{place}: the model to start from (model.from) does not fit: {'; '.join(wrong)}.")
    architecture, encoder = of_model["architecture"], of_model["encoder"]
    text = f"Starting from the weights of {place}: {architecture} with {encoder}, trained at {sidecar.size} px."
    if not _same_classes(found, sidecar):
        text += (
            f" It segments {', '.join(sidecar.class_names)}; its head is replaced by a new one for "
            f"{', '.join(found.corpus.class_names)}."
        )
    return found, text


def _decoder_channels(model: Any) -> list[int] | None:
    """Returns the widths of a model's decoder, or None where they are those that its architecture has by itself."""
    if type(model).__name__ not in WITH_DECODER_CHANNELS:
        return None
    found = list(model.config.get("decoder_channels", _usual_channels(model)))
    return None if found == _usual_channels(model) else found


def _usual_channels(model: Any) -> list[int]:
    return list(signature(type(model)).parameters["decoder_channels"].default)


def _same_classes(settings: Settings, sidecar: Sidecar) -> bool:
    corpus = settings.corpus
    return (sidecar.classes, sidecar.class_names) == (corpus.classes, corpus.class_names)


_OF_MODEL = ("architecture", "encoder", "decoder_channels", "normalise")
"""The settings of a network that those who start from its weights must share."""


def _with(settings: AnySettings, model: dict[str, Any], feed: dict[str, Any]) -> AnySettings:
    """Returns settings with those of a model, where the user does not set them."""
    return settings.model_copy(
        update={
            name: section.model_copy(
                update={key: value for key, value in found.items() if key not in section.model_fields_set}
            )
            for name, section, found in (("model", settings.model, model), ("feed", settings.feed, feed))
        }
    )
