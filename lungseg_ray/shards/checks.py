"""Checks of all images and masks while their shards are written, and the warnings that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from lungseg_ray.audit.duplicates import find_duplicates
from lungseg_ray.audit.facts import HASHED_SIDE, perceptual_hash
from lungseg_ray.audit.outliers import z_scores
from lungseg_ray.corpus.plausible import Appearance, appearance, appearance_warnings, foreground
from lungseg_ray.corpus.read import Sample
from lungseg_ray.corpus.record import SPLITS, Record
from lungseg_ray.imaging import resize_area
from lungseg_ray.text import counted

_MOST_COMPARED = 100_000
"""With more images, those that look alike are not searched for, which would take longer than the shards."""
_ELSEWHERE, _FAR = 0.2, 6.0
"""A mask lies elsewhere if its centre is away from the median by this share of the image, and by this z-score."""
_FEWEST_COMPARED = 10
"""Places of masks are compared from this number of images on."""
_FEWEST_MEASURED = 5
"""With fewer images of a split than this, its figures are warned of."""


@dataclass(frozen=True)
class Check:
    """What is kept of an image and its mask for the warnings.

    Attributes:
        image_id: As in `Record`.
        split: As in `Record`.
        image_sha256: As in `Sample`.
        phash: The perceptual hash of the image, as in `ImageFacts`.
        row: Vertical position of the centroid of what is marked, 0 to 1; None if nothing is.
        column: Horizontal position of the centroid of what is marked, 0 to 1; None if nothing is.
        look: How the image and its mask look.
    """

    image_id: str
    split: str | None
    image_sha256: str
    phash: str
    row: float | None
    column: float | None
    look: Appearance

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Check:
        """Builds a check from its `asdict`."""
        return cls(**{**fields, "look": Appearance(**fields["look"])})


def check(record: Record, sample: Sample) -> Check:
    """Measures an image and its mask.

    Args:
        record: The record of the image.
        sample: The image and its mask.

    Returns:
        What the warnings need to know.
    """
    mask = foreground(sample)
    moments = cv2.moments(mask, binaryImage=True)
    area = moments["m00"]
    return Check(
        image_id=record.image_id,
        split=record.split,
        image_sha256=sample.image_sha256,
        phash=perceptual_hash(
            resize_area(sample.image, HASHED_SIDE, HASHED_SIDE).reshape(HASHED_SIDE, HASHED_SIDE, -1)
        ),
        row=(moments["m01"] / area + 0.5) / mask.shape[0] if area else None,
        column=(moments["m10"] / area + 0.5) / mask.shape[1] if area else None,
        look=appearance(record.image_id, sample, mask),
    )


def check_warnings(checks: Sequence[Check], *, structure: str) -> list[str]:
    """Returns what the user should check, as sentences.

    Args:
        checks: The checks of all images that are used.
        structure: The name of what is marked.
    """
    found = appearance_warnings([one.look for one in checks])
    if elsewhere := _elsewhere(checks):
        found.append(
            f"{_few(elsewhere)} {'has its' if len(elsewhere) == 1 else 'have their'} {structure} elsewhere than the "
            "others: look whether image and mask belong together, and whether one of them is turned."
        )
    if len(checks) <= _MOST_COMPARED:
        pairs = [pair for pair in find_duplicates(checks) if pair.crosses_split and pair.bits is not None]
        if pairs:
            few = "; ".join(f"{pair.first.image_id} and {pair.second.image_id}" for pair in pairs[:3])
            few += "; ..." if len(pairs) > 3 else ""
            found.append(
                f"{counted(len(pairs), 'pair')} of images in different splits look alike ({few}). If they are of one "
                "patient, the figures are too good: say whose they are with --corpus.patients, or a table. --audit "
                "shows all of them."
            )
    for split in SPLITS[1:]:
        number = sum(one.split == split for one in checks)
        if 0 < number < _FEWEST_MEASURED:
            found.append(
                f"The split {split} has {counted(number, 'image')}, too few for figures that mean something: raise "
                f"--corpus.split.{split}, or give more images."
            )
    return found


def _elsewhere(checks: Sequence[Check]) -> list[str]:
    placed = [one for one in checks if one.row is not None and one.column is not None]
    if len(placed) < _FEWEST_COMPARED:
        return []
    far = np.zeros(len(placed), np.bool_)
    for values in (np.array([one.row for one in placed], float), np.array([one.column for one in placed], float)):
        far |= (np.abs(values - np.median(values)) > _ELSEWHERE) & (np.abs(z_scores(values)) > _FAR)
    return [one.image_id for one, is_far in zip(placed, far, strict=True) if is_far]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
