"""Collective operations of the workers of a run, over `torch.distributed` where there are several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn

Object = TypeVar("Object")


@dataclass(frozen=True)
class ProcessGroup:
    """One worker's place among the workers of a run. With a single worker, nothing is communicated.

    Attributes:
        rank: The rank of this worker, from 0.
        world_size: The number of workers.
        device: The device that this worker computes on.
    """

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model that averages its gradients over the workers."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a tensor over all workers, on the device of the tensor."""
        if self.world_size == 1:
            return values
        there = values.to(self.device, copy=True)
        torch.distributed.all_reduce(there)
        return there.to(values.device)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites tensors in place with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def broadcast_object(self, value: Object) -> Object:
        """Returns the object of rank 0 on every worker."""
        if self.world_size == 1:
            return value
        holder: list[Any] = [value]
        torch.distributed.broadcast_object_list(holder, src=0)
        received: Object = holder[0]
        return received

    def all_gather(self, names: list[str]) -> list[str]:
        """Returns the names of all workers, in the order of their ranks."""
        if self.world_size == 1:
            return names
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, names)
        return [name for part in found for name in part]
