"""Builds the network that the settings of a run describe."""

from __future__ import annotations

import torch
from torch import nn

from lungseg_ray import models
from lungseg_ray.config import Settings


def build_model(settings: Settings, *, weights: str | None = None) -> nn.Module:
    """The network of a run with its first weights, which follow from the seed.

    Args:
        settings: of the run.
        weights: in place of `model.weights`.
    """
    torch.manual_seed(settings.train.seed)
    return models.build(
        architecture=settings.model.architecture,
        encoder=settings.model.encoder,
        in_channels=settings.corpus.channels,
        classes=settings.corpus.classes,
        encoder_weights=settings.model.weights if weights is None else weights,
    )
