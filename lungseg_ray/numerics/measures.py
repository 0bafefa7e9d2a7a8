"""Measures of the structures on a label map: areas, extents, symmetry, and the cardiothoracic ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


_LUNGS = ("lung", "lungs")
_SIDES = {"right": ("right lung", "lung right"), "left": ("left lung", "lung left")}
_HEART = "heart"
_SPECK = 0.05
"""Components with less than this share of the pixels of the largest one are left out where extents are measured."""
Value = int | float | None


def measure(labels: Labels, class_names: Sequence[str], spacing: tuple[float, float] | None = None) -> dict[str, Value]:
    """Measures a label map of a frontal chest X-ray, which shows the patient's right side on the left.

    - `<label>_area`: the pixels of each label, 0 where there are none.
    - `right_lung_area`, `left_lung_area`: of the labels `right lung` and `left lung`; without such labels, of the two
      largest components of the label `lung`.
    - `right_lung_height`, `left_lung_height`: the rows from the top to the bottom of a lung.
    - `lung_symmetry`: the area of the smaller lung through that of the larger one, 0 to 1; None where one is not found.
    - `thoracic_width`: the largest distance in a row between the outer borders of both lungs; a row needs both.
    - `cardiac_width`: the columns from the left to the right border of the label `heart`.
    - `cardiothoracic_ratio`: the cardiac width through the thoracic width.

    Components of less than a twentieth of the largest one are left out of all but the areas of labels.

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
    masks = {_plain(name): labels == label for label, name in enumerate(class_names, start=1)}
    found: dict[str, Value] = {}

    def add(name: str, value: int | None, unit: float | None, power: str = "") -> None:
        found.setdefault(f"{name}_px", value)
        found.setdefault(f"{name}_mm{power}", None if value is None or unit is None else value * unit)

    for name, mask in masks.items():
        add(f"{name.replace(' ', '_')}_area", int(mask.sum()), area, "2")
    lungs = _lungs(masks)
    if lungs:
        areas = [int(mask.sum()) for mask in lungs]
        for side, mask, pixels in zip(_SIDES, lungs, areas, strict=True):
            add(f"{side}_lung_area", pixels or None, area, "2")
            add(f"{side}_lung_height", _extent(mask, axis=1), down)
        found["lung_symmetry"] = min(areas) / max(areas) if min(areas) else None
        thorax = _thoracic_width(*lungs)
        add("thoracic_width", thorax, across)
        if _HEART in masks:
            width = _extent(_without_specks(masks[_HEART]), axis=0)
            add("cardiac_width", width, across)
            found["cardiothoracic_ratio"] = width / thorax if width and thorax else None
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()


def _lungs(masks: dict[str, Mask]) -> tuple[Mask, Mask] | None:
    """Returns the right and the left lung; None if no label is one."""
    none = np.zeros_like(next(iter(masks.values()))) if masks else None
    sides = {side: next((masks[name] for name in names if name in masks), None) for side, names in _SIDES.items()}
    if none is None:
        return None
    if any(mask is not None for mask in sides.values()):
        right, left = (none if mask is None else _without_specks(mask) for mask in sides.values())
        return right, left
    whole = next((masks[name] for name in _LUNGS if name in masks), None)
    if whole is None:
        return None
    # The patient's right lung is on the left of the image. A lung alone has the side of the image that it is on.
    largest = sorted(_components(whole)[:2], key=_middle)
    if len(largest) == 2:
        return largest[0], largest[1]
    if not largest:
        return none, none
    return (largest[0], none) if _middle(largest[0]) < whole.shape[1] / 2 else (none, largest[0])


def _components(mask: Mask) -> list[Mask]:
    """Returns the components of a mask that are no specks, the largest first."""
    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    return [parts == number + 1 for number in order if sizes[number] >= _SPECK * sizes[order[0]]]


def _without_specks(mask: Mask) -> Mask:
    parts = _components(mask)
    return np.logical_or.reduce(parts) if parts else mask


def _middle(mask: Mask) -> float:
    return float(np.flatnonzero(mask.any(axis=0)).mean())


def _extent(mask: Mask, *, axis: int) -> int | None:
    """Returns the length of a mask across an axis, pixels; None if it is empty."""
    places = np.flatnonzero(mask.any(axis=axis))
    return int(places[-1] - places[0] + 1) if len(places) else None


def _thoracic_width(right: Mask, left: Mask) -> int | None:
    """Returns the largest distance between the outer borders of two lungs in a row, pixels."""
    rows = np.flatnonzero(right.any(axis=1) & left.any(axis=1))
    if not len(rows):
        return None
    both = right[rows] | left[rows]
    first = both.argmax(axis=1)
    last = both.shape[1] - 1 - both[:, ::-1].argmax(axis=1)
    return int((last - first + 1).max())
