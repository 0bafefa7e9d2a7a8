"""The type of a decoded image file, and the limits that are checked before a file is read or decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from lungseg_ray.errors import BadFileError
from lungseg_ray.text import shown

Spacing = tuple[float, float] | None
Purpose = Literal["image", "mask", "alpha", "alone"]
"""What the pixels of a file are used for. An image "alone" has no mask, and is turned as the file asks."""

MOST_BYTES = 1 << 29
"""The maximum size of a file, bytes. Larger files are not read."""
MOST_PIXELS = 1 << 26
"""The maximum number of pixels of an image, rows x columns, such as 8192 x 8192. Larger images are not decoded."""
MOST_DECODED = 1 << 28
"""The maximum size of the decoded pixels of an image, bytes: with `MOST_PIXELS` pixels, four bytes per pixel."""


# A progressive JPEG has about ten scans. Each scan takes a pass over the whole image, however few bytes it has.
_SCAN, _MOST_SCANS = b"\xff\xda", 100


@dataclass(frozen=True)
class Picture:
    """An image at the full size and depth of its file.

    Attributes:
        pixels: The image as (H, W) grey or (H, W, 3) RGB; uint8, uint16, float32 or float64. Black is 0.
        bits: Bits per value in the file.
        white: The value of the brightest pixel that the format allows.
        spacing: Pixel spacing, millimetres (row, column); None if the file does not specify it.
        settled: Whether the file itself determines which value is white.
        axes: The directions in the patient in which columns and rows advance, such as "LP" for left and posterior;
            empty if the file does not specify them. Only NIfTI files do here.
    """

    pixels: NDArray[Any]
    bits: int
    white: float
    spacing: Spacing = None
    settled: bool = False
    axes: str = ""


def check_bytes(size: int) -> None:
    """Checks, before a file is read, that it has at most `MOST_BYTES`.

    Args:
        size: The size of the file, bytes.

    Raises:
        BadFileError: With the reason `too_large` if the file has more.
    """
    if size > MOST_BYTES:
        raise BadFileError("too_large", f"expected at most {MOST_BYTES >> 20} MiB, found {size >> 20} MiB")


def check_size(height: int, width: int, *, bits: int = 8) -> None:
    """Checks, before an image is decoded, that it is neither empty nor larger than `MOST_PIXELS` and `MOST_DECODED`.

    Args:
        height: The number of rows.
        width: The number of columns.
        bits: Bits per pixel, over all channels.

    Raises:
        BadFileError: With the reason `unreadable` if the image is empty, or `too_large` if it exceeds a limit.
    """
    # A file of text may declare numbers of any length.
    size = shown(f"{width} x {height}", 60)
    if height < 1 or width < 1:
        raise BadFileError("unreadable", f"expected an image, found {size} px")
    if height * width > MOST_PIXELS:
        raise BadFileError("too_large", f"expected at most {MOST_PIXELS / 1e6:.0f} million pixels, found {size} px")
    if height * width * bits > 8 * MOST_DECODED:
        raise BadFileError(
            "too_large", f"expected at most {MOST_DECODED >> 20} MiB of pixels, found {size} px of {bits} bits"
        )


def check_scans(data: bytes) -> None:
    """Checks, before a JPEG file or frame is decoded, that it has at most 100 scans.

    Args:
        data: The content of the file or the frame.

    Raises:
        BadFileError: With the reason `too_large` if it has more.
    """
    if (scans := data.count(_SCAN)) > _MOST_SCANS:
        raise BadFileError("too_large", f"expected at most {_MOST_SCANS} scans, found {scans}")
