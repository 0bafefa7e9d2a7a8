from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.evaluation.contact_sheet import Panel, contact_sheet
from lungseg_ray.imaging import PREDICTED, TRUTH, overlay
from lungseg_ray.run.curves import curves

Pixels = NDArray[np.uint8]


def box(top: int, left: int, *, label: int = 1, size: int = 20) -> Pixels:
    """(64, 80): a square of a label."""
    mask = np.zeros((64, 80), np.uint8)
    mask[top : top + size, left : left + size] = label
    return mask


def nearest(pixel: Pixels) -> tuple[int, int, int]:
    """The colour that an antialiased line was drawn in; grey where there is none."""
    colours = (TRUTH, *PREDICTED, (100, 100, 100))
    return min(colours, key=lambda colour: int(np.abs(pixel.astype(int) - colour).sum()))


def decoded(png: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


class TestOverlay:
    grey = np.full((64, 80, 1), 100, np.uint8)

    def test_outlines_are_where_they_belong(self) -> None:
        # Truth from (5, 5) to (24, 24), prediction from (35, 45) to (54, 64).
        drawn = overlay(self.grey, box(35, 45), box(5, 5))
        assert drawn.shape == (64, 80, 3)
        assert drawn.dtype == np.uint8
        for at in ((5, 15), (24, 15), (15, 5), (15, 24)):
            assert nearest(drawn[at]) == TRUTH
        for at in ((35, 55), (54, 55), (45, 45), (45, 64)):
            assert nearest(drawn[at]) == PREDICTED[0]
        # Inside and between, the image is as it was.
        for at in ((15, 15), (45, 55), (30, 35), (0, 0), (63, 79)):
            assert tuple(drawn[at]) == (100, 100, 100)

    def test_prediction_lies_above_the_truth(self) -> None:
        drawn = overlay(self.grey, box(5, 5), box(5, 5))
        assert nearest(drawn[5, 15]) == PREDICTED[0]

    def test_colours_by_label(self) -> None:
        drawn = overlay(self.grey, box(5, 5, label=2) + box(35, 45, label=5))
        assert nearest(drawn[5, 15]) == PREDICTED[1]
        assert nearest(drawn[35, 55]) == PREDICTED[0]

    def test_ignored_pixels_have_no_outline(self) -> None:
        nothing = np.zeros((64, 80), np.uint8)
        np.testing.assert_array_equal(overlay(self.grey, nothing, box(5, 5, label=255)), np.full((64, 80, 3), 100))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_input_stays(self, channels: int) -> None:
        image = np.random.default_rng(0).integers(0, 256, (64, 80, channels), np.uint8)
        prediction, truth = box(5, 5), box(10, 10)
        before = [array.copy() for array in (image, prediction, truth)]
        for array in (image, prediction, truth):
            array.flags.writeable = False
        drawn = overlay(image, prediction, truth)
        for array, copy in zip((image, prediction, truth), before, strict=True):
            np.testing.assert_array_equal(array, copy)
        np.testing.assert_array_equal(drawn[63, 79], np.broadcast_to(image[63, 79], 3))

    def test_lines_grow_with_the_image(self) -> None:
        mask = np.zeros((1200, 900), np.uint8)
        mask[300:900, 200:700] = 1
        drawn = overlay(np.zeros((1200, 900, 1), np.uint8), mask)
        # 1200 / 300 = 4 pixels wide.
        assert 3 <= int((drawn[600, :450].sum(axis=1) > 200).sum()) <= 6


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
        assert decoded(contact_sheet(rows, ["left", "right"])).size


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves(epochs: int) -> None:
    row = {"loss": 0.5, "val_loss": 0.4, "val_dice": 0.8, "val_iou": 0.7, "lr": 1e-3, "encoder_lr": 1e-4}
    history = [{**row, "epoch": epoch, "val_loss": 0.4 / epoch} for epoch in range(1, epochs + 1)]
    height, width = decoded(curves(history)).shape[:2]
    assert (height, width) == (pytest.approx(396, abs=3), pytest.approx(1320, abs=3))
