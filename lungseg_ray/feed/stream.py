"""The feed: it turns shards into the batches of a training worker, the same for any number of workers and tasks.

For given settings of the feed, the global batch of a step depends only on the seed, the epoch and the index of the
shards. `epoch_order` determines which row is at which place of an epoch. A global batch consists of consecutive places,
and each rank takes its slice of it. Each rank runs its own Ray Data pipeline, which can start at any step from which a
run is resumed. The pipeline is a range of chunk numbers; one task turns one number into one block of augmented rows.
The ranks share no splitter, so that no rank can get the rows of another. A task yields only once, so that it cannot
hold a CPU for which another rank waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import ray
import torch

from lungseg_ray.config import Settings
from lungseg_ray.corpus.record import Split
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.feed import augment
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.order import epoch_order
from lungseg_ray.feed.read_ahead import ReadAhead
from lungseg_ray.shards.format import DamagedShardError, Shard, ShardIndex, ShardRow, read_rows, unpack_rows
from lungseg_ray.storage import Location, retry

CHUNK_IMAGES = 128
"""The largest number of images that one task prepares: enough to outweigh the cost of a task, and few enough for a
quick first batch. One batch of the rank is the minimum."""

CHUNK_BYTES = 64 << 20
"""The largest size of a chunk, bytes, because Ray Data splits blocks of more than 128 MiB. One batch of the rank is the
minimum."""

PIPELINE_CHUNKS = 512
"""A Ray Data pipeline gets whole epochs, at least one, until it has this number of chunks, which is enough to outweigh
the cost of its start."""

_DAMAGE = "mistake"
"""The column of a block that contains the message of a `UserError` in place of rows."""


@dataclass(frozen=True)
class Source:
    """The rows that a run is trained on, and how they are prepared.

    Attributes:
        root: The folder of the shards.
        index: The index of the shards.
        preset: The augmentation preset of the training images, one of `PRESETS`.
        size: Height and width of the input of the network, pixels.
        batch: Number of images in a global batch.
        window: Number of shards whose rows are shuffled together.
        seed: Seed of the order and of the augmentation.
        shared: References to whole shards in Ray's object store, by the name of the file, for several runs on a node
            that read the same shards. Shards that are not in it are read from `root`.

    Raises:
        UserError: If there is no such preset, if the training images do not fill one batch, or if there are no images
            for validation.
    """

    root: Location
    index: ShardIndex
    preset: str
    size: int
    batch: int
    window: int
    seed: int
    shared: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, index: ShardIndex, shared: Mapping[str, Any] | None = None) -> Source:
        """Builds the source of a run.

        Args:
            settings: The settings of the run.
            index: The index of the shards.
            shared: References to whole shards in Ray's object store, by the name of the file.

        Raises:
            UserError: If there is no such preset, if the training images do not fill one batch, or if there are no
                images for validation.
        """
        return cls(
            root=settings.shards.root,
            index=index,
            preset=settings.feed.preset,
            size=settings.feed.size,
            batch=settings.feed.batch,
            window=settings.feed.window,
            seed=settings.train.seed,
            shared=shared or {},
        )

    def __post_init__(self) -> None:
        augment.build_augmentation(self.preset, size=self.size)
        if self.steps_per_epoch < 1:
            raise UserError(
                f"{self.root}: {self.index.count('train')} training images do not fill one batch of {self.batch}. "
                "Lower feed.batch."
            )
        if not self.index.count("val"):
            raise UserError(
                f"{self.root}: no images for validation. Raise corpus.split.val, or give the corpus a split column "
                "with 'val' in it, and make the shards again."
            )

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole global batches in an epoch. The rows after the last whole batch are left out."""
        return self.index.count("train") // self.batch

    def rows(self, shard: Shard, rows: Sequence[int]) -> list[ShardRow]:
        """Reads rows of a shard, from the object store if it contains the shard.

        Args:
            shard: The shard.
            rows: The numbers of the rows within the shard.

        Returns:
            The rows, in the order of the numbers.

        Raises:
            DamagedShardError: If the file is missing, damaged, or another one than the index describes.
            OSError: If the file cannot be read; a `StorageError` for a bucket.
        """
        if shard.file in self.shared:
            return unpack_rows(ray.get(self.shared[shard.file]), rows)
        return read_rows(self.root, shard, rows)


