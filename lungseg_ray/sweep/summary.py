"""What a sweep found, in the form in which its `summary.json` contains it."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

Params = dict[str, Any]
"""A value for each searched setting, by its key such as `optim.lr`."""


class Spread(TypedDict):
    """The mean of paired differences, with its spread.

    Attributes:
        n: Number of pairs.
        mean: The mean; None without any pair.
        sd: The standard deviation; None with fewer than two pairs.
        low: Lower bound of the 95 % interval of the mean, by Student's t; None with fewer than two pairs.
        high: Upper bound of this interval.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


class Winner(TypedDict):
    """The best values of a sweep.

    Attributes:
        params: The values.
        label: The values, for a person.
        by: Whether finalists or the search alone decided.
    """

    params: Params
    label: str
    by: Literal["finalists", "search"]


class Finalist(TypedDict):
    """A set of values of stage 2, with its scores over several seeds.

    Attributes:
        params: The values.
        label: The values, for a person.
        trials: The numbers of its trials.
        seeds: The seed of each trial.
        scores: The score of each trial.
        mean: The mean of the scores.
        sd: Their standard deviation; None with one seed.
        behind: The score of the first finalist minus its own, paired by seed; None for the first.
    """

    params: Params
    label: str
    trials: list[int]
    seeds: list[int]
    scores: list[float]
    mean: float
    sd: float | None
    behind: Spread | None


class Pair(TypedDict):
    """Two trials that differ in one setting alone.

    Attributes:
        label: The values that both have, for a person.
        epochs: The number of epochs after which they are compared.
        of: The score with the first value.
        over: The score with the second value.
    """

    label: str
    epochs: int
    of: float
    over: float


class Comparison(Spread):
    """Two values of one setting, compared over all pairs of trials that differ in it alone.

    Attributes:
        setting: The key of the setting.
        of: The first value.
        over: The second value; differences are scores with the first value minus scores with the second.
        wins: Number of pairs in which the first value is better.
        pairs: The pairs.
    """

    setting: str
    of: str
    over: str
    wins: int
    pairs: list[Pair]


class Spent(TypedDict):
    """What a sweep has cost.

    Attributes:
        epochs_search: Epochs trained in stage 1.
        epochs_full_search: Epochs of stage 1 if every trial went to full length.
        epochs_finalists: Epochs trained in stage 2.
        seconds: Seconds of each stage.
        trial_seconds: Seconds of training and validation of all trials.
    """

    epochs_search: int
    epochs_full_search: int
    epochs_finalists: int
    seconds: dict[str, float]
    trial_seconds: float


class SweepSummary(TypedDict):
    """What a sweep found.

    Attributes:
        winner: The best values; None before any score.
        ranking: The numbers of the trials of stage 1, the best first.
        finalists: The sets of values of stage 2, the best first.
        pairs: Comparisons of single values.
        states: Number of trials in each state.
        spent: What the sweep has cost.
    """

    winner: Winner | None
    ranking: list[int]
    finalists: list[Finalist]
    pairs: list[Comparison]
    states: dict[str, int]
    spent: Spent
