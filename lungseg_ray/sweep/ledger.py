"""The folder of a sweep: what was asked for, and how far each trial has come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from lungseg_ray.config import Section, Settings, SweepJob, differences, dump
from lungseg_ray.errors import UserError
from lungseg_ray.run.folder import FREE, Run
from lungseg_ray.storage import Location

CONFIG = "sweep.yaml"
TRIALS = "trials.json"
FOLDER = "trials"
SUMMARY = "summary.json"
WINNER = "winner.yaml"
REPORT = "report.html"

State = Literal["planned", "running", "paused", "done", "failed", "refused"]

FREE_OF_SWEEP = (
    *FREE,
    "sweep.samples",
    "sweep.finalists",
    "sweep.seeds",
    "sweep.concurrent",
    "sweep.gpus_per_trial",
    "sweep.budget.minutes",
)
"""Settings that may change while a sweep goes on."""


class Trial(Section):
    """One set of values with one seed: its run, and what is known of it.

    Attributes:
        number: counts the trials of a sweep from 1.
        name: of its run, a folder below `trials/`.
        stage: 1, the search, or 2, the finalists.
        params: a value for each searched setting.
        seed: of the trial.
        state: `planned`, `running`; `paused` after a rung, for good unless it is among the best; `done` at full
            length; `failed` with its reason; `refused` by a budget.
        reason: why it failed or was refused.
        scores: after each epoch the validation IoU of the best epoch so far, the one with the lowest loss.
        val_loss: of the best epoch.
        val_dice: of the best epoch.
        best_epoch: counted from 1.
        parameters: of the network.
        gflops: 10^9 operations of a forward pass of one image at its `feed.size`.
        seconds: spent in training and validation.
        startup: seconds from being dealt to its first step, the latest time.
    """

    number: int
    name: str
    stage: Literal[1, 2]
    params: dict[str, Any]
    seed: int
    state: State = "planned"
    reason: str = ""
    scores: tuple[float, ...] = ()
    val_loss: float | None = None
    val_dice: float | None = None
    best_epoch: int | None = None
    parameters: int | None = None
    gflops: float | None = None
    seconds: float = 0.0
    startup: float | None = None

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return len(self.scores)

    @property
    def score(self) -> float | None:
        """The validation IoU of the best epoch; None before the first."""
        return self.scores[-1] if self.scores else None

    @property
    def counts(self) -> bool:
        """Whether it has a score that can be compared."""
        return bool(self.scores) and self.state not in ("failed", "refused")

    @property
    def key(self) -> str:
        """Tells its values from those of others."""
        return key_of(self.params)

    @property
    def label(self) -> str:
        """The values, for a person: `timm-regnety_004, Unet, lr 0.003`."""
        return describe_params(self.params)


def key_of(params: dict[str, Any]) -> str:
    """Tells values of searched settings from others."""
    return json.dumps(params, sort_keys=True)


def describe_params(params: dict[str, Any]) -> str:
    """Values of searched settings, for a person; names of networks speak for themselves."""
    words = []
    for key, value in params.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(text if key in ("model.encoder", "model.architecture") else f"{key.rsplit('.', 1)[1]} {text}")
    return ", ".join(words) or "as configured"


class Kept(Section):
    """What `sweep.yaml` holds.

    Attributes:
        job: the resolved tree.
        shards: fingerprint of the shards that all trials train on.
    """

    job: SweepJob
    shards: str


class _Trials(Section):
    trials: list[Trial]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder, on a disk or in a bucket."""

    place: Location

    @staticmethod
    def is_one(place: Location) -> bool:
        """Whether a sweep lies there."""
        return (place / CONFIG).exists()

    def kept(self) -> Kept:
        """What the sweep was started with.

        Raises:
            UserError: if there is no sweep, or if its configuration cannot be read.
        """
        place = self.place / CONFIG
        try:
            return Kept.model_validate(yaml.safe_load(place.read_text()))
        except FileNotFoundError:
            raise UserError(f"{self.place}: there is no sweep here: {CONFIG} is missing.") from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{place}: cannot be read: {error}") from None

    def check(self, job: SweepJob, *, fingerprint: str | None) -> bool:
        """Whether there is a sweep to go on with.

        Raises:
            UserError: if it was started with other settings or other shards.
        """
        if not self.is_one(self.place):
            if (self.place / FOLDER).exists():
                raise UserError(
                    f"{self.place / CONFIG}: is missing beside the trials. Restore it, or use another name."
                )
            return False
        kept = self.kept()
        lines = differences(kept.job.model_dump(mode="json"), job.model_dump(mode="json"))
        changed = [line for line in lines if not _is_free(line.split(":")[0])]
        if fingerprint and kept.shards != fingerprint:
            changed.append(f"shards in {job.shards.root}: fingerprint {kept.shards[:12]} -> {fingerprint[:12]}")
        if changed:
            raise UserError(
                f"{self.place}: this sweep was started otherwise:\n  " + "\n  ".join(changed) + "\n"
                "Use another runs.name, or the former settings to go on."
            )
        return True

    def write_config(self, job: SweepJob, *, fingerprint: str) -> None:
        """Writes down what the sweep is started with."""
        (self.place / CONFIG).write_text(dump(Kept(job=job, shards=fingerprint)))

    def trials(self) -> list[Trial]:
        """What is known of each trial, by number."""
        return self._ledger().trials

    def seconds(self) -> dict[str, float]:
        """Time spent in each stage by all drivers so far, `stage 1` and `stage 2`."""
        return self._ledger().seconds

    def _ledger(self) -> _Trials:
        place = self.place / TRIALS
        try:
            return _Trials.model_validate_json(place.read_text())
        except FileNotFoundError:
            return _Trials(trials=[], seconds={})
        except ValueError as error:
            raise UserError(f"{place}: cannot be read: {error}") from None

    def write_trials(self, trials: Iterable[Trial], seconds: dict[str, float]) -> None:
        """Writes the ledger, whole or not at all."""
        ledger = _Trials(trials=sorted(trials, key=lambda trial: trial.number), seconds=seconds)
        (self.place / TRIALS).write_text(ledger.model_dump_json(indent=1) + "\n")

    def run(self, trial: Trial) -> Run:
        """The run of a trial."""
        return Run(self.place / FOLDER / trial.name)

    def history(self, trial: Trial) -> list[dict[str, float]]:
        """A row of figures for each finished epoch of a trial, as in a run's `history.csv`."""
        return self.run(trial).read_history()

    def summary(self) -> dict[str, Any] | None:
        """What the finished sweep found, as `compare.summarise` returns it; None while it is not finished."""
        place = self.place / SUMMARY
        return json.loads(place.read_text()) if place.exists() else None

    def reopen(self) -> None:
        """Takes back that it is finished, since there is more to do."""
        for name in (SUMMARY, WINNER):
            (self.place / name).delete()

    def write_summary(self, summary: dict[str, Any], winner: Settings) -> None:
        """Marks the sweep as finished.

        Args:
            summary: what it found.
            winner: its settings at full length, for a run of its own.
        """
        tree = winner.model_dump(mode="json", exclude={"runs"})
        (self.place / WINNER).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        (self.place / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")


def _is_free(key: str) -> bool:
    bare = key.removeprefix("job.")
    return any(bare == free or bare.startswith(f"{free}.") for free in FREE_OF_SWEEP)


def rank_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Trials with a score, from the best to the worst: those that came farther first, then by score, then by number."""
    scored = [trial for trial in trials if trial.counts]
    return sorted(scored, key=lambda trial: (-trial.epochs, -(trial.score or 0.0), trial.number))
