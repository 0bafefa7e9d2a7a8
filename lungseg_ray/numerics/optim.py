"""Optimiser, learning-rate schedule and averaged weights; each of them resumes exactly from its saved state."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from lungseg_ray.numerics.lookahead import Lookahead
from lungseg_ray.numerics.undo import is_known

OptimizerName = Literal["radam", "adamw"]
ScheduleKind = Literal["plateau", "one_cycle", "cosine", "constant"]

_ONE_CYCLE_START = 1 / 25


def parameter_groups(
    model: nn.Module, *, lr: float, encoder_lr: float, weight_decay: float, encoder_weight_decay: float
) -> list[dict[str, Any]]:
    """Builds the parameter groups of the optimiser: the encoder and the rest of the model, each with separate biases.

    Biases have no weight decay. Frozen parameters and empty groups are left out. Each group has a `name`: "encoder", or
    "decoder" for decoder and head.

    Args:
        model: The model. Its encoder is the submodule `encoder`; without one, all parameters belong to the decoder.
        lr: Learning rate of decoder and head (5e-3 in the published recipe).
        encoder_lr: Learning rate of the encoder (5e-4 in the published recipe).
        weight_decay: Weight decay of decoder and head (3e-4 in the published recipe).
        encoder_weight_decay: Weight decay of the encoder (3e-5 in the published recipe).

    Returns:
        At most four groups, in the form that the optimisers of PyTorch accept.
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
    """Builds RAdam or AdamW over `parameter_groups`, both with decoupled weight decay, and wraps it in Lookahead.

    On GPUs, all of its state is on the device.

    Sources: RAdam, arXiv:1908.03265; AdamW, arXiv:1711.05101; Lookahead, arXiv:1907.08610. The published recipe uses
    RAdam with k = 5 and alpha = 0.5.

    Args:
        model: The model; freeze the parameters that are not to be trained first.
        name: The inner optimiser.
        lr: Learning rate of decoder and head.
        encoder_lr: Learning rate of the encoder.
        weight_decay: Weight decay of decoder and head; biases have none.
        encoder_weight_decay: Weight decay of the encoder; biases have none.
        lookahead_k: Number of steps between two updates of the slow weights; 0 disables Lookahead.
        lookahead_alpha: Fraction of the distance to the fast weights that an update of the slow weights covers, in [0,
            1].

    Returns:
        The optimiser.
    """
    groups = parameter_groups(
        model, lr=lr, encoder_lr=encoder_lr, weight_decay=weight_decay, encoder_weight_decay=encoder_weight_decay
    )
    on_gpu = groups[0]["params"][0].is_cuda
    inner: Optimizer
    if name == "adamw":
        inner = AdamW(groups, fused=on_gpu or None)
    else:
        inner = RAdam(groups, decoupled_weight_decay=True, capturable=on_gpu)
    return Lookahead(inner, alpha=lookahead_alpha, k=lookahead_k) if lookahead_k else inner


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Resumes an optimiser from the state of another one of its kind, which may have computed on another device.

    Args:
        optimizer: An optimiser from `build_optimizer`.
        state: The state dict of the other one.
    """
    # How a step is computed belongs to the device, not to the state.
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved.update({name: group[name] for name in ("capturable", "fused", "foreach") if name in group})
    optimizer.load_state_dict(state)
    inner = optimizer.inner if isinstance(optimizer, Lookahead) else optimizer
    for parameter, of_parameter in inner.state.items():
        for name, value in of_parameter.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # Files have tensors in the contiguous layout; kernels want that of the parameter.
                of_parameter[name] = torch.empty_like(parameter).copy_(value)
    if isinstance(optimizer, Lookahead):
        optimizer.create_slow_weights()


def create_state(optimizer: Optimizer) -> list[torch.Tensor]:
    """Creates the state that an optimiser otherwise creates in its first step, and returns its tensors.

    Args:
        optimizer: An optimiser from `build_optimizer`, whose parameters have no gradients.
    """
    if not optimizer.state_dict()["state"]:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        # With a rate of 0, the step changes no weight; its other traces are removed.
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for tensor in _state_tensors(optimizer):
            tensor.zero_()
    return _state_tensors(optimizer)


def _state_tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    return [
        value
        for state in optimizer.state_dict()["state"].values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


class Schedule:
    """A learning-rate schedule that is updated after every optimiser step and after every epoch.

    For the first `by_step` steps, the learning rate of each group is its initial rate times `multiplier(completed
    steps)`. From then on, the plateau rule, if there is one, adjusts the rates by the validation loss of each epoch.

    Args:
        optimizer: The optimiser whose learning rates are set.
        multiplier: Maps the number of completed steps to the factor of the initial learning rates.
        by_step: Number of steps for which `multiplier` applies; None for all steps.
        plateau: The rule that applies from then on; None if the rates do not change from then on.
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
        """Updates the rates by one step; call it after each `optimizer.step()`."""
        if self._follows_steps:
            self._lambda.step()

    def after_epoch(self, validation_loss: float) -> None:
        """Updates the rates by one epoch with this validation loss."""
        if self._plateau is not None and not self._follows_steps:
            self._plateau.step(validation_loss)

    def rates(self) -> dict[str, float]:
        """Returns the learning rate of each part ("encoder", "decoder") for the next step."""
        return {group["name"]: float(group["lr"]) for group in self._optimizer.param_groups}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, which consists of plain numbers and strings."""
        return {
            "rates": [group["lr"] for group in self._optimizer.param_groups],
            "lambda": self._lambda.state_dict(),
            "plateau": self._plateau.state_dict() if self._plateau is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a state that `state_dict` returned; the state of the optimiser is loaded separately."""
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
    """Builds the learning-rate schedule of a run.

    - plateau: a linear warm-up, then ReduceLROnPlateau on the validation loss (the published recipe has no warm-up).
    - cosine: a linear warm-up, then half a cosine down to 0 at the end of the run (arXiv:1608.03983).
    - one_cycle: half a cosine up from 1/25 of the initial rates, then half a cosine down to 0 (arXiv:1708.07120); the
      momentum is not changed.
    - constant: a linear warm-up, then the initial rates.

    Args:
        optimizer: An optimiser from `build_optimizer`. To resume, build both anew and then load both states.
        kind: The kind of schedule.
        total_steps: Number of optimiser steps in the whole run; the rates of "cosine" and "one_cycle" do not change
            after it.
        warmup_steps: Number of optimiser steps in which the rates rise.
        factor: For "plateau": the factor by which the rates are multiplied.
        patience: For "plateau": the number of epochs without a lower validation loss that are tolerated.

    Returns:
        The schedule.
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
    """Exponential moving average of the parameters and buffers of a model (Polyak averaging).

    The decay after n updates is (1 + n) / (10 + n), but not more than its upper bound, so that the random initial
    weights are soon forgotten. Values that are not floating point, such as the step counter of BatchNorm, are copied.

    `torch.optim.swa_utils.AveragedModel` has a constant decay and timm's `ModelEmaV3` warms up by another formula; with
    either, the weights of existing recipes and runs would change.

    Args:
        model: The model whose initial weights start the average.
        decay: Upper bound of the decay, in [0, 1].

    Attributes:
        module: The averaged model, in evaluation mode and without gradients.
        updates: () float64, the number of updates, on the device of the model.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        device = next(model.parameters()).device
        self.updates = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the weights of a model to the average; call it after each step.

        Args:
            model: A model with the structure of the averaged one.
        """
        share = 1 - ((1 + self.updates) / (10 + self.updates)).clamp(max=self._decay)
        current = model.state_dict()
        averages, values = [], []
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                values.append(current[name])
            else:
                average.copy_(current[name])
        if is_known(share):
            torch._foreach_lerp_(averages, values, share.item())
        else:
            torch._foreach_add_(averages, torch._foreach_mul(torch._foreach_sub(values, averages), share.float()))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of updates and the averaged weights, which consist of tensors and plain numbers."""
        return {"updates": int(self.updates), "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a state that `state_dict` returned."""
        self.updates.fill_(state["updates"])
        self.module.load_state_dict(state["module"])
