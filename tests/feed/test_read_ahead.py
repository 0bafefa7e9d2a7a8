from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lungseg_ray.errors import UserError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.read_ahead import ReadAhead


def batches(count: int, *, fail_at: int | None = None) -> Iterator[Batch]:
    for step in range(count):
        if step == fail_at:
            raise UserError("the shard is gone")
        empty = torch.zeros(0, dtype=torch.uint8)
        yield Batch(step=step, images=empty, masks=empty, image_ids=[])


class TestReadAhead:
    @pytest.mark.parametrize("depth", [1, 3, 100])
    def test_order(self, depth: int) -> None:
        assert [batch.step for batch in ReadAhead(batches(10), depth=depth)] == list(range(10))

    def test_asking_again_after_the_end_or_an_error_does_not_wait(self) -> None:
        def failing() -> Iterator[Batch]:
            yield from batches(1)
            raise ValueError("broken")

        ended, failed = ReadAhead(batches(1), depth=2), ReadAhead(failing(), depth=2)
        assert len(list(ended)) == len(list(ended)) + 1
        next(failed)
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                next(failed)
        closed = ReadAhead(batches(5), depth=2)
        closed.close()
        with pytest.raises(StopIteration):
            next(closed)

    def test_starts_before_it_is_asked(self) -> None:
        reached = threading.Event()

        def slow() -> Iterator[Batch]:
            yield from batches(2)
            reached.set()

        ahead = ReadAhead(slow(), depth=3)
        assert reached.wait(10)
        assert len(list(ahead)) == 2

    def test_waits_no_longer_than_asked(self) -> None:
        go_on = threading.Event()

        def late() -> Iterator[Batch]:
            go_on.wait(10)
            yield from batches(1)

        ahead = ReadAhead(late(), depth=1)
        with pytest.raises(TimeoutError):
            ahead.next_within(0.01)
        go_on.set()
        assert next(ahead).step == 0

    def test_keeps_no_more_ready_than_its_depth(self) -> None:
        made: list[int] = []

        def counted() -> Iterator[Batch]:
            for batch in batches(100):
                made.append(batch.step)
                yield batch

        ahead = ReadAhead(counted(), depth=3)
        next(ahead)
        ahead.close()
        # One taken, three ready, one in hand.
        assert len(made) <= 5

    def test_an_error_is_handed_on_in_its_place(self) -> None:
        ahead = ReadAhead(batches(5, fail_at=2), depth=10)
        assert [next(ahead).step, next(ahead).step] == [0, 1]
        with pytest.raises(UserError, match="the shard is gone"):
            next(ahead)
        ahead.close()

    def test_close_ends_the_thread_when_nobody_takes(self) -> None:
        before = {thread.ident for thread in threading.enumerate()}
        ahead = ReadAhead(batches(10**9), depth=2)
        started = [thread for thread in threading.enumerate() if thread.ident not in before]
        assert [thread.name for thread in started] == ["feed"]
        ahead.close()
        assert not started[0].is_alive()
