"""Imports of large libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Keeps the garbage collector away from large libraries that are imported in the block.

    It would look through all modules that are there again and again, and find nothing: imports of PyTorch and what
    builds on it take a third longer with it. What is there after the block, it never looks at.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
