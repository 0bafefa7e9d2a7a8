"""Quality of label maps: overlap counts, sums over a validation set, surface distances and confidence intervals."""

import math
import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from lungseg_ray.errors import UserError
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.numerics.losses import validation_losses

MOST_DRAWN = 10_000
"""With more patients than this, no resamples are drawn for an interval."""


class Counts(NamedTuple):
    """Numbers of pixels by image and foreground class, each of shape (N, F) for F foreground classes.

    Attributes:
        tp: True positives, int64.
        fp: False positives, int64.
        fn: False negatives, int64.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor


class SurfaceDistances(NamedTuple):
    """Distances between the outlines of two masks, in the unit of the spacing.

    Attributes:
        hd95: The larger of the two directed 95th percentiles of the distance (Hausdorff distance).
        assd: The average symmetric surface distance.
        empty: Whether exactly one of the two masks is empty.
    """

    hd95: float
    assd: float
    empty: bool


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: The mean.
        low: The lower bound of the interval.
        high: The upper bound of the interval.
    """

    mean: float
    low: float
    high: float


def probabilities(logits: Tensor) -> Tensor:
    """Converts logits to probabilities: by sigmoid for one channel, by softmax for several.

    Args:
        logits: (N, K, H, W), any floating dtype.

    Returns:
        (N, K, H, W) float32, in [0, 1].
    """
    return logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(dim=1)


