from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lungseg_ray.config import EvaluateSettings
from lungseg_ray.corpus.record import Sample
from lungseg_ray.errors import BadFileError
from lungseg_ray.evaluation.robustness import ShiftChunk, ShiftedImage, _card
from lungseg_ray.feed.shifts import SHIFTS
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Predictor, Processing
from lungseg_ray.run.summary import describe_robustness
from lungseg_ray.shards.format import ShardRow
from tests.inference.helpers import make_sidecar

LEVELS = [(name, level) for name, shift in SHIFTS.items() for level in shift.levels]


@pytest.fixture(scope="module")
def pair() -> tuple[Pixels, Pixels]:
    """A box of 200 in grey noise (160, 120, 1), and its mask."""
    image = np.random.default_rng(0).integers(40, 80, (160, 120, 1), np.uint8)
    mask = np.zeros((160, 120), np.uint8)
    mask[60:110, 40:90] = 1
    image[mask > 0] = 200
    return image, mask


class TestShifts:
    @pytest.mark.parametrize(("name", "level"), LEVELS)
    def test_every_level_changes_a_copy(self, name: str, level: float, pair: tuple[Pixels, Pixels]) -> None:
        image, mask = pair[0].copy(), pair[1].copy()
        image.flags.writeable = mask.flags.writeable = False
        changed, moved = SHIFTS[name].change(image, mask, level)
        assert changed.dtype == moved.dtype == np.uint8
        assert changed.shape == (*moved.shape, 1)
        assert changed.shape != image.shape or (changed != image).any()
        again, _ = SHIFTS[name].change(image, mask, level)
        np.testing.assert_array_equal(again, changed)
        assert set(np.unique(moved)) == {0, 1}

    @pytest.mark.parametrize("name", ["aspect", "rotation", "crop", "surroundings", "resolution", "blur"])
    def test_the_mask_moves_with_the_image(self, name: str, pair: tuple[Pixels, Pixels]) -> None:
        for level in SHIFTS[name].levels[:2]:
            image, mask = SHIFTS[name].change(*pair, level)
            assert np.mean((image[:, :, 0] > 140) != (mask > 0)) < 0.02

    def test_levels_are_graded(self, pair: tuple[Pixels, Pixels]) -> None:
        for name in ("noise", "blur", "resolution"):
            changes = [
                np.abs(SHIFTS[name].change(*pair, level)[0].astype(int) - pair[0]).mean()
                for level in SHIFTS[name].levels
            ]
            assert changes == sorted(changes)


class _Bright(nn.Module):
    """Marks what is brighter than half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, :1] - 0.5) * 100


@dataclass(frozen=True)
class _Model:
    """Stands for a model in a run, of which only the network is missing."""

    def load(self, *, device: str = "cpu") -> Predictor:
        return Predictor([(_Bright(), make_sidecar(size=64))])

    def processing(self) -> Processing:
        return Processing([make_sidecar(size=64)])


@dataclass(frozen=True)
class _Images:
    pair: tuple[Pixels, Pixels]

    def __len__(self) -> int:
        return 2

    def name(self, number: int) -> tuple[str, str]:
        return str(number), str(number)

    def read(self, number: int) -> ShardRow:
        if number:
            raise BadFileError("damaged", "no image")
        image, mask = self.pair
        return ShardRow("0", "0", {}, Sample(image, mask, len(mask), len(mask[0]), 8, None, "0", "1"))


def test_a_network_that_looks_for_brightness(pair: tuple[Pixels, Pixels]) -> None:
    work = ShiftChunk(_Model(), _Images(pair), [0, 1], EvaluateSettings())  # type: ignore[arg-type]
    rows = []
    for chunk in range(2):
        prepared, given = work.prepare(chunk)
        (row,) = work.finish(prepared, work.compute(given, "cpu"))
        rows.append(row)
    assert rows[1] == ShiftedImage([])
    card = _card(row.dice for row in rows)
    assert card is not None
    assert card["images"] == 1
    assert card["dice"] > 0.95
    assert {name: len(found["dice"]) for name, found in card["shifts"].items()} == {
        name: len(shift.levels) for name, shift in SHIFTS.items()
    }
    assert min(card["shifts"]["rotation"]["dice"]) > 0.95
    # What is dark is bright in the negative, so that the network marks all but the box.
    assert card["shifts"]["inversion"]["dice"] == [0.0]
    assert card["shifts"]["exposure"]["dice"][0] < 0.5
    (text,) = describe_robustness({"robustness": card})
    assert text.startswith(f"Of 1 images, Dice is {card['dice']:.3f} as they are, and falls to 0.000 with another ")
    assert "another inversion (black and white exchanged: 1)" in text
    assert _card([[], []]) is None
