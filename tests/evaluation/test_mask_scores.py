"""Masks beside predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungseg_ray.evaluation.mask_scores import ComparedMask, Judge, believed, compare_masks
from lungseg_ray.inference.predictor import Model
from lungseg_ray.run.folder import BEST, Run
from lungseg_ray.shards.index import read_index
from lungseg_ray.storage import locate
from lungseg_ray.training.model import build_model
from tests.helpers import make_settings, write_shards
from tests.inference.helpers import save_small_model


def compared(dice: float, certain: float) -> ComparedMask:
    return ComparedMask("a", "p", "train", "s.parquet", 0, dice, certain, seen=False, model=0)


def test_an_error_of_a_certain_model_is_more_suspicious() -> None:
    assert compared(0.8, 0.98).suspicion == pytest.approx(10)
    assert compared(0.8, 0.8).suspicion == pytest.approx(1)
    # Nobody is certain without end.
    assert compared(0.9, 1.0).suspicion == pytest.approx(10)


def test_what_a_model_believes() -> None:
    sure = np.zeros((4, 4, 1), np.float32)
    sure[:2] = 1
    labels = sure[:, :, 0].astype(np.uint8)
    assert believed(sure, labels) == 1
    assert believed(sure * 0.6, labels) == pytest.approx(2 * 0.6 / 1.6)
    # A model that is sure of nothing, and one that nearly found something.
    assert believed(sure * 0, labels * 0) == 1
    assert believed(sure * 0.4, labels * 0) == pytest.approx(0.6)
    # Of several labels, the mean of those that are found.
    three = np.concatenate([1 - sure, sure, np.zeros_like(sure)], axis=2)
    assert believed(three, labels) == 1


def test_models_that_have_not_seen_an_image_count(cluster: None, tmp_path: Path) -> None:
    shards = locate(str(tmp_path / "shards"))
    write_shards(shards, rows={"train": [5, 4], "val": [3], "test": [2]}, skip={})
    index = read_index(shards)
    models = []
    for seed, name in enumerate(("one", "two")):
        save_small_model(locate(str(tmp_path / name)) / BEST, build_model(make_settings(train={"seed": seed})))
        models.append(Model((Run(locate(str(tmp_path / name))),)))
    first, second = ([(shard, row) for row in shard.usable] for shard in index.of("train"))
    others = [(shard, row) for shard in index.of("val") for row in shard.usable]
    # One of four images that the first model was trained on is new to the second.
    judges = [Judge(models[0], [*first, *others], second), Judge(models[1], [*others, second[0]])]
    found = compare_masks(judges, shards)
    assert len(found) == 12
    assert [one.seen for one in found].count(True) == 3
    assert {one.split for one in found} == {"train", "val"}
    assert found == sorted(found, key=lambda one: -one.suspicion)
    assert all(0 <= one.dice <= 1 for one in found)
    alone = [
        {one.image_id: one.dice for one in compare_masks([Judge(model, [*others, *second])], shards)}
        for model in models
    ]
    by_place = {(one.file, one.row): one for one in found}
    # The mean of two models for what is new to both, and one of them alone for what is new to it alone.
    for shard, row in others:
        one = by_place[shard.file, row]
        assert alone[0][one.image_id] != alone[1][one.image_id]
        assert one.dice == pytest.approx((alone[0][one.image_id] + alone[1][one.image_id]) / 2)
    shard, row = second[0]
    one = by_place[shard.file, row]
    assert one.dice == alone[1][one.image_id] != alone[0][one.image_id]
