"""The repetition of operations on a storage that fails for a while.

Libraries such as tenacity stop after a number of seconds by the clock. Here the time in which the process itself was
suspended must not count, and a failure and its end are each reported once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 300
"""The time in seconds for which a running job repeats an operation, unless its settings specify another."""

LONGEST_PAUSE = 10.0
"""The longest pause between two attempts, in seconds."""
LONGEST_TURN = 30.0
"""The longest time that one failed attempt counts towards the time limit of `retry`, in seconds."""


class StorageError(OSError):
    """A bucket that cannot be used.

    The message is one sentence with the bucket, the store, the problem and the remedy. It contains no credentials. The
    problem may be temporary, such as a restart of the store or a permission that is missing for a while; `retry`
    therefore repeats the operation.
    """


def retry(
    work: Callable[[], T],
    *,
    seconds: float,
    note: Callable[[str], None] | None = None,
    trouble: type[OSError] = StorageError,
) -> T:
    """Calls a function until it succeeds, for a limited time.

    A missing file is a valid answer and no reason to repeat the call.

    Args:
        work: The function. It must allow another call after a call that failed half-way.
        seconds: The time limit in seconds. It counts the pauses and the failed attempts, at most 30 s for each attempt,
            so that a process that was suspended for a minute does not give up because of it.
        note: A function that receives a message about the first failure, and one about the success after failures.
        trouble: The type of the exceptions that may be temporary; by default those of buckets.

    Returns:
        What `work` returns.

    Raises:
        OSError: The last exception of type `trouble`, when the time limit is reached. `FileNotFoundError`,
            `IsADirectoryError` and `NotADirectoryError` are raised at once.
    """  # noqa: DOC501 - the three are an OSError
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
