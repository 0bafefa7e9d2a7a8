"""Optimiser, learning-rate schedule and averaged weights, each of which resumes exactly."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from timm.optim import Lookahead
from torch import nn
from torch.optim import AdamW, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

OptimizerName = Literal["radam", "adamw"]
ScheduleKind = Literal["plateau", "one_cycle", "cosine", "constant"]

_ONE_CYCLE_START = 1 / 25


def parameter_groups(
    model: nn.Module, *, lr: float, encoder_lr: float, weight_decay: float, encoder_weight_decay: float
) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups: encoder against the rest, and biases without weight decay.

    Frozen parameters and empty groups are left out. Each group has a `name`, "encoder" or "decoder" (decoder and head).

    Args:
        model: its encoder is what lies under `.encoder`; without one, everything is decoder.
        lr: learning rate of decoder and head (the published recipe: 5e-3).
        encoder_lr: learning rate of the encoder (the published recipe: 5e-4).
        weight_decay: of decoder and head (the published recipe: 3e-4).
        encoder_weight_decay: of the encoder (the published recipe: 3e-5).
    """
    rates = {"decoder": (lr, weight_decay), "encoder": (encoder_lr, encoder_weight_decay)}
    groups: dict[tuple[str, bool], dict[str, Any]] = {
        (part, is_bias): {"params": [], "name": part, "lr": rate, "weight_decay": 0.0 if is_bias else decay}
        for part, (rate, decay) in rates.items()
        for is_bias in (False, True)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "encoder" if name.startswith("encoder.") else "decoder"
            groups[part, name.endswith("bias")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def build_optimizer(
    model: nn.Module,
    *,
    name: OptimizerName = "radam",
    lr: float,
    encoder_lr: float,
    weight_decay: float,
    encoder_weight_decay: float,
    lookahead_k: int = 5,
    lookahead_alpha: float = 0.5,
) -> Optimizer:
    """Return RAdam or AdamW over `parameter_groups`, both with decoupled weight decay, in Lookahead.

    Sources: RAdam, arXiv:1908.03265; AdamW, arXiv:1711.05101; Lookahead, arXiv:1907.08610; the published recipe uses
    RAdam with k = 5 and alpha = 0.5.

    Args:
        model: the model; freeze what is to stay frozen first.
        name: the inner optimiser.
        lr: learning rate of decoder and head.
        encoder_lr: learning rate of the encoder.
        weight_decay: of decoder and head; biases have none.
        encoder_weight_decay: of the encoder; biases have none.
        lookahead_k: steps between two pulls towards the slow weights; 0: no Lookahead.
        lookahead_alpha: how far a pull goes, in [0, 1].
    """
    groups = parameter_groups(
        model, lr=lr, encoder_lr=encoder_lr, weight_decay=weight_decay, encoder_weight_decay=encoder_weight_decay
    )
    inner = AdamW(groups) if name == "adamw" else RAdam(groups, decoupled_weight_decay=True)
    return Lookahead(inner, alpha=lookahead_alpha, k=lookahead_k) if lookahead_k else inner


class Schedule:
    """A learning-rate schedule, told of every optimiser step and of every epoch's validation loss.

    By step, each group's rate is its starting rate times `multiplier(steps done)`, for the first `by_step` steps (None:
    for all of them). From then on the plateau rule, where there is one, is told of the epochs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        multiplier: Callable[[int], float],
        by_step: int | None = None,
        plateau: ReduceLROnPlateau | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._by_step = by_step
        self._plateau = plateau
        self._lambda = LambdaLR(optimizer, multiplier)

    @property
    def _follows_steps(self) -> bool:
        return self._by_step is None or self._lambda.last_epoch < self._by_step

    def after_step(self) -> None:
        """Move on by one step of the optimiser; call it after `optimizer.step()`."""
        if self._follows_steps:
            self._lambda.step()

    def after_epoch(self, validation_loss: float) -> None:
        """Move on by one epoch, whose validation loss was this."""
        if self._plateau is not None and not self._follows_steps:
            self._plateau.step(validation_loss)

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each part ("encoder", "decoder") for the next step."""
        return {group["name"]: float(group["lr"]) for group in self._optimizer.param_groups}

    def state_dict(self) -> dict[str, Any]:
        """Return the state: plain numbers and texts only."""
        return {
            "rates": [group["lr"] for group in self._optimizer.param_groups],
            "lambda": self._lambda.state_dict(),
            "plateau": self._plateau.state_dict() if self._plateau is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; the optimiser's own state is loaded beside it."""
        for group, rate in zip(self._optimizer.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        self._lambda.load_state_dict(state["lambda"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])


def build_scheduler(
    optimizer: Optimizer,
    *,
    kind: ScheduleKind,
    total_steps: int,
    warmup_steps: int = 0,
    factor: float = 0.25,
    patience: int = 10,
) -> Schedule:
    """Return the schedule of a run.

    - plateau: after a linear warm-up, ReduceLROnPlateau on the validation loss (the published recipe: no warm-up).
    - cosine: linear warm-up, then half a cosine down to 0 at the run's end (arXiv:1608.03983).
    - one_cycle: half a cosine up from 1/25, then half a cosine down to 0 (arXiv:1708.07120); the momentum
      stays.
    - constant: after a linear warm-up, the starting rates.

    Args:
        optimizer: from `build_optimizer`; on resume, build both anew and then load both states.
        kind: which schedule.
        total_steps: optimiser steps of the whole run; from there on the rates stay.
        warmup_steps: optimiser steps in which the rates rise.
        factor: plateau: the rates are multiplied by this.
        patience: plateau: epochs without a better validation loss to wait for.
    """
    if kind in ("plateau", "constant"):
        plateau = ReduceLROnPlateau(optimizer, factor=factor, patience=patience) if kind == "plateau" else None
        return Schedule(
            optimizer, multiplier=partial(_linear_rise, steps=warmup_steps), by_step=warmup_steps, plateau=plateau
        )
    rise = _linear_rise if kind == "cosine" else _cosine_rise

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return rise(step, steps=warmup_steps)
        done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return (1 + math.cos(math.pi * done)) / 2

    return Schedule(optimizer, multiplier=multiplier)


def _linear_rise(step: int, *, steps: int) -> float:
    return min((step + 1) / (steps + 1), 1.0)


def _cosine_rise(step: int, *, steps: int) -> float:
    return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - math.cos(math.pi * step / steps)) / 2


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers (Polyak averaging).

    The decay rises with the number of updates n as (1 + n) / (10 + n) up to its bound, so that the random weights of
    the start are soon forgotten. What is not floating point (BatchNorm's step counter) is copied.

    Attributes:
        module: the averaged model, in evaluation mode and without gradients.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model`, which has the structure of the one averaged; call it after each step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        current = model.state_dict()
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and the averaged weights: tensors and plain numbers only."""
        return {"updates": self._updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self._updates = state["updates"]
        self.module.load_state_dict(state["module"])
