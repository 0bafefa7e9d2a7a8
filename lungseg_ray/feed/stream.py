"""The feed: it turns shards into the batches of a training worker, the same for any number of workers and tasks.

For given settings of the feed, the global batch of a step depends only on the seed, the epoch and the index of the
shards. `epoch_order` determines which row is at which place of an epoch; the rows of other corpora, if any are mixed
in, take some of these places. A global batch consists of consecutive places, and each rank takes its slice of it. Each
rank runs its own Ray Data pipeline, which can start at any step from which a run is resumed. The pipeline is a list of
chunk numbers; one task turns one number into one block of augmented rows. The ranks share no splitter, so that no rank
can get the rows of another. A task yields only once, so that it cannot hold a CPU for which another rank waits. While
no CPU is left for data tasks, such as after the loss of a node, each rank prepares its chunks itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.util.annotations import RayDeprecationWarning

from lungseg_ray.cluster.planning import tasks_for
from lungseg_ray.cluster.session import nodes_with_cpus, tasks_left
from lungseg_ray.config import CorporaSettings, Settings
from lungseg_ray.corpus.record import Split
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.cache import ShardCache
from lungseg_ray.feed.order import Places, epoch_order, usable_rows
from lungseg_ray.feed.plan import DAMAGE, ChunkTask, Plan, Rows
from lungseg_ray.feed.read_ahead import CLOSE_SECONDS, ReadAhead
from lungseg_ray.names import Fit
from lungseg_ray.shards.index import Shard, ShardIndex, read_index
from lungseg_ray.shards.parts import split_off
from lungseg_ray.storage import Location

CHUNK_IMAGES = 128
"""The largest number of images that one task prepares: enough to outweigh the cost of a task, and few enough for a
quick first batch. One batch of the rank is the minimum."""

CHUNK_BYTES = 64 << 20
"""The largest size of a chunk, bytes, because Ray Data splits blocks of more than 128 MiB. One batch of the rank is the
minimum."""

LOOK_SECONDS = 30.0
"""Seconds without a chunk after which it is asked whether there are CPUs for data tasks at all."""

PIPELINE_CHUNKS = 2048
"""The number of chunks of a Ray Data pipeline: enough to outweigh the cost of its start, and few enough for its plan to
be small. A pipeline may contain several epochs, or a part of one."""


@dataclass(frozen=True)
class Addition:
    """Training images of another corpus, which take the places of some of those of the run's own.

    Attributes:
        root: The folder of its shards.
        index: Their index.
        share: Its share of the images of an epoch, 0 to 1; less where it has fewer, since none comes twice.
        epochs: The epochs in which it is used.
    """

    root: Location
    index: ShardIndex
    share: float
    epochs: range


@dataclass(frozen=True)
class Source:
    """The rows that a run is trained on, and how they are prepared.

    Attributes:
        root: The folder of the shards.
        index: The index of the shards.
        preset: The augmentation preset of the training images, one of `PRESETS`.
        size: Height and width of the input of the network, pixels.
        fit: How an image that is not square becomes so.
        sizes: The size of the training images of each epoch, pixels; empty for `size` in all of them.
        left_out: The part of the patients whose training images are left out of the index; empty for none.
        additions: Other corpora whose training images are mixed in.
        batch: Number of images in a global batch.
        window: Number of shards whose rows are shuffled together.
        seed: Seed of the order and of the augmentation.
        shared: References to whole shards in Ray's object store, by the name of the file, for several runs on a node
            that read the same shards. Shards that are not in it are read from `root`.
        cache: The cache of shards on the disk of each node; None if they are read where they are.

    Raises:
        UserError: If the training images do not fill one batch, or if there are no images for validation.
    """

    root: Location
    index: ShardIndex
    preset: str
    size: int
    batch: int
    window: int
    seed: int
    fit: Fit = "stretch"
    sizes: Sequence[int] = ()
    left_out: str = ""
    additions: tuple[Addition, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    cache: ShardCache | None = None

    @classmethod
    def of(cls, settings: Settings, index: ShardIndex, shared: Mapping[str, Any] | None = None) -> Source:
        """Builds the source of a run.

        Args:
            settings: The settings of the run.
            index: The index of the shards.
            shared: References to whole shards in Ray's object store, by the name of the file.

        Raises:
            UserError: If the training images do not fill one batch, if there are no images for validation, or none with
                the structure by which epochs are ranked, or if another corpus that is mixed in does not fit.
            OSError: If the index of such a corpus cannot be read.
        """
        if settings.train.best_by == "dice_positives":
            _check_positives(index, settings.shards.root)
        if settings.feed.leave_out:
            index, _ = split_off(settings.shards.root, index, settings.feed.leave_out)
        return cls(
            root=settings.shards.root,
            index=index,
            preset=settings.feed.preset,
            size=settings.feed.size,
            batch=settings.feed.batch,
            window=settings.feed.window,
            seed=settings.train.seed,
            fit=settings.feed.fit,
            sizes=settings.size_of_epochs,
            left_out=settings.feed.leave_out,
            additions=tuple(_addition(one, settings, index) for one in settings.corpora),
            shared=shared or {},
            cache=_cache_of(settings),
        )

    def __post_init__(self) -> None:
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

    def rows(self, split: Split, epoch: int, slots: npt.NDArray[np.int64]) -> Rows:
        """Returns the rows at some places of an epoch.

        Args:
            split: `train` or `val`.
            epoch: The number of the epoch, from 0. Validation has one order for all epochs.
            slots: (n,) int64, the places in the epoch, from 0.
        """
        order = _train_order(self, epoch) if split == "train" else _validation_order(self)
        size = self.sizes[epoch] if split == "train" and self.sizes else self.size
        return Rows(epoch, size, slots, order[slots])

    def plan(self, split: Split, chunks: Sequence[Rows]) -> Plan:
        """Returns all that data tasks need to prepare chunks of rows, and no more.

        Args:
            split: The split of the rows: `train`, with the preset of the source, or `val`, with the preset `valid`.
            chunks: The rows of each chunk.
        """
        shards = self._shards(split)
        found = np.unique(np.concatenate([rows.places[:, 0] for rows in chunks])).tolist()
        own = {number: shards[number][1].file for number in found if shards[number][0] == self.root}
        return Plan(
            preset=self.preset if split == "train" else "valid",
            fit=self.fit,
            seed=self.seed,
            channels=self.index.corpus.channels,
            mirrored=self.index.corpus.mirrored,
            cache=self.cache,
            chunks=list(chunks),
            shards={number: shards[number] for number in found},
            shared={number: self.shared[file] for number, file in own.items() if file in self.shared},
        )

    def _shards(self, split: Split) -> list[tuple[Location, Shard]]:
        """Returns the shards of a split with their folders, those of additions after the own ones."""
        additions = self.additions if split == "train" else ()
        sources = [(self.root, self.index), *((one.root, one.index) for one in additions)]
        return [(root, shard) for root, index in sources for shard in index.of(split)]


def _check_positives(index: ShardIndex, root: Location) -> None:
    """Raises a `UserError` if the validation images do not have the structures by which epochs are to be ranked."""
    shares = index.splits["val"].label_shares
    if index.count("val") and not any(share for label, share in shares.items() if label):
        raise UserError(
            f"{root}: no image of the validation split has a structure, and train.best_by = dice_positives ranks "
            "epochs by the images that have one. Use another train.best_by, or other splits (corpus.split)."
        )


def _addition(asked: CorporaSettings, settings: Settings, index: ShardIndex) -> Addition:
    """Reads the index of another corpus, and checks that its images can be mixed with those of the run."""
    found = read_index(asked.root)
    own, other = index.corpus, found.corpus
    kinds = ("channels", "classes", "class_names")
    wrong = [
        f"{kind} = {there}, and not {here}"
        for kind in kinds
        if (there := getattr(other, kind)) != (here := getattr(own, kind))
    ]
    if wrong:
        raise UserError(f"{asked.root}: these shards cannot be mixed in (corpora): {', '.join(wrong)}.")
    if asked.fingerprint and asked.fingerprint != found.fingerprint:
        raise UserError(f"{asked.root}: these are other shards than those that the run has mixed in so far (corpora).")
    if not found.count("train"):
        raise UserError(f"{asked.root}: these shards have no training images to mix in (corpora).")
    first, last = (round(share * settings.train.epochs) for share in (asked.first, asked.until))
    if first >= last:
        raise UserError(
            f"{asked.root}: from {asked.first:g} to {asked.until:g} of {settings.train.epochs} epochs is no epoch "
            "(corpora). Raise until, or leave the corpus out."
        )
    return Addition(asked.root, found, asked.share, range(first, last))


def _cache_of(settings: Settings) -> ShardCache | None:
    feed = settings.feed
    roots = [settings.shards.root, *(one.root for one in settings.corpora)]
    if feed.cache == "off" or (feed.cache == "auto" and all(root.is_local for root in roots)):
        return None
    return ShardCache("" if feed.cache == "auto" else feed.cache, int(feed.cache_gib * 2**30))


_ORDERS: dict[tuple[Hashable, ...], Places] = {}


def _train_order(source: Source, epoch: int) -> Places:
    """Returns the row at each place of an epoch, computed once per process and epoch."""
    additions = tuple((one.index.fingerprint, one.share, epoch in one.epochs) for one in source.additions)
    key = (source.index.fingerprint, source.left_out, source.seed, epoch, source.window, additions)
    if key not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[key] = _mixed_order(source, epoch)
    return _ORDERS[key]


def _mixed_order(source: Source, epoch: int) -> Places:
    """Returns `epoch_order`, with rows of the additions in the places of as many as their shares ask for."""
    kinds = {"seed": source.seed, "epoch": epoch, "window": source.window}
    order = epoch_order(source.index.of("train"), **kinds)
    first = len(source.index.of("train"))
    free = np.random.default_rng([source.seed, epoch, 1]).permutation(len(order))
    for one in source.additions:
        shards = one.index.of("train")
        if epoch in one.epochs:
            # Of shares that are 1 in sum, rounding may ask for one row too many.
            rows = epoch_order(shards, **kinds)[: min(round(one.share * len(order)), len(free))]
            slots, free = np.split(free, [len(rows)])
            # In their own order, so that those of a shard stay together.
            order[np.sort(slots)] = rows + np.array([first, 0], rows.dtype)
        first += len(shards)
    return order


def _validation_order(source: Source) -> Places:
    return usable_rows(source.index.of("val"))


@dataclass(frozen=True)
class Feed:
    """The share of a source that one rank gets, prepared by Ray Data.

    Attributes:
        source: The source of the rows.
        rank: The rank of this worker, from 0.
        world_size: The number of workers. It divides the global batch.
        tasks: The logical CPUs for data tasks. With 0, the worker prepares its images itself.
        ahead: The number of images that are kept ready.
        patience: Seconds for which the reading of a shard is repeated while a bucket cannot be used.
        cpus_per_worker: The logical CPUs that each worker occupies, so that they are not for data tasks.
    """

    source: Source
    rank: int
    world_size: int
    tasks: int
    ahead: int
    patience: float = 0.0
    cpus_per_worker: int = 0

    @property
    def batch(self) -> int:
        """The number of images that this rank processes in one step."""
        return self.source.batch // self.world_size

    def train(
        self, *, step: int, epochs: int, prepare: Callable[[Batch], Batch] = lambda batch: batch
    ) -> ReadAhead[Batch]:
        """Starts to prepare the batches from a global step to the end of the last epoch, in the background.

        Args:
            step: The global step of the first batch, counted from 0 over all epochs.
            epochs: The number of epochs after which the stream ends.
            prepare: What is done with each batch in the background, such as its copy to a device.

        Returns:
            An iterator over the batches of this rank.

        Raises:
            JobFailedError: If a shard is damaged. The iterator raises it.
            RuntimeError: If a row is not the one that the order specifies. The iterator raises it.
        """
        return ReadAhead(map(prepare, self._train(step, epochs)), depth=max(self.ahead // self.batch, 1))

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
        chunks = [self.source.rows("val", 0, part) for part in self._cut(slots)]
        step = 0
        for start in range(0, len(chunks), PIPELINE_CHUNKS):
            for batch in self._run("val", chunks[start : start + PIPELINE_CHUNKS], step=step):
                yield batch
                step = batch.step + 1

    def _train(self, step: int, epochs: int) -> Iterator[Batch]:
        """Yields the batches from pipelines of many chunks each, because the start of a pipeline takes time."""
        chunks = self._train_chunks(step, epochs)
        while some := list(islice(chunks, PIPELINE_CHUNKS)):
            yield from self._run("train", some, step=step)
            step += sum(len(rows.slots) for rows in some) // self.batch

    def _train_chunks(self, step: int, epochs: int) -> Iterator[Rows]:
        steps = self.source.steps_per_epoch
        for epoch in range(step // steps, epochs):
            starts = np.arange(max(step - epoch * steps, 0), steps)[:, None] * self.source.batch
            slots = (starts + self.rank * self.batch + np.arange(self.batch)).ravel()
            yield from (self.source.rows("train", epoch, part) for part in self._cut(slots))

    def _cut(self, slots: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        row = max([self.source.size, *self.source.sizes]) ** 2 * (self.source.index.corpus.channels + 1)
        images = min(CHUNK_IMAGES, CHUNK_BYTES // row)
        length = max(images // self.batch, 1) * self.batch
        return [slots[start : start + length] for start in range(0, len(slots), length)]

    def _run(self, split: Split, chunks: list[Rows], *, step: int) -> Iterator[Batch]:
        expected = np.concatenate([[np.full(len(rows.slots), rows.epoch), rows.slots] for rows in chunks], axis=1)
        done = 0
        # Whole blocks are requested and split into batches here, because Ray Data takes milliseconds for each batch.
        for block in self._blocks(self.source.plan(split, chunks)):
            if DAMAGE in block:
                raise JobFailedError(str(block[DAMAGE][0]))
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

    def _blocks(self, plan: Plan) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yields the chunks in their order; those for which there is no CPU are prepared by this process."""
        here = ChunkTask(plan, self.patience)
        number = 0
        while number < len(plan.chunks):
            if tasks := self._tasks():
                for block in self._from_tasks(plan, number, tasks):
                    yield block
                    number += 1
            else:
                yield here({"item": np.array([number])})
                number += 1

    def _tasks(self) -> int:
        """Returns the CPUs for data tasks: after the loss of a node, fewer may be left than were planned."""
        return min(self.tasks, tasks_left(self.world_size, self.cpus_per_worker)) if self.tasks else 0

    def _from_tasks(self, plan: Plan, first: int, cpus: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yields the chunks from a certain one on, which data tasks prepare, as long as there are CPUs for them."""
        numbers = list(range(first, len(plan.chunks)))
        tasks, share = tasks_for(cpus, nodes_with_cpus())
        # Ray 2.64 takes this argument away, and places tasks by a rule of its own.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
        # Items instead of a range, whose numbers would be made by tasks of their own.
        data = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            ChunkTask(ray.put(plan), self.patience),
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.TaskPoolStrategy(size=min(tasks, len(numbers))),
            num_cpus=share,
            # Images that are prepared on the node of the worker need not travel. Ray Data would spread its tasks over
            # all nodes; Ray's own rule begins with the node of the worker, and goes on to others when that is busy.
            scheduling_strategy="DEFAULT",
        )
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = False
        # Ray waits without end for a task that no node has a CPU for, and for a block that was lost with its node.
        blocks = ReadAhead(iter(data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)), depth=1)
        patience = CLOSE_SECONDS
        try:
            while True:
                try:
                    yield blocks.next_within(LOOK_SECONDS)
                except TimeoutError:
                    if not self._tasks():
                        patience = 0.0
                        return
                except StopIteration:
                    return
        finally:
            blocks.close(patience)
