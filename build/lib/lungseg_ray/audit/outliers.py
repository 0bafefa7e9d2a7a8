"""Detection of images that differ from the rest of their corpus, with the figures in which they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lungseg_ray.audit.facts import ImageFacts

FAR = 3.5
"""A value is an outlier if its modified z-score is at least this far from 0 (Iglewicz and Hoaglin, 1993)."""
MOST = 15
"""At most this number of images is returned unless the caller asks for another."""
_ALIKE = 4
"""At most this number of images is returned for the same reason."""

Figure = Callable[[ImageFacts], float | None]
"""A function that returns one figure of an image, or None if the image does not have it."""


@dataclass(frozen=True)
class Reason:
    """A figure in which an image is far from the rest of the corpus.

    Attributes:
        name: The name of the figure.
        value: The figure of the image.
        median: The median of the figure over all images.
        score: The modified z-score of the image's figure; see `z_scores`.
    """

    name: str
    value: float
    median: float
    score: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g}, median {self.median:.3g} (z {self.score:+.1f})"


@dataclass(frozen=True)
class Outlier:
    """An image that differs from the rest of the corpus, with the reasons.

    Attributes:
        image: The image.
        reasons: First the figure in which the image is farthest from the rest, then the others in which it is an
            outlier (`FAR`).
    """

    image: ImageFacts
    reasons: Sequence[Reason]


def find_outliers(images: Sequence[ImageFacts], names: Sequence[str], *, most: int = MOST) -> list[Outlier]:
    """Finds the images that are farthest from the rest of the corpus, and at most a few for each reason.

    The result holds the farthest images even if none of their scores reaches `FAR`.

    Args:
        images: All images of the corpus, with and without a mask.
        names: The names of the labels, from label 1 on.
        most: Largest number of images to return.

    Returns:
        The images, the farthest first.
    """
    reasons: list[list[Reason]] = [[] for _ in images]
    for name, figure in _figures(names):
        values = np.array([math.nan if (value := figure(one)) is None else value for one in images], np.float64)
        scores = z_scores(values)
        median = float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan
        for number in np.flatnonzero(np.abs(scores) > 0):
            reasons[number].append(Reason(name, float(values[number]), median, float(scores[number])))
    far = []
    for image, found in zip(images, reasons, strict=True):
        found.sort(key=lambda one: -abs(one.score))
        if found:
            far.append(Outlier(image, [found[0], *(one for one in found[1:] if abs(one.score) >= FAR)]))
    far.sort(key=lambda one: -abs(one.reasons[0].score))
    shown: Counter[str] = Counter()
    chosen = []
    for one in far:
        shown[one.reasons[0].name] += 1
        if shown[one.reasons[0].name] <= _ALIKE:
            chosen.append(one)
    return chosen[:most]


def z_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes modified z-scores: distances from the median in units of the scaled median absolute deviation.

    If most values are equal, so that this deviation is 0, the scaled mean absolute deviation is used instead. If all
    values are equal, the scores are 0.

    Args:
        values: (N,) float64; NaN where there is no value.

    Returns:
        (N,) float64; NaN where there is no value.
    """
    if not np.isfinite(values).any():
        return values
    away = values - np.nanmedian(values)
    scale = 1.4826 * np.nanmedian(np.abs(away)) or 1.2533 * np.nanmean(np.abs(away)) or math.inf
    return np.asarray(away / scale, np.float64)


def _figures(names: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    yield "mean intensity", lambda one: one.mean
    yield "contrast", lambda one: one.std
    yield "width / height", lambda one: one.width / one.height
    for name in names:
        for title, key in (("share of", "share"), ("parts of", "parts"), ("left share of", "left")):
            yield f"{title} {name}", _of_label(name, key)


def _of_label(name: str, key: str) -> Figure:
    def value(one: ImageFacts) -> float | None:
        return getattr(one.labels[name], key) if name in one.labels else None

    return value
