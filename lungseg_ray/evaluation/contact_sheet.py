"""The contact sheet of an evaluation: one picture that shows images with their true and their predicted outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lungseg_ray.imaging import PREDICTED, TRUTH, figure_png, fit_labels_to, fit_to, hex_colour, overlay

_PANEL_PIXELS = 512


@dataclass(frozen=True)
class Panel:
    """One image of a contact sheet, with its outlines.

    Attributes:
        title: The text above the image.
        image: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
        truth: (H, W) uint8 label map, the true mask.
        prediction: (H, W) uint8 label map, the predicted mask.
    """

    title: str
    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    prediction: npt.NDArray[np.uint8]


def contact_sheet(panels: Mapping[str, Sequence[Panel]], class_names: Sequence[str]) -> bytes:
    """Draws a contact sheet with one row of panels for each name, and a legend.

    Args:
        panels: The panels of each row, by the name of the row; at least one row.
        class_names: The names of the labels from 1 on, for the legend.

    Returns:
        The content of a PNG file.
    """
    columns = max(len(row) for row in panels.values())
    # The height of a row is that of its tallest image, as a multiple of the width of a panel, plus 0.2 for the title.
    heights = [max(panel.image.shape[0] / panel.image.shape[1] for panel in row) + 0.2 for row in panels.values()]
    figure = Figure(figsize=(3.1 * columns, 3.1 * sum(heights) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(len(panels), columns, squeeze=False, height_ratios=heights)
    for line, (name, row) in zip(axes, panels.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, panel in zip(line, row, strict=False):
            axis.imshow(_drawn(panel))
            axis.set_title(panel.title, fontsize=8)
        line[0].text(-0.04, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="right", fontsize=11)
    handles = [Line2D([], [], color=hex_colour(TRUTH), label="true outline")]
    handles += [
        Line2D([], [], color=hex_colour(PREDICTED[number % len(PREDICTED)]), label=f"predicted {name}")
        for number, name in enumerate(class_names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure_png(figure)


def _drawn(panel: Panel) -> npt.NDArray[np.uint8]:
    masks = [fit_labels_to(mask, _PANEL_PIXELS) for mask in (panel.prediction, panel.truth)]
    return overlay(fit_to(panel.image, _PANEL_PIXELS), masks[0], masks[1])
