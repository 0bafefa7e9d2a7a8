from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lungseg_ray.cluster.planning import TrainingPlan
from lungseg_ray.config import Settings, merge
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.plan import LADDER, MOST_EPOCHS, RECIPE, RunCost, RungCost, _rungs, choose, estimate
from lungseg_ray.models import check
from lungseg_ray.shards.index import ShardIndex, SplitFigures
from lungseg_ray.storage import locate
from lungseg_ray.training.model import model_cost
from lungseg_ray.training.step_cost import StepCost
from lungseg_ray.workers.worker import CACHED_VALIDATION_BYTES
from tests.helpers import make_settings, write_shards

PLAN = TrainingPlan(workers=1, device="cpu", cpus_per_worker=1, data_cpus=1, data_tasks=1)
COST = RungCost(StepCost("fp32", 9.0, 40.0, 2**30, 4_000_000), prepare_seconds=0.01, started=4.0, available=8 * 2**30)


@pytest.fixture
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    made = write_shards(locate(str(tmp_path_factory.mktemp("shards"))), rows={"train": [1]}, skip={})
    splits = {
        split: SplitFigures(images=images, patients=1, label_shares={}, intensity_mean=0, intensity_std=0)
        for split, images in (("train", 160), ("val", 40), ("test", 20))
    }
    return made.model_copy(update={"splits": splits})


class TestEstimate:
    settings = make_settings(feed={"size": 64, "batch": 8}, evaluate={"robustness": 0})

    def test_of_a_minute(self, index: ShardIndex) -> None:
        # Computed by hand: an image takes 1 / (9 x 0.9) + 0.01 / 2 s, a validation image 1 / 40 s.
        epoch = 160 * (1 / 8.1 + 0.005) + 40 / 40 + 0.4
        start, evaluation = 6.0 + 2 * 4.0 + 3, 4.0 + 20 / 40 + 20 * 0.15 / 2
        found = estimate(self.settings, index, PLAN, COST, 6.0, start + evaluation + 3.5 * epoch)
        assert (found.epochs, found.images) == (3, 480)
        assert found.seconds == pytest.approx({"start": start, "training": 3 * epoch, "evaluation": evaluation})
        assert found.memory == 2**30 + (64 + 40) * 64 * 64 * 2
        assert found.storage == 4 * 4_000_000 * (3 * 4 + 1)

    def test_training_keeps_validation_images_up_to_a_size(self, index: ShardIndex) -> None:
        many = CACHED_VALIDATION_BYTES // (64 * 64 * 2)
        memory = []
        for images in (many, many + 1):
            val = index.splits["val"].model_copy(update={"images": images})
            larger = index.model_copy(update={"splits": {**index.splits, "val": val}})
            memory.append(estimate(self.settings, larger, PLAN, COST, 6.0, 1e9).memory)
        assert memory == [2**30 + 64 * 64 * 64 * 2 + CACHED_VALIDATION_BYTES, 2**30 + 64 * 64 * 64 * 2]

    def test_bounds(self, index: ShardIndex) -> None:
        assert estimate(self.settings, index, PLAN, COST, 6.0, 10.0).epochs == 0
        asked = [estimate(self.settings, index, PLAN, COST, 6.0, 120.0, epochs=epochs).epochs for epochs in (2, 100)]
        assert asked == [2, 0]
        assert estimate(self.settings, index, PLAN, COST, 6.0, 1e9, epochs=MOST_EPOCHS + 1).epochs == MOST_EPOCHS + 1
        assert estimate(self.settings, index, PLAN, COST, 6.0, 1e9).epochs == MOST_EPOCHS

    def test_a_gpu_waits_for_its_images(self, index: ShardIndex) -> None:
        plan = dataclasses.replace(PLAN, device="cuda", cpus_per_worker=0, data_cpus=2, data_tasks=2)
        fast = dataclasses.replace(COST, step=dataclasses.replace(COST.step, images_per_s=1000.0))
        found = estimate(self.settings, index, plan, fast, 6.0, 1e9)
        assert found.seconds["training"] / found.epochs == pytest.approx(160 * 0.005 + 1.0 + 0.4)
        # The images that wait are in the memory of the machine, not in that of the GPU.
        assert found.memory == 2**30

    def of(self, index: ShardIndex, feed: dict[str, Any], model: dict[str, Any]) -> RunCost:
        return estimate(make_settings(feed=feed, model=model, evaluate={}), index, PLAN, COST, 6.0, 1e9)

    def test_mirror_images_and_smaller_sizes(self, index: ShardIndex) -> None:
        plain, mirrored, growing = (
            estimate(
                make_settings(feed={"size": 64, "sizes": sizes}, model={"flips": flips}), index, PLAN, COST, 6.0, 1e9
            )
            for sizes, flips in (([], "none"), ([], "all"), ([32, 64], "none"))
        )
        assert mirrored.seconds["evaluation"] - plain.seconds["evaluation"] == pytest.approx(3 * 20 / 40)
        images = [one.seconds["training"] / MOST_EPOCHS - 1.4 for one in (growing, plain)]
        assert images[0] / images[1] == pytest.approx((1 / 4 + 1) / 2)


class TestChoice:
    def tried(self, index: ShardIndex, *rates: float) -> list:  # type: ignore[type-arg]
        costs = [dataclasses.replace(COST, step=dataclasses.replace(COST.step, images_per_s=rate)) for rate in rates]
        settings = make_settings(feed={"size": 64, "batch": 8})
        return [
            (rung, estimate(settings, index, PLAN, cost, 6.0, 1200)) for rung, cost in zip(LADDER, costs, strict=False)
        ]

    def test_the_heaviest_that_sees_enough(self, index: ShardIndex) -> None:
        tried = self.tried(index, 60, 20, 12, 4)
        assert [one.images >= rung.least_images for rung, one in tried] == [True, True, True, False]
        assert choose(tried, 20, 2**40) == 2

    def test_else_the_lightest(self, index: ShardIndex) -> None:
        assert choose(self.tried(index, 1, 0.5, 0.2), 20, 2**40) == 0

    def test_memory_is_a_bound(self, index: ShardIndex) -> None:
        tried = self.tried(index, 60, 20, 12)
        tried[2] = (tried[2][0], dataclasses.replace(tried[2][1], memory=2**34))
        assert choose(tried, 20, 2**33) == 1
        with pytest.raises(UserError, match=r"Nothing fits into 20 minutes and 0.5 GiB for each worker: start and"):
            choose(tried, 20, 2**29)


def test_the_rungs_exist_and_become_heavier() -> None:
    costs = []
    for rung in LADDER:
        settings = Settings.model_validate(merge(RECIPE, rung.settings))
        check(
            architecture=settings.model.architecture,
            encoder=settings.model.encoder,
            decoder_channels=settings.model.decoder_channels,
            size=settings.feed.size,
        )
        costs.append((rung.least_images, model_cost(settings).gflops))
    assert costs == sorted(costs)
    assert [gflops for _, gflops in costs] == sorted(gflops for _, gflops in costs)
    assert len(_rungs({})) == len(LADDER)
    # What the user sets makes some of them alike.
    asked = {"model": {"architecture": "FPN"}, "feed": {"size": 128}}
    assert [rung.settings["model"].get("decoder_channels") for rung in _rungs(asked)] == [None] * 3
    (one,) = _rungs({"model": {"from": "runs/x"}})
    assert one.settings == {"model": {}, "feed": {}}
