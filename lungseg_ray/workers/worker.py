"""What the training loop needs of a worker: its share of the data, the other workers, checkpoints, and a pulse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn

from lungseg_ray.config import Settings
from lungseg_ray.errors import JobFailedError, UserError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.read_ahead import ReadAhead
from lungseg_ray.feed.stream import Feed, Source
from lungseg_ray.run import checkpoint
from lungseg_ray.run.checkpoint_writer import CheckpointWriter
from lungseg_ray.run.folder import Run
from lungseg_ray.run.lease import LeaseToken
from lungseg_ray.storage import Location, retry
from lungseg_ray.training.runtime import Request
from lungseg_ray.workers.mailbox import Heartbeat, Pulse

T = TypeVar("T")
CACHED_VALIDATION_BYTES = 1 << 30
"""Validation images, made ready once, are kept by each worker up to this size."""

_FAILED = 4


@dataclass
class Worker(ABC):
    """A `loop.Runtime` but for its ways to the driver, which those who run it bring.

    Attributes:
        settings: of the run.
        run: where it is kept.
        source: what is fed.
        feed: this worker's share of it.
        device: to compute on.
        rank: of this worker.
        world_size: workers; several are connected by `torch.distributed`.
        heart: sends its pulse, and hears whether it is to stop.
        ticket: of the driver that holds the run.
        keeper: of its checkpoints; rank 0's alone.
    """

    settings: Settings
    run: Run
    source: Source
    feed: Feed
    device: torch.device
    rank: int
    world_size: int
    heart: Heartbeat
    ticket: LeaseToken
    keeper: CheckpointWriter | None = None

    def begin(self, step: int) -> None:  # noqa: B027 - where nobody counts losses, there is nothing to do
        """Called by rank 0 before training starts after a step.

        Raises:
            JobFailedError: if it has failed there too often.
        """

    def due(self) -> bool:
        """Whether it is time to look for a notice; rank 0 says it for all."""
        return False

    def notice(self) -> bool:
        """Whether a checkpoint is wanted soon, the same on every worker, which all call it together."""
        return False

    @abstractmethod
    def tell(self, event: dict[str, Any]) -> None:
        """Lets whoever watches know."""

    def train(self, *, step: int, epochs: int) -> ReadAhead:
        return self.feed.train(step=step, epochs=epochs)

    def validation(self) -> Iterator[Batch]:
        size = self.source.size**2 * (self.source.index.corpus.channels + 1)
        if self.source.index.count("val") * size > CACHED_VALIDATION_BYTES * self.world_size:
            return self.feed.validation()
        return iter(self._validation)

    @cached_property
    def _validation(self) -> list[Batch]:
        found: list[Batch] = []
        for batch in self.feed.validation():
            self.doing(f"validation batch {len(found) + 1} to be made ready")
            found.append(batch)
        return found

    def wrap(self, model: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return values
        there = values.to(self.device, copy=True)
        torch.distributed.all_reduce(there)
        return there.to(values.device)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def gather(self, names: list[str]) -> list[str]:
        if self.world_size == 1:
            return names
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, names)
        return [name for part in found for name in part]

    def restore(self) -> checkpoint.Checkpoint | None:
        choice: list[Any] = [None]
        if self.rank == 0:
            try:
                choice = [self._newest()]
            except (UserError, JobFailedError) as error:
                choice = [error]
            except OSError as error:
                choice = [JobFailedError(str(error))]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(choice, src=0)
        if isinstance(choice[0], Exception):
            raise choice[0]
        if choice[0] is None:
            return None
        content = self._patiently(lambda: checkpoint.read_checkpoint(choice[0]))
        before = content.progress
        if not self.settings.train.threads and before.threads and before.workers == self.world_size:
            # Sums of floats depend on the number of threads; with the former one, the figures stay equal.
            torch.set_num_threads(before.threads)
        return content

    def _newest(self) -> Location | None:
        found, wrong = self._patiently(self.run.newest_checkpoint)
        for reason in wrong:
            self.note(f"Checkpoint passed over: {reason}")
        self.begin(checkpoint.step_of(found) if found else 0)
        patience = self.settings.storage.patience_seconds
        best = self.settings.checkpoint.keep
        self.keeper = CheckpointWriter(
            self.run,
            best=best,
            patience=patience,
            note=self.note,
            moved=lambda: self.doing(self.heart.pulse.doing),
            ticket=self.ticket,
            last=found,
        )
        return found

    def _patiently(self, work: Callable[[], T]) -> T:
        return retry(work, seconds=self.settings.storage.patience_seconds, note=self.note)

    def save(self, content: checkpoint.Checkpoint, *, spare: bool) -> None:
        if self.keeper:
            self.doing("the checkpoint before to be written")
            self.keeper.save(content, spare=spare)

    def waited(self) -> float:
        if not self.keeper:
            return 0.0
        seconds, self.keeper.waited = self.keeper.waited, 0.0
        return seconds

    def flush(self) -> None:
        if self.keeper:
            self.keeper.flush()
        self.wish()

    def wish(self) -> Request:
        asked = 0
        if self.keeper:
            self.keeper.poll()
            asked |= _FAILED if self.keeper.error else Request.STOP if self.heart.stop else 0
        told = [int(one) for one in self.sum(torch.tensor([asked, int(self.due())], dtype=torch.float64))]
        if told[0] & _FAILED:
            error = self.keeper.error if self.keeper else "rank 0 says why"
            if isinstance(error, JobFailedError):
                raise error
            raise JobFailedError(
                f"A checkpoint could not be written for {self.settings.storage.patience_seconds} s "
                f"(storage.patience_seconds): {error}"
            )
        if told[1] and self.notice() and not told[0]:
            return Request.SAVE
        return Request(told[0])

    def doing(self, what: str) -> None:
        self.heart.pulse = Pulse(what, self.heart.pulse.moves + 1)

    def note(self, text: str) -> None:
        self.tell({"event": "note", "text": text})
