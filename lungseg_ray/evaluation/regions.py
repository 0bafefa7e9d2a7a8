"""Where predictions and masks differ: the excess of a prediction in nine regions around what the mask marks.

Two corpora may outline the same structure by different rules, such as with or without the lung behind the heart. A
model has learned the rules of its own corpus, so that on another one its excess in a region shows the difference.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lungseg_ray.run.summary import Evaluation, IntervalFigures

_ROWS = {"upper": (-np.inf, 1 / 3), "middle": (1 / 3, 2 / 3), "lower": (2 / 3, np.inf)}
_COLUMNS = {"left": (-np.inf, 0.35), "central": (0.35, 0.65), "right": (0.65, np.inf)}
"""The bounds of the regions, as shares of the bounding box of what the mask marks; the outer ones are open."""

REGIONS = tuple(f"{row}_{column}" for row in _ROWS for column in _COLUMNS)
"""The names of the regions, as they lie in the image."""

_ANATOMY = {
    "upper_central": "the trachea and the apices beside it",
    "middle_central": "the mediastinum and the hila",
    "lower_central": "the heart and the lung behind it",
    "lower_left": "the costophrenic angle",
    "lower_right": "the costophrenic angle",
    "upper_left": "the apex",
    "upper_right": "the apex",
}
"""What lies there in a frontal chest X-ray whose masks mark lungs."""

_LEAST = 0.005
"""A difference of the excess below this share of the marked area is not named."""


def region_excess(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Computes in each region how much more is predicted than marked.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.

    Returns:
        For each of `REGIONS`, the predicted minus the marked area there, as a share of the whole marked area; negative
        where less is predicted. NaN if nothing is marked.
    """
    if not truth.any():
        return dict.fromkeys(REGIONS, float("nan"))
    difference = prediction.astype(np.int8) - truth.astype(np.int8)
    places = []
    for axis, bounds in ((1, _ROWS), (0, _COLUMNS)):
        marked = np.flatnonzero(truth.any(axis=axis))
        first, last = int(marked[0]), int(marked[-1]) + 1
        shares = (np.arange(truth.shape[1 - axis]) + 0.5 - first) / (last - first)
        places.append([(low <= shares) & (shares < high) for low, high in bounds.values()])
    area = int(truth.sum())
    found = [int(difference[rows][:, columns].sum()) / area for rows in places[0] for columns in places[1]]
    return dict(zip(REGIONS, found, strict=True))


def describe_outlines(own: Evaluation, other: Evaluation, name: str) -> list[str]:
    """Says in which regions the masks of another corpus follow other rules than those of the model's own corpus.

    A region is named where the 95 % intervals of the excess on both corpora do not overlap and their means differ by
    0.5 % of the marked area or more.

    Args:
        own: The evaluation on the model's own corpus.
        other: That on the other one.
        name: The name of the other corpus.

    Returns:
        A sentence for each region, the largest difference first.
    """
    lungs = any("lung" in one for one in other.get("class_names", []))
    found = []
    for region in REGIONS:
        if not (region in own.get("regions", {}) and region in other.get("regions", {})):
            continue
        here, there = own["regions"][region], other["regions"][region]
        difference = there["mean"] - here["mean"]
        apart = there["low"] > here["high"] or there["high"] < here["low"]
        if apart and abs(difference) >= _LEAST:
            found.append((abs(difference), _sentence(region, difference, here, there, name, lungs=lungs)))
    return [text for _, text in sorted(found, reverse=True)]


def _sentence(
    region: str, difference: float, here: IntervalFigures, there: IntervalFigures, name: str, *, lungs: bool
) -> str:
    anatomy = f" ({_ANATOMY[region]})" if lungs and region in _ANATOMY else ""
    less = "less" if difference > 0 else "more"
    return (
        f"{name}: {region.replace('_', ' ')}{anatomy}: its masks contain {less} than the model has learned, by "
        f"{abs(difference):.1%} of their area ({there['mean']:+.1%} against {here['mean']:+.1%} on its own corpus)."
    )
