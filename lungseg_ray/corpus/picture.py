"""A decoded image file, and the limits that are checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from lungseg_ray.errors import BadFileError

Spacing = tuple[float, float] | None
Purpose = Literal["image", "mask"]


MOST_BYTES = 1 << 29
"""Of a file; more are not read."""
MOST_PIXELS = 1 << 26
"""Of an image, rows x columns, such as 8192 x 8192; more are not decoded."""
MOST_DECODED = 1 << 28
"""Bytes of an image's pixels: those of `MOST_PIXELS` have four at most."""


# A progressive JPEG has about ten scans; each costs a pass over the whole image, however few bytes it has.
_SCAN, _MOST_SCANS = b"\xff\xda", 100


@dataclass(frozen=True)
class Picture:
    """An image as its file holds it.

    Attributes:
        pixels: (H, W) grey or (H, W, 3) RGB; uint8, uint16, float32 or float64. Black is 0.
        bits: that the file gives to each value.
        white: value of the brightest pixel that the format has.
        spacing: millimetres per pixel (row, column); None where the file does not say.
        settled: whether the file itself says which value is white.
    """

    pixels: NDArray[Any]
    bits: int
    white: float
    spacing: Spacing = None
    settled: bool = False


def check_bytes(size: int) -> None:
    """Makes sure, before it is read, that a file is not larger than is read.

    Raises:
        BadFileError: `too_large`.
    """
    if size > MOST_BYTES:
        raise BadFileError("too_large", f"expected at most {MOST_BYTES >> 20} MiB, found {size >> 20} MiB")


def check_size(height: int, width: int, *, bits: int = 8) -> None:
    """Makes sure, before anything is decoded, that an image is neither empty nor larger than is decoded.

    Args:
        height: rows.
        width: columns.
        bits: of a pixel, all its channels together.

    Raises:
        BadFileError: `too_large` or `unreadable`.
    """
    if height < 1 or width < 1:
        raise BadFileError("unreadable", f"expected an image, found {width} x {height} px")
    if height * width > MOST_PIXELS:
        raise BadFileError(
            "too_large", f"expected at most {MOST_PIXELS / 1e6:.0f} million pixels, found {width} x {height} px"
        )
    if height * width * bits > 8 * MOST_DECODED:
        raise BadFileError(
            "too_large",
            f"expected at most {MOST_DECODED >> 20} MiB of pixels, found {width} x {height} px of {bits} bits",
        )


def check_scans(data: bytes) -> None:
    """Makes sure, before it is decoded, that a JPEG file or frame does not ask for endless passes.

    Raises:
        BadFileError: `too_large`.
    """
    if (scans := data.count(_SCAN)) > _MOST_SCANS:
        raise BadFileError("too_large", f"expected at most {_MOST_SCANS} scans, found {scans}")
