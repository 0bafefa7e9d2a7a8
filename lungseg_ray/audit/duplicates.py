"""Detection of duplicate images in a corpus: images with the same bytes, and images that look the same.

Two images look the same if their perceptual hashes differ in few of the 256 bits (`imagehash.phash` with 16 x 16 bits;
two such hashes nearly always differ in an even number of bits). The limit `NEAR` is based on measurements with 215
X-rays of different children, which all resemble each other, and with 300 images of blood cells. All values are numbers
of differing bits:

    hashes of                             X-rays              cells
    different images, closest pair        64 (of 23,005)      60 (of 44,850)
    different images, median              118                 124
    the same cell, imaged twice           -                   20, 26, 36

    an image and its copy                 median, maximum; share of the copies found with `NEAR` = 30
    JPEG of quality 50                      0,   4; 100 %       2,  10; 100 %
    half, quarter of its size               0,   6; 100 %       2,   6; 100 %
    noise (sd 5 of 255)                     2,   8; 100 %       2,   8; 100 %
    brightness + 30 of 255                  2,  12; 100 %      18,  40;  97 %
    contrast x 1.2                          2,  20; 100 %      26,  56;  74 %
    gamma 0.7, 1.4                         10,  22; 100 %      12,  26; 100 %
    histogram equalised                    24,  62;  78 %
    cropped by 1 % at each edge            18,  34;  99 %      14,  26; 100 %
    cropped by 2 % at each edge            36,  58;  20 %      26,  48;  73 %
    shifted by 1 % of its size             30,  46;  59 %      32,  56;  41 %
    rotated by 2 degrees                   34,  62;  35 %      16,  34;  98 %
    cropped by 5 % at each edge,
    mirrored, black and white inverted     none found

A hash of 64 bits does not separate copies from different images: the hashes of different X-rays differ in as few as 6
bits (phash) or 0 bits (dhash), and those of copies in as many as 10 bits. `NEAR` is well below the closest pair of
different images, so that much larger corpora also produce hardly any false pair. In addition, a limit of 30 bits makes
the search by whole bytes exact (see `near_pairs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lungseg_ray.progress import ticks

NEAR = 30
"""Two images look the same if their hashes differ in at most this number of bits."""
MOST = 100_000
"""The search ends after it has found this number of pairs of images that look the same."""
_BYTES = 32

Hashes = NDArray[np.uint8]
"""Perceptual hashes are held as uint8 (N, 32): 256 bits for each image."""
Pairs = list[tuple[int, int, int]]
"""Each entry holds the number of the first image, the number of the second image, and the number of differing bits."""


class Hashed(Protocol):
    """What is known of an image that is compared with others; see `ImageFacts`."""

    @property
    def image_id(self) -> str:
        """The id of the image."""

    @property
    def image_sha256(self) -> str:
        """The SHA-256 of its file."""

    @property
    def phash(self) -> str:
        """Its perceptual hash."""

    @property
    def split(self) -> str | None:
        """Its split."""


AnyImage = TypeVar("AnyImage", bound=Hashed)


@dataclass(frozen=True)
class DuplicatePair(Generic[AnyImage]):
    """A pair of images that have the same bytes or look the same.

    Attributes:
        first: The image that comes first in the order that `find_duplicates` received.
        second: The other image.
        bits: Number of bits in which their hashes differ, 0 to `NEAR`; None if the two files have the same bytes.
    """

    first: AnyImage
    second: AnyImage
    bits: int | None

    @property
    def splits(self) -> list[str]:
        """The splits of the two images, each split once; images without a split are left out."""
        return list(dict.fromkeys(one.split for one in (self.first, self.second) if one.split))

    @property
    def crosses_split(self) -> bool:
        """Whether the two images are in different splits."""
        return len(self.splits) == 2


def find_duplicates(images: Sequence[AnyImage]) -> list[DuplicatePair[AnyImage]]:
    """Finds the images that have the same bytes, and the images that look the same.

    Where several images have the same bytes or the same hash, each of the others is paired with the first one only.

    Args:
        images: The images, in the order of the shards, which keep the first of several images with the same bytes.

    Returns:
        The pairs with the same bytes, followed by the pairs that look the same in ascending order of differing bits. If
        there are more than `MOST` pairs with different but similar hashes, only some of these are included.
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
    """Finds all pairs of hashes that differ in at most `NEAR` bits, without comparing each hash with each other one.

    A hash has 32 bytes. If two hashes differ in at most 30 bits, at most 30 of their bytes differ, so that at least two
    bytes are equal. Therefore only those pairs are compared that have equal bytes in two positions. That is one pair in
    12 for X-rays (one in 130 for random bits), at 40 ns each. On one core, 100,000 hashes with the X-rays' share of
    ones in each bit took 7 s.

    Args:
        hashes: (N, 32) uint8, no two of them equal.
        most: Number of pairs after which the search ends.

    Returns:
        The row of the first hash, the row of the second hash and the number of differing bits of each pair, in
        ascending order of bits. If there are more than `most` pairs, `most` of them, which are not necessarily the
        closest.
    """
    # Bits of low frequencies are equal in most X-rays. Each byte is filled with bits of all frequencies, because a byte
    # of low frequencies alone would be equal in most pairs.
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
    """Yields all pairs of positions that have the same key, in a few large arrays."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    at, step = np.arange(len(key)), 1
    while len(at):
        at = at[at + step < len(key)]
        at = at[key[at] == key[at + step]]
        yield order[at], order[at + step]
        step += 1


def _grouped(values: Iterable[str]) -> tuple[list[tuple[int, int]], list[int]]:
    """Returns the pairs (first index, later index) of each repeated value, and the first index of every value."""
    first: dict[str, int] = {}
    pairs = [(first[value], number) for number, value in enumerate(values) if first.setdefault(value, number) != number]
    return pairs, list(first.values())
