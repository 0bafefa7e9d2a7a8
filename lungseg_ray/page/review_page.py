"""The page on which people judge predicted masks: one image after another, with keys for the verdicts."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lungseg_ray.imaging import PREDICTED, Pixels, fit_labels_to, fit_to, hex_colour
from lungseg_ray.page.pictures import picture_uri
from lungseg_ray.page.templates import template, write_html
from lungseg_ray.storage import Location

REVIEW = "review.html"
VERDICTS = "review.csv"
SIDE = 512
"""The longer side of a picture, pixels."""


@dataclass(frozen=True)
class Outline:
    """The outlines of a label.

    Attributes:
        path: As in the attribute `d` of a path of SVG, in pixels of the picture.
        colour: As `#rrggbb`.
    """

    path: str
    colour: str


@dataclass(frozen=True)
class ReviewItem:
    """An image of the queue.

    Attributes:
        image: Its name in `predictions.csv`.
        facts: What is known of it: names and values.
        picture: A data URI; empty if it cannot be read.
        width: The columns of the picture.
        height: Its rows.
        outlines: The outlines of its labels.
    """

    image: str
    facts: list[tuple[str, str]]
    picture: str = ""
    width: int = 0
    height: int = 0
    outlines: tuple[Outline, ...] = ()

    @classmethod
    def of(cls, image: str, facts: list[tuple[str, str]], pixels: Pixels, labels: Pixels) -> ReviewItem:
        """Returns the item of an image.

        Args:
            image: Its name.
            facts: What is known of it.
            pixels: (H, W, C) uint8.
            labels: (h, w) uint8, its predicted labels at any size.
        """
        small = fit_to(pixels, SIDE)
        height, width = small.shape[:2]
        sized = cv2.resize(fit_labels_to(labels, SIDE), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        outlines = tuple(
            Outline(_path(sized == label), hex_colour(PREDICTED[(label - 1) % len(PREDICTED)]))
            for label in np.unique(sized[sized > 0]).tolist()
        )
        picture = picture_uri(np.broadcast_to(small, (height, width, 3)))
        return cls(image, facts, picture, width, height, outlines)


def _path(mask: npt.NDArray[np.bool_]) -> str:
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    # Pixels are drawn with their centres at + 0.5.
    return "".join("M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for (x, y) in line[:, 0].tolist()) + "Z" for line in lines)


def write_review_page(items: list[ReviewItem], place: Location, *, title: str, first: str) -> Location:
    """Writes the page.

    Args:
        items: The images, in the order in which they are shown.
        place: The folder for the page.
        title: Its title.
        first: Which images come first, in words.

    Returns:
        The HTML file.

    Raises:
        OSError: If it cannot be written.
    """
    queue = "\n".join([str(place), *(f"{item.image} {item.outlines}" for item in items)])
    text = template(REVIEW).render(
        title=title,
        first=first,
        items=[asdict(item) for item in items],
        # The verdicts of another queue, or of other masks, in the same browser stay apart.
        store=f"review {hashlib.sha256(queue.encode(errors='replace')).hexdigest()[:16]}",
        file=VERDICTS,
    )
    return write_html(text, place / REVIEW)
