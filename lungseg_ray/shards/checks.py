"""Checks of all images and masks while their shards are written, and the warnings that follow from them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from lungseg_ray.audit.duplicates import find_duplicates
from lungseg_ray.audit.facts import HASHED_SIDE, perceptual_hash
from lungseg_ray.audit.outliers import z_scores
from lungseg_ray.corpus.plausible import Appearance, AppearanceTally, appearance, foreground
from lungseg_ray.corpus.record import SPLITS, Record, Sample
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
    def of(cls, fields: Mapping[str, Any]) -> Check:
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


class CheckTally:
    """Collects what the warnings need of the checks of all images that are used."""

    def __init__(self) -> None:
        self._looks = AppearanceTally()
        self._splits: Counter[str | None] = Counter()
        self._placed: list[str] = []
        self._rows, self._columns = array("d"), array("d")
        self._compared: list[Check] = []

    def add(self, check: Check) -> None:
        """Adds an image."""
        self._looks.add(check.look)
        self._splits[check.split] += 1
        if check.row is not None and check.column is not None:
            self._placed.append(check.image_id)
            self._rows.append(check.row)
            self._columns.append(check.column)
        if self._splits.total() <= _MOST_COMPARED:
            self._compared.append(check)
        else:
            self._compared.clear()

    def warnings(self, *, structure: str) -> list[str]:
        """Returns what the user should check, as sentences.

        Args:
            structure: The name of what is marked.
        """
        found = self._looks.warnings()
        if elsewhere := self._elsewhere():
            found.append(
                f"{_few(elsewhere)} {'has its' if len(elsewhere) == 1 else 'have their'} {structure} elsewhere than "
                "the others: look whether image and mask belong together, and whether one of them is turned."
            )
        pairs = [pair for pair in find_duplicates(self._compared) if pair.crosses_split and pair.bits is not None]
        if pairs:
            few = "; ".join(f"{pair.first.image_id} and {pair.second.image_id}" for pair in pairs[:3])
            few += "; ..." if len(pairs) > 3 else ""
            found.append(
                f"{counted(len(pairs), 'pair')} of images in different splits look alike ({few}). If they are of one "
                "patient, the figures are too good: say whose they are with --corpus.patients, or a table. --audit "
                "shows all of them."
            )
        for split in SPLITS[1:]:
            if 0 < self._splits[split] < _FEWEST_MEASURED:
                found.append(
                    f"The split {split} has {counted(self._splits[split], 'image')}, too few for figures that mean "
                    f"something: raise --corpus.split.{split}, or give more images."
                )
        return found

    def _elsewhere(self) -> list[str]:
        if len(self._placed) < _FEWEST_COMPARED:
            return []
        far = np.zeros(len(self._placed), np.bool_)
        for values in (np.asarray(self._rows), np.asarray(self._columns)):
            far |= (np.abs(values - np.median(values)) > _ELSEWHERE) & (np.abs(z_scores(values)) > _FAR)
        return [self._placed[number] for number in np.flatnonzero(far)]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
