from __future__ import annotations

import numpy as np
import pytest

from lungseg_ray.confidence.selection import most_worth_annotating


def test_images_that_look_alike_come_later() -> None:
    # Two groups of images: those of a group differ in one bit, the groups in all others.
    hashes = np.zeros((6, 32), np.uint8)
    hashes[3:] = 255
    hashes[[1, 4], 0] ^= 1
    hashes[[2, 5], 1] ^= 1
    expected = [0.5, 0.51, 0.52, 0.8, 0.81, 0.7]
    # The worst of the first group, the worst of the other, and then the rest: of each group two are alike.
    assert most_worth_annotating(expected, hashes, 2) == [0, 5]
    assert sorted(most_worth_annotating(expected, hashes, 10)) == list(range(6))


def test_where_all_images_differ_equally_the_worst_are_chosen() -> None:
    # Each hash has its own two bytes.
    hashes = np.zeros((16, 32), np.uint8)
    for number in range(16):
        hashes[number, 2 * number : 2 * number + 2] = 255
    expected = np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, 16))
    assert most_worth_annotating(expected.tolist(), hashes, 5) == np.argsort(expected)[:5].tolist()


def test_copies_are_never_chosen_before_others() -> None:
    hashes = np.random.default_rng(1).integers(0, 256, (8, 32), np.uint8)
    hashes[1:5] = hashes[0]
    chosen = most_worth_annotating([0.1, 0.1, 0.1, 0.1, 0.1, 0.99, 0.99, 0.99], hashes, 4)
    assert chosen[0] == 0
    assert set(chosen[1:]) == {5, 6, 7}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_as_asked_for(count: int) -> None:
    hashes = np.random.default_rng(2).integers(0, 256, (2, 32), np.uint8)
    assert len(most_worth_annotating([0.5, 0.6], hashes, count)) == min(count, 2)
