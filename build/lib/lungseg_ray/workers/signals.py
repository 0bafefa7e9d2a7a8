"""The signals that ask a job to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM for the time of the block; a second SIGINT raises KeyboardInterrupt.

    In a thread that is not the main thread, no signal arrives.

    Yields:
        The numbers of the signals, in the order of arrival; empty as long as none has arrived.
    """
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
