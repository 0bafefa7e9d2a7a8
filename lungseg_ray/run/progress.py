"""How far a run has come, and which of its checkpoints are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

History = list[dict[str, float]]
"""A row of figures for each finished epoch, as in `history.csv`."""
FIGURES = {"epoch", "step", "loss", "val_loss", "val_iou", "val_dice", "lr", "encoder_lr", "seconds"}
"""The figures that a row has at least."""
SCORES = {"loss": "IoU", "iou": "IoU", "dice": "Dice", "dice_positives": "Dice of positives"}
"""The name of the figure by which trials are compared, by `train.best_by`."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Finished epochs.
        step: Optimiser steps made.
        precision: The precision that the run computes in.
        history: A row for each finished epoch.
        partial: Sums over the steps of an epoch that has begun; empty between epochs.
        skipped: Steps that were skipped because their loss or gradient was not finite.
        workers: Number of workers that made the last step.
        threads: CPU threads of each of these workers.
    """

    epoch: int
    step: int
    precision: str
    history: History = field(default_factory=list)
    partial: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    workers: int = 0
    threads: int = 0

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch; the last one of several that are equally good."""
        return rank_epochs(self.history)[0]

    def is_complete(self, *, epochs: int, early_stop: int) -> bool:
        """Whether training has ended, with its last epoch or by early stopping.

        Args:
            epochs: The setting `train.epochs`.
            early_stop: The setting `train.early_stop`.
        """
        return self.epoch >= epochs or self.stops_early(early_stop)

    def stops_early(self, patience: int) -> bool:
        """Whether a number of epochs have passed without a better one; never for a patience of 0.

        Args:
            patience: The number of epochs.
        """
        if not patience or not self.history:
            return False
        first = min(self.history, key=badness)
        return self.epoch - first["epoch"] >= patience


def badness(row: dict[str, float]) -> float:
    """Returns the figure that is lowest for the best epoch: the validation loss, or else minus the `score`.

    Args:
        row: The epoch's row of the history. It has a score if `train.best_by` is not the loss.
    """
    return -row["score"] if "score" in row else row["val_loss"]


def describe_best(best_by: str) -> str:
    """Returns which epoch is the best one, in words.

    Args:
        best_by: The setting `train.best_by`.
    """
    return "the lowest validation loss" if best_by == "loss" else f"the highest validation {SCORES[best_by]}"


def score_of(row: dict[str, float]) -> float:
    """Returns the figure by which trials are compared: the `score`, or else the validation IoU."""
    return row.get("score", row["val_iou"])


def rank_epochs(history: History) -> History:
    """Returns the rows of a history from the best epoch to the worst."""
    return sorted(history, key=lambda row: (badness(row), -row["epoch"]))


def steps_to_keep(history: History, steps: Iterable[int], *, best: int) -> set[int]:
    """Returns the steps whose checkpoints are kept: those of the best epochs, and the latest two.

    Args:
        history: A row for each finished epoch.
        steps: The steps that have a checkpoint.
        best: The number of best epochs to keep.
    """
    return {int(row["step"]) for row in rank_epochs(history)[:best]} | set(sorted(steps)[-2:])
