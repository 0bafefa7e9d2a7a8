"""Calibrates the confidence of a model, and judges it on images whose masks are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.confidence.calibration import FEWEST, Measured, calibrate
from lungseg_ray.confidence.signals import SIGNALS, Examined, Reference, describe_labels, examine
from lungseg_ray.confidence.stored import Confidence
from lungseg_ray.config import Device, EvaluateSettings
from lungseg_ray.errors import BadFileError
from lungseg_ray.evaluation.images import Images
from lungseg_ray.evaluation.robustness import dice_of_image
from lungseg_ray.evaluation.table import FigureTable
from lungseg_ray.feed.shifts import SHIFTS
from lungseg_ray.imaging import Pixels, pad_to_square, resize_labels
from lungseg_ray.inference.predictor import Model
from lungseg_ray.numerics.sampling import evenly_spaced
from lungseg_ray.progress import ticks
from lungseg_ray.run.summary import ConfidenceFigures

_TRAINING, _VALIDATION = 500, 200
"""The largest numbers of images that are described and calibrated on, at equal distances in their sets."""
_COPIES = 4
"""The changed copies of each validation image, so that worse masks are known, too."""
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class DescribedImage:
    """The descriptions of a training image and of its mask; empty if it cannot be used.

    Attributes:
        features: As `Predictor.features`.
        mask: As `describe_labels`.
    """

    features: list[float]
    mask: list[float]


@dataclass(frozen=True, slots=True)
class SignalledImage:
    """The signals of an image or of a changed copy of it.

    Attributes:
        patient: The patient of the image.
        plain: Whether it is the image as it is.
        signals: In the order of `SIGNALS`.
        dice: The Dice of its mask.
    """

    patient: str
    plain: bool
    signals: list[float]
    dice: float


@dataclass(frozen=True)
class DescribeChunk:
    """Describes training images, as `cluster.chunks.Work`.

    Attributes:
        model: The model.
        images: The images.
        numbers: The numbers of those that are used.
        batch: The images of a forward pass.
    """

    model: Model
    images: Images
    numbers: list[int]
    batch: int | None

    def prepare(self, chunk: int) -> tuple[list[list[float]], Pixels]:
        """Reads and resizes images, and describes their masks."""
        processing = self.model.processing()
        side, masks, found = processing.sidecar, [], []
        for number in self.numbers[chunk * _CHUNK : (chunk + 1) * _CHUNK]:
            try:
                sample = self.images.read(number).sample
            except BadFileError:
                continue
            found.append(sample.image)
            mask = pad_to_square(sample.mask) if side.fit == "pad" else sample.mask
            masks.append(describe_labels(resize_labels(mask, side.size, side.size), len(side.class_names)))
        return masks, processing.inputs(found)[0]

    def compute(self, given: Pixels, device: str) -> npt.NDArray[np.float32]:
        """Computes their features."""
        return self.model.load(device=device).features(given, batch=self.batch)

    def finish(self, prepared: list[list[float]], computed: npt.NDArray[np.float32]) -> list[DescribedImage]:
        """Joins both."""
        return [DescribedImage(row.tolist(), mask) for mask, row in zip(prepared, computed, strict=True)]


@dataclass(frozen=True)
class SignalChunk:
    """Measures an image and changed copies of it, as `cluster.chunks.Work`.

    Attributes:
        model: The model.
        images: The images.
        numbers: The number of the image of each chunk.
        reference: The training images that they are compared with.
        batch: The images of a forward pass.
    """

    model: Model
    images: Images
    numbers: list[int]
    reference: Reference
    batch: int | None

    def prepare(self, chunk: int) -> tuple[tuple[str, list[Pixels]], Pixels]:
        """Reads an image, changes it, and resizes all copies."""
        number = self.numbers[chunk]
        try:
            row = self.images.read(number)
        except BadFileError:
            return ("", []), self.model.processing().inputs([])[0]
        sample = row.sample
        changes = [(shift.change, level) for shift in SHIFTS.values() for level in shift.levels]
        drawn = np.random.default_rng(number).choice(len(changes), _COPIES, replace=False)
        pairs = [(sample.image, sample.mask)]
        pairs += [change(sample.image, sample.mask, level) for change, level in (changes[one] for one in drawn)]
        return (row.patient_id, [mask for _, mask in pairs]), self.model.processing().inputs(
            [image for image, _ in pairs]
        )[0]

    def compute(self, given: Pixels, device: str) -> Examined:
        """Runs the network on the copies."""
        return examine(self.model.load(device=device), given, batch=self.batch)

    def finish(self, prepared: tuple[str, list[Pixels]], computed: Examined) -> list[SignalledImage]:
        """Measures the copies."""
        patient, masks = prepared
        processing = self.model.processing()
        side, found = processing.sidecar, []
        maps = processing.combine([computed.maps], [mask.shape for mask in masks])
        for place, (mask, probability) in enumerate(zip(masks, maps, strict=True)):
            dice = dice_of_image(processing.labels(probability), mask, side.classes)
            signals = self.reference.signals(computed, place, processing)
            found.append(SignalledImage(patient, place == 0, [signals[name] for name in SIGNALS], dice))
        return found


def calibrate_confidence(
    model: Model, training: Images, validation: Images, settings: EvaluateSettings, *, device: Device = "auto"
) -> Confidence | None:
    """Finds out how the Dice of a model's masks can be told without true ones. Needs a running Ray cluster.

    Args:
        model: The model of one run.
        training: The images that it was trained on, of which up to 500 are described.
        validation: Its validation images, of which up to 200 are used, with four changed copies each.
        settings: The settings of the evaluation.
        device: The device to compute on.

    Returns:
        The confidence; None if there are too few images for one.
    """
    if len(validation) < FEWEST:
        return None
    numbers = evenly_spaced(len(training), _TRAINING)
    describe = DescribeChunk(model, training, numbers, settings.batch)
    chunks = -(-len(numbers) // _CHUNK)
    described = list(map_chunks(describe, chunks, DescribedImage, workers=settings.workers, device=device))
    if not described:
        return None
    reference = Reference.of(np.array([one.features for one in described]), np.array([one.mask for one in described]))
    numbers = evenly_spaced(len(validation), _VALIDATION)
    work = SignalChunk(model, validation, numbers, reference, settings.batch)
    done = map_chunks(work, len(numbers), SignalledImage, workers=settings.workers, device=device)
    rows = list(ticks(done, total=len(numbers) * (1 + _COPIES), description="Calibrating confidence"))
    calibration = calibrate(
        Measured(
            signals=np.array([one.signals for one in rows]).reshape(-1, len(SIGNALS)),
            dice=np.array([one.dice for one in rows]),
            patient=np.array([one.patient for one in rows], np.str_),
            plain=np.array([one.plain for one in rows], bool),
        )
    )
    return Confidence(reference=reference, calibration=calibration) if calibration else None


def passes_to_calibrate(training: int, validation: int) -> float:
    """Returns how many images pass the network in `calibrate_confidence`, where those of the encoder alone count half.

    Args:
        training: The number of training images.
        validation: The number of validation images.
    """
    if validation < FEWEST:
        return 0
    return min(training, _TRAINING) / 2 + min(validation, _VALIDATION) * (1 + _COPIES) * 1.5


def judge_confidence(rows: FigureTable) -> ConfidenceFigures | None:
    """Compares expected with true Dice.

    Args:
        rows: The figures of images.

    Returns:
        The comparison; None where no Dice was expected, or for a single image.
    """
    if not rows.have("expected_dice") or len(rows) < 2:
        return None
    dice, expected = rows["dice"], rows["expected_dice"]
    like = rows["unlike"] == 0
    inside = (rows["expected_low"] <= dice) & (dice <= rows["expected_high"])
    first = np.argsort(expected)[: -(-len(rows) * 15 // 100)]
    bad = dice < 0.9
    varied = len(np.unique(dice)) > 1 and len(np.unique(expected)) > 1
    return {
        "spearman": float(stats.spearmanr(expected, dice).statistic) if varied else 0.0,
        "mean_error": float(np.abs(expected - dice).mean()),
        "inside": float(inside[like].mean()) if like.any() else None,
        "unlike": float(1 - like.mean()),
        "below_90": int(bad.sum()),
        "below_90_found": int(bad[first].sum()),
    }
