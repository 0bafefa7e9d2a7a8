"""The figures of a run for Prometheus, which every node of Ray serves, with the prefix `ray_`."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from lungseg_ray.training.events import EpochDone, Event, Note, Started, StepDone

GAUGES = {
    "lungseg_epoch": "Epochs that are finished",
    "lungseg_step": "Optimiser steps of the epoch so far",
    "lungseg_loss": "Mean training loss of the epoch so far",
    "lungseg_validation_loss": "Validation loss of the last epoch",
    "lungseg_validation_iou": "Validation IoU of the last epoch, 0 to 1",
    "lungseg_validation_dice": "Validation Dice of the last epoch, 0 to 1",
    "lungseg_images_per_second": "Training images per second of all workers in the epoch so far",
    "lungseg_data_wait_share": "Share of the time of the epoch so far in which the worker waited for images, 0 to 1",
    "lungseg_checkpoint_wait_seconds": "Seconds of the last epoch in which the worker waited for checkpoints",
    "lungseg_workers": "Workers of the run",
}
COUNTERS = {
    "lungseg_starts": "Starts of the worker; those after the first follow the loss of a worker",
    "lungseg_skipped_steps": "Steps that were left out because a loss or a gradient was not finite",
}
_OF_ROW = {
    "lungseg_epoch": "epoch",
    "lungseg_validation_loss": "val_loss",
    "lungseg_validation_iou": "val_iou",
    "lungseg_validation_dice": "val_dice",
    "lungseg_checkpoint_wait_seconds": "checkpoint_wait",
}


class Metrics:
    """The metrics of one worker, with the tags `run` and `rank`.

    Args:
        run: The name of the run.
        rank: The rank of the worker.
    """

    def __init__(self, run: str, rank: int) -> None:
        keys, tags = ("run", "rank"), {"run": run, "rank": str(rank)}
        self._gauges = {name: Gauge(name, text, keys).set_default_tags(tags) for name, text in GAUGES.items()}
        self._values: dict[str, float] = {}
        self._counters = {name: Counter(name, text, keys).set_default_tags(tags) for name, text in COUNTERS.items()}

    def record(self, event: Event) -> None:
        """Takes the figures of an event.

        Args:
            event: The event.
        """
        match event:
            case Started():
                self._counters["lungseg_starts"].inc()
                self._set(lungseg_workers=event.workers, lungseg_epoch=event.epoch)
            case StepDone():
                self._set(
                    lungseg_step=event.step_in_epoch,
                    lungseg_loss=event.loss,
                    lungseg_images_per_second=event.images_per_second,
                    lungseg_data_wait_share=event.data_wait_share,
                )
            case EpochDone():
                self._set(**{name: event.row[key] for name, key in _OF_ROW.items() if key in event.row})
            case Note(kind="step_skipped"):
                self._counters["lungseg_skipped_steps"].inc()
            case _:
                pass

    def _set(self, **values: float) -> None:
        self._values |= values
        # Ray forgets a gauge that is not set again for some seconds, so that figures of an epoch would be gone soon.
        for name, value in self._values.items():
            self._gauges[name].set(value)
