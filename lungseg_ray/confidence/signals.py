"""What tells, without a true mask, how good a predicted one is: numbers by image, each larger where it is worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Predictor, Probability, Processing

SIGNALS = {
    "undecided": "the probabilities of many pixels are undecided",
    "shape": "the mask has another shape than those of training",
    "unlike": "the image is unlike those of training",
}
"""The signals by name, each with what a large value means, in words.

- `undecided`: 1 - Dice of the map of probabilities and the mask decided from it; 1 where nothing is found of a label
  that nearly all training masks have.
- `shape`: the distance of the mask's description from those of training masks, in standard deviations.
- `unlike`: the distance of the encoder's features from those of training images, in standard deviations.
"""
_LARGEST = 5.0
"""The standard deviations at which a term of a distance is cut off, so that one term alone does not decide."""
_TERMS = 11
_USUAL = 0.9
"""Nearly all training masks are more than this share of them."""
_LIKELY = 0.1
"""A label is likely at a pixel from this probability on."""


@dataclass(frozen=True)
class Examined:
    """What the networks say about some images.

    Attributes:
        maps: The maps of the only model, (N, size, size, K) float32, 0 to 1.
        features: (N, F) float32, the deepest features of the encoder, means over the image.
    """

    maps: Probability
    features: npt.NDArray[np.float32]


def examine(predictor: Predictor, inputs: Pixels, *, batch: int | None = None) -> Examined:
    """Computes what the signals of images are made of; the encoder runs twice.

    Args:
        predictor: The model, only one.
        inputs: (N, size, size, C) uint8, as `Predictor.inputs` returns them for the model.
        batch: The images of a forward pass, as for `Predictor.maps`.
    """
    (maps,) = predictor.maps([inputs], batch=batch)
    return Examined(maps, predictor.features(inputs, batch=batch))


class Spread(BaseModel):
    """The mean and the standard deviation of each term of a description, over training images.

    Attributes:
        mean: The mean of each term.
        scale: Its standard deviation.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    mean: list[float]
    scale: list[float]

    @model_validator(mode="after")
    def _fit_together(self) -> Spread:
        if len(self.mean) != len(self.scale) or not all(value > 0 for value in self.scale):
            raise ValueError("expected as many positive standard deviations as means")
        return self

    @classmethod
    def of(cls, rows: npt.NDArray[np.floating]) -> Spread:
        """Returns that of some descriptions, (n, terms)."""
        return cls(mean=rows.mean(axis=0).tolist(), scale=(rows.std(axis=0) + 1e-3).tolist())

    def distance(self, row: Sequence[float] | npt.NDArray[np.floating]) -> float:
        """Returns the root mean square distance of a description from the mean, in standard deviations.

        Args:
            row: Its terms.
        """
        found = (np.asarray(row, np.float64) - self.mean) / self.scale
        return float(np.sqrt(np.mean(np.square(np.clip(found, -_LARGEST, _LARGEST)))))


