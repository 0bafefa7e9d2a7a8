"""A plug-in for pydicom that decodes compressed DICOM frames with imagecodecs.

The plug-ins that pydicom supports for these transfer syntaxes either terminate the process on damaged frames (GDCM) or
are under the GPL (pylibjpeg-libjpeg).
"""

from __future__ import annotations

import imagecodecs
from pydicom import uid
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import DecodeRunner

NAME = "imagecodecs"
JPEG = str(uid.JPEGBaseline8Bit)
_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
DECODED_HERE = (*_JPEG, *_JPEG_LS, *_JPEG_2000)
DECODER_DEPENDENCIES = dict.fromkeys(DECODED_HERE, ("imagecodecs",))
"""The packages that each transfer syntax needs. pydicom expects every plug-in to define this name."""

# Start-of-frame markers of all JPEG processes and of JPEG-LS. DHT (C4), JPG (C8) and DAC (CC) lie in the same range.
_STARTS_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_STAND_ALONE = {0x01, *range(0xD0, 0xD9)}
_SCAN = 0xDA
_JPEG_END = b"\xff\xd9"
_J2K_START = b"\xff\x4f\xff\x51"


def is_available(syntax: str) -> bool:
    """Returns whether this plug-in decodes a transfer syntax; pydicom expects every plug-in to define this function."""
    return syntax in DECODED_HERE


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decodes one frame.

    Args:
        frame: The code stream of the frame.
        runner: The pydicom runner that calls the plug-in. It provides the tags, and its options are set to describe the
            returned bytes.

    Returns:
        The pixels, with interleaved samples, in the byte order of the machine.
    """
    if runner.transfer_syntax in _JPEG_2000:
        pixels = imagecodecs.jpeg2k_decode(_of_jpeg_2000(frame))
    elif runner.transfer_syntax in _JPEG_LS:
        pixels = imagecodecs.jpegls_decode(frame)
    else:
        pixels = imagecodecs.jpeg8_decode(frame)
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    return pixels.tobytes()


def is_whole(frame: bytes, syntax: str) -> bool:
    """Returns whether the code stream of a JPEG image has its end marker.

    The JPEG decoder would fill in missing data without an error. Frames of JPEG-LS and JPEG 2000 are not checked,
    because their decoders detect missing data.

    Args:
        frame: The code stream of the frame.
        syntax: The UID of the transfer syntax.

    Returns:
        False if the end marker of a JPEG image is missing, else True.
    """
    return syntax not in _JPEG or _JPEG_END in frame


def frame_shape(frame: bytes, syntax: str) -> tuple[int, int, int] | None:
    """Reads the size that the code stream of a JPEG, JPEG-LS or JPEG 2000 image declares.

    The decoders trust this size and allocate memory for it, so it must be checked before a frame is decoded.

    Args:
        frame: The code stream of the frame.
        syntax: The UID of the transfer syntax.

    Returns:
        The numbers of rows, columns and samples per pixel; None if the code stream does not declare them.
    """
    if syntax in _JPEG_2000:
        siz = _of_jpeg_2000(frame, 42)
        word = [int.from_bytes(siz[at : at + 4], "big") for at in (8, 12, 16, 20)]
        shape = word[1] - word[3], word[0] - word[2], int.from_bytes(siz[40:], "big")
        return shape if len(siz) == 42 else None
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != _SCAN:
        marker = frame[at + 1]
        if marker in _STARTS_OF_FRAME:
            rows, columns = (int.from_bytes(frame[at + skip : at + skip + 2], "big") for skip in (5, 7))
            return rows, columns, frame[at + 9]
        if marker == 0xFF:
            at += 1
        else:
            at += 2 if marker in _STAND_ALONE else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _of_jpeg_2000(frame: bytes, count: int | None = None) -> bytes:
    """Returns the first `count` bytes of the code stream, without the boxes before it; empty if there is none."""
    start = frame.find(_J2K_START, 0, 1 << 16)
    return b"" if start < 0 else frame[start : None if count is None else start + count]
