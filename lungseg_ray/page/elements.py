"""What a page is made of; `template.html` draws each kind, and escapes all text in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

NONE = "–"
"""Where there is no value."""


@dataclass(frozen=True)
class KeyFigure:
    """A figure of the headline: what it is, the figure, how it is meant."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class KeyFigures:
    """The figures of the headline."""

    facts: list[KeyFigure]
    kind: str = "facts"


@dataclass(frozen=True)
class Note:
    """A paragraph; under a heading of its own where it has one."""

    text: str
    heading: str = ""
    kind: str = "note"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: above it.
        filtered: whether one may choose among its values.
    """

    title: str
    filtered: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: its text, what it is sorted by, where it leads."""

    text: str
    order: float | str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `sortable` ones can be searched, too."""

    columns: list[Column]
    rows: list[list[Cell]]
    sortable: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    label: str
    colour: str
    glyph: str


@dataclass(frozen=True)
class Chart:
    """A chart: a title above it, what BokehJS draws, and a legend of its own."""

    title: str
    item: dict[str, Any]
    keys: Sequence[Key] = ()


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, under a legend that they share."""

    charts: list[Chart]
    keys: Sequence[Key] = ()
    kind: str = "charts"


@dataclass(frozen=True)
class Image:
    """A picture as a data URI, and the words under it."""

    uri: str
    text: str


@dataclass(frozen=True)
class ImageGrid:
    """Rows of pictures under the heads of their columns, each so many pixels wide at most, with a legend."""

    heads: list[str]
    rows: list[list[Image]]
    width: int
    keys: Sequence[Key] = ()
    kind: str = "pictures"


@dataclass(frozen=True)
class SettingsTree:
    """Nested settings that unfold."""

    title: str
    tree: dict[str, Any]
    open: bool = False
    kind: str = "tree"


Part = KeyFigures | Note | Table | Charts | ImageGrid | SettingsTree


@dataclass(frozen=True)
class Chapter:
    """A part of a page: a heading, a sentence that says how to read it, and what there is to see."""

    title: str
    caption: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A page: its title, what must be known first, and its chapters."""

    title: str
    warning: str
    chapters: list[Chapter]


def make_table(
    rows: Iterable[Item], columns: dict[Column, Callable[[Item], Cell | float | str | None]], *, sortable: bool = False
) -> Table:
    """A table with a row for each of some things.

    Args:
        rows: the things.
        columns: what each column shows of a thing.
        sortable: whether the reader may sort and search it.
    """
    cells = [[make_cell(of(row)) for of in columns.values()] for row in rows]
    return Table(list(columns), cells, sortable)


def make_cell(value: Cell | float | str | None) -> Cell:
    """A value as a cell that is sorted by it."""
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell(NONE)
    return Cell(f"{value:.4g}" if isinstance(value, float) else str(value), value)


def decimals(value: float | None, digits: int) -> Cell:
    """A number as a cell that is sorted by its full precision."""
    return make_cell(None) if value is None or math.isnan(value) else Cell(f"{value:.{digits}f}", value)


def interval(found: dict[str, Any], digits: int = 4, *, sign: str = "") -> str:
    """A mean with its interval: `0.9500 (0.9410 to 0.9580)`; the mean alone where there is no interval."""
    text = f"{found['mean']:{sign}.{digits}f}"
    if found.get("low") is None:
        return text
    return f"{text} ({found['low']:{sign}.{digits}f} to {found['high']:{sign}.{digits}f})"
