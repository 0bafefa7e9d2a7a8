"""The folder of a run: what lies in it, and whether a command may go on with it."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from lungseg_ray import checkpoint
from lungseg_ray.config import Settings, differences, dump
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
HISTORY = "history.csv"
SUMMARY = "summary.json"
BEST = "best"
EVALUATION = "evaluation"

FREE = (
    "corpus",
    "shards.root",
    "runs",
    "evaluate",
    "checkpoint",
    "feed.tasks",
    "feed.ahead",
    "train.workers",
    "train.threads",
    "train.device",
)
"""Settings that may change while a run goes on: they move or speed it, and leave what it learns as it is. The corpus
is held by the fingerprint of its shards."""

_PACKAGES = ("ray", "torch", "segmentation-models-pytorch", "timm", "albumentations", "pyarrow", "numpy", "lungseg-ray")


class Kept(BaseModel):
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

    def open(self, settings: Settings, *, fingerprint: str) -> bool:
        """Starts the run, or goes on with it if it is there.

        Returns:
            Whether it is there already.

        Raises:
            UserError: if a run of that name was started with other settings or other shards.
        """
        place = self.place / CONFIG
        if not place.exists():
            if checkpoint.listed(self.place):
                raise UserError(
                    f"{place}: is missing beside the run's checkpoints. Restore it, or use another runs.name."
                )
            self.write_environment()
            place.write_text(f"shards: {fingerprint}\nsettings:\n" + _indent(dump(settings)))
            return False
        kept = self.kept()
        changed = list(_binding(differences(kept.settings.model_dump(mode="json"), settings.model_dump(mode="json"))))
        if kept.shards != fingerprint:
            changed.append(f"shards in {settings.shards.root}: fingerprint {kept.shards[:12]} -> {fingerprint[:12]}")
        if changed:
            raise UserError(
                f"{self.place}: this run was started otherwise:\n  " + "\n  ".join(changed) + "\n"
                "Use another runs.name, or the former settings to go on."
            )
        return True

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
        """Writes one line for each finished epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
        (self.place / HISTORY).write_text(text.getvalue())

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

    def is_trained(self, settings: Settings) -> bool:
        """Whether the last epoch, or the one of early stopping, has its checkpoint."""
        place, _ = checkpoint.newest(self.place)
        if place is None:
            return False
        progress = self._progress(place)
        return progress.epoch >= settings.train.epochs or progress.stops_early(settings.train.early_stop)

    def best_checkpoint(self) -> tuple[Location, checkpoint.Progress]:
        """The checkpoint with the lowest validation loss, and how far the run has come.

        Raises:
            UserError: if no checkpoint can be used.
        """
        place, _ = checkpoint.newest(self.place)
        if place is None:
            raise UserError(f"{self.place}: the run has no checkpoint yet.")
        progress = self._progress(place)
        best = self.place / checkpoint.name(int(progress.best["step"]))
        reason = checkpoint.damage(best)
        if reason:
            raise UserError(f"{reason}. It is the run's best; restore it, or train again under another runs.name.")
        return best, progress

    def _progress(self, place: Location) -> checkpoint.Progress:
        return checkpoint.Progress(**json.loads((place / checkpoint.PROGRESS).read_text()))


def _indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _binding(lines: Iterator[str]) -> Iterator[str]:
    """Of the lines of `differences`, those that change what a run learns."""
    for line in lines:
        key = line.split(":")[0]
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            yield line
