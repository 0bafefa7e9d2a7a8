from __future__ import annotations

import errno
import random
import time

import pytest

from lungseg_ray.errors import UserError
from lungseg_ray.storage import StorageError, retry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still but for sleep; and no chance in how long that is."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    return now


def test_retry_succeeds(clock: list[float]) -> None:
    notes: list[str] = []
    tries: list[float] = []

    def work() -> str:
        tries.append(clock[0])
        if len(tries) < 8:
            raise StorageError("The disk is away.")
        return "done"

    assert retry(work, seconds=60, note=notes.append) == "done"
    # Pauses of 0.5, 1, 2, 4, 8, 10, 10 s.
    assert tries == [100, 100.5, 101.5, 103.5, 107.5, 115.5, 125.5, 135.5]
    assert notes == [
        "The disk is away. Trying again for up to 60 s.",
        "The storage answers again after 36 s.",
    ]


def test_retry_gives_up(clock: list[float]) -> None:
    notes: list[str] = []
    tries: list[float] = []

    def work() -> None:
        tries.append(clock[0])
        raise OSError(errno.ENOSPC, f"No space left at {clock[0]}")

    with pytest.raises(OSError, match=r"No space left at 105\.0") as caught:
        retry(work, seconds=5, note=notes.append, trouble=OSError)
    assert caught.value.errno == errno.ENOSPC
    # The last pause of 4 s is cut to the 1.5 s that are left.
    assert tries == [100, 100.5, 101.5, 103.5, 105]
    assert len(notes) == 1


def test_retry_outlives_a_suspended_process(clock: list[float]) -> None:
    def work() -> str:
        if clock[0] == 100:
            # Ten minutes go by within one attempt, and count for half of one.
            clock[0] += 600
            raise StorageError("away")
        return "done"

    assert retry(work, seconds=31) == "done"


@pytest.mark.parametrize("error", [FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, UserError])
def test_retry_takes_an_answer_for_an_answer(error: type[Exception], clock: list[float]) -> None:
    def work() -> None:
        raise error("this")

    with pytest.raises(error, match="this"):
        retry(work, seconds=60)
    assert clock == [100.0]


def test_retry_takes_the_trouble_of_a_disk_for_an_answer(clock: list[float]) -> None:
    def work() -> None:
        raise OSError(errno.ENOSPC, "No space left")

    with pytest.raises(OSError, match="No space left"):
        retry(work, seconds=60)
    assert clock == [100.0]


def test_retry_without_patience(clock: list[float]) -> None:
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise StorageError("away")

    with pytest.raises(StorageError, match="away"):
        retry(work, seconds=0)
    assert tries == [1]
