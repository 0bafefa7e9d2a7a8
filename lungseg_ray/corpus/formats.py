"""Decodes image files to arrays: PNG, JPEG, GIF, BMP, WebP, JPEG 2000, PGM, TIFF, NIfTI, NumPy, DICOM and JSRT.

Each file is checked before it is decoded.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import imagecodecs
import nibabel
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lungseg_ray.corpus.dicom import decode_dicom, is_dicom
from lungseg_ray.corpus.dicom_codecs import JPEG, frame_shape
from lungseg_ray.corpus.picture import MOST_PIXELS, Picture, Purpose, check_scans, check_size
from lungseg_ray.errors import BadFileError

_Made = TypeVar("_Made")

_ORIENTATION = 0x0112
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_HEADER_BYTES = 8
_PNG_END = b"IEND\xaeB`\x82"
# Samples per pixel of each PNG colour type. A palette (type 3) may be decoded to RGB and alpha.
_PNG_SAMPLES = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}
_GIF = (b"GIF87a", b"GIF89a")
_BMP, _PNM = b"BM", (b"P1", b"P2", b"P4", b"P5", b"P6")
_J2K = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_NUMPY, _GZIP = b"\x93NUMPY", b"\x1f\x8b"
_NIFTI_MAGIC, _NIFTI_AT, _NIFTI_HEADER = (b"n+1\0", b"ni1\0"), 344, 352
_OPPOSITE = {"R": "L", "A": "P", "S": "I"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Only compressions whose decoded size is known before they are decoded are accepted.
_TIFF_COMPRESSIONS = {1: "none", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 8: "deflate", 32946: "deflate"} | {
    32773: "PackBits"
}
# The decoded size of JPEG is in its own header, which is checked for each strip or tile.
_TIFF_JPEG = 7
_TIFF_WHITE_IS_ZERO, _TIFF_BLACK_IS_ZERO, _TIFF_RGB, _TIFF_PALETTE = range(4)
_TIFF_YCBCR = 6

_JSRT_SIDE = 2048
_KNOWN = "PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000, PGM, NIfTI, NumPy or DICOM"


# These libraries would log what is already reported as the reason why a file is set aside.
for _library in ("tifffile", "imagecodecs"):
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)


def decode_file(data: bytes, *, name: str = "", use: Purpose = "image") -> Picture:
    """Decodes an image file of any supported format.

    The content determines the format, not the name of the file. Alpha is dropped. For a mask, a palette with colours
    gives its indices, and DICOM gives its stored values. For an image, both give what a viewer would display.

    Args:
        data: The content of the whole file.
        name: The name of the file. Only the raw files of JSRT need it, because nothing in their content identifies
            them.
        use: What the pixels are used for: "image", "mask", "alpha" for a mask in the alpha channel of a PNG file, or
            "alone" for an image without a mask, which is turned upright if the file asks for it (EXIF).

    Returns:
        The pixels with the bits, the value of white and the pixel spacing of the file.

    Raises:
        BadFileError: If the file cannot be used; its `reason` is one of `REASONS`. The message never quotes text from
            the file.
    """
    if not data:
        raise BadFileError("empty_file", "expected an image, found 0 bytes")
    if use == "alpha" and not data.startswith(_PNG):
        raise BadFileError("unsupported", "expected a PNG file with an alpha channel, found another file")
    # DICOM comes first, because the bytes before its tags may make a DICOM file a TIFF file, too.
    if is_dicom(data):
        return decode_dicom(data, use=use)
    if data.startswith(_PNG):
        return _decode_png(data, use)
    if data.startswith(_JPEG):
        return _decode_jpeg(data, use)
    if data.startswith(_TIFF):
        return _guarded(lambda data: _decode_tiff(data, use), data)
    if data.startswith((*_GIF, _BMP, *_PNM)) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return _guarded(lambda data: _decode_by_pillow(data, use), data)
    if data.startswith(_J2K):
        return _guarded(_decode_jpeg_2000, data)
    if data.startswith(_NUMPY):
        return _guarded(lambda data: _of_array(_numpy_array(data), use), data)
    if data.startswith(_GZIP) or data[_NIFTI_AT : _NIFTI_AT + 4] in _NIFTI_MAGIC:
        return _guarded(lambda data: _decode_nifti(data, use), data)
    if name.lower().endswith(".img") and len(data) == 2 * _JSRT_SIDE**2:
        return _decode_jsrt(data)
    raise BadFileError(
        "unreadable",
        f"expected {_KNOWN}, found {len(data)} bytes that begin like none of them"
        + (" and are text" * data[:64].isascii()),
    )


def _guarded(decoder: Callable[[bytes], _Made], data: bytes) -> _Made:
    """Turns every error of a decoder into a `BadFileError` without its message, which may quote the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decoder(data)
    except BadFileError:
        raise
    except Exception as error:
        raise BadFileError("unreadable", f"damaged: it cannot be decoded ({type(error).__name__})") from error


