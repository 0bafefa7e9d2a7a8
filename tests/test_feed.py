from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungseg_ray.errors import UserError
from lungseg_ray.feed import stream
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.order import epoch_order
from lungseg_ray.feed.read_ahead import ReadAhead
from lungseg_ray.feed.stream import Feed, Source, prepare
from lungseg_ray.shards.format import Shard
from lungseg_ray.storage import locate
from tests.helpers import ROOT, write_shards

# Files of 5, 3, 4 and 6 rows, of which 2 do not count: 16 rows in an epoch.
SHARDS = [
    Shard(file="train-0.parquet", split="train", rows=5, skip=(1,)),
    Shard(file="train-1.parquet", split="train", rows=3),
    Shard(file="train-2.parquet", split="train", rows=4, skip=(3,)),
    Shard(file="train-3.parquet", split="train", rows=6),
]
USABLE = {(number, row) for number, shard in enumerate(SHARDS) for row in shard.usable}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """16 usable training images in 4 files, 5 for validation in 2 files."""
    root = locate(str(tmp_path_factory.mktemp("shards")))
    skip = {"train-0": (1,), "train-2": (3,), "val-0": (0,)}
    index = write_shards(root, rows={"train": [5, 3, 4, 6], "val": [4, 2]}, skip=skip)
    assert (index.count("train"), index.count("val")) == (16, 5)
    return Source(root=root, index=index, preset="light", size=32, batch=4, window=2, seed=7)


def as_pairs(order: Any) -> list[tuple[int, int]]:
    return [(int(number), int(row)) for number, row in order]


class TestOrder:
    @pytest.mark.parametrize("window", [1, 2, 3, 4, 64])
    def test_every_usable_row_once(self, window: int) -> None:
        order = epoch_order(SHARDS, seed=0, epoch=0, window=window)
        assert order.shape == (16, 2)
        assert order.dtype == np.int64
        assert set(as_pairs(order)) == USABLE

    def test_epoch_and_seed_decide(self) -> None:
        seen = {
            tuple(as_pairs(epoch_order(SHARDS, seed=seed, epoch=epoch, window=64)))
            for seed in range(5)
            for epoch in range(5)
        }
        assert len(seen) == 25
        again = [as_pairs(epoch_order(SHARDS, seed=3, epoch=2, window=2)) for _ in range(2)]
        assert again[0] == again[1]

    @pytest.mark.parametrize("window", [1, 2, 3])
    def test_rows_of_a_window_stand_together(self, window: int) -> None:
        mixed = 0
        for epoch in range(20):
            numbers = [number for number, _ in as_pairs(epoch_order(SHARDS, seed=0, epoch=epoch, window=window))]
            files = list(dict.fromkeys(numbers))
            start = 0
            for first in range(0, len(files), window):
                together = files[first : first + window]
                count = sum(len(SHARDS[number].usable) for number in together)
                inside = numbers[start : start + count]
                assert set(inside) == set(together)
                changes = sum(one != other for one, other in itertools.pairwise(inside))
                mixed += changes >= len(together)
                start += count
        # Within a window the rows of its files are mixed.
        assert (mixed > 0) == (window > 1)

    def test_no_shards(self) -> None:
        assert epoch_order([], seed=0, epoch=0, window=2).shape == (0, 2)

    def test_the_same_in_another_process(self) -> None:
        code = (
            "import sys, json\n"
            "from lungseg_ray.feed.order import epoch_order\n"
            "from lungseg_ray.shards.format import Shard\n"
            "shards = [Shard.model_validate(one) for one in json.loads(sys.argv[1])]\n"
            "print(json.dumps([epoch_order(shards, seed=5, epoch=e, window=2).tolist() for e in range(3)]))\n"
        )
        shards = json.dumps([shard.model_dump() for shard in SHARDS])
        found = subprocess.run(
            [sys.executable, "-c", code, shards],
            env={**os.environ, "PYTHONHASHSEED": "12345"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        here = [epoch_order(SHARDS, seed=5, epoch=epoch, window=2).tolist() for epoch in range(3)]
        assert json.loads(found.stdout) == here


class TestPrepare:
    def test_follows_the_order(self, source: Source) -> None:
        found = prepare(source, "train", 1, np.arange(16))
        order = as_pairs(epoch_order(source.index.of("train"), seed=7, epoch=1, window=2))
        assert found["image_id"].tolist() == [f"train-{number}-{row}" for number, row in order]
        assert found["slot"].tolist() == list(range(16))
        assert found["image"].shape == (16, 32, 32, 1)
        assert found["mask"].shape == (16, 32, 32)
        assert found["image"].dtype == found["mask"].dtype == np.uint8
        assert set(np.unique(found["mask"])) == {0, 1}

    def test_twice_the_same(self, source: Source) -> None:
        slots = np.array([3, 0, 15, 8])
        first, second = prepare(source, "train", 0, slots), prepare(source, "train", 0, slots)
        for key in ("image", "mask", "image_id", "slot"):
            np.testing.assert_array_equal(first[key], second[key])

    def test_does_not_depend_on_what_is_asked_for_together(self, source: Source) -> None:
        whole = prepare(source, "train", 2, np.arange(16))
        for slots in ([5], [15, 2, 9], [0, 1, 2, 3], [7, 7]):
            part = prepare(source, "train", 2, np.array(slots))
            for key in ("image", "mask", "image_id"):
                np.testing.assert_array_equal(part[key], whole[key][slots])

    def test_another_epoch_another_augmentation(self, source: Source) -> None:
        pixels: dict[str, set[bytes]] = {}
        for epoch in range(3):
            found = prepare(source, "train", epoch, np.arange(16))
            for name, image in zip(found["image_id"], found["image"], strict=True):
                pixels.setdefault(name, set()).add(image.tobytes())
        assert len(pixels) == 16
        assert all(len(drawn) == 3 for drawn in pixels.values())

    def test_another_seed_another_order(self, source: Source) -> None:
        other = dataclasses.replace(source, seed=8)
        names = [prepare(one, "train", 0, np.arange(16))["image_id"].tolist() for one in (source, other, source)]
        assert names[0] == names[2] != names[1]
        assert sorted(names[0]) == sorted(names[1])

    def test_validation_is_plain_and_skips(self, source: Source) -> None:
        found = prepare(source, "val", 0, np.arange(5))
        assert found["image_id"].tolist() == ["val-0-1", "val-0-2", "val-0-3", "val-1-0", "val-1-1"]
        plain = prepare(dataclasses.replace(source, preset="valid"), "val", 0, np.arange(5))
        np.testing.assert_array_equal(found["image"], plain["image"])


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, list[int]]]:
    """What feeds ask of Ray Data, as (side, epoch, first step, slots); nothing is read."""
    calls: list[tuple[str, int, int, list[int]]] = []

    def run(one: Feed, split: str, chunks: list[tuple[int, Any]], *, step: int) -> Iterator[Batch]:
        for epoch, slots in chunks:
            calls.append((split, epoch, step, slots.tolist()))
            step += len(slots) // one.batch
        return iter(())

    monkeypatch.setattr(Feed, "_run", run)
    return calls


