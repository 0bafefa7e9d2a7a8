"""Decodes DICOM files to arrays, with the grey-value transformations that their tags specify.

The decoded image contains nothing that identifies a person. `read_tags` reads the identifying tags separately.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import pydicom
import simplejpeg
from numpy.typing import NDArray
from pydicom import config, uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length, pixel_array

from lungseg_ray.corpus.dicom_codecs import DECODED_HERE, NAME, frame_shape, is_whole
from lungseg_ray.corpus.picture import Picture, Purpose, Spacing, check_scans, check_size
from lungseg_ray.errors import BadFileError

PLUGINS = {uid.JPEGBaseline8Bit: "pillow", uid.RLELossless: "pydicom"} | dict.fromkeys(DECODED_HERE, NAME)
"""The pydicom plug-in that decodes each compressed transfer syntax. Uncompressed transfer syntaxes need none."""
_PLAIN = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_TABLE_WHITE = 65535
# Any other value of these tags was entered by hand, and may identify a person.
_CODES = {
    "sex": {"M", "F", "O"},
    "view": {"AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO"},
    "modality": {"CR", "DX", "RG", "RF", "XA", "PX", "MG", "CT", "MR", "US", "IO", "OT"},
}
# The UID of the deflated transfer syntax is searched for in the first 64 KiB of a file. pydicom would inflate the whole
# of such a file before any of its tags could be checked.
_DEFLATED, _FIRST = str(uid.DeflatedExplicitVRLittleEndian).encode(), 1 << 16

# The warnings of pydicom quote the values of tags, which may identify a person.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
config.settings.reading_validation_mode = config.IGNORE
# For an error in nested sequences, pydicom adds a message at each level, which repeats the messages of the levels below
# it several times. A file of 18,000 bytes could fill the memory of a machine with such messages.
vars(pydicom.dataset)["tag_in_exception"] = nullcontext


@dataclass(frozen=True)
class Tags:
    """The metadata that a corpus needs besides the pixels of a file.

    It identifies a person and must not be written anywhere.

    Attributes:
        patient: The ID of the patient; empty if the file has none. The issuer of the ID is left out, because not all
            files of a patient contain it. To take two patients for one does less harm than to assign one patient to two
            splits.
        study: The UID of the study; empty if the file has none.
        instance: The UID of the file; empty if it has none.
        marks: For a segmentation, the UIDs of the images that it marks; None for another file.
        structures: The names of the structures that a segmentation marks.
        groups: The values of `sex`, `view` and `modality` by name. Evaluation may report them as subgroups, since they
            identify nobody.
    """

    patient: str
    study: str
    groups: dict[str, str]
    instance: str = ""
    marks: tuple[str, ...] | None = None
    structures: tuple[str, ...] = ()


def is_dicom(data: bytes) -> bool:
    """Returns whether the first bytes of a file, of which 132 are needed, are those of a DICOM file."""
    return data[128:132] == b"DICM"


def read_tags(file: BinaryIO) -> Tags:
    """Reads the tags that identify the patient and the study, without reading the pixels.

    Args:
        file: The DICOM file, seekable and positioned at its start.

    Returns:
        The tags.

    Raises:
        BadFileError: With the reason `unreadable` if the file is damaged, or `unsupported` if it is deflated.
    """
    names = ["PatientID", "StudyInstanceUID", "PatientSex", "ViewPosition", "Modality", "SOPClassUID", "SOPInstanceUID"]
    with guarded():
        _check_start(file.read(_FIRST))
        file.seek(0)
        found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(names))
        text = {name: str(found.get(name) or "").strip() for name in names}
        marks: tuple[str, ...] | None = None
        structures: tuple[str, ...] = ()
        if text["SOPClassUID"] == uid.SegmentationStorage:
            file.seek(0)
            marks, structures = _read_segments(file)
    groups = {"sex": text["PatientSex"], "view": text["ViewPosition"], "modality": text["Modality"]}
    groups = {name: value for name, value in groups.items() if value in _CODES[name]}
    return Tags(text["PatientID"], text["StudyInstanceUID"], groups, text["SOPInstanceUID"], marks, structures)


def _read_segments(file: BinaryIO) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the UIDs of the images that a segmentation marks, and the names of the structures."""
    names = ["ReferencedSeriesSequence", "SegmentSequence"]
    found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(names))
    images = [
        str(image.get("ReferencedSOPInstanceUID", ""))
        for series in found.get("ReferencedSeriesSequence") or []
        for image in series.get("ReferencedInstanceSequence") or []
    ]
    structures = [str(segment.get("SegmentLabel", "")) for segment in found.get("SegmentSequence") or []]
    return tuple(images), tuple(structures)


