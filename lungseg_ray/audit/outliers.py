"""Images that are unlike the rest of their corpus, and in what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lungseg_ray.audit.facts import ImageFacts

FAR = 3.5
"""Modified z-score from which a value is an outlier (Iglewicz and Hoaglin, 1993)."""
MOST = 15
_ALIKE = 4
"""Images that are shown at most for the same reason."""

Figure = Callable[[ImageFacts], float | None]


@dataclass(frozen=True)
class Reason:
    """A figure in which an image is far from the rest.

    Attributes:
        name: of the figure.
        value: of the image.
        median: of all images.
        score: modified z-score.
    """

    name: str
    value: float
    median: float
    score: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g}, median {self.median:.3g} (z {self.score:+.1f})"


@dataclass(frozen=True)
class Outlier:
    """An image, the figure in which it is farthest from the rest, and others in which it is an outlier."""

    image: ImageFacts
    reasons: Sequence[Reason]


def find_outliers(images: Sequence[ImageFacts], names: Sequence[str], *, most: int = MOST) -> list[Outlier]:
    """The images that are farthest from the rest, the farthest first; a few for each reason.

    Args:
        images: with masks and without.
        names: of the labels from 1 on.
        most: how many.
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
    """Modified z-scores: distances from the median in units of the scaled median absolute deviation.

    Where most values are the same, so that this deviation is 0, the mean absolute deviation takes its place; where
    all are, scores are 0.

    Args:
        values: (N,); NaN where there is none.

    Returns:
        (N,); NaN where there is no value.
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
