"""Means and intervals over the figures of many images, and their table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from lungseg_ray.config import EvaluateSettings
from lungseg_ray.corpus import STUDY_KEY
from lungseg_ray.errors import UserError
from lungseg_ray.numerics import metrics

FIGURES = ("dice", "iou", "hd95", "assd")


RESULT = "evaluation.json"


def summarise_images(
    rows: Sequence[dict[str, Any]], class_names: Sequence[str], settings: EvaluateSettings
) -> dict[str, Any]:
    """Means with their 95 % bootstrap intervals over patients, for all images and for each subgroup.

    Returns:
        `n`, `n_empty` (images in which truth or prediction, but not both, is empty), `patients`, and for each figure
        `mean`, `low`, `high`; `iou_pooled`, over the pixels of all images together; `classes` where there are several,
        with the background's `iou_pooled` and the mean of all as `iou_pooled_with_background`; `clean_up`, the same
        after cleaning; `groups`, the same for each value of each subgroup.
    """
    result = _figures(rows, class_names, settings, "")
    if settings.clean_up:
        result["clean_up"] = _figures(rows, class_names, settings, "clean_")
    result["groups"] = {
        column: {
            value: _figures([row for row in rows if row.get(column) == value], class_names, settings, "")
            for value in values
        }
        for column, values in _subgroups(rows, settings).items()
    }
    return result


def _figures(
    rows: Sequence[dict[str, Any]], class_names: Sequence[str], settings: EvaluateSettings, prefix: str
) -> dict[str, Any]:
    patients = [row["patient_id"] for row in rows]

    def interval(key: str) -> dict[str, float]:
        values = [row[prefix + key] for row in rows]
        return metrics.bootstrap_interval(values, patients, resamples=settings.resamples)._asdict()

    def pooled(suffix: str) -> float:
        tp, fp, fn = (sum(row[f"{prefix}{key}{suffix}"] for row in rows) for key in ("tp", "fp", "fn"))
        return tp / (tp + fp + fn) if tp + fp + fn else 1.0

    known = [key for key in (*FIGURES, "hd95_mm", "assd_mm") if all(prefix + key in row for row in rows)]
    result: dict[str, Any] = {
        "n": len(rows),
        "n_empty": sum(row[f"{prefix}empty"] > 0 for row in rows),
        "patients": len(set(patients)),
        **{key: interval(key) for key in known},
    }
    if len(class_names) == 1:
        return {**result, "iou_pooled": pooled("")}
    shares = {name: pooled(f"_{name}") for name in ("background", *class_names)}
    result["iou_pooled"] = float(np.mean([shares[name] for name in class_names]))
    result["iou_pooled_with_background"] = float(np.mean(list(shares.values())))
    result["classes"] = {
        name: {**{key: interval(f"{key}_{name}") for key in known}, "iou_pooled": shares[name]} for name in class_names
    } | {"background": {"iou_pooled": shares["background"]}}
    return result


def _subgroups(rows: Sequence[dict[str, Any]], settings: EvaluateSettings) -> dict[str, list[str]]:
    texts = {key for row in rows for key, value in row.items() if isinstance(value, str)}
    columns = sorted(texts - {"image_id", "patient_id", STUDY_KEY, "sha256"})
    values = {key: sorted({row[key] for row in rows if row.get(key)}) for key in columns}
    if settings.subgroups is None:
        return {key: found for key, found in values.items() if 2 <= len(found) <= 12}
    missing = [key for key in settings.subgroups if key not in values]
    if missing:
        raise UserError(f"evaluate.subgroups: the corpus has no column {missing}; it has {sorted(values)}.")
    return {key: values[key] for key in settings.subgroups}


def figures_table(result: dict[str, Any]) -> Table:
    """The figures of `evaluation.json` as a table for the terminal."""
    known = [key for key in (*FIGURES, "hd95_mm", "assd_mm") if key in result]
    drawn = Table("images", "n", *known, "IoU pooled", title="Mean over images (95 % interval over patients)")

    def add(name: str, figures: dict[str, Any]) -> None:
        cells = [f"{figures[key]['mean']:.4g} ({figures[key]['low']:.4g}-{figures[key]['high']:.4g})" for key in known]
        drawn.add_row(name, str(figures.get("n", "")), *cells, f"{figures['iou_pooled']:.4f}")

    add("all", result)
    for name, figures in result.get("classes", {}).items():
        if name != "background":
            add(f"  {name}", figures)
    notes = [f"Layout {result['layout']}"] if "layout" in result else []
    if result.get("unlabelled"):
        notes.append(f"{result['unlabelled']} images unlabelled")
    if result["set_aside"]:
        notes.append(f"{len(result['set_aside'])} files set aside, listed in {RESULT}")
    drawn.caption = "; ".join(notes) or None
    if "clean_up" in result:
        add("all, cleaned up", result["clean_up"])
    for column, values in result["groups"].items():
        for value, figures in values.items():
            add(f"{column} = {value}", figures)
    return drawn
