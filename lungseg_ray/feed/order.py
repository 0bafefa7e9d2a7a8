"""The order in which an epoch takes the rows of the shards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lungseg_ray.shards.format import Shard


def epoch_order(shards: list[Shard], *, seed: int, epoch: int, window: int) -> npt.NDArray[np.int64]:
    """The order of an epoch: shards permuted, then the rows of each `window` shards shuffled together.

    Returns:
        (n, 2): at each place of the epoch, a number in `shards` and a row of that shard.
    """
    generator = np.random.default_rng([seed, epoch])
    numbers = generator.permutation(len(shards))
    parts = []
    for start in range(0, len(numbers), window):
        rows = [(number, row) for number in numbers[start : start + window] for row in shards[number].usable]
        parts.append(generator.permutation(np.asarray(rows, np.int64).reshape(-1, 2)))
    return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)
