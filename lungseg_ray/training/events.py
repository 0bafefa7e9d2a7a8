"""What a training run reports while it goes on; each event is a data class that travels from a worker to the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NoteKind = Literal[
    "info",
    "storage",
    "step_skipped",
    "checkpoint_passed_over",
    "preemption",
    "workers_lost",
    "stalled",
    "stopping",
]
"""What a note is about; the kind under which the run's event log keeps it."""

FailureKind = Literal["user", "job", "diverged", "workers_lost"]
"""Which exception the driver raises for a failure."""


@dataclass(frozen=True)
class Started:
    """Workers begin to train.

    Attributes:
        epoch: Epochs that are finished.
        step: Optimiser steps that are made.
        step_in_epoch: Optimiser steps that are made in the epoch that has begun.
        steps_per_epoch: Optimiser steps of an epoch.
        workers: Number of workers.
        device: The device that a worker computes on, such as "cpu" or "cuda:0".
        precision: Floating-point precision: "fp32", "bf16" or "fp16".
        threads: CPU threads of each worker.
        matrix_rate: Floating-point operations per second at which a worker multiplies large matrices.
        parameters: Number of parameters of the network.
        frozen: Names of the parameters that get no gradient.
        best: The row of the best epoch so far; None before the first.
        began: When the worker had imported what it needs, seconds since 1970.
        time: When the first step can be made, seconds since 1970.
    """

    epoch: int
    step: int
    step_in_epoch: int
    steps_per_epoch: int
    workers: int
    device: str
    precision: str
    threads: int
    matrix_rate: float
    parameters: int
    frozen: tuple[str, ...]
    best: dict[str, float] | None
    began: float
    time: float


@dataclass(frozen=True)
class StepDone:
    """An optimiser step is made; reported twice a second at most.

    Attributes:
        epoch: The epoch, from 1.
        step_in_epoch: The step within the epoch, from 1.
        steps_per_epoch: Optimiser steps of an epoch.
        loss: Mean training loss of the epoch so far.
        images_per_second: Training images per second of all workers in the epoch so far.
        data_wait_share: Share of the time of the epoch so far in which this worker waited for images, 0 to 1.
        time: Seconds since the epoch of the clock.
    """

    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    loss: float
    images_per_second: float
    data_wait_share: float
    time: float


@dataclass(frozen=True)
class EpochDone:
    """An epoch is finished and validated.

    Attributes:
        row: The epoch's row of the history.
    """

    row: dict[str, float]


@dataclass(frozen=True)
class Note:
    """A message for the user.

    Attributes:
        text: The message.
        kind: What it is about.
        step: The optimiser step at which it was written; None where no step is concerned.
    """

    text: str
    kind: NoteKind = "info"
    step: int | None = None


@dataclass(frozen=True)
class Stopped:
    """A worker has saved a checkpoint and stopped, as it was asked to.

    Attributes:
        step: Optimiser steps that are made.
        epoch: Epochs that are finished.
    """

    step: int
    epoch: int


@dataclass(frozen=True)
class Failed:
    """A worker cannot continue, and another start would meet the same.

    Attributes:
        text: The message for the user.
        kind: Which exception the driver raises.
    """

    text: str
    kind: FailureKind


Event = Started | StepDone | EpochDone | Note | Stopped | Failed
