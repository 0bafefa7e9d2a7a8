"""What the training loop requires of whoever runs it: data, the other workers, checkpoints, and ways to the driver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import nn

from lungseg_ray.feed.batch import Batch
from lungseg_ray.run.checkpoint import Checkpoint
from lungseg_ray.training.events import Event


class Request(IntEnum):
    """What the loop is asked to do between two steps: to go on, to save for a node that is going, or to stop."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2


class Stream(Iterator[Batch], Protocol):
    """An iterator over batches that are prepared in the background until it is closed."""

    def close(self) -> None:
        """Ends the preparation."""


class Runtime(Protocol):
    """The surroundings of the training loop on one worker.

    Attributes:
        rank: The rank of this worker, from 0.
        world_size: The number of workers.
        device: The device to compute on.
    """

    @property
    def rank(self) -> int:
        """The rank of this worker, from 0."""

    @property
    def world_size(self) -> int:
        """The number of workers."""

    @property
    def device(self) -> torch.device:
        """The device to compute on."""

    def train(self, *, step: int, epochs: int) -> Stream:
        """Returns this worker's training batches.

        Args:
            step: The global step of the first batch, from 0.
            epochs: The number of epochs after which the stream ends.
        """

    def validation(self) -> Iterator[Batch]:
        """Returns this worker's share of the validation images; the same images at each call."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model that averages its gradients over the workers."""

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum of float64 values over all workers. Every worker calls it."""

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites tensors in place with those of rank 0. Every worker calls it."""

    def all_gather(self, names: list[str]) -> list[str]:
        """Returns the names of all workers in the order of their ranks. Every worker calls it."""

    def restore(self) -> Checkpoint | None:
        """Returns the checkpoint to resume from, the same on every worker; None at the start of a run."""

    def save(self, content: Checkpoint, *, skip_if_busy: bool) -> None:
        """Writes a checkpoint in the background. Every worker calls it; rank 0 alone writes.

        Args:
            content: The checkpoint.
            skip_if_busy: Whether to skip this checkpoint while the one before it is still being written.
        """

    def checkpoint_wait_seconds(self) -> float:
        """Returns the seconds that this worker has waited for checkpoints since the last call."""

    def flush(self) -> None:
        """Waits until the last checkpoint is written. Every worker calls it.

        Raises:
            JobFailedError: On every worker alike, if it cannot be written.
        """

    def wishes(self) -> list[float]:
        """Returns what this worker wishes, in numbers whose sums over all workers `agree` understands."""

    def agree(self, sums: Sequence[float]) -> Request:
        """Returns what the loop is asked to do next, the same on every worker. Every worker calls it.

        Args:
            sums: The sums of the wishes of all workers.

        Raises:
            JobFailedError: On every worker alike, if a checkpoint cannot be written.
        """

    def report_activity(self, activity: str) -> None:
        """Reports what this worker does next; each call counts as progress for the watchdog.

        Args:
            activity: What it does, in words.
        """

    def emit(self, event: Event) -> None:
        """Sends an event to the driver."""
