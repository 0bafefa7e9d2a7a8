"""Lookahead (arXiv:1907.08610) whose count of steps is on the device, beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm.optim
import torch
from torch.optim import Optimizer

from lungseg_ray.numerics.undo import is_known

_SLOW = "lookahead_slow_buff"
"""The name that timm gives the slow weights in the state of a parameter."""


class Lookahead(timm.optim.Lookahead):
    """The Lookahead of timm, which counts the steps that the inner optimiser has made.

    timm counts the calls of `step`, in Python. A step that is left out on a GPU (`Undo`) must not count, and Python
    does not know it in time; the inner optimiser keeps its count in a tensor, which is taken back with the weights.

    The slow weights begin as the fast ones of the first update, as in timm.
    """

    @property
    def inner(self) -> Optimizer:
        """The inner optimiser."""
        found: Optimizer = self._base_optimizer
        return found

    def create_slow_weights(self) -> None:
        """Creates the slow weights of all parameters that have a state and no slow weights yet."""
        for parameter, state in self.inner.state.items():
            if _SLOW not in state:
                state[_SLOW] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes a step of the inner optimiser, and updates the slow weights where it is time."""
        loss = self.inner.step(closure)
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        fast = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not fast:
            return
        states = [self.inner.state[parameter] for parameter in fast]
        if any(_SLOW not in state for state in states):
            self.create_slow_weights()
        slow = [state[_SLOW] for state in states]
        steps, k = states[0]["step"], group["lookahead_k"]
        due = steps % k == 0
        if is_known(due) and not due:
            return
        pull = torch.where(steps == k, 1.0, group["lookahead_alpha"]) * due
        torch._foreach_add_(slow, torch._foreach_mul(torch._foreach_sub(fast, slow), pull))
        # Where it is not time, the fast weights are multiplied by 1, and 0 is added.
        taken = due.to(fast[0].dtype)
        torch._foreach_mul_(fast, 1 - taken)
        torch._foreach_add_(fast, torch._foreach_mul(slow, taken))
