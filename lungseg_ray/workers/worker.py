"""A worker: the `Runtime` of the training loop, composed of its data, its process group, checkpoints and driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import cv2
import torch
from torch import nn

from lungseg_ray.cluster.memory import reuse_memory
from lungseg_ray.cluster.planning import TrainingPlan, cores
from lungseg_ray.cluster.session import quiet_data
from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.read_ahead import ReadAhead
from lungseg_ray.feed.stream import Feed, Source
from lungseg_ray.run import checkpoint
from lungseg_ray.run.checkpoint import Checkpoint, Newest
from lungseg_ray.run.checkpoint_writer import CheckpointWriter
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import LeaseToken
from lungseg_ray.storage import Location, retry
from lungseg_ray.training.device import allow_fast_products, copies_to
from lungseg_ray.training.events import Event, Note, NoteKind
from lungseg_ray.training.runtime import Request
from lungseg_ray.workers.mailbox import Heartbeat
from lungseg_ray.workers.metrics import Metrics
from lungseg_ray.workers.process_group import ProcessGroup

T = TypeVar("T")
CACHED_VALIDATION_BYTES = 1 << 30
"""Validation images, prepared once, are kept by each worker up to this size, bytes."""

_FAILED = 4
"""The bit by which rank 0 reports, in the sum of all workers, that a checkpoint cannot be written."""


class Driver(Protocol):
    """The driver of a run as a worker sees it."""

    def emit(self, event: Event) -> None:
        """Sends an event to the driver."""

    def on_start(self, step: int) -> None:
        """Reports, on rank 0, that the workers start to train.

        Args:
            step: The step that they start from.

        Raises:
            JobFailedError: If groups of workers were lost there too often.
        """

    def preemption_check_due(self) -> bool:
        """Whether it is time to ask for a notice of preemption; rank 0 decides for all workers."""

    def preempted(self) -> bool:
        """Whether a node is about to be taken away, the same on every worker. Every worker calls it."""


@dataclass
class Worker:
    """One worker of a run.

    Attributes:
        settings: The settings of the run.
        run: The folder of the run.
        feed: This worker's share of the data.
        group: This worker's place among the workers.
        driver: The way to the driver.
        heartbeat: Sends what this worker does, and learns whether it is to stop.
        token: Shows that the driver holds the run.
        metrics: The figures that Ray's nodes serve to Prometheus.
        writer: Writes the checkpoints; None except on rank 0 after `restore`.
    """

    settings: Settings
    run: Run
    feed: Feed
    group: ProcessGroup
    driver: Driver
    heartbeat: Heartbeat
    token: LeaseToken
    metrics: Metrics
    writer: CheckpointWriter | None = None

    @property
    def rank(self) -> int:
        """The rank of this worker, from 0."""
        return self.group.rank

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return self.group.world_size

    @property
    def device(self) -> torch.device:
        """The device to compute on."""
        return self.group.device

    def train(self, *, step: int, epochs: int) -> ReadAhead[Batch]:
        """Returns this worker's training batches, as `Runtime.train`."""
        return self.feed.train(step=step, epochs=epochs, prepare=copies_to(self.device))

    def validation(self) -> Iterator[Batch]:
        """Returns this worker's share of the validation images, as `Runtime.validation`."""
        source = self.feed.source
        size = source.size**2 * (source.index.corpus.channels + 1)
        if source.index.count("val") * size > CACHED_VALIDATION_BYTES * self.world_size:
            return self.feed.validation()
        return iter(self._validation)

    @cached_property
    def _validation(self) -> list[Batch]:
        found: list[Batch] = []
        for batch in self.feed.validation():
            self.report_activity(f"validation batch {len(found) + 1} to be made ready")
            found.append(batch)
        return found

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model that averages its gradients over the workers."""
        return self.group.wrap(model)

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum of float64 values over all workers."""
        return self.group.all_reduce_sum(values)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites tensors in place with those of rank 0."""
        self.group.broadcast(tensors)

    def all_gather(self, names: list[str]) -> list[str]:
        """Returns the names of all workers."""
        return self.group.all_gather(names)

    def restore(self) -> Checkpoint | None:
        """Returns the newest checkpoint that can be used. Rank 0 reads it once, and sends it to the others."""
        found: Newest[dict[str, bytes]] | Exception = Newest()
        if self.rank == 0:
            try:
                found = self._read_newest()
            except (UserError, JobFailedError) as error:
                found = error
            except OSError as error:
                found = JobFailedError(str(error))
        found = self.group.broadcast_object(found)
        if isinstance(found, Exception):
            raise found
        if found.place is None or found.content is None:
            return None
        content = checkpoint.parse(found.content, found.place)
        before = content.progress
        if not self.settings.train.threads and before.threads and before.workers == self.world_size:
            # The last bits of a sum of floats depend on the number of threads; with the same one, figures stay equal.
            torch.set_num_threads(before.threads)
        return content

    def _read_newest(self) -> Newest[dict[str, bytes]]:
        newest = self._retry(self.run.newest_files)
        for reason in newest.passed_over:
            self.note(f"Checkpoint passed over: {reason}", "checkpoint_passed_over")
        place, files = newest.place, newest.content
        progress = checkpoint.parse(files, place).progress if place and files else None
        self.driver.on_start(progress.step if progress else 0)
        self.token.check()
        self._retry(lambda: self.run.prune_checkpoints(progress, keep=self.settings.checkpoint.keep))
        if progress:
            # A process that was killed may have written the checkpoint, and not the history that follows it.
            self._retry(lambda: self.run.write_history(progress.history))
        self.writer = self._writer(newest.place)
        return newest

    def _writer(self, last: Location | None) -> CheckpointWriter:
        return CheckpointWriter(
            self.run,
            best=self.settings.checkpoint.keep,
            patience=self.settings.storage.patience_seconds,
            note=lambda text: self.note(text, "storage"),
            on_attempt=self.heartbeat.report,
            token=self.token,
            last=last,
        )

    def _retry(self, work: Callable[[], T]) -> T:
        def attempt() -> T:
            self.heartbeat.report()
            return work()

        patience = self.settings.storage.patience_seconds
        return retry(attempt, seconds=patience, note=lambda text: self.note(text, "storage"))

    def save(self, content: Checkpoint, *, skip_if_busy: bool) -> None:
        """Writes a checkpoint in the background, as `Runtime.save`."""
        if self.writer:
            self.report_activity("the checkpoint before to be written")
            self.writer.save(content, skip_if_busy=skip_if_busy)

    def checkpoint_wait_seconds(self) -> float:
        """Returns the seconds that this worker has waited for checkpoints since the last call."""
        if not self.writer:
            return 0.0
        seconds, self.writer.wait_seconds = self.writer.wait_seconds, 0.0
        return seconds

    def flush(self) -> None:
        """Waits until the last checkpoint is written, as `Runtime.flush`."""
        if self.writer:
            self.writer.flush()
        self.agree(self.all_reduce_sum(torch.tensor(self.wishes(), dtype=torch.float64)).tolist())

    def wishes(self) -> list[float]:
        """Returns what this worker wishes: a failure or a stop, and a look for a notice of preemption."""
        asked = 0
        if self.writer:
            self.writer.poll()
            asked |= _FAILED if self.writer.error else Request.STOP if self.heartbeat.stop else 0
        return [asked, int(self.driver.preemption_check_due())]

    def agree(self, sums: Sequence[float]) -> Request:
        """Returns what the loop is asked to do next, as `Runtime.agree`."""
        agreed, check_preemption = (int(flag) for flag in sums)
        if agreed & _FAILED:
            error = self.writer.error if self.writer else "rank 0 says why"
            if isinstance(error, JobFailedError):
                raise error
            raise JobFailedError(
                f"A checkpoint could not be written for {self.settings.storage.patience_seconds} s "
                f"(storage.patience_seconds): {error}"
            )
        if check_preemption and self.driver.preempted() and not agreed:
            return Request.SAVE
        return Request(agreed)

    def report_activity(self, activity: str) -> None:
        """Reports what this worker does next, as `Runtime.report_activity`."""
        self.heartbeat.report(activity)

    def emit(self, event: Event) -> None:
        """Sends an event to the driver, and its figures to Prometheus."""
        self.metrics.record(event)
        self.driver.emit(event)

    def note(self, text: str, kind: NoteKind = "info") -> None:
        """Sends a message for the user to the driver.

        Args:
            text: The message.
            kind: What it is about.
        """
        self.emit(Note(text, kind))


def make_worker(
    settings: Settings,
    *,
    run: Run,
    source: Source,
    group: ProcessGroup,
    driver: Driver,
    heartbeat: Heartbeat,
    token: LeaseToken,
    plan: TrainingPlan,
    workers_on_node: int,
) -> Worker:
    """Prepares this process to train, and returns its worker.

    Args:
        settings: The settings of the run.
        run: The folder of the run.
        source: The data.
        group: This worker's place among the workers.
        driver: The way to the driver.
        heartbeat: Sends what this worker does.
        token: Shows that the driver holds the run.
        plan: How CPUs and GPUs are assigned.
        workers_on_node: The number of processes that share the cores of this node.
    """
    # Ray sets OMP_NUM_THREADS from the logical CPUs of a worker; what counts are the cores of the node.
    torch.set_num_threads(settings.train.threads or max(cores() // workers_on_node, 1))
    cv2.setNumThreads(0)
    allow_fast_products(group.device)
    if group.device.type == "cpu":
        reuse_memory()
    quiet_data()
    feed = Feed(
        source,
        group.rank,
        group.world_size,
        plan.data_tasks,
        settings.feed.ahead,
        settings.storage.patience_seconds,
        plan.cpus_per_worker,
    )
    metrics = Metrics(run.place.name, group.rank)
    return Worker(settings, run, feed, group, driver, heartbeat, token, metrics)
