"""Messages between workers and driver, wherever they run: events, heartbeats, and the request to stop.

The module imports little, since the process of the mailbox's actor imports it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg_ray.training.events import Event, Note

BEAT_SECONDS = 0.5
"""Seconds between two heartbeats of a worker."""
WAIT_SECONDS = 10.0
"""Seconds to wait for an answer of the mailbox."""
SILENT_SECONDS = 30.0
"""Seconds without a heartbeat after which a worker counts as gone, such as one that ended with its machine."""


@dataclass
class Pulse:
    """The content of a heartbeat.

    Attributes:
        activity: What the worker does, in words.
        ticks: A number that grows with everything that the worker completes.
        age: The seconds since the mailbox received it; 0 when it is sent.
    """

    activity: str
    ticks: int
    age: float = 0.0

    @property
    def silent(self) -> bool:
        """Whether its worker counts as gone."""
        return self.age > SILENT_SECONDS


@dataclass
class Messages:
    """The content of a mailbox.

    Attributes:
        events: Events since the last call, each with the rank of its sender, in the order of arrival.
        pulses: The last heartbeat of each rank.
        losses: How many groups of workers were lost since the last new checkpoint.
    """

    events: list[tuple[int, Event]] = field(default_factory=list)
    pulses: dict[int, Pulse] = field(default_factory=dict)
    losses: int = 0


class _Mailbox:
    def __init__(self) -> None:
        self._events: list[tuple[int, Event]] = []
        self._taken = 0
        self._pulses: dict[int, Pulse] = {}
        self._received: dict[int, float] = {}
        self._stop = False
        self._step = -1
        self._losses = 0

    def put(self, rank: int, event: Event) -> None:
        self._events.append((rank, event))

    def take(self, seen: int) -> Messages:
        self._events, self._taken = self._events[seen - self._taken :], seen
        now = time.monotonic()
        pulses = {rank: replace(pulse, age=now - self._received[rank]) for rank, pulse in self._pulses.items()}
        return Messages(self._events, pulses, self._losses)

    def beat(self, rank: int, pulse: Pulse) -> bool:
        self._pulses[rank], self._received[rank] = pulse, time.monotonic()
        return self._stop

    def workers_lost(self, text: str) -> None:
        self._events.append((0, Note(text, "workers_lost", step=max(self._step, 0))))
        self._pulses = {}
        self._losses += 1

    def workers_start(self, step: int, workers: int) -> int:
        self._pulses = {rank: pulse for rank, pulse in self._pulses.items() if rank < workers}
        if step != self._step:
            self._step, self._losses = step, 0
        return self._losses

    def stop(self) -> None:
        self._stop = True


_MailboxActor: Any = ray.remote(num_cpus=0)(_Mailbox)


class Mailbox:
    """The connection between a driver and its workers. It outlives a group of workers that is lost.

    Args:
        actor: The Ray actor that holds the messages.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._seen = 0

    def put(self, rank: int, event: Event, *, wait: bool = False) -> None:
        """Sends an event to the driver.

        Args:
            rank: The rank of the sender.
            event: The event.
            wait: Whether to wait until the event has arrived.
        """
        sent = self._actor.put.remote(rank, event)
        if wait:
            ray.get(sent, timeout=WAIT_SECONDS)

    def take(self) -> Messages:
        """Returns what has arrived since the last call.

        Raises:
            ray.exceptions.GetTimeoutError: If the mailbox does not answer. The next call returns what this one did not.
        """
        # An event stays in the mailbox until it is known to have reached the driver.
        taken: Messages = ray.get(self._actor.take.remote(self._seen), timeout=WAIT_SECONDS)
        self._seen += len(taken.events)
        return taken

    def workers_lost(self, text: str) -> None:
        """Records that a group of workers is lost.

        Args:
            text: The reason, for the user.
        """
        self._actor.workers_lost.remote(text)

    def workers_start(self, step: int, workers: int) -> int:
        """Records that a group of workers starts to train.

        Args:
            step: The step that it starts from.
            workers: The number of workers.

        Returns:
            How many groups that had started from this step were lost.
        """
        before: int = ray.get(self._actor.workers_start.remote(step, workers), timeout=WAIT_SECONDS)
        return before

    def stop(self) -> None:
        """Asks the workers to save a checkpoint and to stop."""
        self._actor.stop.remote()

    def beat(self, rank: int, pulse: Pulse) -> bool:
        """Sends a heartbeat.

        Args:
            rank: The rank of the sender; the number of the trial in a sweep.
            pulse: What the worker does.

        Returns:
            Whether the worker is asked to stop.
        """
        asked: bool = ray.get(self._actor.beat.remote(rank, pulse), timeout=WAIT_SECONDS)
        return asked


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """A mailbox for the time of the block. It lives on the driver's node, so that it is lost only with the driver.

    Yields:
        The mailbox.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = _MailboxActor.options(scheduling_strategy=here).remote()
    try:
        yield Mailbox(actor)
    finally:
        ray.kill(actor)


class Heartbeat:
    """Sends the heartbeats of a worker from a thread, for the time of a block.

    Args:
        mailbox: The mailbox of the driver.
        rank: The rank of the worker; the number of the trial in a sweep.
        activity: What the worker does at first, in words.

    Attributes:
        pulse: What the next heartbeat contains.
        stop: Whether the driver has asked the worker to stop.
    """

    def __init__(self, mailbox: Mailbox, rank: int, activity: str) -> None:
        self.pulse = Pulse(activity, 0)
        self.stop = False
        self._mailbox = mailbox
        self._rank = rank
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def report(self, activity: str | None = None) -> None:
        """Notes that the worker has completed something.

        Args:
            activity: What it does next, in words; by default the same as before.
        """
        self.pulse = Pulse(activity or self.pulse.activity, self.pulse.ticks + 1)

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
                # The network to the driver's node may come back.
                continue