class Reference(BaseModel):
    """Training images, as far as other images are compared with them.

    Attributes:
        features: The features of the encoder.
        masks: The description of the masks, all labels after one another.
        present: The share of the masks that have each label, 0 to 1; none in files of earlier versions.
    """

    model_config = ConfigDict(frozen=True)
    features: Spread
    masks: Spread
    present: list[float] = []

    @classmethod
    def of(cls, features: npt.NDArray[np.floating], masks: npt.NDArray[np.floating]) -> Reference:
        """Returns that of some training images.

        Args:
            features: (n, F), the features of the encoder.
            masks: (n, terms), the descriptions of the masks.
        """
        present = (masks[:, ::_TERMS] > 0).mean(axis=0).tolist()
        return cls(features=Spread.of(features), masks=Spread.of(masks), present=present)

    def signals(self, examined: Examined, number: int, processing: Processing) -> dict[str, float]:
        """Returns the signals of an image, by the names in `SIGNALS`.

        Args:
            examined: What the networks say about some images.
            number: The number of the image among them.
            processing: That of the model.
        """
        map_ = examined.maps[number]
        count = max(map_.shape[2] - 1, 1)
        maps, decided = map_[:, :, -count:], _channels(map_, processing.sidecar.threshold)
        # A label that is not found counts 0 where nearly all training masks have it: a network may be sure of nothing,
        # and wrong. Elsewhere it counts if it was likely somewhere, and not for the low probability of all background.
        usual = np.array([share > _USUAL for share in self.present or [1.0] * count])
        counted = usual | decided.any(axis=(0, 1)) | ((maps * (maps > _LIKELY)).sum(axis=(0, 1)) >= 1)
        return {
            "undecided": 1 - float(expected_dice(maps, decided)[counted].mean()) if counted.any() else 0.0,
            "shape": self.masks.distance(describe_labels(processing.labels(map_), count)),
            "unlike": self.features.distance(examined.features[number]),
        }


def describe_labels(labels: Pixels, count: int) -> list[float]:
    """Describes the shape of each label.

    Args:
        labels: (H, W) uint8; values above `count` are not described.
        count: The number of labels but the background.

    Returns:
        Eleven numbers for each label: area; number of components of a hundredth of it or more; share of the two
        largest; balance of the halves to the left and the right of its middle; left, right, upper and lower end; share
        of the convex hulls of the two largest components that is filled; length of the outline against that of a
        circle; share of the border of the image that it covers. Lengths and areas are shares of those of the image; all
        are 0 where the label is missing.
    """
    return [term for label in range(1, count + 1) for term in _describe(labels == label)]


def _describe(mask: npt.NDArray[np.bool_]) -> list[float]:
    height, width = mask.shape
    area = int(mask.sum())
    if not area:
        return [0.0] * _TERMS
    pixels = mask.astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    middle = (int(columns[0]) + int(columns[-1]) + 1) // 2
    outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = sorted(outlines, key=cv2.contourArea, reverse=True)[:2]
    hulls = sum(cv2.contourArea(cv2.convexHull(one)) for one in largest)
    length = sum(cv2.arcLength(one, closed=True) for one in largest)
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return [
        area / (height * width),
        float((areas >= 0.01 * area).sum()),
        float(areas[:2].sum()) / area,
        float(mask[:, :middle].sum()) / area,
        int(columns[0]) / width,
        (int(columns[-1]) + 1) / width,
        int(rows[0]) / height,
        (int(rows[-1]) + 1) / height,
        sum(map(cv2.contourArea, largest)) / hulls if hulls else 1.0,
        length / float(2 * np.sqrt(np.pi * area)),
        float(border.mean()),
    ]


def _channels(map_: Probability, threshold: float) -> Probability:
    """Returns the decided labels of a map, a channel for each label but the background."""
    if map_.shape[2] == 1:
        return (map_ > threshold).astype(np.float32)
    decided = map_.argmax(axis=2)[:, :, None]
    return (decided == np.arange(1, map_.shape[2])).astype(np.float32)


def expected_dice(maps: Probability, decided: Probability) -> npt.NDArray[np.float64]:
    """Returns the Dice of probabilities and of what was decided from them: what a network believes of its mask.

    Args:
        maps: (H, W, K) float32, the probability of each label, 0 to 1.
        decided: (H, W, K) float32, 1 where the label was decided, and 0 elsewhere.

    Returns:
        (K,), 0 to 1; 0 for a label that no pixel has.
    """
    # NumPy adds the pixels of several labels one after another, for which float32 is not enough.
    both = (maps * decided).sum(axis=(0, 1), dtype=np.float64)
    sum_ = (maps + decided).sum(axis=(0, 1), dtype=np.float64)
    found: npt.NDArray[np.float64] = np.where(decided.any(axis=(0, 1)), 2 * both / np.maximum(sum_, 1), 0)
    return found
