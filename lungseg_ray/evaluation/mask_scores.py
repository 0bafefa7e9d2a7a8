"""Compares masks with the predictions of models that have not seen them, to find the masks that are wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.confidence.signals import expected_dice
from lungseg_ray.config import Device
from lungseg_ray.evaluation.images import ShardImages
from lungseg_ray.evaluation.robustness import dice_of_image
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Model, Probability
from lungseg_ray.progress import ticks
from lungseg_ray.shards.index import Shard
from lungseg_ray.storage import Location

_CHUNK = 8
_CERTAIN = 0.01
"""No model is more certain of a mask than this: 1 - the Dice that it expects is at least so large."""
Row = tuple[Shard, int]


@dataclass(frozen=True, slots=True)
class ComparedMask:
    """A mask beside a prediction.

    Attributes:
        image_id: The image.
        patient_id: Its patient.
        split: Its split.
        file: The file of its shard.
        row: Its row in that file.
        dice: The Dice of the mask and the prediction, the mean over the classes.
        certain: The Dice of the prediction and of its own probabilities: what the model believes of it.
        seen: Whether the model was trained on it.
        model: The number of the model, or of one of them.
    """

    image_id: str
    patient_id: str
    split: str
    file: str
    row: int
    dice: float
    certain: float
    seen: bool
    model: int

    @property
    def suspicion(self) -> float:
        """How much larger the error is than the model believes, as a factor."""
        return (1 - self.dice) / max(1 - self.certain, _CERTAIN)


@dataclass(frozen=True)
class CompareChunk:
    """Compares the masks of some images with a model, as `cluster.chunks.Work`.

    Attributes:
        model: The model.
        images: The images.
        unseen: How many of the images, the first ones, the model was not trained on.
        number: The number of the model.
    """

    model: Model
    images: ShardImages
    unseen: int
    number: int

    def prepare(self, chunk: int) -> tuple[list[tuple[ComparedMask, Pixels]], list[Pixels]]:
        """Reads and resizes images."""
        found, pixels = [], []
        for number in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self.images))):
            shard, row = self.images.rows[number]
            one = self.images.read(number)
            compared = ComparedMask(
                image_id=one.image_id,
                patient_id=one.patient_id,
                split=shard.split,
                file=shard.file,
                row=row,
                dice=0.0,
                certain=0.0,
                seen=number >= self.unseen,
                model=self.number,
            )
            found.append((compared, one.sample.mask))
            pixels.append(one.sample.image)
        return found, self.model.processing().inputs(pixels)

    def compute(self, given: list[Pixels], device: str) -> list[Probability]:
        """Predicts their maps."""
        return self.model.load(device=device).maps(given)

    def finish(self, prepared: list[tuple[ComparedMask, Pixels]], computed: list[Probability]) -> list[ComparedMask]:
        """Compares them with their masks."""
        processing = self.model.processing()
        maps = processing.combine(computed, [mask.shape for _, mask in prepared])
        rows = []
        for (one, mask), map_ in zip(prepared, maps, strict=True):
            labels = processing.labels(map_)
            dice = dice_of_image(labels, mask, processing.sidecar.classes)
            rows.append(replace(one, dice=dice, certain=believed(map_, labels)))
        return rows


@dataclass(frozen=True)
class Judge:
    """A model, and the rows of shards that it is compared with.

    Attributes:
        model: The model.
        unseen: The rows that it was not trained on.
        seen: Rows that it was trained on.
    """

    model: Model
    unseen: Sequence[Row]
    seen: Sequence[Row] = ()


def believed(map_: Probability, labels: Pixels) -> float:
    """Returns the Dice of a label map and of the probabilities that it was decided from, the mean over its labels.

    Args:
        map_: (H, W, K) float32, 0 to 1.
        labels: (H, W) uint8; label 0 is the background.

    Returns:
        0 to 1; where no pixel has a label, the probability that the likeliest one has none.
    """
    count = max(map_.shape[2] - 1, 1)
    if not labels.any():
        return 1 - float(map_[:, :, -count:].max())
    decided = (labels[:, :, None] == np.arange(1, count + 1)).astype(np.float32)
    dice = expected_dice(map_[:, :, -count:], decided)
    return fmean(dice[dice > 0].tolist() or [0.0])


def compare_masks(judges: Sequence[Judge], root: Location, *, device: Device = "auto") -> list[ComparedMask]:
    """Compares the masks of shards with the predictions of models. Needs a running Ray cluster.

    Args:
        judges: The models, with the rows that each is compared with.
        root: The folder of the shards.
        device: The device to compute on.

    Returns:
        The masks, with the means over the models that were compared with them, the most suspicious first. Where one of
        the models has not seen an image, those that have do not count.
    """
    by_image: dict[str, list[ComparedMask]] = defaultdict(list)
    total = sum(len(judge.unseen) + len(judge.seen) for judge in judges)

    def compared() -> Iterator[ComparedMask]:
        for number, judge in enumerate(judges):
            images = ShardImages(root, [*judge.unseen, *judge.seen])
            work = CompareChunk(judge.model, images, len(judge.unseen), number)
            yield from map_chunks(work, -(-len(images) // _CHUNK), ComparedMask, device=device)

    for one in ticks(compared(), total=total, description="Comparing masks"):
        by_image[one.image_id].append(one)
    found = []
    for of_image in by_image.values():
        counted = [one for one in of_image if not one.seen] or of_image
        dice, certain = fmean(one.dice for one in counted), fmean(one.certain for one in counted)
        found.append(replace(counted[0], dice=dice, certain=certain))
    return sorted(found, key=lambda one: (-one.suspicion, one.image_id))
