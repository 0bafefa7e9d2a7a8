"""Everything that can be right or wrong with a file, made by code: the rows of the tables of docs/input.md."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import imagecodecs
import nibabel
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from lungseg_ray.corpus.phantom import draw
from tests.corpus.dicoms import chest, dataset, encoded

USED = "used"
IMAGE, MASK = draw(0, seed=0, size=64)
DEEP: NDArray[np.uint16] = IMAGE.astype(np.uint16) * 257
COLOUR = np.stack([IMAGE, IMAGE // 2, IMAGE // 3], 2)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what the table calls it.
        suffix: of the file's name.
        make: its bytes.
        outcome: `USED`, or the reason why it is set aside.
    """

    name: str
    suffix: str
    make: Callable[[], bytes]
    outcome: str = USED


def pillow(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def png(pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpeg(*options: int) -> bytes:
    return cv2.imencode(".jpg", IMAGE, list(options))[1].tobytes()


def flipped(data: bytes, place: int) -> bytes:
    """One bit is another; a place below 0 counts from the end."""
    damaged = bytearray(data)
    damaged[place] ^= 0x10
    return bytes(damaged)


def raw_png(
    width: int, height: int, rows: bytes, *, bits: int = 8, colour: int = 0, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """A PNG written by hand, whose header says a size, whatever its pixels are; all checksums are right.

    Args:
        width: that the header says.
        height: that the header says.
        rows: the pixels as they are compressed, a byte for the filter before each row.
        bits: of each value.
        colour: the kind of pixels: 0 is grey, 3 an index of a palette, 4 grey with alpha.
        chunks: name and content of those that stand before the pixels.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def turned(orientation: int, pixels: NDArray[Any] = IMAGE) -> bytes:
    """A JPEG whose EXIF tag says how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pillow(pixels, "JPEG", exif=exif)


def palette(colours: list[int]) -> Image.Image:
    index = Image.fromarray(MASK, "P")
    index.putpalette(colours)
    return index


def compressed(syntax: uid.UID, frame: bytes, pixels: NDArray[Any], **tags: Any) -> bytes:
    """A DICOM file with one frame, already compressed."""
    made = dataset(pixels, **tags)
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    return encoded(made)


def run_length() -> bytes:
    made = dataset(DEEP)
    made.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return encoded(made)


def two_frames() -> bytes:
    return encoded(dataset(DEEP, NumberOfFrames=2, PixelData=2 * DEEP.tobytes()))


def deflated() -> bytes:
    made = dataset(DEEP)
    made.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return encoded(made)


def jpeg_2000(pixels: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k"))


@cache
def bomb() -> bytes:
    return raw_png(60000, 60000, bytes(7501 * 60000), bits=1)


def numpy_file(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def nifti(pixels: NDArray[Any]) -> bytes:
    """As annotation tools write it: the first axis runs along the columns, and the third has one slice."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(pixels.T[:, :, None]), np.eye(4))
    return gzip.compress(image.to_bytes())


GOOD_IMAGES = [
    Kind("PNG, 8 bits, grey", ".png", lambda: png(IMAGE)),
    Kind("PNG, 8 bits, RGB", ".png", lambda: png(COLOUR)),
    Kind("PNG, 16 bits", ".png", lambda: png(DEEP)),
    Kind("PNG, 1 bit", ".png", lambda: pillow(IMAGE > 99, "PNG")),
    Kind("PNG with a palette", ".png", lambda: pillow(Image.fromarray(IMAGE).convert("P"), "PNG")),
    Kind("PNG, grey with alpha", ".png", lambda: pillow(np.stack([IMAGE, IMAGE], 2), "PNG")),
    Kind("PNG, 16-bit RGBA", ".png", lambda: png(np.stack([DEEP] * 4, 2))),
    Kind("JPEG, baseline", ".jpg", jpeg),
    Kind("JPEG, progressive", ".jpeg", lambda: jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
    Kind("JPEG with bytes after its end", ".jpg", lambda: jpeg() + b"\0" * 9),
    Kind("JPEG named .png", ".png", jpeg),
    Kind("JPEG with EXIF orientation 1 (as it is)", ".jpg", lambda: turned(1)),
    Kind("GIF", ".gif", lambda: pillow(IMAGE, "GIF")),
    Kind("TIFF, 8 bits, LZW", ".tif", lambda: tiff(IMAGE, compression="lzw")),
    Kind("TIFF, 16 bits, tiled, deflate", ".tiff", lambda: tiff(DEEP, tile=(32, 32), compression="zlib")),
    Kind("TIFF, float from 0 to 1", ".tif", lambda: tiff(IMAGE.astype(np.float32) / 255)),
    Kind("TIFF, white is zero", ".tif", lambda: tiff(IMAGE, photometric="miniswhite")),
    Kind("DICOM, MONOCHROME1, 12 bits of 16", ".dcm", lambda: chest(IMAGE)),
    Kind("DICOM with a window", ".dcm", lambda: chest(IMAGE, WindowCenter=2048, WindowWidth=3000)),
    Kind("DICOM, big endian", ".dcm", lambda: encoded_big_endian()),
    Kind("DICOM, RLE", ".dcm", run_length),
    Kind(
        "DICOM, JPEG baseline",
        ".dcm",
        lambda: compressed(uid.JPEGBaseline8Bit, jpeg(), IMAGE),
    ),
    Kind(
        "DICOM, JPEG lossless",
        ".dcm",
        lambda: compressed(uid.JPEGLosslessSV1, bytes(imagecodecs.ljpeg_encode(DEEP, bitspersample=16)), DEEP),
    ),
    Kind("DICOM, JPEG 2000", ".dcm", lambda: compressed(uid.JPEG2000Lossless, jpeg_2000(DEEP), DEEP)),
    Kind(
        "DICOM, JPEG-LS",
        ".dcm",
        lambda: compressed(uid.JPEGLSLossless, bytes(imagecodecs.jpegls_encode(DEEP)), DEEP),
    ),
    Kind(
        "JPEG with one other bit, where the pixels still decode (a JPEG has no checksum)",
        ".jpg",
        lambda: flipped(jpeg(), -200),
    ),
    Kind("TIFF, JPEG inside", ".tif", lambda: tiff(IMAGE, compression="jpeg")),
    Kind("BMP", ".bmp", lambda: pillow(IMAGE, "BMP")),
    Kind("WebP", ".webp", lambda: pillow(IMAGE, "WEBP")),
    Kind("JPEG 2000", ".jp2", lambda: bytes(imagecodecs.jpeg2k_encode(IMAGE, level=0))),
    Kind("PGM", ".pgm", lambda: pillow(IMAGE, "PPM")),
    Kind("NumPy array", ".npy", lambda: numpy_file(IMAGE)),
    Kind("NIfTI, compressed", ".nii.gz", lambda: nifti(IMAGE)),
    Kind("TIFF, float from 0 to 255", ".tif", lambda: tiff(IMAGE.astype(np.float32))),
]


def encoded_big_endian() -> bytes:
    made = dataset(DEEP.astype(">u2"))
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    return encoded(made)


BAD_IMAGES = [
    Kind("no bytes", ".png", lambda: b"", "empty_file"),
    Kind("text named .png", ".png", lambda: b"<html>Not found</html>" * 9, "unreadable"),
    Kind("PNG, truncated", ".png", lambda: png(IMAGE)[:-300], "unreadable"),
    Kind("JPEG, truncated", ".jpg", lambda: jpeg()[:-300], "unreadable"),
    Kind("TIFF, truncated", ".tif", lambda: tiff(IMAGE)[:-300], "unreadable"),
    Kind("GIF, truncated", ".gif", lambda: pillow(IMAGE, "GIF")[:-600], "unreadable"),
    Kind("DICOM, truncated", ".dcm", lambda: chest(IMAGE)[:-300], "unreadable"),
    Kind("DICOM, JPEG 2000, truncated", ".dcm", lambda: truncated_jpeg_2000(), "unreadable"),
    Kind("PNG with one other bit", ".png", lambda: flipped(png(IMAGE), -500), "unreadable"),
    Kind("JPEG with one other bit, where the pixels no longer add up", ".jpg", lambda: broken_jpeg(), "unreadable"),
    Kind(
        "TIFF, deflate, with one other bit",
        ".tif",
        lambda: flipped(tiff(IMAGE, compression="zlib"), -500),
        "unreadable",
    ),
    Kind("DICOM, JPEG lossless, with another bit in its header", ".dcm", lambda: broken_lossless(), "unreadable"),
    Kind("PNG, 1 x 1 px", ".png", lambda: png(IMAGE[:1, :1]), "too_small"),
    Kind("PNG, 60000 x 2 px", ".png", lambda: png(np.zeros((2, 60000), np.uint8)), "too_small"),
    Kind("PNG, a bomb: 60000 x 60000 px in 0.4 MB", ".png", lambda: bomb(), "too_large"),
    Kind(
        "TIFF, a bomb: 60000 x 60000 px in one strip",
        ".tif",
        lambda: imagecodecs_tiff_bomb(),
        "too_large",
    ),
    Kind("JPEG with 1000 scans", ".jpg", lambda: jpeg()[:-2] + b"\xff\xda" * 1000 + b"\xff\xd9", "too_large"),
    Kind(
        "PNG whose header says twice its rows",
        ".png",
        lambda: raw_png(64, 128, b"".join(b"\0" + row.tobytes() for row in IMAGE)),
        "unreadable",
    ),
    Kind("DICOM whose tags say half its rows", ".dcm", lambda: chest(IMAGE, Rows=32), "unreadable"),
    Kind("DICOM whose tags say twice its rows", ".dcm", lambda: chest(IMAGE, Rows=128), "unreadable"),
    Kind(
        "DICOM, JPEG 2000, whose pixels have another size than its tags",
        ".dcm",
        lambda: compressed(uid.JPEG2000Lossless, jpeg_2000(DEEP), DEEP, Rows=60),
        "unreadable",
    ),
    Kind("JPEG, CMYK", ".jpg", lambda: pillow(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "unsupported"),
    Kind("TIFF, 32-bit integers", ".tif", lambda: tiff(IMAGE.astype(np.int32)), "unsupported"),
    Kind(
        "DICOM with a wrong photometric tag",
        ".dcm",
        lambda: chest(IMAGE, PhotometricInterpretation="RGB"),
        "unsupported",
    ),
    Kind("DICOM, deflated", ".dcm", deflated, "unsupported"),
    Kind(
        "GIF, animated",
        ".gif",
        lambda: pillow(IMAGE, "GIF", save_all=True, append_images=[Image.fromarray(255 - IMAGE)]),
        "multi_frame",
    ),
    Kind(
        "PNG, animated",
        ".png",
        lambda: pillow(IMAGE, "PNG", save_all=True, append_images=[Image.fromarray(255 - IMAGE)]),
        "multi_frame",
    ),
    Kind("TIFF with three pages", ".tif", lambda: tiff(np.stack([IMAGE] * 3), photometric="minisblack"), "multi_frame"),
    Kind("DICOM with two frames", ".dcm", two_frames, "multi_frame"),
    Kind("DICOM without pixels", ".dcm", lambda: chest(IMAGE, PixelData=None), "no_pixels"),
    Kind(
        "DICOM with identity burnt into its pixels", ".dcm", lambda: chest(IMAGE, BurnedInAnnotation="YES"), "burned_in"
    ),
    Kind("JPEG with EXIF orientation 6 (a quarter turn)", ".jpg", lambda: turned(6), "rotated"),
    Kind(
        "TIFF, float with NaN", ".tif", lambda: tiff(np.where(MASK > 0, np.nan, 0.5).astype(np.float32)), "not_finite"
    ),
    Kind("TIFF, float below 0", ".tif", lambda: tiff(IMAGE.astype(np.float32) / 255 - 0.5), "out_of_range"),
]


def truncated_jpeg_2000() -> bytes:
    frame = jpeg_2000(DEEP)
    return compressed(uid.JPEG2000Lossless, frame[: len(frame) // 3], DEEP)


def broken_jpeg() -> bytes:
    """The first place from the end where a flipped bit makes other symbols than fit the image."""
    return flipped(jpeg(), -150)


def broken_lossless() -> bytes:
    frame = bytearray(imagecodecs.ljpeg_encode(DEEP, bitspersample=16))
    frame[frame.index(b"\xff\xc3") + 1] ^= 0x10
    return compressed(uid.JPEGLosslessSV1, bytes(frame), DEEP)


def imagecodecs_tiff_bomb() -> bytes:
    """A TIFF file whose tags alone say how many rows and columns it has."""
    data = tiff(np.zeros((64, 64), np.uint8), compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        places = [tags[name].valueoffset for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
    damaged = bytearray(data)
    for place in places:
        damaged[place : place + 2] = struct.pack("<H", 60000)
    return bytes(damaged)


WHITE = MASK * np.uint8(255)
THREE = MASK + MASK * (np.arange(64) > 32).astype(np.uint8)
GOOD_MASKS = [
    Kind("PNG, 0 and 255", ".png", lambda: png(WHITE)),
    Kind("PNG, 0 and 1", ".png", lambda: png(MASK)),
    Kind("PNG, 1 bit", ".png", lambda: pillow(MASK > 0, "PNG")),
    Kind("PNG, three equal channels", ".png", lambda: png(np.stack([WHITE] * 3, 2))),
    Kind("PNG with a palette of greys: the greys", ".png", lambda: pillow(palette([0, 0, 0, 255, 255, 255]), "PNG")),
    Kind("PNG with a palette of colours: the indices", ".png", lambda: pillow(palette([0, 0, 0, 250, 0, 0]), "PNG")),
    Kind("GIF", ".gif", lambda: pillow(WHITE, "GIF")),
    Kind("TIFF, 8 bits", ".tif", lambda: tiff(WHITE)),
    Kind("TIFF, float 0 and 1", ".tif", lambda: tiff(MASK.astype(np.float32))),
    Kind("DICOM: the stored values", ".dcm", lambda: encoded(dataset(MASK))),
    Kind("NumPy array", ".npy", lambda: numpy_file(MASK)),
    Kind("NIfTI, compressed", ".nii.gz", lambda: nifti(MASK)),
    Kind("TIFF, 32-bit integers", ".tif", lambda: tiff(MASK.astype(np.int32))),
    Kind("of half the size", ".png", lambda: png(WHITE[::2, ::2])),
    Kind("with one row more", ".png", lambda: png(np.vstack([WHITE, WHITE[-1:]]))),
    Kind("two values, 0 and 77", ".png", lambda: png(MASK * np.uint8(77))),
    Kind("16 bits, 0 and 65535", ".png", lambda: png(MASK.astype(np.uint16) * 65535)),
    Kind("JPEG, whose values are near 0 and 255", ".jpg", lambda: cv2.imencode(".jpg", WHITE)[1].tobytes()),
    Kind("float between 0 and 1", ".tif", lambda: tiff(cv2.blur(MASK.astype(np.float32), (5, 5)))),
    Kind("one colour on black", ".png", lambda: png(np.stack([MASK * np.uint8(9), MASK, WHITE], 2))),
    Kind(
        "the shape in the alpha channel", ".png", lambda: png(np.dstack([np.full((64, 64, 3), 255, np.uint8), WHITE]))
    ),
]
BAD_MASKS = [
    Kind("turned by a quarter", ".png", lambda: png(np.ascontiguousarray(WHITE[:, :48].T)), "size_mismatch"),
    Kind("marks nothing", ".png", lambda: png(np.zeros_like(MASK)), "empty_mask"),
    Kind("marks everything", ".png", lambda: png(np.full_like(MASK, 255)), "full_mask"),
    Kind("with values that nobody named", ".png", lambda: png(THREE * np.uint8(77)), "unknown_label"),
    Kind("two colours that nobody named", ".png", lambda: png(np.stack([THREE, MASK, MASK], 2)), "coloured_mask"),
    Kind("TIFF, truth values, white is zero", ".tif", lambda: tiff(MASK > 0), "unsupported"),
    Kind("no bytes", ".png", lambda: b"", "empty_file"),
    Kind("PNG, truncated", ".png", lambda: png(WHITE)[:-30], "unreadable"),
    Kind(
        "GIF, animated",
        ".gif",
        lambda: pillow(WHITE, "GIF", save_all=True, append_images=[Image.fromarray(MASK)]),
        "multi_frame",
    ),
]
