import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lungseg_ray.numerics.lookahead import Lookahead
from lungseg_ray.numerics.optim import (
    Schedule,
    ScheduleKind,
    WeightAverage,
    build_optimizer,
    build_scheduler,
    load_optimizer,
    parameter_groups,
)

RATES: dict[str, Any] = {"lr": 5e-3, "encoder_lr": 5e-4, "weight_decay": 3e-4, "encoder_weight_decay": 3e-5}


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.decoder = nn.Conv2d(4, 4, 3)
        self.segmentation_head = nn.Conv2d(4, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.segmentation_head(self.decoder(self.encoder(images)).relu())
        return logits


def small_net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


class Training:
    """A few steps on fixed data; every fourth step ends an epoch, and the epochs after the first get worse."""

    def __init__(self, *, name: Any, kind: ScheduleKind, lookahead_k: int = 5) -> None:
        self.model = small_net()
        self.optimizer = build_optimizer(self.model, name=name, lookahead_k=lookahead_k, **RATES)
        self.schedule = build_scheduler(self.optimizer, kind=kind, total_steps=20, warmup_steps=3, patience=0)
        self.average = WeightAverage(self.model, decay=0.9)
        self.rates: list[dict[str, float]] = []

    def run(self, steps: range) -> None:
        for step in steps:
            images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            self.model(images).square().mean().backward()
            self.optimizer.step()
            self.schedule.after_step()
            self.average.update(self.model)
            if step % 4 == 3:
                self.schedule.after_epoch(float(step))
            self.rates.append(self.schedule.rates())

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.schedule.load_state_dict(state["schedule"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])


def names_by_group(model: nn.Module) -> list[tuple[str, float, float, list[str]]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        (group["name"], group["lr"], group["weight_decay"], [names[parameter] for parameter in group["params"]])
        for group in parameter_groups(model, **RATES)
    ]


def test_groups_part_the_encoder_and_spare_biases_the_decay() -> None:
    assert names_by_group(small_net()) == [
        ("decoder", 5e-3, 3e-4, ["decoder.weight", "segmentation_head.weight"]),
        ("decoder", 5e-3, 0.0, ["decoder.bias", "segmentation_head.bias"]),
        ("encoder", 5e-4, 3e-5, ["encoder.0.weight", "encoder.1.weight"]),
        ("encoder", 5e-4, 0.0, ["encoder.0.bias", "encoder.1.bias"]),
    ]


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = small_net()
    model.encoder.requires_grad_(False)
    model.decoder.weight.requires_grad_(False)
    assert [names for _, _, _, names in names_by_group(model)] == [
        ["segmentation_head.weight"],
        ["decoder.bias", "segmentation_head.bias"],
    ]


def test_a_model_without_an_encoder_is_all_decoder() -> None:
    assert [(name, names) for name, _, _, names in names_by_group(nn.Linear(2, 1))] == [
        ("decoder", ["weight"]),
        ("decoder", ["bias"]),
    ]


@pytest.mark.parametrize("name", ["radam", "adamw"])
def test_decay_is_decoupled_and_biases_have_none(name: Any) -> None:
    model = nn.Linear(2, 1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, name=name, lookahead_k=0, **{**RATES, "lr": 0.1, "weight_decay": 0.5})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Without a gradient one step leaves w - lr * decay * w.
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias.detach(), before[1])


def test_lookahead_pulls_every_k_steps() -> None:
    # The slow weights start at the first pull, which therefore moves nothing; the second pulls halfway back.
    fast, pulled = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    pulled.load_state_dict(fast.state_dict())
    track: dict[int, list[float]] = {0: [], 2: []}
    for model, k in ((fast, 0), (pulled, 2)):
        optimizer = build_optimizer(model, lookahead_k=k, lookahead_alpha=0.5, **{**RATES, "weight_decay": 0.0})
        assert isinstance(optimizer, Lookahead) == (k == 2)
        for _ in range(4):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
            track[k].append(model.weight.item())
    assert track[2][:3] == track[0][:3]
    assert track[2][3] == pytest.approx((track[0][1] + track[0][3]) / 2, abs=1e-7)
    assert track[2][3] != pytest.approx(track[0][3], abs=1e-4)


@pytest.mark.parametrize("name", ["radam", "adamw"])
@pytest.mark.parametrize("lookahead_k", [0, 2])
def test_state_that_is_loaded_has_the_layout_of_the_weights(name: Any, lookahead_k: int) -> None:
    first, again = (small_net().to(memory_format=torch.channels_last) for _ in range(2))
    optimizers = [build_optimizer(model, name=name, lookahead_k=lookahead_k, **RATES) for model in (first, again)]
    first(torch.randn(2, 1, 16, 16)).square().mean().backward()
    optimizers[0].step()
    state = through_a_file(optimizers[0].state_dict())
    for tensors in state["state"].values():
        # Files have contiguous tensors; an older version had no slow weights before the first update.
        tensors.pop("lookahead_slow_buff", None)
        tensors.update({key: value.contiguous() for key, value in tensors.items()})
    load_optimizer(optimizers[1], state)
    inner = optimizers[1].inner if isinstance(optimizers[1], Lookahead) else optimizers[1]
    weight = again.decoder.weight
    assert not weight.is_contiguous()
    names = {"step", "exp_avg", "exp_avg_sq", *(["lookahead_slow_buff"] if lookahead_k else [])}
    assert inner.state[weight].keys() == names
    for key in names - {"step"}:
        assert inner.state[weight][key].stride() == weight.stride(), key
    own = first.decoder.weight
    theirs = optimizers[0].inner if isinstance(optimizers[0], Lookahead) else optimizers[0]
    assert torch.equal(inner.state[weight]["exp_avg"], theirs.state[own]["exp_avg"])


