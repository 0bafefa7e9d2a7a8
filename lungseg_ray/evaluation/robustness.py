"""The robustness card: the quality of a model under graded changes of the images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.config import Device, EvaluateSettings
from lungseg_ray.errors import BadFileError
from lungseg_ray.evaluation.images import Images
from lungseg_ray.feed.shifts import SHIFTS
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Model, Probability
from lungseg_ray.numerics import metrics
from lungseg_ray.numerics.sampling import evenly_spaced
from lungseg_ray.progress import ticks
from lungseg_ray.run.summary import Robustness


@dataclass(frozen=True, slots=True)
class ShiftedImage:
    """The quality of the masks of one image and its changed copies.

    Attributes:
        dice: The Dice of the image as it is, then of every level of every shift in the order of `SHIFTS`; means over
            the classes. Empty if the image cannot be used.
    """

    dice: list[float]


@dataclass(frozen=True)
class ShiftChunk:
    """Measures one image and its changed copies, as `cluster.chunks.Work`.

    Attributes:
        model: The model to measure.
        images: The images.
        numbers: The number in the set of the image of each chunk.
        settings: The settings of the evaluation.
    """

    model: Model
    images: Images
    numbers: list[int]
    settings: EvaluateSettings

    def prepare(self, chunk: int) -> tuple[list[Pixels], list[Pixels]]:
        """Reads an image, changes it, and resizes all copies."""
        try:
            sample = self.images.read(self.numbers[chunk]).sample
        except BadFileError:
            return [], self.model.processing().inputs([])
        pairs = [(sample.image, sample.mask)]
        for shift in SHIFTS.values():
            pairs += [shift.change(sample.image, sample.mask, level) for level in shift.levels]
        return [mask for _, mask in pairs], self.model.processing().inputs([image for image, _ in pairs])

    def compute(self, given: list[Pixels], device: str) -> list[Probability]:
        """Predicts the maps of the copies."""
        return self.model.load(device=device).maps(given, batch=self.settings.batch)

    def finish(self, prepared: list[Pixels], computed: list[Probability]) -> list[ShiftedImage]:
        """Compares the masks of the copies."""
        processing = self.model.processing()
        maps = processing.combine(computed, [mask.shape for mask in prepared])
        dice = [
            dice_of_image(
                processing.labels(probability, threshold=self.settings.threshold), mask, processing.sidecar.classes
            )
            for mask, probability in zip(prepared, maps, strict=True)
        ]
        return [ShiftedImage(dice)]


def measure_robustness(
    model: Model, images: Images, settings: EvaluateSettings, *, device: Device = "auto"
) -> Robustness | None:
    """Measures a model on changed copies of some images. Needs a running Ray cluster.

    Args:
        model: The model to measure.
        images: The images, of which `evaluate.robustness` are taken at equal distances.
        settings: The settings of the evaluation.
        device: The device to compute on.

    Returns:
        The card; None if no image can be used.
    """
    numbers = evenly_spaced(len(images), settings.robustness)
    work = ShiftChunk(model, images, numbers, settings)
    done = map_chunks(work, len(numbers), ShiftedImage, workers=settings.workers, device=device)
    return _card(one.dice for one in ticks(done, total=len(numbers), description="Changing images"))


def _card(rows: Iterable[list[float]]) -> Robustness | None:
    measured = [row for row in rows if row]
    if not measured:
        return None
    plain, *means = np.mean(measured, axis=0).tolist()
    card: Robustness = {"images": len(measured), "dice": plain, "mean": float(np.mean(means)), "shifts": {}}
    for name, shift in SHIFTS.items():
        found, means = means[: len(shift.levels)], means[len(shift.levels) :]
        card["shifts"][name] = {"about": shift.about, "levels": list(shift.levels), "dice": found}
    return card


def dice_of_image(labels: Pixels, truth: Pixels, classes: int) -> float:
    """Returns the Dice of a predicted label map, the mean over the classes.

    Args:
        labels: (H, W) uint8, the predicted label of each pixel.
        truth: (H, W) uint8, the true labels.
        classes: The number of output channels of the network.
    """
    # A copy, since what is cut out of an image is not contiguous, and PyTorch takes no array that is read-only.
    pair = (torch.from_numpy(each.copy())[None] for each in (labels, truth))
    return float(metrics.dice(metrics.confusion_counts(*pair, classes=classes)).mean())
