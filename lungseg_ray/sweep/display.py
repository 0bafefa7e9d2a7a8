"""The display of a running sweep: a table on a terminal, a line for each trial that ends, and TensorBoard files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from lungseg_ray.config import SweepJob
from lungseg_ray.run.progress import SCORES
from lungseg_ray.run.tensorboard import TENSORBOARD, TensorBoardWriter
from lungseg_ray.run.tracking import Status, Tracking
from lungseg_ray.sweep.ledger import Sweep, Trial, rank_trials
from lungseg_ray.sweep.search import epochs_to_come

SHOWN = 12
"""The largest number of trials in the table: those that are running first, then the best of the others."""


class SweepDisplay:
    """Shows the progress of one stage of a sweep, here and at the services that show runs. Used as a context.

    It also writes the TensorBoard files.

    Args:
        console: The console that the user reads. The table is shown only if it is a terminal.
        sweep: The folder of the sweep.
        job: The settings of the sweep.
        stage: 1, the search, or 2, the finalists.
        services: The services that show runs.
    """

    def __init__(self, console: Console, sweep: Sweep, job: SweepJob, stage: Literal[1, 2], services: Tracking) -> None:
        self._console = console
        self._sweep = sweep
        self._job = job
        self._stage = stage
        self._services = services
        self._score = SCORES[job.train.best_by]
        self._trials: Sequence[Trial] = []
        self._boards: dict[int, TensorBoardWriter] = {}
        self._start = time.monotonic()
        self._trained = 0
        shown = console.is_terminal and not job.train.quiet
        self._screen = Screen(console=console, auto_refresh=False, transient=True) if shown else None

    def __enter__(self) -> SweepDisplay:
        if self._screen:
            self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._screen:
            self._screen.stop()
        for trial in self._trials:
            if trial.number in self._boards:
                self._close(trial, "stopped")

    def show(self, trials: Sequence[Trial]) -> None:
        """Updates the trials that the table shows; `refresh` draws them.

        Args:
            trials: All trials of the sweep, in their present state.
        """
        self._trials = [trial for trial in trials if trial.stage == self._stage]

    def refresh(self) -> None:
        """Draws the table again."""
        if self._screen:
            self._screen.update(self._table(), refresh=True)

    def note(self, text: str) -> None:
        """Prints a line of text above the table.

        Args:
            text: The text.
        """
        self._console.print(text, highlight=False, markup=False)

    def epoch(self, trial: Trial, row: dict[str, float]) -> None:
        """Counts a finished epoch, and hands on its figures.

        Args:
            trial: The trial.
            row: The epoch's row of the history.
        """
        self._trained += 1
        if trial.number not in self._boards:
            board = self._boards[trial.number] = TensorBoardWriter(
                self._sweep.place / TENSORBOARD / trial.name, self.note
            )
            board.open(epoch=int(row["epoch"]) - 1)
            settings = self._job.trial(trial.params, seed=trial.seed)
            self._services.start(self._sweep.run(trial).place, settings, group=self._sweep.place.name)
        self._boards[trial.number].write(row)
        self._services.epoch(self._sweep.run(trial).place, row)

    def ended(self, trial: Trial) -> None:
        """Prints the result of a trial that is no longer trained, and closes what shows it.

        Args:
            trial: The trial, in its present state.
        """
        if trial.number in self._boards:
            ends: dict[str, Status] = {"done": "finished", "paused": "finished", "failed": "failed"}
            self._close(trial, ends.get(trial.state, "stopped"))
        if trial.state in ("failed", "refused"):
            self.note(f"  {trial.name}: {trial.state}. {trial.reason}")
        elif trial.score is not None and not self._job.train.quiet:
            best = rank_trials(self._trials)[0]
            self.note(
                f"  {trial.name}: {trial.state} after {trial.epochs} of {self._job.epochs} epochs, "
                f"{self._score} {trial.score:.4f} in epoch {trial.best_epoch}, {trial.seconds:.0f} s; best so far "
                f"{best.name} {best.score:.4f}; {self._left()}"
            )

    def _close(self, trial: Trial, status: Status) -> None:
        self._boards.pop(trial.number).close()
        self._services.end(self._sweep.run(trial).place, status)

    def _left(self) -> str:
        to_come = epochs_to_come(self._job, self._trials, self._stage)
        if not self._trained or not to_come:
            return "nothing to come" if not to_come else "time left unknown"
        seconds = to_come * (time.monotonic() - self._start) / self._trained
        return f"about {timedelta(seconds=round(seconds))} left"

    def _table(self) -> Group:
        table = Table("trial", "epoch", self._score, "best in", "state", "left", box=None, pad_edge=False)
        best = rank_trials(self._trials)
        running = [trial for trial in self._trials if trial.state == "running"]
        others = [trial for trial in best if trial.state != "running"]
        for trial in [*running, *others][:SHOWN]:
            rungs = self._job.rungs if self._stage == 1 else []
            rung = next((rung for rung in rungs if rung > trial.epochs), self._job.epochs)
            pace = trial.seconds / trial.epochs if trial.epochs else 0.0
            left = str(timedelta(seconds=round((rung - trial.epochs) * pace))) if pace else "..."
            table.add_row(
                Text(f"{trial.number} {trial.description}" + (f", seed {trial.seed}" if self._stage == 2 else "")),
                f"{trial.epochs}/{self._job.epochs}",
                f"{trial.score:.4f}" if trial.score is not None else "",
                str(trial.best_epoch or ""),
                ("best, " if best and trial is best[0] else "") + trial.state,
                left if trial.state == "running" else "",
            )
        ended = sum(trial.state in ("done", "failed", "refused") for trial in self._trials)
        name = "search" if self._stage == 1 else "finalists"
        line = Text(f"{name}: {len(self._trials)} trials, {len(running)} running, {ended} at their end; {self._left()}")
        return Group(table, line)
