"""What data tasks do: they read and augment the rows of a chunk, which a plan names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import ray

from lungseg_ray.feed.cache import ShardCache
from lungseg_ray.feed.order import Places
from lungseg_ray.names import Fit
from lungseg_ray.shards.format import DamagedShardError, Pair, read_pairs, unpack_pairs
from lungseg_ray.shards.index import Shard
from lungseg_ray.storage import Location, retry

if TYPE_CHECKING:
    from lungseg_ray.feed.augment import Augment

_AHEAD = 32
"""The shards of this number of further chunks are fetched in advance: with the usual settings, those of a window."""
DAMAGE = "mistake"
"""The column of a block that contains the message of a `DamagedShardError` in place of rows."""


@dataclass(frozen=True)
class Rows:
    """Some rows of an epoch.

    Attributes:
        epoch: The number of the epoch, from 0, which determines the augmentation.
        size: Height and width of the input of the network, pixels.
        slots: (n,) int64, the places of the rows in the epoch, from 0.
        places: The shard and the number of each row in it.
    """

    epoch: int
    size: int
    slots: npt.NDArray[np.int64]
    places: Places


@dataclass(frozen=True)
class Plan:
    """Chunks of rows, and how they are prepared. Its size does not depend on that of the corpus.

    Attributes:
        preset: The augmentation preset.
        fit: How an image that is not square becomes so.
        seed: Seed of the augmentation.
        channels: Channels of the images.
        mirrored: Pairs of labels that change places in a mirrored image.
        cache: The cache of shards on the disk of a node; None if they are read where they are.
        chunks: The rows of each chunk.
        shards: The shards of these rows with their folders, by number.
        shared: References to those of the shards that are in Ray's object store, by number.
    """

    preset: str
    fit: Fit
    seed: int
    channels: int
    mirrored: tuple[tuple[int, int], ...]
    cache: ShardCache | None
    chunks: list[Rows]
    shards: dict[int, tuple[Location, Shard]]
    shared: dict[int, Any]

    def prepare(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Reads and augments the rows of a chunk.

        Args:
            number: The number of the chunk.

        Returns:
            `epoch` and `slot` of each row (n,); `image_id`, an object array of strings (n,); `image`, uint8 (n, size,
            size, channels); and `mask`, uint8 (n, size, size), the label of each pixel.

        Raises:
            DamagedShardError: If a shard is missing, damaged, or another one than the index describes.
            OSError: If a shard cannot be read; a `StorageError` for a bucket.
        """
        chunk = self.chunks[number]
        for some, wait in (([chunk], True), (self.chunks[number + 1 : number + 1 + _AHEAD], False)):
            for root, shards in self._shards_of(some):
                if cache := self._cache_of(root):
                    cache.fetch(root, shards, wait=wait)
        change = _cached_augment(self.preset, chunk.size, self.fit, self.mirrored)
        count = len(chunk.slots)
        images = np.empty((count, chunk.size, chunk.size, self.channels), np.uint8)
        masks = np.empty((count, chunk.size, chunk.size), np.uint8)
        names = np.empty(count, object)
        for shard in np.unique(chunk.places[:, 0]).tolist():
            at = np.flatnonzero(chunk.places[:, 0] == shard)
            for place, pair in zip(at, self._read(shard, chunk.places[at, 1].tolist()), strict=True):
                name = int.from_bytes(hashlib.sha256(pair.image_id.encode()).digest()[:8], "big")
                seed = (self.seed, chunk.epoch, name)
                images[place], masks[place] = change(pair.image, pair.mask, seed=seed)
                names[place] = pair.image_id
        return {
            "epoch": np.full(count, chunk.epoch),
            "slot": chunk.slots,
            "image_id": names,
            "image": images,
            "mask": masks,
        }

    def _read(self, shard: int, rows: Sequence[int]) -> list[Pair]:
        if shard in self.shared:
            return unpack_pairs(ray.get(self.shared[shard]), rows)
        root, entry = self.shards[shard]
        cache = self._cache_of(root)
        return cache.read_pairs(root, entry, rows) if cache else read_pairs(root, entry, rows)

    def _cache_of(self, root: Location) -> ShardCache | None:
        """Returns the cache for the shards of a folder: of a local one only where the user has named a cache."""
        return self.cache if self.cache and (self.cache.folder or not root.is_local) else None

    def _shards_of(self, chunks: Sequence[Rows]) -> list[tuple[Location, list[Shard]]]:
        """Returns the shards of chunks that are not in the object store, by their folder."""
        if not chunks:
            return []
        found = np.unique(np.concatenate([chunk.places[:, 0] for chunk in chunks])).tolist()
        by_root: dict[Location, list[Shard]] = {}
        for root, shard in (self.shards[number] for number in found if number not in self.shared):
            by_root.setdefault(root, []).append(shard)
        return list(by_root.items())


@dataclass(frozen=True)
class ChunkTask:
    """Converts the number of a chunk to its block of prepared rows; runs in a data task.

    Attributes:
        plan: The plan, or a reference to it: it is unpacked once per process, and not for each chunk.
        patience: Seconds for which the reading of a shard is repeated while a bucket cannot be used.
    """

    plan: Plan | ray.ObjectRef
    patience: float

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Prepares the chunk that the only row of a block names."""
        plan = self.plan if isinstance(self.plan, Plan) else _unpacked(self.plan)
        try:
            return retry(lambda: plan.prepare(int(batch["item"][0])), seconds=self.patience)
        except DamagedShardError as error:
            # Ray does not preserve the type of an exception, so the feed gets the message and raises it again.
            return {DAMAGE: np.array([str(error)])}


@lru_cache(maxsize=2)
def _unpacked(plan: ray.ObjectRef) -> Plan:
    found: Plan = ray.get(plan)
    return found


@lru_cache(maxsize=4)
def _cached_augment(preset: str, size: int, fit: Fit, mirrored: tuple[tuple[int, int], ...]) -> Augment:
    # Only data tasks need Albumentations, whose import takes half a second.
    from lungseg_ray.feed.augment import build_augmentation

    cv2.setNumThreads(0)
    return build_augmentation(preset, size=size, fit=fit, mirrored=mirrored)
