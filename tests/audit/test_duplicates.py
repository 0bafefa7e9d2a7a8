from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.audit.duplicates import NEAR, find_duplicates, near_pairs
from lungseg_ray.audit.facts import perceptual_hash
from lungseg_ray.corpus.phantom import draw
from tests.audit.helpers import altered, make_facts, opened
from tests.helpers import DATA


def bits_between(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    first, second = (int(perceptual_hash(image[:, :, None]), 16) for image in (one, other))
    return (first ^ second).bit_count()


class TestTwins:
    @pytest.mark.parametrize("count", [0, 1, 2, 300])
    def test_near_pairs_as_by_brute_force(self, count: int) -> None:
        rng = np.random.default_rng(count)
        # As of X-rays, the low frequencies of all are much alike.
        bits = rng.random((count, 256)) < np.linspace(0.05, 0.5, 256)
        for number in range(0, count // 2, 2):
            bits[number + 1] = bits[number]
            bits[number + 1, rng.choice(256, rng.integers(1, 45), replace=False)] ^= True
        apart = (bits[:, None] != bits[None]).sum(axis=2)
        wanted = {(a, b, apart[a, b]) for a in range(count) for b in range(a + 1, count) if apart[a, b] <= NEAR}
        found = near_pairs(np.packbits(bits, axis=1))
        assert set(found) == wanted
        assert [bits for *_, bits in found] == sorted(bits for *_, bits in wanted)
        assert len(wanted) > 20 or count < 300

    def test_farthest_that_counts(self) -> None:
        hashes = np.zeros((2, 32), np.uint8)
        # One bit in each of 30 of the places that are compared.
        hashes[1, :30] = 1
        assert near_pairs(hashes) == [(0, 1, 30)]
        hashes[1, 30] = 1
        assert near_pairs(hashes) == []

    def test_many_that_look_the_same_end_the_search(self) -> None:
        # Each of 3000 differs from one image in 8 bits, so that all 4.5 million pairs are near.
        rng = np.random.default_rng(0)
        bits = np.tile(rng.random(256) < 0.5, (3000, 1))
        for row in bits:
            row[rng.choice(256, 8, replace=False)] ^= True
        found = near_pairs(np.unique(np.packbits(bits, axis=1), axis=0), most=1000)
        assert len(found) == 1000

    def test_no_more_than_asked_for(self) -> None:
        hashes = np.zeros((20, 32), np.uint8)
        hashes[:, 0] = np.arange(20)
        assert len(near_pairs(hashes, most=5)) == 5

    def test_groups_stand_beside_their_first(self) -> None:
        images = [make_facts(name) for name in "abcdef"]
        images[3] = make_facts("d", image_sha256=images[0].image_sha256, split="val")
        images[4] = make_facts("e", phash=images[1].phash)
        code = f"{int(images[2].phash, 16) ^ 0b111:064x}"
        images[5] = make_facts("f", phash=code, split="test")
        found = [
            (one.first.image_id, one.second.image_id, one.bits, one.crosses_split) for one in find_duplicates(images)
        ]
        assert found == [("a", "d", None, True), ("b", "e", 0, False), ("c", "f", 3, True)]

    @pytest.mark.parametrize(("how", "found"), [("jpeg", True), ("half", True), ("gamma", True), ("mirrored", False)])
    def test_copies_of_a_chest(self, how: str, found: bool) -> None:
        image, _ = draw(3, seed=0, size=256)
        assert (bits_between(image, altered(image, how)) <= NEAR) == found

    def test_other_chests_are_far(self) -> None:
        chests = [draw(number, seed=0, size=128)[0] for number in range(0, 60, 6)]
        assert min(bits_between(one, other) for at, one in enumerate(chests) for other in chests[:at]) > NEAR + 20

    @pytest.mark.skipif(not (DATA / "cxr-lungs").exists(), reason="the X-rays are not here")
    def test_real_x_rays(self) -> None:
        files = sorted((DATA / "cxr-lungs/images").iterdir())[::6]
        images = [opened(file) for file in files]
        assert max(bits_between(image, altered(image, "jpeg")) for image in images) <= 6
        assert max(bits_between(image, altered(image, "gamma")) for image in images) <= NEAR
        assert min(bits_between(one, other) for at, one in enumerate(images) for other in images[:at]) >= 64
