"""The content of the page of a single run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lungseg_ray.config import TrainSettings, non_default
from lungseg_ray.page import charts
from lungseg_ray.page.elements import (
    Chapter,
    Chart,
    Charts,
    Column,
    Image,
    ImageGrid,
    KeyFigure,
    KeyFigures,
    Note,
    Page,
    Part,
    SettingsTree,
    decimals,
    interval,
    make_table,
)
from lungseg_ray.page.pictures import embedded
from lungseg_ray.run.event_log import LoggedEvent
from lungseg_ray.run.folder import ENVIRONMENT, EVALUATION, SHEET, Run
from lungseg_ray.run.progress import describe_best, rank_epochs
from lungseg_ray.run.summary import Robustness, RunSummary, ShiftFigures, describe_confidence, describe_detection
from lungseg_ray.storage import Location
from lungseg_ray.text import counted, duration

History = list[dict[str, float]]

_SHEET = 1200
"""The largest width of the contact sheet, in pixels."""
_COLUMNS = {
    "loss": ("training loss", 4),
    "val_loss": ("validation loss", 4),
    "val_iou": ("IoU", 4),
    "val_dice": ("Dice", 4),
    "images_per_second": ("images per s", 1),
    "seconds": ("time, s", 1),
    "memory_gib": ("memory of a worker, GiB", 2),
}
"""The title and the number of decimals of columns of the table of epochs, by their key in the history."""


def run_page(run: Run) -> Page:
    """Builds the page of a run, which need not be finished.

    Args:
        run: The run.

    Returns:
        The page.

    Raises:
        UserError: If there is no run, or if its configuration cannot be read.
    """
    settings = run.started_with().settings
    summary, history = run.summary(), run.read_history()
    chapters = [_headline(history, summary, settings.train)]
    if history:
        chapters += [_curves(history), _epochs(history)]
    sheet = run.place / EVALUATION / "test" / SHEET
    if sheet.exists():
        pictures = ImageGrid([""], [[Image(embedded(sheet.read_bytes()), "")]], _SHEET)
        chapters.append(
            Chapter(
                "Test images",
                "The worst, the median and the best by Dice, with true and predicted outlines.",
                [pictures],
            )
        )
    if summary and (test := summary["test"]) and "robustness" in test:
        chapters.append(_robustness(test["robustness"]))
    trees: list[Part] = [
        SettingsTree("What differs from the defaults", non_default(settings), open=True),
        SettingsTree("All settings", settings.model_dump(mode="json")),
        *environment(iter([run.place])),
    ]
    if events := run.events.read():
        chapters.append(_events(events))
    chapters.append(Chapter("Configuration", "What the run was started with, and where.", trees))
    warning = "" if summary else "This run is not finished: the page shows what is known so far."
    return Page(f"Run {run.place.name}", warning, chapters)


def _headline(history: History, summary: RunSummary | None, train: TrainSettings) -> Chapter:
    parts: list[Part] = []
    if history:
        best = rank_epochs(history)[0]
        of = f"of {len(history)}" if summary else f"of {len(history)} so far, {train.epochs} asked for"
        facts = [
            KeyFigure("Best epoch", f"{best['epoch']:.0f}", of),
            KeyFigure("Validation IoU", f"{best['val_iou']:.4f}", "mean over images at the size of the network"),
            KeyFigure("Validation Dice", f"{best['val_dice']:.4f}", "mean over images at the size of the network"),
        ]
        if summary and (test := summary["test"]):
            measured = f"{test['n']} images of {test['patients']} patients"
            facts += [
                KeyFigure("Test Dice", interval(test["dice"]), measured),
                KeyFigure("Test IoU", interval(test["iou"]), measured),
                KeyFigure("Test HD95, px", interval(test["hd95"], 1), measured),
            ]
            parts += [Note(text) for text in (*describe_detection(test), *describe_confidence(test))]
        elif summary:
            parts.append(Note("There are no test images."))
        facts.append(KeyFigure("Time", duration(sum(row["seconds"] for row in history)), "training and validation"))
        parts.insert(0, KeyFigures(facts))
    else:
        parts.append(Note("The run has finished no epoch yet."))
    return Chapter(
        "Result",
        f"The best epoch is the one with {describe_best(train.best_by)}; test figures are means over images as "
        "they are decoded, with 95 % bootstrap intervals over patients.",
        parts,
    )


def _events(events: Sequence[LoggedEvent]) -> Chapter:
    columns = {
        Column("time (UTC)"): lambda event: event["time"].removesuffix("Z").replace("T", " "),
        Column("event", filtered=True): lambda event: event["event"].replace("_", " "),
        Column("step"): lambda event: event["step"],
        Column("what happened"): lambda event: event["text"],
    }
    return Chapter(
        "Events",
        "Starts, losses of workers, retries, skipped steps, takeovers and stops, the oldest first.",
        [make_table(events, columns)],
    )


def _curves(history: History) -> Chapter:
    def chart(title: str, y_title: str, keys: dict[str, str], *, log: bool = False) -> Chart:
        styles = charts.styles(keys.values())
        epochs = [row["epoch"] for row in history]
        series = [
            charts.Series(styles[name], epochs, [row[key] for row in history], [name] * len(history))
            for key, name in keys.items()
        ]
        item = charts.scatter(series, "epoch", y_title, lines=True, y_log=log)
        return Chart(title, item, [style.key for style in styles.values()])

    rates = {"lr": "decoder and head", "encoder_lr": "encoder"}
    if all(row["lr"] == row["encoder_lr"] for row in history):
        rates = {"lr": "all parameters"}
    return Chapter(
        "Training curves",
        "Each point is an epoch; where the training loss falls on and the validation loss rises, the model learns its "
        "images by heart.",
        [
            Charts(
                [
                    chart("Loss", "loss", {"loss": "training", "val_loss": "validation"}),
                    chart("Quality on validation images", "mean over images", {"val_iou": "IoU", "val_dice": "Dice"}),
                    chart("Learning rate", "at the epoch's start", rates, log=True),
                ]
            )
        ],
    )


def _robustness(card: Robustness) -> Chapter:
    styles = charts.styles(["as it is", "changed"])
    lowest = min(dice for shift in card["shifts"].values() for dice in shift["dice"])

    def chart(name: str, shift: ShiftFigures) -> Chart:
        levels, plain = shift["levels"], [card["dice"]] * len(shift["levels"])
        series = [
            charts.Series(style, levels, dice, [f"{one:.4f}" for one in dice])
            for style, dice in zip(styles.values(), (plain, shift["dice"]), strict=True)
        ]
        bounds = (max(lowest - 0.02, 0.0), 1.0)
        item = charts.scatter(series, shift["about"], "Dice, mean over images", lines=True, y_bounds=bounds)
        return Chart(name.capitalize(), item, [style.key for style in styles.values()])

    return Chapter(
        "Robustness",
        f"The Dice of {counted(card['images'], 'test image')} that were changed in ways in which those of other "
        f"hospitals differ: {card['dice']:.4f} as they are, {card['mean']:.4f} as the mean of all changes.",
        [Charts([chart(name, shift) for name, shift in card["shifts"].items()])],
    )


def _epochs(history: History) -> Chapter:
    def column(key: str, digits: int) -> Any:
        return lambda row: decimals(row.get(key), digits)

    columns = {
        Column("epoch"): lambda row: row["epoch"],
        **{Column(title): column(key, digits) for key, (title, digits) in _COLUMNS.items()},
        Column("learning rate"): lambda row: row["lr"],
        Column("of the encoder"): lambda row: row["encoder_lr"],
    }
    return Chapter("Epochs", "A click on a column's title sorts.", [make_table(history, columns, sortable=True)])


def _is_shallow(tree: object, depth: int = 3) -> bool:
    """Whether a tree of values has few levels, as what a run records of its environment has."""
    if isinstance(tree, dict | list):
        parts = tree.values() if isinstance(tree, dict) else tree
        return depth > 0 and all(_is_shallow(part, depth - 1) for part in parts)
    return True


def environment(runs: Iterator[Location]) -> Iterator[Part]:
    """Yields the environment of the first run that has recorded one; nothing if no run has."""
    for place in runs:
        try:
            found = json.loads((place / ENVIRONMENT).read_text())
        except (FileNotFoundError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and _is_shallow(found):
            yield SettingsTree(f"Environment, as {place.name} found it", found)
            return
