"""Masks as run lengths in a table, "start length start length ..." for each image, as Kaggle and CheXmask have them."""

from __future__ import annotations

import csv
import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from lungseg_ray.corpus.picture import check_size
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels

LONGEST_ROW = 1 << 27
"""The longest row of a table that is read, bytes."""
# The limit of the csv module holds for all threads.
_LIMIT = threading.Lock()
EMPTY = {"", "-1", "nan"}
"""What stands in place of run lengths where nothing is marked."""


class RunLengths(BaseModel):
    """Where the run lengths of one image are in a table, and how they are read.

    Attributes:
        rows: First byte and number of bytes of each row of the image, in the file.
        cells: The numbers of the cells with run lengths, each with the name of what they mark.
        size: Rows and columns of the mask; None for those of the image.
        relative: Whether a start counts from the end of the run before; otherwise from 1 for the first pixel.
        order: Whether pixels are counted down the columns or along the rows.
        separator: The separator of the table's cells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: list[tuple[int, int]]
    cells: list[tuple[int, str]]
    size: tuple[int, int] | None = None
    relative: bool = False
    order: Literal["columns", "rows"] = "columns"
    separator: str = ","

    @classmethod
    def from_json(cls, text: str) -> RunLengths:
        """Reads what `model_dump_json` wrote.

        Raises:
            BadFileError: With the reason `unreadable` if it is something else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BadFileError("unreadable", f"damaged: run lengths that cannot be read ({error.title})") from None

    def draw(self, texts: Sequence[tuple[str, int]], *, height: int, width: int) -> Pixels:
        """Draws run lengths.

        Args:
            texts: Run lengths, each with the label of the pixels that they mark.
            height: Rows of the image.
            width: Columns of the image.

        Returns:
            (H, W) uint8 label map, of `size` or else of the size of the image.

        Raises:
            BadFileError: With the reason `unreadable` if a text is damaged or leaves the image.
        """
        height, width = self.size or (height, width)
        check_size(height, width)
        flat = np.zeros(height * width, np.uint8)
        for text, label in texts:
            # A heart that is drawn over a lung takes nothing from it.
            for start, end in zip(*bounds(text, relative=self.relative), strict=True):
                if start < 0 or end > len(flat):
                    raise BadFileError(
                        "size_mismatch", f"its run lengths reach pixel {end} of an image of {width} x {height} px"
                    )
                if label:
                    flat[start:end] = label
        return flat.reshape(height, width) if self.order == "rows" else flat.reshape(width, height).T.copy()


def cells_of(row: str, separator: str) -> list[str]:
    """Returns the cells of a row, which may be longer than those that the csv module reads by default.

    Args:
        row: The row; quoted cells may have line breaks. One that is no row of a table has no cells.
        separator: The separator of the cells.
    """
    with _LIMIT:
        before = csv.field_size_limit(LONGEST_ROW)
        try:
            return next(csv.reader([row], delimiter=separator), [])
        except csv.Error:
            return []
        finally:
            csv.field_size_limit(before)


def bounds(text: str, *, relative: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the first pixel of each run, from 0, and the pixel after its last one.

    Args:
        text: The run lengths; one of `EMPTY` if nothing is marked.
        relative: Whether a start counts from the end of the run before; otherwise from 1 for the first pixel.

    Raises:
        BadFileError: With the reason `unreadable` if the text is damaged.
    """
    words = [] if text.strip().lower() in EMPTY else text.split()
    try:
        numbers = np.array([int(float(word)) for word in words], np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        raise BadFileError("unreadable", "expected run lengths in pairs of start and length, found others") from None
    starts, lengths = numbers[:, 0], numbers[:, 1]
    if relative:
        starts = np.cumsum(starts) + np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(starts) else starts
        return starts, starts + lengths
    return starts - 1, starts - 1 + lengths


def is_relative(texts: Sequence[str]) -> bool:
    """Returns whether starts count from the end of the run before, which some of them then are smaller than.

    Args:
        texts: The run lengths of several images.
    """
    for text in texts:
        starts, ends = bounds(text, relative=False)
        if len(starts) > 1 and (starts[1:] < ends[:-1]).any():
            return True
    return False