def predict_labels(probability: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Converts probabilities to label maps.

    Args:
        probability: (N, K, H, W) in [0, 1], as `probabilities` returns it.
        threshold: With one channel, a pixel has label 1 if its probability is above this value, in [0, 1]. With several
            channels, a pixel gets the label with the largest probability and the threshold is not used.

    Returns:
        (N, H, W) uint8 labels.
    """
    if probability.shape[1] == 1:
        return (probability[:, 0] > threshold).to(torch.uint8)
    return probability.argmax(dim=1).to(torch.uint8)


def confusion_counts(prediction: Tensor, target: Tensor, *, classes: int) -> Counts:
    """Counts true positive, false positive and false negative pixels of each image and foreground class.

    Args:
        prediction: (N, H, W) integer labels.
        target: (N, H, W) integer labels; pixels with `IGNORE_LABEL` are not counted.
        classes: 1 for a binary mask (foreground: label 1), otherwise the number of labels (foreground: all but label
            0).

    Returns:
        Int64 counts of shape (N, F) with F = max(classes - 1, 1).
    """
    valid = target != IGNORE_LABEL
    labels = range(1, max(classes, 2))
    predicted = torch.stack([(prediction == label) & valid for label in labels], dim=1)
    true = torch.stack([target == label for label in labels], dim=1)
    return Counts(
        tp=(predicted & true).sum(dim=(2, 3)),
        fp=(predicted & ~true).sum(dim=(2, 3)),
        fn=(~predicted & true).sum(dim=(2, 3)),
    )


def dice(counts: Counts) -> Tensor:
    """Returns Dice = 2 tp / (2 tp + fp + fn), float64 of the counts' shape; 1 if truth and prediction are empty."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou(counts: Counts) -> Tensor:
    """Returns IoU = tp / (tp + fp + fn), float64 of the counts' shape; 1 if truth and prediction are empty."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator == 0, 1.0, numerator.double() / denominator.clamp(min=1))


class ValidationSums:
    """Float64 sums over the images of a validation set, from which the figures of the whole set are computed.

    The sums of several workers can be added up: each worker calls `update` with its images, one all-reduce (SUM) of
    `as_tensor()` adds the sums of all workers, and `load` stores the result. How the images are distributed to batches
    and workers affects only the last bits of the figures.

    Args:
        classes: Number of logit channels: 1 for a binary mask, otherwise the number of labels including the background.
        dice_weight: Weight of the Dice loss in the loss.
        bce_weight: Weight of the cross-entropy in the loss.
        label_weights: Weight of the pixels of each label in the cross-entropy, as for `SegmentationLoss`.
        threshold: Threshold of the probability for a binary mask, in [0, 1].
        candidates: Further thresholds for a binary mask, of which the best one is found.
        device: The device of the sums.
    """

    _MEANS = ("loss", "loss_dice", "loss_bce", "iou", "dice")
    # After them comes the number of images; then, for each foreground class, the sum of Dice over the images that have
    # it, the number of these, and the pixels that are true positive, false positive and false negative.
    _BEFORE_CLASSES = len(_MEANS) + 1

    def __init__(
        self,
        *,
        classes: int,
        dice_weight: float = 1.0,
        bce_weight: float = 0.8,
        label_weights: Sequence[float] = (),
        threshold: float = 0.5,
        candidates: Sequence[float] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.classes = classes
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self._label_weights = torch.tensor(label_weights, dtype=torch.float64, device=device)
        self.threshold = threshold
        self.candidates = candidates
        self._before_candidates = self._BEFORE_CLASSES + 5 * max(classes - 1, 1)
        length = self._before_candidates + len(candidates)
        self._sums = torch.zeros(length, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch to the sums.

        Args:
            logits: (N, classes, H, W), any floating dtype, on the device that was given to the constructor.
            target: (N, H, W) uint8 labels; `IGNORE_LABEL` is allowed.
        """
        losses = validation_losses(
            logits,
            target,
            classes=self.classes,
            dice_weight=self.dice_weight,
            bce_weight=self.bce_weight,
            label_weights=self._label_weights,
        )
        probability = probabilities(logits)
        counts = self._counts(probability, target, self.threshold)
        dices = dice(counts)
        positive = (counts.tp + counts.fn > 0).double()
        ones = torch.ones_like(losses.total)
        per_image = torch.stack([*losses, iou(counts).mean(dim=1), dices.mean(dim=1), ones])
        per_class = torch.stack([dices * positive, positive, *counts])
        others = [dice(self._counts(probability, target, one)).sum(dim=0) for one in self.candidates]
        self._sums += torch.cat([per_image.sum(dim=1), per_class.sum(dim=1).flatten(), *others])

    def _counts(self, probability: Tensor, target: Tensor, threshold: float) -> Counts:
        return confusion_counts(predict_labels(probability, threshold=threshold), target, classes=self.classes)

    def as_tensor(self) -> Tensor:
        """Returns a copy of the sums, a flat float64 tensor on the constructor's device, ready for one all-reduce."""
        return self._sums.clone()

    def load(self, sums: Tensor) -> None:
        """Replaces the sums with those of `as_tensor`, added up over all workers."""
        self._sums.copy_(sums)

    def result(self) -> dict[str, float]:
        """Computes the figures of all images that were added.

        Returns:
            `loss`, `loss_dice`, `loss_bce`, `iou` and `dice` (means over images; IoU and Dice are first averaged over
            the foreground classes of an image), `iou_pooled` (from the pixels of all images together, averaged over the
            foreground classes), `n` (number of images), and, if there are any, `dice_positives` (mean Dice of the
            images that have a class, averaged over the classes that some image has) and `threshold` (the candidate with
            the largest mean Dice, of several the one next to 0.5).

        Raises:
            UserError: If no image was added.
        """
        sums = self._sums.cpu()
        n = int(sums[len(self._MEANS)])
        if n == 0:
            raise UserError(
                "The validation set holds no image, expected at least one: check that the validation split is not "
                "empty."
            )
        dice_sum, positives, *pixels = sums[self._BEFORE_CLASSES : self._before_candidates].reshape(5, -1)
        found = positives > 0
        if_any = {"dice_positives": float((dice_sum[found] / positives[found]).mean())} if found.any() else {}
        if self.candidates:
            of_candidates = zip(sums[self._before_candidates :].tolist(), self.candidates, strict=True)
            if_any["threshold"] = max(of_candidates, key=lambda one: (one[0], -abs(one[1] - 0.5)))[1]
        means = {name: float(total) / n for name, total in zip(self._MEANS, sums, strict=False)}
        return {**means, "iou_pooled": float(iou(Counts(*pixels)).mean()), "n": n, **if_any}


def surface_distances(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, spacing: tuple[float, float] = (1.0, 1.0)
) -> SurfaceDistances:
    """Computes HD95 and ASSD between the outlines of two masks, with MONAI.

    HD95 is the larger of the two directed 95th percentiles. ASSD is the mean distance from the outline pixels of both
    masks to the other outline. If both masks are empty, the distances are 0. If one of them is empty, they are the
    length of the image diagonal, and `empty` is set.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.
        spacing: Height and width of a pixel. It determines the unit of the result: (1, 1) for pixels, or mm.

    Returns:
        The two distances in the unit of the spacing, and whether exactly one mask is empty.

    Raises:
        UserError: If the masks differ in shape.
    """
    if prediction.shape != truth.shape:
        raise UserError(
            f"Cannot measure the distance between masks of different shapes: the truth has {truth.shape}, the "
            f"prediction has {prediction.shape}. Resize the prediction to the truth's grid first."
        )
    if not prediction.any() and not truth.any():
        return SurfaceDistances(hd95=0.0, assd=0.0, empty=False)
    if not prediction.any() or not truth.any():
        diagonal = math.hypot(truth.shape[0] * spacing[0], truth.shape[1] * spacing[1])
        return SurfaceDistances(hd95=diagonal, assd=diagonal, empty=True)

    # MONAI is imported here because it takes seconds (more than ten from a cold disk) and only evaluation needs it.
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    # The masks are copied because arrays from a shared object store are read-only, and PyTorch warns about such arrays.
    pair = [mask[None, None].astype(np.float32) for mask in (prediction, truth)]
    with warnings.catch_warnings():
        # MONAI 1.6 issues a warning about an argument that it passes to itself.
        warnings.simplefilter("ignore", FutureWarning)
        hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
        assd = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing)
    return SurfaceDistances(hd95=float(hd95), assd=float(assd), empty=False)


