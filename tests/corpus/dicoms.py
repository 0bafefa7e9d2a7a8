"""DICOM files for tests: pydicom's own, those of pydicom-data, and small ones made by hand with identities planted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset

from lungseg_ray.corpus.phantom import draw

IDENTITY = {
    "PatientName": "Plantedname^Zora",
    "PatientID": "PLANTEDID-4711",
    "PatientBirthDate": "19511224",
    "AccessionNumber": "PLANTEDACC99",
    "InstitutionName": "Plantedclinic",
    "ReferringPhysicianName": "Planteddoctor^Egon",
    "StudyDate": "20190317",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.11111111111",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.22222222222",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.33333333333",
    "StudyID": "PLANTEDSTUDY5",
    "OtherPatientIDs": "PLANTEDOTHER1",
    "PatientAddress": "Plantedstreet 7",
}
"""What a file says of a person; none of it may be found in anything that is written."""


def real(name: str) -> Path:
    """A file of pydicom's or of pydicom-data's, by its name."""
    found = get_testdata_file(name, download=False)
    assert found, f"{name} comes with pydicom or pydicom-data"
    return Path(str(found))


def dataset(pixels: NDArray[Any], *, bits: int | None = None, **tags: Any) -> Dataset:
    """A digital radiograph of one frame; `tags` override or add to what it says."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    made.file_meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID", IDENTITY["SOPInstanceUID"])
    made.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    stored = bits or 8 * pixels.itemsize
    defaults = {
        "Modality": "DX",
        "PatientSex": "F",
        "ViewPosition": "PA",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    if pixels.ndim == 3:
        defaults["PlanarConfiguration"] = 0
    for name, value in {**IDENTITY, **defaults, **tags}.items():
        if value is not None:
            setattr(made, name, value)
    return made


def encoded(made: Dataset) -> bytes:
    """The file's bytes."""
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def chest(image: NDArray[np.uint8], *, bits: int = 12, **tags: Any) -> bytes:
    """An 8-bit X-ray as a detector would have it: inverted, of `bits` bits, spaced 0.2 mm."""
    deep = (image.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "ImagerPixelSpacing": [0.2, 0.2]}
    return encoded(dataset((2**bits - 1 - deep).astype(np.uint16), bits=bits, **{**inverted, **tags}))


def write_tree(root: Path, count: int, *, size: int = 64) -> Path:
    """A tree of DICOM files as an archive exports it, two images to a patient, whose paths name them; masks beside it.

    Some cannot be used: a truncated one, one whose name alone says who it is, and one without a mask.
    """
    for number in range(count):
        image, mask = draw(number, seed=0, size=size)
        person = f"{IDENTITY['PatientName'].replace('^', '_')}{number // 2}"
        path = f"{person}/{IDENTITY['StudyInstanceUID']}.{number}/{IDENTITY['SOPInstanceUID']}.{number}"
        own = ("PatientID", "PatientName", "AccessionNumber")
        tags: dict[str, Any] = {name: f"{IDENTITY[name]}{number // 2}" for name in own}
        data = chest(image, **tags, StudyInstanceUID=f"{IDENTITY['StudyInstanceUID']}.{number}")
        _put(root / "images" / f"{path}.dcm", data[:-100] if number == 3 else data)
        if number != 5:
            _put(root / "masks" / f"{path}.png", cv2.imencode(".png", mask * np.uint8(255))[1].tobytes())
    _put(root / "images" / f"{IDENTITY['PatientName']}.dcm", IDENTITY["PatientName"].encode() * 20)
    return root


def _put(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
