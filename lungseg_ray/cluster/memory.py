"""The memory of processes: how they use it again, and how much they need."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress

_ALLOCATOR = {-4: 0, -1: 2**31 - 1, -2: 64 << 20}
"""M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of `mallopt`: large arrays get no memory of their own, none is given
back, and the heap grows by 64 MiB at a time."""


def reuse_memory() -> None:
    """Lets this process keep the memory that it frees, and use it again.

    By default, the allocator of glibc gets the memory of each large array from the system and gives it back, and the
    system clears every page of it anew. Training on CPUs takes about a fifth longer then. The process keeps the memory
    of its largest step until it ends, or until `malloc_trim` is called.
    """
    # Other allocators than that of glibc do not have the function.
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter, value in _ALLOCATOR.items():
            library.mallopt(parameter, value)


def largest_memory() -> int:
    """Returns the largest memory that this process has had so far, bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
