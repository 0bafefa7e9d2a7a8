"""What a person sees while a run goes on: a line for each epoch, a bar in between, and TensorBoard."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lungseg_ray.run.tensorboard import TENSORBOARD, TensorBoardWriter
from lungseg_ray.storage import Location


class TrainingDisplay:
    """Follows a run; to be used as a context and called with each event of its workers.

    Attributes:
        first_step: time of the first step, seconds since the epoch of the clock; None before it.
    """

    def __init__(self, console: Console, place: Location, epochs: int) -> None:
        self.first_step: float | None = None
        self._console = console
        self._epochs = epochs
        self._best = float("inf")
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("waiting for workers", total=None)
        self._board = TensorBoardWriter(place / TENSORBOARD, lambda text: self._note({"text": text}))

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._board.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """Shows one event."""
        getattr(self, f"_{event['event']}")(event)

    def _note(self, event: dict[str, Any]) -> None:
        self._console.print(event["text"], highlight=False, markup=False)

    def _start(self, event: dict[str, Any]) -> None:
        where = f"from epoch {event['epoch'] + 1}" if event["step"] else "from the start"
        if event["number"]:
            where += f", step {event['number'] + 1} of {event['steps']},"
        self._console.print(
            f"Training {where} on {event['workers']} worker(s): {event['device']}, {event['precision']}, "
            f"{event['threads']} thread(s) each, {event['parameters'] / 1e6:.1f} M parameters",
            highlight=False,
        )
        if event["frozen"]:
            self._console.print(
                f"  {len(event['frozen'])} parameters get no gradient in this pair of architecture and encoder and are "
                f"frozen, {event['frozen'][0]} the first",
                highlight=False,
            )
        self._best = event["best"]
        self._board.open(epoch=event["epoch"])

    def _step(self, event: dict[str, Any]) -> None:
        self.first_step = self.first_step or event["time"]
        self._bar.update(
            self._task,
            description=f"epoch {event['epoch']}/{self._epochs}  loss {event['loss']:.4f}",
            completed=event["number"],
            total=event["steps"],
        )

    def _epoch(self, event: dict[str, Any]) -> None:
        row = event["row"]
        mark = " *" if row["val_loss"] < self._best else ""
        self._best = min(self._best, row["val_loss"])
        self._console.print(
            f"epoch {row['epoch']:3d}/{self._epochs}"
            f"  loss {row['loss']:.4f} (Dice {row['loss_dice']:.4f}, BCE {row['loss_bce']:.4f})"
            f"  val {row['val_loss']:.4f}  IoU {row['val_iou']:.4f}  Dice {row['val_dice']:.4f}"
            f"  lr {row['lr']:.1e}  {row['images_per_second']:.1f} images/s"
            f"  data wait {row['data_wait_share']:.1%}  checkpoint wait {row['checkpoint_wait']:.1f} s"
            f"  {row['seconds']:.0f} s{mark}",
            highlight=False,
            soft_wrap=True,
        )
        self._board.write(row)
