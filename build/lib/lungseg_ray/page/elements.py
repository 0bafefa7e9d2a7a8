"""The elements of a page. `template.html` renders each kind of element and escapes all text in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lungseg_ray.run.summary import IntervalFigures
from lungseg_ray.sweep.summary import Spread

Item = TypeVar("Item")

NONE = "–"
"""The text that stands for a missing value."""


@dataclass(frozen=True)
class KeyFigure:
    """A figure at the top of a page.

    Attributes:
        name: What the figure is.
        value: The figure as text.
        detail: A short explanation of the figure.
    """

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class KeyFigures:
    """The figures at the top of a page.

    Attributes:
        facts: The figures.
        kind: The name of this kind of element in `template.html`.
    """

    facts: list[KeyFigure]
    kind: str = "facts"


@dataclass(frozen=True)
class Note:
    """A paragraph.

    Attributes:
        text: The text of the paragraph; may be empty.
        heading: The heading above the paragraph; empty for none.
        kind: The name of this kind of element in `template.html`.
    """

    text: str
    heading: str = ""
    kind: str = "note"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: The heading of the column.
        filtered: Whether the reader can filter the rows by the values of the column.
    """

    title: str
    filtered: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: The text of the cell.
        order: The value by which the rows are sorted.
        link: The address that the text links to; empty for none.
    """

    text: str
    order: float | str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: The columns, in their order.
        rows: The cells of each row, in the order of the columns.
        sortable: Whether the reader can sort and search the table.
        kind: The name of this kind of element in `template.html`.
    """

    columns: list[Column]
    rows: list[list[Cell]]
    sortable: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Key:
    """An entry of a legend.

    Attributes:
        label: The text of the entry.
        colour: The colour of the glyph, as `#rrggbb`.
        glyph: The character before the text.
    """

    label: str
    colour: str
    glyph: str


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: The title above the chart; empty for none.
        item: The item that BokehJS draws.
        keys: The entries of the legend of this chart.
    """

    title: str
    item: dict[str, Any]
    keys: Sequence[Key] = ()


@dataclass(frozen=True)
class Charts:
    """Charts beside each other.

    Attributes:
        charts: The charts.
        keys: The entries of the legend that the charts share.
        kind: The name of this kind of element in `template.html`.
    """

    charts: list[Chart]
    keys: Sequence[Key] = ()
    kind: str = "charts"


@dataclass(frozen=True)
class Image:
    """A picture.

    Attributes:
        uri: The picture as a data URI; empty if it cannot be shown.
        text: The text below the picture.
    """

    uri: str
    text: str


@dataclass(frozen=True)
class ImageGrid:
    """Rows of pictures.

    Attributes:
        heads: The headings of the columns.
        rows: The pictures of each row, in the order of the columns.
        width: The largest width of a picture, in pixels.
        keys: The entries of the legend.
        kind: The name of this kind of element in `template.html`.
    """

    heads: list[str]
    rows: list[list[Image]]
    width: int
    keys: Sequence[Key] = ()
    kind: str = "pictures"


@dataclass(frozen=True)
class SettingsTree:
    """Nested settings that the reader can expand.

    Attributes:
        title: The title of the tree.
        tree: The settings, in nested dictionaries.
        open: Whether the tree is expanded at first.
        kind: The name of this kind of element in `template.html`.
    """

    title: str
    tree: dict[str, Any]
    open: bool = False
    kind: str = "tree"


Part = KeyFigures | Note | Table | Charts | ImageGrid | SettingsTree


@dataclass(frozen=True)
class Chapter:
    """A section of a page.

    Attributes:
        title: The heading.
        caption: A sentence that explains how to read the section.
        parts: The elements of the section.
    """

    title: str
    caption: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: The title.
        warning: What the reader must know first; empty for none.
        chapters: The sections of the page.
    """

    title: str
    warning: str
    chapters: list[Chapter]


def make_table(
    rows: Iterable[Item], columns: dict[Column, Callable[[Item], Cell | float | str | None]], *, sortable: bool = False
) -> Table:
    """Builds a table with a row for each item.

    Args:
        rows: The items.
        columns: For each column, the function that returns its value for an item.
        sortable: Whether the reader can sort and search the table.

    Returns:
        The table.
    """
    cells = [[make_cell(of(row)) for of in columns.values()] for row in rows]
    return Table(list(columns), cells, sortable)


def make_cell(value: Cell | float | str | None) -> Cell:
    """Converts a value to a cell that is sorted by the value; a float is shown with four significant digits."""
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell(NONE)
    return Cell(f"{value:.4g}" if isinstance(value, float) else str(value), value)


def decimals(value: float | None, digits: int) -> Cell:
    """Converts a number to a cell with `digits` decimals that is sorted by the full precision of the number."""
    return make_cell(None) if value is None or math.isnan(value) else Cell(f"{value:.{digits}f}", value)


def interval(found: IntervalFigures | Spread, digits: int = 4, *, sign: str = "") -> str:
    """Formats a mean with its confidence interval, such as `0.9500 (0.9410 to 0.9580)`.

    Args:
        found: The `mean`, and the bounds `low` and `high`, which are None if there is no interval.
        digits: The number of decimals.
        sign: "+" if positive numbers have a sign, else empty.

    Returns:
        The text; the mean alone if there is no interval.
    """
    text = f"{found['mean']:{sign}.{digits}f}"
    if found["low"] is None:
        return text
    return f"{text} ({found['low']:{sign}.{digits}f} to {found['high']:{sign}.{digits}f})"
