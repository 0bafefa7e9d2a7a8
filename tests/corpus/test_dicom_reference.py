"""Grey values against `pydicom.pixels`, on the files that pydicom brings along.

The decoder computes a table with one entry for each stored value, where `pydicom.pixels.apply_modality_lut` and
`apply_voi_lut` compute every pixel of an image in float64. Here both must agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_store
import numpy as np
import pydicom
import pydicom.data
import pytest
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from lungseg_ray.corpus.dicom import decode_dicom
from lungseg_ray.errors import BadFileError


@pytest.fixture(scope="module")
def paths() -> list[Path]:
    """Grey files of one frame that the decoder accepts, each name once."""
    found: dict[str, Path] = {}
    for package in (pydicom.data, data_store):
        for path in sorted(Path(package.__path__[0]).rglob("*.dcm")):
            try:
                if decode_dicom(path.read_bytes()).pixels.ndim == 2:
                    found[path.name] = path
            except BadFileError:
                continue
    return list(found.values())


def expected(dataset: Any) -> NDArray[np.float64]:
    """Shown intensities in [0, 1] by pydicom: modality LUT, then VOI LUT or the first window, over their range."""
    values = apply_modality_lut(pixel_array(dataset), dataset)
    shown = np.asarray(apply_voi_lut(values, dataset), np.float64)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if table := dataset.get("VOILUTSequence") or dataset.get("ModalityLUTSequence"):
        low, high = 0, 2 ** int(table[0].LUTDescriptor[2]) - 1
    elif "RescaleSlope" in dataset:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        low, high = low * slope + intercept, high * slope + intercept
    scaled = np.clip((shown - low) / (high - low), 0, 1)
    return 1 - scaled if dataset.PhotometricInterpretation == "MONOCHROME1" else scaled


def test_there_are_files_of_each_kind(paths: list[Path]) -> None:
    kinds = set()
    for path in paths:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        kinds |= {
            name
            for name in ("WindowCenter", "VOILUTSequence", "RescaleSlope", "ModalityLUTSequence")
            if name in dataset
        }
        kinds.add(dataset.PhotometricInterpretation)
    assert kinds >= {"WindowCenter", "RescaleSlope", "MONOCHROME1", "MONOCHROME2"}
    assert len(paths) >= 15


@pytest.mark.filterwarnings("ignore")
def test_the_same_grey_values(paths: list[Path]) -> None:
    for path in paths:
        found = decode_dicom(path.read_bytes())
        shown = expected(pydicom.dcmread(path))
        # 16 bits of one part in 65535, rounded once.
        assert np.abs(found.pixels / found.white - shown).max() <= 0.5 / 65535 + 1e-9, path.name
