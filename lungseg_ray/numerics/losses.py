"""Dice loss plus cross-entropy: the training loss of a micro-batch and the validation loss of each image."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from lungseg_ray.errors import UserError
from lungseg_ray.numerics.labels import IGNORE_LABEL

_DENOMINATOR_FLOOR = 1e-7


class LossParts(NamedTuple):
    """A loss and its two terms: `total = dice_weight * dice + bce_weight * bce`.

    Attributes:
        total: The weighted sum of the terms.
        dice: The Dice loss.
        bce: The cross-entropy.
    """

    total: Tensor
    dice: Tensor
    bce: Tensor


class SegmentationLoss(nn.Module):
    """The training loss of a micro-batch: a weighted sum of Dice loss and cross-entropy.

    With `classes == 1`, the model has one logit channel (sigmoid, label 1 is positive) and the second term is the
    binary cross-entropy. With `classes >= 2`, it has that number of channels (softmax, label 0 is the background) and
    the second term is the cross-entropy. Pixels with `IGNORE_LABEL` count in neither term; the loss of a batch of such
    pixels alone is 0.

    The Dice term is that of segmentation_models_pytorch. It pools all pixels of the micro-batch, so its values for
    several workers or accumulation steps do not add up to that of the whole batch. A class without any true pixel in
    the micro-batch contributes 0, whatever the prediction is. Therefore only the cross-entropy reduces false positives
    in images without foreground.

    Args:
        classes: Number of logit channels: 1 for a binary mask, otherwise the number of labels including the background.
        dice_weight: Weight of the Dice loss in the total (1.0 in the published recipe).
        bce_weight: Weight of the cross-entropy in the total (0.8 in the published recipe).
        label_weights: Weight of the pixels of each label in the cross-entropy, from the background on; empty for equal
            weights.

    Raises:
        UserError: If there is not one weight for each label.
    """

    label_weights: Tensor

    def __init__(
        self,
        *,
        classes: int,
        dice_weight: float = 1.0,
        bce_weight: float = 0.8,
        label_weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        labels = max(classes, 2)
        if label_weights and len(label_weights) != labels:
            raise UserError(
                f"loss.label_weights: expected a weight for each of {labels} labels, the background first, found "
                f"{len(label_weights)}."
            )
        self.register_buffer("label_weights", torch.tensor(label_weights, dtype=torch.float32))
        self.classes = classes
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.dice = DiceLoss(mode="binary" if classes == 1 else "multiclass", ignore_index=IGNORE_LABEL)

    def forward(self, logits: Tensor, target: Tensor) -> LossParts:
        """Computes the loss of a micro-batch.

        Args:
            logits: (N, classes, H, W), any floating dtype. They are converted to float32 outside autocast, because the
                sums over a batch of 256 x 256 images overflow at half precision.
            target: (N, H, W) uint8 labels in [0, max(classes, 2)), or `IGNORE_LABEL`.

        Returns:
            Float32 scalars that carry gradients.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            logits = logits.float()
            dice = cast(Tensor, self.dice(logits, target))
            values, weights = _pixel_cross_entropy(logits, target, self.label_weights)
            bce = values.sum() / _not_zero(weights.sum())
            return LossParts(total=self.dice_weight * dice + self.bce_weight * bce, dice=dice, bce=bce)


@torch.no_grad()
def validation_losses(
    logits: Tensor,
    target: Tensor,
    *,
    classes: int,
    dice_weight: float = 1.0,
    bce_weight: float = 0.8,
    label_weights: Tensor | None = None,
) -> LossParts:
    """Computes the loss of each image, which does not depend on the other images of the batch.

    The Dice loss is the soft Dice formula of the training loss, applied to one image. As in training, a class without
    any true pixel in the image contributes 0, whatever the prediction is. The cross-entropy is the mean over the valid
    pixels of the image, and 0 for an image without valid pixels.

    Args:
        logits: (N, classes, H, W), any floating dtype.
        target: (N, H, W) uint8 labels in [0, max(classes, 2)), or `IGNORE_LABEL`.
        classes: Number of logit channels: 1 for a binary mask, otherwise the number of labels including the background.
        dice_weight: Weight of the Dice loss in the total.
        bce_weight: Weight of the cross-entropy in the total.
        label_weights: (labels,) weight of the pixels of each label in the cross-entropy, from the background on, on the
            device of the logits; None or empty for equal weights.

    Returns:
        Float64 tensors of shape (N,).
    """
    with torch.autocast(device_type=logits.device.type, enabled=False):
        logits = logits.double()
        valid = target != IGNORE_LABEL
        if classes == 1:
            probability = logits.sigmoid()
            truth = (target == 1).unsqueeze(1)
        else:
            probability = logits.softmax(dim=1)
            truth = torch.stack([target == label for label in range(classes)], dim=1)
        probability = probability * valid.unsqueeze(1)
        overlap = (probability * truth).sum(dim=(2, 3))
        sizes = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
        per_class = 1.0 - 2.0 * overlap / sizes.clamp(min=_DENOMINATOR_FLOOR)
        dice = (per_class * truth.any(dim=3).any(dim=2)).mean(dim=1)
        values, weights = _pixel_cross_entropy(logits, target, label_weights)
        bce = values.sum(dim=(1, 2)) / _not_zero(weights.sum(dim=(1, 2)))
        return LossParts(total=dice_weight * dice + bce_weight * bce, dice=dice, bce=bce)


def _not_zero(sums: Tensor) -> Tensor:
    """Replaces 0 by 1."""
    return sums + (sums == 0)


def _pixel_cross_entropy(logits: Tensor, target: Tensor, label_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Computes the cross-entropy of every pixel times its weight, and the weight, both (N, H, W).

    A pixel that is ignored has the weight 0.
    """
    valid = target != IGNORE_LABEL
    if logits.shape[1] > 1:
        values = F.cross_entropy(logits, target.long(), ignore_index=IGNORE_LABEL, reduction="none")
    else:
        truth = (target == 1).to(logits.dtype)
        values = F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none") * valid
    if label_weights is None or not len(label_weights):
        return values, valid
    weights = label_weights.to(logits.dtype)[target.clamp(max=len(label_weights) - 1).long()] * valid
    return values * weights, weights
