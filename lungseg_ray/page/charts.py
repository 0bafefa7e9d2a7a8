"""Charts as JSON items that BokehJS draws. Text from outside the project is data in them, and never markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import BasicTicker, BasicTickFormatter, DataRange1d, FixedTicker, HoverTool, PrintfTickFormatter
from bokeh.plotting import ColumnDataSource, figure

from lungseg_ray.page.elements import Key
from lungseg_ray.sweep.summary import Pair
from lungseg_ray.text import counted

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The colours of Okabe and Ito, which people with any colour vision can tell apart, as `#rrggbb`. Their yellow is
left out, since it is faint on white."""

_GLYPHS = {"circle": "●", "square": "■", "triangle": "▲", "diamond": "◆", "inverted_triangle": "▼", "star": "★"}
_HEIGHT = 300
_GREY = "#999999"


@dataclass(frozen=True)
class Style:
    """The appearance of a group of points.

    Attributes:
        label: The name of the group, for the legend and for the text that is shown on hover.
        colour: The colour as `#rrggbb`.
        marker: The name of the Bokeh marker, one of the keys of `_GLYPHS`.
    """

    label: str
    colour: str
    marker: str

    @property
    def key(self) -> Key:
        """The entry of the group in a legend."""
        return Key(self.label, self.colour, _GLYPHS[self.marker])


@dataclass(frozen=True)
class Series:
    """Points of one style.

    Attributes:
        style: The style of all points.
        x: The horizontal coordinate of each point.
        y: The vertical coordinate of each point.
        notes: The text of each point that is shown on hover.
        hollow: Whether the points are drawn as outlines only.
    """

    style: Style
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str]
    hollow: bool = False


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Returns a style for each distinct name; the first 42 styles differ from one another."""
    markers = list(_GLYPHS)
    return {
        name: Style(name, COLOURS[number % len(COLOURS)], markers[number % len(markers)])
        for number, name in enumerate(dict.fromkeys(names))
    }


def scatter(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    lines: bool = False,
    x_log: bool = False,
    y_log: bool = False,
    y_bounds: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Builds a scatter chart.

    Args:
        series: The points to draw.
        x_title: The title of the x axis, with the unit.
        y_title: The title of the y axis, with the unit.
        lines: Whether a line joins the points of a series. Ticks of the x axis are then whole numbers where all are.
        x_log: Whether the x axis is logarithmic.
        y_log: Whether the y axis is logarithmic.
        y_bounds: The values at the bottom and at the top of the y axis; by default, the range of the points.

    Returns:
        The item that BokehJS draws.
    """
    options: dict[str, Any] = {"y_range": y_bounds} if y_bounds else {}
    plot = _figure(
        x_title, y_title, x_axis_type="log" if x_log else "linear", y_axis_type="log" if y_log else "linear", **options
    )
    if lines and all(float(x).is_integer() for one in series for x in one.x):
        plot.xaxis.ticker = BasicTicker(min_interval=1)
    for axis, log, values in (
        (plot.xaxis, x_log, [x for one in series for x in one.x]),
        (plot.yaxis, y_log, [y for one in series for y in one.y]),
    ):
        if log:
            axis.ticker = FixedTicker(ticks=_log_ticks(values))
            axis.formatter = PrintfTickFormatter(format="%g")
    for one in series:
        data = ColumnDataSource({"x": list(one.x), "y": list(one.y), "note": list(one.notes)})
        if lines:
            plot.line("x", "y", source=data, color=one.style.colour, line_width=1.5)
        _points(plot, data, "x", one.style, size=6 if lines else 10, hollow=one.hollow)
    _hover(plot, {x_title: f"@x{_digits(x_log)}", y_title: f"@y{_digits(y_log)}"})
    return _item(plot)


def histogram(
    values: Mapping[Style, Sequence[float]], x_title: str, y_title: str, *, whole: bool = False, bins: int = 32
) -> dict[str, Any]:
    """Builds a histogram in which the bars of each style are stacked on those of the styles before it.

    Args:
        values: The values to count, for each style; at least one value in total.
        x_title: The title of the x axis, with the unit.
        y_title: The title of the y axis, which names what is counted.
        whole: Whether the values are whole numbers. Each number then has a bar of its own if their range contains no
            more than `bins` numbers.
        bins: The largest number of bars.

    Returns:
        The item that BokehJS draws.
    """
    everything = np.concatenate([np.asarray(one, np.float64) for one in values.values()])
    low, high = float(everything.min()), float(everything.max())
    if whole:
        width = max(math.ceil((high - low + 1) / bins), 1)
        edges = np.arange(low, high + width + 1, width) - 0.5
    else:
        edges = np.histogram_bin_edges(everything, bins, (low, high if high > low else low + 1e-3))
    plot = _figure(x_title, y_title, y_range=DataRange1d(start=0))
    plot.xaxis.ticker = BasicTicker(min_interval=int(whole), desired_num_ticks=5)
    plot.xaxis.formatter = BasicTickFormatter(use_scientific=False)
    plot.yaxis.ticker = BasicTicker(min_interval=1)
    below = np.zeros(len(edges) - 1)
    for style, some in values.items():
        counts, _ = np.histogram(some, edges)
        there = counts > 0
        left, right = edges[:-1][there], edges[1:][there]
        data = ColumnDataSource(
            {
                "left": left.tolist(),
                "right": right.tolist(),
                "bottom": below[there].tolist(),
                "top": (below + counts)[there].tolist(),
                "count": counts[there].tolist(),
                "note": [
                    f"{style.label}, {_bar(start, end, whole=whole)}" for start, end in zip(left, right, strict=True)
                ],
            }
        )
        plot.quad("left", "right", "top", "bottom", source=data, color=style.colour, line_color="white", name="points")
        below += counts
    _hover(plot, {y_title: "@count"})
    return _item(plot)


