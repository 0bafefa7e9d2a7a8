"""The use of a device: memory that is used again on CPUs; fast products and copies beside the computations on GPUs."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from lungseg_ray.feed.batch import Batch
from lungseg_ray.training.precision import TYPES, Precision

_ALLOCATOR = {-4: 0, -1: 2**31 - 1, -2: 64 << 20}
"""M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of `mallopt`: large tensors get no memory of their own, none is given
back, and the heap grows by 64 MiB at a time."""
_PRODUCT_SIZES = {"cuda": 8192, "cpu": 1024}
"""Height and width of the matrices whose product is timed."""


def reuse_memory(device: torch.device) -> None:
    """Lets this process keep the memory that it frees on a CPU, and use it again.

    By default, the allocator of glibc gets the memory of each large tensor from the system and gives it back, and the
    system clears every page of it anew. Training takes about a fifth longer then. The process has the memory of its
    largest step until it ends, or until `malloc_trim` is called.

    Args:
        device: The device; for a GPU, nothing is changed.
    """
    if device.type == "cpu":
        # Other allocators than that of glibc do not have the function.
        with suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            for parameter, value in _ALLOCATOR.items():
                library.mallopt(parameter, value)


def allow_fast_products(device: torch.device) -> None:
    """Lets a GPU compute products of fp32 in TF32, and choose the fastest kernel for sizes that stay the same.

    Args:
        device: The device; on a CPU, nothing is changed.
    """
    if device.type == "cuda":
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
