from __future__ import annotations

import subprocess
import sys

import torch

from lungseg_ray.training.device import copies_to, matrix_rate
from tests.helpers import ROOT
from tests.training.test_loop import make_batch

MAPPED = """
import ctypes, sys, torch
from lungseg_ray.training.device import reuse_memory
if sys.argv[1] == "reuse":
    reuse_memory(torch.device("cpu"))
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
before = library.mallinfo2().hblks
kept = torch.empty(64 << 20, dtype=torch.uint8)
print(library.mallinfo2().hblks - before)
"""


def test_large_tensors_are_in_the_heap() -> None:
    """The number of pieces of memory that the system gave for one large tensor."""
    found = [
        subprocess.run([sys.executable, "-c", MAPPED, how], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for how in ("as it is", "reuse")
    ]
    assert [int(count) for count in found] == [1, 0]


def test_batches_for_a_cpu_are_not_copied() -> None:
    batch = make_batch(0)
    assert copies_to(torch.device("cpu"))(batch) is batch


def test_matrix_rate() -> None:
    assert 1e8 < matrix_rate(torch.device("cpu"), "fp32") < 1e14