def dumbbells(rows: Sequence[Pair], of: Style, over: Style, x_title: str) -> dict[str, Any]:
    """Builds a chart with a line for each pair of trials, from one score to the other.

    Args:
        rows: The pairs of trials.
        of: The style of the scores `of`.
        over: The style of the scores `over`.
        x_title: The title of the x axis, with the unit.

    Returns:
        The item that BokehJS draws.
    """
    plot = _figure(x_title, "", height=60 + 38 * len(rows), y_range=(-0.4, len(rows) - 0.3))
    plot.yaxis.visible = False
    plot.ygrid.visible = False
    scores = {"of": [row["of"] for row in rows], "over": [row["over"] for row in rows]}
    data = ColumnDataSource(
        {
            **scores,
            "y": list(range(len(rows)))[::-1],
            "left": [min(min(values) for values in scores.values())] * len(rows),
            "label": [row["label"] for row in rows],
            "note": [f"{row['label']}, both after {counted(row['epochs'], 'epoch')}" for row in rows],
        }
    )
    # The label is above its line, so that a long label does not reduce the width of the chart.
    plot.text("left", "y", "label", source=data, y_offset=-7, text_font_size="12px", text_baseline="bottom")
    plot.segment("of", "y", "over", "y", source=data, color=_GREY, line_width=2)
    for x, style in (("over", over), ("of", of)):
        _points(plot, data, x, style, size=11, hollow=False)
    _hover(plot, {of.key.glyph: "@of{0.0000}", over.key.glyph: "@over{0.0000}"})
    return _item(plot)


def _figure(x_title: str, y_title: str, *, height: int = _HEIGHT, **options: Any) -> figure:
    # No drag tool is active at first, so that a finger on the chart scrolls the page until the reader selects zoom.
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="box_zoom,reset",
        active_drag=None,
        x_axis_label=x_title,
        y_axis_label=y_title,
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.outline_line_color = None
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.minor_tick_line_color = None
    plot.grid.grid_line_alpha = 0.5
    return plot


def _bar(start: float, end: float, *, whole: bool) -> str:
    """Formats the range of the values that a bar counts."""
    if not whole:
        return f"{start:.3g} to {end:.3g}"
    return f"{start + 0.5:.0f}" if end - start == 1 else f"{start + 0.5:.0f} to {end - 0.5:.0f}"


def _digits(log: bool) -> str:
    """Returns the format of a value that is shown on hover."""
    return "{%.3g}" if log else "{0.[0000]}"


def _log_ticks(values: Iterable[float]) -> list[float]:
    """Returns 1, 2 and 5 times the powers of ten that enclose the values, as the ticks of a logarithmic axis."""
    positive = [value for value in values if value > 0] or [1.0]
    powers = range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
    return [mantissa * 10.0**power for power in powers for mantissa in (1, 2, 5)]


def _points(plot: figure, data: ColumnDataSource, x: str, style: Style, *, size: int, hollow: bool) -> None:
    plot.scatter(
        x,
        "y",
        source=data,
        marker=style.marker,
        size=size,
        line_color=style.colour,
        line_width=1.5,
        fill_color="white" if hollow else style.colour,
        fill_alpha=0.9,
        name="points",
    )


def _hover(plot: figure, values: dict[str, str]) -> None:
    """Shows the note and some values of a point on hover; BokehJS escapes the data, and the names are constants."""
    points: list[Any] = [renderer for renderer in plot.renderers if renderer.name == "points"]
    rows = "".join(f"<div>{name}: {value}</div>" for name, value in values.items())
    # The text is narrow, so that it fits on one side of the point on a phone.
    words = f'<div style="max-width: 150px; overflow-wrap: anywhere"><b>@note</b>{rows}</div>'
    plot.add_tools(HoverTool(renderers=points, tooltips=words, visible=False))


def _item(plot: figure) -> dict[str, Any]:
    return dict(json_item(plot))
