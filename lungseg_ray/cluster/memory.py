"""The memory of processes: how they use it again, and how much they need."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

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


def own_memory() -> int:
    """Returns the memory of this process that it does not share, bytes; elsewhere than on Linux its largest memory.

    A process that uses memory again keeps that of its largest step. Shards in Ray's object store are shared.
    """
    with suppress(OSError):
        found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
