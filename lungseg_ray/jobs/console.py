"""The console of a job: what it prints is printable, and tables lose none of their figures."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lungseg_ray.text import printable


class JobConsole(Console):
    """A console that prints names from outside as `printable` writes them."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Converts a string to a text, as `Console` does."""
        return super().render_str(printable(text), **options)


def print_table(console: Console, table: Table, narrow: Table) -> None:
    """Prints a table, with all of its figures.

    Args:
        console: The console that the user reads.
        table: The table. A file or a pipe gets all of its width.
        narrow: A table of the same figures, which a terminal gets that is too narrow for the first.
    """
    wide = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    if console.is_terminal and wide > console.width:
        console.print(narrow)
    else:
        console.print(table, width=max(wide, console.width), crop=False)
