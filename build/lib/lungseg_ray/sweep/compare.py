"""Compares the trials of a sweep: which are best, by how much, and how certain that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from lungseg_ray.config import SweepJob
from lungseg_ray.sweep.ledger import Trial, describe_params, params_key, rank_trials
from lungseg_ray.sweep.search import count
from lungseg_ray.sweep.summary import Comparison, Finalist, Pair, Spread, SweepSummary, Winner

MOST_VALUES = 4
"""The values of a setting are compared one by one up to this number of them."""


def summarise_sweep(job: SweepJob, trials: Sequence[Trial], seconds: dict[str, float]) -> SweepSummary:
    """Summarises what is known so far, of an unfinished sweep too.

    Args:
        job: The settings of the sweep.
        trials: The trials as the ledger has them.
        seconds: Seconds spent in each stage.
    """
    search = [trial for trial in trials if trial.stage == 1]
    ranking = rank_trials(search)
    final = finalists(trials)
    winner: Winner | None = None
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


def finalists(trials: Sequence[Trial]) -> list[Finalist]:
    """Returns the sets of values of stage 2 with their scores: those with all seeds first, then by the mean score.

    Args:
        trials: All trials.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.stage == 2 and trial.state == "done":
            groups.setdefault(trial.params_key, []).append(trial)
    rows: list[Finalist] = []
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
    # A set of values that finished with fewer seeds may have lost its bad ones.
    rows.sort(key=lambda row: (-len(row["seeds"]), -row["mean"]))
    for row in rows[1:]:
        first = dict(zip(rows[0]["seeds"], rows[0]["scores"], strict=True))
        own = dict(zip(row["seeds"], row["scores"], strict=True))
        row["behind"] = spread([first[seed] - own[seed] for seed in first if seed in own])
    return rows


def pairs(job: SweepJob, trials: Sequence[Trial]) -> list[Comparison]:
    """Compares the trials that differ in one setting alone, after as many epochs as both have.

    Settings with more than `MOST_VALUES` values are left out.

    Args:
        job: The settings of the sweep.
        trials: The trials of stage 1.
    """
    found: list[Comparison] = []
    for name, dimension in job.sweep.space.items():
        if not dimension.values or len(dimension.values) > MOST_VALUES:
            continue
        by_rest: dict[str, dict[str, Trial]] = {}
        for trial in trials:
            if trial.is_ranked:
                rest = {key: value for key, value in trial.params.items() if key != name}
                by_rest.setdefault(params_key(rest), {})[str(trial.params[name])] = trial
        for over, of in combinations(map(str, dimension.values), 2):
            rows: list[Pair] = []
            for rest_key, group in by_rest.items():
                if of in group and over in group:
                    epochs = min(group[of].epochs, group[over].epochs)
                    label = describe_params(json.loads(rest_key))
                    first, second = group[of].scores[epochs - 1], group[over].scores[epochs - 1]
                    rows.append({"label": label, "epochs": epochs, "of": first, "over": second})
            if rows:
                gaps = [row["of"] - row["over"] for row in rows]
                wins = sum(gap > 0 for gap in gaps)
                found.append({"setting": name, "of": of, "over": over, "wins": wins, **spread(gaps), "pairs": rows})
    return found


def spread(differences: Sequence[float]) -> Spread:
    """Returns the mean of paired differences with its standard deviation and 95 % interval by Student's t.

    Args:
        differences: One for each pair.
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
