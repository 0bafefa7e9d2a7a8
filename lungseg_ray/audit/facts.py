"""What there is to know of one image and its mask, as a few numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import Record, Sample, read_image, read_sample
from lungseg_ray.corpus.phantom import is_phantom
from lungseg_ray.corpus.read import redact_paths
from lungseg_ray.numerics.labels import IGNORE_LABEL

HASH_SIDE = 16
"""Rows and columns of the perceptual hash, of 256 bits; see `twins`."""
SIDES = ("top", "right", "bottom", "left")
_SPECK = 0.01
"""Components of a label with less than this share of its pixels are specks."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What a mask marks with one label.

    Attributes:
        share: of the pixels that count, 0 to 1.
        parts: connected components (of 8 neighbours) with more than 1 % of the label's pixels.
        specks: smaller ones.
        ratio: pixels of the second largest part for each of the largest; None with one part or none.
        touches: sides of the picture that the label reaches, of `SIDES`.
        left: share of the label's pixels that lie left of the picture's middle; None if it marks nothing.
        row: of the centroid, 0 (top) to 1; None if it marks nothing.
        column: of the centroid, 0 (left) to 1; None if it marks nothing.
    """

    share: float
    parts: int
    specks: int
    ratio: float | None
    touches: Sequence[str]
    left: float | None
    row: float | None
    column: float | None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image that can be read. Intensities are those of the decoded pixels, in grey, 0 (black) to 1 (white).

    Attributes:
        image_id: as in `Record`.
        patient_id: as in `Record`.
        place: what may be written of where it lies.
        format: suffix of the file.
        groups: as in `Record`.
        height: rows of the file.
        width: columns of the file.
        bits: that the file gives to each value.
        spacing: millimetres per pixel of the file (row, column); None where it does not say.
        mean: of the intensity.
        std: standard deviation of the intensity.
        low: 1st percentile of the intensity.
        high: 99th percentile of the intensity.
        brightest: highest intensity.
        black: share of pixels that are black.
        white: share of pixels that are white.
        phash: perceptual hash, hexadecimal.
        image_sha256: of the file; of the pixels where there is no mask.
        mask_sha256: of the mask file's bytes; empty where there is no mask.
        labels: what the mask marks, by the name of the label; empty where there is no mask.
        split: side of the split; None where it is not dealt.
    """

    image_id: str
    patient_id: str
    place: str
    format: str
    groups: Mapping[str, str]
    height: int
    width: int
    bits: int
    spacing: tuple[float, float] | None
    mean: float
    std: float
    low: float
    high: float
    brightest: float
    black: float
    white: float
    phash: str
    image_sha256: str
    mask_sha256: str
    labels: Mapping[str, LabelFacts] = field(default_factory=dict)
    split: str | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ImageFacts:
        """The facts that travelled as JSON by way of `asdict`."""
        spacing = tuple(row["spacing"]) if row["spacing"] else None
        labels = {name: LabelFacts(**measure_label) for name, measure_label in row["labels"].items()}
        return cls(**{**row, "spacing": spacing, "labels": labels})


def read_for_audit(record: Record, corpus: CorpusSettings, *, longer_side: int) -> Sample:
    """An image with its mask; with an empty one, and no checksum of it, where it is unlabelled.

    Raises:
        BadFileError: if it cannot be used.
    """
    if record.mask_uris:
        return read_sample(record, corpus, longer_side=longer_side)
    with redact_paths(record.image_id if record.private else ""):
        found = read_image(record.image_uri, channels=corpus.channels, longer_side=longer_side, white=corpus.white)
    mask = np.zeros(found.pixels.shape[:2], np.uint8)
    digest = hashlib.sha256(found.pixels.tobytes()).hexdigest()
    return Sample(found.pixels, mask, found.height, found.width, found.bits, found.spacing, digest, "")


def image_facts(record: Record, sample: Sample, class_names: Sequence[str]) -> ImageFacts:
    """What there is to know of an image and its mask.

    Args:
        record: whose they are.
        sample: the image, and its mask if the record has one.
        class_names: of the labels from 1 on.
    """
    labelled = bool(sample.mask_sha256)
    return ImageFacts(
        image_id=record.image_id,
        patient_id=record.patient_id,
        place=record.shown,
        format=_format(record),
        groups=dict(record.groups),
        height=sample.source_height,
        width=sample.source_width,
        bits=sample.source_bits,
        spacing=sample.spacing,
        **intensity(sample.image),
        phash=perceptual_hash(sample.image),
        image_sha256=sample.image_sha256,
        mask_sha256=sample.mask_sha256,
        labels={name: measure_label(sample.mask, label) for label, name in enumerate(class_names, start=1)}
        if labelled
        else {},
        split=record.split,
    )


def intensity(image: Pixels) -> dict[str, float]:
    """The figures of `Facts` that tell of an image's exposure.

    Args:
        image: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
    """
    counts = cv2.calcHist([grey(image)], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    shares = counts / counts.sum()
    levels = np.arange(256) / 255
    mean = float(shares @ levels)
    low, high = np.searchsorted(np.cumsum(shares), (0.01, 0.99)).clip(max=255) / 255
    return {
        "mean": mean,
        "std": float(shares @ (levels - mean) ** 2) ** 0.5,
        "low": float(low),
        "high": float(high),
        "brightest": float(levels[np.flatnonzero(counts)[-1]]),
        "black": float(shares[0]),
        "white": float(shares[255]),
    }


def perceptual_hash(image: Pixels) -> str:
    """The perceptual hash of an image's low frequencies (DCT), hexadecimal; images that look alike differ in few bits.

    Args:
        image: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).
    """
    return str(imagehash.phash(Image.fromarray(grey(image)), hash_size=HASH_SIDE))


def measure_label(mask: Pixels, label: int) -> LabelFacts:
    """What a mask marks with a label.

    Args:
        mask: (H, W) uint8 label map.
        label: from 1 on.
    """
    height, width = mask.shape
    chosen = cv2.compare(mask, label, cv2.CMP_EQ)
    _, _, stats, _ = cv2.connectedComponentsWithStats(chosen, connectivity=8)
    areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    pixels = int(areas.sum())
    share = pixels / max(int((mask != IGNORE_LABEL).sum()), 1)
    if not pixels:
        return LabelFacts(share, 0, 0, None, (), None, None, None)
    parts = int((areas > _SPECK * pixels).sum())
    edges = (chosen[0], chosen[:, -1], chosen[-1], chosen[:, 0])
    rows, columns = ((chosen > 0).sum(axis=axis) / pixels for axis in (1, 0))
    # The middle column of an odd number counts half to the left.
    left = columns[: width // 2].sum() + (columns[width // 2] / 2 if width % 2 else 0)
    return LabelFacts(
        share=share,
        parts=parts,
        specks=len(areas) - parts,
        ratio=float(areas[1] / areas[0]) if parts > 1 else None,
        touches=tuple(side for side, edge in zip(SIDES, edges, strict=True) if edge.any()),
        left=float(left),
        row=float(rows @ (np.arange(height) + 0.5) / height),
        column=float(columns @ (np.arange(width) + 0.5) / width),
    )


def grey(image: Pixels) -> Pixels:
    """An image (H, W, C) as (H, W)."""
    return image[:, :, 0] if image.shape[2] == 1 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _format(record: Record) -> str:
    if is_phantom(record.image_uri):
        return "drawn"
    # The dots of a DICOM file's name are often those of an identifier.
    name = "" if record.private else record.image_uri.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[-1].lower() if "." in name else "dicom" if record.private else "without suffix"
