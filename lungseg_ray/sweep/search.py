"""Decides which trial is trained next and for how many epochs: grid, random and TPE search, and successive halving.

Every decision follows from the trials in the ledger. A search that was interrupted therefore resumes from the ledger
alone, and keeps no state of its own. This module does not use Ray.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import optuna

from lungseg_ray.config import Dimension, SweepJob
from lungseg_ray.sweep.ledger import State, Trial, TrialUpdate, params_key, rank_trials
from lungseg_ray.sweep.summary import Params

FIRST_DRAWS = 8
"""The number of random draws before TPE has enough trials to learn from."""
ATTEMPTS = 100
"""The number of draws that are tried to find values which no trial has yet. With TPE, the first half of them are draws
of TPE and the rest are random."""


@dataclass(frozen=True)
class Move:
    """The decision to train a trial, from its last finished epoch to a later one.

    Attributes:
        trial: The trial as it is in the ledger.
        stop_after_epoch: The number of finished epochs, counted from the start of the trial, after which it stops.
    """

    trial: Trial
    stop_after_epoch: int


class Search:
    """The trials of one stage of a sweep, and the choice of the next one to train.

    Successive halving is asynchronous (ASHA, https://arxiv.org/abs/1810.05934, algorithm 2). Whenever there are free
    resources, either a trial among the best half at a rung (with `sweep.reduction = 2`) is promoted to the next rung,
    or a new trial is started. If the values of new trials do not depend on scores and the time is not limited, new
    trials come first, so that few trials are promoted by mistake. Otherwise, promotions come first. A trial that is not
    promoted is paused with its checkpoint, and may be promoted later. When no further trial can reach a rung, its best
    trial is promoted in any case, so that at least one trial is trained to full length.

    Args:
        job: The settings of the sweep.
        trials: The trials as they are in the ledger. Those that were interrupted are resumed first.
        stage: 1, the search, or 2, the finalists with other seeds.
    """

    def __init__(self, job: SweepJob, trials: Iterable[Trial], stage: Literal[1, 2]) -> None:
        self._job = job
        self._trials = {trial.number: trial for trial in trials}
        self._stage = stage
        self._running: dict[int, int] = {}
        self._rungs = job.rungs if stage == 1 else [job.epochs]
        for trial in self._own():
            if trial.state == "running":
                self._left_off(trial)
        if stage == 2:
            self._add_finalists()

    @property
    def trials(self) -> list[Trial]:
        """All trials of the sweep, in the order of their numbers."""
        return [self._trials[number] for number in sorted(self._trials)]

    def trial(self, number: int) -> Trial:
        """Returns a trial of the sweep.

        Args:
            number: The number of the trial.
        """
        return self._trials[number]

    def has_moves(self) -> bool:
        """Returns whether `next` would return a move."""
        return bool(self._called_up() or self._promoted() or self._has_new())

    @property
    def running(self) -> int:
        """The number of trials that are being trained."""
        return len(self._running)

    def next(self) -> Move | None:
        """Chooses the next trial to train, and records that it is running.

        Returns:
            The move; None if there is none at the moment. If no trial is running either, none will follow.
        """
        sweep = self._job.sweep
        if sweep.search == "tpe" or sweep.budget.minutes:
            move = self._called_up() or self._promoted() or self._new()
        else:
            move = self._called_up() or self._new() or self._promoted()
        if move:
            self._running[move.trial.number] = move.stop_after_epoch
            move = Move(self._set(move.trial, "running"), move.stop_after_epoch)
        return move

    def update(self, number: int, update: TrialUpdate) -> None:
        """Records what has changed about a trial.

        Args:
            number: The number of the trial.
            update: What has changed.
        """
        self._trials[number] = self._trials[number].updated(update)

    def end(self, number: int, update: TrialUpdate) -> Trial:
        """Records that a trial is no longer trained: it has reached its rung, is done, failed, refused or interrupted.

        Args:
            number: The number of the trial.
            update: What has changed about it.

        Returns:
            The trial in its new state.
        """
        self._running.pop(number, None)
        self.update(number, update)
        trial = self._trials[number]
        return self._left_off(trial) if trial.state == "running" else trial

    def _left_off(self, trial: Trial) -> Trial:
        # A trial at full length is done only when it reports so. Until then, its model may not have been written.
        return self._set(trial, "paused" if trial.epochs in self._rungs[:-1] else "planned")

    def _set(self, trial: Trial, state: State) -> Trial:
        trial = self._trials[trial.number] = trial.model_copy(update={"state": state})
        return trial

    def _own(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.stage == self._stage]

    def _called_up(self) -> Move | None:
        for trial in self._own():
            if trial.state == "planned" and trial.number not in self._running:
                return Move(trial, next((rung for rung in self._rungs if rung > trial.epochs), self._rungs[-1]))
        return None

    def _promoted(self) -> Move | None:
        found = None
        may_grow = self._has_new() or any(trial.state == "planned" for trial in self._own())
        for rung, following in zip(self._rungs, self._rungs[1:], strict=False):
            may_grow = may_grow or rung in self._running.values()
            there = [trial for trial in self._own() if trial.epochs >= rung and trial.is_ranked]
            there.sort(key=lambda trial: (-trial.scores[rung - 1], trial.number))
            quota = len(there) // self._job.sweep.reduction
            waiting = [
                trial
                for trial in there[: quota if may_grow else max(quota, 1)]
                if trial.epochs == rung and trial.state == "paused" and trial.number not in self._running
            ]
            if waiting:
                # Later rungs replace earlier ones: the highest rung is served first, so that the best are known soon.
                found = Move(waiting[0], following)
                may_grow = True
        return found

    def _has_new(self) -> bool:
        return self._stage == 1 and len(self._own()) < count(self._job)

    def _new(self) -> Move | None:
        if not self._has_new():
            return None
        params = draw(self._job, self._own())
        return Move(self._add(params, self._job.train.seed), self._rungs[0])

    def _add(self, params: Params, seed: int) -> Trial:
        number = max(self._trials, default=0) + 1
        words = [str(value if not isinstance(value, float) else f"{value:.2g}") for value in params.values()]
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", "-".join(words)).strip("_.")[:60]
        name = "-".join([f"{number:03d}", *([slug] if slug else []), *([f"seed{seed}"] if self._stage == 2 else [])])
        trial = Trial(number=number, name=name, stage=self._stage, params=params, seed=seed)
        self._trials[number] = trial
        return trial

    def _add_finalists(self) -> None:
        first = self._job.train.seed
        seeds = range(first + 1, first + 1 + self._job.sweep.seeds)
        known = {(trial.params_key, trial.seed) for trial in self._own()}
        best = rank_trials(trial for trial in self.trials if trial.stage == 1)[: self._job.sweep.finalists]
        # All finalists get one seed before the next, so that an interrupted stage has as many complete pairs as it can.
        for seed in seeds:
            for trial in best:
                if (trial.params_key, seed) not in known:
                    self._add(trial.params, seed)


def epochs_to_come(job: SweepJob, trials: Sequence[Trial], stage: Literal[1, 2]) -> int:
    """Estimates the number of epochs that a stage still needs, if exactly the specified share of each rung is promoted.

    Args:
        job: The settings of the sweep.
        trials: The trials of the stage.
        stage: 1, the search, or 2, the finalists.

    Returns:
        The number of epochs over all trials, at least 0.
    """
    alive = [trial for trial in trials if trial.state not in ("failed", "refused")]
    if stage == 2:
        return sum(job.epochs - trial.epochs for trial in alive)
    there = count(job) - (len(trials) - len(alive))
    total = before = 0
    for rung in job.rungs:
        total += there * (rung - before)
        there, before = max(there // job.sweep.reduction, 1), rung
    return max(total - sum(trial.epochs for trial in alive), 0)


def count(job: SweepJob) -> int:
    """Computes the number of trials in stage 1, no two of which have the same values.

    Args:
        job: The settings of the sweep.

    Returns:
        The number of trials, including those that have ended.
    """
    sweep, grids = job.sweep, _grids(job)
    combinations = math.prod(len(dimension.values or ()) for dimension in grids.values())
    others = math.prod(
        len(dimension.values) if dimension.values else math.inf
        for name, dimension in sweep.space.items()
        if name not in grids
    )
    if sweep.search == "tpe":
        return int(min(sweep.samples, combinations * others))
    return combinations * int(min(sweep.samples, others))


def draw(job: SweepJob, trials: Sequence[Trial]) -> Params:
    """Draws the values of the next new trial. They depend only on the settings and on the present trials.

    Args:
        job: The settings of the sweep.
        trials: The present trials of stage 1, fewer than `count` returns.

    Returns:
        A value for each searched setting; no present trial has the same values.
    """
    taken = {trial.params_key for trial in trials}
    grids, space = _grids(job), job.sweep.space
    every = list(product(*(dimension.values or () for dimension in grids.values())))
    # The order is random, so that a search that runs out of time has tried combinations from all parts of the grid.
    order = np.random.default_rng([job.sweep.seed, 0]).permutation(len(every))
    fixed = dict(zip(grids, every[order[len(trials) % len(every)]], strict=True))
    for attempt in range(ATTEMPTS):
        generator = np.random.default_rng([job.sweep.seed, 1, len(trials), attempt])
        if job.sweep.search == "tpe" and attempt < ATTEMPTS // 2:
            params = _tpe(job, trials, seed=int(generator.integers(2**31)))
        else:
            params = {name: fixed[name] if name in fixed else _random(space[name], generator) for name in space}
        if params_key(params) not in taken:
            return params
    # Nearly all combinations of a finite space are taken, so a free one is found by enumeration.
    choices = [[fixed[name]] if name in fixed else space[name].values or () for name in space]
    return next(
        params
        for values in product(*choices)
        if params_key(params := dict(zip(space, values, strict=True))) not in taken
    )


def _grids(job: SweepJob) -> dict[str, Dimension]:
    """Returns the dimensions of which every combination is tried."""
    way = job.sweep.search
    return {name: one for name, one in job.sweep.space.items() if way == "grid" or (way == "random" and one.grid)}


def _random(dimension: Dimension, generator: np.random.Generator) -> Any:
    if dimension.values:
        return dimension.values[generator.integers(len(dimension.values))]
    if dimension.log_uniform:
        low, high = np.log(dimension.log_uniform)
        return float(np.exp(generator.uniform(low, high)))
    low, high = dimension.uniform or (0.0, 1.0)
    return float(generator.uniform(low, high))


def _tpe(job: SweepJob, trials: Sequence[Trial], *, seed: int) -> Params:
    """Draws values with Optuna's TPE sampler. It learns from all trials anew, so that the ledger is the only state."""
    space = job.sweep.space
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, dimension in space.items():
        if dimension.values:
            distributions[name] = optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
        else:
            low, high = dimension.log_uniform or dimension.uniform or (0.0, 1.0)
            log = dimension.log_uniform is not None
            distributions[name] = optuna.distributions.FloatDistribution(low, high, log=log)

    def coded(params: Mapping[str, Any]) -> Params:
        values = {name: space[name].values for name in space}
        return {name: known.index(params[name]) if (known := values[name]) else params[name] for name in space}

    # Scores can be compared only after equal numbers of epochs. The scores at the highest rung that enough trials have
    # reached are used.
    usable = [trial for trial in trials if trial.is_ranked]
    reached = {rung: [trial for trial in usable if trial.epochs >= rung] for rung in job.rungs}
    enough = max(FIRST_DRAWS, len(space) + 2)
    rung = max((rung for rung, there in reached.items() if len(there) >= enough), default=job.rungs[0])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST_DRAWS, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        told = trial in reached[rung]
        state = optuna.trial.TrialState.COMPLETE if told else optuna.trial.TrialState.RUNNING
        lost = trial.state in ("failed", "refused")
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL if lost else state,
                params=coded(trial.params),
                distributions=distributions,
                value=trial.scores[rung - 1] if told else None,
            )
        )
    found = study.ask(distributions).params
    return {name: known[found[name]] if (known := space[name].values) else found[name] for name in space}
