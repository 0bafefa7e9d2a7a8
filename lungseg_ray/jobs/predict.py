"""The masks that a trained model sees in a folder of images: a Ray Data job that goes on where it was cut."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pyarrow.fs import FileType
from rich.console import Console

from lungseg_ray.cluster.chunks import map_chunks
from lungseg_ray.cluster.places import check_lasting, check_shared
from lungseg_ray.cluster.session import cluster
from lungseg_ray.config import PredictJob, differences
from lungseg_ray.corpus import REASONS, read_image
from lungseg_ray.corpus.decode import decode_image
from lungseg_ray.corpus.layouts.dicom import may_be_dicom
from lungseg_ray.corpus.layouts.tree import SUFFIXES
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.imaging import overlay, png
from lungseg_ray.inference.predictor import Model, Sidecar
from lungseg_ray.jobs.members import model_of
from lungseg_ray.numerics import metrics
from lungseg_ray.progress import ticks
from lungseg_ray.run.folder import BEST
from lungseg_ray.storage import Location
from lungseg_ray.text import escaped, is_utf8

TABLE = "predictions.csv"
MASKS = "masks"
OVERLAYS = "overlays"
CLAIM = "model.json"


@dataclass(frozen=True)
class _Predict:
    """Predicts a chunk of images and writes their masks."""

    job: PredictJob
    model: Model
    names: list[str]

    def __call__(self, chunk: int, device: str) -> list[dict[str, Any]]:
        model = self.model.load(device=device)
        side = model.sidecar
        rows = []
        waiting: list[tuple[str, dict[str, Any], npt.NDArray[np.uint8], tuple[int, int]]] = []
        for name in self.names[chunk * self.job.batch : (chunk + 1) * self.job.batch]:
            row: dict[str, Any] = {"image": escaped(name), "status": "done", "reason": ""}
            rows.append(row)
            if not is_utf8(name):
                row |= {"status": "set aside", "reason": f"bad_name: {REASONS['bad_name']}; rename it"}
                continue
            wanted = [self._place(MASKS, name)] + ([self._place(OVERLAYS, name)] if self.job.overlay else [])
            if all(place.exists() for place in wanted):
                labels = _from_file(wanted[0].read_bytes(), side.classes)
                row |= _shares(labels, side.class_names) | {"status": "done before"}
                continue
            try:
                found = read_image(
                    str(self.job.images / name),
                    channels=side.channels,
                    longer_side=side.longer_side,
                    white=side.white,
                )
            except BadFileError as error:
                row |= {"status": "set aside", "reason": str(error)}
                continue
            waiting.append((name, row, found.pixels, (found.height, found.width)))
        maps = model([image for _, _, image, _ in waiting], [size for *_, size in waiting]) if waiting else []
        for (name, row, image, _), probability in zip(waiting, maps, strict=True):
            labels = model.labels(probability)
            if self.job.clean_up:
                labels = metrics.clean_up_labels(labels, classes=len(side.class_names))
            self._write(name, image, labels, side)
            row |= _shares(labels, side.class_names)
        return rows

    def _place(self, folder: str, name: str) -> Location:
        # The suffix stays within the name, so that a.png and a.jpg have masks of their own.
        return self.job.out / folder / f"{name}.png"

    def _write(self, name: str, image: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], side: Sidecar) -> None:
        if self.job.overlay:
            height, width = image.shape[:2]
            small = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            self._place(OVERLAYS, name).write_bytes(png(overlay(image, small)))
        # The mask comes last: where it lies, its image is done.
        self._place(MASKS, name).write_bytes(png(labels * 255 if side.classes == 1 else labels))


def main(job: PredictJob, console: Console) -> None:
    """Predicts, and says what was set aside."""
    with cluster(processes=job.workers):
        console.print(describe_predictions(predict(job), job), highlight=False)


def predict(job: PredictJob) -> list[dict[str, Any]]:
    """Writes a mask, at the source's size, for each image of a folder. Needs a running Ray cluster.

    Under `job.out`: `masks/<image>.png` (0 and 255 for one class, otherwise labels), `overlays/<image>.png` when asked,
    `predictions.csv` with a row for each image: its status, the reason if it was set aside, its size and the share of
    each class; and `model.json`, which says what made them. An image whose mask is there is not done again.

    Returns:
        The rows of the table.

    Raises:
        UserError: if the run or the images are not there, if none of them can be used, or if another model, or the
            same with other settings, has predicted into the folder before.
    """
    check_lasting(job.out)
    names = _images(job)
    check_shared(job.out)
    model = model_of(job)
    _claim(job, model)
    work = _Predict(job, model, names)
    done = map_chunks(work, -(-len(names) // job.batch), workers=job.workers, device=job.device)
    rows = sorted(ticks(done, total=len(names), description="Predicting"), key=lambda row: row["image"])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    (job.out / TABLE).write_csv(rows, columns)
    if all(row["status"] == "set aside" for row in rows):
        raise UserError(f"{job.images}: none of {len(rows)} images can be used:\n{describe_predictions(rows, job)}")
    return rows


def _images(job: PredictJob) -> list[str]:
    """Names of the images below the folder, without what was predicted into a folder below it.

    In archives of DICOM, many files have no suffix.

    Raises:
        UserError: If there is no such folder, or if it holds no image.
    """
    place = job.images
    if not place.is_dir():
        raise UserError(f"{place}: there is no such folder (--images).")
    own = f"{job.out.uri}/"
    names = [
        found.uri[len(place.uri) + 1 :]
        for found, info in place.list(recursive=True)
        if (found.name.lower().endswith(SUFFIXES) or may_be_dicom(found.name))
        and info.type == FileType.File
        and not found.uri.startswith(own)
    ]
    if not names:
        raise UserError(f"{place}: no images there (--images); expected files ending in {', '.join(SUFFIXES)}.")
    return names


def _claim(job: PredictJob, model: Model) -> None:
    """Writes down whose predictions the folder holds, or refuses if they are another's."""
    model.load()
    weights = [hashlib.sha256((run.place / BEST / "model.safetensors").read_bytes()).hexdigest() for run in model.runs]
    mine = {"weights_sha256": " ".join(weights), "flips": model.flips, "clean_up": job.clean_up}
    place = job.out / CLAIM
    # Folders from before there were flips do not name them.
    if place.exists() and (theirs := {"flips": "none", **json.loads(place.read_text())}) != mine:
        raise UserError(
            f"{place}: this folder holds predictions made otherwise:\n  "
            + "\n  ".join(differences(theirs, mine))
            + "\nChoose another --out."
        )
    place.write_text(json.dumps(mine, indent=2) + "\n")


def describe_predictions(rows: list[dict[str, Any]], job: PredictJob) -> str:
    """What was done, for a person."""
    counts = Counter(row["status"] for row in rows)
    lines = [f"{job.out}: " + ", ".join(f"{count} {status}" for status, count in counts.items())]
    bad = [row for row in rows if row["status"] == "set aside"]
    lines += [f"  {row['image']}: {row['reason']}" for row in bad[:10]]
    if len(bad) > 10:
        lines.append(f"  ... and {len(bad) - 10} more, in {TABLE}")
    return "\n".join(lines)


def _shares(labels: npt.NDArray[np.uint8], class_names: Sequence[str]) -> dict[str, Any]:
    shares = {f"share_{name}": float((labels == label).mean()) for label, name in enumerate(class_names, start=1)}
    return {"height": labels.shape[0], "width": labels.shape[1], **shares}


def _from_file(data: bytes, classes: int) -> npt.NDArray[np.uint8]:
    pixels = decode_image(data, channels=1).pixels[:, :, 0]
    return (pixels > 0).astype(np.uint8) if classes == 1 else pixels
