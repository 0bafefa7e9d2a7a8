"""Reads DICOM segmentations (SEG): the masks of one or several structures on the images that the file refers to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BytesIO

import highdicom
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset

from lungseg_ray.corpus.dicom import guarded, is_dicom
from lungseg_ray.corpus.picture import check_size
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels

# Its warnings quote the UIDs of the file.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
_SYNTAXES = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless)
_MOST_FRAMES = 256


def is_segmentation(data: bytes) -> bool:
    """Returns whether a file is a DICOM segmentation."""
    if not is_dicom(data):
        return False
    with guarded():
        found = pydicom.dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=["SOPClassUID"])
        return bool(found.get("SOPClassUID") == uid.SegmentationStorage)


def draw_segmentation(
    data: bytes, label_of: Callable[[str], int], *, instance: str = "", threshold: float | None = None
) -> Pixels:
    """Draws the segments of one image as a label map. A segment covers those of lower numbers.

    Args:
        data: The content of the whole file.
        label_of: Returns the label of a structure by its name, and raises `BadFileError` if it has none. The name is
            the label of the segment, or else the type of its property.
        instance: The UID of the image, for a file that refers to several; empty for one that refers to a single one.
        threshold: The probability, 0 to 1, from which on a pixel of a fractional segment is marked; by default 0.5.

    Returns:
        (H, W) uint8 label map, of the size of the segments.

    Raises:
        BadFileError: If the file is damaged, refers to several images and `instance` is empty, or names a structure
            that has no label.
    """
    with guarded():
        found = pydicom.dcmread(BytesIO(data))
        _check(found)
        _complete(found)
        segments = highdicom.seg.Segmentation.from_dataset(found, copy=False)
        instances = [source for _, _, source in segments.get_source_image_uids()]
        if not instance and len(instances) != 1:
            raise BadFileError("multi_frame", f"expected a segmentation of one image, found one of {len(instances)}")
        marked = segments.get_pixels_by_source_instance([instance or instances[0]], dtype=np.float32)[0]
        names = [_name(segments.get_segment_description(number)) for number in segments.segment_numbers]
    mask = np.zeros(marked.shape[:2], np.uint8)
    for layer, name in enumerate(names):
        if label := label_of(name):
            mask[marked[..., layer] >= (0.5 if threshold is None else threshold)] = label
    return mask


def _complete(found: Dataset) -> None:
    """Adds the thickness of slices, which radiographs do not have and highdicom asks for."""
    groups = [
        *(found.get("SharedFunctionalGroupsSequence") or []),
        *(found.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    for measures in (one for group in groups for one in group.get("PixelMeasuresSequence") or []):
        if "SliceThickness" not in measures:
            measures.SliceThickness = 1.0


def _name(segment: highdicom.seg.SegmentDescription) -> str:
    return str(segment.segment_label or segment.segmented_property_type.meaning)


def _check(found: Dataset) -> None:
    """Checks everything that is known before the pixels are decoded."""
    if found.file_meta.TransferSyntaxUID not in _SYNTAXES:
        raise BadFileError("unsupported", "the transfer syntax of its segmentation is not read")
    frames = int(found.get("NumberOfFrames") or 1)
    if frames > _MOST_FRAMES:
        raise BadFileError("multi_frame", f"expected at most {_MOST_FRAMES} frames, found {frames}")
    check_size(int(found.Rows), int(found.Columns) * frames)
    groups = found.get("PerFrameFunctionalGroupsSequence") or []
    shared = any("DerivationImageSequence" in one for one in found.get("SharedFunctionalGroupsSequence") or [])
    if len(groups) != frames or not (shared or all("DerivationImageSequence" in one for one in groups)):
        raise BadFileError("unsupported", "expected frames that say which image they mark, found others")
