"""The end of a job by a signal: SIGTERM interrupts it as Ctrl-C does, and while it cleans up, signals do not matter."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_terminated = threading.Event()
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt_on_sigterm() -> None:
    """Lets SIGTERM raise a KeyboardInterrupt in the main thread, which libraries in C++ expect, in place of an exit."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    _terminated.set()
    raise KeyboardInterrupt


def was_terminated() -> bool:
    """Returns whether SIGTERM has interrupted this process."""
    return _terminated.is_set()


def ignore_signals() -> None:
    """Ignores SIGINT, SIGTERM and SIGHUP from here on, where a process has only to exit."""
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignores SIGINT, SIGTERM and SIGHUP for the time of the block, which leaves nothing half-done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
