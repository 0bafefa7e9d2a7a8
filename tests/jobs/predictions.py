"""Folders as jobs/predict.py leaves them, without a model."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

COLUMNS = [
    "image",
    "status",
    "reason",
    "share_lung",
    "expected_dice",
    "expected_low",
    "expected_high",
    "unlike",
    "doubt",
]


def write_prediction(
    folder: Path, masks: Mapping[str, NDArray[np.uint8]], *, doubts: Mapping[str, tuple[float, bool]] | None = None
) -> Path:
    """Writes what was predicted of the images in `folder / "images"`.

    Args:
        folder: the folder; the prediction is its folder `out`.
        masks: the mask of each image by its name, 0 and 1.
        doubts: the expected Dice of each image, and whether it is unlike those of training.
    """
    out = folder / "out"
    rows: list[list[Any]] = []
    for name, mask in masks.items():
        place = out / "masks" / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(cv2.imencode(".png", mask * 255)[1].tobytes())
        expected, unlike = (doubts or {}).get(name, (0.9, False))
        doubt = "the image is unlike those of training" if unlike else ""
        rows.append([name, "done", "", mask.mean(), expected, expected - 0.05, expected + 0.03, float(unlike), doubt])
    rows.append(["e.png", "set aside", "unreadable: no image", "", "", "", "", "", ""])
    with (out / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    (out / "model.json").write_text(json.dumps({"images": str(folder / "images"), "weights_sha256": "ab" * 32}))
    return out
