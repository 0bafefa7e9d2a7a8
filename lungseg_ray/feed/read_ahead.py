"""Preparation of items, such as batches, in a background thread, ahead of the one in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
CLOSE_SECONDS = 30.0
"""How long `ReadAhead.close` waits for the thread by default."""


class ReadAhead(Generic[Item]):
    """An iterator that runs another iterator in a background thread and keeps some of its items ready.

    The thread starts when the object is created. An exception of the inner iterator is raised again by `next`.

    Args:
        items: The iterator to run.
        depth: Number of items to keep ready.
    """

    def __init__(self, items: Iterator[Item], *, depth: int) -> None:
        self._items = items
        self._ready: queue.Queue[Item | BaseException] = queue.Queue(depth)
        self._last: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        return self.next_within(None)

    def next_within(self, seconds: float | None) -> Item:
        """Returns the next item.

        Args:
            seconds: How long to wait for it; None for as long as it takes.

        Raises:
            TimeoutError: If it is not ready in time.
            StopIteration: If there is none.
            Exception: What the inner iterator raises.
        """
        if self._last is None and not self._stop.is_set():
            try:
                item = self._ready.get(timeout=seconds)
            except queue.Empty:
                raise TimeoutError from None
            if not isinstance(item, BaseException):
                return item
            self._last = item
        raise self._last or StopIteration

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Ends the thread; the iterator then yields no further items.

        Args:
            seconds: How long to wait for the end of the thread, which may have to wait for an item.
        """
        self._stop.set()
        self._thread.join(timeout=seconds)

    def _work(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                if self._stop.is_set():
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Item | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
