"""Which trial goes on next, and for how long: grid, random and TPE draws, and successive halving. No Ray.

Everything follows from the ledger: a search that was cut goes on where it was, and no state of its own is kept.
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
"""Draws at random before TPE has anything to learn from."""
ATTEMPTS = 100
"""Draws for a trial that is not there yet; half of them may be TPE's."""


@dataclass(frozen=True)
class Move:
    """A trial is to be trained on.

    Attributes:
        trial: as the ledger has it.
        stop_after_epoch: epochs after which it leaves off.
    """

    trial: Trial
    stop_after_epoch: int


class Search:
    """The trials of one stage of a sweep, and the next move among them.

    Successive halving is asynchronous (ASHA, https://arxiv.org/abs/1810.05934, algorithm 2): whenever there is room,
    one of the best half at a rung goes on to the next (with `sweep.reduction = 2`), or a new trial begins. Where all
    trials are known and time has no end, new ones come first, so that few are promoted by mistake; otherwise promotions
    do. A trial that is passed over pauses with its checkpoint and may be called up later. When no more can come to a
    rung, its best goes on in any case, so that one comes to full length.

    Args:
        job: of the sweep.
        trials: as the ledger has them; those that were cut are called up first.
        stage: 1, the search, or 2, its finalists with other seeds.
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
        """All trials of the sweep, by number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def trial(self, number: int) -> Trial:
        """One of them."""
        return self._trials[number]

    def has_moves(self) -> bool:
        """Whether `next` would return one."""
        return bool(self._called_up() or self._promoted() or self._has_new())

    @property
    def running(self) -> int:
        """Trials that are being trained."""
        return len(self._running)

    def next(self) -> Move | None:
        """The next move; None if there is none now, nor ever when nothing is flying."""
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
        """Records that a trial is not trained any more: at its rung, done, failed, refused, or interrupted.

        Args:
            number: The number of the trial.
            update: What has changed about it.

        Returns:
            The trial as the ledger has it now.
        """
        self._running.pop(number, None)
        self.update(number, update)
        trial = self._trials[number]
        return self._left_off(trial) if trial.state == "running" else trial

    def _left_off(self, trial: Trial) -> Trial:
        # At full length it is done when it says so: its model may be missing yet.
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
                # The highest rung goes first, so that the best are known soon.
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
        # Seed by seed, so that whenever it is cut, as many pairs as possible are complete.
        for seed in seeds:
            for trial in best:
                if (trial.params_key, seed) not in known:
                    self._add(trial.params, seed)


def epochs_to_come(job: SweepJob, trials: Sequence[Trial], stage: Literal[1, 2]) -> int:
    """Epochs that a stage still needs, if each rung lets through its share.

    Args:
        job: of the sweep.
        trials: of the stage.
        stage: 1 or 2.
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
    """Trials of stage 1; none has the values of another."""
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
    """The values of the next new trial; they follow from the settings and from the trials so far."""
    taken = {trial.params_key for trial in trials}
    grids, space = _grids(job), job.sweep.space
    every = list(product(*(dimension.values or () for dimension in grids.values())))
    # In random order, so that a search that runs out of time has seen something of everything.
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
    # Nearly all of a finite space is taken: the first that is not.
    choices = [[fixed[name]] if name in fixed else space[name].values or () for name in space]
    return next(
        params
        for values in product(*choices)
        if params_key(params := dict(zip(space, values, strict=True))) not in taken
    )


def _grids(job: SweepJob) -> dict[str, Dimension]:
    """The dimensions of which every combination is tried."""
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
    """Optuna's sampler, told anew of all trials, so that it needs no memory beside the ledger."""
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

    # Scores compare after as many epochs alone: those of the highest rung that enough have reached count.
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
