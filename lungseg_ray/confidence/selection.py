"""Chooses images that are worth annotating, of those without masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def most_worth_annotating(expected: Sequence[float], hashes: npt.NDArray[np.uint8], count: int) -> list[int]:
    """Chooses images of which little is expected and that do not look alike, one after another.

    The first is that of which the least is expected. Each of the others has the largest product of 1 - its expected
    Dice and the share of bits in which its hash differs from that of the chosen image to which it is most similar:
    several images with the same fault teach a network little more than one of them. Measured distances of such hashes
    are in `audit.duplicates`.

    Args:
        expected: The expected Dice of n images, 0 to 1.
        hashes: Their perceptual hashes, uint8 (n, bytes).
        count: How many are chosen; all of them if there are fewer.

    Returns:
        The numbers of the chosen images, in the order of their choice.
    """
    loss = 1 - np.asarray(expected, np.float64)
    nearest = np.ones_like(loss)
    chosen: list[int] = []
    for _ in range(min(count, len(loss))):
        worth = loss * nearest
        worth[chosen] = -1
        one = int(worth.argmax())
        chosen.append(one)
        apart = np.bitwise_count(hashes ^ hashes[one]).sum(axis=1) / (8 * hashes.shape[1])
        nearest = np.minimum(nearest, apart)
    return chosen