def rates_of(kind: ScheduleKind, steps: int, **arguments: Any) -> list[float]:
    """The decoder's rate before the first step and after each, as a share of its starting rate."""
    optimizer = build_optimizer(small_net(), **RATES)
    schedule = build_scheduler(optimizer, kind=kind, **arguments)
    shares = []
    for _ in range(steps + 1):
        shares.append(schedule.rates()["decoder"] / 5e-3)
        assert schedule.rates()["encoder"] == pytest.approx(schedule.rates()["decoder"] / 10)
        optimizer.step()
        schedule.after_step()
    return shares


def test_constant() -> None:
    assert rates_of("constant", 5, total_steps=5) == pytest.approx([1] * 6)
    assert rates_of("constant", 5, total_steps=5, warmup_steps=3) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 1])


def test_cosine() -> None:
    half = (1 + math.cos(math.pi / 4)) / 2
    assert rates_of("cosine", 5, total_steps=4) == pytest.approx([1, half, 0.5, 1 - half, 0, 0])
    with_rise = rates_of("cosine", 6, total_steps=6, warmup_steps=2)
    assert with_rise == pytest.approx([1 / 3, 2 / 3, 1, half, 0.5, 1 - half, 0])


def test_one_cycle() -> None:
    rising = [1 / 25, 1 / 25 + 24 / 25 / 2]
    assert rates_of("one_cycle", 4, total_steps=4, warmup_steps=2) == pytest.approx([*rising, 1, 0.5, 0])


def plateau(**arguments: Any) -> tuple[Optimizer, Schedule]:
    optimizer = build_optimizer(small_net(), **RATES)
    return optimizer, build_scheduler(optimizer, kind="plateau", total_steps=100, **arguments)


def test_plateau_waits_for_its_patience() -> None:
    _, schedule = plateau(patience=2, factor=0.25)
    seen = []
    for loss in [1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.4]:
        schedule.after_epoch(loss)
        seen.append(schedule.rates())
    assert [rates["decoder"] for rates in seen] == pytest.approx([5e-3] * 4 + [1.25e-3] * 3)
    assert [rates["encoder"] for rates in seen] == pytest.approx([5e-4] * 4 + [1.25e-4] * 3)


def test_plateau_counts_no_epoch_of_the_warmup() -> None:
    optimizer, schedule = plateau(patience=0, factor=0.5, warmup_steps=1)
    schedule.after_epoch(1.0)
    schedule.after_epoch(2.0)
    assert schedule.rates()["decoder"] == pytest.approx(5e-3 / 2)
    optimizer.step()
    schedule.after_step()
    assert schedule.rates()["decoder"] == pytest.approx(5e-3)
    schedule.after_epoch(3.0)
    schedule.after_epoch(4.0)
    assert schedule.rates()["decoder"] == pytest.approx(5e-3 / 2)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("kind", ["plateau", "one_cycle", "cosine", "constant"])
@pytest.mark.parametrize(("name", "lookahead_k"), [("radam", 5), ("adamw", 0)])
def test_resume_is_bitwise_exact(name: Any, lookahead_k: int, kind: ScheduleKind) -> None:
    whole = Training(name=name, kind=kind, lookahead_k=lookahead_k)
    whole.run(range(20))
    # In the warm-up, between two pulls of Lookahead, on a pull, after a reduction of the plateau, before the last step.
    for cut in (1, 2, 5, 10, 13, 19):
        first = Training(name=name, kind=kind, lookahead_k=lookahead_k)
        first.run(range(cut))
        second = Training(name=name, kind=kind, lookahead_k=lookahead_k)
        second.load_state_dict(through_a_file(first.state_dict()))
        assert second.schedule.rates() == first.schedule.rates()
        second.run(range(cut, 20))
        assert first.rates + second.rates == whole.rates
        assert_same(second.state_dict(), whole.state_dict())
    if kind != "constant":
        assert whole.rates[-1] != whole.rates[5]


def test_weight_average_follows_the_model() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.5)
    expected = {"weight": 1.0, "running_mean": 0.0}
    # The decay rises: 1/10, 2/11, ... and stays at its bound from (1 + 8) / (10 + 8) = 1/2 on.
    for update in range(12):
        with torch.no_grad():
            model.weight.fill_(update)
            model.running_mean.fill_(10.0 * update)  # type: ignore[union-attr]
            model.num_batches_tracked.fill_(update)  # type: ignore[union-attr]
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected["weight"] = decay * expected["weight"] + (1 - decay) * update
        expected["running_mean"] = decay * expected["running_mean"] + (1 - decay) * 10 * update
        state = average.module.state_dict()
        assert state["weight"].item() == pytest.approx(expected["weight"], rel=1e-5)
        assert state["running_mean"].item() == pytest.approx(expected["running_mean"], rel=1e-5)
        assert state["num_batches_tracked"].item() == update


def test_weight_average_leaves_the_model_alone() -> None:
    model = small_net()
    average = WeightAverage(model, decay=0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average.update(model)
    assert model.training
    assert not average.module.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert_same(dict(model.state_dict()), before)
