"""The job that writes predicted masks in the forms that hospitals, annotators and statisticians use."""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from lungseg_ray.cluster.capacity import wait_for_cpu
from lungseg_ray.cluster.chunks import OneStage, map_chunks
from lungseg_ray.cluster.places import check_lasting, check_shared
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import DeliverJob
from lungseg_ray.corpus.annotations.write import Annotated, coco_shapes, labelme
from lungseg_ray.corpus.dicom_write import write_picture, write_segmentation
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.imaging import Pixels, overlay, png
from lungseg_ray.jobs.predicted import Predicted, read_verdicts
from lungseg_ray.numerics.measures import measure
from lungseg_ray.progress import ticks
from lungseg_ray.text import escaped

TABLE = "delivered.csv"
MEASURES = "measures.csv"
ANNOTATIONS = "annotations.json"
CLAIM = ".delivered.json"
"""What the folder is for; hidden, so that it is no part of a corpus."""
IMAGES, MASKS = "images", "masks"
_CHUNK, _SHOWN = 8, 10
_AS_IMAGES = ("labelme", "coco", "coco-rle", "masks")
"""The forms that are a corpus: images are 8-bit PNG files, which all tools open and which name no patient."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of the mask of one image.

    Attributes:
        image: The path of the image relative to the folder of images, in a printable form.
        reason: Why it was left out; empty if it was written.
        height: The height of the image, pixels; 0 if it was left out.
        width: The width of the image, pixels; 0 if it was left out.
        shapes: The annotations of COCO, for that form.
        measures: The measures by name, for that form.
    """

    image: str
    reason: str = ""
    height: int = 0
    width: int = 0
    shapes: list[dict[str, Any]] = field(default_factory=list)
    measures: dict[str, int | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Deliver(OneStage):
    """Writes the masks of some images."""

    job: DeliverJob
    source: Predicted
    names: pa.LargeStringArray
    class_names: list[str]

    def run(self, chunk: int) -> list[Delivered]:
        """Reads the images of a chunk and their masks, and writes them."""
        found = []
        for name in self.names.slice(chunk * _CHUNK, _CHUNK).to_pylist():
            try:
                found.append(self._one(name))
            except BadFileError as error:
                found.append(Delivered(escaped(name), reason=str(error)))
            except FileNotFoundError:
                found.append(Delivered(escaped(name), reason="missing: the image or its mask is no longer there"))
        return found

    def _one(self, name: str) -> Delivered:
        data = self.source.data(name)
        labels = self.source.labels(name, of=data)
        image = self.source.image(name, data)
        if labels.shape != (image.height, image.width):
            raise BadFileError(
                "size_mismatch",
                f"the image has {image.height} x {image.width} px, its mask {labels.shape[0]} x {labels.shape[1]}: it "
                "has changed since the prediction",
            )
        own: dict[str, Any] = {}
        form, out = self.job.form, self.job.out
        if form in _AS_IMAGES:
            own = self._as_image(name, image.pixels, labels)
        elif form == "dicom-seg":
            content = write_segmentation(data, labels, self.class_names, model=self.source.model)
            (out / f"{name}.dcm").write_bytes(content)
        elif form == "dicom-picture":
            content = write_picture(data, overlay(image.pixels, labels), model=self.source.model)
            (out / f"{name}.dcm").write_bytes(content)
        else:
            own = {"measures": _measured(labels, self.class_names, image.spacing)}
        return Delivered(escaped(name), height=image.height, width=image.width, **own)

    def _as_image(self, name: str, pixels: Pixels, labels: Pixels) -> dict[str, Any]:
        one, form, out = Annotated(f"{name}.png", labels), self.job.form, self.job.out
        (out / IMAGES / one.file).write_bytes(png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
        if form == "labelme":
            (out / IMAGES / f"{name}.json").write_text(json.dumps(labelme(one, self.class_names), indent=1))
        elif form == "masks":
            values = labels * 255 if len(self.class_names) == 1 else labels
            (out / MASKS / one.file).write_bytes(png(values))
        else:
            return {"shapes": coco_shapes(one, len(self.class_names), as_runs=form == "coco-rle")}
        return {}


def _measured(
    labels: Pixels, class_names: list[str], spacing: tuple[float, float] | None
) -> dict[str, int | float | None]:
    known = {"spacing_row_mm": spacing[0], "spacing_column_mm": spacing[1]} if spacing else {}
    return {**known, **measure(labels, class_names, spacing)}


def main(job: DeliverJob, console: Console) -> None:
    """Writes the masks, and prints how many there are and which were left out.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `deliver`, or if no Ray cluster answers.
        OSError: As `deliver`.
    """
    with cluster(processes=0):
        written, left_out = deliver(job)
    console.print(f"{job.out}: {written} masks as {job.form}", highlight=False)
    if left_out:
        console.print(f"{_described(left_out)}\n{job.out / TABLE} lists them all", highlight=False)


def deliver(job: DeliverJob) -> tuple[int, list[Delivered]]:
    """Writes the masks of a prediction in another form. Needs a running Ray cluster.

    Args:
        job: The settings of the job.

    Returns:
        The number of masks that were written, and what was left out.

    Raises:
        UserError: If there is no finished prediction, if verdicts or the folder cannot be used, or if nothing can be
            written.
        OSError: If a file cannot be read or written.
    """
    check_lasting(job.out)
    source = Predicted.of(job.predictions)
    masks = source.masks()
    names = _judged(job, masks.names) if job.verdicts else masks.names
    claim = _claim(job, masks.sha256, names)
    # Machines that come while the job waits are checked, too.
    wait_for_cpu()
    check_shared(job.out)
    check_shared(job.predictions)
    work = _Deliver(job, source, pa.array(names, pa.large_string()), masks.class_names)
    done = map_chunks(work, -(-len(names) // _CHUNK), Delivered, device="cpu")
    left_out: list[Delivered] = []

    def written() -> Iterator[Delivered]:
        for one in ticks(done, total=len(names), description="Writing"):
            if one.reason:
                left_out.append(one)
            else:
                yield one

    count = _tables(job, written(), masks.class_names)
    (job.out / TABLE).delete()
    if not count:
        # The folder is free again for another form.
        for name in (CLAIM, MEASURES, ANNOTATIONS):
            (job.out / name).delete()
        raise UserError(f"{job.predictions}: nothing can be written as {job.form}:\n{_described(left_out)}")
    if left_out:
        (job.out / TABLE).write_csv(
            ({"image": one.image, "reason": one.reason} for one in left_out), ["image", "reason"]
        )
    (job.out / CLAIM).write_text(json.dumps({**claim, "finished": True}) + "\n")
    return count, left_out


def _claim(job: DeliverJob, source_sha256: str, names: Sequence[str]) -> dict[str, object]:
    """Writes into the folder what it is for.

    The same command goes on in a folder that an interrupted one has left. A finished folder is left alone, since people
    may have corrected what is in it.

    Raises:
        UserError: If the folder is finished, or has other files.
        OSError: If a file cannot be read or written.
    """
    place = job.out / CLAIM
    content = hashlib.sha256(source_sha256.encode())
    content.update(json.dumps(names).encode())
    mine: dict[str, object] = {
        "form": job.form,
        "content_sha256": content.hexdigest(),
        "finished": False,
    }
    if job.out.exists() and job.out.list():
        try:
            theirs = json.loads(place.read_text())
        except (FileNotFoundError, ValueError):
            theirs = None
        if theirs == {**mine, "finished": True}:
            raise UserError(f"{job.out}: these masks have been written here before. Choose another --out.")
        if theirs != mine:
            raise UserError(f"{job.out}: there are files in this folder already. Choose another --out.")
    place.write_text(json.dumps(mine) + "\n")
    return mine


def _judged(job: DeliverJob, names: list[str]) -> list[str]:
    """Returns the images whose masks have the verdict that is asked for."""
    assert job.verdicts
    known = set(names)
    judged = [name for name, verdict in read_verdicts(job.verdicts).items() if verdict == job.verdict]
    if unknown := [name for name in judged if name not in known]:
        raise UserError(
            f"{job.verdicts}: {len(unknown)} of {len(judged)} images are not among those of {job.predictions}, the "
            f"first {escaped(unknown[0])}. Give the folder of predictions that was judged."
        )
    if not judged:
        raise UserError(f"{job.verdicts}: no mask was judged {job.verdict}, so that there is nothing to write.")
    return judged


def _tables(job: DeliverJob, written: Iterator[Delivered], class_names: list[str]) -> int:
    """Writes what is one file for all images, and returns the number of images."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Delivered]:
        for one in written:
            counts["all"] += 1
            yield one

    if job.form == "measures":
        first = ["image", "height", "width", "spacing_row_mm", "spacing_column_mm"]
        # Every image has the same measures; those that it lacks are empty.
        names = list(measure(np.zeros((1, 1), np.uint8), class_names))
        rows = ({"image": one.image, "height": one.height, "width": one.width, **one.measures} for one in counted())
        (job.out / MEASURES).write_csv(rows, [*first, *names])
    elif job.form in ("coco", "coco-rle"):
        _write_coco(job, counted(), class_names)
    else:
        for _ in counted():
            pass
    return counts["all"]


def _write_coco(job: DeliverJob, written: Iterator[Delivered], class_names: Sequence[str]) -> None:
    """Writes the annotations of all images, by way of files on the disk of this machine."""
    with tempfile.TemporaryFile("w+", prefix="lungseg-") as file, tempfile.TemporaryFile("w+") as shapes:
        file.write('{"images": [')
        annotation = 0
        for image, one in enumerate(written, start=1):
            entry = {"id": image, "file_name": f"{one.image}.png", "height": one.height, "width": one.width}
            file.write(("," if image > 1 else "") + "\n" + json.dumps(entry))
            for shape in one.shapes:
                annotation += 1
                entry = {"id": annotation, "image_id": image, **shape}
                shapes.write(("," if annotation > 1 else "") + "\n" + json.dumps(entry))
        file.write('\n], "annotations": [')
        shapes.seek(0)
        shutil.copyfileobj(shapes, file)
        categories = [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)]
        file.write(f'\n], "categories": {json.dumps(categories)}}}\n')
        file.flush()
        # Not closed here: it cannot be while an error of the writing refers to it.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (job.out / ANNOTATIONS).write_bytes(pa.py_buffer(content))


def _described(left_out: Sequence[Delivered]) -> str:
    lines = [f"{len(left_out)} left out:"]
    lines += [f"  {one.image}: {one.reason}" for one in left_out[:_SHOWN]]
    if (more := len(left_out) - _SHOWN) > 0:
        lines.append(f"  ... and {more} more")
    return "\n".join(lines)
