"""Measures of the structures on a label map: areas, extents, symmetry, and the cardiothoracic ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def measure(
    labels: Labels, class_names: Sequence[str], spacing: tuple[float, float] | None = None
) -> dict[str, float | None]:
    """Measures a label map of a frontal chest X-ray, which shows the patient's right side on the left.

    - `<label>_area_px`, `<label>_area_mm2`: the area of each label.
    - `right_lung_*`, `left_lung_*`: the area, and `height`, the rows from the top to the bottom of a lung. With labels
      whose names contain left or right, these; otherwise the two largest components of the label `lung`.
    - `lung_symmetry`: the area of the smaller lung through that of the larger one, 0 to 1.
    - `thoracic_width`: the largest distance in a row between the outer borders of both lungs; a row needs both.
    - `cardiac_width`: the columns from the left to the right border of the label `heart`.
    - `cardiothoracic_ratio`: the cardiac width through the thoracic width.

    Args:
        labels: (H, W) uint8; label 0 is the background.
        class_names: The names of the labels from 1 on.
        spacing: Height and width of a pixel, millimetres; None if they are not known.

    Returns:
        The values by name: those with `_px` in pixels, those with `_mm` or `_mm2` in millimetres or their square, which
        are None without spacing. None, too, for what is not found in the image.
    """
    down, across = spacing or (None, None)
    area = down * across if down and across else None
    masks = {name: labels == label for label, name in enumerate(class_names, start=1)}
    found: dict[str, float | None] = {}

    def add(name: str, value: float | None, unit: float | None, power: str = "") -> None:
        found[f"{name}_px"] = value
        found[f"{name}_mm{power}"] = None if value is None or unit is None else value * unit

    for name, mask in masks.items():
        add(f"{_key(name)}_area", int(mask.sum()), area, "2")
    lungs = _lungs(masks)
    if lungs:
        for side, mask in zip(("right", "left"), lungs, strict=True):
            add(f"{side}_lung_area", int(mask.sum()) if mask.any() else None, area, "2")
            add(f"{side}_lung_height", _extent(mask, axis=1), down)
        smaller, larger = sorted(int(mask.sum()) for mask in lungs)
        found["lung_symmetry"] = smaller / larger if larger else None
        thorax = _thoracic_width(*lungs)
        add("thoracic_width", thorax, across)
        for heart in (mask for name, mask in masks.items() if _key(name) == "heart"):
            width = _extent(heart, axis=0)
            add("cardiac_width", width, across)
            found["cardiothoracic_ratio"] = width / thorax if width and thorax else None
    return found


def _key(name: str) -> str:
    return name.lower().replace(" ", "_")


def _lungs(masks: dict[str, Mask]) -> tuple[Mask, Mask] | None:
    """Returns the right and the left lung; None if no label is one."""
    lungs = {name: mask for name, mask in masks.items() if "lung" in name.lower()}
    sides = [next((mask for name, mask in lungs.items() if side in name.lower()), None) for side in ("right", "left")]
    if sides[0] is not None and sides[1] is not None:
        return sides[0], sides[1]
    if not lungs:
        return None
    whole = np.logical_or.reduce(list(lungs.values()))
    parts, count = ndimage.label(whole)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    largest = [parts == number + 1 for number in np.argsort(-sizes, kind="stable")[:2]]
    # The patient's right lung is on the left of the image. A lung alone has the side of the image that it is on.
    largest.sort(key=_middle)
    none = np.zeros_like(whole)
    if not largest:
        return none, none
    if len(largest) == 1:
        on_left = _middle(largest[0]) < whole.shape[1] / 2
        return (largest[0], none) if on_left else (none, largest[0])
    return largest[0], largest[1]


def _middle(mask: Mask) -> float:
    return float(np.flatnonzero(mask.any(axis=0)).mean())


def _extent(mask: Mask, *, axis: int) -> float | None:
    """Returns the length of a mask across an axis, pixels; None if it is empty."""
    places = np.flatnonzero(mask.any(axis=axis))
    return float(places[-1] - places[0] + 1) if len(places) else None


def _thoracic_width(right: Mask, left: Mask) -> float | None:
    """Returns the largest distance between the outer borders of two lungs in a row, pixels."""
    rows = np.flatnonzero(right.any(axis=1) & left.any(axis=1))
    if not len(rows):
        return None
    both = right[rows] | left[rows]
    first = both.argmax(axis=1)
    last = both.shape[1] - 1 - both[:, ::-1].argmax(axis=1)
    return float((last - first + 1).max())
