"""Operations on pixel arrays: resizing images and label maps, drawing outlines, encoding pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from lungseg_ray.numerics.labels import IGNORE_LABEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def resize_image(image: Pixels, size: int) -> Pixels:
    """Resizes an image as the preset `valid` does, for prediction.

    Args:
        image: (H, W, C) uint8.
        size: height and width of the result, pixels.

    Returns:
        (size, size, C) uint8.
    """
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, -1)


Pixels = NDArray[np.uint8]
ResizeMode = Literal["area", "bilinear"]


def resize_labels(mask: Pixels, height: int, width: int, *, vote: ResizeMode = "area") -> Pixels:
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
        marked = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY)[1]
        share = cv2.resize(marked, (width, height), interpolation=interpolation)
        return cv2.threshold(share, 127, 1, cv2.THRESH_BINARY)[1]
    labels = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256])).astype(np.uint8)
    return labels[np.argmax([votes(int(label)) for label in labels], axis=0)]


def limited(height: int, width: int, *, longer_side: int) -> tuple[int, int]:
    """Rows and columns of an image once its longer side is at most `longer_side`; the aspect stays."""
    scale = min(1.0, longer_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_area(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resizes (H, W) or (H, W, C) by area; as it was if it has the size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


TRUTH = (46, 204, 113)
PREDICTED = ((255, 99, 71), (255, 193, 7), (103, 183, 255), (214, 130, 255))
"""Colours (RGB) of true outlines, and of predicted ones by label; later labels take them again from the first."""


def overlay(
    image: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """An image with the outlines of its labels.

    Args:
        image: (H, W, C) uint8, C = 1 or 3.
        prediction: (H, W) uint8 labels, 0 is background.
        truth: (H, W) uint8 labels, drawn beneath; `IGNORE_LABEL` is not drawn.

    Returns:
        (H, W, 3) uint8 RGB.
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
    """Resizes an image for display, so that its longer side has so many pixels.

    Args:
        pixels: (H, W, C) uint8.
        longer_side: of the result, pixels.
    """
    height, width = _fitted(pixels, longer_side)
    interpolation = cv2.INTER_AREA if height < pixels.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=interpolation).reshape(height, width, -1)


def fit_labels_to(mask: Pixels, longer_side: int) -> Pixels:
    """Resizes a label map for display, so that its longer side has so many pixels; too coarse for measuring.

    Args:
        mask: (H, W) uint8.
        longer_side: of the result, pixels.
    """
    height, width = _fitted(mask, longer_side)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _fitted(pixels: Pixels, longer_side: int) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    scale = longer_side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def png(pixels: Pixels) -> bytes:
    """A picture as a PNG file.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8.
    """
    ordered = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1])
    return cv2.imencode(".png", ordered)[1].tobytes()


def hex_colour(colour: tuple[int, int, int]) -> str:
    """An RGB colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def figure_png(figure: Figure) -> bytes:
    """A figure of matplotlib as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
