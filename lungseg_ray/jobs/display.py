"""The display of a training run in the terminal: a line for each epoch, and a progress bar between these lines."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lungseg_ray.run.progress import badness
from lungseg_ray.run.tensorboard import TENSORBOARD, TensorBoardWriter
from lungseg_ray.storage import Location
from lungseg_ray.training.events import EpochDone, Event, Note, Started, StepDone


class TrainingDisplay:
    """The display of a run, which also writes its TensorBoard file. It is a context manager, called with each event.

    Args:
        console: The console that the user reads.
        place: The folder of the run.
        epochs: The setting `train.epochs`.
        quiet: Whether to show messages alone, and no progress.

    Attributes:
        first_step: The time of the first step, seconds since 1970; None before it.
        started: How the workers trained that started first; None before.
    """

    def __init__(self, console: Console, place: Location, epochs: int, *, quiet: bool = False) -> None:
        self.first_step: float | None = None
        self.started: Started | None = None
        self._console = console
        self._epochs = epochs
        self._quiet = quiet
        self._best = float("inf")
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
        self._task = self._bar.add_task("waiting for workers", total=None)
        self._tensorboard = TensorBoardWriter(place / TENSORBOARD, self._print)

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._tensorboard.close()

    def __call__(self, event: Event) -> None:
        """Shows one event.

        Args:
            event: The event; kinds that the display does not know are ignored.
        """
        match event:
            case Note():
                self._print(event.text)
            case Started():
                self._started(event)
            case StepDone():
                self._step_done(event)
            case EpochDone():
                self._epoch_done(event.row)
            case _:
                pass

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def _started(self, event: Started) -> None:
        self.started = self.started or event
        self._best = badness(event.best) if event.best else float("inf")
        self._tensorboard.open(epoch=event.epoch)
        if not self._quiet:
            self._print_start(event)
        if event.frozen:
            self._print(
                f"  {len(event.frozen)} parameters get no gradient in this pair of architecture and encoder and are "
                f"frozen, {event.frozen[0]} the first"
            )

    def _print_start(self, event: Started) -> None:
        where = f"from epoch {event.epoch + 1}" if event.step else "from the start"
        if event.step_in_epoch:
            where += f", step {event.step_in_epoch + 1} of {event.steps_per_epoch},"
        self._print(
            f"Training {where} on {event.workers} worker(s): {event.device}, {event.precision}, "
            f"{event.threads} thread(s) each, {event.parameters / 1e6:.1f} M parameters"
        )

    def _step_done(self, event: StepDone) -> None:
        self.first_step = self.first_step or event.time
        self._bar.update(
            self._task,
            description=f"epoch {event.epoch}/{self._epochs}  loss {event.loss:.4f}",
            completed=event.step_in_epoch,
            total=event.steps_per_epoch,
        )

    def _epoch_done(self, row: dict[str, float]) -> None:
        if not self._quiet:
            self._print_epoch(row)
        self._tensorboard.write(row)

    def _print_epoch(self, row: dict[str, float]) -> None:
        mark = " *" if badness(row) < self._best else ""
        self._best = min(self._best, badness(row))
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
