"""Images that stand in a corpus more than once: with the same bytes, or looking the same.

Images that look alike differ in few of the 256 bits of their perceptual hash (`imagehash.phash`, 16 x 16; two such
hashes nearly always differ in an even number of bits). How few was measured on 215 X-rays of different children, which
all look alike, and on 300 pictures of blood cells:

    bits between                          X-rays              cells
    different images, the closest         64 (of 23,005)      60 (of 44,850)
    different images, median              118                 124
    same cell, taken twice                -                   20, 26, 36

    an image and a copy of it             median, largest; found with `NEAR` = 30
    JPEG of quality 50                      0,   4; 100 %       2,  10; 100 %
    half, quarter of its size               0,   6; 100 %       2,   6; 100 %
    noise (sd 5 of 255)                     2,   8; 100 %       2,   8; 100 %
    brightness + 30 of 255                  2,  12; 100 %      18,  40;  97 %
    contrast x 1.2                          2,  20; 100 %      26,  56;  74 %
    gamma 0.7, 1.4                         10,  22; 100 %      12,  26; 100 %
    histogram equalised                    24,  62;  78 %
    1 % cropped on each side               18,  34;  99 %      14,  26; 100 %
    2 % cropped on each side               36,  58;  20 %      26,  48;  73 %
    moved by 1 % of each side              30,  46;  59 %      32,  56;  41 %
    turned by 2 degrees                    34,  62;  35 %      16,  34;  98 %
    5 % cropped on each side, mirrored,
    black and white exchanged              none found

A hash of 64 bits will not do: different X-rays come as near as 6 bits (phash), 0 bits (dhash), and copies go as far as
10. `NEAR` lies well below the closest pair of different images, so that much larger corpora have hardly any false pair
either; and at 30, bands of whole bytes make the search exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lungseg_ray.audit.facts import ImageFacts
from lungseg_ray.progress import ticks

NEAR = 30
"""Bits in which the hashes of two images that look the same differ at most."""
MOST = 100_000
"""Pairs of images that look the same, after which the search ends."""
_BYTES = 32

Hashes = NDArray[np.uint8]
Pairs = list[tuple[int, int, int]]


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are one.

    Attributes:
        first: the one that comes first in the corpus.
        second: the other.
        bits: in which their hashes differ; None where the files have the same bytes.
    """

    first: ImageFacts
    second: ImageFacts
    bits: int | None

    @property
    def sides(self) -> list[str]:
        """The sides of the split on which they stand, each once."""
        return list(dict.fromkeys(one.split for one in (self.first, self.second) if one.split))

    @property
    def torn(self) -> bool:
        """Whether they stand on two sides of the split."""
        return len(self.sides) == 2


def find_duplicates(images: Sequence[ImageFacts]) -> list[DuplicatePair]:
    """Images with the same bytes, then those that look the same, the most alike first.

    Of several with the same bytes, or with the same hash, each stands beside the first alone.

    Args:
        images: in the order of the corpus.
    """
    same, single = _grouped([one.image_sha256 for one in images])
    alike, distinct = _grouped([images[number].phash for number in single])
    codes = [images[single[number]].phash for number in distinct]
    near = near_pairs(np.frombuffer(bytes.fromhex("".join(codes)), np.uint8).reshape(-1, _BYTES))
    return [
        *(DuplicatePair(images[first], images[second], None) for first, second in same),
        *(DuplicatePair(images[single[first]], images[single[second]], 0) for first, second in alike),
        *(
            DuplicatePair(images[single[distinct[first]]], images[single[distinct[second]]], bits)
            for first, second, bits in near
        ),
    ]


def near_pairs(hashes: Hashes, *, most: int = MOST) -> Pairs:
    """All pairs that differ in at most `NEAR` bits; without comparing each with each.

    Of the 32 bytes of two such hashes, 30 bits can spoil 30, and so two at least are equal: those alone are compared
    that share two bytes in the same places: one pair of X-rays in 12 (of random bits, one in 130), at 40 ns each.
    On one core, 100,000 hashes with the X-rays' share of ones in each bit took 7 s.

    Args:
        hashes: (N, 32) uint8, no two of them equal.
        most: how many are enough.

    Returns:
        Numbers of the first and the second, and the bits, by bits; where there are more than `most`, some of them.
    """
    # Each byte gets bits of all frequencies: the lower ones are alike in most X-rays.
    bits = np.unpackbits(hashes, axis=1).reshape(-1, 8, _BYTES).transpose(0, 2, 1)
    spread = np.packbits(bits, axis=None).reshape(-1, _BYTES)
    words = spread.view(np.uint64)
    found = np.empty(0, np.int64)
    places = list(combinations(range(_BYTES), 2))
    for one, other in ticks(places, total=len(places), description="Comparing"):
        key = np.asarray(spread[:, one].astype(np.uint16) << 8 | spread[:, other], np.uint16)
        more = [found]
        for first, second in _sharing(key):
            near = np.bitwise_count(words[first] ^ words[second]).sum(axis=1) <= NEAR
            pair = np.sort([first[near], second[near]], axis=0)
            more.append(pair[0] * len(words) + pair[1])
            if sum(map(len, more[1:])) > most:
                break
        found = np.unique(np.concatenate(more))
        if len(found) > most:
            break
    first, second = np.divmod(found, max(len(words), 1))
    apart = np.bitwise_count(words[first] ^ words[second]).sum(axis=1)
    order = np.argsort(apart, kind="stable")[:most]
    return [(int(first[at]), int(second[at]), int(apart[at])) for at in order]


def _sharing(key: NDArray[np.uint16]) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of places with the same key, in a few large pieces."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    at, step = np.arange(len(key)), 1
    while len(at):
        at = at[at + step < len(key)]
        at = at[key[at] == key[at + step]]
        yield order[at], order[at + step]
        step += 1


def _grouped(values: Iterable[str]) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of numbers with the same value, of which one is the first of its value; the first of each value."""
    first: dict[str, int] = {}
    pairs = [(first[value], number) for number, value in enumerate(values) if first.setdefault(value, number) != number]
    return pairs, list(first.values())
