"""Decodes image files to 8-bit arrays of limited size, and mask files to label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg_ray.corpus.formats import decode_file
from lungseg_ray.corpus.picture import Picture, Spacing
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels, limited, resize_area
from lungseg_ray.numerics.labels import IGNORE_LABEL


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: The image as (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
        height: Rows of the image in the file, before it was reduced.
        width: Columns of the image in the file, before it was reduced.
        bits: Bits per value in the file.
        spacing: Pixel spacing in the file, millimetres (row, column); None if the file does not specify it.
    """

    pixels: Pixels
    height: int
    width: int
    bits: int
    spacing: Spacing


def decode_image(
    data: bytes, *, channels: int, longer_side: int | None = None, white: float | None = None, name: str = ""
) -> Decoded:
    """Decodes an image file, reduces its size and converts it to 8 bits.

    The size is reduced before the bits, so that the mean of many 16-bit values is rounded only once.

    Values of 16 bits are scaled by the maximum of the format, 65535 (as in the recipe), or by `white`. Floats are
    scaled from the range 0 to 1, or 0 to `white`. DICOM files are scaled as their own tags specify. With one channel, a
    colour file is reduced to its first channel, red (as in the recipe). With three channels, grey is repeated.

    Args:
        data: The content of the whole file.
        channels: The number of channels of the result: 1 (grey) or 3 (RGB).
        longer_side: The maximum length of the longer side, pixels. Larger images are reduced to it by area averaging.
            None: no image is reduced.
        white: The pixel value of white in 16-bit and float files. None: the maximum of the format.
        name: The name of the file, by which raw JSRT files are recognised.

    Returns:
        The image, with the size, the bits and the pixel spacing that it has in the file.

    Raises:
        BadFileError: If the file cannot be used; its `reason` is one of `REASONS`.
    """
    picture = decode_file(data, name=name)
    pixels = picture.pixels
    height, width = pixels.shape[:2]
    if pixels.ndim == 3 and channels == 1:
        pixels = np.ascontiguousarray(pixels[:, :, 0])
    top = _white(picture, pixels, white)
    if longer_side:
        pixels = resize_area(pixels, *limited(height, width, longer_side=longer_side))
    if pixels.dtype != np.uint8:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / top)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None] if channels == 1 else np.repeat(pixels[:, :, None], channels, axis=2)
    return Decoded(pixels, height, width, picture.bits, picture.spacing)


def _white(picture: Picture, pixels: NDArray[Any], asked: float | None) -> float:
    if pixels.dtype == np.uint8 or picture.settled:
        return picture.white
    white = asked or picture.white
    if pixels.dtype == np.uint16 and white >= picture.white:
        return white
    lowest, highest = float(pixels.min()), float(pixels.max())
    if lowest < 0 or highest > white:
        raise BadFileError(
            "out_of_range",
            f"expected values from 0 to {white:g} (corpus.white), found {lowest:g} to {highest:g}",
        )
    if pixels.dtype.kind == "f" and highest <= 1 < white:
        raise BadFileError("out_of_range", f"expected floats to {white:g} (corpus.white), found 0 to {highest:g}")
    return white


def decode_mask(data: bytes, *, mask_values: Mapping[int, int | Literal["ignore"]], name: str = "") -> Pixels:
    """Decodes a mask file and replaces its values by labels.

    The file may hold grey values of 1 to 16 bits, floats that are whole numbers, or colours whose three channels are
    equal. A palette with colours gives its indices, and DICOM gives its stored values. Alpha is dropped.

    Args:
        data: The content of the whole file.
        mask_values: The label of each value that may occur in the file; "ignore" becomes `IGNORE_LABEL`.
        name: The name of the file, by which raw JSRT files are recognised.

    Returns:
        The label map, (H, W) uint8.

    Raises:
        BadFileError: If the file cannot be used, as in `decode_image`. In addition, the reason is `coloured_mask` if
            the three channels differ, or `unknown_label` if the mask has values that `mask_values` lacks; the detail
            then contains these values and their numbers of pixels.
    """
    values = decode_file(data, name=name, use="mask").pixels
    if values.ndim == 3:
        red, green, blue = cv2.split(values)
        if not (np.array_equal(blue, green) and np.array_equal(green, red)):
            raise BadFileError("coloured_mask", "expected a grey mask of label values, found colours")
        values = red
    if values.dtype.kind == "f":
        whole = np.clip(np.round(values), 0, 65535).astype(np.uint16)
        if not np.array_equal(whole, values):
            raise BadFileError("unknown_label", "expected whole numbers from 0 to 65535, found others")
        values = whole
    counts = (
        np.bincount(values.ravel()) if values.dtype == np.uint16 else cv2.calcHist([values], [0], None, [256], [0, 256])
    )
    present = {int(value): int(counts.item(value)) for value in np.flatnonzero(counts)}
    unknown = {value: count for value, count in present.items() if value not in mask_values}
    if unknown:
        expected, found = _first(sorted(mask_values)), _first([f"{value} ({unknown[value]} px)" for value in unknown])
        raise BadFileError("unknown_label", f"expected the values {expected} of corpus.mask_values, found also {found}")
    table = np.zeros(max(256, len(counts)), np.uint8)
    for value in present:
        label = mask_values[value]
        table[value] = IGNORE_LABEL if label == "ignore" else label
    if values.dtype == np.uint16:
        return table[values]
    if [int(table[value]) for value in present] == [0, 1]:
        # Most masks have these two labels. A threshold takes a tenth of the time of a look-up table.
        return cv2.threshold(values, min(present), 1, cv2.THRESH_BINARY)[1]
    return cv2.LUT(values, table)


def _first(values: Sequence[object]) -> str:
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    return ", ".join(map(str, values[:8])) + more
