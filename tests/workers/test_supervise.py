from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import ray

from lungseg_ray.cluster.watchdog import Watchdog
from lungseg_ray.errors import JobFailedError
from lungseg_ray.training.events import Event, Note
from lungseg_ray.workers import supervise
from lungseg_ray.workers.mailbox import Messages, Pulse
from lungseg_ray.workers.supervise import Supervisor


class Box:
    """A mailbox without an actor."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.events: list[tuple[int, Event]] = []
        self.stops = 0
        self.trouble = trouble

    def take(self) -> Messages:
        if self.trouble:
            raise self.trouble
        taken, self.events = self.events, []
        return Messages(taken, {0: Pulse("step 1", 1)}, 0)

    def stop(self) -> None:
        self.stops += 1


class FreeLease:
    def __init__(self, lost: JobFailedError | None = None) -> None:
        self.lost = lost

    def check(self) -> None:
        if self.lost:
            raise self.lost


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(supervise, "LEAVE_SECONDS", 0.1)


def supervisor(box: Box, **changes: Any) -> Supervisor:
    given: dict[str, Any] = {
        "name": "test",
        "mailbox": box,
        "lease": FreeLease(),
        "watchdog": Watchdog(60, lambda text: None),
        "should_stop": lambda: False,
        "on_stop": lambda: None,
        "on_messages": lambda messages, alive: False,
        "waiting_for": lambda pulses: "nothing",
        "leave": lambda: None,
        **changes,
    }
    return Supervisor(**given)


def until(condition: threading.Event) -> Callable[[], None]:
    def work() -> None:
        assert condition.wait(10)

    return work


def test_what_was_sent_before_the_end_is_received() -> None:
    box, seen = Box(), []

    def work() -> None:
        box.events.append((0, Note("the last word")))

    def on_messages(messages: Messages, alive: bool) -> bool:
        seen.extend(messages.events)
        return False

    assert supervisor(box, on_messages=on_messages).run(work) is None
    assert seen == [(0, Note("the last word"))]


def test_the_error_of_the_work_is_returned() -> None:
    def work() -> None:
        raise ZeroDivisionError("here")

    error = supervisor(Box()).run(work)
    assert isinstance(error, ZeroDivisionError)


def test_a_stop_is_passed_on_once() -> None:
    box, end, told = Box(), threading.Event(), []

    def on_stop() -> None:
        told.append(box.stops)

    looks = iter(range(1000))

    def on_messages(messages: Messages, alive: bool) -> bool:
        if next(looks) > 5:
            end.set()
        return False

    asked = supervisor(box, should_stop=lambda: True, on_stop=on_stop, on_messages=on_messages)
    assert asked.run(until(end)) is None
    # The workers are asked before the user is told.
    assert (box.stops, told) == (1, [1])


def test_work_that_does_not_end_is_left() -> None:
    end = threading.Event()
    assert supervisor(Box(), on_messages=lambda messages, alive: alive).run(until(end)) is None
    end.set()


def test_work_that_is_left_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "LEAVE_SECONDS", 10.0)
    end, ended = threading.Event(), []

    def work() -> None:
        assert end.wait(10)
        ended.append(True)

    with pytest.raises(JobFailedError, match="taken over"):
        supervisor(Box(), lease=FreeLease(JobFailedError("taken over")), leave=end.set).run(work)
    # It has ended before the error is raised.
    assert ended == [True]


def test_a_lost_lease_ends_it() -> None:
    end = threading.Event()
    with pytest.raises(JobFailedError, match="taken over"):
        supervisor(Box(), lease=FreeLease(JobFailedError("taken over"))).run(until(end))
    end.set()


def test_an_answer_that_does_not_come_is_waited_for_and_ray_that_is_gone_is_not() -> None:
    end, box = threading.Event(), Box(ray.exceptions.GetTimeoutError())
    looks: list[int] = []

    def on_messages(messages: Messages, alive: bool) -> bool:
        looks.append(len(messages.events))
        if len(looks) == 3:
            box.trouble = ray.exceptions.RaySystemError("gone")
        return False

    with pytest.raises(JobFailedError, match="Ray is gone on this machine"):
        supervisor(box, on_messages=on_messages).run(until(end))
    assert looks == [0, 0, 0]
    end.set()
