"""Whether images and masks look as if they were what is meant: not black, not inverted, not outlines of areas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from lungseg_ray.corpus.record import Sample
from lungseg_ray.imaging import Pixels, limited, resize_area
from lungseg_ray.numerics.labels import IGNORE_LABEL

_DARK = 0.2
"""A picture whose 99th percentile is below this (0 to 1) is called almost black."""
_STEP = 4
"""One in so many rows and columns of a picture is enough to see whether it is black."""
SIDE = 256
"""Images and masks are looked at with this length of their longer side, pixels, so that checks cost little."""


@dataclass(frozen=True)
class Appearance:
    """How an image and its mask look.

    Attributes:
        image_id: The id of the image.
        flat: Whether all pixels of the image have one value.
        dark: Whether the image is almost black, but not flat.
        empty: Whether the mask marks nothing.
        inverted: Whether the mask marks most of the image and its whole border.
        outline: Whether the mask marks lines around areas that it does not mark.
    """

    image_id: str
    flat: bool
    dark: bool
    empty: bool
    inverted: bool
    outline: bool


def foreground(sample: Sample) -> Pixels:
    """Returns what a mask marks, with any label, at a small size.

    Args:
        sample: The image and its mask.

    Returns:
        (H, W) uint8 of 0 and 1, with at most 256 rows and columns. A pixel is marked if any of those that it stands for
        is, so that thin lines stay whole.
    """
    marked = cv2.inRange(sample.mask, np.array(1), np.array(IGNORE_LABEL - 1))
    return (resize_area(marked, *limited(*marked.shape, longer_side=SIDE)) > 0).astype(np.uint8)


def appearance(image_id: str, sample: Sample, mask: Pixels) -> Appearance:
    """Looks at an image and its mask.

    Args:
        image_id: The id of the image.
        sample: The image and its mask.
        mask: The `foreground` of the sample.

    Returns:
        How they look.
    """
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    inverted = bool(border.mean() > 0.8 and mask.mean() > 0.5)
    some = sample.image[::_STEP, ::_STEP]
    flat = bool((some == some[:1, :1]).all())
    return Appearance(
        image_id=image_id,
        flat=flat,
        dark=not flat and float((some >= _DARK * 255).mean()) < 0.01,
        empty=not mask.any(),
        inverted=inverted,
        outline=not inverted and _is_outline(mask),
    )


_WARNINGS: Sequence[tuple[tuple[str, str], Callable[[Appearance], bool], str]] = (
    (
        ("image has", "images have"),
        lambda one: one.flat,
        "the same value in all pixels. If they are colour files whose first channel is empty, read all of them "
        "(--corpus.channels 3); a picture in the alpha channel is not read, save it as a grey one.",
    ),
    (
        ("image is", "images are"),
        lambda one: one.dark,
        "almost black. If white is less than the largest value of a file, set --corpus.white to it.",
    ),
    (
        ("mask marks", "masks mark"),
        lambda one: one.inverted,
        "most of their image and its whole border, so that they seem to be inverted. If they are, exchange the labels, "
        'for masks of 0 and 255 with --corpus.mask_values \'{"0": 1, "255": 0}\'; invert lossy masks themselves.',
    ),
    (
        ("mask is", "masks are"),
        lambda one: one.outline,
        "lines around areas that are not marked. Expected areas: fill them first.",
    ),
)


class AppearanceTally:
    """Counts how images look, and keeps the ids of a few."""

    def __init__(self) -> None:
        self._looked_at = 0
        self._counts = [0] * len(_WARNINGS)
        self._few: list[list[str]] = [[] for _ in _WARNINGS]

    def add(self, look: Appearance) -> None:
        """Adds an image."""
        self._looked_at += 1
        for number, (_, holds, _) in enumerate(_WARNINGS):
            if holds(look):
                self._counts[number] += 1
                if len(self._few[number]) < 3:
                    self._few[number].append(look.image_id)

    def warnings(self) -> list[str]:
        """Returns what the user should check, as sentences."""
        found = []
        for (what, _, text), count, few in zip(_WARNINGS, self._counts, self._few, strict=True):
            if count:
                names = ", ".join(few) + (", ..." if count > len(few) else "")
                found.append(f"Of {self._looked_at} looked at, {count} {what[count > 1]} ({names}) {text}")
        return found


def _is_outline(mask: Pixels) -> bool:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return bool(mask.any()) and int(filled.sum()) > 2.5 * int(mask.sum())
