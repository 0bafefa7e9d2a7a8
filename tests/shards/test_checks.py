"""Warnings of all images and masks, with what is right about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.corpus.phantom import draw
from lungseg_ray.corpus.plausible import appearance, foreground
from lungseg_ray.corpus.record import SPLITS, MaskSource, Record, Sample, Split
from lungseg_ray.shards.checks import Check, CheckTally, check

Pixels = NDArray[np.uint8]


def sample(image: Pixels, mask: Pixels, name: str) -> Sample:
    return Sample(image[:, :, None], mask, mask.shape[0], mask.shape[1], 8, None, name, name)


@pytest.fixture(scope="module")
def samples() -> list[tuple[Record, Sample]]:
    """60 chests, 12 of them for validation and 12 for the test."""
    found = []
    for number in range(60):
        split: Split = SPLITS[0 if number < 36 else number // 12 - 2]
        record = Record(f"x{number:02d}", "", (MaskSource(""),), f"p{number}", split)
        found.append((record, sample(*draw(number, seed=0, size=200), f"hash {number}")))
    return found


def warnings(samples: Sequence[tuple[Record, Sample]]) -> list[str]:
    tally = CheckTally()
    for record, one in samples:
        tally.add(check(record, one))
    return tally.warnings(structure="lung")


def test_a_good_corpus(samples: list[tuple[Record, Sample]]) -> None:
    assert warnings(samples) == []


def outline(mask: Pixels) -> Pixels:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, 1)


def test_outlines_inverted_masks_and_dark_pictures(samples: list[tuple[Record, Sample]]) -> None:
    """Single ones among many, which a look at a few would miss; at 2000 px, where lines are a pixel wide."""
    changed = list(samples)
    for number, change in (
        (17, lambda one: replace(one, mask=outline(np.kron(one.mask, np.ones((10, 10), np.uint8))))),
        (23, lambda one: replace(one, mask=1 - one.mask)),
        (31, lambda one: replace(one, image=one.image // 16)),
    ):
        record, one = changed[number]
        changed[number] = record, change(one)
    found = warnings(changed)
    assert [text.partition(")")[0] for text in found] == [
        "Of 60 looked at, 1 image is (x31",
        "Of 60 looked at, 1 mask marks (x23",
        "Of 60 looked at, 1 mask is (x17",
    ]


def test_rings_of_one_class_around_another_are_no_outlines() -> None:
    mask = cv2.circle(np.zeros((200, 200), np.uint8), (100, 100), 60, 1, 8)
    ring = sample(mask, mask, "a")
    assert appearance("a", ring, foreground(ring)).outline
    cv2.circle(mask, (100, 100), 56, 2, cv2.FILLED)
    assert not appearance("a", ring, foreground(ring)).outline


def test_a_mask_elsewhere(samples: list[tuple[Record, Sample]]) -> None:
    changed = list(samples)
    record, one = changed[5]
    moved = np.zeros_like(one.mask)
    moved[150:190, 10:50] = 1
    changed[5] = record, replace(one, mask=moved)
    (found,) = warnings(changed)
    assert found.startswith("x05 has its lung elsewhere than the others: look whether image and mask belong together")


def test_near_duplicates_across_splits(samples: list[tuple[Record, Sample]]) -> None:
    changed = list(samples)
    (_, one), (record, _) = changed[3], changed[40]
    brighter = np.clip(one.image.astype(int) + 8, 0, 255).astype(np.uint8)
    changed[40] = record, replace(one, image=brighter, image_sha256="another file")
    (found,) = warnings(changed)
    assert found.startswith("1 pair of images in different splits look alike (x03 and x40).")
    # Within a split they do no harm to the figures.
    changed[40] = replace(record, split="train"), changed[40][1]
    assert warnings(changed) == []


def test_small_splits(samples: list[tuple[Record, Sample]]) -> None:
    (found,) = warnings(samples[:40])
    assert found.startswith("The split val has 4 images, too few for figures that mean something")


def test_a_check_survives_json(samples: list[tuple[Record, Sample]]) -> None:
    one = check(*samples[0])
    assert Check.of(asdict(one)) == one
