"""What workers and driver tell each other, wherever they run. The module is light: the actor's process imports it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]
BEAT_SECONDS = 0.5
WAIT_SECONDS = 10.0


@dataclass
class Pulse:
    """What a worker is doing.

    Attributes:
        doing: in words, for a person who asks why nothing moves.
        moves: grows with everything that it gets done.
    """

    doing: str
    moves: int


class _Mailbox:
    def __init__(self) -> None:
        self._events: list[Event] = []
        self._taken = 0
        self._pulses: dict[int, Pulse] = {}
        self._stop = False
        self._step = -1
        self._losses = 0

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self, seen: int) -> tuple[list[Event], dict[int, Pulse], int]:
        self._events, self._taken = self._events[seen - self._taken :], seen
        return self._events, self._pulses, self._losses

    def beat(self, rank: int, pulse: Pulse) -> bool:
        self._pulses[rank] = pulse
        return self._stop

    def lost(self, text: str) -> None:
        self._events.append({"event": "note", "text": text})
        self._pulses = {}
        self._losses += 1

    def begin(self, step: int, workers: int) -> int:
        self._pulses = {rank: pulse for rank, pulse in self._pulses.items() if rank < workers}
        if step != self._step:
            self._step, self._losses = step, 0
        return self._losses

    def stop(self) -> None:
        self._stop = True


_MailboxActor: Any = ray.remote(num_cpus=0)(_Mailbox)


class Mailbox:
    """Both ends of the wire between the driver and its workers; it outlives a group of workers that is lost."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._seen = 0

    def put(self, event: Event, *, wait: bool = False) -> None:
        """Tells the driver.

        Args:
            event: has the key `event`.
            wait: until it has arrived.
        """
        sent = self._actor.put.remote(event)
        if wait:
            ray.get(sent, timeout=WAIT_SECONDS)

    def take(self) -> tuple[list[Event], dict[int, Pulse], int]:
        """What came since the last call, the last pulse of each rank, and losses since the last new checkpoint.

        Raises:
            ray.exceptions.GetTimeoutError: if nothing is heard; the next call brings what this one did not.
        """
        # An event stays out there until it is known to have arrived.
        taken: tuple[list[Event], dict[int, Pulse], int] = ray.get(
            self._actor.take.remote(self._seen), timeout=WAIT_SECONDS
        )
        self._seen += len(taken[0])
        return taken

    def lost(self, text: str) -> None:
        """Says that a group of workers is lost, and why."""
        self._actor.lost.remote(text)

    def begin(self, step: int, workers: int) -> int:
        """Says that a group of workers starts at a step; how many groups were lost that had started there."""
        before: int = ray.get(self._actor.begin.remote(step, workers), timeout=WAIT_SECONDS)
        return before

    def stop(self) -> None:
        """Asks the workers to save and to stop."""
        self._actor.stop.remote()

    def beat(self, rank: int, pulse: Pulse) -> bool:
        """Sends a worker's pulse; whether it is asked to stop."""
        asked: bool = ray.get(self._actor.beat.remote(rank, pulse), timeout=WAIT_SECONDS)
        return asked


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """A mailbox for the time of the block, on the driver's own node, so that it is lost with the driver alone."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = _MailboxActor.options(scheduling_strategy=here).remote()
    try:
        yield Mailbox(actor)
    finally:
        ray.kill(actor)


class Heartbeat:
    """Sends a worker's pulse in a thread, for the time of a block.

    Attributes:
        pulse: what is sent.
        stop: whether the driver has asked the workers to stop.
    """

    def __init__(self, mailbox: Mailbox, rank: int, pulse: Pulse) -> None:
        self.pulse = pulse
        self.stop = False
        self._mailbox = mailbox
        self._rank = rank
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heart", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            try:
                self.stop = self._mailbox.beat(self._rank, self.pulse)
            except ray.exceptions.ActorDiedError:
                return
            except ray.exceptions.RayError:
                # It may pass: the network to the driver's node was away.
                continue
