import math

import pytest
import torch

from lungseg_ray.errors import UserError
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.numerics.losses import SegmentationLoss, validation_losses

LN2 = math.log(2)
LN3 = math.log(3)
# classes, logits (N, K, 2, 2), target (N, 2, 2), Dice loss of the batch, cross-entropy of the batch
CASES = {
    # p = 1/2: overlap 1, sizes 2 + 2
    "binary": (1, torch.zeros(1, 1, 2, 2), [[[1, 0], [1, 0]]], 0.5, LN2),
    # the two valid pixels: overlap 1/2, sizes 1 + 1; the ignored ones would be quite wrong
    "binary, ignored": (1, torch.tensor([[[[0.0, 9.0], [0.0, -9.0]]]]), [[[1, 255], [0, 255]]], 0.5, LN2),
    # both images pooled: overlap 1/2 + 2, sizes 4 + 5
    "binary, pooled": (1, torch.zeros(2, 1, 2, 2), [[[1, 0], [0, 0]], [[1, 1], [1, 1]]], 1 - 5 / 9, LN2),
    "binary, empty": (1, torch.zeros(1, 1, 2, 2), [[[0, 0], [0, 0]]], 0.0, LN2),
    # p = 1/3: Dice of the labels 2/7, 2/5, 2/7
    "three labels": (3, torch.zeros(1, 3, 2, 2), [[[0, 1], [1, 2]]], (5 / 7 + 3 / 5 + 5 / 7) / 3, LN3),
    # label 0: overlap 1/3, sizes 2/3 + 1; label 1 the same; label 2 does not occur and costs nothing
    "three labels, ignored": (3, torch.zeros(1, 3, 2, 2), [[[0, 1], [255, 255]]], (3 / 5 + 3 / 5 + 0) / 3, LN3),
}


def targets(values: list[list[list[int]]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


@pytest.mark.parametrize(("classes", "logits", "target", "dice", "bce"), CASES.values(), ids=CASES)
def test_training_loss_is_the_hand_computed_one(
    classes: int, logits: torch.Tensor, target: list[list[list[int]]], dice: float, bce: float
) -> None:
    parts = SegmentationLoss(classes=classes, dice_weight=1.0, bce_weight=0.8)(logits, targets(target))
    assert parts.dice.item() == pytest.approx(dice, abs=1e-6)
    assert parts.bce.item() == pytest.approx(bce, abs=1e-6)
    assert parts.total.item() == pytest.approx(dice + 0.8 * bce, abs=1e-6)


@pytest.mark.parametrize("case", [name for name in CASES if name != "binary, pooled"])
def test_validation_loss_of_one_image_is_the_training_loss_of_it_alone(case: str) -> None:
    classes, logits, target, dice, bce = CASES[case]
    parts = validation_losses(logits, targets(target), classes=classes, dice_weight=1.0, bce_weight=0.8)
    assert parts.total.dtype == torch.float64
    assert parts.dice.tolist() == pytest.approx([dice], abs=1e-12)
    assert parts.bce.tolist() == pytest.approx([bce], abs=1e-12)
    assert parts.total.tolist() == pytest.approx([dice + 0.8 * bce], abs=1e-12)


def test_validation_loss_is_per_image() -> None:
    _, logits, target, _, _ = CASES["binary, pooled"]
    parts = validation_losses(logits, targets(target), classes=1)
    # image 1: overlap 1/2, sizes 2 + 1; image 2: overlap 2, sizes 2 + 4
    assert parts.dice.tolist() == pytest.approx([1 - 1 / 3, 1 - 4 / 6], abs=1e-12)


@pytest.mark.parametrize("classes", [1, 3])
def test_validation_loss_does_not_depend_on_the_batch(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, classes, 17, 13, generator=generator)
    target = torch.randint(0, max(classes, 2), (7, 17, 13), generator=generator, dtype=torch.uint8)
    target[:, :3] = IGNORE_LABEL
    together = validation_losses(logits, target, classes=classes)
    for image in range(7):
        alone = validation_losses(logits[image : image + 1], target[image : image + 1], classes=classes)
        assert together.total[image].item() == pytest.approx(alone.total.item(), abs=1e-14)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_batch_of_ignored_pixels_costs_nothing(classes: int) -> None:
    logits = torch.randn(2, classes, 4, 4, requires_grad=True)
    target = torch.full((2, 4, 4), IGNORE_LABEL, dtype=torch.uint8)
    parts = SegmentationLoss(classes=classes)(logits, target)
    parts.total.backward()
    assert parts.total.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert validation_losses(logits, target, classes=classes).total.tolist() == [0, 0]


@pytest.mark.parametrize("classes", [1, 3])
def test_ignored_pixels_get_no_gradient_and_the_others_do(classes: int) -> None:
    logits = torch.randn(2, classes, 4, 4, requires_grad=True)
    target = torch.randint(0, max(classes, 2), (2, 4, 4), dtype=torch.uint8)
    target[:, 1] = IGNORE_LABEL
    SegmentationLoss(classes=classes)(logits, target).total.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 1] == 0).all()
    assert (logits.grad[:, :, 0] != 0).all()


