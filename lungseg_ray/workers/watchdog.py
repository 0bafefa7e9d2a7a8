"""Ends a job in which nothing makes progress any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lungseg_ray.errors import JobFailedError

FIRST_REPORT_SECONDS = 60.0
"""Seconds without progress after which the user is first told what is waited for."""
_LONGEST_LOOK = 15.0
"""Seconds that one interval counts for at most. A longer one means that the machine slept, and all workers with it."""


class Watchdog:
    """Reports what is waited for when nothing makes progress for a minute, and ends the job when it lasts.

    Args:
        limit: Seconds without progress after which the job ends.
        report: Called with a message; first after a minute, then after twice the time, and so on.
    """

    def __init__(self, limit: float, report: Callable[[str], None]) -> None:
        self._limit = limit
        self._report = report
        self._seen: Mapping[int, int] = {}
        self._last: float | None = None
        self._still = 0.0
        self._next = FIRST_REPORT_SECONDS

    def look(self, ticks: Mapping[int, int], *, now: float, waiting_for: Callable[[], str]) -> None:
        """Takes note of how far every worker has come.

        Args:
            ticks: For each rank a number that grows with its progress; empty while there are no workers.
            now: Seconds of a monotonic clock.
            waiting_for: Returns what is waited for, in words.

        Raises:
            JobFailedError: If nothing has made progress for longer than the limit.
        """
        passed = min(now - self._last, _LONGEST_LOOK) if self._last is not None else 0.0
        self._last = now
        if ticks != self._seen:
            self._seen, self._still, self._next = dict(ticks), 0.0, FIRST_REPORT_SECONDS
            return
        self._still += passed
        if self._still >= self._limit:
            raise JobFailedError(
                f"Nothing has moved for {self._still:.0f} s (train.stall_seconds = {self._limit:.0f}). "
                f"Waited for: {waiting_for()}. What was saved is safe, and the same command resumes."
            )
        if self._still >= self._next:
            self._report(f"Nothing has moved for {self._still:.0f} s. Waiting for: {waiting_for()}")
            self._next *= 2
