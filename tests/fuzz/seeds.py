"""Small files of every kind that is read, and of some that are not: where fuzzing starts.

What they say of a person is planted, and must be in no message.
"""

from __future__ import annotations

import io
import itertools
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder

from tests.corpus.dicoms import dataset, encoded, real
from tests.corpus.kinds import pillow, tiff

GREY: NDArray[np.uint8] = np.add.outer(np.arange(24) * 7, np.arange(20) * 3).astype(np.uint8)
DEEP: NDArray[np.uint16] = GREY.astype(np.uint16) * 16
COLOUR: NDArray[np.uint8] = np.stack([GREY, GREY // 2, GREY // 3], 2)
PLANTED = "Plantedname Zora"
# fmt: off
_REAL = [
    "JPEG2000", "JPEG2000-embedded-sequence-delimiter", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16",
    "SC_rgb_rle", "SC_rgb_rle_16bit", "SC_rgb_rle_2frame", "SC_rgb_jls_lossy_line", "SC_rgb_jls_lossy_sample",
    "SC_rgb_small_odd", "SC_rgb_small_odd_big_endian", "SC_rgb_small_odd_jpeg", "SC_rgb_dcmtk_+eb+cy+s4",
    "SC_rgb_dcmtk_+eb+cr", "SC_rgb_jpeg_dcmtk", "693_J2KI", "MR_small_RLE", "MR_small", "MR_small_jp2klossless",
    "liver_1frame", "no_meta", "meta_missing_tsyntax", "nested_priv_SQ", "UN_sequence", "image_dfl", "rtplan",
    "reportsi_with_empty_number_tags",
]
# fmt: on


def images() -> dict[str, bytes]:
    """Image files, DICOM among them, by a name that says their kind."""
    return {**_png(), **_jpeg(), **_gif(), **_tiff(), **dicoms()}


def dicoms() -> dict[str, bytes]:
    """DICOM files in each transfer syntax, made here and pydicom's own."""
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.add_new("LUTData", "OW", (np.arange(256, dtype=np.uint16) * 257).tobytes())
    deep: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 1024, "ImagerPixelSpacing": [0.2, 0.2]}
    made = {
        "explicit": dataset(DEEP, bits=12, **deep),
        "signed": dataset(DEEP.astype(np.int16) - 900, bits=12, RescaleSlope=2, RescaleIntercept=-1024),
        "inverted": dataset(GREY, PhotometricInterpretation="MONOCHROME1", VOILUTFunction="SIGMOID", **deep),
        "modality-lut": dataset(GREY, ModalityLUTSequence=[table], VOILUTSequence=[table]),
        "colour": dataset(COLOUR),
        "planar": dataset(np.moveaxis(COLOUR, 2, 0).reshape(COLOUR.shape), PlanarConfiguration=1),
        "implicit": _in_syntax(dataset(DEEP, bits=12), uid.ImplicitVRLittleEndian),
        "big-endian": _in_syntax(dataset(DEEP.byteswap(), bits=12), uid.ExplicitVRBigEndian),
        "deflated": _in_syntax(dataset(GREY), uid.DeflatedExplicitVRLittleEndian),
        "baseline": _framed(dataset(GREY), uid.JPEGBaseline8Bit, imagecodecs.jpeg8_encode(GREY, 90)),
        "baseline-colour": _framed(
            dataset(COLOUR, PhotometricInterpretation="YBR_FULL_422"),
            uid.JPEGBaseline8Bit,
            imagecodecs.jpeg8_encode(COLOUR, 90),
        ),
        "extended": _framed(
            dataset(DEEP, bits=12), uid.JPEGExtended12Bit, imagecodecs.jpeg8_encode(DEEP, 90, bitspersample=12)
        ),
        "j2k-lossy": _framed(
            dataset(DEEP, bits=12), uid.JPEG2000, imagecodecs.jpeg2k_encode(DEEP, 60, codecformat="j2k")
        ),
        "jls-near": _framed(dataset(GREY), uid.JPEGLSNearLossless, imagecodecs.jpegls_encode(GREY, 3)),
        "rle": _framed(dataset(DEEP, bits=12), uid.RLELossless, _run_lengths(DEEP)),
    }
    for syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        stream = imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=16, predictor=1)
        made[f"lossless-{syntax[-2:]}"] = _framed(dataset(DEEP, bits=12), syntax, stream)
    for name, pixels in (("grey", GREY), ("deep", DEEP), ("colour", COLOUR)):
        kind = "YBR_RCT" if pixels.ndim == 3 else "MONOCHROME2"
        stream = imagecodecs.jpeg2k_encode(pixels, 0, codecformat="j2k", reversible=True)
        made[f"j2k-{name}"] = _framed(dataset(pixels, PhotometricInterpretation=kind), uid.JPEG2000Lossless, stream)
        made[f"jls-{name}"] = _framed(dataset(pixels), uid.JPEGLSLossless, imagecodecs.jpegls_encode(pixels))
    return {f"dicom-{name}": encoded(one) for name, one in made.items()} | {
        f"dicom-real-{name}": real(f"{name}.dcm").read_bytes() for name in _REAL
    }


