"""Properties of one image and its mask as a few numbers, which the audit compares over a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.phantom import is_phantom
from lungseg_ray.corpus.read import read_image, read_sample, redact_paths
from lungseg_ray.corpus.record import Record, Sample
from lungseg_ray.numerics.labels import IGNORE_LABEL

HASH_SIDE = 16
"""The perceptual hash has this number of rows and columns, 256 bits in all; see `lungseg_ray.audit.duplicates`."""
HASHED_SIDE = 4 * HASH_SIDE
"""Height and width to which `imagehash.phash` reduces an image, pixels."""
EDGES = ("top", "right", "bottom", "left")
"""These are the edges of an image, in the order in which `measure_label` tests them."""
_SPECK = 0.01
"""A connected component is a speck if it has at most this share of the pixels of the largest one of its label."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """Properties of the pixels that have one label in a mask.

    Attributes:
        share: Share of the mask's pixels that have the label, 0 to 1; pixels with `IGNORE_LABEL` are not counted.
        parts: Number of 8-connected components with more than 1 % of the label's pixels.
        specks: Number of smaller components.
        ratio: Size of the second largest part divided by that of the largest, 0 to 1; None if there are fewer than two.
        touches: Edges of the image that the label reaches, from `EDGES`.
        left: Share of the label's pixels in the left half of the image, 0 to 1; pixels of a middle column count half.
            None if no pixel has the label.
        row: Vertical position of the centroid, 0 (top) to 1 (bottom); None if no pixel has the label.
        column: Horizontal position of the centroid, 0 (left) to 1 (right); None if no pixel has the label.
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
    """Properties of a readable image and its mask.

    Intensities are those of the decoded pixels, converted to grey, from 0 (black) to 1 (white).

    Attributes:
        image_id: As in `Record`.
        patient_id: As in `Record`.
        place: Location of the image in the form that may be shown; see `Record.shown`.
        format: Suffix of the file name in lower case; "drawn" for a phantom, "dicom" for a private record, and "without
            suffix" for a name that has none.
        groups: As in `Record`.
        height: Rows of the image in the file, pixels.
        width: Columns of the image in the file, pixels.
        bits: Bits per value in the file.
        spacing: Spacing of the file's pixels (row, column), mm; None if the file does not specify it.
        mean: Mean intensity.
        std: Standard deviation of the intensity.
        low: 1st percentile of the intensity.
        high: 99th percentile of the intensity.
        brightest: Highest intensity.
        black: Share of the pixels that are black, 0 to 1.
        white: Share of the pixels that are white, 0 to 1.
        phash: Perceptual hash of 256 bits, hexadecimal.
        image_sha256: SHA-256 of the file, hexadecimal; of the decoded pixels if there is no mask.
        mask_sha256: SHA-256 of the bytes of the mask files, hexadecimal; empty if there is no mask.
        labels: Properties of each label in the mask, by the name of the label; empty if there is no mask.
        split: Split of the image (train, val or test); None if it is not assigned to one.
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


def read_for_audit(record: Record, corpus: CorpusSettings, *, longer_side: int) -> Sample:
    """Reads an image and its mask; an unlabelled image gets an empty mask and no checksum of a mask.

    Args:
        record: The image to read.
        corpus: The settings of the corpus.
        longer_side: Limit of the longer side, pixels; a larger image is reduced to it.

    Returns:
        The image and its mask. For an unlabelled image, `mask_sha256` is empty and `image_sha256` is that of the
        pixels.

    Raises:
        BadFileError: If the image or its mask cannot be used.
        OSError: If the storage does not respond; the message contains no path if the path may identify the patient.
    """
    if record.masks:
        return read_sample(record, corpus, longer_side=longer_side)
    with redact_paths(record.image_id if record.private else ""):
        found = read_image(record.image_uri, channels=corpus.channels, longer_side=longer_side, white=corpus.white)
    mask = np.zeros(found.pixels.shape[:2], np.uint8)
    digest = hashlib.sha256(found.pixels.tobytes()).hexdigest()
    return Sample(found.pixels, mask, found.height, found.width, found.bits, found.spacing, digest, "")


def image_facts(record: Record, sample: Sample, class_names: Sequence[str]) -> ImageFacts:
    """Computes the properties of an image and its mask.

    Args:
        record: The record of the image.
        sample: The image, and its mask if the record has one.
        class_names: The names of the labels, from label 1 on.

    Returns:
        The properties; `labels` is empty if the sample has no mask.
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
    """Computes the fields of `ImageFacts` that describe the exposure of an image.

    Args:
        image: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).

    Returns:
        The values of `mean`, `std`, `low`, `high`, `brightest`, `black` and `white`, by name.
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
    """Computes the perceptual hash of an image, in which images that look the same differ in few bits.

    The hash is that of `imagehash.phash`: it describes the low frequencies of the image's discrete cosine transform.

    Args:
        image: (H, W, C) uint8, C = 1 (grey) or 3 (RGB).

    Returns:
        The 256 bits of the hash, hexadecimal.
    """
    return str(imagehash.phash(Image.fromarray(grey(image)), hash_size=HASH_SIDE))


def measure_label(mask: Pixels, label: int) -> LabelFacts:
    """Measures the pixels of a mask that have a label.

    Args:
        mask: (H, W) uint8 label map.
        label: The label to measure, from 1 on.

    Returns:
        The properties of the label in the mask.
    """
    height, width = mask.shape
    chosen = cv2.compare(mask, label, cv2.CMP_EQ)
    _, _, stats, _ = cv2.connectedComponentsWithStats(chosen, connectivity=8)
    areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    pixels = int(areas.sum())
    share = pixels / max(int((mask != IGNORE_LABEL).sum()), 1)
    if not pixels:
        return LabelFacts(share, 0, 0, None, (), None, None, None)
    parts = int((areas > _SPECK * areas[0]).sum())
    edges = (chosen[0], chosen[:, -1], chosen[-1], chosen[:, 0])
    rows, columns = ((chosen > 0).sum(axis=axis) / pixels for axis in (1, 0))
    # With an odd number of columns, half of the middle one belongs to the left half.
    left = columns[: width // 2].sum() + (columns[width // 2] / 2 if width % 2 else 0)
    return LabelFacts(
        share=share,
        parts=parts,
        specks=len(areas) - parts,
        ratio=float(areas[1] / areas[0]) if parts > 1 else None,
        touches=tuple(edge for edge, pixels in zip(EDGES, edges, strict=True) if pixels.any()),
        left=float(left),
        row=float(rows @ (np.arange(height) + 0.5) / height),
        column=float(columns @ (np.arange(width) + 0.5) / width),
    )


def grey(image: Pixels) -> Pixels:
    """Converts an image (H, W, C), uint8, grey or RGB, to grey (H, W)."""
    return image[:, :, 0] if image.shape[2] == 1 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _format(record: Record) -> str:
    if is_phantom(record.image_uri):
        return "drawn"
    # The dots in a DICOM file's name are often part of an identifier rather than the start of a suffix.
    name = "" if record.private else record.image_uri.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[-1].lower() if "." in name else "dicom" if record.private else "without suffix"
