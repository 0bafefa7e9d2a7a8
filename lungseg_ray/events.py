"""What workers tell the driver, wherever they run. The module is light, since the actor's process imports it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

Event = dict[str, Any]


class _Mailbox:
    def __init__(self) -> None:
        self._waiting: list[Event] = []

    def put(self, event: Event) -> None:
        self._waiting.append(event)

    def take(self) -> list[Event]:
        taken, self._waiting = self._waiting, []
        return taken


_MailboxActor: Any = ray.remote(num_cpus=0)(_Mailbox)


@contextmanager
def watched(watch: Callable[[Event], None]) -> Iterator[Any]:
    """A mailbox for the time of the block; what workers put there is handed to `watch` in a thread.

    Yields:
        An actor handle: `mailbox.put.remote(event)`.
    """
    mailbox = _MailboxActor.remote()
    stop = threading.Event()

    def work() -> None:
        last = False
        while not last:
            # What came before the stop is still handed on.
            last = stop.wait(0.25)
            try:
                for event in ray.get(mailbox.take.remote(), timeout=30):
                    watch(event)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:
                return

    thread = threading.Thread(target=work, name="watch", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join(timeout=40)