def test_half_precision_logits_are_summed_in_float32() -> None:
    # 8 x 256 x 256 pixels of p = 1/2: a sum of 262144, beyond the 65504 of float16.
    target = torch.zeros(8, 256, 256, dtype=torch.uint8)
    target[:, :128] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = SegmentationLoss(classes=1)(torch.zeros(8, 1, 256, 256, dtype=torch.float16), target)
    assert parts.total.dtype == torch.float32
    assert parts.dice.item() == pytest.approx(0.5, abs=1e-6)
    assert parts.bce.item() == pytest.approx(LN2, abs=1e-6)


def test_weights_weigh() -> None:
    _, logits, target, dice, bce = CASES["binary"]
    training = SegmentationLoss(classes=1, dice_weight=0.3, bce_weight=2.0)(logits, targets(target))
    validation = validation_losses(logits, targets(target), classes=1, dice_weight=0.3, bce_weight=2.0)
    assert training.total.item() == pytest.approx(0.3 * dice + 2 * bce, abs=1e-6)
    assert validation.total.item() == pytest.approx(0.3 * dice + 2 * bce, abs=1e-12)


@pytest.mark.parametrize("classes", [1, 3])
def test_weights_of_labels(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 8, 8, generator=generator)
    target = torch.randint(0, max(classes, 2), (2, 8, 8), generator=generator, dtype=torch.uint8)
    target[:, :2] = 255
    weights = [1.0, 3.0, 0.5][: max(classes, 2)]
    plain = SegmentationLoss(classes=classes)(logits, target)
    equal = SegmentationLoss(classes=classes, label_weights=[2.0] * len(weights))(logits, target)
    torch.testing.assert_close(equal.bce, plain.bce)
    found = SegmentationLoss(classes=classes, label_weights=weights)(logits, target)
    torch.testing.assert_close(found.dice, plain.dice)
    if classes == 1:
        shares = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], (target == 1).float(), reduction="none"
        )
    else:
        shares = -logits.log_softmax(1).gather(1, target.clamp(max=2).long()[:, None])[:, 0]
    weight = torch.tensor(weights)[target.clamp(max=len(weights) - 1).long()] * (target != 255)
    torch.testing.assert_close(found.bce, (shares * weight).sum() / weight.sum())
    images = [
        SegmentationLoss(classes=classes, label_weights=weights)(logits[n : n + 1], target[n : n + 1]).bce
        for n in range(2)
    ]
    parts = validation_losses(logits, target, classes=classes, label_weights=torch.tensor(weights))
    torch.testing.assert_close(parts.bce.float(), torch.stack(images))


def test_too_few_weights_of_labels() -> None:
    with pytest.raises(UserError, match=r"loss.label_weights: expected a weight for each of 3 labels.* found 2"):
        SegmentationLoss(classes=3, label_weights=[1, 4])
