from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from lungseg_ray.config import PhantomSettings
from lungseg_ray.corpus.phantom import draw, draw_uri, is_phantom, list_phantoms


def test_records_carry_all_parameters() -> None:
    records = list_phantoms(PhantomSettings(count=60, size=64, seed=3))
    assert [record.image_id for record in records] == sorted({record.image_id for record in records})
    assert (records[7].image_uri, *records[7].mask_uris) == ("phantom://3/64/7",) * 2
    assert is_phantom(records[7].image_uri)
    for drawn, expected in zip(draw_uri(records[7].image_uri), draw(7, seed=3, size=64), strict=True):
        np.testing.assert_array_equal(drawn, expected)


def test_one_patient_in_five_has_two_images() -> None:
    # 60 images of 50 patients: 40 with one image and 10 with two.
    images = Counter(record.patient_id for record in list_phantoms(PhantomSettings(count=60)))
    assert Counter(images.values()) == {1: 40, 2: 10}


@pytest.mark.parametrize("size", [64, 129, 512])
def test_shapes_and_values(size: int) -> None:
    image, mask = draw(0, seed=0, size=size)
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert np.ptp(image) > 100


def test_two_smooth_lungs_of_plausible_size() -> None:
    for index in range(40):
        mask = draw(index, seed=1, size=256)[1]
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA] / mask.size
        assert count == 3
        assert areas.min() > 0.04
        assert 0.1 < areas.sum() < 0.5


def test_image_and_mask_agree_across_sizes() -> None:
    # The mask of 512 px, reduced by area to 128 px, is the mask of 128 px but for its border.
    large, small = draw(4, seed=0, size=512)[1], draw(4, seed=0, size=128)[1]
    reduced = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.mean(reduced != small) < 0.02


def test_other_process_draws_the_same() -> None:
    code = (
        "import hashlib; from lungseg_ray.corpus.phantom import draw; "
        "print(hashlib.sha256(b''.join(part.tobytes() for part in draw(9, seed=2, size=96))).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(b"".join(part.tobytes() for part in draw(9, seed=2, size=96))).hexdigest()


def test_index_and_seed_matter() -> None:
    drawn = {draw(index, seed=seed, size=64)[0].tobytes() for index in range(6) for seed in range(3)}
    assert len(drawn) == 18


def test_no_threshold_solves_it() -> None:
    # The best intersection over union of any threshold, bright or dark side, pooled over 40 images.
    pairs = [draw(index, seed=0, size=256) for index in range(40)]
    images, masks = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs]).astype(bool)
    lung, everything = np.bincount(images[masks], minlength=256), np.bincount(images.ravel(), minlength=256)
    best = 0.0
    for order in (slice(None), slice(None, None, -1)):
        intersection, chosen = np.cumsum(lung[order]), np.cumsum(everything[order])
        best = max(best, float(np.max(intersection / (chosen + lung.sum() - intersection))))
    assert 0.2 < best < 0.6


def test_outlines_can_be_seen() -> None:
    # Away from heart and spine, a lung is darker than the tissue just outside its lateral border.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    darker = []
    for index in range(40):
        image, mask = draw(index, seed=0, size=256)
        inner, outer = mask - cv2.erode(mask, kernel), cv2.dilate(mask, kernel) - mask
        darker.append(image[outer > 0].mean() - image[inner > 0].mean())
    assert np.mean(np.array(darker) > 8) > 0.95