def decode_dicom(data: bytes, *, use: Purpose = "image") -> Picture:
    """Decodes a DICOM file of one frame to the pixels that a viewer would display.

    Grey values are transformed by the modality LUT or by rescale slope and intercept, then by the VOI LUT or else by
    the first window, over the range that the stored bits allow. Without VOI LUT and window, the image spans the whole
    range of the stored bits. MONOCHROME1 is inverted. A mask keeps its stored values.

    Args:
        data: The content of the whole file.
        use: What the pixels are used for: "image" or "mask".

    Returns:
        Grey images as (H, W) uint16 with 65535 for white. RGB images, (H, W, 3), and masks with their stored values, as
        uint8 for up to 8 bits and as uint16 for more.

    Raises:
        BadFileError: If the file cannot be used; its `reason` is one of `REASONS`.
    """
    with guarded():
        _check_start(data[:_FIRST])
        found = pydicom.dcmread(BytesIO(data))
        _check(found)
        syntax = found.file_meta.TransferSyntaxUID
        compressed = syntax not in _PLAIN
        if not compressed:
            # pydicom raises an error if pixels are missing. A few surplus bytes are padding, but more than a row of
            # surplus pixels means that the tags describe another image.
            row = int(found.Columns) * int(found.SamplesPerPixel) * int(found.BitsAllocated) // 8
            if len(found.PixelData) - get_expected_length(found) > row:
                raise BadFileError("unreadable", "its tags say fewer pixels than it has")
        else:
            # With this table, pydicom might decode another frame than the one that is checked here.
            found.pop("ExtendedOffsetTable", None)
            frame, *others = islice(generate_frames(found.PixelData, number_of_frames=1), 2)
            if others:
                raise BadFileError("multi_frame", "expected one frame, found more than its tags say")
            _check_frame(frame, found)
        # `_stored_bits` checks the bits above the stored bits, because not all decoders clear them.
        plugin = PLUGINS[syntax] if compressed else ""
        pixels = pixel_array(found, decoding_plugin=plugin, correct_unused_bits=False)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        bits, spacing = int(found.BitsStored), _spacing(found)
        if pixels.ndim == 2:
            pixels = _stored_bits(pixels, found)
        if use == "mask" or pixels.ndim == 3:
            return _as_stored(pixels, bits, spacing)
        table, lowest = _grey_table(found)
        return Picture(table[pixels - lowest], bits, float(_TABLE_WHITE), spacing, settled=True)


