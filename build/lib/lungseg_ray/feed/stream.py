"""The feed: from shards to the batches that a training worker takes, the same for any number of workers and tasks.

What the model sees at a step follows from (seed, epoch, index of the shards) alone. `epoch_order` says which row stands
at which place of an epoch; a global batch is a run of places, and each rank takes its slice of it. Each rank pulls its
own Ray Data pipeline, which starts at whatever step the run goes on from: a range of chunk numbers, each turned by one
task into one block of augmented rows. Ranks share no splitter, so none can be dealt another's rows, and a task never
yields twice, so none can hold a CPU while another rank waits for it.
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
from lungseg_ray.errors import UserError
from lungseg_ray.feed import augment
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.order import epoch_order
from lungseg_ray.feed.read_ahead import ReadAhead
from lungseg_ray.shards.format import ShardIndex, ShardRow, read_rows, unpack_rows
from lungseg_ray.storage import Location, retry

CHUNK_IMAGES = 128
"""Images that one task makes: enough to outweigh what a task costs, few enough for a quick first batch."""

CHUNK_BYTES = 64 << 20
"""Bound of a chunk's size; Ray Data cuts blocks of more than 128 MiB in two."""

PIPELINE_CHUNKS = 512
"""Chunks of one Ray Data pipeline, in whole epochs, at least one: enough to outweigh what its start costs."""


@dataclass(frozen=True)
class Source:
    """Which rows are fed, and how they are prepared.

    Attributes:
        root: folder of the shards.
        index: what it holds.
        preset: augmentation of the training images.
        size: height and width that the network sees, pixels.
        batch: images of a global batch.
        window: shards whose rows are shuffled together.
        seed: of order and augmentation.
        shared: whole shards in Ray's object store, by file, where several runs on a node read the same.
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
        """The source of a run.

        Raises:
            UserError: if the shards do not fill a batch, or have no images for validation.
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
        """Whole global batches in an epoch; the last incomplete one is dropped."""
        return self.index.count("train") // self.batch

    def rows(self, file: str, rows: Sequence[int]) -> list[ShardRow]:
        """Rows of one shard, from the object store where it lies there."""
        if file in self.shared:
            return unpack_rows(ray.get(self.shared[file]), rows)
        return read_rows(self.root / file, rows)


_ORDERS: dict[tuple[str, int, int, int], npt.NDArray[np.int64]] = {}


def _train_places(source: Source, epoch: int) -> npt.NDArray[np.int64]:
    """`epoch_order`, worked out once per process and epoch."""
    key = (source.index.fingerprint, source.seed, epoch, source.window)
    if key not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[key] = epoch_order(source.index.of("train"), seed=source.seed, epoch=epoch, window=source.window)
    return _ORDERS[key]


def _validation_places(source: Source) -> npt.NDArray[np.int64]:
    shards = source.index.of("val")
    return np.asarray([(number, row) for number, shard in enumerate(shards) for row in shard.usable], np.int64)


@lru_cache(maxsize=4)
def _cached_augment(preset: str, size: int) -> augment.Augment:
    cv2.setNumThreads(0)
    return augment.build_augmentation(preset, size=size)


def prepare(source: Source, split: Split, epoch: int, slots: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Reads and augments the rows that stand at some places of the stream.

    Args:
        source: where from.
        split: `train`, with the source's preset, or `val`, with the preset `valid`.
        epoch: whose order and augmentation; validation has one for all.
        slots: (n,) places in the epoch.

    Returns:
        `slot` (n,), `image_id` (n,), `image` uint8 (n, size, size, channels), `mask` uint8 (n, size, size).
    """
    places = (_train_places(source, epoch) if split == "train" else _validation_places(source))[slots]
    change = _cached_augment(source.preset if split == "train" else "valid", source.size)
    shards = source.index.of(split)
    images = np.empty((len(slots), source.size, source.size, source.index.corpus.channels), np.uint8)
    masks = np.empty((len(slots), source.size, source.size), np.uint8)
    names = np.empty(len(slots), object)
    for number in np.unique(places[:, 0]):
        at = np.flatnonzero(places[:, 0] == number)
        rows = source.rows(shards[number].file, places[at, 1].tolist())
        for place, row in zip(at, rows, strict=True):
            name = int.from_bytes(hashlib.sha256(row.image_id.encode()).digest()[:8], "big")
            images[place], masks[place] = change(row.sample.image, row.sample.mask, seed=(source.seed, epoch, name))
            names[place] = row.image_id
    return {"slot": slots, "image_id": names, "image": images, "mask": masks}


@dataclass(frozen=True)
class _Chunk:
    """Turns a chunk's number into its block of prepared rows; runs in a data task.

    Attributes:
        source: what is fed.
        split: the side.
        chunks: for each chunk its epoch and its slots in it.
        patience: seconds for which to try again where shards cannot be read.
    """

    source: Source
    split: Split
    chunks: list[tuple[int, npt.NDArray[np.int64]]]
    patience: float

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        epoch, slots = self.chunks[int(batch["id"][0])]
        block = retry(lambda: prepare(self.source, self.split, epoch, slots), seconds=self.patience)
        return {**block, "epoch": np.full(len(slots), epoch)}


@dataclass(frozen=True)
class Feed:
    """One rank's share of a source, through Ray Data.

    Attributes:
        source: what is fed.
        rank: of this worker.
        world_size: workers.
        tasks: data tasks at a time; 0 where no CPU is left for any, and the worker prepares its own images.
        ahead: images kept ready.
        patience: seconds for which to try again where shards cannot be read.
    """

    source: Source
    rank: int
    world_size: int
    tasks: int
    ahead: int
    patience: float = 0.0

    @property
    def batch(self) -> int:
        """Images of this rank in one step."""
        return self.source.batch // self.world_size

    def train(self, *, step: int, epochs: int) -> ReadAhead:
        """Batches from a global step to the end of the last epoch, prepared ahead in the background.

        Args:
            step: the first one wanted, counted from 0 over all epochs.
            epochs: after how many the stream ends.

        Raises:
            RuntimeError: if a row is not the one that the order says.
        """
        return ReadAhead(self._train(step, epochs), depth=max(self.ahead // self.batch, 1))

    def validation(self) -> Iterator[Batch]:
        """This rank's share of the validation images; over all ranks, each image once."""
        slots = np.arange(self.rank, self.source.index.count("val"), self.world_size)
        yield from self._run("val", self._cut(0, slots), step=0)

    def _train(self, step: int, epochs: int) -> Iterator[Batch]:
        """The stream in pipelines of many chunks each, since every pipeline costs a start."""
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
        # Whole blocks are taken and cut here: a batch of its own from Ray Data costs milliseconds.
        for block in self._blocks(_Chunk(self.source, split, chunks, self.patience)):
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
