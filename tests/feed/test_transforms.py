from __future__ import annotations

import cv2
import numpy as np
import pytest

from lungseg_ray.feed.augment import Augment, build_augmentation
from lungseg_ray.feed.transforms import BrightnessRamp, BurntInText, Framing, Opacities, PadToSquare
from lungseg_ray.imaging import Pixels, pad_to_square, resize_image

SIZE = 128


def disc(height: int, width: int) -> tuple[Pixels, Pixels]:
    """A bright disc on black (H, W, 1), a fifth of the height in radius, in the middle, and its mask."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (width // 2, height // 2), height // 5, 1, -1)
    return mask[:, :, None] * 200, mask


def extent(mask: Pixels) -> tuple[int, int]:
    """The height and width of what is marked."""
    rows, columns = np.nonzero(mask)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def framing(*, zoom: float = 1.0, aspect: float = 1.0, degrees: float = 0.0, shift: float = 0.0) -> Augment:
    span = (min(aspect, 1 / aspect), max(aspect, 1 / aspect))
    one = Framing(size=SIZE, zoom=(zoom, zoom), aspect=span, degrees=degrees, shear=0.0, shift=shift)
    return Augment([one], size=SIZE)


class TestFraming:
    def test_nothing_drawn_is_a_resize(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (200, 300, 1), np.uint8)
        image, _ = framing()(noise, np.zeros((200, 300), np.uint8), seed=0)
        difference = np.abs(image.astype(int) - resize_image(noise, SIZE))
        assert difference.max() <= 8  # OpenCV computes the two with different fixed-point weights
        assert difference.mean() < 1

    @pytest.mark.parametrize("zoom", [0.6, 1.3])
    def test_zoom(self, zoom: float) -> None:
        _, mask = framing(zoom=zoom)(*disc(256, 256), seed=0)
        assert extent(mask) == pytest.approx((zoom * SIZE * 0.4, zoom * SIZE * 0.4), abs=2)

    def test_aspect_keeps_the_area(self) -> None:
        image, before = disc(256, 256)
        ratios = []
        for seed in range(60):
            _, mask = framing(aspect=1.5)(image, before, seed=seed)
            height, width = extent(mask)
            ratios.append(width / height)
            assert mask.mean() == pytest.approx(before.mean(), rel=0.03)
        assert min(ratios) == pytest.approx(1 / 1.5, rel=0.1)
        assert max(ratios) == pytest.approx(1.5, rel=0.1)
        # As many images become narrower as wider.
        assert np.mean(np.log(ratios)) == pytest.approx(0, abs=0.1)

    def test_masks_move_with_their_images(self) -> None:
        moved = framing(zoom=0.9, aspect=1.3, degrees=20, shift=0.1)
        shifts = []
        for seed in range(100):
            image, mask = moved(*disc(300, 200), seed=seed)
            weights = np.where(image[:, :, 0] > 160, image[:, :, 0], 0).astype(float)
            rows, columns = np.indices(weights.shape)
            seen = np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()
            shifts.append(seen - np.argwhere(mask).mean(0))
        np.testing.assert_allclose(np.mean(shifts, 0), 0, atol=0.1)

    def test_half_of_the_borders_are_black(self) -> None:
        bright = np.full((64, 64, 1), 255, np.uint8), np.full((64, 64), 1, np.uint8)
        corners = []
        for seed in range(200):
            image, mask = framing(zoom=0.5)(*bright, seed=seed)
            assert mask[0, 0] == 0
            corners.append(int(image[0, 0, 0]))
        assert 70 < corners.count(0) < 130
        assert max(corners) <= 160


def test_padding_keeps_the_aspect_ratio() -> None:
    image, mask = disc(100, 180)
    square, marked = Augment([PadToSquare(p=1.0)], size=180)(image, mask, seed=0)
    np.testing.assert_array_equal(square[40:140], image)
    np.testing.assert_array_equal(marked[40:140], mask)
    assert not square[:40].any()
    assert not square[140:].any()
    assert pad_to_square(square) is square
    for preset in ("valid", "light", "chest", "chest_robust"):
        drawn, _ = build_augmentation(preset, size=64, fit="pad")(image, mask, seed=0)
        assert drawn.shape == (64, 64, 1)
    _, small = build_augmentation("valid", size=90, fit="pad")(image, mask, seed=0)
    height, width = extent(small)
    assert height == pytest.approx(width, abs=1)


class TestLooks:
    def test_a_ramp_leaves_black_and_white(self) -> None:
        image = np.zeros((64, 64, 1), np.uint8)
        image[:, :32] = 255
        changed = BrightnessRamp(gamma=(0.5, 2.0), p=1.0)(image=image)["image"]
        np.testing.assert_array_equal(changed, image)

    def test_a_ramp_is_one(self) -> None:
        grey = np.full((64, 64, 1), 100, np.uint8)
        augment = Augment([BrightnessRamp(gamma=(0.5, 2.0), p=1.0)], size=64)
        spans = []
        for seed in range(20):
            changed, _ = augment(grey, np.zeros((64, 64), np.uint8), seed=seed)
            corners = changed[[0, 0, -1, -1], [0, -1, 0, -1], 0].astype(int)
            spans.append(np.ptp(corners))
            # It has the same slope everywhere, so that opposite corners have the same sum in the exponent.
            exponents = np.log(corners / 255) / np.log(100 / 255)
            assert exponents[0] + exponents[3] == pytest.approx(exponents[1] + exponents[2], abs=0.05)
        assert max(spans) > 40

    def test_opacities_lie_in_what_is_marked(self) -> None:
        mask = np.zeros((100, 100), np.uint8)
        mask[20:80, 10:40] = 1
        mask[:, 90:] = 255
        augment = Augment([Opacities(count=(1, 1), radius=(0.05, 0.05), strength=(0.9, 0.9), p=1.0)], size=100)
        for seed in range(30):
            changed, marked = augment(np.full((100, 100, 1), 30, np.uint8), mask, seed=seed)
            row, column = np.unravel_index(changed[:, :, 0].argmax(), (100, 100))
            assert mask[row, column] == 1
            assert changed.min() == 30
            np.testing.assert_array_equal(marked, mask)
        changed, _ = augment(np.full((100, 100, 1), 30, np.uint8), np.zeros((100, 100), np.uint8), seed=0)
        assert (changed == 30).all()

    @pytest.mark.parametrize("channels", [1, 3])
    def test_text_is_written(self, channels: int) -> None:
        augment = Augment([BurntInText(count=(1, 2), p=1.0)], size=128)
        empty = np.full((128, 128, channels), 90, np.uint8)
        for seed in range(20):
            changed, _ = augment(empty, np.zeros((128, 128), np.uint8), seed=seed)
            assert 0 < (changed != 90).mean() < 0.4
        assert (empty == 90).all()
