"""Builds the network that the settings of a run describe."""

from __future__ import annotations

import torch
from torch import nn

from lungseg_ray import models
from lungseg_ray.config import Settings


def build_model(settings: Settings, *, weights: str | None = None) -> nn.Module:
    """Builds the network of a run. Its initial weights depend on `train.seed`.

    Args:
        settings: The settings of the run.
        weights: Encoder weights to use instead of `model.weights`.

    Raises:
        UserError: If the network cannot be built, or the weights cannot be loaded.
    """
    torch.manual_seed(settings.train.seed)
    return models.build(
        architecture=settings.model.architecture,
        encoder=settings.model.encoder,
        in_channels=settings.corpus.channels,
        classes=settings.corpus.classes,
        encoder_weights=settings.model.weights if weights is None else weights,
    )
