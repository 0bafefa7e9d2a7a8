"""The console of a job: what it prints is printable, and tables lose none of their figures."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


class _Stream(io.TextIOWrapper):
    """A stream of this process whose reader may go away, which is no reason to end a job."""

    def write(self, text: str) -> int:
        """Writes a text; what cannot be written is lost."""
        with self._forgiving():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered; what cannot be written is lost."""
        with self._forgiving():
            super().flush()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # A pipe without a reader, a full disk, or a terminal that was closed. What is buffered goes nowhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def harden_streams() -> None:
    """Makes sure that no job ends because of what it prints: names in other alphabets, or readers that go away."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # A file that is opened later would get the number, and with it what other programs print.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            hardened = _Stream(
                stream.buffer,
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, hardened)


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
        before = console.width
        console.width = max(wide, before)
        console.print(table)
        console.width = before
