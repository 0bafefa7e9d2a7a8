"""The figures of single images: how well a predicted label map agrees with the true one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lungseg_ray.config import EvaluateSettings
from lungseg_ray.corpus import SetAside
from lungseg_ray.errors import BadFileError
from lungseg_ray.evaluation.images import Images
from lungseg_ray.inference.predictor import Model
from lungseg_ray.numerics import metrics
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.shards.format import ShardRow


@dataclass(frozen=True)
class MeasureChunk:
    """Measures a chunk of images."""

    model: Model
    images: Images
    settings: EvaluateSettings

    def __call__(self, chunk: int, device: str) -> list[dict[str, Any]]:
        """The figures of each image of a chunk, or why it cannot be used."""
        model = self.model.load(device=device)
        first = chunk * self.settings.batch
        good: dict[int, ShardRow] = {}
        found: list[dict[str, Any]] = []
        for number in range(first, min(first + self.settings.batch, len(self.images))):
            try:
                good[number] = self.images.read(number)
            except BadFileError as error:
                image_id, uri = self.images.name(number)
                found.append({"bad": vars(SetAside(image_id, uri, error.reason, error.detail)), "number": number})
        maps = model([row.sample.image for row in good.values()]) if good else []
        for (number, row), probability in zip(good.items(), maps, strict=True):
            labels = model.labels(probability, threshold=self.settings.threshold)
            figures = measure_image(row, labels, model.sidecar.class_names, clean_up=self.settings.clean_up)
            found.append({**figures, "bad": None, "sha256": row.sample.image_sha256, "number": number})
        return found


def measure_image(
    row: ShardRow, prediction: npt.NDArray[np.uint8], class_names: Sequence[str], *, clean_up: bool
) -> dict[str, Any]:
    """The figures of one image, on the grid of its decoded pixels.

    Args:
        row: with the true mask (H, W).
        prediction: (H, W) uint8 labels.
        class_names: of the labels from 1 on.
        clean_up: also measure what is left of each label after `metrics.clean_up`.

    Returns:
        Columns of the per-image table: `dice`, `iou`, `hd95`, `assd` (means over the classes; distances in pixels of
        the source, and in mm as `hd95_mm`, `assd_mm` where its spacing is known), the same for each class where there
        are several, `empty` (classes with one side empty), and the pixel counts. Cleaned ones start with `clean_`.
    """
    sample = row.sample
    height, width = sample.mask.shape
    scale = (sample.source_height / height, sample.source_width / width)
    columns: dict[str, Any] = {
        **row.groups,
        "image_id": row.image_id,
        "patient_id": row.patient_id,
        "height": sample.source_height,
        "width": sample.source_width,
    }
    valid = sample.mask != IGNORE_LABEL
    versions = {"": prediction}
    if clean_up:
        versions["clean_"] = metrics.clean_up_labels(prediction, classes=len(class_names))
    for prefix, labels in versions.items():
        columns |= {
            f"{prefix}{key}": value
            for key, value in _compare(labels, sample.mask, valid, class_names, scale, sample.spacing).items()
        }
    return columns


def _compare(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    class_names: Sequence[str],
    scale: tuple[float, float],
    spacing: tuple[float, float] | None,
) -> dict[str, Any]:
    counts = metrics.confusion_counts(
        torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None], classes=max(len(class_names) + 1, 2)
    )
    by_class: list[dict[str, float]] = []
    empty = 0
    for label, _ in enumerate(class_names, start=1):
        pair = (prediction == label) & valid, (truth == label) & valid
        found = metrics.surface_distances(*pair, spacing=scale)
        figures = {
            "dice": float(metrics.dice(counts)[0, label - 1]),
            "iou": float(metrics.iou(counts)[0, label - 1]),
            "hd95": found.hd95,
            "assd": found.assd,
        }
        if spacing:
            pixel = (scale[0] * spacing[0], scale[1] * spacing[1])
            found = metrics.surface_distances(*pair, spacing=pixel)
            figures |= {"hd95_mm": found.hd95, "assd_mm": found.assd}
        empty += found.empty
        by_class.append(figures)
    columns: dict[str, Any] = {
        key: float(np.mean([figures[key] for figures in by_class])) for key in (by_class[0] if by_class else ())
    }
    columns["empty"] = empty
    several = len(class_names) > 1
    for label, (name, figures) in enumerate(zip(class_names, by_class, strict=True)):
        if several:
            columns |= {f"{key}_{name}": value for key, value in figures.items()}
        suffix = f"_{name}" if several else ""
        columns |= {f"{key}{suffix}": int(getattr(counts, key)[0, label]) for key in ("tp", "fp", "fn")}
    if several:
        both = valid & (prediction == 0)
        columns["tp_background"] = int((both & (truth == 0)).sum())
        columns["fp_background"] = int((both & (truth != 0)).sum())
        columns["fn_background"] = int((valid & (truth == 0) & (prediction != 0)).sum())
    return columns
