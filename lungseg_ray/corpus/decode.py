"""Bytes become pixels: image and mask files, decoded, paired, checked and reduced to a workable size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import phantom
from lungseg_ray.corpus.record import Record
from lungseg_ray.errors import BadFileError
from lungseg_ray.labels import IGNORE_LABEL
from lungseg_ray.storage import locate

Pixels = NDArray[np.uint8]
Vote = Literal["area", "bilinear"]
Spacing = tuple[float, float] | None

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = 0xDA


@dataclass(frozen=True)
class Sample:
    """One decoded image with its mask.

    Attributes:
        image: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
        mask: (H, W) uint8 label map; `IGNORE_LABEL` leaves a pixel out.
        source_height: rows of the file, before it was reduced.
        source_width: columns of the file, before it was reduced.
        spacing: millimetres per source pixel (row, column); None where the file does not say.
        image_sha256: of the image file's bytes (of the pixels of a phantom), hexadecimal.
        mask_sha256: of the mask file's bytes (of the pixels of a phantom), hexadecimal.
    """

    image: Pixels
    mask: Pixels
    source_height: int
    source_width: int
    spacing: Spacing
    image_sha256: str
    mask_sha256: str


def decode_image(data: bytes, *, channels: int) -> Pixels:
    """Decodes a PNG or JPEG file of 8 or 16 bits, grey or colour; alpha is dropped and an EXIF rotation ignored.

    16 bits are scaled by the format's maximum, 65535, and rounded (the recipe). With one channel, a colour file is
    read as its first channel, red (the recipe); with three, grey is repeated and colours are in RGB order.

    Returns:
        (H, W, channels) uint8.

    Raises:
        BadFileError: `empty_file`, or `unreadable`: not PNG or JPEG, damaged or truncated.
    """
    pixels = _decode(data)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], channels, axis=2)
    if channels == 1:
        return np.ascontiguousarray(pixels[:, :, 2:3])
    return np.ascontiguousarray(pixels[:, :, 2::-1])


def decode_mask(data: bytes, *, mask_values: Mapping[int, int | Literal["ignore"]]) -> Pixels:
    """Decodes a mask file and replaces its values by labels.

    Grey of 1, 8 or 16 bits, or colour (as palettes are expanded) whose three channels are equal; alpha is dropped.

    Args:
        data: the PNG or JPEG file.
        mask_values: the label of each value that may occur in the file; "ignore" becomes `IGNORE_LABEL`.

    Returns:
        (H, W) uint8 label map.

    Raises:
        BadFileError: `empty_file`, `unreadable` as in `decode_image`, `coloured_mask`, or `unknown_label` with the
            values that `mask_values` lacks and how many pixels have them.
    """
    values = _decode(data)
    if values.ndim == 3:
        blue, green, red = cv2.split(values)[:3]
        if not (np.array_equal(blue, green) and np.array_equal(green, red)):
            raise BadFileError("coloured_mask", "expected a grey mask of label values, found colours")
        values = red
    counts = (
        np.bincount(values.ravel()) if values.dtype == np.uint16 else cv2.calcHist([values], [0], None, [256], [0, 256])
    )
    present = {int(value): int(counts.item(value)) for value in np.flatnonzero(counts)}
    unknown = {value: count for value, count in present.items() if value not in mask_values}
    if unknown:
        shown = ", ".join(f"{value} ({count} px)" for value, count in list(unknown.items())[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise BadFileError(
            "unknown_label",
            f"expected the values {sorted(mask_values)} of corpus.mask_values, found also {shown}{more}",
        )
    table = np.zeros(max(256, len(counts)), np.uint8)
    for value in present:
        label = mask_values[value]
        table[value] = IGNORE_LABEL if label == "ignore" else label
    return table[values] if values.dtype == np.uint16 else cv2.LUT(values, table)


def resize_labels(mask: Pixels, height: int, width: int, *, vote: Vote = "area") -> Pixels:
    """Resizes a label map so that it stays label-valued and centred.

    Each label votes for every new pixel with the weight that the interpolation gives it there, and the heaviest wins;
    `IGNORE_LABEL` is a label like any other. (Nearest neighbour shifts a mask by up to half a source pixel.)

    Args:
        mask: (H, W) uint8 label map.
        height: rows of the result.
        width: columns of the result.
        vote: "area": all source pixels under the new one vote, when the map shrinks. "bilinear": those around its
            centre only; several times faster. An enlarged map is always voted on bilinearly.

    Returns:
        (height, width) uint8, with labels of `mask` only.
    """
    if mask.shape == (height, width):
        return mask
    shrinks = height <= mask.shape[0] and width <= mask.shape[1]
    interpolation = cv2.INTER_AREA if vote == "area" and shrinks else cv2.INTER_LINEAR

    def votes(label: int) -> Pixels:
        return cv2.resize(cv2.compare(mask, label, cv2.CMP_EQ), (width, height), interpolation=interpolation)

    if mask.max() <= 1:
        # Of two labels, one has the majority where its votes are 128 to 255.
        return (votes(1) > 127).astype(np.uint8)
    labels = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256])).astype(np.uint8)
    return labels[np.argmax([votes(int(label)) for label in labels], axis=0)]


def limit_size(image: Pixels, mask: Pixels, *, longer_side: int) -> tuple[Pixels, Pixels]:
    """Reduces an image and its mask, by area, so that the longer side is at most `longer_side`; the aspect stays.

    Args:
        image: (H, W, C) uint8.
        mask: (H, W) uint8 label map.
        longer_side: pixels.

    Returns:
        The image (h, w, C) and the mask (h, w), both uint8; as they were if they are small enough.
    """
    height, width = _limited(*mask.shape, longer_side=longer_side)
    return _resize_area(image, height, width), resize_labels(mask, height, width)


def read_sample(record: Record, settings: CorpusSettings, *, longer_side: int) -> Sample:
    """Reads the image and the mask of a record: the one way from a corpus to pixels.

    Args:
        record: what to read; a phantom is drawn.
        settings: channels, the labels of mask values, and what to do with empty masks.
        longer_side: larger images are reduced to it, pixels.

    Raises:
        BadFileError: with the reason why the pair cannot be used (see `REASONS`).
    """
    if phantom.is_phantom(record.image_uri):
        drawing, mask = phantom.draw_uri(record.image_uri)
        image = np.repeat(drawing[:, :, None], settings.channels, axis=2)
        image_data, mask_data = drawing.tobytes(), mask.tobytes()
    else:
        if record.mask_uri is None:
            raise BadFileError("no_mask", f"{record.image_uri} has no mask")
        image_data, mask_data = _read(record.image_uri), _read(record.mask_uri)
        image = decode_image(image_data, channels=settings.channels)
        mask = decode_mask(mask_data, mask_values=settings.labels)
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        raise BadFileError(
            "size_mismatch",
            f"expected a mask of the image's size, {width} x {height} px, found {mask.shape[1]} x {mask.shape[0]} px",
        )
    if settings.empty_masks == "set_aside" and not np.any((mask != 0) & (mask != IGNORE_LABEL)):
        raise BadFileError("empty_mask", "expected at least one labelled pixel, found none")
    image, mask = limit_size(image, mask, longer_side=longer_side)
    return Sample(
        image=image,
        mask=mask,
        source_height=height,
        source_width=width,
        spacing=None,
        image_sha256=hashlib.sha256(image_data).hexdigest(),
        mask_sha256=hashlib.sha256(mask_data).hexdigest(),
    )


def read_image(uri: str, *, channels: int, longer_side: int) -> tuple[Pixels, int, int, Spacing]:
    """Reads an image that has no mask, for prediction.

    Args:
        uri: a path, an s3:// URI or a phantom's URI.
        channels: 1 (grey) or 3 (RGB).
        longer_side: larger images are reduced to it, by area, pixels.

    Returns:
        The image (H, W, channels) uint8; the file's own rows and columns; millimetres per source pixel (row, column)
        or None where the file does not say.

    Raises:
        BadFileError: as in `decode_image`, or if there is no such file.
    """
    if phantom.is_phantom(uri):
        image = np.repeat(phantom.draw_uri(uri)[0][:, :, None], channels, axis=2)
    else:
        image = decode_image(_read(uri), channels=channels)
    height, width = image.shape[:2]
    return _resize_area(image, *_limited(height, width, longer_side=longer_side)), height, width, None


def _read(uri: str) -> bytes:
    try:
        return locate(uri).read_bytes()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        # Any other OSError (a store that does not answer) says nothing about the file and must not set it aside.
        raise BadFileError("unreadable", f"{uri}: {error.strerror or error}") from error


def _decode(data: bytes) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """(H, W), (H, W, 3) BGR or (H, W, 4) BGRA, as stored."""
    if not data:
        raise BadFileError("empty_file", "expected a PNG or JPEG file, found 0 bytes")
    if data.startswith(_PNG_START):
        whole = data.rfind(_PNG_END) > 0
    elif data.startswith(_JPEG_START):
        whole = data.rfind(_JPEG_END, _first_scan(data)) > 0
    else:
        raise BadFileError("unreadable", f"expected a PNG or JPEG file, found the first bytes {data[:8]!r}")
    if not whole:
        # OpenCV may return such an image with its lower part grey.
        raise BadFileError("unreadable", f"truncated: the end marker is missing after {len(data)} bytes")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadFileError("unreadable", f"OpenCV: {error.err}") from error
    if pixels is None:
        raise BadFileError("unreadable", f"OpenCV cannot decode these {len(data)} bytes")
    return pixels


def _first_scan(data: bytes) -> int:
    """Where a JPEG file's pixels start; an embedded preview before it has an end marker of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == _JPEG_SCAN:
            return at
        # A fill byte may stand before any marker.
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def _limited(height: int, width: int, *, longer_side: int) -> tuple[int, int]:
    scale = min(1.0, longer_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize_area(image: Pixels, height: int, width: int) -> Pixels:
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
