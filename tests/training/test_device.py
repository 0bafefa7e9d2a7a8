from __future__ import annotations

import torch

from lungseg_ray.training.device import copies_to, matrix_rate
from tests.training.test_loop import make_batch


def test_batches_for_a_cpu_are_not_copied() -> None:
    batch = make_batch(0)
    assert copies_to(torch.device("cpu"))(batch) is batch


def test_matrix_rate() -> None:
    assert 1e8 < matrix_rate(torch.device("cpu"), "fp32") < 1e14
