"""What the training loop requires of whoever runs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import nn

from lungseg_ray.feed.batch import Batch
from lungseg_ray.run import checkpoint


class Request(IntEnum):
    """What is asked of a run between two steps."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Stream(Iterator[Batch], Protocol):
    """Batches that are prepared in the background until it is closed."""

    def close(self) -> None:
        """Ends the preparation."""


class Runtime(Protocol):
    """What the loop needs from whoever runs it.

    Attributes:
        rank: of this worker.
        world_size: workers.
        device: to compute on.
    """

    rank: int
    world_size: int
    device: torch.device

    def train(self, *, step: int, epochs: int) -> Stream:
        """This worker's batches from a global step to the end of the last epoch."""

    def validation(self) -> Iterator[Batch]:
        """This worker's share of the validation images; the same images each time."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model that averages its gradients over the workers."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of float64 values over the workers."""

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites tensors with those of rank 0."""

    def gather(self, names: list[str]) -> list[str]:
        """The names of all workers."""

    def restore(self) -> checkpoint.Checkpoint | None:
        """The checkpoint to go on from, the same on every worker; None at the start of a run."""

    def save(self, content: checkpoint.Checkpoint, *, spare: bool) -> None:
        """Keeps a checkpoint in the background; every worker calls it, and rank 0 alone keeps.

        Args:
            content: what is kept.
            spare: it may be left out while the one before is still on its way.
        """

    def waited(self) -> float:
        """Seconds that this process has waited for checkpoints since the last call."""

    def flush(self) -> None:
        """Waits until the last checkpoint is kept.

        Raises:
            JobFailedError: on every worker alike, if it cannot be.
        """

    def wish(self) -> Request:
        """What is asked of the run, the same on every worker.

        Raises:
            JobFailedError: on every worker alike, if a checkpoint cannot be kept.
        """

    def doing(self, what: str) -> None:
        """Lets it be known that this worker has come this far, and what it does next."""

    def tell(self, event: dict[str, Any]) -> None:
        """Lets whoever watches know."""