_ORDERS: dict[tuple[str, int, int, int], npt.NDArray[np.int64]] = {}


def _train_places(source: Source, epoch: int) -> npt.NDArray[np.int64]:
    """Returns `epoch_order`, computed once per process and epoch."""
    key = (source.index.fingerprint, source.seed, epoch, source.window)
    if key not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[key] = epoch_order(source.index.of("train"), seed=source.seed, epoch=epoch, window=source.window)
    return _ORDERS[key]


def _validation_places(source: Source) -> npt.NDArray[np.int64]:
    shards = source.index.of("val")
    return np.asarray([(number, row) for number, shard in enumerate(shards) for row in shard.usable], np.int64)


@lru_cache(maxsize=4)
def _cached_augment(preset: str, size: int, mirrored: tuple[tuple[int, int], ...]) -> augment.Augment:
    cv2.setNumThreads(0)
    return augment.build_augmentation(preset, size=size, mirrored=mirrored)


def prepare(source: Source, split: Split, epoch: int, slots: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Reads and augments the rows at some places of an epoch.

    Args:
        source: The source of the rows.
        split: The split to read: `train`, with the preset of the source, or `val`, with the preset `valid`.
        epoch: The number of the epoch, from 0, which determines order and augmentation. Validation has one order for
            all epochs.
        slots: (n,) int64, the places in the epoch, from 0.

    Returns:
        `slot`, the given places (n,); `image_id`, an object array of strings (n,); `image`, uint8 (n, size, size,
        channels); and `mask`, uint8 (n, size, size), the label of each pixel.

    Raises:
        DamagedShardError: If a shard is missing, damaged, or another one than the index describes.
        OSError: If a shard cannot be read; a `StorageError` for a bucket.
    """
    places = (_train_places(source, epoch) if split == "train" else _validation_places(source))[slots]
    preset = source.preset if split == "train" else "valid"
    change = _cached_augment(preset, source.size, source.index.corpus.mirrored)
    shards = source.index.of(split)
    images = np.empty((len(slots), source.size, source.size, source.index.corpus.channels), np.uint8)
    masks = np.empty((len(slots), source.size, source.size), np.uint8)
    names = np.empty(len(slots), object)
    for number in np.unique(places[:, 0]):
        at = np.flatnonzero(places[:, 0] == number)
        rows = source.rows(shards[number], places[at, 1].tolist())
        for place, row in zip(at, rows, strict=True):
            name = int.from_bytes(hashlib.sha256(row.image_id.encode()).digest()[:8], "big")
            images[place], masks[place] = change(row.sample.image, row.sample.mask, seed=(source.seed, epoch, name))
            names[place] = row.image_id
    return {"slot": slots, "image_id": names, "image": images, "mask": masks}


@dataclass(frozen=True)
class _Chunk:
    """Converts the number of a chunk to its block of prepared rows; runs in a data task.

    Attributes:
        source: The source of the rows.
        split: The split to read.
        chunks: The epoch of each chunk, and the places of its rows in that epoch.
        patience: Seconds for which the reading of a shard is repeated while a bucket cannot be used.
    """

    source: Source
    split: Split
    chunks: list[tuple[int, npt.NDArray[np.int64]]]
    patience: float

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        epoch, slots = self.chunks[int(batch["id"][0])]
        try:
            block = retry(lambda: prepare(self.source, self.split, epoch, slots), seconds=self.patience)
        except DamagedShardError as error:
            # Ray does not preserve the type of an exception, so the feed gets the message and raises it again.
            return {_DAMAGE: np.array([str(error)])}
        return {**block, "epoch": np.full(len(slots), epoch)}


@dataclass(frozen=True)
class Feed:
    """The share of a source that one rank gets, prepared by Ray Data.

    Attributes:
        source: The source of the rows.
        rank: The rank of this worker, from 0.
        world_size: The number of workers. It divides the global batch.
        tasks: The largest number of data tasks that run at the same time. With 0, the worker prepares its images
            itself, because no CPU is left for a task.
        ahead: The number of images that are kept ready.
        patience: Seconds for which the reading of a shard is repeated while a bucket cannot be used.
    """

    source: Source
    rank: int
    world_size: int
    tasks: int
    ahead: int
    patience: float = 0.0

    @property
    def batch(self) -> int:
        """The number of images that this rank processes in one step."""
        return self.source.batch // self.world_size

    def train(self, *, step: int, epochs: int) -> ReadAhead:
        """Starts to prepare the batches from a global step to the end of the last epoch, in the background.

        Args:
            step: The global step of the first batch, counted from 0 over all epochs.
            epochs: The number of epochs after which the stream ends.

        Returns:
            An iterator over the batches of this rank.

        Raises:
            JobFailedError: If a shard is damaged. The iterator raises it.
            RuntimeError: If a row is not the one that the order specifies. The iterator raises it.
        """
        return ReadAhead(self._train(step, epochs), depth=max(self.ahead // self.batch, 1))

    def validation(self) -> Iterator[Batch]:
        """Reads the share of the validation images that this rank gets.

        The shares of all ranks together contain each validation image once.

        Yields:
            The batches, numbered from 0; the last one may be smaller than the others.

        Raises:
            JobFailedError: If a shard is damaged.
            RuntimeError: If a row is not the one that the order specifies.
        """
        slots = np.arange(self.rank, self.source.index.count("val"), self.world_size)
        yield from self._run("val", self._cut(0, slots), step=0)

    def _train(self, step: int, epochs: int) -> Iterator[Batch]:
        """Yields the batches from pipelines of many chunks each, because the start of a pipeline takes time."""
        steps, end = self.source.steps_per_epoch, epochs * self.source.steps_per_epoch
        while step < end:
            chunks: list[tuple[int, npt.NDArray[np.int64]]] = []
            first = step
            while step < end and len(chunks) < PIPELINE_CHUNKS:
                epoch = step // steps
                starts = np.arange(step - epoch * steps, steps)[:, None] * self.source.batch + self.rank * self.batch
                chunks += self._cut(epoch, (starts + np.arange(self.batch)).ravel())
                step = (epoch + 1) * steps
            yield from self._run("train", chunks, step=first)

    def _cut(self, epoch: int, slots: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
        row = self.source.size**2 * (self.source.index.corpus.channels + 1)
        images = min(CHUNK_IMAGES, CHUNK_BYTES // row)
        length = max(images // self.batch, 1) * self.batch
        return [(epoch, slots[start : start + length]) for start in range(0, len(slots), length)]

    def _run(self, split: Split, chunks: list[tuple[int, npt.NDArray[np.int64]]], *, step: int) -> Iterator[Batch]:
        if not chunks:
            return
        expected = np.concatenate([[np.full(len(slots), epoch), slots] for epoch, slots in chunks], axis=1)
        done = 0
        # Whole blocks are requested and split into batches here, because Ray Data takes milliseconds for each batch.
        for block in self._blocks(_Chunk(self.source, split, chunks, self.patience)):
            if _DAMAGE in block:
                raise JobFailedError(str(block[_DAMAGE][0]))
            place = np.stack([block["epoch"], block["slot"]])
            wanted = expected[:, done : done + place.shape[1]]
            if not np.array_equal(place, wanted) or done % self.batch:
                raise RuntimeError(
                    f"rank {self.rank}, {split} step {step}: expected the rows at (epoch, slot) {wanted.T.tolist()}, "
                    f"found {place.T.tolist()}"
                )
            done += place.shape[1]
            images = torch.from_numpy(np.require(block["image"], requirements=["C", "W"])).permute(0, 3, 1, 2)
            masks = torch.from_numpy(np.require(block["mask"], requirements=["C", "W"]))
            for start in range(0, place.shape[1], self.batch):
                part = slice(start, start + self.batch)
                yield Batch(step, images[part], masks[part], block["image_id"][part].tolist())
                step += 1
        if done != expected.shape[1]:
            raise RuntimeError(f"rank {self.rank}: expected {expected.shape[1]} {split} rows, found {done}")

    def _blocks(self, chunk: _Chunk) -> Iterator[dict[str, npt.NDArray[Any]]]:
        count = len(chunk.chunks)
        if not self.tasks:
            yield from (chunk({"id": np.array([number])}) for number in range(count))
            return
        blocks = ray.data.range(count, override_num_blocks=count).map_batches(
            chunk,
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.TaskPoolStrategy(size=min(self.tasks, count)),
        )
        blocks.context.execution_options.preserve_order = True
        blocks.context.enable_progress_bars = False
        yield from blocks.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