def clean_up(mask: NDArray[np.bool_], *, components: int = 2) -> NDArray[np.bool_]:
    """Keeps the largest connected components of a mask, such as the two lungs, and fills their holes.

    Components are 4-connected, like the outlines of the lungs in `surface_distances`. Of components with equal size,
    the first in reading order is kept.

    Args:
        mask: (H, W) bool.
        components: Number of components to keep; a mask with fewer components keeps all of them.

    Returns:
        (H, W) bool, a new array.
    """
    labelled, count = ndimage.label(mask)
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[:components] + 1
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(np.isin(labelled, largest))
    return filled


def clean_up_labels(labels: NDArray[np.uint8], *, classes: int) -> NDArray[np.uint8]:
    """Applies `clean_up` to each label of a label map; holes are filled only where the map has background.

    Args:
        labels: (H, W) uint8 label map; label 0 is the background.
        classes: The highest label; labels 1 to `classes` are cleaned.

    Returns:
        (H, W) uint8, a new array.
    """
    cleaned = np.zeros_like(labels)
    for label in range(1, classes + 1):
        cleaned[clean_up(labels == label) & ((labels == 0) | (labels == label))] = label
    return cleaned


def bootstrap_interval(
    values: ArrayLike, patients: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Computes the mean over images with a percentile bootstrap interval over patients.

    Patients are drawn with replacement, each with all of its images, because images of one patient are not independent.
    The mean of a resample is the mean over its images. With one patient alone, the interval has width 0. With more than
    `MOST_DRAWN` patients, the interval is the one that the means of resamples approach: normal, with the variance of a
    ratio of sums over patients (Cochran, Sampling Techniques, 1977, 6.4).

    Args:
        values: (N,) one figure per image.
        patients: (N,) the patient of each image, of any sortable type.
        confidence: Probability mass between the bounds, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the draws; equal arguments give equal intervals.

    Returns:
        The mean and the bounds of its confidence interval.

    Raises:
        UserError: If there are no values, or if values and patients are not one-dimensional arrays of the same length.
    """
    figures = np.asarray(values, dtype=np.float64)
    owners = np.asarray(patients)
    if figures.ndim != 1 or figures.size == 0 or owners.shape != figures.shape:
        raise UserError(
            f"Cannot bootstrap: expected one value and one patient per image, found values of shape {figures.shape} "
            f"and patients of shape {owners.shape}."
        )
    _, index, images = np.unique(owners, return_inverse=True, return_counts=True)
    sums = np.bincount(index, weights=figures)
    mean = float(figures.mean())
    if images.size == 1:
        return Interval(mean=mean, low=mean, high=mean)
    if images.size > MOST_DRAWN:
        error = math.sqrt(np.square(sums - mean * images).sum()) / figures.size
        half = NormalDist().inv_cdf((1 + confidence) / 2) * error
        return Interval(mean=mean, low=mean - half, high=mean + half)
    draws = np.random.default_rng(seed).multinomial(images.size, np.full(images.size, 1 / images.size), size=resamples)
    low, high = np.quantile((draws @ sums) / (draws @ images), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=mean, low=float(low), high=float(high))
