"""Writes masks as DICOM objects of the study that their images belong to: segmentations, and pictures with outlines.

The objects carry the identity of the patient, as a hospital's archive needs it. It is copied from the file of the image
into that of the object, and goes nowhere else; messages do not contain it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from io import BytesIO

import highdicom
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from lungseg_ray import __version__
from lungseg_ray.corpus.dicom import guarded, is_dicom, spacing_of
from lungseg_ray.errors import BadFileError
from lungseg_ray.imaging import Pixels

# Its warnings quote the UIDs of the file.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
_NAME = "lungseg-ray"
_SEGMENTATIONS, _PICTURES = 9901, 9902
"""The numbers of the series that are added to a study; numbers of this size are not used by scanners."""
_MAY_BE_EMPTY = (
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
"""Tags that an object of a study has, empty where the image lacks them (type 2 in DICOM PS3.3, C.7.1.1 and C.7.2.1)."""
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_STRUCTURES: dict[str, tuple[Code, Code]] = {
    "lung": (codes.SCT.Organ, codes.SCT.Lung),
    "right lung": (codes.SCT.Organ, Code("3341006", "SCT", "Right lung")),
    "left lung": (codes.SCT.Organ, Code("44029006", "SCT", "Left lung")),
    "heart": (codes.SCT.Organ, codes.SCT.Heart),
}
_OTHER = Code("123037004", "SCT", "Body structure")


def write_segmentation(source: bytes, labels: Pixels, class_names: Sequence[str], *, model: str) -> bytes:
    """Writes a label map as a DICOM segmentation with one binary segment for each label.

    The same image, labels and model give an object with the same UIDs, so that it replaces an earlier one.

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
            segmented_property_category=_code(name)[0],
            segmented_property_type=_code(name)[1],
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=_NAME, family=codes.DCM.ArtificialIntelligence, version=f"{__version__} {model[:12]}"
            ),
        )
        for number, name in enumerate(class_names, start=1)
    ]
    layers = np.stack([labels == number for number in range(1, len(class_names) + 1)], axis=-1)[None]
    with guarded():
        made = highdicom.seg.Segmentation(
            source_images=[image],
            pixel_array=layers,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=_uid(image, "segmentations", of="StudyInstanceUID"),
            series_number=_SEGMENTATIONS,
            sop_instance_uid=_uid(image, "segmentation", model),
            instance_number=int(image.get("InstanceNumber") or 1),
            manufacturer=_NAME,
            manufacturer_model_name=_NAME,
            software_versions=__version__,
            device_serial_number=model[:12] or "1",
            omit_empty_frames=False,
            series_description=f"{_NAME}: masks",
        )
        return _file(made)


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
    with guarded():
        made = highdicom.sc.SCImage.from_ref_dataset(
            ref_dataset=image,
            pixel_array=picture,
            photometric_interpretation=highdicom.PhotometricInterpretationValues.RGB,
            bits_allocated=8,
            coordinate_system=highdicom.CoordinateSystemNames.PATIENT,
            patient_orientation=_orientation(image),
            pixel_spacing=spacing_of(image),
            series_instance_uid=_uid(image, "pictures", of="StudyInstanceUID"),
            series_number=_PICTURES,
            sop_instance_uid=_uid(image, "picture", model),
            instance_number=int(image.get("InstanceNumber") or 1),
            manufacturer=_NAME,
            series_description=f"{_NAME}: outlines",
        )
        made.BurnedInAnnotation = "NO"
        return _file(made)


def _read(source: bytes, labels: Pixels) -> Dataset:
    """Returns the tags of an image, with those empty that it lacks and may lack."""
    if not is_dicom(source):
        raise BadFileError("unsupported", "expected a DICOM image, found another format")
    with guarded():
        image = pydicom.dcmread(BytesIO(source))
        missing = [name for name in _NEEDED if not image.get(name)]
        size = int(image.Rows), int(image.Columns)
    if missing:
        raise BadFileError("unsupported", f"expected a DICOM image that belongs to a study, found no {missing[0]}")
    if size != labels.shape:
        raise BadFileError("size_mismatch", f"expected a mask of {size[0]} x {size[1]}, found {labels.shape}")
    for name in _MAY_BE_EMPTY:
        if name not in image:
            setattr(image, name, None)
    return image


def _code(name: str) -> tuple[Code, Code]:
    return _STRUCTURES.get(name.lower().replace("_", " "), (_OTHER, _OTHER))


def _orientation(image: Dataset) -> tuple[str, str]:
    """Returns the directions of rows and columns, by default those of a frontal radiograph as it is displayed."""
    given = image.get("PatientOrientation")
    return (str(given[0]), str(given[1])) if given and len(given) == 2 else ("L", "F")


def _uid(image: Dataset, *names: str, of: str = "SOPInstanceUID") -> uid.UID:
    """Returns a UID that follows from that of the image, or of its study, and from some names."""
    text = "\n".join([str(image[of].value), *names])
    # DICOM PS3.5, B.2: a UUID as an integer.
    return uid.UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}")


def _file(made: Dataset) -> bytes:
    file = BytesIO()
    made.save_as(file)
    return file.getvalue()
