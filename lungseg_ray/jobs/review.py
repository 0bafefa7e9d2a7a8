"""The job that writes a page for judging predicted masks, those of which the least is expected first."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

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
    source = _Source.of(job.predictions)
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
    items = list(ticks(_items(chosen, source), total=len(chosen), description="Drawing"))
    page = write_review_page(items, job.predictions, title=f"Masks to judge: {source.images.name}")
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
        UserError: If there is no finished prediction, if the verdicts or an image cannot be used, or if the folder has
            other files.
        OSError: If a file cannot be read or written.
    """
    source = _Source.of(job.predictions)
    rows = {row["image"]: row for row in _rows(job.predictions)}
    wrong = [name for name, verdict in _verdicts(verdicts).items() if verdict == "wrong"]
    if unknown := [name for name in wrong if name not in rows]:
        raise UserError(
            f"{verdicts}: {len(unknown)} of {len(wrong)} images are not among those of {job.predictions}, the first "
            f"{unknown[0]}. Give the folder of predictions that was judged."
        )
    if not wrong:
        raise UserError(f"{verdicts}: no mask was judged wrong, so that there is nothing to correct.")
    if out.exists() and out.list():
        raise UserError(f"{out}: there are files in this folder already. Choose another --redo.")
    # Nothing is written before all can be read.
    for name in ticks(wrong, total=len(wrong), description="Checking"):
        try:
            source.read(name, longer_side=SIDE)
        except (BadFileError, FileNotFoundError) as error:
            raise UserError(f"{source.images}: {name} cannot be read: {error}. Leave it out of {verdicts}.") from None
    class_names = [name.removeprefix("share_") for name in rows[wrong[0]] if name.startswith("share_")]
    masks = []
    for name in ticks(wrong, total=len(wrong), description="Writing"):
        pixels, labels = source.read(name, longer_side=_LARGEST)
        one = Annotated(f"{name}.png", labels)
        (out / "images" / one.file).write_bytes(png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
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


def _verdicts(place: Location) -> dict[str, str]:
    """Returns the last verdict on each image."""
    try:
        return {row["image"]: row["verdict"] for row in csv.DictReader(io.StringIO(place.read_text()))}
    except FileNotFoundError:
        raise UserError(f"{place}: there is no such file (--verdicts).") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{place}: expected columns image and verdict, as the page saves them (--verdicts).") from None


@dataclass(frozen=True)
class _Source:
    """Where the images and the masks of a prediction are, and how the images are decoded.

    Attributes:
        predictions: The folder of the prediction.
        images: The folder of the images.
        channels: The channels of an image.
        white: As in the sidecar of the model.
    """

    predictions: Location
    images: Location
    channels: int
    white: float | tuple[float, ...] | None

    @classmethod
    def of(cls, predictions: Location) -> _Source:
        """Reads what jobs/predict.py wrote of it."""
        place = predictions / CLAIM
        try:
            content = json.loads(place.read_text())
            white = content.get("white")
            return cls(
                predictions,
                images=locate(str(content["images"])),
                channels=3 if content.get("channels") == 3 else 1,
                white=tuple(map(float, white)) if isinstance(white, list) else white and float(white),
            )
        except FileNotFoundError:
            raise UserError(
                f"{predictions}: expected a folder that jobs/predict.py wrote, found no {CLAIM} there."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{place}: expected what jobs/predict.py wrote, found something else.") from None

    def read(self, name: str, *, longer_side: int) -> tuple[Pixels, Pixels]:
        """Returns an image (H, W, C) and its predicted labels (h, w).

        Raises:
            BadFileError: If the image or the mask cannot be used.
            FileNotFoundError: If one of them is missing.
        """
        # Names come from a table that others may have written.
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise BadFileError("bad_name", "expected a path inside the folder of images")
        uri = str(self.images / name)
        image = decode_alone(fetch(uri), uri, channels=self.channels, longer_side=longer_side, white=self.white).pixels
        mask = decode_image((self.predictions / MASKS / f"{name}.png").read_bytes(), channels=1).pixels[:, :, 0]
        # The labels of one class are written as 0 and 255.
        return image, (mask > 0).astype(np.uint8) if mask.max() == np.iinfo(np.uint8).max else mask


def _rows(place: Location) -> list[Row]:
    try:
        text = (place / TABLE).read_text()
    except FileNotFoundError:
        raise UserError(f"{place}: the prediction has not finished ({TABLE} is missing). Run it again.") from None
    return list(csv.DictReader(io.StringIO(text)))


def _items(rows: list[Row], source: _Source) -> Iterator[ReviewItem]:
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
            yield ReviewItem.of(name, facts, *source.read(name, longer_side=2 * SIDE))
        except (BadFileError, FileNotFoundError) as error:
            yield ReviewItem(name, [*facts, ("not shown", str(error))])
