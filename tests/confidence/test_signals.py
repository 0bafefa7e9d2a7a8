"""The signals of images and masks."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from lungseg_ray.confidence.signals import SIGNALS, Reference, Spread, describe_labels, examine
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.inference.predictor import Predictor
from lungseg_ray.run.exported import Sidecar

SIZE = 64


class Brightness(nn.Module):
    """Marks what is brighter than a bound, as surely as it is brighter."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def encoder(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, torch.cat([x, 1 - x], dim=1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) * self.sharpness


def predictor(sharpness: float = 50.0) -> Predictor:
    side = Sidecar(size=SIZE, channels=1, longer_side=512, classes=1, class_names=["lung"], threshold=0.5)
    return Predictor([(Brightness(sharpness), side)])


def discs() -> np.ndarray:
    """Images with two bright discs, of brightness that varies little."""
    images = np.zeros((3, SIZE, SIZE, 1), np.uint8)
    for number, image in enumerate(images):
        for across in (20, 44):
            cv2.circle(image, (across, 32), 9, 200 + number, -1)
    return images


def reference(use: Predictor, images: np.ndarray) -> Reference:
    masks = [describe_labels((image[:, :, 0] > 127).astype(np.uint8), 1) for image in images]
    return Reference.of(use.features(images), np.array(masks))


def test_a_usual_image_has_small_signals_and_others_large_ones() -> None:
    use, images = predictor(), discs()
    compared = reference(use, images)
    blank, negative = np.zeros_like(images[0]), 255 - images[0]
    one = images[0].copy()
    one[:, 32:] = 0
    inputs = np.stack([images[0], blank, negative, one])
    examined = examine(use, inputs)

    found = [compared.signals(examined, number, use) for number in range(len(inputs))]

    assert all(signals.keys() == SIGNALS.keys() for signals in found)
    usual, *others = found
    assert usual["undecided"] < 0.02
    assert usual["shape"] < 1.5
    assert usual["unlike"] < 2
    assert all(signals["shape"] > 2 for signals in others)
    # The network is sure that there is nothing, which no training mask is like.
    assert found[1]["undecided"] == 1
    assert found[1]["unlike"] == found[2]["unlike"] == pytest.approx(5, abs=0.1)


def test_undecided_probabilities_are_a_signal() -> None:
    images = discs()
    sure, unsure = (
        reference(use, images).signals(examine(use, images), 0, use) for use in (predictor(50), predictor(4))
    )
    assert unsure["undecided"] > sure["undecided"] + 0.1


def test_the_description_of_lungs() -> None:
    _, mask = draw(3, seed=0, size=200)
    area, components, largest, balance, left, right, upper, lower, filled, length, border = describe_labels(mask, 1)
    rows, columns = np.nonzero(mask)

    assert area == pytest.approx(mask.mean())
    assert components == 2
    assert largest == 1
    assert 0.35 < balance < 0.65
    assert (left, right) == pytest.approx((columns.min() / 200, (columns.max() + 1) / 200))
    assert (upper, lower) == pytest.approx((rows.min() / 200, (rows.max() + 1) / 200))
    assert 0.8 < filled <= 1
    assert 1.5 < length < 3
    assert border == 0


def test_several_labels_are_described_one_after_the_other_and_missing_ones_as_zeros() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:20, 10:20] = 2
    found = np.array(describe_labels(labels, 3)).reshape(3, -1)
    assert (found[0] == 0).all()
    assert (found[2] == 0).all()
    assert found[1, 0] == pytest.approx(100 / 1600)


def test_a_spread_takes_other_lengths_for_a_mistake() -> None:
    with pytest.raises(ValueError, match="as many positive"):
        Spread(mean=[0.0, 1.0], scale=[1.0])
    with pytest.raises(ValueError, match="as many positive"):
        Spread(mean=[0.0], scale=[0.0])


def test_an_empty_mask_is_no_doubt_where_many_are_empty() -> None:
    use, images = predictor(), discs()
    compared = reference(use, np.concatenate([images, np.zeros_like(images)]))
    assert compared.present == [0.5]
    # A low probability everywhere adds up to many pixels; one that is likely somewhere counts.
    faint = examine(predictor(8), np.concatenate([np.zeros_like(images[:1]), images[:1] // 2]))
    assert faint.maps[0].sum() > 1
    assert not (faint.maps > 0.5).any()
    assert [compared.signals(faint, number, use)["undecided"] for number in range(2)] == [0, 1]
