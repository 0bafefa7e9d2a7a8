"""Tells images from masks by a few of their pixels, where two folders hold files of the same names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np

from lungseg_ray.corpus.formats import decode_file
from lungseg_ray.corpus.layouts.matching import Item
from lungseg_ray.corpus.layouts.roles import Role
from lungseg_ray.corpus.picture import check_bytes
from lungseg_ray.errors import BadFileError
from lungseg_ray.storage import REQUESTS

_LOOKED_AT = 5
"""The number of files of each folder that are looked at, spread over the names that both have."""
_ENOUGH = 0.8
"""The share of the names of the smaller folder that the other one needs to have."""
_NEAR, _MOSTLY = 0.15, 0.97
_FEW_VALUES = 8


def tell_apart(items: Sequence[Item]) -> tuple[list[Item], list[Item]] | None:
    """Finds the images and the masks among files whose folders and names do not say what they are.

    Args:
        items: The files. Their folders must have two names, such as those of `a/1.png` and `b/1.png`.

    Returns:
        The images and the masks; None if the files lie otherwise, or if their pixels do not tell them apart.
    """
    by_folder: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_folder[_folder(item)].append(item)
    if len(by_folder) != 2 or "" in by_folder:
        return None
    one, other = by_folder.values()
    shared = sorted({item.stem for item in one} & {item.stem for item in other})
    if len(shared) < _ENOUGH * min(len(one), len(other)) or not shared:
        return None
    some = set(shared[:: max(len(shared) // _LOOKED_AT, 1)])
    alike = [_look_like_masks([item for item in several if item.stem in some]) for several in (one, other)]
    if alike == [True, False]:
        one, other = other, one
    elif alike != [False, True]:
        return None
    return _as(one, "image"), _as(other, "mask")


def _folder(item: Item) -> str:
    return item.entry.path.rpartition("/")[0].rpartition("/")[2]


def _as(items: Sequence[Item], role: Role) -> list[Item]:
    """Returns files with the role that their pixels say, and with the folder that says it left out of their names."""
    return [
        replace(
            item,
            parsed=replace(
                item.parsed,
                role=role,
                folder=item.entry.path.rpartition("/")[0],
                rest=item.parsed.rest[:-1] if item.parsed.role is None else item.parsed.rest,
            ),
        )
        for item in items
    ]


def _look_like_masks(items: Sequence[Item]) -> bool:
    with ThreadPoolExecutor(REQUESTS) as pool:
        return all(pool.map(_looks_like_mask, items))


def _looks_like_mask(item: Item) -> bool:
    """Whether a file has few values, or nearly none between black and white, as lossy masks do."""
    with suppress(BadFileError, OSError):
        check_bytes(item.entry.size)
        pixels = decode_file(item.entry.place.read_bytes(), name=item.entry.path, use="mask").pixels
        values, counts = np.unique(pixels, return_counts=True)
        low, high = float(values[0]), float(values[-1])
        ends = np.abs(values - (low + high) / 2) >= (0.5 - _NEAR) * (high - low)
        return len(values) <= _FEW_VALUES or bool(counts[ends].sum() >= _MOSTLY * counts.sum())
    return False
