"""Compares the images of a corpus with those that a model was trained on, by figures of each image and its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lungseg_ray.audit.facts import ImageFacts, LabelFacts, Pixels, intensity, measure_label
from lungseg_ray.corpus.record import Sample

Figures = dict[str, float]
"""The figures of an image by name; one that it does not have, such as the spacing of its pixels, is missing."""

LARGE, UNLIKELY = 0.8, 1e-3
"""A figure has shifted if the means differ by this number of standard deviations, "large" in the words of Cohen
(Statistical Power Analysis, 1988), and if the test of Kolmogorov and Smirnov gives a smaller probability than this."""
_FEWEST = 8
"""The smallest number of images with a figure, in both sets, for which it is compared."""
_IMAGE = {
    "mean": ("mean intensity", "brighter", "darker"),
    "std": ("contrast (standard deviation of the intensity)", "of more contrast", "of less contrast"),
    "low": ("1st percentile of the intensity", "brighter in their darkest parts", "darker in their darkest parts"),
    "high": (
        "99th percentile of the intensity",
        "brighter in their brightest parts",
        "darker in their brightest parts",
    ),
    "black": ("share of black pixels", "with more black", "with less black"),
    "white": ("share of white pixels", "with more white", "with less white"),
    "aspect": ("width through height", "wider", "narrower"),
    "longer_side": ("longer side of the file, px", "larger", "smaller"),
    "spacing": ("pixel spacing, mm", "of coarser pixels", "of finer pixels"),
}
_MASK = {
    "share": ("share of the image", "larger", "smaller"),
    "row": ("centre from the top, 0 to 1", "lower in the image", "higher in the image"),
    "column": ("centre from the left, 0 to 1", "further right", "further left"),
    "ratio": ("second largest part through the largest", "of more equal parts", "of less equal parts"),
}
"""For each figure what it is, and what a larger and a smaller value mean."""


@dataclass(frozen=True)
class Shift:
    """A figure that differs between the training images and those of a corpus.

    Attributes:
        figure: What it is, with its unit.
        before: Its values for the training images.
        now: Its values for the images of the corpus.
        effect: The difference of the means in standard deviations, positive where the corpus has larger values.
        meaning: What that means, as `images are darker`.
    """

    figure: str
    before: Sequence[float]
    now: Sequence[float]
    effect: float
    meaning: str

    def __str__(self) -> str:
        before, now = ([float(np.mean(values)), float(np.std(values))] for values in (self.before, self.now))
        return (
            f"{self.meaning} than those of training: {self.figure} {now[0]:.3g} ± {now[1]:.2g} here, "
            f"{before[0]:.3g} ± {before[1]:.2g} there."
        )


@dataclass(frozen=True)
class Drift:
    """How a corpus differs from the shards that a model was trained on.

    Attributes:
        shards: The folder of the shards, for the reader.
        images: The number of training images that were compared.
        figures: The number of figures that were compared; 0 if one of the sets has too few images.
        shifts: The figures that differ, the largest difference first.
        examples: Some of the training images with the outlines of their masks, (H, W, 3) uint8 RGB.
    """

    shards: str
    images: int
    figures: int
    shifts: Sequence[Shift]
    examples: Sequence[Pixels]


def figures(one: ImageFacts) -> Figures:
    """Returns the figures of an audited image.

    Args:
        one: The image.
    """
    exposure = {name: getattr(one, name) for name in ("mean", "std", "low", "high", "black", "white")}
    return exposure | _sizes(one.height, one.width, one.spacing) | _of_masks(one.labels)


def figures_of_sample(sample: Sample, class_names: Sequence[str]) -> Figures:
    """Returns the figures of an image of shards.

    Args:
        sample: The image with its mask.
        class_names: The names of the labels, from label 1 on.
    """
    exposure = {name: value for name, value in intensity(sample.image).items() if name in _IMAGE}
    labels = {name: measure_label(sample.mask, label) for label, name in enumerate(class_names, start=1)}
    sizes = _sizes(sample.source_height, sample.source_width, sample.spacing)
    return exposure | sizes | _of_masks(labels)


def compared_figures(before: Sequence[Figures], now: Sequence[Figures]) -> list[str]:
    """Returns the names of the figures that enough images of two sets have.

    Args:
        before: The figures of the training images.
        now: The figures of the images of the corpus.
    """
    names = dict.fromkeys(name for one in now for name in one)
    return [name for name in names if all(sum(name in one for one in some) >= _FEWEST for some in (before, now))]


def find_shifts(before: Sequence[Figures], now: Sequence[Figures]) -> list[Shift]:
    """Finds the figures that differ between two sets of images.

    Args:
        before: The figures of the training images.
        now: The figures of the images of the corpus.

    Returns:
        Those that have shifted, the largest difference first.
    """
    found = []
    for name in compared_figures(before, now):
        pair = [np.array([one[name] for one in images if name in one]) for images in (before, now)]
        spread = float(np.sqrt(np.mean([values.var() for values in pair])))
        difference = float(pair[1].mean() - pair[0].mean())
        # A figure that is always the same has no spread, and any other value is far from it.
        effect = difference / spread if spread else float(np.sign(difference)) * np.inf
        if abs(effect) >= LARGE and stats.ks_2samp(*pair).pvalue < UNLIKELY:
            what, meaning = _words(name, larger=effect > 0)
            found.append(Shift(what, pair[0].tolist(), pair[1].tolist(), effect, meaning))
    return sorted(found, key=lambda shift: -abs(shift.effect))


def _sizes(height: int, width: int, spacing: tuple[float, float] | None) -> Figures:
    sizes = {"aspect": width / height, "longer_side": float(max(height, width))}
    return sizes | ({"spacing": spacing[0]} if spacing else {})


def _of_masks(labels: Mapping[str, LabelFacts]) -> Figures:
    return {
        f"{key} of {name}": float(value)
        for name, facts in labels.items()
        for key in _MASK
        if (value := getattr(facts, key)) is not None
    }


def _words(name: str, *, larger: bool) -> tuple[str, str]:
    """Returns what a figure is, and what its shift means."""
    key, _, label = name.partition(" of ")
    what, more, less = _MASK[key] if label else _IMAGE[key]
    meaning = more if larger else less
    return (f"{label}: {what}", f"masks of {label} are {meaning}") if label else (what, f"images are {meaning}")
