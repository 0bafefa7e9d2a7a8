"""Finds the trained models that a command names: the model of a run, or those of the best trials of a sweep."""

from __future__ import annotations

from lungseg_ray.config import ModelJob
from lungseg_ray.errors import UserError
from lungseg_ray.inference.predictor import Model
from lungseg_ray.run.folder import Run
from lungseg_ray.sweep.ledger import Sweep, rank_trials


def model_of(job: ModelJob) -> Model:
    """Returns the model that a job names: the best model of a run, or the average over the best trials of a sweep.

    Args:
        job: The settings of the job, of which `run`, `top` and `flips` are used.

    Raises:
        UserError: If `top` is more than 1 for a run, or more than the number of trials that a sweep has trained at full
            length.
    """
    place = job.run
    if Sweep.is_one(place):
        return Model(tuple(best_runs(Sweep(place), job.top)), job.flips)
    if job.top > 1:
        raise UserError(
            f"{place}: --top {job.top} averages the best trials of a sweep, but no sweep lies there. "
            "Give a sweep's folder, or leave --top out."
        )
    return Model((Run(place),), job.flips)


def best_runs(sweep: Sweep, top: int) -> list[Run]:
    """Returns the runs of the best trials of a sweep that were trained at full length.

    The trials are finalists (stage 2) if any finalist was trained at full length, and trials of the search otherwise.

    Args:
        sweep: The sweep.
        top: The number of trials.

    Returns:
        The runs, the best first.

    Raises:
        UserError: If there are fewer such trials than `top`.
    """
    trials = [trial for trial in sweep.trials() if trial.state == "done"]
    stage = max((trial.stage for trial in trials), default=1)
    # Trials with the same values and different seeds are different models, and each of them may be averaged.
    found = rank_trials(trial for trial in trials if trial.stage == stage)
    if len(found) < top:
        raise UserError(
            f"{sweep.place}: {len(found)} trial(s) of stage {stage} went to full length; {top} are asked for (--top)."
        )
    return [sweep.run(trial) for trial in found[:top]]
