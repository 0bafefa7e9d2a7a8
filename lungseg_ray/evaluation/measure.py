"""The figures of single images: how well a predicted label map agrees with the true one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from lungseg_ray.confidence.signals import Examined, examine
from lungseg_ray.confidence.stored import Confidence
from lungseg_ray.config import EvaluateSettings
from lungseg_ray.corpus.record import SetAside
from lungseg_ray.errors import BadFileError
from lungseg_ray.evaluation.images import Images
from lungseg_ray.evaluation.regions import region_excess
from lungseg_ray.inference.predictor import Model, Probability
from lungseg_ray.numerics import metrics
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.shards.format import ShardRow


@dataclass(frozen=True, slots=True)
class ImageFigures:
    """The figures of one image, on the grid of its decoded pixels.

    Attributes:
        image_id: The image.
        patient_id: The patient.
        groups: Further columns of the corpus, by name.
        height: Rows of the source file.
        width: Columns of the source file.
        values: `dice`, `iou`, `hd95`, `assd`: means over the classes; distances in source pixels, and in mm as
            `hd95_mm`, `assd_mm` if the pixel spacing is known. Where there are several classes, the same for each
            class, as `dice_NAME`. `empty`: the number of classes of which the truth or the prediction, but not both, is
            empty. `tp`, `fp`, `fn`: pixel counts, for each class where there are several. The figures after the
            clean-up start with `clean_`. `excess_REGION`: as `region_excess`, of all classes together. `expected_dice`
            and so on, as `Estimate.columns`, where the model has a confidence.
    """

    image_id: str
    patient_id: str
    groups: dict[str, str]
    height: int
    width: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """What became of one image.

    Attributes:
        number: The number of the image in its set.
        figures: Its figures; None if it cannot be used.
        image_sha256: The checksum of the image file; empty if it cannot be used.
        set_aside: Why it cannot be used; None if it can.
    """

    number: int
    figures: ImageFigures | None = None
    image_sha256: str = ""
    set_aside: SetAside | None = None


@dataclass(frozen=True)
class MeasureChunk:
    """Measures images in chunks, as `cluster.chunks.Work`.

    Attributes:
        model: The model to measure.
        images: The images.
        settings: The settings of the evaluation.
        size: The images of a chunk.
        confidence: What is needed to expect a Dice of each mask; None if none is wanted.
    """

    model: Model
    images: Images
    settings: EvaluateSettings
    size: int
    confidence: Confidence | None = None

    def prepare(self, chunk: int) -> tuple[_Prepared, list[npt.NDArray[np.uint8]]]:
        """Reads and resizes the images of a chunk."""
        first = chunk * self.size
        good: dict[int, ShardRow] = {}
        bad: list[MeasuredImage] = []
        for number in range(first, min(first + self.size, len(self.images))):
            try:
                good[number] = self.images.read(number)
            except BadFileError as error:
                image_id, uri = self.images.name(number)
                aside = SetAside(image_id, uri, error.reason, error.detail)
                bad.append(MeasuredImage(number, set_aside=aside))
        inputs = self.model.processing().inputs([row.sample.image for row in good.values()])
        # The pixels of the image are not needed any more.
        rows = {
            number: replace(row, sample=replace(row.sample, image=np.empty((*row.sample.image.shape[:2], 0), np.uint8)))
            for number, row in good.items()
        }
        return _Prepared(rows, bad), inputs

    def compute(self, given: list[npt.NDArray[np.uint8]], device: str) -> list[Probability] | Examined:
        """Predicts the maps of a chunk, and computes what confidence needs."""
        predictor = self.model.load(device=device)
        if self.confidence:
            return examine(predictor, given[0], batch=self.settings.batch)
        return predictor.maps(given, batch=self.settings.batch)

    def finish(self, prepared: _Prepared, computed: list[Probability] | Examined) -> list[MeasuredImage]:
        """Measures the images of a chunk."""
        found, processing = list(prepared.bad), self.model.processing()
        sizes = [row.sample.mask.shape for row in prepared.good.values()]
        maps = processing.combine([computed.maps] if isinstance(computed, Examined) else computed, sizes)
        for place, ((number, row), probability) in enumerate(zip(prepared.good.items(), maps, strict=True)):
            labels = processing.labels(probability, threshold=self.settings.threshold)
            figures = measure_image(row, labels, processing.sidecar.class_names, clean_up=self.settings.clean_up)
            if self.confidence and isinstance(computed, Examined):
                figures.values.update(self.confidence.estimate(computed, place, processing).columns())
            found.append(MeasuredImage(number, figures, row.sample.image_sha256))
        return sorted(found, key=lambda one: one.number)


@dataclass(frozen=True)
class _Prepared:
    """What is known of a chunk beside the maps of its images.

    Attributes:
        good: The images by number, without their pixels.
        bad: The images that cannot be used.
    """

    good: dict[int, ShardRow]
    bad: list[MeasuredImage]


def measure_image(
    row: ShardRow, prediction: npt.NDArray[np.uint8], class_names: Sequence[str], *, clean_up: bool
) -> ImageFigures:
    """Computes the figures of one image.

    Args:
        row: The image with its true mask (H, W).
        prediction: (H, W) uint8 labels.
        class_names: The names of the labels from 1 on.
        clean_up: Whether to measure also what is left of each label after `metrics.clean_up_labels`.
    """
    sample = row.sample
    height, width = sample.mask.shape
    scale = (sample.source_height / height, sample.source_width / width)
    valid = sample.mask != IGNORE_LABEL
    versions = {"": prediction}
    if clean_up:
        versions["clean_"] = metrics.clean_up_labels(prediction, classes=len(class_names))
    values: dict[str, float] = {}
    for prefix, labels in versions.items():
        compared = _compare(labels, sample.mask, valid, class_names, scale, sample.spacing)
        values |= {f"{prefix}{key}": value for key, value in compared.items()}
    excess = region_excess((prediction > 0) & valid, (sample.mask > 0) & valid)
    values |= {f"excess_{region}": share for region, share in excess.items()}
    return ImageFigures(
        image_id=row.image_id,
        patient_id=row.patient_id,
        groups=dict(row.groups),
        height=sample.source_height,
        width=sample.source_width,
        values=values,
    )


def _compare(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    class_names: Sequence[str],
    scale: tuple[float, float],
    spacing: tuple[float, float] | None,
) -> dict[str, float]:
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
    columns: dict[str, float] = {
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
