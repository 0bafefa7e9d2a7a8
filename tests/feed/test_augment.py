from __future__ import annotations

import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.errors import UserError
from lungseg_ray.feed.augment import _BUILDERS, build_augmentation
from lungseg_ray.imaging import resize_image
from lungseg_ray.names import PRESETS

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def pair() -> tuple[Pixels, Pixels]:
    """An image (300, 400, 1) without a 0 and a mask (300, 400) of 0, 2 and 255."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(1, 256, (300, 400), np.uint8), (0, 0), 2)[:, :, None]
    mask = np.zeros((300, 400), np.uint8)
    cv2.ellipse(mask, (180, 140), (90, 60), 20, 0, 360, 2, -1)
    mask[200:230, 250:350] = 255
    return image, mask


def test_every_named_preset_is_built() -> None:
    assert tuple(_BUILDERS) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
class TestEveryPreset:
    def test_shapes_types_and_labels(self, preset: str, pair: tuple[Pixels, Pixels]) -> None:
        augment = build_augmentation(preset, size=96)
        for channels in (1, 3):
            for seed in range(30):
                image, mask = augment(np.repeat(pair[0], channels, 2), pair[1], seed=seed)
                assert image.shape == (96, 96, channels)
                assert mask.shape == (96, 96)
                assert image.dtype == mask.dtype == np.uint8
                assert image.flags.c_contiguous
                assert mask.flags.c_contiguous
                assert set(np.unique(mask)) <= {0, 2, 255}

    def test_seed_alone_decides(self, preset: str, pair: tuple[Pixels, Pixels]) -> None:
        fresh = {seed: build_augmentation(preset, size=64)(*pair, seed=(7, seed)) for seed in range(25)}
        used = build_augmentation(preset, size=64)
        np.random.seed(5)
        for seed in (*reversed(range(25)), *range(25)):
            for drawn, expected in zip(used(*pair, seed=(7, seed)), fresh[seed], strict=True):
                np.testing.assert_array_equal(drawn, expected)

    def test_read_only_input_stays(self, preset: str, pair: tuple[Pixels, Pixels]) -> None:
        image, mask = pair[0].copy(), pair[1].copy()
        image.flags.writeable = mask.flags.writeable = False
        for seed in range(20):
            build_augmentation(preset, size=64)(image, mask, seed=seed)
        np.testing.assert_array_equal(image, pair[0])

    def test_image_and_mask_move_together(self, preset: str) -> None:
        # The image is its own mask, 0 or 250: where both are sure, they agree.
        mask = np.zeros((320, 320), np.uint8)
        cv2.ellipse(mask, (140, 170), (60, 100), 15, 0, 360, 1, -1)
        image = (mask * 250)[:, :, None]
        augment = build_augmentation(preset, size=128)
        wrong = []
        for seed in range(40):
            drawn, moved = augment(image, mask, seed=seed)
            wrong.append(np.mean((drawn[:, :, 0] > 110) != (moved > 0)))
        holes = 16 * 16 * 16 / 128**2
        tolerance = 0.04 + (holes if preset in ("medium", "heavy") else 0)
        # chest_robust also draws negatives, letters and bright borders, but in fewer than half of the images.
        assert (np.median(wrong) if preset == "chest_robust" else max(wrong)) < tolerance


def test_seeds_differ(pair: tuple[Pixels, Pixels]) -> None:
    for preset in set(PRESETS) - {"valid"}:
        augment = build_augmentation(preset, size=64)
        assert len({augment(*pair, seed=(0, seed))[0].tobytes() for seed in range(20)}) >= 19
    light = build_augmentation("light", size=64)
    np.testing.assert_array_equal(light(*pair, seed=3)[0], light(*pair, seed=(3,))[0])
    light(*pair, seed=-1)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"'hard'.*valid, light, medium, heavy, chest"):
        build_augmentation("hard", size=64)


@pytest.mark.parametrize("shape", [(300, 400, 1), (64, 64, 1), (50, 70, 3), (1024, 1024, 1)])
def test_prediction_resizes_as_valid_does(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected, _ = build_augmentation("valid", size=64)(image, np.zeros(shape[:2], np.uint8), seed=0)
    np.testing.assert_array_equal(resize_image(image, 64), expected)


@pytest.mark.parametrize("shape", [(1024, 1024), (512, 512), (421, 640), (120, 120)])
def test_valid_keeps_the_mask_centred(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    cv2.ellipse(mask, (shape[1] // 2 + 3, shape[0] // 2 - 5), (shape[1] // 4, shape[0] // 3), 20, 0, 360, 1, -1)
    _, small = build_augmentation("valid", size=256)(mask[:, :, None], mask, seed=0)
    before, after = ((np.argwhere(each).mean(0) + 0.5) / each.shape * 256 for each in (mask, small))
    np.testing.assert_allclose(after, before, rtol=0, atol=0.05)


@pytest.mark.parametrize("preset", ["light", "heavy", "chest"])
def test_moved_masks_are_centred_on_moved_images(preset: str) -> None:
    # A bright disc on black: the centroid of its pixels' weights against that of its mask, mean over the draws.
    mask = np.zeros((512, 512), np.uint8)
    cv2.circle(mask, (256, 256), 40, 1, -1)
    image = (mask * 200)[:, :, None]
    augment = build_augmentation(preset, size=256)
    shifts = []
    for seed in range(300):
        drawn, moved = augment(image, mask, seed=seed)
        inside = moved[[0, -1]].sum() + moved[:, [0, -1]].sum() == 0
        # A lit picture or a hole changes the weights.
        if moved.any() and inside and drawn.min() == 0 and (drawn[moved > 0] > 60).all():
            weights = drawn[:, :, 0].astype(float)
            weights[weights < 60] = 0
            rows, columns = np.indices(weights.shape)
            seen = np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()
            shifts.append(seen - np.argwhere(moved).mean(0))
    assert len(shifts) > 20
    np.testing.assert_allclose(np.mean(shifts, 0), 0, atol=0.08)


def orientation(drawn: Pixels) -> tuple[int, ...]:
    """Signs of the two gradients and which of them is the steeper, for a ramp that is steep along the columns."""
    values = drawn[:, :, 0].astype(int)
    down, right = values[-1].mean() - values[0].mean(), values[:, -1].mean() - values[:, 0].mean()
    return int(np.sign(down)), int(np.sign(right)), int(abs(right) > abs(down))


@pytest.fixture(scope="module")
def ramp() -> tuple[Pixels, Pixels]:
    """(128, 128, 1), from 60 up: 1 per column and a quarter per row; a mask of ones."""
    rows, columns = np.indices((128, 128))
    return (60 + columns + rows // 4).astype(np.uint8)[:, :, None], np.ones((128, 128), np.uint8)


def test_light_chooses_one_of_five_uniformly(ramp: tuple[Pixels, Pixels]) -> None:
    # Rotations by a quarter to three quarters come in four equal shares, one of them the identity.
    draws = 2000
    augment = build_augmentation("light", size=32)
    counts = Counter(orientation(augment(*ramp, seed=seed)[0]) for seed in range(draws))
    # (down, right, columns steeper): identity 1/5 + 1/20; each turn by 90, 180, 270 degrees 1/20; flips, transpose 1/5.
    expected = {
        (1, 1, 1): 0.25,
        (-1, -1, 1): 0.05,
        (-1, 1, 0): 0.05,
        (1, -1, 0): 0.05,
        (-1, 1, 1): 0.2,
        (1, -1, 1): 0.2,
        (1, 1, 0): 0.2,
    }
    found = {key: counts[key] / draws for key in expected}
    assert sum(counts[key] for key in expected) == draws
    # 4 standard deviations of a share of 0.25 among 2000 draws are 0.039.
    assert found == pytest.approx(expected, abs=0.04)


def test_medium_cuts_holes_in_every_second_image(ramp: tuple[Pixels, Pixels]) -> None:
    draws = 1500
    medium = build_augmentation("medium", size=128)
    holes = 0
    together: Counter[tuple[bool, bool]] = Counter()
    for seed in range(draws):
        image, mask = medium(*ramp, seed=seed)
        cut = image[:, :, 0] == 0
        assert (mask == 1).all()
        if cut.any():
            holes += 1
            # 16 holes of 16 x 16, which may overlap, on a picture that has no 0 of its own
            assert 16 * 16 <= cut.sum() <= 16 * 16 * 16
        together[bool(cut.any()), orientation(np.where(cut[:, :, None], 128, image))[2] == 1] += 1
    assert holes / draws == pytest.approx(0.5, abs=0.05)
    # The choice of the flip says nothing about the holes: the table of both is that of independent draws.
    upright = (together[True, True] + together[False, True]) / draws
    assert together[True, True] / draws == pytest.approx(upright * holes / draws, abs=0.04)


def test_heavy_moves_three_in_four() -> None:
    # A picture of 8 px squares whose edges stay on the axes unless it is turned.
    draws = 600
    squares = ((np.indices((256, 256)) // 32).sum(0) % 2).astype(np.uint8) * 200 + 20
    heavy, mask = build_augmentation("heavy", size=128), np.ones((256, 256), np.uint8)
    turned = 0
    for seed in range(draws):
        image, moved = heavy(squares[:, :, None], mask, seed=seed)
        # The mirrored border is all of the picture: no black, and no pixel without its label.
        assert (moved == 1).all()
        plain = np.where(image[:, :, 0] == 0, 120, image[:, :, 0]).astype(np.float32)
        across, down = np.abs(cv2.Sobel(plain, cv2.CV_32F, 1, 0)), np.abs(cv2.Sobel(plain, cv2.CV_32F, 0, 1))
        slanted = np.sum((across > 80) & (down > 80)) / max(np.sum((across > 80) | (down > 80)), 1)
        turned += bool(slanted > 0.25)
    # Turns by less than a few degrees do not count as such.
    assert 0.6 < turned / draws <= 0.78


def test_chest_keeps_the_patient_upright(ramp: tuple[Pixels, Pixels]) -> None:
    # Brightness always grows downwards; right and left are each the brighter side in half of the draws.
    rows, columns = np.indices((128, 128))
    image = (60 + rows // 2 + columns).astype(np.uint8)[:, :, None]
    chest = build_augmentation("chest", size=64)
    signs: Counter[int] = Counter()
    for seed in range(400):
        drawn = chest(image, np.ones((128, 128), np.uint8), seed=seed)[0][16:-16, 16:-16]
        down, right, steeper = orientation(drawn)
        assert (down, steeper) == (1, 1)
        signs[right] += 1
    assert signs[1] / 400 == pytest.approx(0.5, abs=0.1)


def test_chest_border_is_black_background() -> None:
    image, mask = np.full((128, 128, 1), 200, np.uint8), np.ones((128, 128), np.uint8)
    chest = build_augmentation("chest", size=64)
    outside = 0
    for seed in range(50):
        drawn, moved = chest(image, mask, seed=seed)
        dark = drawn[:, :, 0] < 20
        outside += int((moved == 0).sum())
        assert np.mean(dark != (moved == 0)) < 0.08
    assert outside > 0


@pytest.mark.parametrize(("preset", "positions"), [("chest", 2), ("light", 7)])
def test_labels_of_sides_change_places_in_a_mirrored_image(preset: str, positions: int) -> None:
    """They do so in each position that is a reflection, and in none that is a rotation."""
    rows, columns = np.indices((64, 64))
    image = (60 + 2 * columns + rows * 3 // 4).astype(np.uint8)[:, :, None]
    mask = np.zeros((64, 64), np.uint8)
    mask[10:50, 4:26], mask[10:50, 38:60] = 1, 2
    aware, unaware = (build_augmentation(preset, size=64, mirrored=pairs) for pairs in (((1, 2),), ()))
    seen = set()
    for seed in range(120):
        (pixels, labels), (same, plain) = aware(image, mask, seed=seed), unaware(image, mask, seed=seed)
        assert np.array_equal(pixels, same)
        values = np.where(pixels[:, :, 0] == 0, np.nan, pixels[:, :, 0])
        down = np.nanmean(values[32:]) - np.nanmean(values[:32])
        right = np.nanmean(values[:, 32:]) - np.nanmean(values[:, :32])
        seen.add((down > 0, right > 0, abs(right) > abs(down)))
        # The direction in which it grows brighter, 20 degrees below the right, tells the positions apart.
        reflected = down * right * (1 if abs(right) > abs(down) else -1) < 0
        if {1, 2} & {*plain.ravel().tolist()}:
            assert np.array_equal(labels, np.array([0, 2, 1], np.uint8)[plain] if reflected else plain), seed
    assert len(seen) == positions


def test_data_tasks_import_no_network() -> None:
    """Nor what reads the files of a corpus. Data tasks start sooner without."""
    code = "import sys, lungseg_ray.feed.plan; print({'torch', 'pydicom', 'highdicom', 'matplotlib'} & {*sys.modules})"
    code += "; from albumentations.pytorch import ToTensorV2"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
