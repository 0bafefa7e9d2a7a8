"""The order in which an epoch reads the rows of the shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lungseg_ray.shards.index import Shard

Places = npt.NDArray[np.int32]
"""(n, 2) int32: for each of n rows, an index into the shards of its split, and the number of the row in that shard."""


def usable_rows(shards: Sequence[Shard]) -> Places:
    """Returns the rows of shards that are used, in the order of the shards.

    Args:
        shards: The shards of a split.
    """
    counts = np.array([shard.rows for shard in shards], np.int32)
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
    starts = np.cumsum(counts) - counts
    rows = np.arange(len(numbers), dtype=np.int32) - np.repeat(starts, counts).astype(np.int32)
    skipped = [starts[number] + row for number, shard in enumerate(shards) for row in shard.skip]
    return np.delete(np.stack([numbers, rows], axis=1), skipped, axis=0)


def epoch_order(shards: Sequence[Shard], *, seed: int, epoch: int, window: int) -> Places:
    """Computes the order of the rows in an epoch.

    The shards are permuted; then the rows of each `window` consecutive shards are shuffled together.

    Args:
        shards: The shards of a split.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        window: Number of shards whose rows are shuffled together.

    Returns:
        The row at each place in the epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    numbers = generator.permutation(len(shards)).astype(np.int32)
    places = usable_rows([shards[number] for number in numbers])
    ends = np.searchsorted(places[:, 0], np.arange(window, len(shards), window))
    parts = [generator.permutation(part) for part in np.split(places, ends)]
    order = np.concatenate(parts)
    order[:, 0] = numbers[order[:, 0]]
    return order
