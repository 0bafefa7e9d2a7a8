"""The charts of the page of a sweep (curves, and scores against size, time and learning rate) and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lungseg_ray.page import charts, pictures
from lungseg_ray.page.elements import Chapter, Chart, Charts, Note, Part
from lungseg_ray.page.sweep_view import SweepView, value_of
from lungseg_ray.run.exported import SIDECAR
from lungseg_ray.run.folder import BEST
from lungseg_ray.run.progress import score_of
from lungseg_ray.storage import Location
from lungseg_ray.sweep.ledger import Trial, describe_params

ENCODER, ARCHITECTURE, RATE = "model.encoder", "model.architecture", "optim.lr"
_MOST_LOOKS = 12
"""The largest number of sets of values that have a style each; with more, their lines would be hard to distinguish."""


def curves(view: SweepView) -> Iterator[Chapter]:
    """Yields a chapter with the score against the epoch: a panel for each architecture, a line for each trial."""
    histories = {trial.number: history for trial in view.search if (history := view.sweep.history(trial))}
    trials = [trial for trial in view.search if trial.number in histories]
    if not trials:
        return
    looks = view.styles(ENCODER)
    names = {trial.number: value_of(trial, ENCODER) for trial in trials}
    others = {trial.number: _others(trial) for trial in trials}
    if ENCODER not in view.job.sweep.space and len(set(others.values())) <= _MOST_LOOKS:
        looks, names = charts.styles(others.values()), others
    values = [score_of(row) for history in histories.values() for row in history]
    margin = 0.03 * (max(values) - min(values)) + 1e-4
    panels: dict[str, list[charts.Series]] = {name: [] for name in view.styles(ARCHITECTURE)}
    for trial in trials:
        history = histories[trial.number]
        epochs, scores = [row["epoch"] for row in history], [score_of(row) for row in history]
        notes = [_note(trial)] * len(history)
        panels[value_of(trial, ARCHITECTURE)].append(charts.Series(looks[names[trial.number]], epochs, scores, notes))
    made = [
        Chart(
            name if ARCHITECTURE in view.job.sweep.space else "",
            charts.scatter(
                series, "epoch", view.score, lines=True, y_bounds=(min(values) - margin, max(values) + margin)
            ),
        )
        for name, series in panels.items()
        if series
    ]
    yield Chapter(
        "Training curves",
        f"The {view.score} after each epoch of the search, a line for each trial; short lines are trials that left off "
        "early; the magnifier that a touch brings up zooms.",
        [Charts(made, [look.key for look in looks.values()])],
    )


def quality(view: SweepView) -> Iterator[Chapter]:
    """Yields a chapter with scores against the number of parameters and against time, by architecture."""
    sizes = _series(view, ARCHITECTURE, lambda trial: trial.parameters and trial.parameters / 1e6)
    times = _series(view, ARCHITECTURE, lambda trial: trial.seconds or None)
    axes = (("Against size", "parameters, millions", sizes), ("Against time", "training and validation, s", times))
    made = [Chart(title, charts.scatter(series, x_title, view.score)) for title, x_title, series in axes if series]
    if made:
        yield Chapter(
            "Quality and cost",
            "Each point is a trial of the search, its values on hover or touch; up and left is better; rings are "
            "trials that did not go to full length.",
            [Charts(made, [look.key for look in view.styles(ARCHITECTURE).values()])],
        )


def rates(view: SweepView) -> Iterator[Chapter]:
    """Yields a chapter with scores against the learning rate, by encoder, if the learning rate is searched."""
    series = _series(view, ENCODER, lambda trial: trial.params.get(RATE))
    if series:
        item = charts.scatter(series, "learning rate (optim.lr)", view.score, x_log=True)
        yield Chapter(
            "Learning rate",
            "Each point is a trial of the search; rings are trials that did not go to full length.",
            [Charts([Chart("", item)], [look.key for look in view.styles(ENCODER).values()])],
        )


def overlays(view: SweepView, shards: Location, fingerprint: str) -> Chapter:
    """Builds a chapter with what the best and the smallest trial predict on validation images.

    Args:
        view: The sweep.
        shards: The folder of the shards.
        fingerprint: The fingerprint of the shards that the trials were trained on.

    Returns:
        The chapter, with a note in place of the pictures if they cannot be drawn.
    """
    # The sidecar is the last file of a model that is written, so that a model with a sidecar is complete.
    there = [trial for trial in view.order() if (_best(view, trial) / SIDECAR).exists()]
    parts: list[Part] = []
    if there:
        best, smallest = there[0], min(there, key=lambda trial: trial.parameters or float("inf"))
        models = {f"best: {_named(best)}": _best(view, best)}
        if smallest.parameters == best.parameters:
            parts.append(Note("The best one is the smallest one, too."))
        else:
            models[f"smallest: {_named(smallest)}"] = _best(view, smallest)
        parts.append(pictures.overlays(models, shards, fingerprint=fingerprint))
    else:
        parts.append(Note("There are no pictures: no trial has left its best model yet."))
    return Chapter(
        "What the models see",
        "Validation images spread evenly over the set, with the true outline and those of the best and of the "
        "smallest trial among those that left a model.",
        parts,
    )


def _others(trial: Trial) -> str:
    return describe_params({key: value for key, value in trial.params.items() if key != ARCHITECTURE})


def _note(trial: Trial) -> str:
    return f"trial {trial.number}: {trial.description}"


def _series(view: SweepView, setting: str, x: Callable[[Trial], float | None]) -> list[charts.Series]:
    """Returns the scores against x with a style for each value of a setting; trials that ended early are hollow."""
    made = []
    for name, style in view.styles(setting).items():
        for hollow in (False, True):
            points = [
                (at, trial.score, _note(trial))
                for trial in view.search
                if value_of(trial, setting) == name and (trial.state != "done") == hollow
                if (at := x(trial)) is not None and trial.score is not None
            ]
            if points:
                xs, ys, notes = zip(*points, strict=True)
                made.append(charts.Series(style, xs, ys, notes, hollow))
    return made


def _best(view: SweepView, trial: Trial) -> Location:
    return view.sweep.run(trial).place / BEST


def _named(trial: Trial) -> str:
    size = f", {trial.parameters / 1e6:.1f} M parameters" if trial.parameters else ""
    return f"trial {trial.number}, {trial.description}{size}"
