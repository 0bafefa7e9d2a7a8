"""Operations on pixel arrays: resizing images and label maps, drawing outlines, and encoding images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import putchunk

from lungseg_ray.names import Fit
from lungseg_ray.numerics.labels import IGNORE_LABEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG_HEADER = 33
"""The bytes of the signature and of the header chunk, which every PNG file begins with."""
Pixels = NDArray[np.uint8]
"""Images and label maps are uint8 arrays."""
ResizeMode = Literal["area", "bilinear"]
"""These are the ways in which source pixels are weighted when a label map is resized; see `resize_labels`."""


def resize_image(image: Pixels, size: int, *, fit: Fit = "stretch") -> Pixels:
    """Resizes an image for prediction in the same way as the augmentation preset `valid`.

    Args:
        image: (H, W, C) uint8.
        size: Height and width of the result, pixels.
        fit: How an image that is not square becomes so.

    Returns:
        (size, size, C) uint8.
    """
    square = pad_to_square(image) if fit == "pad" else image
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, -1)


def pad_to_square(pixels: Pixels) -> Pixels:
    """Adds borders of 0 to both ends of the shorter side, as much to one as to the other.

    Args:
        pixels: (H, W) or (H, W, C) uint8.

    Returns:
        (S, S) or (S, S, C) uint8, S being the longer side; `pixels` itself if it is square.
    """
    height, width = pixels.shape[:2]
    if height == width:
        return pixels
    top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    square = np.zeros((max(height, width),) * 2 + pixels.shape[2:], np.uint8)
    square[top : top + height, left : left + width] = pixels
    return square


def resize_labels(mask: Pixels, height: int, width: int, *, mode: ResizeMode = "area") -> Pixels:
    """Resizes a label map such that the result contains only its labels and is not shifted.

    Each label votes for each new pixel with the weight that the interpolation assigns to it there, and the label with
    the largest weight wins. `IGNORE_LABEL` is treated like any other label. Nearest-neighbour interpolation is not used
    because it shifts a mask by up to half a source pixel.

    Args:
        mask: (H, W) uint8 label map.
        height: Rows of the result.
        width: Columns of the result.
        mode: Which source pixels vote if the map shrinks. "area": all source pixels under the new pixel. "bilinear":
            only those around the centre of the new pixel, which is several times faster. If the map is enlarged, the
            vote is always bilinear.

    Returns:
        (height, width) uint8 label map that contains only labels of `mask`.
    """
    if mask.shape == (height, width):
        return mask
    shrinks = height <= mask.shape[0] and width <= mask.shape[1]
    interpolation = cv2.INTER_AREA if mode == "area" and shrinks else cv2.INTER_LINEAR

    def votes(label: int) -> Pixels:
        return cv2.resize(cv2.compare(mask, label, cv2.CMP_EQ), (width, height), interpolation=interpolation)

    if mask.max() <= 1:
        # With two labels, a label has the majority where its votes are 128 to 255.
        marked = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY)[1]
        share = cv2.resize(marked, (width, height), interpolation=interpolation)
        return cv2.threshold(share, 127, 1, cv2.THRESH_BINARY)[1]
    labels = list(count_labels(mask))
    return np.array(labels, np.uint8)[np.argmax([votes(label) for label in labels], axis=0)]


def count_labels(mask: Pixels) -> dict[int, int]:
    """Counts the pixels of each value.

    Args:
        mask: (H, W) uint8, not empty.

    Returns:
        The number of pixels by value, for the values that occur, in ascending order.
    """
    # Most masks have two values at most, which are counted in a fraction of the time of a histogram.
    ends = {int(end): int(np.count_nonzero(mask == end)) for end in (mask.min(), mask.max())}
    if sum(ends.values()) == mask.size:
        return ends
    counts = np.bincount(mask.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def limited(height: int, width: int, *, longer_side: int) -> tuple[int, int]:
    """Computes the size of an image after its longer side is reduced to a limit at the same aspect ratio.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        longer_side: Limit of the longer side, pixels; a smaller image keeps its size.

    Returns:
        Rows and columns of the reduced image, at least 1 each.
    """
    scale = min(1.0, longer_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_area(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resizes an array by area interpolation.

    Args:
        pixels: (H, W) or (H, W, C).
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        The resized array; `pixels` itself if it already has the size.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def write_text(image: Pixels, word: str, *, across: float, down: float, scale: float, grey: int) -> None:
    """Writes a word into an image, in place, near its left or right edge.

    Args:
        image: (H, W) or (H, W, C) uint8, contiguous.
        word: The word.
        across: The place from left to right, 0 to 1, of which the middle is left out.
        down: The place from top to bottom, 0 to 1.
        scale: The size of the letters; at 1, they have a twelfth of the height of the image.
        grey: Their grey value.
    """
    height, width = image.shape[:2]
    size = scale * height / 12 / 22
    thickness = max(round(2 * size), 1)
    (long, tall), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
    free = max(width - long, 0)
    place = across * 0.5 if across < 0.5 else 1 - (1 - across) * 0.5
    left, bottom = round(place * free), round(tall + down * max(height - tall, 0))
    cv2.putText(
        image, word, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, size, (grey,) * 3, thickness, lineType=cv2.LINE_AA
    )


TRUTH = (46, 204, 113)
"""Outlines of true labels have this colour (RGB, 0 to 255)."""
PREDICTED = ((255, 99, 71), (255, 193, 7), (103, 183, 255), (214, 130, 255))
"""Outlines of predicted labels have these colours (RGB, 0 to 255), from label 1 on; further labels repeat them."""


def overlay(
    image: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Draws the outlines of labels on an image.

    Args:
        image: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
        prediction: (H, W) uint8 label map; label 0 is the background and is not drawn.
        truth: (H, W) uint8 label map, drawn below the prediction; label 0 and `IGNORE_LABEL` are not drawn.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    canvas = np.ascontiguousarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
    if canvas is image:
        canvas = image.copy()
    width = max(round(max(image.shape[:2]) / 300), 1)
    if truth is not None:
        for label in np.unique(truth[(truth != 0) & (truth != IGNORE_LABEL)]):
            _outline(canvas, truth == label, TRUTH, width)
    for label in np.unique(prediction[prediction != 0]):
        _outline(canvas, prediction == label, PREDICTED[(label - 1) % len(PREDICTED)], width)
    return canvas


def _outline(
    canvas: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], colour: tuple[int, int, int], width: int
) -> None:
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, lines, -1, colour, width, cv2.LINE_AA)


def fit_to(pixels: Pixels, longer_side: int) -> Pixels:
    """Resizes an image for display such that its longer side has a given length.

    Args:
        pixels: (H, W, C) uint8.
        longer_side: Length of the longer side of the result, pixels.

    Returns:
        (height, width, C) uint8, with the aspect ratio of the input.
    """
    height, width = _fitted(pixels, longer_side)
    interpolation = cv2.INTER_AREA if height < pixels.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=interpolation).reshape(height, width, -1)


def fit_labels_to(mask: Pixels, longer_side: int) -> Pixels:
    """Resizes a label map for display such that its longer side has a given length.

    The result is too coarse for measurements, because it is interpolated by nearest neighbour.

    Args:
        mask: (H, W) uint8 label map.
        longer_side: Length of the longer side of the result, pixels.

    Returns:
        (height, width) uint8 label map, with the aspect ratio of the input.
    """
    height, width = _fitted(mask, longer_side)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _fitted(pixels: Pixels, longer_side: int) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    scale = longer_side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def png(pixels: Pixels) -> bytes:
    """Encodes an image as a PNG file.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8.

    Returns:
        The content of the file.
    """
    ordered = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
    return cv2.imencode(".png", ordered)[1].tobytes()


def png_with_texts(pixels: Pixels, texts: Mapping[str, str]) -> bytes:
    """Encodes a grey image as a PNG file with texts.

    Args:
        pixels: (H, W) uint8.
        texts: The texts by key, ASCII.

    Returns:
        The content of the file.
    """
    # OpenCV encodes in half the time of Pillow, but cannot write a text.
    image, chunks = png(pixels), io.BytesIO()
    for key, text in texts.items():
        putchunk(chunks, b"tEXt", f"{key}\0{text}".encode("latin-1"))
    return image[:_PNG_HEADER] + chunks.getvalue() + image[_PNG_HEADER:]


def texts_of_png(data: bytes) -> dict[str, str]:
    """Returns the texts of a PNG file by key; empty if it has none or cannot be read.

    Args:
        data: The content of the file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {}


def hex_colour(colour: tuple[int, int, int]) -> str:
    """Formats an RGB colour, 0 to 255 each, as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def figure_png(figure: Figure) -> bytes:
    """Renders a Matplotlib figure as the content of a PNG file. No text in it is read as a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
