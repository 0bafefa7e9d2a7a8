"""Takes tensors back to what they were, on their device and without waiting for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def is_known(value: Tensor) -> bool:
    """Whether Python can have a value without waiting for a device.

    Args:
        value: A tensor.
    """
    return value.device.type == "cpu"


class Undo:
    """Keeps the values of tensors, and takes the tensors back to them where a condition on the device is false.

    The values of all tensors of a type lie one after the other in one piece of memory, so that a few kernels do for
    thousands of tensors. It takes twice the memory of the tensors.

    Args:
        tensors: Tensors on one device, each of them dense in memory.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        kinds: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            kinds[tensor.dtype].append(tensor)
        self._kinds = [_SameType(of_a_kind) for of_a_kind in kinds.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Keeps the values that the tensors have now."""
        for kind in self._kinds:
            torch._foreach_copy_(kind.kept_views, kind.tensors)

    @torch.no_grad()
    def unless(self, condition: Tensor) -> None:
        """Takes the tensors back to the values that were kept, unless a condition is true.

        Args:
            condition: () bool, on the device of the tensors.
        """
        for kind in self._kinds:
            torch._foreach_copy_(kind.new_views, kind.tensors)
            torch.where(condition, kind.new, kind.kept, out=kind.new)
            torch._foreach_copy_(kind.tensors, kind.new_views)


class _SameType:
    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        count = sum(tensor.numel() for tensor in tensors)
        self.kept, self.new = (torch.empty(count, dtype=tensors[0].dtype, device=tensors[0].device) for _ in range(2))
        self.kept_views, self.new_views = self._views(self.kept), self._views(self.new)

    def _views(self, memory: Tensor) -> list[Tensor]:
        views, start = [], 0
        for tensor in self.tensors:
            # Views with the strides of the tensors are copied by one kernel for all of them.
            views.append(memory.as_strided(tensor.size(), tensor.stride(), start))
            start += tensor.numel()
        return views
