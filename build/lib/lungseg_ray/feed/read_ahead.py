"""Preparation of batches in a background thread, ahead of the batch in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from lungseg_ray.feed.batch import Batch


class ReadAhead:
    """An iterator that runs another iterator of batches in a background thread and keeps some batches ready.

    The thread starts when the object is created. An exception of the inner iterator is raised again by `next`.

    Args:
        batches: The iterator to run.
        depth: Number of batches to keep ready.
    """

    def __init__(self, batches: Iterator[Batch], *, depth: int) -> None:
        self._batches = batches
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(depth)
        self._last: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._last is None and not self._stop.is_set():
            item = self._ready.get()
            if isinstance(item, Batch):
                return item
            self._last = item
        raise self._last or StopIteration

    def close(self) -> None:
        """Ends the thread; the iterator then yields no further batches."""
        self._stop.set()
        self._thread.join(timeout=30)

    def _work(self) -> None:
        try:
            for batch in self._batches:
                self._put(batch)
                if self._stop.is_set():
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
