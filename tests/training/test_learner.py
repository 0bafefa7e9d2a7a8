from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from lungseg_ray.numerics import lookahead
from lungseg_ray.numerics import optim as optim_module
from lungseg_ray.numerics.losses import SegmentationLoss
from lungseg_ray.run import checkpoint
from lungseg_ray.run.progress import Progress
from lungseg_ray.training.learner import MOST_OVERFLOWS, Learner, Overflows, Step, StepResult
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
    sums = whole.step(batch).result().sums

    byhand.model.train()
    loss = SegmentationLoss(classes=1)
    parts = []
    for start in (0, 2):
        logits = byhand.model(batch.images[start : start + 2].float() / 255)
        parts.append(loss(logits, batch.masks[start : start + 2]))
    (0.5 * parts[0].total + 0.5 * parts[1].total).backward()
    byhand.optimizer.step()
    for key, name in (("loss", "total"), ("loss_dice", "dice"), ("loss_bce", "bce")):
        expected = sum(2 * getattr(part, name).item() for part in parts)
        assert sums[key] == pytest.approx(expected, rel=1e-6)
    assert sums["images"] == 4
    for (name, one), other in zip(whole.model.named_parameters(), byhand.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, msg=name)


def test_sums_of_a_step_are_over_images() -> None:
    one = learner(make_settings())
    batch = make_batch(0)
    one.model.train()
    with torch.no_grad():
        expected = SegmentationLoss(classes=1)(one.model(batch.images.float() / 255), batch.masks)
    result = learner(make_settings()).step(batch, [0.0, 3.0]).result()
    assert [*result.sums.values()] == pytest.approx([4 * float(part) for part in expected] + [4.0], rel=1e-6)
    assert (result.agreed, result.not_finite) == ([0.0, 3.0], None)


class TestOverflows:
    """Gradients of fp16 that are not finite, on a CPU with the same code."""

    def test_a_few_in_a_row_are_expected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = learner(make_settings(train={"max_skipped": 0}), precision="fp16")
        before = {name: value.clone() for name, value in one.model.state_dict().items()}
        monkeypatch.setattr(nn.utils, "get_total_norm", lambda *_: torch.tensor(math.inf))
        found = [one.step(make_batch(step)).result().not_finite for step in range(MOST_OVERFLOWS + 2)]
        assert found == [None] * MOST_OVERFLOWS + ["norm of the gradient is inf"] * 2
        # The statistics of BatchNorm are as they were, too.
        assert_equal(one.model.state_dict(), before)

    def test_a_step_that_is_made_starts_the_count_anew(self) -> None:
        overflows = Overflows(in_a_row=MOST_OVERFLOWS)
        values = torch.tensor([1.0, 0.5, 0.5, 4.0, 0.1, 1.0, 1.0], dtype=torch.float64)
        assert Step(make_batch(0), values, overflows=overflows).result().not_finite is None
        assert overflows.in_a_row == 0


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
    first = one.step(make_batch(5)).result().sums
    torch.manual_seed(1)
    torch.rand(7)
    assert first == other.step(make_batch(5)).result().sums
    third = learner(settings)
    assert first != third.step(dataclasses.replace(make_batch(5), step=6)).result().sums


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """The average of weights is another formula on a device, equal but for the last bits."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


class TestOnTheDevice:
    """On GPUs, the device decides whether a step is left out; here, a CPU takes the same branches."""

    def on_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Learner, "late", 1)
        for module in (lookahead, optim_module):
            monkeypatch.setattr(module, "is_known", lambda _: False)

    @pytest.mark.parametrize(
        ("optim", "train", "broken"),
        [
            ({"lookahead_k": 3}, {"average": 0.9}, set()),
            ({"lookahead_k": 3}, {"average": 0.9}, {0}),
            ({"lookahead_k": 3}, {"average": 0.9}, {3, 4}),
            ({"name": "adamw", "lookahead_k": 0, "clip": 0.1}, {"accumulate": 2}, {3, 4}),
            ({"lookahead_k": 2, "schedule": "one_cycle"}, {"channels_last": False}, {3, 4}),
        ],
    )
    def test_the_same_as_python_decides(
        self, optim: dict[str, Any], train: dict[str, Any], broken: set[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = make_settings(optim=optim, train={"max_skipped": 9, **train})
        by_python = self.steps(learner(settings), broken)
        self.on_device(monkeypatch)
        by_device = self.steps(learner(settings), broken)
        assert [result.not_finite for result in by_python.results] == [
            result.not_finite for result in by_device.results
        ]
        assert {number for number, result in enumerate(by_device.results) if result.not_finite} == broken
        for one, other in zip(by_python.results, by_device.results, strict=True):
            if not one.not_finite:
                assert one.sums == pytest.approx(other.sums, rel=1e-6)
        assert_close(by_python.learner.model.state_dict(), by_device.learner.model.state_dict())
        assert_close(by_python.learner.evaluated.state_dict(), by_device.learner.evaluated.state_dict())
        assert by_python.learner.schedule.state_dict() == by_device.learner.schedule.state_dict()

    def test_it_goes_on_from_a_checkpoint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = make_settings(optim={"lookahead_k": 3}, train={"average": 0.9, "max_skipped": 9})
        self.on_device(monkeypatch)
        through = self.steps(learner(settings), {1, 4})
        first = self.steps(learner(settings), {1}, steps=range(3)).learner
        content = checkpoint.copy_to_cpu(first.content(Progress(epoch=0, step=3, precision="fp32")))
        again = learner(settings)
        again.load(content)
        rest = self.steps(again, {4}, steps=range(3, 6))
        assert [result.not_finite for result in rest.results] == [None, "loss is nan", None]
        assert_equal(through.learner.model.state_dict(), again.model.state_dict())
        assert_equal(through.learner.evaluated.state_dict(), again.evaluated.state_dict())

    @dataclasses.dataclass
    class Made:
        learner: Learner
        results: list[StepResult]

    def steps(self, one: Learner, broken: set[int], steps: range = range(6)) -> Made:
        """Makes steps; some of them with images that are not finite."""
        results = []
        for step in steps:
            factor = float("nan") if step in broken else 1.0
            hook = one.loss.register_forward_pre_hook(lambda _, given, by=factor: (given[0] * by, given[1]))
            results.append(one.step(make_batch(step)).result())
            hook.remove()
        return self.Made(one, results)


class TestCompile:
    def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no compiler\nfound in any of a hundred places")

        monkeypatch.setattr(torch, "compile", lambda model, **_: torch._dynamo.optimize(refuse)(model))
        one, plain = learner(make_settings(train={"compile": True})), learner(make_settings())
        assert "cannot be compiled (train.compile)" in one.notes[0]
        assert "no compiler" in one.notes[0]
        assert "\n" not in one.notes[0]
        one.step(make_batch(0))
        plain.step(make_batch(0))
        assert_equal(one.model.state_dict(), plain.model.state_dict())

    def test_a_compiled_network_learns_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The compiler of C++ takes minutes; this backend runs what the compiler would be given.
        through: list[int] = []

        def backend(graph: Any, _: Any) -> Any:
            through.append(1)
            return graph.forward

        compile_with = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **given: compile_with(model, backend=backend, **given))
        one, plain = learner(make_settings(train={"compile": True})), learner(make_settings())
        assert one.notes == []
        assert_equal(one.model.state_dict(), plain.model.state_dict())
        for step in range(2):
            one.step(make_batch(step))
            plain.step(make_batch(step))
        assert through
        for (name, ours), theirs in zip(one.model.named_parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)
