"""What the driver does while work goes on elsewhere: it passes on a stop, holds the lease, and watches for progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import ray

from lungseg_ray.cluster.watchdog import Watchdog
from lungseg_ray.errors import JobFailedError
from lungseg_ray.run.lease import Lease
from lungseg_ray.text import first_line
from lungseg_ray.workers.mailbox import Mailbox, Messages, Pulse

LOOK_SECONDS = 0.25
"""Seconds between two looks at the mailbox."""
LEAVE_SECONDS = 5.0
"""Seconds for which work that is left behind may go on."""


@dataclass(frozen=True)
class Supervisor:
    """Runs work in a thread, and looks after it from the calling thread.

    In a thread of its own Ray does not react to signals, so that the calling thread is free to handle them.

    Attributes:
        name: The name of the thread.
        mailbox: Receives what the workers send.
        lease: The lease of the run or the sweep.
        watchdog: Ends the job in which nothing makes progress.
        should_stop: Whether the workers are to be asked to stop; asked at each look until it is true.
        on_stop: Called once, when the workers are asked to stop.
        on_messages: Called at each look with what has arrived, and whether the work still goes on. It returns True to
            leave before the work ends.
        pulses: Selects the heartbeats that count as progress.
        waiting_for: Describes what is waited for, given the heartbeats.
        leave: Lets the work end soon, where it is left behind.
    """

    name: str
    mailbox: Mailbox
    lease: Lease
    watchdog: Watchdog
    should_stop: Callable[[], bool]
    on_stop: Callable[[], None]
    on_messages: Callable[[Messages, bool], bool]
    waiting_for: Callable[[Mapping[int, Pulse]], str]
    leave: Callable[[], None]
    pulses: Callable[[Mapping[int, Pulse]], Mapping[int, Pulse]] = lambda pulses: pulses

    def run(self, work: Callable[[], object]) -> BaseException | None:
        """Runs work until it ends, or until `on_messages` leaves it.

        Args:
            work: The function to run in the thread.

        Returns:
            The exception that ended the work; None if it ended without one, or goes on.

        Raises:
            JobFailedError: If nothing makes progress, if Ray is gone, or if another driver has taken over.
        """
        errors: list[BaseException] = []
        thread = threading.Thread(target=_caught, args=(work, errors), name=self.name, daemon=True)
        thread.start()
        try:
            self._look_after(thread)
        finally:
            if thread.is_alive():
                # A thread that waits for Ray when Ray is stopped would crash the process.
                threading.Thread(target=_caught, args=(self.leave, []), daemon=True).start()
                thread.join(LEAVE_SECONDS)
        return errors[0] if errors else None

    def _look_after(self, thread: threading.Thread) -> None:
        stopped, alive = False, True
        messages = Messages()
        while alive:
            thread.join(LOOK_SECONDS)
            # What was sent before the end is still received.
            alive = thread.is_alive()
            if not stopped and self.should_stop():
                stopped = True
                self.mailbox.stop()
                self.on_stop()
            self.lease.check()
            try:
                messages = self.mailbox.take()
            except ray.exceptions.GetTimeoutError:
                messages.events = []
            except ray.exceptions.RayError as error:
                raise JobFailedError(
                    f"Ray is gone on this machine ({first_line(error)}). What was saved is safe; the same command "
                    "resumes."
                ) from error
            if self.on_messages(messages, alive):
                break
            pulses = self.pulses(messages.pulses)
            ticks = {rank: pulse.ticks for rank, pulse in pulses.items()}
            self.watchdog.look(ticks, now=time.monotonic(), waiting_for=partial(self.waiting_for, pulses))


def _caught(work: Callable[[], object], errors: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        errors.append(error)