@contextmanager
def guarded() -> Iterator[None]:
    """Turns every error of pydicom into a `BadFileError` without its message, which may quote the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadFileError:
        raise
    except Exception as error:
        # The cause is dropped, because a traceback would print its message.
        raise BadFileError("unreadable", f"damaged: DICOM that cannot be read ({type(error).__name__})") from None


def _check_start(first: bytes) -> None:
    if _DEFLATED in first:
        raise BadFileError("unsupported", f"its transfer syntax is not read: {uid.DeflatedExplicitVRLittleEndian.name}")


def _check(found: Dataset) -> None:
    """Checks everything that is known before the pixels are decoded."""
    syntax = found.file_meta.get("TransferSyntaxUID", "")
    if syntax not in (*_PLAIN, *PLUGINS):
        name = syntax.name if isinstance(syntax, uid.UID) and syntax.is_transfer_syntax else "another"
        raise BadFileError("unsupported", f"its transfer syntax is not read: {name}")
    if not any(name in found for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadFileError("no_pixels", "expected a DICOM image, found a DICOM file without pixels, or without its end")
    if str(found.get("BurnedInAnnotation", "")).upper() == "YES":
        raise BadFileError("burned_in", "its tag Burned In Annotation says that its pixels may show who the patient is")
    frames = int(found.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadFileError("multi_frame", f"expected one frame, found {frames}")
    kind, samples = str(found.get("PhotometricInterpretation", "")), int(found.get("SamplesPerPixel", 1))
    stored, allocated = int(found.get("BitsStored", 0)), int(found.get("BitsAllocated", 0))
    check_size(int(found.Rows), int(found.Columns), bits=samples * max(allocated, 8))
    if kind not in (*_GREY, *_COLOUR) or samples != (1 if kind in _GREY else 3):
        shown = kind if kind in set(PhotometricInterpretation) else "something else"
        raise BadFileError(
            "unsupported",
            "expected the photometric interpretation MONOCHROME1 or MONOCHROME2 with one sample a pixel, or a colour "
            f"one with three, found {shown} with {samples}",
        )
    if "PixelData" not in found or allocated not in (1, 8, 16) or not 1 <= stored <= allocated:
        raise BadFileError("unsupported", f"expected integers of at most 16 bits, found {stored} in {allocated}")
    if int(found.get("HighBit", stored - 1)) != stored - 1:
        raise BadFileError("unsupported", f"expected the lowest {stored} bits to be stored, found others (High Bit)")


def _check_frame(frame: bytes, found: Dataset) -> None:
    """Checks that a compressed frame is complete, has the size that the tags declare, and is cheap to decode."""
    syntax = found.file_meta.TransferSyntaxUID
    if syntax == uid.RLELossless:
        return
    check_scans(frame)
    if syntax == uid.JPEGBaseline8Bit:
        # Pillow, with which pydicom decodes this syntax, fills in missing data. simplejpeg raises an error instead.
        simplejpeg.decode_jpeg(frame, "GRAY" if int(found.SamplesPerPixel) == 1 else "RGB", strict=True)
    if not is_whole(frame, syntax):
        raise BadFileError("unreadable", "truncated: its pixels have no end marker")
    expected, shape = (int(found.Rows), int(found.Columns), int(found.SamplesPerPixel)), frame_shape(frame, syntax)
    if shape != expected:
        raise BadFileError(
            "unreadable",
            f"its tags say {expected[1]} x {expected[0]} px with {expected[2]} samples, its pixels "
            + (f"{shape[1]} x {shape[0]} px with {shape[2]}" if shape else "have no size"),
        )


def _spacing(found: Dataset) -> Spacing:
    """Returns the pixel spacing at the patient if it was calibrated, else at the detector, else of the scanned film."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = found.get(name)
        if value is not None and len(value) == 2 and all(0 < float(one) < 100 for one in value):
            return float(value[0]), float(value[1])
    return None


def _stored_bits(pixels: NDArray[Any], found: Dataset) -> NDArray[np.int32]:
    """Returns the grey values of the stored bits, signed if the tags declare it. Rejects data in the bits above."""
    bits, signed = int(found.BitsStored), bool(found.PixelRepresentation)
    raw = pixels.view(f"u{pixels.itemsize}").astype(np.int32)
    above, full = raw >> bits, (1 << (8 * pixels.itemsize - bits)) - 1
    known = (above == 0) | (above == full) if signed else above == 0
    # Old files may store overlays there, and then contain the tag Overlay Bit Position (60xx,0102).
    if not known.all() and not any(element.tag.group >> 8 == 0x60 and element.tag.elem == 0x102 for element in found):
        raise BadFileError("out_of_range", f"expected values of {bits} bits, found {raw.max()} (Bits Stored is wrong?)")
    values = raw & ((1 << bits) - 1)
    return np.where(values >> (bits - 1), values - (1 << bits), values) if signed else values


def _as_stored(pixels: NDArray[Any], bits: int, spacing: Spacing) -> Picture:
    if pixels.min() < 0:
        raise BadFileError("unsupported", f"expected values of 0 or more, found {pixels.min()}")
    pixels = np.ascontiguousarray(pixels, np.uint8 if bits <= 8 else np.uint16)
    return Picture(pixels, bits, float(2**bits - 1), spacing, settled=True)


