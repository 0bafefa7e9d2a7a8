"""The order in which an epoch reads the rows of the shards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lungseg_ray.shards.format import Shard


def epoch_order(shards: list[Shard], *, seed: int, epoch: int, window: int) -> npt.NDArray[np.int64]:
    """Computes the order of the rows in an epoch.

    The shards are permuted; then the rows of each `window` consecutive shards are shuffled together.

    Args:
        shards: The shards of a split.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        window: Number of shards whose rows are shuffled together.

    Returns:
        (n, 2) int64: for each place in the epoch, an index into `shards` and the number of a row in that shard.
    """
    generator = np.random.default_rng([seed, epoch])
    numbers = generator.permutation(len(shards))
    parts = []
    for start in range(0, len(numbers), window):
        rows = [(number, row) for number in numbers[start : start + window] for row in shards[number].usable]
        parts.append(generator.permutation(np.asarray(rows, np.int64).reshape(-1, 2)))
    return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)
