"""Notices that nothing moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lungseg_ray.errors import JobFailedError

FIRST_WORD_SECONDS = 60.0
_LONGEST_LOOK = 15.0
"""A longer time between two looks means that the machine slept, and with it whatever is waited for."""


class Watchdog:
    """Says what is waited for when nothing moves for a minute, and ends the job when nothing moves for long.

    Args:
        limit: seconds after which the job ends.
        tell: told what is waited for; first after a minute, then in doubled times.
    """

    def __init__(self, limit: float, tell: Callable[[str], None]) -> None:
        self._limit = limit
        self._tell = tell
        self._seen: Mapping[int, int] = {}
        self._last: float | None = None
        self._still = 0.0
        self._next = FIRST_WORD_SECONDS

    def look(self, moves: Mapping[int, int], *, now: float, waiting_for: Callable[[], str]) -> None:
        """Takes note of how far everybody has come.

        Args:
            moves: for each rank a number that grows with what it gets done; empty while there are no workers.
            now: seconds of a steady clock.
            waiting_for: asked, when nothing moves, what is waited for.

        Raises:
            JobFailedError: if nothing has moved for longer than the limit.
        """
        passed = min(now - self._last, _LONGEST_LOOK) if self._last is not None else 0.0
        self._last = now
        if moves != self._seen:
            self._seen, self._still, self._next = dict(moves), 0.0, FIRST_WORD_SECONDS
            return
        self._still += passed
        if self._still >= self._limit:
            raise JobFailedError(
                f"Nothing has moved for {self._still:.0f} s (train.stall_seconds = {self._limit:.0f}). "
                f"Waited for: {waiting_for()}. What was saved is safe, and the same command goes on."
            )
        if self._still >= self._next:
            self._tell(f"Nothing has moved for {self._still:.0f} s. Waiting for: {waiting_for()}")
            self._next *= 2
