"""The job that writes a page for judging predicted masks, those of which the least is expected first."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import numpy as np
from rich.console import Console

from lungseg_ray.config import ReviewJob
from lungseg_ray.corpus.annotations.write import Annotated, coco, labelme
from lungseg_ray.corpus.decode import decode_image
from lungseg_ray.corpus.read import decode_alone, fetch
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.imaging import Pixels, png
from lungseg_ray.jobs.predict import CLAIM, MASKS, TABLE
from lungseg_ray.page.review_page import SIDE, ReviewItem, write_review_page
from lungseg_ray.progress import ticks
from lungseg_ray.storage import Location, locate

Row = dict[str, str]
_LARGEST = 1 << 16
"""A longer side that no image has, so that none is reduced."""


def main(job: ReviewJob, console: Console) -> None:
    """Writes the page, and prints its location.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `review`.
        OSError: As `review`.
    """
    if job.verdicts and job.redo:
        count = write_wrong(job, job.verdicts, job.redo)
        console.print(f"{job.redo}: {count} images whose masks were judged wrong, as {job.form}", highlight=False)
        return
    page, shown, known = review(job)
    console.print(f"Page: {page}: {shown} of {known} masks, those of which the least is expected", highlight=False)


def review(job: ReviewJob) -> tuple[Location, int, int]:
    """Writes a page for judging the masks of a prediction.

    Args:
        job: The settings of the job.

    Returns:
        The HTML file, the number of masks on it, and the number of all masks.

    Raises:
        UserError: If there is no finished prediction, or if it does not say what is expected of its masks.
        OSError: If a file cannot be read, or the page cannot be written.
    """
    images = _images(job.predictions)
    rows = [row for row in _rows(job.predictions) if row["status"] != "set aside"]
    if not rows:
        raise UserError(f"{job.predictions / TABLE}: there are no masks to judge; all images were set aside.")
    if not rows[0].get("expected_dice"):
        raise UserError(
            f"{job.predictions / TABLE}: it does not say which Dice is expected of the masks. Predict again into the "
            "same folder with a model that has a confidence.json, and without --confidence false."
        )
    rows.sort(key=lambda row: (float(row["expected_dice"]), row["image"]))
    chosen = rows[: job.most]
    items = list(ticks(_items(chosen, images, job.predictions), total=len(chosen), description="Drawing"))
    page = write_review_page(items, job.predictions, title=f"Masks to judge: {images.name}")
    return page, len(items), len(rows)


def write_wrong(job: ReviewJob, verdicts: Location, out: Location) -> int:
    """Writes the images whose masks were judged wrong, with these masks, for people who correct them.

    Images are written as 8-bit PNG files, which all tools open, and which say nothing of the patient. The folder is a
    corpus that jobs/shard.py reads.

    Args:
        job: The settings of the job.
        verdicts: The file that the page saved.
        out: The folder.

    Returns:
        The number of images.

    Raises:
        UserError: If there is no finished prediction, if the verdicts cannot be used, or if the folder has other files.
        OSError: If a file cannot be read or written.
    """
    images, rows = _images(job.predictions), {row["image"]: row for row in _rows(job.predictions)}
    wrong = [name for name, verdict in _verdicts(verdicts) if verdict == "wrong"]
    if unknown := [name for name in wrong if name not in rows]:
        raise UserError(
            f"{verdicts}: {len(unknown)} of {len(wrong)} images are not among those of {job.predictions}, the first "
            f"{unknown[0]}. Give the folder of predictions that was judged."
        )
    if not wrong:
        raise UserError(f"{verdicts}: no mask was judged wrong, so that there is nothing to correct.")
    if out.exists() and out.list():
        raise UserError(f"{out}: there are files in this folder already. Choose another --redo.")
    class_names = [name.removeprefix("share_") for name in rows[wrong[0]] if name.startswith("share_")]
    masks = []
    for name in ticks(wrong, total=len(wrong), description="Writing"):
        uri = str(images / name)
        pixels = decode_alone(fetch(uri), uri, channels=1, longer_side=_LARGEST).pixels
        labels = _labels(job.predictions, name)
        one = Annotated(f"{name}.png", labels)
        (out / "images" / one.file).write_bytes(png(pixels[:, :, 0]))
        if job.form == "labelme":
            content = json.dumps(labelme(one, class_names), indent=1)
            (out / "images" / f"{name}.json").write_text(content)
        elif job.form == "masks":
            (out / "masks" / one.file).write_bytes(png(labels * 255 if len(class_names) == 1 else labels))
        else:
            masks.append(one)
    if masks:
        (out / "annotations.json").write_text(json.dumps(coco(masks, class_names)) + "\n")
    return len(wrong)


def _verdicts(place: Location) -> list[tuple[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(place.read_text())))
        return [(row["image"], row["verdict"]) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{place}: there is no such file (--verdicts).") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{place}: expected columns image and verdict, as the page saves them (--verdicts).") from None


def _labels(place: Location, name: str) -> Pixels:
    """Returns the predicted labels of an image."""
    mask = decode_image((place / MASKS / f"{name}.png").read_bytes(), channels=1).pixels[:, :, 0]
    # The labels of one class are written as 0 and 255.
    return (mask > 0).astype(np.uint8) if mask.max() == np.iinfo(np.uint8).max else mask


def _images(place: Location) -> Location:
    """Returns the folder of the images that were predicted."""
    try:
        return locate(str(json.loads((place / CLAIM).read_text())["images"]))
    except FileNotFoundError:
        raise UserError(f"{place}: expected a folder that jobs/predict.py wrote, found no {CLAIM} there.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{place / CLAIM}: expected what jobs/predict.py wrote, found something else.") from None


def _rows(place: Location) -> list[Row]:
    try:
        text = (place / TABLE).read_text()
    except FileNotFoundError:
        raise UserError(f"{place}: the prediction has not finished ({TABLE} is missing). Run it again.") from None
    return list(csv.DictReader(io.StringIO(text)))


def _items(rows: list[Row], images: Location, place: Location) -> Iterator[ReviewItem]:
    for row in rows:
        name = row["image"]
        facts = [
            ("image", name),
            ("expected Dice", f"{float(row['expected_dice']):.3f}"),
            ("range", f"{float(row['expected_low']):.3f} to {float(row['expected_high']):.3f}"),
        ]
        if row["doubt"]:
            facts.append(("doubt", row["doubt"]))
        if float(row["unlike"]):
            facts.append(("unlike training", "the range is not vouched for"))
        try:
            uri = str(images / name)
            pixels = decode_alone(fetch(uri), uri, channels=1, longer_side=2 * SIDE).pixels
            labels = _labels(place, name)
        except (BadFileError, FileNotFoundError) as error:
            yield ReviewItem(name, [*facts, ("not shown", str(error))])
            continue
        yield ReviewItem.of(name, facts, pixels, labels)
