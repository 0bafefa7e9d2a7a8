"""A trained model over a set of images with masks: figures for each, with their intervals, and pictures."""

from __future__ import annotations

import json
from typing import Any

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.config import Device, EvaluateSettings
from lungseg_ray.corpus import Listing, SetAside
from lungseg_ray.errors import UserError
from lungseg_ray.evaluation.contact_sheet import Panel, contact_sheet
from lungseg_ray.evaluation.images import Images
from lungseg_ray.evaluation.measure import MeasureChunk
from lungseg_ray.evaluation.summary import RESULT, summarise_images
from lungseg_ray.inference.predictor import Model
from lungseg_ray.progress import ticks
from lungseg_ray.storage import Location

PER_IMAGE = "per_image.csv"


SHEET = "contact_sheet.png"
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
) -> dict[str, Any]:
    """Measures a model on images and writes tables and pictures. Needs a running Ray cluster.

    The figures do not depend on the number of processes: the images of a forward pass are fixed by their order.

    Args:
        model: what to measure.
        images: what to measure on.
        out: folder for `per_image.csv`, `evaluation.json` and `contact_sheet.png`.
        settings: of the evaluation.
        device: to compute on.
        listing: of the corpus that the images are from, where they are not from shards.

    Returns:
        The content of `evaluation.json`: that of `summarise`; `members`, the runs whose models made it, and `flips`;
        `set_aside`; and, of a corpus, its `layout` and how many images are `unlabelled`.

    Raises:
        UserError: if there is no image that can be used.
    """
    class_names = model.load().sidecar.class_names
    if not len(images):
        raise UserError(f"{out}: there are no images to evaluate. Choose another --split or another --corpus.root.")
    work = MeasureChunk(model, images, settings)
    count = -(-len(images) // settings.batch)
    done = map_chunks(work, count, workers=settings.workers, device=device)
    found = sorted(ticks(done, total=len(images), description="Evaluating"), key=lambda row: row["number"])
    rows: list[dict[str, Any]] = []
    bad = [vars(one) for one in listing.set_aside] if listing else []
    seen: dict[str, str] = {}
    for row in found:
        if row["bad"]:
            bad.append(row["bad"])
        elif (twin := seen.setdefault(row["sha256"], row["image_id"])) != row["image_id"]:
            uri = images.name(row["number"])[1]
            bad.append(vars(SetAside(row["image_id"], uri, "duplicate", f"same bytes as {twin}")))
        else:
            rows.append(row)
    if not rows:
        raise UserError(f"None of {len(images)} images can be used; the first: {bad[0]['uri']}: {bad[0]['detail']}.")
    result = {
        **summarise_images(rows, class_names, settings),
        "members": [str(run.place) for run in model.runs],
        "flips": model.flips,
        "set_aside": bad,
    }
    if listing:
        result |= {"layout": listing.recognised, "unlabelled": len(listing.unlabelled)}
    columns = dict.fromkeys(key for row in rows for key in row if key not in ("number", "sha256", "bad"))
    (out / PER_IMAGE).write_csv(rows, list(columns))
    (out / SHEET).write_bytes(_sheet(model, images, rows, settings))
    (out / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _sheet(model: Model, images: Images, rows: list[dict[str, Any]], settings: EvaluateSettings) -> bytes:
    """The contact sheet; its few images are predicted again, so that no pixels travel."""
    order = sorted(rows, key=lambda row: (row["dice"], row["image_id"]))
    count = min(SHOWN, len(order))
    middle = max((len(order) - count) // 2, 0)
    use = model.load()
    panels = {}
    for title, few in {
        "worst": order[:count],
        "median": order[middle : middle + count],
        "best": order[::-1][:count],
    }.items():
        samples = [images.read(row["number"]).sample for row in few]
        panels[title] = [
            Panel(
                title=f"{row['image_id']}\nDice {row['dice']:.3f}  HD95 {row['hd95']:.0f} px",
                image=sample.image,
                truth=sample.mask,
                prediction=use.labels(use([sample.image])[0], threshold=settings.threshold),
            )
            for row, sample in zip(few, samples, strict=True)
        ]
    return contact_sheet(panels, use.sidecar.class_names)
