"""Reads the pixels of a record: its files are fetched, decoded, combined and checked.

This is the only way from a record to its pixels, so that the same checks apply everywhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import phantom
from lungseg_ray.corpus.annotations.documents import read_annotation
from lungseg_ray.corpus.annotations.drawing import Drawing
from lungseg_ray.corpus.annotations.runs import RunLengths, cells_of
from lungseg_ray.corpus.decode import Decoded, White, decode_image, decode_mask
from lungseg_ray.corpus.picture import check_bytes
from lungseg_ray.corpus.record import ANY_SCALE, MaskSource, Record, Sample
from lungseg_ray.corpus.segmentation import draw_segmentation, is_segmentation
from lungseg_ray.corpus.structures import structure_label
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels, count_labels, limited, resize_area, resize_labels
from lungseg_ray.numerics.labels import IGNORE_LABEL
from lungseg_ray.storage import Location, StorageError, translate_errors

LEAST_SIDE = 32
"""The minimum number of rows and of columns of an image, pixels. The networks here need at least 32 x 32 pixels."""
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


def read_sample(record: Record, settings: CorpusSettings, *, longer_side: int) -> Sample:
    """Reads the image and the mask of a record.

    Args:
        record: The record to read. A phantom is drawn.
        settings: The settings of the corpus: the channels, the value of white, the labels of mask values, and how to
            handle empty masks.
        longer_side: The maximum length of the longer side, pixels. Larger images are reduced to it.

    Returns:
        The image and the mask, both with the same number of rows and columns.

    Raises:
        BadFileError: If the pair cannot be used; its `reason` is one of `REASONS`.
        OSError: If a disk, or a bucket (`StorageError`), does not answer. The message contains the `image_id` in place
            of the path if the record is private.
    """
    with redact_paths(record.image_id if record.private else ""):
        return _read_sample(record, settings, longer_side=longer_side)


def _read_sample(record: Record, settings: CorpusSettings, *, longer_side: int) -> Sample:
    if phantom.is_phantom(record.image_uri):
        drawing, mask = phantom.draw_uri(record.image_uri)
        image = _drawn(drawing, channels=settings.channels, longer_side=longer_side)
        image_hash, mask_hash = hashlib.sha256(drawing.tobytes()), hashlib.sha256(mask.tobytes())
    else:
        data = fetch(record.image_uri)
        image_hash, mask_hash = hashlib.sha256(data), hashlib.sha256()
        image = _decoded(data, record.image_uri, settings.channels, longer_side, settings.white)
        # The bytes of the image are released, so that a worker holds only one file in memory at a time.
        del data
        masks = []
        for source in record.masks:
            mask, data = _read_mask(source, image, record, settings)
            mask_hash.update(data)
            masks.append(mask)
        mask = _united(masks)
    mask = resize_labels(mask, *image.pixels.shape[:2])
    if settings.empty_masks == "set_aside":
        _check_marked(mask)
    return Sample(
        image=image.pixels,
        mask=mask,
        source_height=image.height,
        source_width=image.width,
        source_bits=image.bits,
        spacing=image.spacing,
        image_sha256=image_hash.hexdigest(),
        mask_sha256=mask_hash.hexdigest(),
    )


def read_image(uri: str, *, channels: int, longer_side: int, white: White = None) -> Decoded:
    """Reads an image without a mask, for prediction. An image that asks viewers to turn it (EXIF) is turned.

    Args:
        uri: A path, an s3:// URI or the URI of a phantom.
        channels: The number of channels of the result: 1 (grey) or 3 (RGB).
        longer_side: The maximum length of the longer side, pixels. Larger images are reduced to it by area averaging.
        white: The pixel value of white in 16-bit and float files. None: the maximum of the format.

    Returns:
        The image, with the size, the bits and the pixel spacing that it has in the file.

    Raises:
        BadFileError: If the image cannot be used; its `reason` is one of `REASONS`.
        OSError: If a disk, or a bucket (`StorageError`), does not answer.
    """
    if phantom.is_phantom(uri):
        return _drawn(phantom.draw_uri(uri)[0], channels=channels, longer_side=longer_side)
    return decode_alone(fetch(uri), uri, channels=channels, longer_side=longer_side, white=white)


def decode_alone(data: bytes, uri: str, *, channels: int, longer_side: int, white: White = None) -> Decoded:
    """Decodes an image without a mask, as `read_image` does, whose file has been read.

    Args:
        data: The content of the file.
        uri: The location of the file, by which raw JSRT files are recognised.
        channels: As for `read_image`.
        longer_side: As for `read_image`.
        white: As for `read_image`.

    Raises:
        BadFileError: If the image cannot be used; its `reason` is one of `REASONS`.
    """
    return _decoded(data, uri, channels, longer_side, white, alone=True)


def _drawn(drawing: Pixels, *, channels: int, longer_side: int) -> Decoded:
    height, width = drawing.shape
    rows, columns = limited(height, width, longer_side=longer_side)
    pixels = resize_area(drawing, rows, columns)
    return Decoded(np.repeat(pixels[:, :, None], channels, axis=2), height, width, 8, None)


def _decoded(data: bytes, uri: str, channels: int, longer_side: int, white: White, *, alone: bool = False) -> Decoded:
    image = decode_image(data, channels=channels, longer_side=longer_side, white=white, name=uri, alone=alone)
    if min(image.height, image.width) < LEAST_SIDE:
        raise BadFileError(
            "too_small", f"expected at least {LEAST_SIDE} x {LEAST_SIDE} px, found {image.width} x {image.height} px"
        )
    return image


def _read_mask(source: MaskSource, image: Decoded, record: Record, settings: CorpusSettings) -> tuple[Pixels, bytes]:
    """Returns a mask at the size of its file, and the bytes that it is made of."""
    try:
        mask, data = _decode_source(source, image, settings)
    except BadFileError as error:
        raise BadFileError(error.reason, f"the mask: {error.detail}") from None
    return _checked_size(mask, image, record), data


def _decode_source(source: MaskSource, image: Decoded, settings: CorpusSettings) -> tuple[Pixels, bytes]:
    def label_of(name: str) -> int:
        return structure_label(name, settings)

    kind, _, text = source.entry.partition(":")
    if kind == "drawing":
        drawing = Drawing.from_json(text)
        return drawing.rasterise(label_of, height=image.height, width=image.width), text.encode()
    if kind == "runs":
        runs = RunLengths.from_json(text)
        rows = [_fetch_part(source.uri, start, length) for start, length in runs.rows]
        cells = [cells_of(row.decode(errors="replace"), runs.separator) for row in rows]
        texts = [(row[cell], label_of(name)) for row in cells for cell, name in runs.cells if cell < len(row)]
        return runs.draw(texts, height=image.height, width=image.width), b"".join(rows)
    data = fetch(source.uri)
    if kind == "segmentation" or is_segmentation(data):
        return draw_segmentation(data, label_of, instance=text, threshold=settings.mask_threshold), data
    if data[:64].lstrip()[:1] == b"{":
        return read_annotation(data).rasterise(label_of, height=image.height, width=image.width), data
    if not has_own_label(source, settings):
        return decode_mask(data, settings, name=source.uri, axes=image.axes), data
    mask = decode_mask(data, binary(settings), name=source.uri, axes=image.axes)
    mask[mask == 1] = label_of(source.structure)
    return mask, data


def has_own_label(source: MaskSource, settings: CorpusSettings) -> bool:
    """Returns whether all that a mask file marks has one of several labels, that of the structure in its name.

    Values that have labels of their own say that the files are label maps instead.
    """
    several = any(label not in (0, 1, "ignore") for label in settings.mask_values.values())
    return bool(source.structure) and not source.entry and len(settings.class_names) > 1 and not several


def binary(settings: CorpusSettings) -> CorpusSettings:
    """Returns the settings by which a mask file of a single structure is read."""
    return settings.model_copy(update={"classes": 1, "class_names": ["structure"]})


def _checked_size(mask: Pixels, image: Decoded, record: Record) -> Pixels:
    scales = record.mask_scales
    if scales == ANY_SCALE:
        if not same_proportions((image.height, image.width), mask.shape):
            raise BadFileError(
                "size_mismatch",
                f"expected a mask with the proportions of the image, {image.width} x {image.height} px, found "
                f"{mask.shape[1]} x {mask.shape[0]} px (corpus.mask_scale)",
            )
        return mask
    if scales and not fits_any((image.height, image.width), mask.shape, scales):
        height, width = mask.shape
        enlarged = " or ".join(f"{scale:.4g}" for scale in scales)
        raise BadFileError(
            "size_mismatch",
            f"expected a mask of the image's size, {image.width} x {image.height} px, "
            + (f"once enlarged {enlarged} times, " if scales != (1.0,) else "")
            + f"found {width} x {height} px; scales may be declared, or stretch if they show the same "
            "(corpus.mask_scale)",
        )
    return mask


def fits(image: tuple[int, ...], mask: tuple[int, ...], scale: float) -> bool:
    """Returns whether a mask has the size of its image, but for a row or a column that rounding adds or takes.

    Args:
        image: Rows and columns of the image.
        mask: Rows and columns of the mask.
        scale: Rows of an image for each row of its mask.
    """
    return all(abs(side - scale * own) <= max(1.0, scale) for side, own in zip(image, mask, strict=True))


def fits_any(image: tuple[int, ...], mask: tuple[int, ...], scales: Iterable[float]) -> bool:
    """Returns whether a mask `fits` its image by one of several scales."""
    return any(fits(image, mask, scale) for scale in scales)


def same_proportions(image: tuple[int, ...], mask: tuple[int, ...]) -> bool:
    """Returns whether a mask has the proportions of its image, but for 3 % or the rounding of a row or a column.

    Args:
        image: Rows and columns of the image.
        mask: Rows and columns of the mask.
    """
    off = max(0.03, 1.0 / min(mask[:2]))
    return abs(image[0] * mask[1] / (image[1] * mask[0]) - 1) < off


def _united(masks: list[Pixels]) -> Pixels:
    if not masks:
        raise BadFileError("no_mask", "expected a mask, found none")
    if len({mask.shape for mask in masks}) > 1:
        raise BadFileError("size_mismatch", "the files that make its mask together differ in size")
    union = masks[0]
    for mask in masks[1:]:
        union = np.where(mask != 0, mask, union)
    return union


def _check_marked(mask: Pixels) -> None:
    found = count_labels(mask).keys() - {IGNORE_LABEL}
    if found <= {0}:
        raise BadFileError("empty_mask", "expected at least one labelled pixel, found none (corpus.empty_masks)")
    if len(found) == 1:
        raise BadFileError("full_mask", f"expected more than one label, found {found.pop()} alone (corpus.empty_masks)")


def fetch(uri: str) -> bytes:
    """Reads a file.

    Args:
        uri: A path or an s3:// URI.

    Raises:
        BadFileError: If the file itself cannot be read.
        OSError: If a disk, or a bucket (`StorageError`), does not answer.
    """
    try:
        return _read(Location(uri))
    except ValueError:
        raise BadFileError("unreadable", "the file has a name that no system opens") from None
    except OSError as error:
        if not (why := fault_of_file(error)):
            raise
        raise BadFileError("unreadable", why) from None


def _fetch_part(uri: str, start: int, length: int) -> bytes:
    place = Location(uri)
    check_bytes(length)
    with translate_errors(place), place.filesystem.open_input_file(place.path) as file:
        file.seek(start)
        return file.read(length)


def fault_of_file(error: OSError) -> str:
    """Returns why a file cannot be opened, if the file itself is the cause.

    If a disk or a bucket does not answer, the file may be good and must not be set aside.

    Args:
        error: The error that occurred when the file was opened or read.

    Returns:
        The cause as a clause; empty if the disk or the bucket is the cause.
    """
    if isinstance(error, FileNotFoundError):
        return "the file cannot be opened: there is no such file"
    return f"the file cannot be opened: {os.strerror(error.errno)}" if error.errno in _OF_THE_FILE else ""


@contextmanager
def redact_paths(key: str) -> Iterator[None]:
    """Removes paths from the errors of a disk or a bucket, because they may identify the patient.

    Args:
        key: The key of the file, which replaces its path in the message; empty if the path may be shown.

    Raises:
        OSError: If the block raises one. With a key, its message contains only the key and the cause; a `StorageError`
            stays a `StorageError`.
    """
    try:
        yield
    except OSError as error:
        if not key:
            raise
        # The message of a bucket may contain parts of the path, so none of it is kept.
        kind = StorageError if isinstance(error, StorageError) else OSError
        why = f" ({os.strerror(error.errno)})" if error.errno else ""
        raise kind(f"{key}: the file behind this key cannot be read from where it lies{why}.") from None


def _read(place: Location) -> bytes:
    if place.is_local:
        status = Path(place.path).stat()
        if not stat.S_ISREG(status.st_mode):
            # To open a pipe would block until another process writes to it.
            raise BadFileError("unreadable", "expected a file, found a folder, a pipe or a device")
        check_bytes(status.st_size)
        return place.read_bytes()
    with translate_errors(place), place.filesystem.open_input_file(place.path) as file:
        check_bytes(file.size())
        return file.read()
