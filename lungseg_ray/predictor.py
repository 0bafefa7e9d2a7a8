"""A trained model as it leaves a run: the folder `best/`, and what turns images into probabilities with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from lungseg_ray import models
from lungseg_ray.augment import resize_image
from lungseg_ray.errors import UserError
from lungseg_ray.metrics import probabilities
from lungseg_ray.storage import Location

SIDECAR = "preprocessing.json"
CARD = "README.md"

Probability = npt.NDArray[np.float32]


class Sidecar(BaseModel):
    """What one must know, beside the weights, to use the model.

    Attributes:
        size: height and width that the network sees, pixels; images are stretched to it bilinearly.
        scale: pixel values are divided by it.
        channels: 1 (grey: a colour file's first channel) or 3 (RGB).
        longer_side: larger images are first reduced to it, by area, pixels.
        classes: output channels; 1: sigmoid and `threshold`; more: softmax and the largest.
        class_names: of the labels from 1 on.
        threshold: probability above which a pixel counts as positive.
    """

    model_config = ConfigDict(frozen=True)
    size: int
    scale: float = 255.0
    channels: int
    longer_side: int
    classes: int
    class_names: list[str]
    threshold: float


class Predictor:
    """A model with its preprocessing."""

    def __init__(self, model: nn.Module, sidecar: Sidecar, *, device: torch.device | str = "cpu") -> None:
        self.sidecar = sidecar
        self.device = torch.device(device)
        self._model = model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Probability]:
        """Probabilities of images, in float32.

        Args:
            images: each (H, W, channels) uint8.
            sizes: (height, width) to give each result in; by default each image's own.

        Returns:
            For each image (h, w, k) float32: k = 1 for one class, otherwise a channel for each label.
        """
        side = self.sidecar
        stack = torch.from_numpy(np.stack([resize_image(image, side.size) for image in images])).permute(0, 3, 1, 2)
        inputs = stack.to(self.device).to(torch.float32).div_(side.scale)
        found = probabilities(self._model(inputs)).permute(0, 2, 3, 1).cpu().numpy()
        sizes = sizes or [image.shape[:2] for image in images]
        return [
            cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
            for one, (height, width) in zip(found, sizes, strict=True)
        ]

    def labels(self, probability: Probability, *, threshold: float | None = None) -> npt.NDArray[np.uint8]:
        """The label map (h, w) uint8 of a probability map.

        Args:
            probability: (h, w, k).
            threshold: for one class, in place of the model's own.
        """
        if self.sidecar.classes == 1:
            bound = self.sidecar.threshold if threshold is None else threshold
            return (probability[:, :, 0] > bound).astype(np.uint8)
        return probability.argmax(axis=2).astype(np.uint8)


def save(place: Location, model: nn.Module, sidecar: Sidecar, card: str) -> None:
    """Writes the folder that `segmentation_models_pytorch.from_pretrained` opens, with sidecar and model card.

    Args:
        place: the folder.
        model: on any device; not wrapped.
        sidecar: what its user must know.
        card: the model card, Markdown.
    """
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        models.export(model, Path(folder))
        (Path(folder) / SIDECAR).write_text(sidecar.model_dump_json(indent=2) + "\n")
        (Path(folder) / CARD).write_text(card)
        for file in sorted(Path(folder).iterdir()):
            (place / file.name).write_bytes(file.read_bytes())
    load.cache_clear()


@lru_cache(maxsize=1)
def load(place: Location, *, device: str = "cpu") -> Predictor:
    """Opens a folder that `save` wrote; once per process.

    Raises:
        UserError: if it is not there, not complete, or does not fit together.
    """
    try:
        sidecar = Sidecar.model_validate_json((place / SIDECAR).read_text())
    except FileNotFoundError:
        raise UserError(f"{place}: no trained model here ({SIDECAR} is missing). Is the run finished?") from None
    except ValidationError as error:
        raise UserError(f"{place / SIDECAR}: cannot be read: {error}") from None
    if place.is_local:
        return Predictor(models.load_export(Path(place.path)), sidecar, device=device)
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        place.download(Path(folder))
        return Predictor(models.load_export(Path(folder)), sidecar, device=device)
