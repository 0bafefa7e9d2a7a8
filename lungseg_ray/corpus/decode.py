"""Files become what a network is fed with: images of 8 bits and label maps, reduced to a workable size."""

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
    """One decoded image.

    Attributes:
        pixels: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
        height: rows of the file, before it was reduced.
        width: columns of the file, before it was reduced.
        bits: that the file gives to each value.
        spacing: millimetres per pixel of the file (row, column); None where it does not say.
    """

    pixels: Pixels
    height: int
    width: int
    bits: int
    spacing: Spacing


def decode_image(
    data: bytes, *, channels: int, longer_side: int | None = None, white: float | None = None, name: str = ""
) -> Decoded:
    """Decodes an image file and reduces it to 8 bits, after its size: the mean of many 16-bit values is rounded once.

    16 bits are scaled by the format's maximum, 65535 (the recipe), or by `white`; floats from 0 to 1, or to `white`;
    DICOM by its own tags. With one channel, a colour file is read as its first channel, red (the recipe); with three,
    grey is repeated.

    Args:
        data: the whole file.
        channels: 1 (grey) or 3 (RGB).
        longer_side: larger images are reduced to it, by area, pixels; None: none is.
        white: pixel value of white in 16-bit and float files.
        name: of the file.

    Raises:
        BadFileError: with the reason why the file cannot be used (see `REASONS`).
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

    Grey of 1, 8 or 16 bits, floats that are whole numbers, or colour whose three channels are equal; of a palette with
    colours, the indices; of DICOM, the stored values. Alpha is dropped.

    Args:
        data: the whole file.
        mask_values: the label of each value that may occur in the file; "ignore" becomes `IGNORE_LABEL`.
        name: of the file.

    Returns:
        (H, W) uint8 label map.

    Raises:
        BadFileError: as in `decode_image`, `coloured_mask`, or `unknown_label` with the values that `mask_values`
            lacks and how many pixels have them.
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
        # The usual mask, in a tenth of the time.
        return cv2.threshold(values, min(present), 1, cv2.THRESH_BINARY)[1]
    return cv2.LUT(values, table)


def _first(values: Sequence[object]) -> str:
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    return ", ".join(map(str, values[:8])) + more
