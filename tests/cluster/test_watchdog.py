from __future__ import annotations

import pytest

from lungseg_ray.cluster.watchdog import Watchdog
from lungseg_ray.errors import JobFailedError


def looks(watchdog: Watchdog, start: float, end: float, moves: dict[int, int], *, every: float = 1.0) -> None:
    now = start
    while now <= end:
        watchdog.look(moves, now=now, waiting_for=lambda: "rank 1: the images of step 5")
        now += every


def test_words_after_a_minute_and_in_doubled_times_then_the_end() -> None:
    told: list[str] = []
    watchdog = Watchdog(300, told.append, setting="train.stall_seconds")
    with pytest.raises(JobFailedError, match=r"for 300 s \(train\.stall_seconds = 300\).*rank 1: the images of step 5"):
        looks(watchdog, 0, 1000, {0: 5, 1: 5})
    assert [text.split(" s.")[0] for text in told] == [f"Nothing has moved for {seconds}" for seconds in (60, 120, 240)]
    assert "Waiting for: rank 1: the images of step 5" in told[0]


def test_any_move_of_any_rank_counts() -> None:
    told: list[str] = []
    watchdog = Watchdog(100, told.append)
    for round_ in range(5):
        looks(watchdog, 90 * round_, 90 * round_ + 89, {0: 5, 1: round_})
    assert len(told) == 5


def test_no_workers_at_all() -> None:
    watchdog = Watchdog(30, lambda text: None)
    with pytest.raises(JobFailedError, match="for 30 s"):
        looks(watchdog, 0, 100, {})


def test_time_in_which_the_machine_slept_does_not_count() -> None:
    told: list[str] = []
    watchdog = Watchdog(100, told.append)
    looks(watchdog, 0, 50, {0: 1})
    assert told == []
    # The hour between two looks counts for 15 s of the 100.
    looks(watchdog, 3650, 3684, {0: 1})
    assert [text.split(" s.")[0] for text in told] == ["Nothing has moved for 65"]
    with pytest.raises(JobFailedError, match="for 100 s"):
        looks(watchdog, 3685, 3685, {0: 1})
