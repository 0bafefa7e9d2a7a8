"""Transforms that Albumentations lacks, for the ways in which chest X-rays of other hospitals differ."""

# ruff: noqa: D102 - the methods are those that Albumentations calls, which documents them.
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from lungseg_ray.imaging import Pixels, pad_to_square, write_text

Range = tuple[float, float]


class PadToSquare(A.DualTransform):
    """Adds black borders to the shorter sides, which makes an image square without stretching it."""

    def apply(self, img: Pixels, **_: Any) -> Pixels:
        return pad_to_square(img)

    def apply_to_mask(self, mask: Pixels, **_: Any) -> Pixels:
        return pad_to_square(mask)


class Framing(A.DualTransform):
    """Draws another framing of the patient: the field of view, the aspect ratio, the position and the rotation.

    The image is sampled once, from its own pixels to those of the output. What lies beyond its edges gets label 0, and
    one grey value, which is black in half of the images: an edge of the detector, or of a collimator. Each change is
    drawn from a triangular distribution, so that small ones are the most frequent.

    Args:
        size: Height and width of the output, pixels.
        zoom: Range of the magnification, drawn on a logarithmic scale. Below 1, the borders show.
        aspect: Range of the factor of width to height, drawn on a logarithmic scale. An image that is not square is
            stretched to a square before.
        degrees: Largest rotation.
        shear: Largest shear, degrees.
        shift: Largest shift along each axis, as a share of the size.
    """

    def __init__(
        self, *, size: int, zoom: Range, aspect: Range, degrees: float, shear: float, shift: float, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.size = size
        self.zoom, self.aspect = zoom, aspect
        self.degrees, self.shear, self.shift = degrees, shear, shift

    def get_params(self) -> dict[str, Any]:
        draw = self.py_random.triangular
        zoom, aspect = (math.exp(draw(math.log(low), math.log(high), 0.0)) for low, high in (self.zoom, self.aspect))
        angle, shear = (math.radians(draw(-most, most)) for most in (self.degrees, self.shear))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        stretch = np.array([[math.sqrt(aspect), math.tan(shear)], [0.0, 1 / math.sqrt(aspect)]])
        offset = [draw(-self.shift, self.shift), draw(-self.shift, self.shift)]
        fill = 0 if self.py_random.random() < 0.5 else self.py_random.randint(1, 160)
        return {"linear": zoom * turn @ stretch, "offset": np.array(offset), "fill": fill}

    def apply(self, img: Pixels, *, linear: Any, offset: Any, fill: int, **_: Any) -> Pixels:
        return self._warp(img, linear, offset, cv2.INTER_LINEAR, fill)

    def apply_to_mask(self, mask: Pixels, *, linear: Any, offset: Any, **_: Any) -> Pixels:
        return self._warp(mask, linear, offset, cv2.INTER_NEAREST, 0)

    def _warp(self, pixels: Pixels, linear: Any, offset: Any, interpolation: int, fill: int) -> Pixels:
        height, width = pixels.shape[:2]
        # In a square of side 1 around its centre: output = linear @ input + offset. Centres of pixels are at + 0.5.
        to_unit = np.diag([1 / width, 1 / height])
        matrix = self.size * linear @ to_unit
        centre = self.size * (0.5 + offset) - matrix @ [width / 2, height / 2]
        moved = matrix @ [0.5, 0.5] + centre - 0.5
        return cv2.warpAffine(
            pixels,
            np.column_stack([matrix, moved]),
            (self.size, self.size),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(fill,) * 3,
        )


class BrightnessRamp(A.ImageOnlyTransform):
    """Changes the exponent of the grey values from one side of the image to the other, as an uneven exposure does.

    Args:
        gamma: Range of the exponent at each of the two ends.
    """

    def __init__(self, *, gamma: Range, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.gamma = gamma

    def get_params(self) -> dict[str, Any]:
        draw = self.py_random.uniform
        low, high = (math.exp(draw(*map(math.log, self.gamma))) for _ in range(2))
        return {"ends": (low, high), "angle": draw(0, 2 * math.pi)}

    def apply(self, img: Pixels, *, ends: Range, angle: float, **_: Any) -> Pixels:
        height, width = img.shape[:2]
        rows, columns = (
            np.linspace(-0.5, 0.5, height, dtype=np.float32),
            np.linspace(-0.5, 0.5, width, dtype=np.float32),
        )
        along = columns[None, :] * math.cos(angle) + rows[:, None] * math.sin(angle)
        exponent = np.maximum((ends[0] + ends[1]) / 2 + along * (ends[1] - ends[0]), 0.1)
        share = img.reshape(height, width, -1).astype(np.float32) / 255
        return (share ** exponent[:, :, None] * 255 + 0.5).astype(np.uint8).reshape(img.shape)


class Opacities(A.DualTransform):
    """Draws soft bright spots into what the mask marks, such as a pneumonia in a lung; the mask stays.

    Args:
        count: Range of the number of spots.
        radius: Range of their radius, as a share of the width of the image.
        strength: Range of their opacity, 0 to 1.
    """

    def __init__(self, *, count: tuple[int, int], radius: Range, strength: Range, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.count, self.radius, self.strength = count, radius, strength

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        mask = data["mask"]
        inside = np.flatnonzero((mask > 0) & (mask < 255))
        if not len(inside):
            return {"spots": []}
        draw, width = self.py_random.uniform, mask.shape[1]
        spots = []
        for _ in range(self.py_random.randint(*self.count)):
            row, column = divmod(int(inside[self.py_random.randrange(len(inside))]), width)
            radii = (draw(*self.radius) * width, draw(*self.radius) * width)
            spots.append((row, column, radii, draw(*self.strength), draw(120, 235)))
        return {"spots": spots}

    def apply(self, img: Pixels, *, spots: Sequence[Any], **_: Any) -> Pixels:
        if not spots:
            return img
        height, width = img.shape[:2]
        changed = img.reshape(height, width, -1).astype(np.float32)
        for row, column, (down, across), strength, grey in spots:
            rows = np.exp(-(((np.arange(height, dtype=np.float32) - row) / down) ** 2))
            columns = np.exp(-(((np.arange(width, dtype=np.float32) - column) / across) ** 2))
            share = (strength * rows[:, None] * columns[None, :])[:, :, None]
            changed += share * np.maximum(grey - changed, 0)
        return (changed + 0.5).astype(np.uint8).reshape(img.shape)

    def apply_to_mask(self, mask: Pixels, **_: Any) -> Pixels:
        return mask


class BurntInText(A.ImageOnlyTransform):
    """Writes letters into an image near its edges, such as the marker of a side.

    Args:
        count: Range of the number of words.
    """

    _WORDS = ("R", "L", "AP", "PA", "PORTABLE", "SUPINE", "ERECT", "R DR", "12:40", "2017", "MOBILE AP", "+")

    def __init__(self, *, count: tuple[int, int], p: float = 0.5) -> None:
        super().__init__(p=p)
        self.count = count

    def get_params(self) -> dict[str, Any]:
        random = self.py_random
        words = [
            (random.choice(self._WORDS), random.random(), random.random(), random.uniform(0.5, 1.6), random.random())
            for _ in range(random.randint(*self.count))
        ]
        return {"words": words}

    def apply(self, img: Pixels, *, words: Sequence[Any], **_: Any) -> Pixels:
        drawn = np.ascontiguousarray(img).copy()
        for word, across, down, scale, tone in words:
            write_text(drawn, word, across=across, down=down, scale=scale, grey=255 if tone < 0.8 else 0)
        return drawn.reshape(img.shape)
