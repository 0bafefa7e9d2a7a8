from __future__ import annotations

import time

import pytest
import ray

from lungseg_ray.training.events import Event, Note
from lungseg_ray.workers.entry import Losses
from lungseg_ray.workers.mailbox import SILENT_SECONDS, Pulse, _Mailbox


def texts(events: list[tuple[int, Event]]) -> list[str]:
    return [event.text for _, event in events if isinstance(event, Note)]


def test_events_stay_until_they_have_arrived() -> None:
    box = _Mailbox()
    box.put(0, Note("a"))
    box.put(1, Note("b"))
    # The answer to the first call is lost on the way.
    assert texts(box.take(0).events) == ["a", "b"]
    box.put(0, Note("c"))
    assert texts(box.take(0).events) == ["a", "b", "c"]
    box.put(0, Note("d"))
    assert texts(box.take(3).events) == ["d"]
    assert box.take(4).events == []


def test_losses_count_until_another_checkpoint() -> None:
    box = _Mailbox()
    assert box.workers_start(0, 2) == 0
    box.beat(0, Pulse("step 1", 5))
    box.workers_lost("worker 1")
    # Workers that are gone are not waited for.
    found = box.take(0)
    assert (found.pulses, found.losses) == ({}, 1)
    assert box.workers_start(0, 2) == 1
    box.workers_lost("worker 1")
    assert box.workers_start(0, 2) == 2
    assert box.workers_start(10, 2) == 0


def test_a_loss_is_an_event_at_the_step_where_the_workers_had_started() -> None:
    box = _Mailbox()
    box.workers_start(12, 2)
    box.workers_lost("Lost worker 1.")
    assert box.take(0).events == [(0, Note("Lost worker 1.", "workers_lost", step=12))]


def test_a_worker_without_heartbeats_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    box = _Mailbox()
    box.beat(0, Pulse("step 1", 5))
    box.beat(1, Pulse("step 1", 5))
    now[0] += SILENT_SECONDS + 1
    box.beat(0, Pulse("step 1", 5))
    found = box.take(0).pulses
    assert (found[0].silent, found[1].silent) == (False, True)
    assert found[1].age == SILENT_SECONDS + 1


class Died(ray.exceptions.RayActorError):
    def __init__(self, actor: str | None) -> None:
        super().__init__(actor, "The actor died.")


class HealthError(Exception):
    """As Ray Train's, which wraps the error of a worker."""

    def __init__(self, failure: Exception) -> None:
        self.health_check_failure = failure


class Box:
    def __init__(self) -> None:
        self.losses: list[str] = []

    def workers_lost(self, text: str) -> None:
        self.losses.append(text)


class TestLosses:
    def test_a_loss_that_is_told_again_counts_once(self) -> None:
        """After a notice of preemption, Ray Train tells it at every look."""
        box = Box()
        losses = Losses(box)  # type: ignore[arg-type]
        for _ in range(3):
            losses.after_exception(None, {1: HealthError(Died("a"))})
        assert box.losses == ["Lost worker 1 (Died: The actor died.). Resuming from the last checkpoint."]
        losses.after_exception(None, {1: HealthError(Died("b"))})
        assert len(box.losses) == 2

    def test_those_that_cannot_reach_it_are_not_named(self) -> None:
        box = Box()
        Losses(box).after_exception(None, {0: ValueError("connection"), 1: Died("a")})  # type: ignore[arg-type]
        assert box.losses == ["Lost worker 1 (Died: The actor died.). Resuming from the last checkpoint."]

    def test_errors_of_no_actor_count_each(self) -> None:
        box = Box()
        losses = Losses(box)  # type: ignore[arg-type]
        for _ in range(2):
            losses.after_exception(None, {0: ValueError("step")})
        assert len(box.losses) == 2
