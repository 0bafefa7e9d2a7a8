"""Dice plus cross-entropy: the training loss of a micro-batch and the validation loss of each image."""

from typing import NamedTuple, cast

import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from lungseg_ray.numerics.labels import IGNORE_LABEL

_DENOMINATOR_FLOOR = 1e-7


class LossParts(NamedTuple):
    """A loss and what it is made of: `total = dice_weight * dice + bce_weight * bce`."""

    total: Tensor
    dice: Tensor
    bce: Tensor


class SegmentationLoss(nn.Module):
    """Training loss of one micro-batch: weighted Dice loss plus cross-entropy (the published recipe: 1.0 and 0.8).

    With `classes == 1` the model has one logit channel (sigmoid, label 1 positive) and the second term is binary
    cross-entropy; with `classes >= 2` it has that many channels (softmax, label 0 background) and the second term is
    cross-entropy. Pixels labelled `IGNORE_LABEL` count in neither term; a batch of nothing else costs 0.

    The Dice term is that of segmentation_models_pytorch: it pools the micro-batch, so it does not add up over workers
    or accumulation steps, and a class without a single true pixel in the micro-batch contributes 0 whatever is
    predicted. For empty images only the cross-entropy pushes false positives down.
    """

    def __init__(self, *, classes: int, dice_weight: float = 1.0, bce_weight: float = 0.8) -> None:
        super().__init__()
        self.classes = classes
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.dice = DiceLoss(mode="binary" if classes == 1 else "multiclass", ignore_index=IGNORE_LABEL)

    def forward(self, logits: Tensor, target: Tensor) -> LossParts:
        """Return the loss as float32 scalars that carry gradients.

        Args:
            logits: (N, classes, H, W), any floating dtype; taken to float32 outside autocast, because at half
                precision the sums over a batch of 256 x 256 images overflow.
            target: (N, H, W) uint8 labels in [0, max(classes, 2)) or `IGNORE_LABEL`.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            logits = logits.float()
            dice = cast(Tensor, self.dice(logits, target))
            valid = target != IGNORE_LABEL
            bce = _pixel_cross_entropy(logits, target).sum() / valid.sum().clamp(min=1)
            return LossParts(total=self.dice_weight * dice + self.bce_weight * bce, dice=dice, bce=bce)


@torch.no_grad()
def validation_losses(
    logits: Tensor, target: Tensor, *, classes: int, dice_weight: float = 1.0, bce_weight: float = 0.8
) -> LossParts:
    """Return each image's own loss, which does not depend on the batch that the image stands in.

    The Dice loss is the soft Dice formula of the training loss applied to one image; as there, a class that the image
    does not show contributes 0 whatever is predicted. The cross-entropy is the mean over the image's valid pixels, and
    0 for an image without any.

    Args:
        logits: (N, classes, H, W), any floating dtype.
        target: (N, H, W) uint8 labels in [0, max(classes, 2)) or `IGNORE_LABEL`.
        classes: 1 for binary, otherwise the number of channels, background included.
        dice_weight: weight of the Dice loss in the total.
        bce_weight: weight of the cross-entropy in the total.

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
        bce = _pixel_cross_entropy(logits, target).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)
        return LossParts(total=dice_weight * dice + bce_weight * bce, dice=dice, bce=bce)


def _pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every pixel, (N, H, W), 0 where the pixel is ignored."""
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, target.long(), ignore_index=IGNORE_LABEL, reduction="none")
    valid = target != IGNORE_LABEL
    truth = (target == 1).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none") * valid
