from __future__ import annotations

import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lungseg_ray.corpus.decode import decode_image
from lungseg_ray.evaluation.contact_sheet import Panel, contact_sheet
from lungseg_ray.imaging import PREDICTED, TRUTH, ResizeMode, overlay, png_with_texts, resize_labels, texts_of_png
from lungseg_ray.text import markdown, shown
from tests.corpus.test_decode import encoded, smooth
from tests.evaluation.test_contact_sheet import Pixels, box


def centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(row, column) in units of the side, so that sizes compare."""
    return (np.argwhere(mask).mean(0) + 0.5) / mask.shape


class TestResizeLabels:
    def test_majority_of_an_area_wins(self) -> None:
        # (2, 4) -> (1, 2): three of four 3s; three of four 255s
        mask = np.array([[3, 3, 255, 255], [3, 0, 255, 3]], np.uint8)
        assert resize_labels(mask, 1, 2).tolist() == [[3, 255]]

    def test_no_value_between_two_labels(self) -> None:
        mask = np.random.default_rng(0).choice(np.array([0, 2, 9, 255], np.uint8), (101, 77))
        mode: ResizeMode
        for mode in ("area", "bilinear"):
            for shape in ((33, 40), (101, 30), (200, 150), (50, 150)):
                resized = resize_labels(mask, *shape, mode=mode)
                assert resized.shape == shape
                assert set(np.unique(resized)) <= {0, 2, 9, 255}

    @pytest.mark.parametrize("shape", [(1000, 777), (421, 640), (257, 255), (512, 512), (120, 120)])
    @pytest.mark.parametrize("labels", [(0, 1), (0, 2)])
    @pytest.mark.parametrize("mode", ["area", "bilinear"])
    def test_centroid_stays(self, shape: tuple[int, int], labels: tuple[int, int], mode: ResizeMode) -> None:
        # Mean over 12 places of an ellipse: within 0.05 px of the 256 x 256 map, there and back. (One place alone says
        # little: the pixels of its outline round to one side or the other.)
        height, width = shape
        rng = np.random.default_rng(0)
        shifts, overlaps = [], []
        for row, column in rng.uniform(0.4, 0.6, (12, 2)):
            mask = np.zeros(shape, np.uint8)
            centre, axes = (int(width * column), int(height * row)), (width // 4, height // 3)
            cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, labels[1], -1)
            small = resize_labels(mask, 256, 256, mode=mode)
            back = resize_labels(small, height, width, mode=mode)
            shifts.append([centroid(resized > 0) - centroid(mask > 0) for resized in (small, back)])
            overlaps.append(2 * np.sum((back > 0) & (mask > 0)) / (np.sum(back > 0) + np.sum(mask > 0)))
        np.testing.assert_allclose(np.mean(shifts, 0) * 256, 0, atol=0.05)
        assert min(overlaps) > 0.99


class TestLongerSide:
    def test_the_aspect_stays(self) -> None:
        # 300 x 201 to at most 100: a third, 100 x 67
        found = decode_image(encoded(smooth(300, 201)), channels=3, longer_side=100)
        assert found.pixels.shape == (100, 67, 3)
        assert (found.height, found.width) == (300, 201)

    def test_16_bits_are_averaged_before_they_are_rounded(self) -> None:
        block = np.array([[120, 120], [120, 520]], np.uint16)
        # (120 * 3 + 520) / 4 = 220 -> 0.856 -> 1; rounded before: (0 + 0 + 0 + 2) / 4 = 0.5 -> 0
        assert decode_image(encoded(block), channels=1, longer_side=1).pixels.item() == 1

    def test_small_ones_are_left(self) -> None:
        pixels = smooth(5, 4)
        np.testing.assert_array_equal(decode_image(encoded(pixels), channels=1, longer_side=5).pixels[:, :, 0], pixels)


def nearest(pixel: Pixels) -> tuple[int, int, int]:
    """The colour that an antialiased line was drawn in; grey where there is none."""
    colours = (TRUTH, *PREDICTED, (100, 100, 100))
    return min(colours, key=lambda colour: int(np.abs(pixel.astype(int) - colour).sum()))


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


NASTY = [
    "x_$1_$2",
    "$\\frac{",
    "\\alpha",
    "[red]",
    "<b>&",
    "_hidden",
    "a\x1b[2J\r\n",
    "%s{0}",
    "\ud800",
    "|`*#",
    "=1+1",
]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_is_markup_in_a_picture(name: str) -> None:
    pixels = np.zeros((20, 30, 1), np.uint8)
    panel = Panel(title=shown(name), image=pixels, truth=pixels[:, :, 0], prediction=pixels[:, :, 0])
    assert contact_sheet({"worst": [panel]}, [shown(name)]).startswith(b"\x89PNG")


@given(st.text())
def test_no_text_is_markup_in_markdown(text: str) -> None:
    written = markdown(text)
    assert "\n" not in written
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_{}\[\]<>|#$~!&]", written)


def test_a_png_that_says_that_it_is_huge_has_no_texts() -> None:
    """Pillow raises an error of its own for it, which is none of the usual ones."""
    small = png_with_texts(np.zeros((8, 8), np.uint8), {"key": "ab"})
    assert texts_of_png(small) == {"key": "ab"}
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + small[24:29]
    huge = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    assert texts_of_png(huge) == {}