def _opened(data: bytes, use: Purpose) -> Image.Image:
    """Reads and checks the header of a file, without decoding the pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"))
        # In a PNG file, Pillow decodes the whole file to find EXIF data. This is avoided if the file has none.
        plain = image.format == "PNG" and not _has_exif(data)
        orientation = 1 if plain else _orientation(image)
    except UnidentifiedImageError:
        raise BadFileError("unreadable", "damaged: its header cannot be read") from None
    except Image.DecompressionBombError:
        raise BadFileError("too_large", f"expected at most {MOST_PIXELS / 1e6:.0f} million pixels") from None
    check_size(image.height, image.width)
    # The number of images is not requested, because Pillow reads a whole GIF file to count them.
    if getattr(image, "is_animated", False):
        raise BadFileError("multi_frame", "expected one image, found several in one file")
    if use != "alone":
        _check_orientation(orientation)
    return image


def _upright(picture: Picture, orientation: int) -> Picture:
    """Turns the pixels of an image as the EXIF orientation of its file asks."""
    rows_first = {5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False)}
    plain = {2: (False, False, True), 3: (False, True, True), 4: (False, True, False)}
    transposed, upside_down, mirrored = {**rows_first, **plain}.get(orientation, (False, False, False))
    pixels = picture.pixels.swapaxes(0, 1) if transposed else picture.pixels
    pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    spacing = picture.spacing[::-1] if transposed and picture.spacing else picture.spacing
    return replace(picture, pixels=np.ascontiguousarray(pixels), spacing=spacing)


def _orientation(image: Image.Image) -> Any:
    return image.getexif().get(_ORIENTATION, 1)


def _check_orientation(orientation: Any) -> None:
    if orientation not in (0, 1):
        raise BadFileError(
            "rotated",
            f"it asks viewers to turn it (EXIF orientation {int(orientation)}), and a mask may be drawn on either "
            "way up; save both the same way up, without that tag",
        )


def _decode_png(data: bytes, use: Purpose) -> Picture:
    image = _guarded(lambda data: _opened(data, use), data)
    if data.rfind(_PNG_END) < 0:
        raise BadFileError("unreadable", f"truncated: the end marker is missing after {len(data)} bytes")
    # The first chunk contains the bits (byte 24) and the colour type (byte 25). Pillow's mode specifies neither.
    check_size(image.height, image.width, bits=data[24] * _PNG_SAMPLES.get(data[25], 4))
    if use == "mask" and image.mode == "P":
        return _guarded(lambda data: _of_pillow(_opened(data, use), use), data)
    picture = _guarded(lambda data: _decode_whole_png(data, use), data)
    return _upright(picture, _orientation(image)) if use == "alone" and _has_exif(data) else picture


def _has_exif(data: bytes) -> bool:
    """Whether a PNG file has a chunk of EXIF data. The chunks are walked: to search all bytes would take longer."""
    at = _PNG_HEADER_BYTES
    while at + 8 <= len(data):
        if data[at + 4 : at + 8] == b"eXIf":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False


def _decode_whole_png(data: bytes, use: Purpose) -> Picture:
    # imagecodecs raises an error if a checksum in the file reveals damage. OpenCV prints to standard error instead.
    pixels = imagecodecs.png_decode(data)
    if use == "alpha":
        if pixels.ndim == 2 or pixels.shape[2] not in (2, 4):
            raise BadFileError("unsupported", "expected an alpha channel, found none")
        return _picture(pixels[:, :, -1], bits=8 * pixels.itemsize)
    if pixels.ndim == 3:
        pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    if use == "mask" and data[24] in (2, 4):
        # The decoder scales values of 2 and 4 bits to 8 bits. This is undone, because labels are not scaled.
        pixels = pixels // (255 // (2 ** data[24] - 1))
    return _picture(pixels, bits=1 if data[24] == 1 else 8 * pixels.itemsize)


def _decode_jpeg(data: bytes, use: Purpose) -> Picture:
    image = _guarded(lambda data: _opened(data, use), data)
    if image.mode not in ("L", "RGB"):
        raise BadFileError("unsupported", f"expected grey or RGB, found {image.mode}; convert it")
    check_scans(data)
    try:
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if image.mode == "L" else "RGB", strict=True)
    except Exception as error:
        raise BadFileError(
            "unreadable", f"damaged or truncated: it cannot be decoded in full after {len(data)} bytes"
        ) from error
    picture = _picture(pixels[:, :, 0] if image.mode == "L" else pixels, bits=8)
    return _upright(picture, _orientation(image)) if use == "alone" else picture


def _decode_by_pillow(data: bytes, use: Purpose) -> Picture:
    image = _opened(data, use)
    picture = _of_pillow(image, use)
    return _upright(picture, _orientation(image)) if use == "alone" else picture


def _of_pillow(image: Image.Image, use: Purpose) -> Picture:
    """Decodes GIF, BMP, WebP and PGM files, and PNG masks with a palette."""
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return _of_palette(np.asarray(image), palette, use)
    if image.mode in ("I", "I;16", "I;16B"):
        # A PGM file of more than 8 bits, which Pillow scales to 16.
        return _picture(np.asarray(image).astype(np.uint16), bits=16)
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return _picture(pixels, bits=1 if image.mode == "1" else 8)


def _of_palette(index: NDArray[Any], palette: NDArray[np.uint8], use: Purpose) -> Picture:
    shown = palette[np.minimum(index, len(palette) - 1)]
    if (shown == shown[:, :, :1]).all():
        return _picture(shown[:, :, 0], bits=8)
    return _picture(index.astype(np.uint8) if use == "mask" else shown, bits=8)


def _decode_jpeg_2000(data: bytes) -> Picture:
    start = data.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    siz = data[start : start + 42]
    if start < 0 or len(siz) < 42:
        raise BadFileError("unreadable", "damaged: its header cannot be read")
    right, bottom, left, top = (int.from_bytes(siz[at : at + 4], "big") for at in (8, 12, 16, 20))
    check_size(bottom - top, right - left, bits=16 * int.from_bytes(siz[40:42], "big"))
    pixels = imagecodecs.jpeg2k_decode(data)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadFileError("unsupported", f"expected values of 8 or 16 bits, found {pixels.dtype}")
    if pixels.ndim == 3:
        pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    bits = (siz[42] & 0x7F) + 1 if len(siz) > 42 else 8 * pixels.itemsize
    return _picture(pixels, bits=bits)


def _numpy_array(data: bytes) -> NDArray[Any]:
    """Reads an .npy file. Its header is checked before the array is made, and objects are never read."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise BadFileError("unsupported", f"expected a file of NumPy in version 1 or 2, found {version}")
    shape, _, kind = read[version](stream)
    if kind.hasobject:
        raise BadFileError("unsupported", "expected numbers, found Python objects, which are never read")
    _check_array(shape, kind.itemsize)
    stream.seek(0)
    return np.load(stream, allow_pickle=False)


