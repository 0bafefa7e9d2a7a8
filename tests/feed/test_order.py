from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lungseg_ray.feed.order import epoch_order
from tests.feed.helpers import SHARDS, USABLE, as_pairs
from tests.helpers import ROOT


class TestOrder:
    @pytest.mark.parametrize("window", [1, 2, 3, 4, 64])
    def test_every_usable_row_once(self, window: int) -> None:
        order = epoch_order(SHARDS, seed=0, epoch=0, window=window)
        assert order.shape == (16, 2)
        assert order.dtype == np.int32
        assert set(as_pairs(order)) == USABLE

    def test_epoch_and_seed_decide(self) -> None:
        seen = {
            tuple(as_pairs(epoch_order(SHARDS, seed=seed, epoch=epoch, window=64)))
            for seed in range(5)
            for epoch in range(5)
        }
        assert len(seen) == 25
        again = [as_pairs(epoch_order(SHARDS, seed=3, epoch=2, window=2)) for _ in range(2)]
        assert again[0] == again[1]

    @pytest.mark.parametrize("window", [1, 2, 3])
    def test_rows_of_a_window_stand_together(self, window: int) -> None:
        mixed = 0
        for epoch in range(20):
            numbers = [number for number, _ in as_pairs(epoch_order(SHARDS, seed=0, epoch=epoch, window=window))]
            files = list(dict.fromkeys(numbers))
            start = 0
            for first in range(0, len(files), window):
                together = files[first : first + window]
                count = sum(len(SHARDS[number].usable) for number in together)
                inside = numbers[start : start + count]
                assert set(inside) == set(together)
                changes = sum(one != other for one, other in itertools.pairwise(inside))
                mixed += changes >= len(together)
                start += count
        # Within a window the rows of its files are mixed.
        assert (mixed > 0) == (window > 1)

    def test_no_shards(self) -> None:
        assert epoch_order([], seed=0, epoch=0, window=2).shape == (0, 2)

    def test_the_same_in_another_process(self) -> None:
        code = (
            "import sys, json\n"
            "from lungseg_ray.feed.order import epoch_order\n"
            "from lungseg_ray.shards.format import Shard\n"
            "shards = [Shard.model_validate(one) for one in json.loads(sys.argv[1])]\n"
            "print(json.dumps([epoch_order(shards, seed=5, epoch=e, window=2).tolist() for e in range(3)]))\n"
        )
        shards = json.dumps([shard.model_dump() for shard in SHARDS])
        found = subprocess.run(
            [sys.executable, "-c", code, shards],
            env={**os.environ, "PYTHONHASHSEED": "12345"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        here = [epoch_order(SHARDS, seed=5, epoch=epoch, window=2).tolist() for epoch in range(3)]
        assert json.loads(found.stdout) == here
