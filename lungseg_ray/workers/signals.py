"""The signals that ask a job to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lungseg_ray.termination import handled_by, interrupt


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM for the time of the block; a second SIGINT interrupts the process.

    In a thread that is not the main thread, no signal arrives.

    Yields:
        The numbers of the signals, in the order of arrival; empty as long as none has arrived. SIGHUP counts as
        SIGTERM.
    """
    received: list[int] = []

    def note(number: int) -> None:
        received.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        if received.count(signal.SIGINT) > 1:
            interrupt(number)

    with handled_by(note):
        yield received
