"""What a job says while it works: a progress bar for long loops, and what it waits for.

The full display of a training has more imports, and a module of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import track

from lungseg_ray.text import printable

AnyItem = TypeVar("AnyItem")


def ticks(items: Iterable[AnyItem], *, total: int, description: str) -> Iterator[AnyItem]:
    """Iterates over items and shows a progress bar meanwhile, which is removed at the end.

    No bar is shown if the standard output is not a terminal.

    Args:
        items: The items to iterate over.
        total: Number of items.
        description: The text in front of the bar.

    Returns:
        An iterator over the same items.
    """
    return iter(track(items, total=total, description=description, transient=True, disable=not sys.stdout.isatty()))


def say(text: str) -> None:
    """Tells the user something that is not part of the result, on standard error.

    Args:
        text: One or more sentences.
    """
    print(printable(text), file=sys.stderr, flush=True)