def _grey_table(found: Dataset) -> tuple[NDArray[np.uint16], int]:
    """Returns the displayed value of each stored value, and the lowest stored value."""
    # All grey-value transformations of DICOM act on single pixels, so it is enough to apply them once to each value.
    bits, signed = int(found.BitsStored), bool(found.PixelRepresentation)
    lowest = -(2 ** (bits - 1)) if signed else 0
    values: NDArray[Any] = np.arange(lowest, lowest + 2**bits)
    black, white = float(lowest), float(lowest + 2**bits - 1)
    if found.get("ModalityLUTSequence"):
        values, white = _look_up(values, found.ModalityLUTSequence[0], found)
        black = 0.0
    elif found.get("RescaleSlope") is not None and found.get("RescaleIntercept") is not None:
        slope, intercept = float(found.RescaleSlope), float(found.RescaleIntercept)
        values = values * slope + intercept
        black, white = float(values.min()), float(values.max())
    if found.get("VOILUTSequence") and "LUTData" in found.VOILUTSequence[0]:
        values, white = _look_up(values, found.VOILUTSequence[0], found)
        black = 0.0
    elif found.get("WindowCenter") is not None and found.get("WindowWidth") is not None:
        values = _windowed(values, found, black, white)
    if not (np.isfinite(values).all() and white > black):
        raise BadFileError("unreadable", "its tags leave no range between black and white")
    shown = np.clip((values - black) / (white - black), 0, 1)
    # Files of digital radiography say it twice (DICOM PS3.3, C.8.11.3.1.2), others either way.
    if "MONOCHROME1" in found.PhotometricInterpretation or str(found.get("PresentationLUTShape")).upper() == "INVERSE":
        shown = 1 - shown
    shown[_padding(found, lowest, bits)] = 0
    return np.round(shown * _TABLE_WHITE).astype(np.uint16), lowest


def _padding(found: Dataset, lowest: int, bits: int) -> slice:
    """Returns the places of the stored values that fill up the image around what was exposed (C.7.5.1.1.2)."""
    first = found.get("PixelPaddingValue")
    if first is None:
        return slice(0, 0)
    limit = found.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if limit is None else limit)))
    return slice(max(low - lowest, 0), min(max(high - lowest + 1, 0), 2**bits))


def _windowed(values: NDArray[Any], found: Dataset, black: float, white: float) -> NDArray[np.float64]:
    """Applies the first window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3) and returns values from black to white."""
    centre, width = (float(np.atleast_1d(found[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    function = str(found.get("VOILUTFunction") or "LINEAR").upper()
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width < 0 or (width == 0 and function != "LINEAR"):
        raise BadFileError("unreadable", f"its window has the width {width:g}")
    if function == "SIGMOID":
        shown = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function in ("LINEAR", "LINEAR_EXACT"):
        shown = np.clip((values - centre) / width + 0.5, 0, 1) if width else (values > centre).astype(np.float64)
    else:
        raise BadFileError("unsupported", "expected a VOI LUT function LINEAR, LINEAR_EXACT or SIGMOID, found another")
    return black + shown * (white - black)


def _look_up(values: NDArray[Any], item: Dataset, found: Dataset) -> tuple[NDArray[Any], float]:
    """Applies a LUT, clamping values outside it to its ends, and returns the values and the largest possible value."""
    count, first, bits = (int(one) for one in item.LUTDescriptor)
    count = count or 2**16
    entries = item.LUTData
    if isinstance(entries, bytes):
        order = "<" if found.file_meta.TransferSyntaxUID.is_little_endian else ">"
        entries = np.frombuffer(entries, f"{order}u2" if len(entries) >= 2 * count else "u1")
    table = np.atleast_1d(np.asarray(entries)).astype(np.int64)[:count]
    if len(table) < count:
        raise BadFileError("unreadable", f"expected a table of {count} grey values, found {len(table)}")
    places = np.clip(np.round(values).astype(np.int64) - first, 0, count - 1)
    return table[places], float(2**bits - 1)


def _register() -> None:
    """Registers the decoders of `dicom_codecs` with pydicom, unless they are registered already."""
    for syntax in DECODED_HERE:
        decoder = get_decoder(syntax)
        if NAME not in decoder.available_plugins:
            decoder.add_plugin(NAME, ("lungseg_ray.corpus.dicom_codecs", "decode_frame"))


_register()
