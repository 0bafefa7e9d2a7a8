from __future__ import annotations

from lungseg_ray.training.events import Event, Note
from lungseg_ray.workers.mailbox import Pulse, _Mailbox


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
