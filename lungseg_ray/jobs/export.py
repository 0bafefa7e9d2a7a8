"""The job that writes a trained model as a file that other programs open, and compares it with the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from lungseg_ray.cluster.places import check_lasting
from lungseg_ray.config import ExportJob
from lungseg_ray.errors import BadFileError, JobFailedError, UserError
from lungseg_ray.evaluation.images import ShardImages
from lungseg_ray.evaluation.robustness import dice_of_image
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference import reference
from lungseg_ray.inference.portable import (
    FILES,
    OPSET,
    Opened,
    largest_difference,
    needs,
    open_file,
    write_eight_bits,
    write_model,
)
from lungseg_ray.inference.predictor import Processing
from lungseg_ray.inference.whole import WholeNetwork
from lungseg_ray.numerics.sampling import evenly_spaced
from lungseg_ray.progress import ticks
from lungseg_ray.run.exported import SIDECAR, Sidecar, find_export, open_model, weights_sha256
from lungseg_ray.run.folder import Run
from lungseg_ray.shards.index import ShardIndex, read_index
from lungseg_ray.storage import Location

EIGHT_BITS = "model-int8.onnx"
REFERENCE = "reference.py"
CLAIM = "exported.json"
"""Which model the files of a folder are."""
_LARGEST_DIFFERENCE = 1e-4
"""The difference of two probabilities up to which a file counts as the model."""
_IMAGES, _BATCH = 100, 4
"""The largest number of training images that 8-bit integers are calibrated on, and of validation images that they are
measured on."""


@dataclass(frozen=True)
class ExportedFile:
    """A model that was written.

    Attributes:
        place: The file.
        difference: The largest difference of its probabilities from those of the model, 0 to 1.
        dice: Of a file with 8-bit integers: the mean Dice of the validation images with the model, and with the file.
    """

    place: Location
    difference: float
    dice: tuple[float, float] | None = None


def main(job: ExportJob, console: Console) -> None:
    """Writes the file, and prints what it was compared with.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `export`.
        JobFailedError: As `export`.
        OSError: As `export`.
    """
    found = export(job)
    about = f", opset {OPSET}" if job.format == "onnx" else ""
    console.print(
        f"{found.place}: {job.format}{about}; largest difference of a probability from the model's: "
        f"{found.difference:.1e}",
        highlight=False,
    )
    if found.dice:
        plain, small = found.dice
        console.print(
            f"{job.out / EIGHT_BITS}: 8-bit integers; mean Dice of the validation images {small:.4f}, of the model "
            f"{plain:.4f}",
            highlight=False,
        )
    console.print(f"{job.out / REFERENCE}: what happens to images before and after it", highlight=False)


def export(job: ExportJob) -> ExportedFile:
    """Writes a model in another format, with its preprocessing in JSON and as a program.

    Args:
        job: The settings of the job.

    Returns:
        The file of the model, and how it compares.

    Raises:
        UserError: If there is no model, if a package for the format is missing, if the folder has files of another
            model, or if the shards for 8-bit integers are not those of the training.
        JobFailedError: If the file computes something else than the model.
        OSError: If a file cannot be read or written.
    """
    needs(job.format)
    check_lasting(job.out)
    place = find_export(job.run)
    model, sidecar = open_model(place)
    sidecar = sidecar.model_copy(update={"flips": job.flips or sidecar.flips})
    network = WholeNetwork(model, sidecar).eval()
    claim = _claim(job, place, sidecar)
    index = _index(job) if job.int8 else None
    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
        file = Path(folder) / FILES[job.format]
        write_model(network, sidecar, job.format, file)
        opened = open_file(file, job.format)
        difference = largest_difference(opened, network, sidecar)
        # The difference of something that is not a number is not one, either.
        if not difference <= _LARGEST_DIFFERENCE:
            raise JobFailedError(
                f"{job.run}: the model as {job.format} computes something else, by up to {difference:.1e}; nothing "
                "was written. Choose another --format."
            )
        dice = _eight_bits(job, index, file, opened, sidecar) if index else None
        (job.out / CLAIM).write_text(claim)
        (job.out / SIDECAR).write_text(sidecar.model_dump_json(indent=2) + "\n")
        (job.out / REFERENCE).write_text(Path(reference.__file__).read_text())
        for written in sorted(Path(folder).iterdir()):
            (job.out / written.name).write_bytes(written.read_bytes())
    return ExportedFile(job.out / FILES[job.format], difference, dice)


def _claim(job: ExportJob, place: Location, sidecar: Sidecar) -> str:
    """Returns the content of the file that says which model a folder holds, or refuses one that has another's files."""
    mine = json.dumps({"weights_sha256": weights_sha256(place), "flips": sidecar.flips}) + "\n"
    there = job.out / CLAIM
    if job.out.exists() and job.out.list() and not (there.exists() and there.read_text() == mine):
        raise UserError(f"{job.out}: this folder has files of another model, or others. Choose another --out.")
    return mine


def _index(job: ExportJob) -> tuple[Location, ShardIndex]:
    """Returns the shards that the run was trained on."""
    kept = Run(job.run).started_with()
    root = job.shards or kept.settings.shards.root
    index = read_index(root)
    if index.fingerprint != kept.shards:
        raise UserError(
            f"{root}: these are other shards than those that {job.run} was trained on. Give those with --shards."
        )
    if not (index.count("train") and index.count("val")):
        raise UserError(f"{root}: --int8 needs training and validation images, found none of one of them.")
    return root, index


def _eight_bits(
    job: ExportJob, index: tuple[Location, ShardIndex], file: Path, opened: Opened, sidecar: Sidecar
) -> tuple[float, float]:
    """Writes the file with 8-bit integers beside the other, and measures both on validation images."""
    training, validation = (_some(index, split) for split in ("train", "val"))
    processing = Processing([sidecar])
    batches = (processing.inputs([image for image, _ in batch])[0] for batch in _batches(training, "Calibrating"))
    small = file.with_name(EIGHT_BITS)
    write_eight_bits(file, small, batches)
    models = opened, open_file(small, job.format)
    dice: list[list[float]] = []
    for batch in _batches(validation, "Comparing"):
        (inputs,) = processing.inputs([image for image, _ in batch])
        maps = [processing.combine([model(inputs)], [mask.shape for _, mask in batch]) for model in models]
        for (_, mask), *both in zip(batch, *maps, strict=True):
            dice.append([dice_of_image(processing.labels(one), mask, sidecar.classes) for one in both])
    plain, eight = np.mean(dice, axis=0).tolist()
    return plain, eight


def _some(index: tuple[Location, ShardIndex], split: str) -> ShardImages:
    """Returns some images of a split, at equal distances."""
    root, shards = index
    images = ShardImages.of(root, shards.of(split))  # type: ignore[arg-type]
    return ShardImages(root, [images.rows[number] for number in evenly_spaced(len(images), _IMAGES)])


def _batches(images: ShardImages, what: str) -> Iterator[list[tuple[Pixels, Pixels]]]:
    """Yields the images and masks, a few at a time."""
    batch: list[tuple[Pixels, Pixels]] = []
    for number in ticks(range(len(images)), total=len(images), description=what):
        try:
            sample = images.read(number).sample
        except BadFileError:
            continue
        batch.append((sample.image, sample.mask))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
