"""The masks that a trained model sees in a folder of images: a Ray Data job that goes on where it was cut."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch

from lungseg_ray import metrics, predictor, report, resources
from lungseg_ray.config import PredictJob
from lungseg_ray.corpus import read_image
from lungseg_ray.corpus.decode import decode_image
from lungseg_ray.corpus.layouts import SUFFIXES
from lungseg_ray.display import ticks
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.run import BEST
from lungseg_ray.storage import Location, locate

TABLE = "predictions.csv"
MASKS = "masks"
OVERLAYS = "overlays"


@dataclass(frozen=True)
class _Predict:
    """Predicts a chunk of images and writes their masks; runs in a data task, which keeps the model for the next."""

    job: PredictJob
    model: Location
    names: list[list[str]]
    device: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        cv2.setNumThreads(0)
        if self.device == "cpu":
            torch.set_num_threads(1)
        model = predictor.load(self.model, device=self.device)
        rows = []
        waiting: list[tuple[dict[str, Any], npt.NDArray[np.uint8], tuple[int, int]]] = []
        for name in self.names[batch.column("id")[0].as_py()]:
            row: dict[str, Any] = {"image": name, "status": "done", "reason": ""}
            rows.append(row)
            wanted = [self._place(MASKS, name)] + ([self._place(OVERLAYS, name)] if self.job.overlay else [])
            if all(place.exists() for place in wanted):
                labels = _from_file(wanted[0].read_bytes(), model.sidecar.classes)
                row |= self._shares(labels, model) | {"status": "done before"}
                continue
            side = model.sidecar
            try:
                image, height, width, _ = read_image(
                    str(locate(self.job.images) / name), channels=side.channels, longer_side=side.longer_side
                )
            except BadFileError as error:
                row |= {"status": "set aside", "reason": str(error)}
                continue
            waiting.append((row, image, (height, width)))
        if waiting:
            maps = model([image for _, image, _ in waiting], [size for _, _, size in waiting])
            for (row, image, _), probability in zip(waiting, maps, strict=True):
                row |= self._write(row["image"], image, model.labels(probability), model)
        return pa.table({"row": [json.dumps(row) for row in rows]})

    def _place(self, folder: str, name: str) -> Location:
        # The suffix stays within the name, so that a.png and a.jpg have masks of their own.
        return locate(self.job.out) / folder / f"{name}.png"

    def _write(
        self, name: str, image: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], model: predictor.Predictor
    ) -> dict[str, Any]:
        side = model.sidecar
        if self.job.clean_up:
            cleaned = np.zeros_like(labels)
            for label in range(1, len(side.class_names) + 1):
                cleaned[metrics.clean_up(labels == label)] = label
            labels = cleaned
        if self.job.overlay:
            height, width = image.shape[:2]
            small = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            self._place(OVERLAYS, name).write_bytes(_png(report.overlay(image, small)[:, :, ::-1]))
        # The mask comes last: where it lies, its image is done.
        self._place(MASKS, name).write_bytes(_png(labels * 255 if side.classes == 1 else labels))
        return self._shares(labels, model)

    @staticmethod
    def _shares(labels: npt.NDArray[np.uint8], model: predictor.Predictor) -> dict[str, Any]:
        return {
            "height": labels.shape[0],
            "width": labels.shape[1],
            **{
                f"share_{name}": round(float((labels == label).mean()), 6)
                for label, name in enumerate(model.sidecar.class_names, start=1)
            },
        }


def predict(job: PredictJob) -> list[dict[str, Any]]:
    """Writes a mask, at the source's size, for each image of a folder. Needs a running Ray cluster.

    Under `job.out`: `masks/<image>.png` (0 and 255 for one class, otherwise labels), `overlays/<image>.png` when asked,
    and `predictions.csv` with a row for each image: its status, the reason if it was set aside, its size and the share
    of each class. An image whose mask is there is not done again.

    Returns:
        The rows of the table.

    Raises:
        UserError: if the run or the images are not there.
    """
    place = locate(job.images)
    if not place.is_dir():
        raise UserError(f"{place}: there is no such folder (--images).")
    names = [
        found.uri[len(place.uri) + 1 :]
        for found, _ in place.list(recursive=True)
        if found.name.lower().endswith(SUFFIXES) and found.is_file()
    ]
    if not names:
        raise UserError(f"{place}: no images there (--images); expected files ending in {', '.join(SUFFIXES)}.")
    model = locate(job.run) / BEST
    predictor.load(model)
    cpus, gpus = resources.available()
    chunks = [names[start : start + job.batch] for start in range(0, len(names), job.batch)]
    done = ray.data.range(len(chunks), override_num_blocks=len(chunks)).map_batches(
        _Predict(job, model, chunks, "cuda" if gpus else "cpu"),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(
            size=min(job.workers or (gpus or max(min(cpus, resources.cores()), 1)), cpus, len(chunks))
        ),
        num_gpus=1 if gpus else None,
        max_calls=0,
    )
    done_rows = ticks(done.iter_rows(), total=len(names), description="Predicting")
    rows = sorted((json.loads(row["row"]) for row in done_rows), key=lambda row: row["image"])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    (locate(job.out) / TABLE).write_text(text.getvalue())
    return rows


def describe(rows: list[dict[str, Any]], job: PredictJob) -> str:
    """What was done, for a person."""
    counts = Counter(row["status"] for row in rows)
    lines = [f"{locate(job.out)}: " + ", ".join(f"{count} {status}" for status, count in counts.items())]
    bad = [row for row in rows if row["status"] == "set aside"]
    lines += [f"  {row['image']}: {row['reason']}" for row in bad[:10]]
    if len(bad) > 10:
        lines.append(f"  ... and {len(bad) - 10} more, in {TABLE}")
    return "\n".join(lines)


def _from_file(data: bytes, classes: int) -> npt.NDArray[np.uint8]:
    pixels = decode_image(data, channels=1)[:, :, 0]
    return (pixels > 0).astype(np.uint8) if classes == 1 else pixels


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()