def manifests() -> dict[str, bytes]:
    """Manifests as CSV."""
    header = "image_uri,mask_uri,patient_id,split,sex\n"
    rows = "x/a.png,m/a.png,01,valid,f\ny/b.png,/abs/b.png,,,\nz/b.png,s3://store/c.png,02,test,m\nc.png,,03,,\n"
    return {
        "plain": (header + rows).encode(),
        "marked": ("\ufeff" + header + rows.replace("\n", "\r\n")).encode(),
        "quoted": (header + f'"a,""1"".dcm","a\n.png","{PLANTED}",train,\n').encode(),
        "twice": (header + "a.png,b.png,,,\na.png,b.png,,,\n").encode(),
        "short": b"image_uri,mask_uri\na.png\n",
        "outside": (header + "../a.png,file:///etc/b.png,,,\nhttp://a/b.png,s3://,,,\n").encode(),
        "sixteen": (header + rows).encode("utf-16"),
    }


def parquets() -> dict[str, bytes]:
    """Manifests as Parquet."""
    paths = pa.table({"image_uri": ["b.png", "a.png"], "mask_uri": ["m.png", None], "patient_id": [7, 8]})
    odd = pa.table(
        {
            "image_uri": ["b.png", "a.png"],
            "mask_uri": [["left.png", "right.png"], None],
            "split": pa.array(["train", "val"]).dictionary_encode(),
            "seen": pa.array([0, 1], pa.timestamp("us")),
            "raw": [b"\xff", None],
        }
    )
    return {
        f"{name}-{compression}": _parquet(table, compression=compression)
        for (name, table), compression in itertools.product(
            {"paths": paths, "odd": odd}.items(), ("none", "snappy", "gzip", "zstd")
        )
    }


def indexes() -> dict[str, bytes]:
    """The index beside images/ and masks/, as CSV."""
    return {
        "plain": b"stem,patient,split,finding,width,height\na,007,Validation,normal,10,20\nx/3,007,val,,10,20\n",
        "by-id": b"image_id,patient_id,split\na,1,train\nb,1,test\n",
        "twice": b"stem\na\na\n",
        "wrong": b"name,split\na,training\n",
        "quoted": f'stem,patient,site\n"a","{PLANTED}, Jr","n\n""o"""\n'.encode(),
    }


