"""The content of the page of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from lungseg_ray.config import Dimension
from lungseg_ray.page import charts
from lungseg_ray.page.elements import (
    Cell,
    Chapter,
    Chart,
    Charts,
    Column,
    KeyFigure,
    KeyFigures,
    Note,
    Page,
    Part,
    SettingsTree,
    decimals,
    interval,
    make_cell,
    make_table,
)
from lungseg_ray.page.run_page import environment
from lungseg_ray.page.sweep_charts import curves, overlays, quality, rates
from lungseg_ray.page.sweep_view import SweepView
from lungseg_ray.run.progress import describe_best
from lungseg_ray.run.summary import IntervalFigures
from lungseg_ray.storage import Location
from lungseg_ray.sweep import compare
from lungseg_ray.sweep.ledger import FOLDER, Sweep, Trial
from lungseg_ray.sweep.summary import Comparison, Spread
from lungseg_ray.text import counted, duration

Show = Callable[[Any], Cell | float | str | None]

_TEST = {"dice": ("Dice", 4), "iou": ("IoU", 4), "hd95": ("HD95, px", 1)}


def sweep_page(sweep: Sweep, *, shards: Location | None, base: str) -> Page:
    """Builds the page of a sweep, which need not be finished.

    Args:
        sweep: The sweep.
        shards: The folder of its shards; None for the folder that contained them during training.
        base: The beginning of the links to the folders of the trials; empty for a page in the folder of the sweep.

    Returns:
        The page.

    Raises:
        UserError: If there is no sweep, or if it cannot be read.
    """
    started_with, trials = sweep.started_with(), sweep.trials()
    found = compare.summarise_sweep(started_with.settings, trials, sweep.seconds())
    view = SweepView(sweep, started_with.settings, trials, found, sweep.summary() is not None, base)
    root = shards or started_with.settings.shards.root
    chapters = [
        _headline(view),
        _finalists(view),
        _pairs(view),
        _trials(view),
        *curves(view),
        *quality(view),
        *rates(view),
        overlays(view, root, started_with.shards),
        _configuration(view),
    ]
    warning = "" if view.finished else "This sweep is not finished: the page shows what is known so far."
    return Page(f"Sweep {started_with.settings.runs.name}", warning, chapters)


def _headline(view: SweepView) -> Chapter:
    winner, spent = view.found["winner"], view.found["spent"]
    facts = []
    if winner:
        name = "Winner" if view.finished else "Best so far"
        if winner["by"] == "finalists":
            rows = view.found["finalists"]
            how = f"the highest mean of {counted(len(rows), 'finalist')}, each trained again with other seeds"
            first = rows[0]
            sd = f" ± {first['sd']:.4f}" if first["sd"] is not None else ""
            score, of = (
                f"{first['mean']:.4f}{sd}",
                f"mean and standard deviation of {counted(len(first['seeds']), 'seed')}",
            )
        else:
            how = "the best of the search, by one seed: a small lead may be chance"
            best = next(view.order())
            score, of = f"{best.score:.4f}", f"trial {best.number}, after {counted(best.epochs, 'epoch')}"
        facts = [KeyFigure(name, winner["label"], how), KeyFigure(f"Its {view.score}", score, of)]
    done, whole = spent["epochs_search"], spent["epochs_full_search"]
    share = f" of {whole} ({100 * done / whole:.0f} %)" if whole else ""
    facts += [
        KeyFigure(
            "Trials",
            str(len(view.trials)),
            ", ".join(f"{number} {state}" for state, number in view.found["states"].items()),
        ),
        KeyFigure(
            "Epochs of the search",
            f"{done}{share}",
            f"of what all its trials would take at full length; the finalists took {spent['epochs_finalists']} more",
        ),
        KeyFigure(
            "Time",
            duration(sum(spent["seconds"].values())),
            ", ".join(f"{stage}: {duration(seconds)}" for stage, seconds in spent["seconds"].items()),
        ),
        KeyFigure("Time of all trials", duration(spent["trial_seconds"]), "training and validation, added up"),
    ]
    notes: list[Part] = [] if winner else [Note("No trial has a score yet.")]
    return Chapter(
        "Result",
        f"The score is the {view.score} (0 to 1, higher is better) at the best epoch, which is the one with "
        f"{describe_best(view.job.train.best_by)}.",
        [*notes, KeyFigures(facts)],
    )


def _finalists(view: SweepView) -> Chapter:
    rows = view.found["finalists"]
    by_number = {trial.number: trial for trial in view.trials}
    tests = {
        number: (view.sweep.run(by_number[number]).summary() or {}).get("test")
        for row in rows
        for number in row["trials"]
    }
    columns: dict[Column, Show] = {
        Column("values"): lambda row: row["label"],
        Column(f"{view.figure}, mean"): lambda row: decimals(row["mean"], 4),
        Column("sd"): lambda row: decimals(row["sd"], 4),
        Column("seeds"): lambda row: ", ".join(map(str, row["seeds"])),
        Column("behind the first (95 % interval)"): lambda row: _figure(row["behind"], 4),
        Column("what that says"): lambda row: _verdict(row["behind"]),
    }
    parts: list[Part] = [make_table(rows, columns)] if rows else [Note("No finalist has been trained to its end.")]
    measured = [(row["label"], number, test) for row in rows for number in row["trials"] if (test := tests[number])]
    if measured:
        columns = {Column("values"): lambda one: one[0], Column("trial"): lambda one: one[1]}
        columns |= {Column(title): _test(key, digits) for key, (title, digits) in _TEST.items()}
        parts += [
            Note("A row for each seed, with 95 % bootstrap intervals over patients.", "On the test images"),
            make_table(measured, columns),
        ]
    return Chapter(
        "Finalists",
        "The best of the search, trained again with other seeds and compared seed by seed; an interval that "
        "contains zero means that the difference may be chance.",
        parts,
    )


def _test(key: str, digits: int) -> Show:
    return lambda one: _figure(one[2].get(key), digits)


def _figure(found: IntervalFigures | Spread | None, digits: int) -> Cell:
    """Returns a cell with a mean and its confidence interval that is sorted by the mean."""
    return make_cell(None) if not found or found["mean"] is None else Cell(interval(found, digits), found["mean"])


def _verdict(behind: Spread | None) -> str:
    if behind is None:
        return "the first"
    if behind["low"] is None:
        return "too few to tell"
    return "behind" if behind["low"] > 0 else "may be chance"


def _pairs(view: SweepView) -> Chapter:
    parts: list[Part] = []
    for pair in view.found["pairs"]:
        looks = view.styles(pair["setting"])
        of, over = looks[pair["of"]], looks[pair["over"]]
        chart = Chart("", charts.dumbbells(pair["pairs"], of, over, view.score))
        parts += [
            Note(_said(pair, view.figure), f"{pair['of']} minus {pair['over']}"),
            Charts([chart], [of.key, over.key]),
        ]
    return Chapter(
        "Value against value",
        "Trials that differ in one setting alone, joined by a line and compared after as many epochs as both have; "
        "intervals are 95 % (Student's t over the pairs).",
        parts or [Note("No two trials with a score differ in one setting alone.")],
    )


def _said(pair: Comparison, figure: str) -> str:
    of, over, name = pair["of"], pair["over"], pair["setting"]
    text = (
        f"{of} is better in {pair['wins']} of {counted(pair['n'], 'pair')} that differ in {name} alone; the mean "
        f"difference in {figure} is {interval(pair, sign='+')}. "
    )
    if pair["low"] is None or pair["high"] is None:
        return f"{text}One pair has no interval, and does not tell which is better."
    if pair["low"] <= 0 <= pair["high"]:
        return f"{text}The interval contains zero: these trials do not tell which is better."
    return f"{text}The interval does not contain zero: {of if pair['low'] > 0 else over} is better here."


def _trials(view: SweepView) -> Chapter:
    space = view.job.sweep.space
    names = Counter(name.rsplit(".", 1)[1] for name in space)
    titles = {name: last if names[last := name.rsplit(".", 1)[1]] == 1 else name for name in space}
    searched = {Column(titles[name], space[name].values is not None): _value(name) for name in space}
    columns: dict[Column, Show] = {
        Column("trial"): lambda trial: trial.number,
        **searched,
        Column("seed"): lambda trial: trial.seed,
        Column("stage", filtered=True): lambda trial: trial.stage,
        Column("state", filtered=True): lambda trial: trial.state,
        Column("epochs"): lambda trial: trial.epochs,
        Column("best epoch"): lambda trial: trial.best_epoch,
        Column(view.figure): lambda trial: decimals(trial.score, 4),
        Column("Dice"): lambda trial: decimals(trial.val_dice, 4),
        Column("loss"): lambda trial: decimals(trial.val_loss, 4),
        Column("parameters, M"): lambda trial: decimals(trial.parameters and trial.parameters / 1e6, 2),
        Column("GFLOPs"): lambda trial: decimals(trial.gflops, 2),
        Column("time, s"): lambda trial: decimals(trial.seconds, 0),
        Column("s per epoch"): lambda trial: decimals(trial.seconds / trial.epochs if trial.epochs else None, 1),
        Column("start-up, s"): lambda trial: decimals(trial.startup, 1),
        Column("memory, GiB"): lambda trial: decimals(trial.memory and trial.memory / 2**30, 2),
        Column("run"): lambda trial: Cell(trial.name, trial.name, f"{view.base}{FOLDER}/{quote(trial.name)}/"),
        Column("reason"): lambda trial: trial.reason or None,
    }
    return Chapter(
        "All trials",
        "A click on a column's title sorts; the sign beside it chooses among its values; IoU, Dice and loss are of "
        "the validation images; paused trials left off early because others were better.",
        [make_table(view.trials, columns, sortable=True)] if view.trials else [Note("There is no trial yet.")],
    )


def _value(name: str) -> Show:
    def show(trial: Trial) -> float | str | None:
        value = trial.params.get(name)
        # A Boolean is a number in Python, but the table shows it as text.
        return str(value) if isinstance(value, bool | list | dict) else value

    return show


def _configuration(view: SweepView) -> Chapter:
    space = view.job.sweep.space
    shared = view.job.model_dump(mode="json", exclude={"sweep"})
    for name, dimension in space.items():
        for key in (name, *dimension.also):
            _drop(shared, key)
    columns: dict[Column, Show] = {
        Column("searched setting"): lambda item: item[0],
        Column("how"): lambda item: next(iter(_way(item[1]))),
        Column("values"): lambda item: (", " if item[1].values else " to ").join(map(str, *_way(item[1]).values())),
        Column("set to the same"): lambda item: ", ".join(item[1].also) or None,
    }
    parts: list[Part] = [make_table(list(space.items()), columns)] if space else [Note("No setting is searched.")]
    parts += [
        SettingsTree("How it was searched", view.job.sweep.model_dump(mode="json", exclude={"space"})),
        SettingsTree("What all trials share", shared),
        *environment(view.sweep.run(trial).place for trial in view.trials),
    ]
    return Chapter("Configuration", "What differs between trials, what they share, and where they were trained.", parts)


def _way(dimension: Dimension) -> dict[str, Any]:
    """Returns the values of a dimension of the search space, by the way in which they are specified."""
    return dimension.model_dump(exclude={"also"}, exclude_none=True)


def _drop(tree: dict[str, Any], key: str) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree[section]
    del tree[leaf]