class TestRanks:
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    @pytest.mark.parametrize("step", [0, 1, 4, 6])
    def test_slices_unite_to_the_global_batches(
        self, world_size: int, step: int, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # 16 images in batches of 4: 4 steps in each of 3 epochs; the batch of step s is slots 4 s to 4 s + 3.
        calls = recorded(monkeypatch)
        batches: dict[int, list[int]] = {}
        for rank in range(world_size):
            one = Feed(source, rank, world_size, tasks=1, ahead=4)
            list(one._train(step, 3))
            for split, epoch, first, slots in calls:
                assert split == "train"
                assert first // 4 == epoch
                for number, start in enumerate(range(0, len(slots), one.batch)):
                    batches.setdefault(first + number, []).extend(slots[start : start + one.batch])
            calls.clear()
        assert batches == {at: [at % 4 * 4 + slot for slot in range(4)] for at in range(step, 12)}

    def test_the_last_incomplete_batch_is_dropped(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = recorded(monkeypatch)
        six = dataclasses.replace(source, batch=6)
        assert six.steps_per_epoch == 2
        list(Feed(six, 1, 2, tasks=1, ahead=4)._train(1, 2))
        assert calls == [("train", 0, 1, [9, 10, 11]), ("train", 1, 2, [3, 4, 5, 9, 10, 11])]

    def test_nothing_is_left_after_the_last_epoch(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = recorded(monkeypatch)
        assert list(Feed(source, 0, 1, tasks=1, ahead=4).train(step=12, epochs=3)) == []
        assert calls == []

    @pytest.mark.parametrize("world_size", [1, 2, 4, 8])
    def test_validation_slots_once(self, world_size: int, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = recorded(monkeypatch)
        source = dataclasses.replace(source, batch=8)
        for rank in range(world_size):
            list(Feed(source, rank, world_size, tasks=1, ahead=4).validation())
        assert {(split, epoch, step) for split, epoch, step, _ in calls} == {("val", 0, 0)}
        assert sorted(slot for *_, slots in calls for slot in slots) == [0, 1, 2, 3, 4]


class TestSource:
    def test_too_few_images(self, source: Source) -> None:
        assert dataclasses.replace(source, batch=16).steps_per_epoch == 1
        with pytest.raises(UserError, match=r"16 training images do not fill one batch of 17\. Lower feed\.batch"):
            dataclasses.replace(source, batch=17)

    def test_no_validation(self, source: Source, tmp_path: Path) -> None:
        index = write_shards(locate(str(tmp_path)), rows={"train": [4], "val": [1]}, skip={"val-0": (0,)})
        with pytest.raises(UserError, match=r"no images for validation\. Raise corpus\.split\.val"):
            dataclasses.replace(source, index=index)

    def test_unknown_preset(self, source: Source) -> None:
        with pytest.raises(UserError, match="'hard'"):
            dataclasses.replace(source, preset="hard")


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


def test_depth_is_in_batches(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []
    monkeypatch.setattr(stream, "ReadAhead", lambda _, depth: depths.append(depth))
    # Images to keep ready, for 2 images to a step of this rank: 8 / 2 = 4 batches, and never none.
    for ahead in (8, 9, 1):
        Feed(source, 0, 2, tasks=1, ahead=ahead).train(step=0, epochs=1)
    assert depths == [4, 4, 1]