def _png() -> dict[str, bytes]:
    said = PngImagePlugin.PngInfo()
    said.add_text("Author", PLANTED, zip=True)
    index = Image.fromarray(GREY // 64, "P")
    index.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    exif = Image.Exif()
    exif[274] = 1
    made = {
        "bits": pillow(Image.fromarray(GREY > 60), "PNG"),
        "grey": pillow(Image.fromarray(GREY), "PNG", pnginfo=said, exif=exif),
        "deep": pillow(Image.fromarray(DEEP), "PNG"),
        "palette": pillow(index, "PNG", transparency=0),
        "palette-2": pillow(index, "PNG", bits=2),
        "alpha": pillow(Image.fromarray(COLOUR).convert("RGBA"), "PNG"),
        "grey-alpha": pillow(Image.fromarray(GREY).convert("LA"), "PNG"),
        "colour": pillow(Image.fromarray(COLOUR), "PNG"),
        "colour-deep": cv2.imencode(".png", COLOUR.astype(np.uint16) * 200)[1].tobytes(),
        "animated": pillow(index, "PNG", save_all=True, append_images=[index.rotate(90)]),
    }
    return {f"png-{name}": data for name, data in made.items()}


def _jpeg() -> dict[str, bytes]:
    grey, colour = Image.fromarray(GREY), Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[315] = PLANTED
    made = {
        "grey": pillow(grey, "JPEG", comment=PLANTED.encode(), exif=exif),
        "progressive": pillow(grey, "JPEG", progressive=True),
        "colour": pillow(colour, "JPEG", subsampling="4:2:0"),
        "colour-progressive": pillow(colour, "JPEG", progressive=True, subsampling="4:4:4"),
        "restarts": cv2.imencode(".jpg", COLOUR, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes(),
        "cmyk": pillow(colour.convert("CMYK"), "JPEG"),
    }
    return {f"jpeg-{name}": data for name, data in made.items()}


def _gif() -> dict[str, bytes]:
    grey = Image.fromarray(GREY)
    made = {
        "grey": pillow(grey, "GIF", comment=PLANTED),
        "colour": pillow(Image.fromarray(COLOUR).quantize(16), "GIF", transparency=1, interlace=0),
        "animated": pillow(grey, "GIF", save_all=True, append_images=[grey.rotate(90)]),
    }
    return {f"gif-{name}": data for name, data in made.items()}


def _tiff() -> dict[str, bytes]:
    two: dict[str, NDArray[Any]] = {"grey": GREY, "deep": DEEP}
    made = {
        f"{name}-{compression or 'none'}-{order}": tiff(pixels, compression=compression, byteorder=order)
        for (name, pixels), compression, order in itertools.product(
            two.items(), (None, "zlib", "lzw", "packbits"), "<>"
        )
    } | {
        "bits": tiff(GREY > 60, photometric="minisblack"),
        "float": tiff(GREY.astype(np.float32) / 255, description=PLANTED),
        "double": tiff(GREY.astype(np.float64)),
        "planar": tiff(np.moveaxis(COLOUR, 2, 0), photometric="rgb", planarconfig="separate"),
        "tiles": tiff(DEEP, tile=(16, 16), compression="zlib", predictor=True),
        "big": tiff(GREY, bigtiff=True, rowsperstrip=4),
        "palette": pillow(Image.fromarray(COLOUR).quantize(16), "TIFF"),
        "jpeg": tiff(GREY, compression="jpeg"),
        "pages": tiff(np.stack([GREY] * 3), photometric="minisblack"),
    }
    for compression in ("group3", "group4", "tiff_ccitt"):
        made[compression] = pillow(Image.fromarray(GREY > 60), "TIFF", compression=compression)
    return {f"tiff-{name}": data for name, data in made.items()}


def _in_syntax(made: Dataset, syntax: uid.UID) -> Dataset:
    made.file_meta.TransferSyntaxUID = syntax
    return made


def _framed(made: Dataset, syntax: uid.UID, frame: bytes | bytearray) -> Dataset:
    made.PixelData = encapsulate([bytes(frame)])
    return _in_syntax(made, syntax)


def _run_lengths(pixels: NDArray[np.uint16]) -> bytes:
    encoder = get_encoder(uid.RLELossless)
    return bytes(
        encoder.encode(
            pixels,
            encoding_plugin="pydicom",
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=16,
            pixel_representation=0,
            number_of_frames=1,
            photometric_interpretation="MONOCHROME2",
        )
    )


def _parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()