def _check_array(shape: tuple[int, ...], itemsize: int) -> None:
    sides = [side for side in shape if side != 1]
    if len(sides) == 3 and min(sides) in (3, 4):
        sides.remove(min(sides))
    if len(sides) != 2 and math.prod(shape) != max(sides, default=1):
        raise BadFileError("multi_frame", f"expected one image, found an array of {' x '.join(map(str, shape))}")
    height, width = (*sides, 1, 1)[:2]
    check_size(height, width, bits=8 * itemsize * math.prod(shape) // max(height * width, 1))


def _decode_nifti(data: bytes, use: Purpose) -> Picture:
    """Decodes a NIfTI file of one slice, whose first axis runs along the columns of the image.

    An affine that is the identity is what libraries write where nobody specified one, so that it says nothing.

    Raises:
        BadFileError: If the content is not NIfTI, or not of a single slice.
    """
    header = data
    if data.startswith(_GZIP):
        # Only the header is inflated before the size is known, and then no more than the size.
        header = zlib.decompressobj(31).decompress(data, _NIFTI_HEADER)
    if header[_NIFTI_AT : _NIFTI_AT + 4] not in _NIFTI_MAGIC:
        raise BadFileError("unsupported", "expected NIfTI in a compressed file, found something else")
    shape = nibabel.Nifti1Header(header[:348]).get_data_shape()
    kind = nibabel.Nifti1Header(header[:348]).get_data_dtype()
    _check_array(tuple(int(side) for side in shape), kind.itemsize)
    if data.startswith(_GZIP):
        most = _NIFTI_HEADER + (1 << 20) + math.prod(shape) * kind.itemsize
        data = zlib.decompressobj(31).decompress(data, most)
    image = nibabel.Nifti1Image.from_bytes(data)
    pixels = np.squeeze(np.asanyarray(image.dataobj))
    picture = _of_array(pixels.T if pixels.ndim == 2 else np.swapaxes(pixels, 0, 1), use)
    specified = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    affine = image.affine
    if not specified or affine is None or not np.isfinite(affine).all() or np.array_equal(affine, np.eye(4)):
        return picture
    codes = nibabel.aff2axcodes(affine)
    in_plane = [str(code) for code, side in zip(codes, (*shape, 1, 1), strict=False) if side > 1]
    return replace(picture, axes="".join(in_plane)) if len(in_plane) == 2 and "None" not in in_plane else picture


def oriented(picture: Picture, axes: str) -> Picture:
    """Turns a mask as its image lies, where both files specify the directions of their axes.

    Args:
        picture: The mask.
        axes: The axes of the image, as in `Picture`.

    Raises:
        BadFileError: With the reason `orientation` if the two lie in different planes.
    """
    if not axes or not picture.axes or axes == picture.axes:
        return picture
    planes = [{_OPPOSITE.get(axis, axis) for axis in one} for one in (axes, picture.axes)]
    if planes[0] != planes[1]:
        raise BadFileError("orientation", f"expected the plane of its image, {axes}, found {picture.axes}")
    own, wanted = (nibabel.orientations.axcodes2ornt(one) for one in (picture.axes, axes))
    pixels = np.swapaxes(picture.pixels, 0, 1)
    turned = nibabel.orientations.apply_orientation(pixels, nibabel.orientations.ornt_transform(own, wanted))
    return replace(picture, pixels=np.ascontiguousarray(np.swapaxes(turned, 0, 1)), axes=axes)


def _of_array(pixels: NDArray[Any], use: Purpose) -> Picture:
    """Returns an array of numbers as a picture; whole numbers become those of the smallest type that holds them."""
    pixels = np.squeeze(pixels)
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3:
        pixels = pixels[:, :, :3]
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise BadFileError("not_finite", f"expected numbers, found {(~np.isfinite(pixels)).sum()} NaN or infinite")
        whole = np.round(pixels)
        if not np.array_equal(whole, pixels) or (use != "mask" and pixels.max(initial=0) <= 1):
            highest = float(pixels.max(initial=0))
            white = 1.0 if use != "mask" or highest <= 1 else 255.0 if highest <= 255 else 65535.0
            return Picture(np.ascontiguousarray(pixels, np.float32), 32, white)
        pixels = whole
    return _whole_numbers(pixels)


def _whole_numbers(pixels: NDArray[Any]) -> Picture:
    """Returns integers of any type as 8 or 16 bits."""
    lowest, highest = int(pixels.min(initial=0)), int(pixels.max(initial=0))
    if lowest < 0 or highest > 65535:
        raise BadFileError("out_of_range", f"expected whole numbers from 0 to 65535, found {lowest} to {highest}")
    bits = 8 if highest <= 255 and pixels.dtype.itemsize != 2 else 16
    return _picture(pixels.astype(np.uint8 if bits == 8 else np.uint16), bits=bits)


def _decode_tiff(data: bytes, use: Purpose) -> Picture:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        file.pages.useframes = False
        pages = [page.aspage() for page in islice(file.pages, 3)]
        full = [page for page in pages if not page.is_reduced]
        if len(full) != 1:
            raise BadFileError("multi_frame", "expected one image, found several pages in one file")
        page = full[0]
        _check_tiff(page, len(data))
        tag = page.tags.get(_ORIENTATION)
        orientation = tag.value if tag else 1
        if use != "alone":
            _check_orientation(orientation)
        pixels = page.asarray(maxworkers=1)
        bits, kind = int(page.bitspersample), int(page.photometric)
        if page.samplesperpixel > 1 and page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(page.imagelength, page.imagewidth, -1)
        colours = page.colormap
    picture = _of_tiff(pixels, bits, kind, colours, use)
    return _upright(picture, orientation) if use == "alone" else picture


def _of_tiff(pixels: NDArray[Any], bits: int, kind: int, colours: NDArray[np.uint16] | None, use: Purpose) -> Picture:
    """Interprets the values of a TIFF file: (H, W, samples), with their bits and their photometric interpretation."""
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if kind == _TIFF_PALETTE and colours is not None:
        return _of_palette(pixels[:, :, 0], (colours >> 8).astype(np.uint8).T, use)
    pixels = pixels[:, :, :3] if kind in (_TIFF_RGB, _TIFF_YCBCR) else pixels[:, :, 0]
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise BadFileError("not_finite", f"expected numbers, found {(~np.isfinite(pixels)).sum()} NaN or infinite")
        if kind == _TIFF_WHITE_IS_ZERO:
            if use == "mask" or pixels.min(initial=0) < 0 or pixels.max(initial=0) > 1:
                raise BadFileError(
                    "unsupported",
                    "0 is white in it (photometric interpretation MinIsWhite), and nothing says which value is black; "
                    "save it with MinIsBlack",
                )
            pixels = 1 - pixels
        return Picture(np.ascontiguousarray(pixels, np.float64 if bits > 32 else np.float32), bits, 1.0)
    if pixels.dtype.kind in "iu" and pixels.dtype not in (np.uint8, np.uint16) and use == "mask":
        # Programs for science write labels as integers of 32 bits.
        return _whole_numbers(pixels)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadFileError("unsupported", f"expected values of 8 or 16 bits, or floats, found {pixels.dtype}")
    white = 2**bits - 1
    if kind == _TIFF_WHITE_IS_ZERO:
        if use == "mask":
            # tifffile stores boolean arrays with this tag but without inversion, while viewers display them inverted.
            raise BadFileError(
                "unsupported",
                "0 is white in it (photometric interpretation MinIsWhite), so that viewers and programs disagree on "
                "which side is marked; save it with MinIsBlack",
            )
        pixels = white - pixels
    if bits < 8 and use != "mask":
        # As in PNG, values of fewer than 8 bits are scaled to the same white as those of 8 bits.
        pixels, white = (pixels.astype(np.uint16) * 255 // white).astype(np.uint8), 255
    return Picture(np.ascontiguousarray(pixels), bits, float(white))


def _check_tiff(page: tifffile.TiffPage, size: int) -> None:
    """Checks everything that is known before the pixels are decoded."""
    samples = int(page.samplesperpixel)
    if page.imagedepth * page.tiledepth != 1 or not 1 <= samples <= 4:
        raise BadFileError("multi_frame", "expected one image, found a volume or many channels")
    if page.dtype is None:
        raise BadFileError("unsupported", "expected values of 8 or 16 bits, or floats, found a type that there is not")
    bits = int(page.bitspersample) * samples
    check_size(int(page.imagelength), int(page.imagewidth), bits=bits)
    if page.is_tiled:
        check_size(int(page.tilelength), int(page.tilewidth), bits=bits)
    if page.compression == _TIFF_JPEG and int(page.bitspersample) == 8:
        _check_tiff_jpeg(page, bits)
    elif page.compression not in _TIFF_COMPRESSIONS:
        known = ", ".join(dict.fromkeys(_TIFF_COMPRESSIONS.values()))
        raise BadFileError("unsupported", f"expected one of the compressions {known}, found {int(page.compression)}")
    kinds = (_TIFF_WHITE_IS_ZERO, _TIFF_BLACK_IS_ZERO, _TIFF_RGB, _TIFF_PALETTE)
    if page.photometric not in kinds and not (page.compression == _TIFF_JPEG and page.photometric == _TIFF_YCBCR):
        raise BadFileError("unsupported", f"expected grey, RGB or a palette, found {int(page.photometric)}")
    if page.photometric == _TIFF_RGB and samples < 3:
        raise BadFileError("unreadable", f"expected at least 3 samples of RGB, found {samples}")
    ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    # tifffile would fill in zeros for missing strips or tiles, one after the other.
    if len(ends) < math.prod(page.chunked) or max(ends) > size:
        raise BadFileError("unreadable", f"truncated: pixels are missing after {size} bytes")


def _check_tiff_jpeg(page: tifffile.TiffPage, bits: int) -> None:
    """Checks the sizes that the JPEG streams of a TIFF file declare, which need not be those of the file."""
    handle = page.parent.filehandle
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        handle.seek(start)
        stream = handle.read(count)
        check_scans(stream)
        shape = frame_shape(stream, JPEG)
        if shape is None:
            raise BadFileError("unreadable", "damaged: a JPEG stream in it has no size")
        check_size(shape[0], shape[1], bits=bits)


def _decode_jsrt(data: bytes) -> Picture:
    """Decodes 2048 x 2048 pixels of 12 bits, which are stored as big-endian 16-bit values with 0 for white."""
    stored = np.frombuffer(data, ">u2").reshape(_JSRT_SIDE, _JSRT_SIDE)
    if stored.max() > 4095:
        raise BadFileError("out_of_range", f"expected values of 12 bits, up to 4095, found {int(stored.max())}")
    return Picture((4095 - stored).astype(np.uint16), 12, 4095.0, spacing=(0.175, 0.175), settled=True)


def _picture(pixels: NDArray[Any], *, bits: int) -> Picture:
    pixels = np.ascontiguousarray(pixels)
    return Picture(pixels, bits, 65535.0 if pixels.dtype == np.uint16 else 255.0)
