from __future__ import annotations

import subprocess
import sys

import numpy as np

from lungseg_ray.cluster.memory import own_memory
from tests.helpers import ROOT

MAPPED = """
import ctypes, torch
from lungseg_ray.cluster.memory import reuse_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
for change in (None, reuse_memory):
    if change:
        change()
    before = library.mallinfo2().hblks
    kept = torch.empty(64 << 20, dtype=torch.uint8)
    print(library.mallinfo2().hblks - before)
    del kept
"""


def test_large_tensors_are_in_the_heap() -> None:
    """The number of pieces of memory that the system gave for one large tensor."""
    found = subprocess.run([sys.executable, "-c", MAPPED], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Before and after memory is reused.
    assert found.split() == ["1", "0"]


def test_own_memory_grows_with_what_the_process_holds_alone() -> None:
    before = own_memory()
    held = np.ones(64 << 20, np.uint8)
    assert held.nbytes * 0.9 < own_memory() - before < held.nbytes * 1.5
