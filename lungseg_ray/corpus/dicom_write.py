"""Writes masks as DICOM objects of the study that their images belong to: segmentations, and pictures with outlines.

The objects carry the identity of the patient, as a hospital's archive needs it. It is copied from the file of the image
into that of the object, and goes nowhere else; messages do not contain it.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import highdicom
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from lungseg_ray import __version__
from lungseg_ray.corpus.dicom import guarded, is_dicom
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels

# Its warnings quote the UIDs of the file.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
_NAME = "lungseg-ray"
_SEGMENTATIONS, _PICTURES = 9901, 9902
"""The numbers of the series that are added to a study; numbers of this size are not used by scanners."""
_IDENTITY = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyID",
    "StudyTime",
)
"""Tags of the patient and of the study, which an object of a study has in common with its images; empty where the image
lacks them (type 2 in DICOM PS3.3, C.7.1.1 and C.7.2.1)."""
_PLACE = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "ImagePositionSlide")
"""Tags of slices, which highdicom takes together with others; a radiograph has none of them, or not all."""
_SAME = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "BurnedInAnnotation")
"""Tags of an image that hold for a picture of it, too."""
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_CATEGORY = codes.SCT.AnatomicalStructure
_STRUCTURES: dict[str, Code] = {
    "lung": codes.SCT.Lung,
    "right lung": Code("3341006", "SCT", "Right lung"),
    "left lung": Code("44029006", "SCT", "Left lung"),
    "heart": codes.SCT.Heart,
}
"""The codes of structures by the name of their label; others are anatomical structures."""


def write_segmentation(source: bytes, labels: Pixels, class_names: Sequence[str], *, model: str) -> bytes:
    """Writes a label map as a DICOM segmentation with one binary segment for each label.

    The same image, labels and model give an object with the same UID, and others give another.

    Args:
        source: The content of the DICOM file of the image.
        labels: (H, W) uint8, of the size of the image; label 0 is the background.
        class_names: The names of the labels from 1 on.
        model: A name of the model that predicted them.

    Returns:
        The content of the file.

    Raises:
        BadFileError: If the source is no DICOM image, or lacks a tag that is needed.
    """
    image = _read(source, labels)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=_CATEGORY,
            segmented_property_type=_STRUCTURES.get(name.lower().replace("_", " "), _CATEGORY),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=_NAME, family=codes.DCM.ArtificialIntelligence, version=f"{__version__} {model[:12]}"
            ),
        )
        for number, name in enumerate(class_names, start=1)
    ]
    layers = np.stack([labels == number for number in range(1, len(class_names) + 1)], axis=-1)[None]
    with _copied():
        made = highdicom.seg.Segmentation(
            source_images=[image],
            pixel_array=layers,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=_uid(image.StudyInstanceUID, "segmentations", __version__, model),
            series_number=_SEGMENTATIONS,
            sop_instance_uid=_uid(
                image.SOPInstanceUID, "segmentation", __version__, model, *class_names, _digest(labels)
            ),
            instance_number=int(image.get("InstanceNumber") or 1),
            manufacturer=_NAME,
            manufacturer_model_name=_NAME,
            software_versions=__version__,
            device_serial_number=model[:12] or "1",
            content_label="LUNGSEG",
            omit_empty_frames=False,
            series_description=f"{_NAME}: masks",
        )
        return _file(made, source)


def write_picture(source: bytes, picture: Pixels, *, model: str) -> bytes:
    """Writes a picture of an image, such as one with outlines, as a DICOM secondary capture.

    Args:
        source: The content of the DICOM file of the image.
        picture: (H, W, 3) uint8 RGB, of the size of the image.
        model: A name of the model whose masks it shows.

    Returns:
        The content of the file.

    Raises:
        BadFileError: As `write_segmentation`.
    """
    image = _read(source, picture[:, :, 0])
    with _copied():
        made = highdicom.sc.SCImage.from_ref_dataset(
            ref_dataset=image,
            pixel_array=picture,
            photometric_interpretation=highdicom.PhotometricInterpretationValues.RGB,
            bits_allocated=8,
            coordinate_system=highdicom.CoordinateSystemNames.PATIENT,
            patient_orientation=("L", "F"),
            series_instance_uid=_uid(image.StudyInstanceUID, "pictures", __version__, model),
            series_number=_PICTURES,
            sop_instance_uid=_uid(image.SOPInstanceUID, "picture", __version__, model, _digest(picture)),
            instance_number=int(image.get("InstanceNumber") or 1),
            manufacturer=_NAME,
            series_description=f"{_NAME}: outlines",
        )
        # What the image says of itself holds for its picture; what it does not say is not known.
        made.PatientOrientation = image.get("PatientOrientation")
        for name in _SAME:
            if name in image:
                made[name] = image[name]
        return _file(made, source)


def _read(source: bytes, labels: Pixels) -> Dataset:
    """Returns the tags of an image without those of the patient, which highdicom takes in usual forms alone."""
    if not is_dicom(source):
        raise BadFileError("unsupported", "expected a DICOM image, found another format")
    with guarded():
        image = pydicom.dcmread(BytesIO(source))
        missing = [name for name in _NEEDED if not image.get(name)]
        size = int(image.Rows), int(image.Columns)
        for name in _PLACE:
            image.pop(name, None)
        for name in _IDENTITY:
            setattr(image, name, None)
        image.pop("SpecificCharacterSet", None)
    if missing:
        raise BadFileError("unsupported", f"expected a DICOM image that belongs to a study, found no {missing[0]}")
    if size != labels.shape:
        raise BadFileError("size_mismatch", f"expected a mask of {size[0]} x {size[1]}, found {labels.shape}")
    return image


@contextmanager
def _copied() -> Iterator[None]:
    """Turns errors of highdicom into a `BadFileError` without their message, which may quote the file."""
    try:
        with guarded():
            yield
    except BadFileError as error:
        raise BadFileError("unsupported", f"its tags cannot be copied into a new object ({error.detail})") from None


def _uid(*names: str) -> uid.UID:
    """Returns a UID that follows from some names (DICOM PS3.5, B.2: a UUID as an integer)."""
    return uid.UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(10).join(names)).int}")


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _file(made: Dataset, source: bytes) -> bytes:
    """Returns the content of an object, with the tags of the patient and of the study as the image has them."""
    image = pydicom.dcmread(BytesIO(source), stop_before_pixels=True, specific_tags=list(_IDENTITY))
    # Names of classes and of patients may be written in different scripts.
    image.decode()
    made.SpecificCharacterSet = "ISO_IR 192"
    for name in _IDENTITY:
        if name in image:
            setattr(made, name, image[name].value)
    file = BytesIO()
    made.save_as(file)
    return file.getvalue()
