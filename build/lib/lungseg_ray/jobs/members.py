"""The trained models that a command names: one run's, or those of a sweep's best trials."""

from __future__ import annotations

from lungseg_ray.config import EvaluateJob, PredictJob
from lungseg_ray.errors import UserError
from lungseg_ray.inference.predictor import Model
from lungseg_ray.run.folder import Run
from lungseg_ray.sweep.ledger import Sweep, rank_trials


def model_of(job: EvaluateJob | PredictJob) -> Model:
    """The model that a job names: a run's best, or the average of a sweep's best trials.

    Raises:
        UserError: if several are asked for of a run alone, or more than the sweep has.
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
    """The runs of a sweep's best trials that went to full length: of the finalists, or else of the search.

    Raises:
        UserError: if there are not so many.
    """
    trials = [trial for trial in sweep.trials() if trial.state == "done"]
    stage = max((trial.stage for trial in trials), default=1)
    # Several seeds of one set of values are different models; each may be a member.
    found = rank_trials(trial for trial in trials if trial.stage == stage)
    if len(found) < top:
        raise UserError(
            f"{sweep.place}: {len(found)} trial(s) of stage {stage} went to full length; {top} are asked for (--top)."
        )
    return [sweep.run(trial) for trial in found[:top]]
