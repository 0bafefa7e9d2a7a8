"""The folder of a run: what lies in it, and whether a command may go on with it."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from lungseg_ray.config import Section, Settings, differences, dump
from lungseg_ray.errors import UserError
from lungseg_ray.run import checkpoint
from lungseg_ray.run.progress import Progress, steps_to_keep
from lungseg_ray.storage import Location

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
HISTORY = "history.csv"
SUMMARY = "summary.json"
BEST = "best"
EVALUATION = "evaluation"

FREE = (
    "corpus",
    "shards",
    "runs",
    "evaluate",
    "checkpoint",
    "storage",
    "feed.tasks",
    "feed.ahead",
    "train.workers",
    "train.threads",
    "train.min_workers",
    "train.device",
    "train.early_stop",
    "train.max_failures",
    "train.max_skipped",
    "train.stall_seconds",
)
"""Settings that may change while a run goes on: they move or speed it, and leave what it learns as it is. The corpus
is held by the fingerprint of its shards."""

_PACKAGES = ("ray", "torch", "segmentation-models-pytorch", "timm", "albumentations", "pyarrow", "numpy", "lungseg-ray")


class Kept(Section):
    """What the run's `config.yaml` holds.

    Attributes:
        settings: the resolved tree.
        shards: fingerprint of the shards that it trains on.
    """

    settings: Settings
    shards: str


@dataclass(frozen=True)
class Run:
    """A run's folder, on a disk or in a bucket."""

    place: Location

    def check(self, settings: Settings, *, fingerprint: str | None) -> bool:
        """Whether the run has a checkpoint already, and may be gone on with; without one, it starts anew.

        Args:
            settings: that the command asks for.
            fingerprint: of the shards; None while they are not made.

        Raises:
            UserError: if a run of that name was started with other settings or other shards.
        """
        place = self.place / CONFIG
        if not place.exists():
            if checkpoint.list_checkpoints(self.place):
                raise UserError(f"{place}: is missing beside the checkpoints. Restore it, or use another runs.name.")
            return False
        if not checkpoint.list_checkpoints(self.place) and not (self.place / HISTORY).exists():
            return False
        kept = self.kept()
        changed = list(_binding(differences(kept.settings.model_dump(mode="json"), settings.model_dump(mode="json"))))
        if fingerprint and kept.shards != fingerprint:
            changed.append(f"shards in {settings.shards.root}: fingerprint {kept.shards[:12]} -> {fingerprint[:12]}")
        if changed:
            raise UserError(
                f"{self.place}: this run was started otherwise:\n  " + "\n  ".join(changed) + "\n"
                "Use another runs.name, or the former settings to go on."
            )
        return True

    def start(self, settings: Settings, *, fingerprint: str) -> None:
        """Writes down the settings and the environment of a new run."""
        self.write_environment()
        (self.place / CONFIG).write_text(dump(Kept(shards=fingerprint, settings=settings)))

    def kept(self) -> Kept:
        """The settings that the run was started with.

        Raises:
            UserError: if there is no run, or if its configuration cannot be read.
        """
        place = self.place / CONFIG
        try:
            return Kept.model_validate(yaml.safe_load(place.read_text()))
        except FileNotFoundError:
            raise UserError(f"{self.place}: there is no run here: {CONFIG} is missing.") from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{place}: cannot be read: {error}") from None

    def summary(self) -> dict[str, Any] | None:
        """The figures of the finished run; None while it is not finished."""
        place = self.place / SUMMARY
        return json.loads(place.read_text()) if place.exists() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Marks the run as finished."""
        (self.place / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Writes one line for each finished epoch; with none, the file says that the run has a checkpoint."""
        (self.place / HISTORY).write_csv(history, list(history[0]) if history else ["epoch", "step"])

    def read_history(self) -> list[dict[str, float]]:
        """What `write_history` wrote; none before the first."""
        try:
            lines = (self.place / HISTORY).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]

    def write_environment(self) -> None:
        """Writes down what the run was started with: versions, machine, command."""
        found = {
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        (self.place / ENVIRONMENT).write_text(json.dumps(found, indent=2) + "\n")

    def newest_checkpoint(self) -> tuple[Location | None, list[str]]:
        """The newest checkpoint that can be used, None before the first; and what is wrong with the newer ones.

        Raises:
            UserError: if the run has finished a checkpoint, but none can be used.
        """
        return checkpoint.find_newest(self.place, any_finished=(self.place / HISTORY).exists())

    def history(self) -> list[dict[str, float]]:
        """A row of figures for each finished epoch, as the newest checkpoint has them; none before the first.

        Raises:
            UserError: if the run has finished a checkpoint, but none can be used.
        """
        place, _ = self.newest_checkpoint()
        return self._progress(place).history if place else []

    def progress(self) -> Progress:
        """How far the run has come.

        Raises:
            UserError: if no checkpoint can be used, or if it has finished no epoch yet.
        """
        place, _ = self.newest_checkpoint()
        if place is None:
            raise UserError(f"{self.place}: the run has no checkpoint yet.")
        progress = self._progress(place)
        if not progress.history:
            raise UserError(f"{self.place}: the run has finished no epoch yet.")
        return progress

    def tidy(self, *, keep: int) -> None:
        """Deletes the checkpoints but the best and the newest that can be used, and what a killed writer left.

        Raises:
            UserError: if the run has finished a checkpoint, but none can be used; then nothing is deleted.
        """
        place, _ = self.newest_checkpoint()
        history = self._progress(place).history if place else []
        there = [checkpoint.step_of(other) for other in checkpoint.list_checkpoints(self.place)]
        usable = [step for step in there if place and step <= checkpoint.step_of(place)]
        stay = steps_to_keep(history, usable, best=keep)
        for other, _ in self.place.list():
            if checkpoint.is_unfinished(other) or (
                checkpoint.is_checkpoint(other) and checkpoint.step_of(other) not in stay
            ):
                other.delete()

    def is_trained(self, settings: Settings) -> bool:
        """Whether the last epoch, or the one of early stopping, has its checkpoint."""
        place, _ = self.newest_checkpoint()
        if place is None:
            return False
        train = settings.train
        return self._progress(place).is_complete(epochs=train.epochs, early_stop=train.early_stop)

    def best_checkpoint(self) -> tuple[Location, Progress]:
        """The checkpoint with the lowest validation loss, and how far the run has come.

        Raises:
            UserError: if no checkpoint can be used.
        """
        progress = self.progress()
        best = self.place / checkpoint.folder_name(int(progress.best["step"]))
        reason = checkpoint.find_damage(best)
        if reason:
            raise UserError(f"{reason}. It is the run's best; restore it, or train again under another runs.name.")
        return best, progress

    def _progress(self, place: Location) -> Progress:
        return Progress(**json.loads((place / checkpoint.PROGRESS).read_text()))


def _binding(lines: Iterator[str]) -> Iterator[str]:
    """Of the lines of `differences`, those that change what a run learns."""
    for line in lines:
        key = line.split(":")[0]
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            yield line
