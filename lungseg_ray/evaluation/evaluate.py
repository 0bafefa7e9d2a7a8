"""Measures a trained model on a set of images with masks, and writes tables and pictures."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence

from lungseg_ray.cluster.chunks import chunk_size, map_chunks
from lungseg_ray.confidence.stored import confidence_of
from lungseg_ray.config import Device, EvaluateSettings
from lungseg_ray.corpus.layouts import Listing
from lungseg_ray.corpus.record import SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.confidence import judge_confidence
from lungseg_ray.evaluation.contact_sheet import Panel, contact_sheet
from lungseg_ray.evaluation.images import Images
from lungseg_ray.evaluation.measure import ImageFigures, MeasureChunk, MeasuredImage
from lungseg_ray.evaluation.robustness import measure_robustness
from lungseg_ray.evaluation.summary import RESULT, summarise_images
from lungseg_ray.evaluation.table import FigureTable
from lungseg_ray.inference.predictor import Model
from lungseg_ray.progress import ticks
from lungseg_ray.run.folder import SHEET
from lungseg_ray.run.summary import Evaluation, SetAsideFile
from lungseg_ray.storage import Location
from lungseg_ray.text import shown

PER_IMAGE = "per_image.csv"
_LONGEST_TITLE = 40

SHOWN = 4
"""Images on each row of the contact sheet: the worst, those around the median, the best."""


def evaluate(
    model: Model,
    images: Images,
    out: Location,
    settings: EvaluateSettings,
    *,
    device: Device = "auto",
    listing: Listing | None = None,
) -> Evaluation:
    """Measures a model on images and writes tables and pictures. Needs a running Ray cluster.

    The figures do not depend on the number of processes, since the order of the images fixes the images of each forward
    pass.

    Args:
        model: The model to measure.
        images: The images to measure it on.
        out: The folder for `per_image.csv`, `evaluation.json` and `contact_sheet.png`.
        settings: The settings of the evaluation.
        device: The device to compute on.
        listing: The listing of the corpus that the images are from; None if they are from shards.

    Returns:
        The content of `evaluation.json`.

    Raises:
        UserError: If no image can be used.
        OSError: If a file cannot be read or written.
    """
    class_names = model.load().sidecar.class_names
    if not len(images):
        raise UserError(f"{out}: there are no images to evaluate. Choose another --split or another --corpus.root.")
    size = chunk_size(len(images), settings.batch)
    # What is expected of a mask is that of the model's own threshold.
    own_threshold = settings.threshold in (None, model.processing().sidecar.threshold)
    confidence = confidence_of(model) if settings.confidence and own_threshold else None
    work = MeasureChunk(model, images, settings, size, confidence)
    done = map_chunks(work, -(-len(images) // size), MeasuredImage, workers=settings.workers, device=device)
    bad = list(listing.set_aside) if listing else []
    numbers = array("q")

    def usable() -> Iterator[ImageFigures]:
        seen: dict[str, str] = {}
        for one in ticks(done, total=len(images), description="Evaluating"):
            if one.set_aside:
                bad.append(one.set_aside)
            elif one.figures:
                image_id = one.figures.image_id
                if (same := seen.setdefault(one.image_sha256, image_id)) != image_id:
                    bad.append(SetAside(image_id, images.name(one.number)[1], "duplicate", f"same bytes as {same}"))
                else:
                    numbers.append(one.number)
                    yield one.figures

    rows = FigureTable.of(usable())
    if not numbers:
        raise UserError(f"None of {len(images)} images can be used; the first: {bad[0].uri}: {bad[0].detail}.")
    result = summarise_images(rows, class_names, settings)
    result["class_names"] = class_names
    result["members"] = [str(run.place) for run in model.runs]
    result["flips"] = model.used_flips
    result["set_aside"] = [
        SetAsideFile(image_id=one.image_id, uri=one.uri, reason=one.reason, detail=one.detail) for one in bad
    ]
    if settings.robustness and (card := measure_robustness(model, images, settings, device=device)):
        result["robustness"] = card
    if judged := judge_confidence(rows):
        result["confidence"] = judged
    if listing:
        result["layout"] = listing.recognised
        result["corpus"] = str(listing.corpus.root)
        result["unlabelled"] = len(listing.unlabelled)
    (out / PER_IMAGE).write_csv(rows.rows(), rows.columns())
    (out / SHEET).write_bytes(_sheet(model, images, numbers, rows, settings))
    (out / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _sheet(
    model: Model, images: Images, numbers: Sequence[int], rows: FigureTable, settings: EvaluateSettings
) -> bytes:
    """The contact sheet. Its few images are predicted again, so that no pixels travel between processes."""
    dice, hd95, ids = rows["dice"].tolist(), rows["hd95"].tolist(), rows.image_ids
    order = sorted(range(len(rows)), key=lambda row: (dice[row], ids[row]))
    count = min(SHOWN, len(order))
    middle = max((len(order) - count) // 2, 0)
    use = model.load()
    panels = {}
    for title, few in {
        "worst": order[:count],
        "median": order[middle : middle + count],
        "best": order[::-1][:count],
    }.items():
        samples = [images.read(numbers[row]).sample for row in few]
        panels[title] = [
            Panel(
                title=f"{shown(ids[row], _LONGEST_TITLE)}\nDice {dice[row]:.3f}  HD95 {hd95[row]:.0f} px",
                image=sample.image,
                truth=sample.mask,
                prediction=use.labels(use([sample.image])[0], threshold=settings.threshold),
            )
            for row, sample in zip(few, samples, strict=True)
        ]
    return contact_sheet(panels, use.sidecar.class_names)
