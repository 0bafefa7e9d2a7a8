"""The figures that a run leaves, in the form in which its JSON files contain them."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class IntervalFigures(TypedDict):
    """A mean over images with its 95 % bootstrap interval over patients.

    Attributes:
        mean: The mean.
        low: The lower bound.
        high: The upper bound.
    """

    mean: float
    low: float
    high: float


class Detection(TypedDict):
    """Figures of a set in which some images do not have a structure.

    Attributes:
        positives: Number of images that have it.
        dice: Dice coefficient of these images, 0 to 1. An image without it has 1 if nothing is predicted, so that a
            model that predicts nothing would have a high mean over all images.
        sensitivity: Share of these images in which anything is predicted.
        negatives: Number of images that do not have it.
        false_alarms: Share of these images in which something is predicted.
    """

    positives: int
    dice: IntervalFigures
    sensitivity: float
    negatives: int
    false_alarms: float


class Distances(TypedDict, total=False):
    """Figures of one class. Distances in mm are missing where the pixel spacing of an image is unknown.

    Attributes:
        dice: Dice coefficient, 0 to 1.
        iou: Intersection over union, 0 to 1.
        hd95: 95th percentile of the Hausdorff distance, source pixels.
        assd: Average symmetric surface distance, source pixels.
        hd95_mm: The same as `hd95`, in mm.
        assd_mm: The same as `assd`, in mm.
        iou_pooled: Intersection over union of the pixels of all images together.
        detection: Figures of images with and without the class; missing if all images, or none, have it.
    """

    dice: IntervalFigures
    iou: IntervalFigures
    hd95: IntervalFigures
    assd: IntervalFigures
    hd95_mm: IntervalFigures
    assd_mm: IntervalFigures
    iou_pooled: float
    detection: Detection


class Figures(Distances, total=False):
    """Figures of a set of images; means over the classes where there are several.

    Attributes:
        n: Number of images.
        n_empty: Number of images in which the truth or the prediction, but not both, is empty.
        patients: Number of patients.
        detection: Figures of the images with and without the structure; only if there are both.
        iou_pooled_with_background: Mean of `iou_pooled` over all classes and the background.
        classes: The figures of each class, and of the background, by name; only where there are several classes.
    """

    n: int
    n_empty: int
    patients: int
    detection: Detection
    iou_pooled_with_background: float
    classes: dict[str, Distances]


class SetAsideFile(TypedDict):
    """A file that is not used, in the form in which `evaluation.json` lists it.

    Attributes:
        image_id: As in `SetAside`.
        uri: As in `SetAside`.
        reason: As in `SetAside`.
        detail: As in `SetAside`.
    """

    image_id: str
    uri: str
    reason: str
    detail: str


class ShiftFigures(TypedDict):
    """The quality of a model under one kind of change of the images.

    Attributes:
        about: What a level means.
        levels: The levels.
        dice: The mean Dice at each level.
    """

    about: str
    levels: list[float]
    dice: list[float]


class Robustness(TypedDict):
    """The quality of a model under graded changes of the images.

    Attributes:
        images: The number of images that were changed.
        dice: The mean Dice of these images as they are.
        mean: The mean Dice over all levels of all changes.
        shifts: The figures of each kind of change, by its name.
    """

    images: int
    dice: float
    mean: float
    shifts: dict[str, ShiftFigures]


class ConfidenceFigures(TypedDict):
    """How well the Dice of masks was told without true ones.

    Attributes:
        spearman: The rank correlation of expected and true Dice, -1 to 1.
        mean_error: The mean absolute difference of both.
        inside: The share of images whose Dice lies in its range, of those that are not unlike the training images; None
            if all are.
        unlike: The share of images that are unlike the training images.
        below_90: The number of images with a Dice below 0.9.
        below_90_found: The number of these among the 15 % of images with the lowest expected Dice.
    """

    spearman: float
    mean_error: float
    inside: float | None
    unlike: float
    below_90: int
    below_90_found: int


class Evaluation(Figures, total=False):
    """The content of `evaluation.json`.

    Attributes:
        clean_up: The figures after `metrics.clean_up_labels`.
        groups: The figures of each subgroup, by column and value.
        missing_subgroups: The columns of `evaluate.subgroups` that the corpus does not have.
        regions: How much more is predicted than marked in each region, as `region_excess` defines it; means over the
            images in which something is marked.
        class_names: The names of the labels from 1 on.
        robustness: The figures of changed copies of some images; missing where none were asked for.
        confidence: How well the Dice of the masks was told without true ones; missing where it was not.
        members: The folders of the runs whose models were averaged.
        flips: The mirror images that were averaged over.
        set_aside: The files that are not used.
        layout: The layout of the corpus, and why it was recognised; only for a corpus.
        corpus: The root of the corpus, or the roots; only for a corpus.
        unlabelled: Number of images of the corpus without a mask; only for a corpus.
    """

    clean_up: Figures
    groups: dict[str, dict[str, Figures]]
    missing_subgroups: list[str]
    regions: dict[str, IntervalFigures]
    class_names: list[str]
    robustness: Robustness
    confidence: ConfidenceFigures
    members: list[str]
    flips: str
    set_aside: list[SetAsideFile]
    layout: str
    corpus: str
    unlabelled: int


class ValidationFigures(TypedDict):
    """Figures on the validation images after the best epoch.

    Attributes:
        loss: The validation loss.
        iou: Mean intersection over union.
        dice: Mean Dice coefficient.
    """

    loss: float
    iou: float
    dice: float


class Seconds(TypedDict):
    """How long a command took.

    Attributes:
        to_first_step: Seconds until the first training step; None if nothing was trained.
        start: What these seconds went to, in their order: `imports` of the command, the start of Ray (`ray`), `shards`
            that were looked for or built, the start of the `workers` with their imports, the probe of the precision and
            the `model`, and the `first_step` with its images; empty if nothing was trained, and missing in summaries
            of older versions.
        total: Seconds of the whole command.
    """

    to_first_step: float | None
    start: NotRequired[dict[str, float]]
    total: float


class RunSummary(TypedDict, total=False):
    """The content of a run's `summary.json`.

    Attributes:
        epochs: Number of finished epochs.
        best_epoch: The best epoch, from 1.
        val: Figures on the validation images.
        test: Figures on the test images; None if there are none.
        images_per_second: Training images per second, without validation.
        matrix_rate_share: Floating-point operations of the convolutions in training, per second, as a share of those
            that the devices of the workers make in large matrix products; missing if nothing was trained.
        data_wait_share: Share of the training time spent waiting for data, 0 to 1.
        checkpoint_wait_share: Share of the training time spent waiting for checkpoints, 0 to 1.
        skipped: Number of skipped steps.
        seconds: How long the last command took; missing for the trials of a sweep.
    """

    epochs: int
    best_epoch: int
    val: ValidationFigures
    test: Evaluation | None
    images_per_second: float
    matrix_rate_share: float
    data_wait_share: float
    checkpoint_wait_share: float
    skipped: int
    seconds: Seconds


def describe_detection(result: Evaluation) -> list[str]:
    """Returns a sentence for each class that some images do not have, for tables and pages.

    Args:
        result: The figures of an evaluation.
    """
    found = {
        name: figures["detection"] for name, figures in result.get("classes", {}).items() if "detection" in figures
    }
    if "detection" in result:
        found = {"the structure": result["detection"]}
    return [
        f"With {name}, {one['positives']} images: Dice {one['dice']['mean']:.4g} ({one['dice']['low']:.4g} to "
        f"{one['dice']['high']:.4g}), found in {one['sensitivity']:.1%}. Without it, {one['negatives']} images: false "
        f"alarms in {one['false_alarms']:.1%}."
        for name, one in found.items()
    ]


def describe_robustness(result: Evaluation) -> list[str]:
    """Returns a sentence on the changes of the images by which a model loses most; none if they were not measured.

    Args:
        result: The figures of an evaluation.
    """
    if "robustness" not in result:
        return []
    card = result["robustness"]
    worst = sorted(
        (dice, f"{name} ({shift['about']}: {level:g})")
        for name, shift in card["shifts"].items()
        for level, dice in zip(shift["levels"], shift["dice"], strict=True)
    )[:3]
    named = ", ".join(f"{dice:.3f} with another {name}" for dice, name in worst)
    return [f"Of {card['images']} images, Dice is {card['dice']:.3f} as they are, and falls to {named}."]


def describe_confidence(result: Evaluation) -> list[str]:
    """Returns a sentence on how well the Dice of masks was told without true ones; none if it was not.

    Args:
        result: The figures of an evaluation.
    """
    if "confidence" not in result:
        return []
    found = result["confidence"]
    text = (
        f"The Dice that is expected of a mask without the true one is wrong by {found['mean_error']:.3f} on average "
        f"(rank correlation {found['spearman']:.2f}). {found['unlike']:.0%} of the images are unlike those of training."
    )
    if found["inside"] is not None:
        text += f" Of the others, the true one lies in its range for {found['inside']:.0%}."
    if found["below_90"]:
        text += (
            f" Of {found['below_90']} masks with a Dice below 0.9, {found['below_90_found']} are among the 15 % of "
            "images of which the least is expected."
        )
    return [text]
