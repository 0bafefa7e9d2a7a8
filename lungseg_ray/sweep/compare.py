"""What a sweep says: which trials are best, by how much, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from lungseg_ray.config import SweepJob
from lungseg_ray.sweep.ledger import Trial, describe_params, params_key, rank_trials
from lungseg_ray.sweep.search import count

MOST_VALUES = 4
"""A setting with more values than this is ranked, and not compared value by value."""


def summarise_sweep(job: SweepJob, trials: Sequence[Trial], seconds: dict[str, float]) -> dict[str, Any]:
    """What is known so far; of a sweep that goes on, too.

    Args:
        job: of the sweep.
        trials: as the ledger has them.
        seconds: spent in each stage.

    Returns:
        `winner` (`params`, `label`, `by`: finalists or search; None before any score); `ranking`, numbers of the trials
        of stage 1, best first; `finalists`, as `finalists` returns them; `pairs`, as `pairs` returns them; `states`,
        trials in each state; `spent`: epochs trained, those of the whole grid at full length, and seconds.
    """
    search = [trial for trial in trials if trial.stage == 1]
    ranking = rank_trials(search)
    final = finalists(trials)
    winner: dict[str, Any] | None = None
    if final:
        winner = {"params": final[0]["params"], "label": final[0]["label"], "by": "finalists"}
    elif ranking:
        winner = {"params": ranking[0].params, "label": ranking[0].description, "by": "search"}
    refused = sum(trial.state == "refused" for trial in search)
    return {
        "winner": winner,
        "ranking": [trial.number for trial in ranking],
        "finalists": final,
        "pairs": pairs(job, search),
        "states": {state: sum(trial.state == state for trial in trials) for state in _states(trials)},
        "spent": {
            "epochs_search": sum(trial.epochs for trial in search),
            "epochs_full_search": job.epochs * (count(job) - refused),
            "epochs_finalists": sum(trial.epochs for trial in trials if trial.stage == 2),
            "seconds": seconds,
            "trial_seconds": sum(trial.seconds for trial in trials),
        },
    }


def finalists(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The sets of values of stage 2 with their scores over seeds: those with all seeds first, by their mean.

    Returns:
        For each `params`, `label`, `trials` (numbers), `seeds`, `scores`, `mean` and `sd` over the seeds, and
        `behind`: the first one's score minus its own, paired by seed, as `spread` returns it; None for the first.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.stage == 2 and trial.state == "done":
            groups.setdefault(trial.params_key, []).append(trial)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        scores = [trial.scores[-1] for trial in group]
        rows.append(
            {
                "params": group[0].params,
                "label": group[0].description,
                "trials": [trial.number for trial in group],
                "seeds": [trial.seed for trial in group],
                "scores": scores,
                "mean": float(np.mean(scores)),
                "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                "behind": None,
            }
        )
    # One that came through with fewer seeds may have lost its bad ones.
    rows.sort(key=lambda row: (-len(row["seeds"]), -row["mean"]))
    for row in rows[1:]:
        first = dict(zip(rows[0]["seeds"], rows[0]["scores"], strict=True))
        own = dict(zip(row["seeds"], row["scores"], strict=True))
        row["behind"] = spread([first[seed] - own[seed] for seed in first if seed in own])
    return rows


def pairs(job: SweepJob, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """For each setting with few values: trials that differ in it alone, compared after as many epochs as both have.

    Returns:
        For each two values `setting`, `of` and `over` (the values: the score of one minus the score of the other),
        `wins` (of the first), what `spread` returns, and `pairs`: `label` of what is the same, `epochs`, and both
        scores, `of` and `over`.
    """
    found = []
    for name, dimension in job.sweep.space.items():
        if not dimension.values or len(dimension.values) > MOST_VALUES:
            continue
        by_rest: dict[str, dict[str, Trial]] = {}
        for trial in trials:
            if trial.is_ranked:
                rest = {key: value for key, value in trial.params.items() if key != name}
                by_rest.setdefault(params_key(rest), {})[str(trial.params[name])] = trial
        for over, of in combinations(map(str, dimension.values), 2):
            rows: list[dict[str, Any]] = []
            for rest_key, group in by_rest.items():
                if of in group and over in group:
                    epochs = min(group[of].epochs, group[over].epochs)
                    scores = {"of": group[of].scores[epochs - 1], "over": group[over].scores[epochs - 1]}
                    rows.append({"label": describe_params(json.loads(rest_key)), "epochs": epochs, **scores})
            if rows:
                differences = [row["of"] - row["over"] for row in rows]
                wins = sum(difference > 0 for difference in differences)
                found.append(
                    {"setting": name, "of": of, "over": over, "wins": wins, **spread(differences), "pairs": rows}
                )
    return found


def spread(differences: Sequence[float]) -> dict[str, Any]:
    """Mean of paired differences with its spread.

    Returns:
        `n`, `mean`, `sd`, and the 95 % interval of the mean by Student's t, `low` and `high`; None where there are
        fewer than two.
    """
    n = len(differences)
    if not n:
        return {"n": 0, "mean": None, "sd": None, "low": None, "high": None}
    mean = float(np.mean(differences))
    if n < 2:
        return {"n": n, "mean": mean, "sd": None, "low": None, "high": None}
    sd = float(np.std(differences, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / n**0.5
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def _states(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.state for trial in trials))
