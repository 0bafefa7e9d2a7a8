"""The job that writes a page for judging predicted masks, the most doubtful first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from rich.console import Console

from lungseg_ray.audit.facts import perceptual_hash
from lungseg_ray.confidence.selection import most_worth_annotating
from lungseg_ray.config import ReviewJob
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.jobs.predict import TABLE
from lungseg_ray.jobs.predicted import Predicted, Row
from lungseg_ray.page.review_page import SIDE, ReviewItem, write_review_page
from lungseg_ray.progress import ticks
from lungseg_ray.storage import Location

ORDERS = {
    "expected": "those of which the least is expected",
    "annotate": "those that are most worth annotating",
}
"""What is on the page, by the order."""
_CANDIDATES = 8
"""With the order `annotate`, so many times the images of the page are read and compared."""


def main(job: ReviewJob, console: Console) -> None:
    """Writes the page, and prints its location.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `review`.
        OSError: As `review`.
    """
    page, shown, known = review(job)
    console.print(f"Page: {page}: {shown} of {known} masks, {ORDERS[job.order]}", highlight=False)


def review(job: ReviewJob) -> tuple[Location, int, int]:
    """Writes a page for judging the masks of a prediction.

    Args:
        job: The settings of the job.

    Returns:
        The HTML file, the number of masks on it, and the number of all masks.

    Raises:
        UserError: If there is no finished prediction, if it does not say what is expected of its masks, or if no image
            can be compared with others.
        OSError: If a file cannot be read, or the page cannot be written.
    """
    source = Predicted.of(job.predictions)
    rows = list(source.rows())
    if not rows[0].get("expected_dice"):
        raise UserError(
            f"{job.predictions / TABLE}: it does not say which Dice is expected of the masks. Predict again into the "
            "same folder with a model that has a confidence.json, and without --confidence false."
        )
    rows.sort(key=lambda row: (float(row["expected_dice"]), row["image"]))
    chosen = _worth_annotating(rows, source, job.most) if job.order == "annotate" else rows[: job.most]
    items = list(ticks(_items(chosen, source), total=len(chosen), description="Drawing"))
    page = write_review_page(
        items, job.predictions, title=f"Masks to judge: {source.images.name}", first=ORDERS[job.order]
    )
    return page, len(items), len(rows)


def _worth_annotating(rows: list[Row], source: Predicted, most: int) -> list[Row]:
    """Returns the rows of the images that are worth annotating, of those of which the least is expected."""
    known: list[Row] = []
    hashes = []
    candidates = rows[: _CANDIDATES * most]
    for row in ticks(candidates, total=len(candidates), description="Comparing"):
        # What cannot be read cannot be annotated.
        with suppress(BadFileError, FileNotFoundError):
            image = source.image(row["image"], source.data(row["image"]), longer_side=SIDE)
            hashes.append(bytes.fromhex(perceptual_hash(image.pixels)))
            known.append(row)
    if not known:
        raise UserError(f"{source.images}: none of the images that were predicted can be read.")
    expected = [float(row["expected_dice"]) for row in known]
    found = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(known), -1)
    return [known[number] for number in most_worth_annotating(expected, found, most)]


def _items(rows: list[Row], source: Predicted) -> Iterator[ReviewItem]:
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
