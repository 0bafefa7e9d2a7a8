"""A mask as shapes, polygons or run lengths, and its conversion to a label map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lungseg_ray.corpus.picture import check_size
from lungseg_ray.corpus.structures import is_background, is_ignored
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels
from lungseg_ray.numerics.labels import IGNORE_LABEL

_MOST_POINTS = 1_000_000


class Shape(BaseModel):
    """A marked area: polygons, or run lengths.

    Attributes:
        name: The name of the marked structure; empty if the annotation has none.
        rings: Polygons, each as x, y, x, y, ... in pixels of the image.
        holes: Whether a ring within another one is a hole. Otherwise all rings are filled.
        runs: Lengths of runs, of the background first and then of the structure in turn; column by column as in COCO.
        counts: The same, in the compressed form of COCO.
        box: For run lengths, rows and columns of the area that they describe, and its first row and column; empty for
            the whole image.
        whole: Whether the box must be the whole image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = ""
    rings: list[list[float]] = []
    holes: bool = False
    runs: list[int] = []
    counts: str = ""
    box: tuple[int, int, int, int] | tuple[()] = ()
    whole: bool = False


class Drawing(BaseModel):
    """The annotation of one image.

    Attributes:
        size: Rows and columns of the image that was annotated; None if the annotation does not say.
        shapes: The shapes, in the order in which they are drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: tuple[int, int] | None = None
    shapes: list[Shape] = Field(max_length=100_000)

    @classmethod
    def from_json(cls, text: str) -> Drawing:
        """Reads a drawing that `model_dump_json` wrote.

        Raises:
            BadFileError: With the reason `unreadable` if it is none.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BadFileError("unreadable", f"damaged: an annotation that cannot be read ({error.title})") from None

    def rasterise(self, label_of: Callable[[str], int], *, height: int, width: int) -> Pixels:
        """Draws all shapes. A later shape covers an earlier one.

        Args:
            label_of: Returns the label of a structure by its name, and raises `BadFileError` if it has none.
            height: Rows of the image.
            width: Columns of the image.

        Returns:
            (H, W) uint8 label map, of the size that the annotation says, or else of the image.

        Raises:
            BadFileError: If the annotation is damaged, or a structure has no label.
        """
        height, width = self.size or (height, width)
        check_size(height, width)
        drawn = np.zeros((height, width), np.uint8)
        for shape in self.shapes:
            background, ignored = is_background(shape.name), is_ignored(shape.name)
            label = IGNORE_LABEL if ignored else 0 if background else label_of(shape.name)
            if not label and not background:
                # A heart that is drawn over a lung takes nothing from it; background that is, makes a hole.
                continue
            try:
                drawn[_filled(shape, height, width)] = label
            except BadFileError:
                raise
            except (ValueError, TypeError, IndexError, OverflowError, cv2.error) as error:
                raise BadFileError(
                    "unreadable", f"damaged: an annotation that cannot be drawn ({type(error).__name__})"
                ) from None
        return drawn


def _filled(shape: Shape, height: int, width: int) -> NDArray[np.bool_]:
    if shape.rings:
        if sum(map(len, shape.rings)) > 2 * _MOST_POINTS:
            raise BadFileError("too_large", f"expected at most {_MOST_POINTS} points in a polygon, found more")
        return _polygons(shape.rings, holes=shape.holes, height=height, width=width)
    rows, columns, first_row, first_column = shape.box or (height, width, 0, 0)
    check_size(rows, columns)
    if shape.whole and (rows, columns) != (height, width):
        raise BadFileError(
            "size_mismatch", f"its run lengths are of {columns} x {rows} px, and the image has {width} x {height} px"
        )
    if shape.counts:
        inner = coco.decode({"size": [rows, columns], "counts": shape.counts.encode()})
    else:
        inner = _of_runs(shape.runs, rows, columns)
    found = np.zeros((height, width), np.bool_)
    part = found[first_row : first_row + rows, first_column : first_column + columns]
    part[:] = inner[: part.shape[0], : part.shape[1]] != 0
    return found


def _of_runs(runs: Sequence[int], rows: int, columns: int) -> NDArray[np.uint8]:
    if min(runs, default=0) < 0 or sum(runs) != rows * columns:
        raise BadFileError(
            "unreadable", f"damaged: run lengths of {sum(runs)} pixels for an image of {columns} x {rows} px"
        )
    marked = np.arange(len(runs)) % 2
    return np.repeat(marked.astype(np.uint8), runs).reshape(columns, rows).T


def _polygons(rings: Sequence[Sequence[float]], *, holes: bool, height: int, width: int) -> NDArray[np.bool_]:
    """Fills polygons.

    Whole coordinates are those of pixels, as programs write that trace the border of a mask; the pixels of the border
    belong to the area. Others are places in the plane of the image, whose first pixel reaches from 0 to 1.

    Raises:
        BadFileError: With the reason `unreadable` if a point is no place in an image.
    """
    points = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings if len(ring) >= 6]
    found = np.zeros((height, width), np.uint8)
    whole = all(np.array_equal(ring, np.round(ring)) for ring in points)
    for ring in points:
        if not np.isfinite(ring).all() or np.abs(ring).max(initial=0) > 1e6:
            raise BadFileError("unreadable", "damaged: a polygon with points that are no places in an image")
        one = np.zeros_like(found)
        if whole:
            cv2.fillPoly(one, [ring.astype(np.int32)], 1)
        else:
            one = coco.decode(coco.merge(coco.frPyObjects([ring.ravel().tolist()], height, width)))
        if holes and whole:
            # The border of a hole belongs to the area around it.
            inside = one.copy()
            cv2.polylines(inside, [ring.astype(np.int32)], True, 0)
            found = np.where(found & one, found & ~inside & 1, found | one).astype(np.uint8)
        elif holes:
            found ^= one
        else:
            found |= one
    return found != 0
