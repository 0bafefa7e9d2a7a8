"""Writes masks as annotations that people can correct: of LabelMe, or of COCO, which CVAT and others import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from lungseg_ray.imaging import Pixels

Polygon = list[tuple[float, float]]
_TOLERANCE = 0.75
"""The largest distance in pixels of a polygon from the outline that it stands for."""


@dataclass(frozen=True)
class Annotated:
    """A mask and the image that it belongs to.

    Attributes:
        file: The name of the image file in the folder of images.
        labels: (H, W) uint8; label 0 is the background.
    """

    file: str
    labels: Pixels


def polygons(mask: Pixels) -> list[Polygon]:
    """Returns the outer outlines of a mask as polygons; holes are filled.

    Args:
        mask: (H, W) uint8, 0 or more.

    Returns:
        For each component the points (x, y), where the upper left corner of the image is (0, 0) and pixels have a side
        of 1.
    """
    # The outline goes through the centres of the outermost pixels. At twice the size, these are a quarter of a pixel
    # farther out than the centres of the pixels of the mask.
    double = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    lines, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    simple = ((cv2.approxPolyDP(line, 2 * _TOLERANCE, closed=True), line) for line in lines)
    # A component of a few pixels would become a line.
    kept = (short if len(short) > 2 else line for short, line in simple)
    return [[((x + 0.5) / 2, (y + 0.5) / 2) for x, y in line[:, 0].tolist()] for line in kept]


def labelme(one: Annotated, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the content of the JSON file of an image in the format of LabelMe.

    Args:
        one: The mask.
        class_names: The names of the labels from 1 on.
    """
    height, width = one.labels.shape
    shapes: list[dict[str, Any]] = [
        {"label": class_names[label - 1], "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
        for label, points in _shapes(one, len(class_names))
    ]
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        # LabelMe looks for it from the folder of the JSON file on.
        "imagePath": one.file.rpartition("/")[2],
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def coco_shapes(one: Annotated, count: int, *, as_runs: bool = False) -> list[dict[str, Any]]:
    """Returns the annotations of an image in the format of COCO, without their ids and without that of the image.

    Args:
        one: The mask.
        count: The number of labels.
        as_runs: Whether to write each label as one mask, as compressed run lengths, which keep holes, instead of
            polygons, which do not.
    """
    if as_runs:
        masks = [(label, one.labels == label) for label in range(1, count + 1)]
        return [{"category_id": label, **_runs(mask), "iscrowd": 0} for label, mask in masks if mask.any()]
    found = []
    for label, points in _shapes(one, count):
        across, down = zip(*points, strict=True)
        left, top = min(across), min(down)
        found.append(
            {
                "category_id": label,
                "segmentation": [[value for point in points for value in point]],
                "area": _area(points),
                "bbox": [left, top, max(across) - left, max(down) - top],
                "iscrowd": 0,
            }
        )
    return found


def _runs(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
    }


def _shapes(one: Annotated, count: int) -> list[tuple[int, Polygon]]:
    """Returns all polygons with their labels, the largest first, since a later one covers those that it lies in."""
    found = [
        (label, points) for label in range(1, count + 1) for points in polygons((one.labels == label).astype(np.uint8))
    ]
    return sorted(found, key=lambda shape: -_area(shape[1]))


def _area(points: Polygon) -> float:
    return float(cv2.contourArea(np.array(points, np.float32)))
