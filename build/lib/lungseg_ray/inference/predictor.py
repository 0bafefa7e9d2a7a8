"""Trained models as they leave their runs: the folder `best/`, and what turns images into probabilities with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from lungseg_ray import models
from lungseg_ray.config import Flips, differences
from lungseg_ray.errors import UserError
from lungseg_ray.imaging import limited, resize_area, resize_image
from lungseg_ray.numerics.metrics import probabilities
from lungseg_ray.run.folder import BEST, Run
from lungseg_ray.storage import Location

SIDECAR = "preprocessing.json"
CARD = "README.md"

ALIKE = {"channels", "longer_side", "classes", "class_names", "white"}
"""What models must have in common to be averaged."""

AXES: dict[Flips, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (3,)),
    "all": ((), (3,), (2,), (2, 3)),
}
"""Axes of (N, C, H, W) that each pass reverses."""

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
        white: pixel value of white in 16-bit and float files; None for the format's own.
    """

    model_config = ConfigDict(frozen=True)
    size: int
    scale: float = 255.0
    channels: int
    longer_side: int
    classes: int
    class_names: list[str]
    threshold: float
    white: float | None = None


class Predictor:
    """Models with their preprocessing, used as one: the mean of their probabilities, over mirror images, too.

    Attributes:
        sidecar: the first model's, with the mean of all thresholds.
        device: that they compute on.
    """

    def __init__(
        self,
        members: Sequence[tuple[nn.Module, Sidecar]],
        *,
        flips: Flips = "none",
        device: torch.device | str = "cpu",
    ) -> None:
        threshold = fmean(side.threshold for _, side in members)
        self.sidecar = members[0][1].model_copy(update={"threshold": threshold})
        self.device = torch.device(device)
        self._members = [(model.to(self.device).eval(), side) for model, side in members]
        self._axes = AXES[flips]

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
        sizes = sizes or [image.shape[:2] for image in images]
        means = [np.zeros((height, width, self.sidecar.classes), np.float32) for height, width in sizes]
        for model, side in self._members:
            for mean, one in zip(means, self._maps(model, side, images), strict=True):
                height, width, _ = mean.shape
                sized = cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR).reshape(mean.shape)
                mean += sized / len(self._members)
        return means

    def _maps(self, model: nn.Module, side: Sidecar, images: Sequence[npt.NDArray[np.uint8]]) -> Probability:
        stack = torch.from_numpy(np.stack([resize_image(image, side.size) for image in images])).permute(0, 3, 1, 2)
        inputs = stack.to(self.device).to(torch.float32).div_(side.scale)
        # One after the other: a batch that fits in memory stays one that fits.
        found = [probabilities(model(inputs.flip(axes))).flip(axes) for axes in self._axes]
        return torch.stack(found).mean(dim=0).permute(0, 2, 3, 1).cpu().numpy()

    def predict(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Predicts the label map of one image, at the size of the image.

        Args:
            image: (H, W) grey or (H, W, C) uint8, with as many channels as the model was trained on.

        Returns:
            (H, W) uint8 labels, 0 is background.

        Raises:
            UserError: If the image has another dtype, or another number of channels.
        """
        pixels = image[:, :, None] if image.ndim == 2 else image
        channels = self.sidecar.channels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
            raise UserError(
                f"Expected an image (H, W, {channels}) of uint8, found {image.shape} of {image.dtype}. Scale its "
                "values to 0 to 255, and give it the channels that the model was trained on."
            )
        height, width = pixels.shape[:2]
        small = resize_area(pixels, *limited(height, width, longer_side=self.sidecar.longer_side))
        (probability,) = self([small.reshape(*small.shape[:2], channels)], [(height, width)])
        return self.labels(probability)

    def labels(self, probability: Probability, *, threshold: float | None = None) -> npt.NDArray[np.uint8]:
        """The label map (h, w) uint8 of a probability map.

        Args:
            probability: (h, w, k).
            threshold: for one class, in place of the sidecar's.
        """
        if self.sidecar.classes == 1:
            bound = self.sidecar.threshold if threshold is None else threshold
            return (probability[:, :, 0] > bound).astype(np.uint8)
        return probability.argmax(axis=2).astype(np.uint8)


def save_model(place: Location, model: nn.Module, sidecar: Sidecar, card: str) -> None:
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
    load_predictor.cache_clear()


@lru_cache(maxsize=1)
def load_predictor(*places: Location, flips: Flips = "none", device: str = "cpu") -> Predictor:
    """Opens folders that `save` wrote, to be used as one model; once per process.

    Raises:
        UserError: if one is not there, not complete, or does not fit together, or if they cannot be averaged.
    """
    members = [_open(place) for place in places]
    first, *others = (side.model_dump(include=ALIKE) for _, side in members)
    for place, other in zip(places[1:], others, strict=True):
        if lines := list(differences(first, other)):
            raise UserError(
                f"{place}: this model cannot be averaged with {places[0]}:\n  "
                + "\n  ".join(lines)
                + "\nAverage models that were trained on the same shards."
            )
    return Predictor(members, flips=flips, device=device)


def _open(place: Location) -> tuple[nn.Module, Sidecar]:
    try:
        sidecar = Sidecar.model_validate_json((place / SIDECAR).read_text())
    except FileNotFoundError:
        raise UserError(f"{place}: no trained model here ({SIDECAR} is missing). Is the run finished?") from None
    except ValidationError as error:
        raise UserError(f"{place / SIDECAR}: cannot be read: {error}") from None
    if place.is_local:
        return models.load_export(Path(place.path)), sidecar
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        place.download(Path(folder))
        return models.load_export(Path(folder)), sidecar


@dataclass(frozen=True)
class Model:
    """What evaluation and prediction use as one model.

    Attributes:
        runs: their best models are averaged.
        flips: the mirror images that are averaged over, too.
    """

    runs: tuple[Run, ...]
    flips: Flips = "none"

    @property
    def suffix(self) -> str:
        """Tells its folder of figures from that of a run alone, such as `-top3-flips-all`; empty for one."""
        several = f"-top{len(self.runs)}" if len(self.runs) > 1 else ""
        return several + (f"-flips-{self.flips}" if self.flips != "none" else "")

    def load(self, *, device: str = "cpu") -> Predictor:
        """Opens it; as `load` does."""
        return load_predictor(*(run.place / BEST for run in self.runs), flips=self.flips, device=device)
