"""How far a run has come, and which of its checkpoints are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs finished.
        step: steps of the optimiser made.
        precision: that the run computes in.
        history: one row for each finished epoch.
        partial: sums over the steps of an epoch that has begun; empty between epochs.
        skipped: steps left out because their loss or gradient was not a number.
        workers: that made the last step.
        threads: of each of them on the CPU.
    """

    epoch: int
    step: int
    precision: str
    history: list[dict[str, float]] = field(default_factory=list)
    partial: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    workers: int = 0
    threads: int = 0

    @property
    def best(self) -> dict[str, float]:
        """The row of the epoch with the lowest validation loss; the last of equal ones."""
        return rank_epochs(self.history)[0]

    def is_complete(self, *, epochs: int, early_stop: int) -> bool:
        """Whether the last epoch, or the one of early stopping, is finished."""
        return self.epoch >= epochs or self.stops_early(early_stop)

    def stops_early(self, patience: int) -> bool:
        """Whether `patience` epochs have passed without a better validation loss; never if it is 0."""
        if not patience or not self.history:
            return False
        first = min(self.history, key=lambda row: row["val_loss"])
        return self.epoch - first["epoch"] >= patience


def rank_epochs(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows of a history from the best to the worst."""
    return sorted(history, key=lambda row: (row["val_loss"], -row["epoch"]))


def steps_to_keep(history: list[dict[str, float]], steps: Iterable[int], *, best: int) -> set[int]:
    """Of the steps that have a checkpoint, those whose checkpoint stays: the best epochs', and the latest two.

    Args:
        history: a row for each finished epoch.
        steps: that have a checkpoint.
        best: how many epochs' to keep.
    """
    return {int(row["step"]) for row in rank_epochs(history)[:best]} | set(sorted(steps)[-2:])
