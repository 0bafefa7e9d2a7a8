"""The stream contract: what the model sees at a step does not depend on workers, tasks or restarts."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import pytest

from lungseg_ray.errors import JobFailedError
from lungseg_ray.feed.batch import Batch
from lungseg_ray.feed.cache import ShardCache
from lungseg_ray.feed.stream import Addition, Feed, Source
from lungseg_ray.shards.describe import Outcome
from lungseg_ray.storage import locate

BATCH, EPOCHS, SEED = 4, 2, 3
Seen = dict[int, dict[str, str]]


@pytest.fixture(scope="module")
def source(sharded: Outcome) -> Source:
    return Source(sharded.root, sharded.index, preset="heavy", size=32, batch=BATCH, window=2, seed=SEED)


def digest(batch: Batch) -> dict[str, str]:
    pairs = zip(batch.images.numpy(), batch.masks.numpy(), strict=True)
    hashes = [hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() for image, mask in pairs]
    return dict(zip(batch.image_ids, hashes, strict=True))


def stream(source: Source, *, world_size: int, tasks: int, step: int = 0) -> Seen:
    """For each global step, the hash of each image's augmented pixels, over all ranks."""
    seen: Seen = {}
    for rank in range(world_size):
        batches = Feed(source, rank, world_size, tasks, ahead=8).train(step=step, epochs=EPOCHS)
        for batch in batches:
            assert len(batch.image_ids) == BATCH // world_size
            seen.setdefault(batch.step, {}).update(digest(batch))
        batches.close()
    return seen


@pytest.fixture(scope="module")
def reference(source: Source) -> Seen:
    return stream(source, world_size=1, tasks=1)


def test_an_epoch_shows_each_image_once_and_another_order_and_other_pixels_in_the_next(
    source: Source, reference: Seen
) -> None:
    steps = source.steps_per_epoch
    assert sorted(reference) == list(range(EPOCHS * steps))
    assert all(len(images) == BATCH for images in reference.values())
    epochs = [
        [name for step in range(epoch * steps, (epoch + 1) * steps) for name in reference[step]]
        for epoch in range(EPOCHS)
    ]
    for names in epochs:
        assert max(Counter(names).values()) == 1
        assert len(names) == source.index.count("train") // BATCH * BATCH
    assert epochs[0] != epochs[1]
    both = {name: [images[name] for images in reference.values() if name in images] for name in epochs[0]}
    changed = sum(len(set(hashes)) == 2 for hashes in both.values() if len(hashes) == 2)
    assert changed == sum(len(hashes) == 2 for hashes in both.values())


@pytest.mark.parametrize(("world_size", "tasks"), [(1, 4), (4, 2), (2, 0)])
def test_any_number_of_workers_and_tasks_sees_the_same(
    source: Source, reference: Seen, world_size: int, tasks: int
) -> None:
    assert stream(source, world_size=world_size, tasks=tasks) == reference


@pytest.mark.parametrize("tasks", [0, 2])
def test_a_cache_changes_nothing(source: Source, reference: Seen, tmp_path: Path, tasks: int) -> None:
    cached = dataclasses.replace(source, cache=ShardCache(str(tmp_path), 1 << 40))
    for _ in ("cold", "warm"):
        assert stream(cached, world_size=2, tasks=tasks) == reference
    assert {path.stem for path in tmp_path.iterdir()} == {shard.footer for shard in source.index.of("train")}


def test_growing_images_and_a_corpus_that_is_mixed_in(source: Source) -> None:
    """The other corpus is the validation half of the same shards, so that its images are known."""
    theirs = source.index.of("val")
    other = source.index.model_copy(
        update={"shards": [shard.model_copy(update={"split": "train"}) for shard in theirs], "fingerprint": "other"}
    )
    addition = Addition(source.root, other, share=0.25, epochs=range(1, EPOCHS))
    mixed = dataclasses.replace(source, sizes=(32, 64), additions=(addition,))
    expected = stream(mixed, world_size=1, tasks=0)
    assert stream(mixed, world_size=2, tasks=2) == expected
    steps = mixed.steps_per_epoch
    rest = {step: images for step, images in expected.items() if step >= steps - 1}
    assert stream(mixed, world_size=1, tasks=2, step=steps - 1) == rest
    shapes = [(batch.step, batch.images.shape[2]) for batch in Feed(mixed, 0, 1, 2, ahead=8).train(step=0, epochs=2)]
    assert shapes == [(step, 32 if step < steps else 64) for step in range(2 * steps)]
    known = {name for batch in Feed(source, 0, 1, 0, ahead=8).validation() for name in batch.image_ids}
    counts = [sum(len(known & expected[epoch * steps + step].keys()) for step in range(steps)) for epoch in range(2)]
    assert counts[0] == 0 < counts[1]


@pytest.mark.parametrize("cut", [3, 11])
def test_a_run_that_was_cut_goes_on_with_the_rest(source: Source, reference: Seen, cut: int) -> None:
    rest = {step: images for step, images in reference.items() if step >= cut}
    assert stream(source, world_size=2, tasks=1, step=cut) == rest


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_validation_image_comes_exactly_once(source: Source, world_size: int) -> None:
    names = Counter(
        name
        for rank in range(world_size)
        for batch in Feed(source, rank, world_size, 2, ahead=8).validation()
        for name in batch.image_ids
    )
    assert set(names.values()) == {1}
    assert len(names) == source.index.count("val")


@pytest.mark.parametrize("tasks", [0, 1])
def test_a_damaged_shard_is_named(source: Source, tmp_path: Path, tasks: int) -> None:
    shutil.copytree(source.root.path, tmp_path / "shards")
    root = locate(str(tmp_path / "shards"))
    for shard in source.index.of("train"):
        (root / shard.file).write_bytes((root / shard.file).read_bytes()[:-100])
    batches = Feed(dataclasses.replace(source, root=root), 0, 1, tasks, ahead=8).train(step=0, epochs=1)
    with pytest.raises(JobFailedError, match=r"train-\d+-\w+\.parquet: expected the shard that was written there"):
        next(batches)
    batches.close()
