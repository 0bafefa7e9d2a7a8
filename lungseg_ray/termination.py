"""How a process ends: signals interrupt it once, what cleans up goes on, and errors are told before it is too late."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANING_SECONDS = 5.0
"""A signal this shortly after the one before finds a process that is cleaning up, and does not interrupt it again."""

_LATER_SECONDS = 0.05


class _Received:
    first: int | None = None
    last: float = -_CLEANING_SECONDS


def interrupt_on_signals() -> None:
    """Lets SIGINT, SIGTERM and SIGHUP raise a KeyboardInterrupt in the main thread, unless they are ignored already.

    Processes of a shell's background ignore SIGINT, those of nohup SIGHUP. Other libraries may set handlers of their
    own; after that, this function has to be called again.
    """
    _set_handlers(interrupt)
    sys.unraisablehook = _interrupt_again


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Interrupts the process a moment later, if Python or a library had to ignore that it was interrupted.

    They do so with all exceptions within callbacks, such as those of a weak reference.
    """
    if _Received.first is None or not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    _Received.last = -_CLEANING_SECONDS
    # A signal for the main thread also ends a call in which that thread waits.
    later = threading.Timer(_LATER_SECONDS, signal.pthread_kill, (threading.main_thread().ident, _Received.first))
    later.daemon = True
    later.start()


def _set_handlers(handler: Callable[[int], None]) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    changed = {number: one for number, one in before.items() if one is not signal.SIG_IGN}
    for number in changed:
        signal.signal(number, lambda received, _: handler(received))
    return changed


@contextmanager
def handled_by(handler: Callable[[int], None]) -> Iterator[None]:
    """Hands SIGINT, SIGTERM and SIGHUP to a function for the time of the block, unless they are ignored.

    In a thread that is not the main thread, nothing is changed.

    Args:
        handler: Called in the main thread with the number of each signal that arrives.
    """
    before = _set_handlers(handler)
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def interrupt(number: int) -> None:
    """Interrupts this process because of a signal, unless that was done less than 5 s ago.

    Args:
        number: The number of the signal.

    Raises:
        KeyboardInterrupt: If the process is not cleaning up already.
    """
    _Received.first = _Received.first or number
    if time.monotonic() >= _Received.last + _CLEANING_SECONDS:
        _Received.last = time.monotonic()
        raise KeyboardInterrupt


def first_signal() -> int:
    """Returns the number of the signal that has interrupted this process: SIGINT or SIGTERM, which SIGHUP counts as."""
    return signal.SIGINT if _Received.first in (None, signal.SIGINT) else signal.SIGTERM


def ignore_signals() -> None:
    """Ignores SIGINT, SIGTERM and SIGHUP from here on, where a process has only to exit."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def undisturbed(because: str) -> Iterator[list[int]]:
    """Lets no SIGINT, SIGTERM or SIGHUP interrupt the block, which must not be left half-done.

    Args:
        because: What the user reads on such a signal, a sentence.

    Yields:
        The numbers of the signals, in the order of arrival.
    """
    received: list[int] = []

    def note(number: int) -> None:
        if not received:
            with suppress(OSError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{because}\n".encode())
        received.append(number)

    with handled_by(note):
        yield received


_reporters: list[Callable[[BaseException], None]] = []


@contextmanager
def reported_by(report: Callable[[BaseException], None]) -> Iterator[None]:
    """Lets `report_now` hand errors to a function for the time of the block.

    Args:
        report: Tells the user about an error.
    """
    _reporters.append(report)
    try:
        yield
    finally:
        _reporters.remove(report)


def report_now(error: BaseException) -> None:
    """Tells the user about an error on its way, because what cleans up after it may end the process.

    Args:
        error: The error.
    """
    for report in _reporters:
        report(error)
