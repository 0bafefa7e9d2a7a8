"""A bar for work that takes a while; without the rest of the display, and what that imports."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import track

AnyItem = TypeVar("AnyItem")


def ticks(items: Iterable[AnyItem], *, total: int, description: str) -> Iterator[AnyItem]:
    """Hands on items under a bar that is gone in the end; there is none where the output is no terminal."""
    return iter(track(items, total=total, description=description, transient=True, disable=not sys.stdout.isatty()))
