"""The choice of some of many things."""

from __future__ import annotations

import numpy as np


def evenly_spaced(count: int, most: int) -> list[int]:
    """Chooses numbers at equal distances.

    Args:
        count: The number of things.
        most: The largest number of those that are chosen.

    Returns:
        Numbers from 0 to count - 1 in ascending order, the first and the last one
        among them if `most` is 2 or more; all of them if they are few.
    """
    chosen: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return chosen
