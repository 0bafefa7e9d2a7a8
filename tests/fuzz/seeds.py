"""Small files of every kind that is read, and of some that are not: where fuzzing starts.

What they say of a person is planted, and must be in no message.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
from typing import Any

import cv2
import imagecodecs
import nibabel
import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pycocotools import mask as coco
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder

from tests.corpus.dicoms import dataset, encoded, real
from tests.corpus.kinds import pillow, tiff
from tests.corpus.test_segmentation import segmentation

GREY: NDArray[np.uint8] = np.add.outer(np.arange(24) * 7, np.arange(20) * 3).astype(np.uint8)
DEEP: NDArray[np.uint16] = GREY.astype(np.uint16) * 16
COLOUR: NDArray[np.uint8] = np.stack([GREY, GREY // 2, GREY // 3], 2)
PLANTED = "Plantedname Zora"
_TOOLS = ("coco", "labelme", "darwin")
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
    return {**_png(), **_jpeg(), **_gif(), **_tiff(), **_others(), **dicoms()}


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


def workbooks() -> dict[str, bytes]:
    """Manifests as Excel workbooks."""
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in (("image_uri", "mask_uri", "age"), ("a.png", "m.png", 41), ("b.png", "", PLANTED)):
        sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return {"plain": file.getvalue()}


def shapes() -> dict[str, bytes]:
    """Annotations of one image, and of several, as JSON."""
    polygon = [2, 3, 14, 3, 14, 12, 2, 12]
    compressed = coco.encode(np.asfortranarray(GREY > 60))
    areas = [[polygon], {"size": [24, 20], "counts": [8, 20, 452]}]
    areas.append({"size": [24, 20], "counts": compressed["counts"].decode()})
    collection = {
        "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 20}],
        "categories": [{"id": 1, "name": "lung"}],
        "annotations": [
            {"id": at, "image_id": 1, "category_id": 1, "segmentation": area, "iscrowd": 0}
            for at, area in enumerate(areas)
        ],
    }
    points = [[2, 3], [14.5, 3], [14, 12]]
    labelme = {
        "imagePath": "a.png",
        "imageHeight": 24,
        "imageWidth": 20,
        "shapes": [
            {"label": PLANTED, "points": points, "shape_type": "polygon"},
            {"label": "left lung", "points": points[:2], "shape_type": "rectangle"},
        ],
    }
    paths = [
        [{"x": 2.5, "y": 3}, {"x": 14, "y": 3}, {"x": 14, "y": 12}],
        [{"x": 4, "y": 4}, {"x": 6, "y": 4}, {"x": 6, "y": 6}],
    ]
    darwin = {
        "item": {"name": "a.png", "slots": [{"width": 20, "height": 24}]},
        "annotations": [{"name": "lung", "polygon": {"paths": paths}}],
    }
    return {name: json.dumps(one).encode() for name, one in zip(_TOOLS, (collection, labelme, darwin), strict=True)}


def drawings() -> dict[str, bytes]:
    """Annotations of CVAT, as XML."""
    return {
        "cvat": f"""<annotations><image id="0" name="a.png" width="20" height="24">
<polygon label="lung" points="2.0,3.0;14.0,3.0;14.0,12.0" /><box label="{PLANTED}" xtl="1" ytl="1" xbr="5" ybr="6" />
<mask label="lung" rle="3, 4, 9" left="2" top="2" width="4" height="4" /></image></annotations>""".encode()
    }


def run_lengths() -> dict[str, bytes]:
    """Tables of run lengths of the images a and b."""
    header = "Image Index,Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width\n"
    return {
        "competition": b"ImageId, EncodedPixels\na,1 5 20 8\nb,-1\na,40 4\n",
        "relative": b"ImageId,EncodedPixels\na,10 5 3 8 2 2\nb,\n",
        "chexmask": f'{header}a.png,0.8,"[[1 2]\n [3 4]]",1 5,30 4,,24,20\nb.png,0.1,x,3 3,,9 1,24,20\n'.encode(),
    }


def value_names() -> dict[str, bytes]:
    """Names of the values of masks, by nnU-Net."""
    labels: list[dict[str, Any]] = [{"background": 0, "lung": 1, "ignore": 2}, {"0": "background", "1": PLANTED}]
    return {str(at): json.dumps({"labels": one, "channel_names": {"0": "x"}}).encode() for at, one in enumerate(labels)}


def label_maps() -> dict[str, bytes]:
    """Names of the colours of masks, by CVAT."""
    return {"cvat": f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n{PLANTED}:1,1,1::\n".encode()}


def split_lists() -> dict[str, bytes]:
    """The names of the images to train, a line each."""
    return {
        "ids": b"a\nb\n",
        "paths": b"images/a.png masks/a.png\nimages/b.png masks/b.png\n",
        "marked": b"a  1\nb -1\n",
    }


def segmentations() -> dict[str, bytes]:
    """DICOM segmentations of two structures, and pydicom's own."""
    image = dataset(GREY, StudyTime="", AccessionNumber="", SeriesNumber=1, InstanceNumber=1)
    mask = np.stack([GREY > 60, GREY < 20], axis=-1).astype(np.uint8)
    return {
        "binary": segmentation([image], [mask], "Left Lung", PLANTED),
        "fractional": segmentation([image], [mask[..., :1] * 0.7], "Lung", kind="FRACTIONAL"),
        "real": real("liver_1frame.dcm").read_bytes(),
    }


def _others() -> dict[str, bytes]:
    nifti, array = io.BytesIO(), io.BytesIO()
    np.save(array, GREY)
    nifti.write(nibabel.Nifti1Image(GREY.T, np.eye(4)).to_bytes())
    return {
        "bmp": pillow(Image.fromarray(GREY), "BMP"),
        "webp": pillow(Image.fromarray(COLOUR), "WEBP"),
        "jp2": bytes(imagecodecs.jpeg2k_encode(GREY, 0, codecformat="jp2")),
        "pgm": pillow(Image.fromarray(GREY), "PPM"),
        "npy": array.getvalue(),
        "nifti": nifti.getvalue(),
        "nifti-gz": gzip.compress(nifti.getvalue(), mtime=0),
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
