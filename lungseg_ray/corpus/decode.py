"""Decodes image files to 8-bit arrays of limited size, and mask files to label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.formats import decode_file, oriented
from lungseg_ray.corpus.picture import Picture, Spacing
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels, count_labels, limited, resize_area
from lungseg_ray.numerics.labels import IGNORE_LABEL

White = float | Sequence[float] | None
"""The pixel value of white, or several of which a file has the smallest that it does not exceed."""


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: The image as (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
        height: Rows of the image in the file, before it was reduced.
        width: Columns of the image in the file, before it was reduced.
        bits: Bits per value in the file.
        spacing: Pixel spacing in the file, millimetres (row, column); None if the file does not specify it.
        axes: The directions of columns and rows, as in `Picture`.
    """

    pixels: Pixels
    height: int
    width: int
    bits: int
    spacing: Spacing
    axes: str = ""


def decode_image(
    data: bytes,
    *,
    channels: int,
    longer_side: int | None = None,
    white: White = None,
    name: str = "",
    alone: bool = False,
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
        white: The pixel value of white in 16-bit and float files; of several, the smallest that the file does not
            exceed. None: the maximum of the format.
        name: The name of the file, by which raw JSRT files are recognised.
        alone: Whether the image has no mask, and is turned upright if the file asks for it.

    Returns:
        The image, with the size, the bits and the pixel spacing that it has in the file.

    Raises:
        BadFileError: If the file cannot be used; its `reason` is one of `REASONS`.
    """
    picture = decode_file(data, name=name, use="alone" if alone else "image")
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
    return Decoded(pixels, height, width, picture.bits, picture.spacing, picture.axes)


def _white(picture: Picture, pixels: NDArray[Any], asked: White) -> float:
    if pixels.dtype == np.uint8 or picture.settled:
        return picture.white
    if isinstance(asked, Sequence):
        highest = float(pixels.max())
        asked = next((white for white in sorted(asked) if highest <= white), max(asked))
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


def has_colours(pixels: NDArray[Any]) -> bool:
    """Returns whether the channels of an image (H, W) or (H, W, 3) differ."""
    return pixels.ndim == 3 and not (
        np.array_equal(pixels[:, :, 0], pixels[:, :, 1]) and np.array_equal(pixels[:, :, 1], pixels[:, :, 2])
    )


def packed_colours(pixels: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the colours of an image (H, W) or (H, W, 3) of 8 bits as numbers, 65536 * red + 256 * green + blue."""
    red, green, blue = (pixels,) * 3 if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    return red.astype(np.int64) << 16 | green.astype(np.int64) << 8 | blue


def colour_name(packed: int) -> str:
    """Returns the name of a packed colour, `#rrggbb`."""
    return f"#{packed:06x}"


def decode_mask(data: bytes, settings: CorpusSettings, *, name: str = "", axes: str = "") -> Pixels:
    """Decodes a mask file and replaces its values or colours by labels.

    The file may have grey values of 1 to 16 bits, floats that are whole numbers, or colours. A palette with colours
    gives its indices, and DICOM gives its stored values.

    Args:
        data: The content of the whole file.
        settings: The settings of the corpus, of which those that start with `mask_` are used.
        name: The name of the file, by which raw JSRT files are recognised.
        axes: The axes of the image, as in `Picture`. A mask whose file specifies others is turned.

    Returns:
        The label map, (H, W) uint8; `IGNORE_LABEL` for what is left out.

    Raises:
        BadFileError: If the file cannot be used, as in `decode_image`. In addition, the reason is `coloured_mask` if
            colours have no labels, `orientation` if the mask lies in another plane than its image, or `unknown_label`
            if the mask has values that have none; the detail then contains these values and their numbers of
            pixels.
    """
    picture = decode_file(data, name=name, use="alpha" if settings.mask_channel == "alpha" else "mask")
    picture = oriented(picture, axes)
    values = picture.pixels
    if settings.mask_threshold is not None:
        grey = values if values.ndim == 2 else values.mean(axis=2)
        if values.dtype.kind == "u" and int(values.max(initial=0)) <= 1:
            # Labels of 0 and 1 keep their meaning beside masks that reach white.
            return np.ascontiguousarray(grey, np.uint8)
        return (grey >= settings.mask_threshold * picture.white).astype(np.uint8)
    if settings.colours and values.dtype == np.uint8:
        return _labels_of_colours(values, settings)
    if values.ndim == 3:
        if has_colours(values):
            colours = np.unique(packed_colours(values)) if values.dtype == np.uint8 else np.empty(0)
            few = ", ".join(map(colour_name, colours.tolist())) if 0 < len(colours) <= 8 else "colours"
            raise BadFileError(
                "coloured_mask", f"expected a grey mask of label values, found {few} (corpus.mask_values)"
            )
        values = np.ascontiguousarray(values[:, :, 0])
    if values.dtype.kind == "f":
        whole = np.clip(np.round(values), 0, 65535).astype(np.uint16)
        if not np.array_equal(whole, values):
            raise BadFileError(
                "unknown_label", "expected whole numbers from 0 to 65535, found others (corpus.mask_threshold)"
            )
        values = whole
    return _labels_of_values(values, settings.labels)


def _labels_of_values(values: NDArray[Any], mask_values: Mapping[int, int | Literal["ignore"]]) -> Pixels:
    present = count_labels(values)
    unknown = {value: count for value, count in present.items() if value not in mask_values}
    if unknown:
        expected, found = _first(sorted(mask_values)), _first([f"{value} ({unknown[value]} px)" for value in unknown])
        raise BadFileError("unknown_label", f"expected the values {expected} of corpus.mask_values, found also {found}")
    table = np.zeros(max(256, max(present) + 1), np.uint8)
    for value in present:
        table[value] = _number(mask_values[value])
    if values.dtype == np.uint16:
        return table[values]
    if [int(table[value]) for value in present] == [0, 1]:
        # Most masks have these two labels. A threshold takes a tenth of the time of a look-up table.
        return cv2.threshold(values, min(present), 1, cv2.THRESH_BINARY)[1]
    return cv2.LUT(values, table)


def _labels_of_colours(values: NDArray[Any], settings: CorpusSettings) -> Pixels:
    packed = packed_colours(values)
    known = {int(name[1:], 16): _number(label) for name, label in settings.colours.items()}
    known |= {value * 0x010101: _number(label) for value, label in settings.labels.items() if 0 <= value < 256}
    present, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    unknown = [
        f"{colour_name(int(colour))} ({count} px)"
        for colour, count in zip(present, counts, strict=True)
        if int(colour) not in known
    ]
    if unknown:
        expected = _first([colour_name(colour) for colour in sorted(known)])
        raise BadFileError(
            "unknown_label", f"expected the colours {expected} of corpus.mask_values, found also {_first(unknown)}"
        )
    table = np.array([known[int(colour)] for colour in present], np.uint8)
    return table[places].reshape(packed.shape)


def _number(label: int | Literal["ignore"]) -> int:
    return IGNORE_LABEL if label == "ignore" else label


def _first(values: Sequence[object]) -> str:
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    return ", ".join(map(str, values[:8])) + more
