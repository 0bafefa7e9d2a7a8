from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.config import Settings
from lungseg_ray.corpus.record import Split
from lungseg_ray.errors import UserError
from lungseg_ray.feed import stream
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.order import epoch_order
from lungseg_ray.feed.plan import Plan, Rows
from lungseg_ray.feed.stream import Addition, Feed, Source
from lungseg_ray.storage import locate
from tests.feed.helpers import as_pairs
from tests.helpers import make_settings, write_shards


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """16 usable training images in 4 files, 5 for validation in 2 files."""
    root = locate(str(tmp_path_factory.mktemp("shards")))
    skip = {"train-0": (1,), "train-2": (3,), "val-0": (0,)}
    index = write_shards(root, rows={"train": [5, 3, 4, 6], "val": [4, 2]}, skip=skip)
    assert (index.count("train"), index.count("val")) == (16, 5)
    return Source(root=root, index=index, preset="light", size=32, batch=4, window=2, seed=7)


def prepare(source: Source, split: Split, epoch: int, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    return source.plan(split, [source.rows(split, epoch, slots)]).prepare(0)


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


def test_sizes_grow_with_the_epochs(source: Source) -> None:
    growing = dataclasses.replace(source, sizes=(32, 64))
    for epoch, size in enumerate((32, 64)):
        assert prepare(growing, "train", epoch, np.arange(3))["image"].shape == (3, size, size, 1)
        assert prepare(growing, "val", epoch, np.arange(3))["image"].shape == (3, 32, 32, 1)
    found = make_settings(feed={"sizes": [64, 96, 128]}, train={"epochs": 7}).size_of_epochs
    assert found == [64, 64, 64, 96, 96, 128, 128]
    assert make_settings().size_of_epochs == []
    with pytest.raises(ValueError, match=r"feed\.sizes has 3 sizes for train\.epochs = 2; the last ones"):
        make_settings(feed={"sizes": [64, 96, 128]}, train={"epochs": 2})


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = locate(str(tmp_path_factory.mktemp("other")))
    index = write_shards(root, rows={"train": [5, 4], "val": [1]}, skip={}, salt="other ")
    return Source(root=root, index=index, preset="light", size=32, batch=4, window=2, seed=7)


class TestMixing:
    def mixed(self, source: Source, other: Source, *, share: float, epochs: range) -> Source:
        return dataclasses.replace(source, additions=(Addition(other.root, other.index, share, epochs),))

    def ids(self, source: Source, epoch: int) -> list[str]:
        found: list[str] = prepare(source, "train", epoch, np.arange(source.index.count("train")))["image_id"].tolist()
        return found

    def test_takes_its_share_in_its_epochs(self, source: Source, other: Source) -> None:
        mixed = self.mixed(source, other, share=0.5, epochs=range(1, 2))
        count = source.index.count("train")
        assert mixed.steps_per_epoch == source.steps_per_epoch
        for epoch in (0, 2):
            assert self.ids(mixed, epoch) == self.ids(source, epoch)
        found, alone = self.ids(mixed, 1), self.ids(source, 1)
        theirs = [name for name in found if name.startswith("other")]
        assert len(theirs) == len(set(theirs)) == round(0.5 * count)
        # The rest are where they would be without it.
        assert all(one == there for one, there in zip(found, alone, strict=True) if not one.startswith("other"))
        assert self.ids(mixed, 1) == found

    def test_no_image_comes_twice_in_an_epoch(self, source: Source, other: Source) -> None:
        found = self.ids(self.mixed(source, other, share=1.0, epochs=range(9)), 0)
        theirs = [name for name in found if name.startswith("other")]
        assert len(theirs) == len(set(theirs)) == min(other.index.count("train"), source.index.count("train"))
        assert len(found) == len(set(found))

    def test_shares_that_are_all_of_it(self, other: Source, tmp_path: Path) -> None:
        # Half of seven is rounded to four, twice.
        index = write_shards(locate(str(tmp_path)), rows={"train": [4, 3], "val": [1]}, skip={})
        half = Addition(other.root, other.index, 0.5, range(9))
        odd = dataclasses.replace(other, root=locate(str(tmp_path)), index=index, additions=(half, half))
        found = self.ids(odd, 0)
        assert len(found) == 7
        assert all(name.startswith("other") for name in found)

    def test_validation_is_that_of_the_run(self, source: Source, other: Source) -> None:
        mixed = self.mixed(source, other, share=1.0, epochs=range(9))
        places = [prepare(one, "val", 0, np.arange(5))["image_id"].tolist() for one in (mixed, source)]
        assert places[0] == places[1]

    def test_settings(self, source: Source, other: Source) -> None:
        asked = {"root": str(other.root), "share": 0.25, "first": 0.25, "until": 0.5}

        def settings(**change: Any) -> Settings:
            own = {"root": str(source.root)}
            return make_settings(corpora=[{**asked, **change}], shards=own, train={"epochs": 8})

        (found,) = Source.of(settings(), source.index).additions
        assert (found.index, found.share, found.epochs) == (other.index, 0.25, range(2, 4))
        with pytest.raises(UserError, match="other shards than those that the run has mixed in so far"):
            Source.of(settings(fingerprint="0"), source.index)
        with pytest.raises(UserError, match=r"from 0.3 to 0.31 of 8 epochs is no epoch"):
            Source.of(settings(first=0.3, until=0.31), source.index)
        colour = other.index.model_copy(
            update={"corpus": other.index.corpus.model_copy(update={"class_names": ["heart"]})}
        )
        with pytest.raises(UserError, match=r"cannot be mixed in \(corpora\): class_names = \['lung'\], and not"):
            Source.of(settings(), colour)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, list[int]]]:
    """What feeds ask of Ray Data, as (side, epoch, first step, slots); nothing is read."""
    calls: list[tuple[str, int, int, list[int]]] = []

    def run(one: Feed, split: str, chunks: list[Rows], *, step: int) -> Iterator[Batch]:
        for rows in chunks:
            calls.append((split, rows.epoch, step, rows.slots.tolist()))
            step += len(rows.slots) // one.batch
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


def test_depth_is_in_batches(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []
    monkeypatch.setattr(stream, "ReadAhead", lambda _, depth: depths.append(depth))
    # Images to keep ready, for 2 images to a step of this rank: 8 / 2 = 4 batches, and never none.
    for ahead in (8, 9, 1):
        Feed(source, 0, 2, tasks=1, ahead=ahead).train(step=0, epochs=1)
    assert depths == [4, 4, 1]


def test_chunks_without_cpus_are_prepared_here(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data tasks prepare a chunk, then their node is lost; after two more chunks there is one again."""
    cpus = iter([1, 0, 0, 1])
    began: list[int] = []

    def from_tasks(one: Feed, plan: Plan, first: int, tasks: int) -> Iterator[dict[str, NDArray[Any]]]:
        assert tasks == 1
        began.append(first)
        yield plan.prepare(first)

    monkeypatch.setattr(Feed, "_tasks", lambda one: next(cpus))
    monkeypatch.setattr(Feed, "_from_tasks", from_tasks)
    monkeypatch.setattr(stream, "CHUNK_IMAGES", 4)
    one = Feed(source, 0, 1, tasks=1, ahead=4)
    found = [name for batch in one.train(step=0, epochs=1) for name in batch.image_ids]
    assert began == [0, 3]
    order = as_pairs(epoch_order(source.index.of("train"), seed=7, epoch=0, window=2))
    assert found == [f"train-{number}-{row}" for number, row in order]
