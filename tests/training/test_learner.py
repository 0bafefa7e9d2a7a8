from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lungseg_ray.numerics.losses import SegmentationLoss
from lungseg_ray.training.model import build_model
from tests.helpers import make_settings
from tests.training.test_loop import assert_equal, learner, make_batch, weights


def test_first_weights_follow_from_the_seed() -> None:
    one, same, other = (build_model(make_settings(train={"seed": seed})).state_dict() for seed in (3, 3, 4))
    assert_equal(one, same)
    assert not torch.equal(one["segmentation_head.0.weight"], other["segmentation_head.0.weight"])


def test_pieces_of_a_step_add_up() -> None:
    # 4 images in 2 pieces of 2. The step is that of the mean of the pieces' losses; the sums are over images.
    settings = make_settings(train={"accumulate": 2})
    whole, byhand = learner(settings), learner(settings)
    batch = make_batch(0)
    sums = whole.step(batch)

    byhand.model.train()
    loss = SegmentationLoss(classes=1)
    parts = []
    for start in (0, 2):
        logits = byhand.model(batch.images[start : start + 2].float() / 255)
        parts.append(loss(logits, batch.masks[start : start + 2]))
    (0.5 * parts[0].total + 0.5 * parts[1].total).backward()
    byhand.optimizer.step()
    for at, name in enumerate(("total", "dice", "bce")):
        expected = sum(2 * getattr(part, name).item() for part in parts)
        assert float(sums[at]) == pytest.approx(expected, rel=1e-6)
    assert sums[3] == 4
    for (name, one), other in zip(whole.model.named_parameters(), byhand.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, msg=name)


def test_sums_of_a_step_are_over_images() -> None:
    one = learner(make_settings())
    batch = make_batch(0)
    one.model.train()
    with torch.no_grad():
        expected = SegmentationLoss(classes=1)(one.model(batch.images.float() / 255), batch.masks)
    sums = learner(make_settings()).step(batch)
    assert sums.dtype == torch.float64
    assert sums.tolist() == pytest.approx([4 * float(part) for part in expected] + [4.0], rel=1e-6)


def test_clipping_bounds_the_step() -> None:
    norms = []
    one = learner(make_settings(optim={"clip": 0.01}))

    def norm(*_: Any) -> None:
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in one.model.parameters() if p.grad is not None)))

    one.optimizer.register_step_pre_hook(norm)
    one.step(make_batch(0))
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_evaluated() -> None:
    plain, averaged = learner(make_settings()), learner(make_settings(train={"average": 0.5}))
    assert plain.evaluated is plain.model
    assert averaged.average is not None
    assert averaged.evaluated is averaged.average.module
    assert averaged.evaluated is not averaged.model


def test_frozen_parameters_stay() -> None:
    # EfficientNet has parameters that get no gradient.
    settings = make_settings(model={"encoder": "efficientnet-b0"}, optim={"weight_decay": 0.5, "lr": 0.1})
    one = learner(settings)
    assert one.frozen
    before = weights(one.model)
    one.step(make_batch(0))
    after = one.model.state_dict()
    for name in one.frozen:
        assert torch.equal(before[name], after[name]), name
    moving = [name for name, parameter in one.model.named_parameters() if name not in one.frozen]
    assert sum(not torch.equal(before[name], after[name]) for name in moving) > 0.9 * len(moving)


def test_the_step_draws_from_seed_and_step_alone() -> None:
    settings = make_settings(model={"architecture": "DeepLabV3Plus"})
    one, other = learner(settings), learner(settings)
    torch.manual_seed(99)
    first = one.step(make_batch(5))
    torch.manual_seed(1)
    torch.rand(7)
    assert torch.equal(first, other.step(make_batch(5)))
    third = learner(settings)
    assert not torch.equal(first, third.step(dataclasses.replace(make_batch(5), step=6)))
