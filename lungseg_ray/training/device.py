"""The use of a device: fast products, copies beside the computations, and its speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from lungseg_ray.cluster.memory import own_memory
from lungseg_ray.feed.batch import Batch
from lungseg_ray.training.precision import TYPES, Precision

_PRODUCT_SIZES = {"cuda": 8192, "cpu": 1024}
"""Height and width of the matrices whose product is timed."""


def allow_fast_products(device: torch.device) -> None:
    """Lets a GPU compute products of fp32 in TF32, and choose the fastest kernel for sizes that stay the same.

    What `used_memory` returns counts from here on.

    Args:
        device: The device; on a CPU, nothing is changed.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def copies_to(device: torch.device) -> Callable[[Batch], Batch]:
    """Returns what copies batches to a device; on a CPU, they are returned as they are.

    Args:
        device: The device.
    """
    return _CopiesToGPU(device) if device.type == "cuda" else lambda batch: batch


class _CopiesToGPU:
    """Copies batches in a stream of its own, in the thread that calls it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._stream):
            copies = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in (batch.images, batch.masks)]
        self._stream.synchronize()
        for copy in copies:
            # The memory is not used again before the stream that trains has read it.
            copy.record_stream(torch.cuda.default_stream(self._device))
        return replace(batch, images=copies[0], masks=copies[1])


def matrix_rate(device: torch.device, precision: Precision) -> float:
    """Measures how fast a device multiplies large matrices, which is the upper bound of what a network can reach.

    Args:
        device: The device.
        precision: The precision of the product.

    Returns:
        Floating-point operations per second.
    """
    size = _PRODUCT_SIZES[device.type]
    left, right = torch.rand(2, size, size, device=device, dtype=TYPES[precision])
    seconds = []
    with torch.no_grad():
        for _ in range(5):
            start = time.perf_counter()
            product = left @ right
            # Fetching a value waits for the product.
            product[0, 0].item()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def used_memory(device: torch.device) -> int:
    """Returns the memory that this process needs, bytes: its largest on a GPU, otherwise its own as `own_memory`.

    Args:
        device: The device that it computes on.
    """
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else own_memory()
