"""The job that predicts masks for a folder of images. An interrupted job resumes without repeating finished images."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.fs import FileType
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from lungseg_ray.cluster.capacity import wait_for_cpu
from lungseg_ray.cluster.chunks import chunk_size, map_chunks
from lungseg_ray.cluster.places import check_lasting, check_shared
from lungseg_ray.cluster.session import cluster
from lungseg_ray.confidence.calibration import Estimate
from lungseg_ray.confidence.signals import Examined, examine
from lungseg_ray.confidence.stored import Confidence, confidence_of
from lungseg_ray.config import PredictJob, differences
from lungseg_ray.corpus.decode import Decoded, decode_image
from lungseg_ray.corpus.layouts.dicom import may_be_dicom
from lungseg_ray.corpus.layouts.tree import SUFFIXES, is_junk
from lungseg_ray.corpus.read import decode_alone, fetch
from lungseg_ray.corpus.record import REASONS
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.imaging import Pixels, overlay, png, png_with_texts, texts_of_png
from lungseg_ray.inference.predictor import Model, Probability
from lungseg_ray.jobs.members import model_of
from lungseg_ray.progress import ticks
from lungseg_ray.run.exported import Sidecar, weights_sha256
from lungseg_ray.run.folder import BEST
from lungseg_ray.storage import Location
from lungseg_ray.text import escaped, is_utf8

TABLE = "predictions.csv"
MASKS = "masks"
OVERLAYS = "overlays"
CLAIM = "model.json"


_SHOWN = 10
SOURCE, _ESTIMATE = "Source SHA-256", "Expected Dice"
"""The texts of a mask: the hash of the file that it was predicted from, and what is expected of it, as JSON."""
_ESTIMATES = TypeAdapter(Estimate)
Status = Literal["done", "done before", "done anew", "set aside"]
_NO_FILE = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
"""The errors of a system that cannot have a file of a certain name."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The outcome of the prediction of one image.

    Attributes:
        image: The path of the image relative to the folder of images, in a printable form.
        status: "done" if the image is predicted, "done before" if an earlier job predicted it, "done anew" if an
            earlier job predicted another image of this name or did not say how good its mask is, which is replaced, or
            "set aside" if the image cannot be used.
        reason: The reason why the image cannot be used; empty if it can be used.
        height: The height of the source file, pixels; None if it cannot be used.
        width: The width of the source file, pixels; None if it cannot be used.
        shares: The share of the image's pixels that have each label, 0 to 1, by the name of the label.
        estimate: What is expected of the mask; None where nothing is.
    """

    image: str
    status: Status
    reason: str = ""
    height: int | None = None
    width: int | None = None
    shares: dict[str, float] = field(default_factory=dict)
    estimate: Estimate | None = None

    @property
    def columns(self) -> dict[str, object]:
        """The row of the image in `predictions.csv`: the values by column."""
        own = {"image": self.image, "status": self.status, "reason": self.reason}
        size = {"height": self.height, "width": self.width} if self.height else {}
        shares = {f"share_{name}": share for name, share in self.shares.items()}
        doubts = {**self.estimate.columns(), "doubt": self.estimate.reason} if self.estimate else {}
        return {**own, **size, **shares, **doubts}


@dataclass
class Outcomes:
    """How many images had which outcome.

    Attributes:
        counts: The number of images by `Prediction.status`.
        set_aside: The first `_SHOWN` images that cannot be used.
    """

    counts: Counter[Status] = field(default_factory=Counter)
    set_aside: list[Prediction] = field(default_factory=list)

    def add(self, one: Prediction) -> None:
        """Counts the outcome of one image."""
        self.counts[one.status] += 1
        if one.status == "set aside" and len(self.set_aside) < _SHOWN:
            self.set_aside.append(one)


@dataclass(frozen=True)
class _Image:
    """An image to predict: its path, the hash of its file, and what is to be said when it is done."""

    name: str
    sha256: str
    status: Status = "done"


@dataclass(frozen=True)
class _Batch:
    """What is known of a chunk beside the maps of its images.

    Attributes:
        found: The outcomes of those that need no network.
        images: The others.
        sizes: The height and the width of the file of each of these, pixels.
        pictures: Their pixels, where overlays are wanted.
    """

    found: list[Prediction]
    images: list[_Image]
    sizes: list[tuple[int, int]]
    pictures: list[Pixels]


@dataclass(frozen=True)
class _Predict:
    """Predicts images in chunks and writes their masks, as `cluster.chunks.Work`."""

    job: PredictJob
    model: Model
    names: pa.LargeBinaryArray
    size: int
    confidence: Confidence | None = None

    def prepare(self, chunk: int) -> tuple[_Batch, list[NDArray[np.uint8]]]:
        """Reads and resizes those of the images that are not done."""
        side = self.model.processing().sidecar
        found: list[Prediction] = []
        waiting: list[tuple[_Image, Decoded]] = []
        for name in map(os.fsdecode, self.names.slice(chunk * self.size, self.size).to_pylist()):
            if not is_utf8(name):
                reason = f"bad_name: {REASONS['bad_name']}; rename it"
                found.append(Prediction(escaped(name), "set aside", reason))
                continue
            uri = str(self.job.images / name)
            try:
                data = fetch(uri)
                image = _Image(name, hashlib.sha256(data).hexdigest())
                mask = self._done(image)
                texts = texts_of_png(mask) if mask else {}
                if texts.get(SOURCE) == image.sha256:
                    # A mask that is damaged, or does not say how good it is, is made again.
                    with suppress(BadFileError, ValidationError):
                        estimate = _ESTIMATES.validate_json(texts.get(_ESTIMATE, "")) if self.confidence else None
                        labels = _from_file(mask, side.classes)
                        found.append(_prediction(name, "done before", labels, side.class_names, estimate))
                        continue
                if mask:
                    image = replace(image, status="done anew")
                decoded = decode_alone(
                    data, uri, channels=side.channels, longer_side=side.longer_side, white=side.white
                )
            except BadFileError as error:
                found.append(Prediction(escaped(name), "set aside", str(error)))
                continue
            waiting.append((image, decoded))
        pictures = [decoded.pixels for _, decoded in waiting]
        batch = _Batch(
            found,
            images=[image for image, _ in waiting],
            sizes=[(decoded.height, decoded.width) for _, decoded in waiting],
            pictures=pictures if self.job.overlay else [],
        )
        return batch, self.model.processing().inputs(pictures)

    def compute(self, given: list[NDArray[np.uint8]], device: str) -> list[Probability] | Examined:
        """Predicts the maps of the images, and computes what confidence needs."""
        predictor = self.model.load(device=device)
        if self.confidence:
            return examine(predictor, given[0], batch=self.job.batch)
        return predictor.maps(given, batch=self.job.batch)

    def finish(self, prepared: _Batch, computed: list[Probability] | Examined) -> list[Prediction]:
        """Writes the masks."""
        processing, found = self.model.processing(), list(prepared.found)
        side = processing.sidecar
        maps = processing.combine([computed.maps] if isinstance(computed, Examined) else computed, prepared.sizes)
        for number, (image, probability) in enumerate(zip(prepared.images, maps, strict=True)):
            labels = processing.labels(probability, clean_up=self.job.clean_up)
            estimate = None
            if self.confidence and isinstance(computed, Examined):
                estimate = self.confidence.estimate(computed, number, processing)
            try:
                self._write(image, prepared.pictures[number] if self.job.overlay else None, labels, side, estimate)
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise
                reason = f"bad_name: its mask cannot have this name ({os.strerror(error.errno)}); rename the image"
                found.append(Prediction(escaped(image.name), "set aside", reason))
                continue
            found.append(_prediction(image.name, image.status, labels, side.class_names, estimate))
        return sorted(found, key=lambda one: one.image)

    def _done(self, image: _Image) -> bytes:
        """Returns the mask of an image of this name if all files of it are there; else nothing."""
        wanted = [self._place(MASKS, image.name)] + ([self._place(OVERLAYS, image.name)] if self.job.overlay else [])
        try:
            return wanted[0].read_bytes() if all(place.is_file() for place in wanted) else b""
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return b""

    def _place(self, folder: str, name: str) -> Location:
        # The name keeps the suffix of the image, so that a.png and a.jpg have different masks.
        return self.job.out / folder / f"{name}.png"

    def _write(
        self, image: _Image, picture: Pixels | None, labels: Pixels, side: Sidecar, estimate: Estimate | None
    ) -> None:
        if picture is not None:
            height, width = picture.shape[:2]
            small = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            self._place(OVERLAYS, image.name).write_bytes(png(overlay(picture, small)))
        # The mask is written last, because an image that has a mask counts as done.
        mask = labels * 255 if side.classes == 1 else labels
        texts = {SOURCE: image.sha256}
        if estimate:
            texts[_ESTIMATE] = _ESTIMATES.dump_json(estimate).decode()
        self._place(MASKS, image.name).write_bytes(png_with_texts(mask, texts))


def main(job: PredictJob, console: Console) -> None:
    """Predicts masks, and prints how many images were predicted and which were set aside.

    Args:
        job: The settings of the job.
        console: The console that the user reads.

    Raises:
        UserError: As `predict`, or if no Ray cluster answers.
        OSError: As `predict`.
    """
    with cluster(processes=job.workers):
        found = predict(job, note=lambda text: console.print(text, highlight=False))
        console.print(describe_predictions(found, job), highlight=False)


def predict(
    job: PredictJob,
    *,
    note: Callable[[str], None] = lambda text: None,
    watch: Callable[[Prediction], None] = lambda one: None,
) -> Outcomes:
    """Writes a mask for each image of a folder, at the size of the source file. Needs a running Ray cluster.

    The folder `job.out` contains `masks/<image>.png` (0 and 255 for one class, otherwise labels),
    `overlays/<image>.png` with `job.overlay`, `predictions.csv` with a row for each image, and `model.json`, which
    identifies the model and the folder of images. An image is not predicted again if its mask (and overlay, with
    `job.overlay`) exists; the mask names the hash of the file that it was predicted from.

    Args:
        job: The settings of the job.
        note: Called with a message about files that are not read.
        watch: Called with the outcome of each image, in the order of their names.

    Returns:
        How many images had which outcome.

    Raises:
        UserError: If the run or the images do not exist, if no image can be used, if the output folder would be lost
            with the job or is not shared by all nodes, or if another model, the same model with other settings, or one
            for another folder of images has predicted into the folder before.
        OSError: If a file cannot be read or written.
    """
    check_lasting(job.out)
    names, others = _images(job)
    if others:
        note(f"{job.images}: not read: {_counted(others)}")
    check_shared(job.out)
    model = model_of(job)
    _claim(job, model)
    # While images are predicted, the table of an earlier prediction would be taken for that of this one.
    (job.out / TABLE).delete()
    size = chunk_size(len(names), job.batch)
    confidence = confidence_of(model) if job.confidence else None
    work = _Predict(job, model, names, size, confidence)
    if wait_for_cpu():
        # There may be machines now that were not there before.
        check_shared(job.out)
    done = map_chunks(work, -(-len(names) // size), Prediction, workers=job.workers, device=job.device)
    outcomes = Outcomes()

    def rows() -> Iterator[dict[str, object]]:
        for one in ticks(done, total=len(names), description="Predicting"):
            outcomes.add(one)
            watch(one)
            yield one.columns

    own = ("image", "status", "reason", "height", "width")
    shares = (f"share_{name}" for name in model.processing().sidecar.class_names)
    doubts = ("expected_dice", "expected_low", "expected_high", "unlike", "doubt") if confidence else ()
    (job.out / TABLE).write_csv(rows(), [*own, *shares, *doubts])
    if outcomes.counts.keys() == {"set aside"}:
        raise UserError(
            f"{job.images}: none of {len(names)} images can be used:\n{describe_predictions(outcomes, job)}"
        )
    return outcomes


def _images(job: PredictJob) -> tuple[pa.LargeBinaryArray, Counter[str]]:
    """Returns the paths of the images relative to the folder of images, which may contain the output folder.

    The second result counts the other files by suffix.

    Files in the output folder are left out. Files without a suffix are included, because many files in DICOM archives
    have none.

    Raises:
        UserError: If the folder does not exist, or if it contains no image.
    """
    place = job.images
    if not place.is_dir():
        raise UserError(f"{place}: there is no such folder (--images).")
    own = f"{job.out.uri}/"
    names: list[str] = []
    others: Counter[str] = Counter()
    for found, info in place.list(recursive=True):
        path = found.uri[len(place.uri) + 1 :]
        if info.type != FileType.File or found.uri.startswith(own):
            continue
        if is_junk(path):
            others["hidden or a thumbnail"] += 1
        elif found.name.lower().endswith(SUFFIXES) or may_be_dicom(found.name):
            names.append(path)
        else:
            others[f".{found.name.rpartition('.')[2]}"] += 1
    if not names:
        raise UserError(
            f"{place}: no images there (--images), found {_counted(others) or 'nothing'}; expected files ending in "
            f"{', '.join(SUFFIXES)}."
        )
    return pa.array(map(os.fsencode, names), pa.large_binary()), others


def _counted(others: Counter[str]) -> str:
    few = [f"{count} {escaped(suffix)}" for suffix, count in others.most_common(5)]
    return ", ".join(few) + (" and others" if len(others) > len(few) else "")


def _claim(job: PredictJob, model: Model) -> None:
    """Writes which model predicts which images into the output folder, or refuses if another one has done so before.

    Raises:
        UserError: If another model, the same model with other settings, or one for another folder of images has
            predicted into the folder.
    """
    model.load()
    weights = [weights_sha256(run.place / BEST) for run in model.runs]
    side = model.processing().sidecar
    # How images are decoded is kept for those who look at them afterwards; earlier versions did not.
    decoded = {"channels": side.channels, "white": side.white}
    mine = {
        **decoded,
        "images": job.images.uri,
        "weights_sha256": " ".join(weights),
        "flips": model.used_flips,
        "clean_up": side.clean_up if job.clean_up is None else job.clean_up,
    }
    place = job.out / CLAIM
    theirs = _read_claim(place)
    if theirs:
        theirs = {**decoded, **theirs}
    if theirs not in ({}, mine):
        raise UserError(
            f"{place}: this folder holds predictions made otherwise:\n  "
            + "\n  ".join(differences(theirs, mine))
            + "\nChoose another --out."
        )
    place.write_text(json.dumps(mine, indent=2) + "\n")


def _read_claim(place: Location) -> dict[str, object]:
    try:
        content = json.loads(place.read_text())
        if isinstance(content, dict):
            return content
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        pass
    raise UserError(
        f"{place}: expected what an earlier prediction wrote there, found something else. Choose another --out."
    )


def describe_predictions(found: Outcomes, job: PredictJob) -> str:
    """Returns a summary for the user: the number of images by outcome, and some of those that were set aside.

    Args:
        found: The outcomes.
        job: The settings of the job.
    """
    lines = [f"{job.out}: " + ", ".join(f"{count} {status}" for status, count in found.counts.items())]
    lines += [f"  {one.image}: {one.reason}" for one in found.set_aside]
    if more := found.counts["set aside"] - len(found.set_aside):
        lines.append(f"  ... and {more} more, in {TABLE}")
    return "\n".join(lines)


def _prediction(
    name: str, status: Status, labels: Pixels, class_names: Sequence[str], estimate: Estimate | None
) -> Prediction:
    shares = {
        one: int(np.count_nonzero(labels == label)) / labels.size for label, one in enumerate(class_names, start=1)
    }
    height, width = labels.shape
    return Prediction(escaped(name), status, height=height, width=width, shares=shares, estimate=estimate)


def _from_file(data: bytes, classes: int) -> Pixels:
    pixels = decode_image(data, channels=1).pixels[:, :, 0]
    return (pixels > 0).astype(np.uint8) if classes == 1 else pixels
