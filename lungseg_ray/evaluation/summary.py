"""Means and intervals over the figures of many images, and their table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from rich.table import Table

from lungseg_ray.config import EvaluateSettings
from lungseg_ray.corpus.record import STUDY_KEY
from lungseg_ray.evaluation.regions import REGIONS
from lungseg_ray.evaluation.table import FigureTable
from lungseg_ray.numerics import metrics
from lungseg_ray.run.summary import Detection, Distances, Evaluation, Figures, IntervalFigures, describe_detection
from lungseg_ray.text import named

FIGURES = ("dice", "iou", "hd95", "assd")
"""The figures that every image has."""
_ALL_FIGURES = (*FIGURES, "hd95_mm", "assd_mm")
RESULT = "evaluation.json"


def summarise_images(rows: FigureTable, class_names: Sequence[str], settings: EvaluateSettings) -> Evaluation:
    """Computes means over images with 95 % bootstrap intervals over patients, for all images and for each subgroup.

    Args:
        rows: The figures of each image, at least one.
        class_names: The names of the labels from 1 on.
        settings: The settings of the evaluation.

    Returns:
        The figures of all images, `clean_up` if it is asked for, `regions`, `groups`, and `missing_subgroups` if there
        are such.
    """
    result = cast(Evaluation, _figures(rows, class_names, settings, ""))
    if settings.clean_up:
        result["clean_up"] = _figures(rows, class_names, settings, "clean_")
    result["regions"] = {
        region: interval
        for region in REGIONS
        if (interval := _interval_where_known(rows, f"excess_{region}", settings))
    }
    result["groups"] = {
        column: {value: _figures(rows.of_group(column, value), class_names, settings, "") for value in values}
        for column, values in _subgroups(rows, settings).items()
    }
    if missing := [column for column in settings.subgroups or [] if column not in result["groups"]]:
        result["missing_subgroups"] = missing
    return result


def _interval_where_known(rows: FigureTable, key: str, settings: EvaluateSettings) -> IntervalFigures | None:
    """Returns the mean of a figure that some images do not have; None if none has it."""
    if not rows.have(key):
        return None
    known = ~np.isnan(rows[key])
    if not known.any():
        return None
    found = metrics.bootstrap_interval(rows[key][known], rows.patients[known], resamples=settings.resamples)
    return IntervalFigures(mean=found.mean, low=found.low, high=found.high)


def _figures(rows: FigureTable, class_names: Sequence[str], settings: EvaluateSettings, prefix: str) -> Figures:
    patients = rows.patients

    def interval(key: str) -> IntervalFigures:
        found = metrics.bootstrap_interval(rows[prefix + key], patients, resamples=settings.resamples)
        return IntervalFigures(mean=found.mean, low=found.low, high=found.high)

    def pooled(suffix: str) -> float:
        tp, fp, fn = (int(rows[f"{prefix}{key}{suffix}"].sum()) for key in ("tp", "fp", "fn"))
        return tp / (tp + fp + fn) if tp + fp + fn else 1.0

    def intervals(suffix: str) -> Distances:
        # Distances in mm count only if all images have them.
        known = [key for key in _ALL_FIGURES if rows.have(prefix + key)]
        return cast(Distances, {key: interval(f"{key}{suffix}") for key in known})

    result = cast(Figures, {"n": len(rows), "n_empty": 0, "patients": len(np.unique(patients)), **intervals("")})
    result["n_empty"] = int((rows[f"{prefix}empty"] > 0).sum())
    if len(class_names) == 1:
        result["iou_pooled"] = pooled("")
        if detection := _detection(rows, settings, prefix, ""):
            result["detection"] = detection
        return result
    shares = {name: pooled(f"_{name}") for name in ("background", *class_names)}
    result["iou_pooled"] = float(np.mean([shares[name] for name in class_names]))
    result["iou_pooled_with_background"] = float(np.mean(list(shares.values())))
    result["classes"] = {name: {**intervals(f"_{name}"), "iou_pooled": shares[name]} for name in class_names}
    for name in class_names:
        if detection := _detection(rows, settings, prefix, f"_{name}"):
            result["classes"][name]["detection"] = detection
    result["classes"]["background"] = {"iou_pooled": shares["background"]}
    return result


def _detection(rows: FigureTable, settings: EvaluateSettings, prefix: str, suffix: str) -> Detection | None:
    """Returns the figures of images with and without a class; None if all, or none, have it."""
    tp, fp, fn = (rows[f"{prefix}{key}{suffix}"] for key in ("tp", "fp", "fn"))
    has_it, is_predicted = tp + fn > 0, tp + fp > 0
    if has_it.all() or not has_it.any():
        return None
    values = rows[f"{prefix}dice{suffix}"][has_it]
    dice = metrics.bootstrap_interval(values, rows.patients[has_it], resamples=settings.resamples)
    return {
        "positives": int(has_it.sum()),
        "dice": IntervalFigures(mean=dice.mean, low=dice.low, high=dice.high),
        "sensitivity": float(is_predicted[has_it].mean()),
        "negatives": int((~has_it).sum()),
        "false_alarms": float(is_predicted[~has_it].mean()),
    }


def _subgroups(rows: FigureTable, settings: EvaluateSettings) -> dict[str, list[str]]:
    values = {key: found for key, found in rows.groups().items() if key != STUDY_KEY}
    if settings.subgroups is None:
        return {key: found for key, found in values.items() if 2 <= len(found) <= 12}
    return {key: values[key] for key in settings.subgroups if key in values}


def figures_table(result: Evaluation, *, narrow: bool = False) -> Table:
    """Returns the figures of an evaluation as a table for the terminal.

    Args:
        result: The figures.
        narrow: Whether each figure has a line of its own, and not a column.
    """
    known = [key for key in _ALL_FIGURES if key in result]
    columns = ("figure", "value") if narrow else (*known, "IoU pooled")
    table = Table("images", "n", *columns, title="Mean over images (95 % interval over patients)")

    def add(name: str, n: int | None, figures: Distances) -> None:
        found = [cast(IntervalFigures, figures[key]) for key in known]  # type: ignore[literal-required]
        cells = [f"{one['mean']:.4g} ({one['low']:.4g}-{one['high']:.4g})" for one in found]
        cells.append(f"{figures['iou_pooled']:.4f}")
        count = "" if n is None else str(n)
        if not narrow:
            table.add_row(name, count, *cells)
            return
        for number, (figure, cell) in enumerate(zip([*known, "IoU pooled"], cells, strict=True)):
            table.add_row("" if number else name, "" if number else count, figure, cell)

    add("all", result["n"], result)
    for name, figures in result.get("classes", {}).items():
        if name != "background":
            add(f"  {name}", None, figures)
    notes = [f"Layout {result['layout']}"] if "layout" in result else []
    if result.get("unlabelled"):
        notes.append(f"{result['unlabelled']} images unlabelled")
    if result["set_aside"]:
        notes.append(f"{len(result['set_aside'])} files set aside, listed in {RESULT}")
    if missing := result.get("missing_subgroups"):
        notes.append(f"The corpus has no column {named(missing)} (evaluate.subgroups)")
    notes += describe_detection(result)
    table.caption = "; ".join(notes) or None
    if "clean_up" in result:
        add("all, cleaned up", result["clean_up"]["n"], result["clean_up"])
    for column, values in result["groups"].items():
        for value, group in values.items():
            add(f"{column} = {value}", group["n"], group)
    return table
