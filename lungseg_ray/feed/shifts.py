"""Graded changes of an image, by which a model is measured on images unlike those that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from lungseg_ray.imaging import Pixels, resize_area, resize_labels, write_text

Change = Callable[[Pixels, Pixels, float], tuple[Pixels, Pixels]]


@dataclass(frozen=True)
class Shift:
    """One way in which images of another hospital may differ.

    Attributes:
        about: What a level means, for people.
        levels: The levels, none of which leaves an image as it is.
        change: Returns a changed image (H, W, C) and its mask (H, W), given an image, its mask and a level.
    """

    about: str
    levels: tuple[float, ...]
    change: Change


def _aspect(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    height, width = image.shape[0], max(round(image.shape[1] * level), 1)
    interpolation = cv2.INTER_AREA if level < 1 else cv2.INTER_LINEAR
    changed = cv2.resize(image, (width, height), interpolation=interpolation)
    return changed.reshape(height, width, -1), resize_labels(mask, height, width)


def _exposure(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    table = (np.linspace(0, 1, 256) ** level * 255).round().astype(np.uint8)
    return table[image], mask


def _contrast(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    mean = float(image.mean())
    return np.clip((image - mean) * level + mean, 0, 255).round().astype(np.uint8), mask


def _inversion(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    return 255 - image, mask


def _resolution(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    height, width = image.shape[:2]
    small = resize_area(image, max(round(height * level), 1), max(round(width * level), 1))
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).reshape(image.shape), mask


def _rotation(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), level, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return turned.reshape(image.shape), cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST)


def _noise(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    noise = np.random.default_rng(0).normal(0, 255 * level, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8), mask


def _blur(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    return cv2.GaussianBlur(image, (0, 0), level * max(image.shape[:2])).reshape(image.shape), mask


def _crop(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    top, left = (round(length * level) for length in image.shape[:2])
    inner = slice(top, image.shape[0] - top), slice(left, image.shape[1] - left)
    return image[inner], mask[inner]


def _surroundings(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    rows, columns = (round(length * level) for length in image.shape[:2])
    edges = ((rows, rows), (columns, columns))
    return np.pad(image, (*edges, (0, 0))), np.pad(mask, edges)


_WORDS = (("PORTABLE", 0.02, 0.02), ("R", 0.98, 0.15), ("AP SUPINE 12:40", 0.95, 0.97), ("L", 0.02, 0.5))


def _text(image: Pixels, mask: Pixels, level: float) -> tuple[Pixels, Pixels]:
    drawn = np.ascontiguousarray(image).copy()
    for word, across, down in _WORDS:
        write_text(drawn, word, across=across, down=down, scale=level, grey=255)
    return drawn.reshape(image.shape), mask


SHIFTS: Mapping[str, Shift] = {
    "aspect": Shift("width multiplied by", (0.7, 0.85, 1.2, 1.4), _aspect),
    "exposure": Shift("exponent of the grey values", (0.4, 0.65, 1.5, 2.5), _exposure),
    "contrast": Shift("contrast multiplied by", (0.4, 0.7, 1.5), _contrast),
    "inversion": Shift("black and white exchanged", (1.0,), _inversion),
    "resolution": Shift("share of the pixels of a side", (0.25, 0.125, 0.0625), _resolution),
    "rotation": Shift("degrees", (-15, -7, 7, 15), _rotation),
    "noise": Shift("standard deviation, share of white", (0.03, 0.06, 0.12), _noise),
    "blur": Shift("standard deviation, share of the longer side", (0.003, 0.006, 0.012), _blur),
    "crop": Shift("share cut off at each edge", (0.05, 0.1), _crop),
    "surroundings": Shift("black border, share of the side", (0.1, 0.25), _surroundings),
    "text": Shift("size of burnt-in letters", (0.5, 1.0), _text),
}
"""The shifts by name, each with its levels from one end to the other."""
