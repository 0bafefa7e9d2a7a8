from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg_ray.evaluation.contact_sheet import Panel, contact_sheet
from lungseg_ray.imaging import PREDICTED

Pixels = NDArray[np.uint8]


def box(top: int, left: int, *, label: int = 1, size: int = 20) -> Pixels:
    """(64, 80): a square of a label."""
    mask = np.zeros((64, 80), np.uint8)
    mask[top : top + size, left : left + size] = label
    return mask


def decoded(png: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


def panel(height: int = 64, width: int = 80, channels: int = 1) -> Panel:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    return Panel("a title\nof two lines", np.full((height, width, channels), 90, np.uint8), mask, mask)


class TestContactSheet:
    def test_rows_and_columns(self) -> None:
        sheet = decoded(contact_sheet({"worst": [panel()] * 4, "best": [panel()] * 4}, ["lung"]))
        height, width = sheet.shape[:2]
        assert 600 < height < 1200
        assert 1000 < width < 1800
        # A colour of the outlines is on the sheet, in OpenCV's order.
        assert (np.abs(sheet.astype(int) - np.array(PREDICTED[0][::-1])).max(axis=2) < 8).sum() > 100

    def test_one_image(self) -> None:
        sheet = decoded(contact_sheet({"worst": [panel()], "median": [panel()], "best": [panel()]}, ["lung"]))
        assert 200 < sheet.shape[1] < 700
        assert sheet.shape[0] > 900

    def test_rows_of_different_lengths_and_sizes(self) -> None:
        rows = {"a": [panel(), panel(2000, 1500, 3), panel(33, 47)], "b": [panel(channels=3)]}
        sheet = decoded(contact_sheet(rows, ["left", "right"]))
        alone = decoded(contact_sheet({"b": rows["b"]}, ["left", "right"]))
        # Three columns of the same width, and two rows.
        assert sheet.shape[1] > 2 * alone.shape[1]
        assert sheet.shape[0] > 1.5 * alone.shape[0]
