"""The folder of a sweep: what was asked for, and how far each trial has come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter

from lungseg_ray.config import FileName, Section, Settings, SweepJob
from lungseg_ray.errors import UserError
from lungseg_ray.run.folder import Run
from lungseg_ray.run.progress import History
from lungseg_ray.run.started_with import ConfigFile, StartedWith
from lungseg_ray.run.stored import read_stored
from lungseg_ray.storage import Location
from lungseg_ray.sweep.summary import Params, SweepSummary

CONFIG = "sweep.yaml"
TRIALS = "trials.json"
FOLDER = "trials"
SUMMARY = "summary.json"
WINNER = "winner.yaml"
REPORT = "report.html"

_SUMMARY = TypeAdapter(SweepSummary)
State = Literal["planned", "running", "paused", "done", "failed", "refused"]
"""`paused` after a rung, for good unless the trial is promoted; `done` at full length; `refused` by a budget."""


class _Result(Section):
    """What a trial finds out.

    Attributes:
        reason: Why it failed or was refused.
        scores: After each epoch, the score of the best epoch so far: the validation IoU of that with the lowest loss,
            or the figure that `train.best_by` names.
        val_loss: The validation loss of the best epoch.
        val_dice: The validation Dice of the best epoch.
        best_epoch: The best epoch, from 1.
        parameters: The number of parameters of the network.
        gflops: 10^9 operations of a forward pass of one image at its `feed.size`.
        seconds: Seconds spent in training and validation.
        startup: Seconds from its latest assignment to its first step.
        memory: The memory of its process alone, bytes; None with several workers, which have their own.
    """

    reason: str = ""
    scores: tuple[float, ...] = ()
    val_loss: float | None = None
    val_dice: float | None = None
    best_epoch: int | None = None
    parameters: int | None = None
    gflops: float | None = None
    seconds: float = 0.0
    startup: float | None = None
    memory: Annotated[int, Field(ge=0, le=1 << 60)] | None = None


class TrialUpdate(_Result):
    """What has changed about a trial. Only the attributes that are set count."""

    state: State | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The attributes that are set, with their values."""
        return self.model_dump(exclude_unset=True)


class Trial(_Result):
    """One set of values with one seed: its run, and what is known of it.

    Attributes:
        number: Counts the trials of a sweep, from 1.
        name: The name of its run, a folder below `trials/`.
        stage: 1, the search, or 2, the finalists.
        params: A value for each searched setting.
        seed: The seed of the trial.
        state: What the trial is doing.
    """

    number: int
    name: FileName
    stage: Literal[1, 2]
    params: Params
    seed: int
    state: State = "planned"

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.scores)

    @property
    def score(self) -> float | None:
        """The score of the best epoch; None before the first."""
        return self.scores[-1] if self.scores else None

    @property
    def is_ranked(self) -> bool:
        """Whether it has a score that can be compared."""
        return bool(self.scores) and self.state not in ("failed", "refused")

    @property
    def params_key(self) -> str:
        """Identifies its values among those of other trials."""
        return params_key(self.params)

    @property
    def description(self) -> str:
        """The values, for a person: `timm-regnety_004, Unet, lr 0.003`."""
        return describe_params(self.params)

    def updated(self, update: TrialUpdate) -> Trial:
        """Returns the trial with what has changed."""
        return Trial.model_validate({**self.model_dump(), **update.changes})


def params_key(params: Params) -> str:
    """Returns a text that identifies values of searched settings."""
    return json.dumps(params, sort_keys=True)


def describe_params(params: Params) -> str:
    """Returns values of searched settings as a text for a person; names of networks stand without their setting."""
    words = []
    for key, value in params.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(text if key in ("model.encoder", "model.architecture") else f"{key.rsplit('.', 1)[1]} {text}")
    return ", ".join(words) or "as configured"


class _Trials(Section):
    trials: list[Trial]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, on a disk or in a bucket.

    Attributes:
        place: The folder.
    """

    place: Location

    @staticmethod
    def is_one(place: Location) -> bool:
        """Whether a folder is that of a sweep."""
        return (place / CONFIG).exists()

    @property
    def config(self) -> ConfigFile[SweepJob]:
        """The file with the settings that the sweep was started with."""
        return ConfigFile(self.place / CONFIG, SweepJob, "sweep")

    def started_with(self) -> StartedWith[SweepJob]:
        """Returns the settings and the shards that the sweep was started with.

        Raises:
            UserError: If there is no sweep, or if its configuration cannot be read.
        """
        return self.config.read()

    def can_resume(self, job: SweepJob, *, fingerprint: str | None) -> bool:
        """Whether there is a sweep that a command may resume.

        Args:
            job: The settings of the command.
            fingerprint: The fingerprint of the shards; None while they are not built.

        Raises:
            UserError: If the sweep was started with other settings or other shards.
        """
        if not self.config.place.exists():
            if (self.place / FOLDER).exists():
                raise UserError(f"{self.config.place}: is missing beside the trials. Restore it, or use another name.")
            return False
        self.config.check(job, fingerprint=fingerprint)
        return True

    def trials(self) -> list[Trial]:
        """Returns what is known of each trial, by number."""
        return self._ledger().trials

    def seconds(self) -> dict[str, float]:
        """Returns the seconds that all drivers have spent in each stage so far, `stage 1` and `stage 2`."""
        return self._ledger().seconds

    def _ledger(self) -> _Trials:
        return read_stored(self.place / TRIALS, TypeAdapter(_Trials)) or _Trials(trials=[], seconds={})

    def write_trials(self, trials: Iterable[Trial], seconds: dict[str, float]) -> None:
        """Writes the ledger, whole or not at all.

        Args:
            trials: All trials.
            seconds: The seconds spent in each stage.
        """
        ledger = _Trials(trials=sorted(trials, key=lambda trial: trial.number), seconds=seconds)
        (self.place / TRIALS).write_text(ledger.model_dump_json(indent=1) + "\n")

    def run(self, trial: Trial) -> Run:
        """Returns the run of a trial."""
        return Run(self.place / FOLDER / trial.name)

    def history(self, trial: Trial) -> History:
        """Returns a row of figures for each finished epoch of a trial, as in a run's `history.csv`."""
        return self.run(trial).read_history()

    def summary(self) -> SweepSummary | None:
        """Returns what the finished sweep found, as `summarise_sweep` does; None while it is not finished."""
        return read_stored(self.place / SUMMARY, _SUMMARY)

    def reopen(self) -> None:
        """Deletes what marks the sweep as finished, since there is more to do, and completes the trials' histories.

        A process that was killed may have saved an epoch of its trial, and not the history that follows it.
        """
        for name in (SUMMARY, WINNER):
            (self.place / name).delete()
        for trial in self.trials():
            run = self.run(trial)
            if len(run.read_history()) < trial.epochs and (progress := run.newest_progress()):
                run.write_history(progress.history)

    def write_summary(self, summary: SweepSummary, winner: Settings) -> None:
        """Writes what the sweep found, which marks it as finished.

        Args:
            summary: What it found.
            winner: The settings of the winner at full length, for a run of its own.
        """
        tree = winner.model_dump(mode="json", exclude={"runs"})
        (self.place / WINNER).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        (self.place / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")


def rank_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Returns the trials with a score from the best to the worst: by epochs, then by score, then by number."""
    scored = [trial for trial in trials if trial.is_ranked]
    return sorted(scored, key=lambda trial: (-trial.epochs, -(trial.score or 0.0), trial.number))
