"""What a person sees while a run goes on: a line for each epoch, a bar in between, and TensorBoard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from lungseg_ray.storage import Location

TENSORBOARD = "tensorboard"
_TIMINGS = ("images_per_second", "data_wait_share", "checkpoint_wait", "train_seconds", "seconds")


class Board:
    """TensorBoard's file of one run; a disk without room ends the file, and not the run.

    Args:
        place: folder of the file.
        note: told why it is not written any more.
    """

    def __init__(self, place: Location, note: Callable[[str], None]) -> None:
        self._place = place
        self._note = note
        self._local = Path(place.path) if place.is_local else Path(tempfile.mkdtemp(prefix="lungseg-"))
        self._writer: SummaryWriter | None = None

    def open(self, *, epoch: int) -> None:
        """Starts a file in which the epochs after `epoch` hide what was written of them before."""
        self.close()
        try:
            self._writer = SummaryWriter(str(self._local), purge_step=epoch + 1)
        except OSError as error:
            self._give_up(error)

    def write(self, row: dict[str, float]) -> None:
        """Writes the figures of an epoch."""
        if not self._writer:
            return
        try:
            for key, value in row.items():
                if key not in ("epoch", "step"):
                    part = "time" if key in _TIMINGS else "val" if key.startswith("val_") else "train"
                    self._writer.add_scalar(f"{part}/{key.removeprefix('val_')}", value, row["epoch"])
            self._writer.flush()
        except OSError as error:
            self._give_up(error)
            return
        if not self._place.is_local:
            try:
                self._place.upload(self._local)
            except OSError as error:
                self._note(f"TensorBoard's file could not be written to {self._place}: {error}")

    def close(self) -> None:
        """Ends the file."""
        writer, self._writer = self._writer, None
        if writer:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._note(f"TensorBoard's file in {self._local} is not written any more: {error}")
        self._writer = None


class Display:
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
        self._board = Board(place / TENSORBOARD, lambda text: self._note({"text": text}))

    def __enter__(self) -> Display:
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
