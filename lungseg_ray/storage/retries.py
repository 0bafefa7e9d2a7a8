"""Repeats an operation while a store does not answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


PATIENCE_SECONDS = 300
"""For how long a running job tries again, unless its settings say otherwise."""


LONGEST_PAUSE = 10.0
LONGEST_TURN = 30.0
"""What one attempt counts for at most where patience is counted; see `patiently`."""


class StorageError(OSError):
    """A bucket that cannot be used: which, where, what was found, and what to do, in one sentence.

    It holds no credential. It may pass (`patiently`), a restart of the store or a right taken for a while.
    """


def retry(
    work: Callable[[], T],
    *,
    seconds: float,
    note: Callable[[str], None] | None = None,
    trouble: type[OSError] = StorageError,
) -> T:
    """Calls `work` until it succeeds, for some time.

    A file that is missing is an answer, and no reason to try again.

    Args:
        work: may be called again after it has failed half-way.
        trouble: errors that may pass; by default those of buckets.
        seconds: how long to go on after them. What counts are pauses and attempts that failed, each of them for
            30 s at most: a process that is suspended for a minute comes back with its patience.
        note: told of the first failure, and of the success after failures.

    Raises:
        OSError: the last one.
    """
    waited, pause, failed = 0.0, 0.5, False
    while True:
        start = time.monotonic()
        try:
            result = work()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except trouble as error:
            waited += min(time.monotonic() - start, LONGEST_TURN)
            if waited >= seconds:
                raise
            if note and not failed:
                note(f"{str(error).rstrip('.')}. Trying again for up to {seconds:.0f} s.")
            failed = True
            nap = min(random.uniform(0.5, 1.0) * pause, seconds - waited)
            time.sleep(nap)
            waited += nap
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if note and failed:
                note(f"The storage answers again after {waited:.0f} s.")
            return result
