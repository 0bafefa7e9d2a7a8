from __future__ import annotations

from lungseg_ray.workers.mailbox import Pulse, _Mailbox


def test_events_stay_until_they_have_arrived() -> None:
    box = _Mailbox()
    box.put({"event": "a"})
    box.put({"event": "b"})
    # The answer to the first call is lost on the way.
    assert [event["event"] for event in box.take(0)[0]] == ["a", "b"]
    box.put({"event": "c"})
    assert [event["event"] for event in box.take(0)[0]] == ["a", "b", "c"]
    box.put({"event": "d"})
    assert [event["event"] for event in box.take(3)[0]] == ["d"]
    assert box.take(4)[0] == []


def test_losses_count_until_another_checkpoint() -> None:
    box = _Mailbox()
    assert box.begin(0, 2) == 0
    box.beat(0, Pulse("step 1", 5))
    box.lost("worker 1")
    # Nobody is waited for that is no more.
    assert box.take(0)[1:] == ({}, 1)
    assert box.begin(0, 2) == 1
    box.lost("worker 1")
    assert box.begin(0, 2) == 2
    assert box.begin(10, 2) == 0
