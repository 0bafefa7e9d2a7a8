"""The folder of a run: what lies in it, and whether a command may resume it."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass

from pydantic import TypeAdapter

from lungseg_ray.config import Settings
from lungseg_ray.errors import UserError
from lungseg_ray.run import checkpoint
from lungseg_ray.run.checkpoint import Checkpoint, DamagedCheckpointError
from lungseg_ray.run.event_log import EventLog
from lungseg_ray.run.progress import FIGURES, History, Progress, steps_to_keep
from lungseg_ray.run.started_with import ConfigFile, StartedWith
from lungseg_ray.run.stored import read_stored
from lungseg_ray.run.summary import RunSummary
from lungseg_ray.storage import Location

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
HISTORY = "history.csv"
SUMMARY = "summary.json"
BEST = "best"
EVALUATION = "evaluation"
CURVES = "curves.png"
SHEET = "contact_sheet.png"
_SUMMARY = TypeAdapter(RunSummary)

_PACKAGES = ("ray", "torch", "segmentation-models-pytorch", "timm", "albumentations", "pyarrow", "numpy", "lungseg-ray")


@dataclass(frozen=True)
class Run:
    """A run's folder, on a disk or in a bucket.

    Attributes:
        place: The folder.
    """

    place: Location

    @property
    def config(self) -> ConfigFile[Settings]:
        """The file with the settings that the run was started with."""
        return ConfigFile(self.place / CONFIG, Settings, "run")

    @property
    def events(self) -> EventLog:
        """The event log of the run."""
        return EventLog(self.place)

    def can_resume(self, settings: Settings, *, fingerprint: str | None) -> bool:
        """Whether the run has a checkpoint that a command may resume; without one, the run starts anew.

        A run may be resumed with more epochs than it was started with, also after it has finished.

        Args:
            settings: The settings of the command.
            fingerprint: The fingerprint of the shards; None while they are not built.

        Raises:
            UserError: If a run of that name was started with other settings or other shards.
        """
        has_checkpoint = bool(checkpoint.list_checkpoints(self.place))
        if not self.config.place.exists():
            if has_checkpoint:
                raise UserError(
                    f"{self.config.place}: is missing beside the checkpoints. Restore it, or use another runs.name."
                )
            return False
        if not has_checkpoint and not (self.place / HISTORY).exists():
            return False
        self.config.check(settings, fingerprint=fingerprint, may_grow=["train.epochs"])
        return True

    def start(self, settings: Settings, *, fingerprint: str) -> None:
        """Writes the settings and the environment of a new run.

        Args:
            settings: The settings of the run.
            fingerprint: The fingerprint of its shards.
        """
        self.write_environment()
        self.config.write(settings, fingerprint=fingerprint)

    def started_with(self) -> StartedWith[Settings]:
        """Returns the settings and the shards that the run was started with.

        Raises:
            UserError: If there is no run, or if its configuration cannot be read.
        """
        return self.config.read()

    def summary(self) -> RunSummary | None:
        """Returns the figures of the finished run; None while it is not finished.

        Raises:
            UserError: If the file holds something else.
        """
        return read_stored(self.place / SUMMARY, _SUMMARY)

    def write_summary(self, summary: RunSummary) -> None:
        """Writes the figures of the run, which marks it as finished."""
        (self.place / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")

    def write_history(self, history: History) -> None:
        """Writes a line for each finished epoch; a file without lines says that the run has a checkpoint."""
        (self.place / HISTORY).write_csv(history, list(history[0]) if history else ["epoch", "step"])

    def read_history(self) -> History:
        """Returns the rows that `write_history` wrote; none before the first.

        Raises:
            UserError: If the file holds something else.
        """
        place = self.place / HISTORY
        history: History | None = None
        with suppress(ValueError, TypeError, csv.Error):
            try:
                rows = list(csv.DictReader(place.read_text().splitlines()))
            except FileNotFoundError:
                return []
            history = [{key: float(value) for key, value in row.items()} for row in rows]
        if history is None or any(not row.keys() >= FIGURES for row in history):
            raise UserError(
                f"{place}: expected the figures of each epoch, found something else. Restore the file, or remove it; "
                "the figures are in each checkpoint, too."
            )
        return history

    def extend(self, settings: Settings, *, fingerprint: str) -> None:
        """Takes up a run for more epochs than it was started with; it is not finished any more."""
        self.config.write(settings, fingerprint=fingerprint)
        if (self.place / SUMMARY).exists():
            (self.place / SUMMARY).delete()

    def write_environment(self) -> None:
        """Writes the versions, the machine and the command with which the run was started."""
        found = {
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        (self.place / ENVIRONMENT).write_text(json.dumps(found, indent=2) + "\n")

    def newest_progress(self) -> Progress | None:
        """Returns how far the run has come, by its newest checkpoint; None before the first. Reads no weights.

        Raises:
            UserError: If the run has finished a checkpoint, and none can be used.
        """
        return checkpoint.find_newest(
            self.place, any_finished=self._any_finished(), read=checkpoint.read_progress
        ).content

    def newest_files(self) -> checkpoint.Newest[dict[str, bytes]]:
        """Reads the newest checkpoint that can be used; each of its files is read once.

        Raises:
            UserError: If the run has finished a checkpoint, and none can be used.
        """

        def read(place: Location) -> dict[str, bytes]:
            files = checkpoint.read_files(place)
            # A file may match its checksum and still not load.
            checkpoint.parse(files, place)
            return files

        return checkpoint.find_newest(self.place, any_finished=self._any_finished(), read=read)

    def progress(self) -> Progress:
        """Returns how far the run has come, with at least one finished epoch. Reads no weights.

        Raises:
            UserError: If no checkpoint can be used, or if the run has not finished any epoch.
        """
        progress = self.newest_progress()
        if progress is None:
            raise UserError(f"{self.place}: the run has no checkpoint yet.")
        if not progress.history:
            raise UserError(f"{self.place}: the run has finished no epoch yet.")
        return progress

    def prune_checkpoints(self, progress: Progress | None, *, keep: int) -> None:
        """Deletes all checkpoints but the best and the latest two, and what an interrupted writer left.

        Args:
            progress: The progress of the newest checkpoint that can be used; newer ones are damaged and are deleted.
                None if there is none.
            keep: The number of best epochs whose checkpoints are kept.
        """
        there = [place for place, _ in self.place.list()]
        steps = [checkpoint.step_of(place) for place in there if checkpoint.is_checkpoint(place)]
        usable = [step for step in steps if progress and step <= progress.step]
        kept = steps_to_keep(progress.history if progress else [], usable, best=keep)
        for place in there:
            superfluous = checkpoint.is_checkpoint(place) and checkpoint.step_of(place) not in kept
            if superfluous or checkpoint.is_unfinished(place):
                place.delete()

    def is_trained(self, settings: Settings) -> bool:
        """Whether training has come to its end, with its last epoch or by early stopping.

        Args:
            settings: The settings of the run.
        """
        progress = self.newest_progress()
        train = settings.train
        return progress is not None and progress.is_complete(epochs=train.epochs, early_stop=train.early_stop)

    def read_best(self) -> tuple[Checkpoint, Progress]:
        """Reads the checkpoint of the best epoch, as `train.best_by` has it.

        Returns:
            The checkpoint, and how far the run has come since.

        Raises:
            UserError: If there is no checkpoint, or if the best one cannot be used.
        """
        progress = self.progress()
        try:
            best = checkpoint.read_checkpoint(self.place / checkpoint.folder_name(int(progress.best["step"])))
        except DamagedCheckpointError as error:
            raise UserError(
                f"{error}. It is the run's best; restore it, or train again under another runs.name."
            ) from None
        return best, progress

    def _any_finished(self) -> bool:
        return (self.place / HISTORY).exists()
