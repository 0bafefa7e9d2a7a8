"""Corpora on a disk for tests: the public sets file for file, with drawn chests in place of patients."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.layouts import Listing, list_corpus
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.corpus.record import REASONS

Pixels = NDArray[np.uint8]
_DRAWINGS = 16

_MONTGOMERY_NORMAL = """1 2 3 4 5 6 8 11 13 15 16 17 19 20 21 22 23 24 26 27 28 29 30 31 35 38 40 41 42 43 44 45 46 47
48 49 51 52 53 54 55 56 57 58 59 60 61 62 63 64 68 69 70 71 72 74 75 77 79 80 81 82 83 84 85 86 87 89 90 91 92 94 95 96
97 99 100 101 102 103"""
_MONTGOMERY_TB = """104 108 113 117 126 140 141 142 144 150 162 166 170 173 182 188 194 195 196 203 213 218 223 228 243
251 253 254 255 258 264 266 275 282 289 294 301 309 311 313 316 331 334 338 348 350 352 354 362 367 369 372 375 383 387
390 393 399"""
MONTGOMERY = [f"MCUCXR_{int(number):04d}_0" for number in _MONTGOMERY_NORMAL.split()]
MONTGOMERY += [f"MCUCXR_{int(number):04d}_1" for number in _MONTGOMERY_TB.split()]
SHENZHEN = [f"CHNCXR_{number:04d}_{int(number > 326)}" for number in range(1, 663)]
_BARE = [25, *range(36, 41), 65, *range(181, 221), 336, *range(341, 361), *range(481, 501), 502, 505, *range(560, 566)]
SHENZHEN_BARE = [SHENZHEN[number - 1] for number in _BARE]
"""Images for which there is no mask."""
JSRT = [f"JPCLN{number:03d}" for number in range(1, 155)] + [f"JPCNN{number:03d}" for number in range(1, 94)]
# Readings of the public set that are not like the others.
ODD_READINGS = {
    "CHNCXR_0044_0": "femal 32yrs\nnormal",
    "CHNCXR_0115_0": "male 16month\nnormal",
    "CHNCXR_0202_0": "female 64days\nnormal",
    "CHNCXR_0300_0": "female24yrs\nnormal",
    "CHNCXR_0500_1": "male , 29yrs  \t\nbilateral secondary PTB",
}


def listing(root: Path, **settings: object) -> Listing:
    return list_corpus(CorpusSettings.model_validate({"root": str(root), **settings}))


def fill(root: Path, *files: str) -> Path:
    """Files whose content is their path, so that each is another; listing never opens them."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(os.fsencode(file))
    return root


def reasons(found: Listing) -> dict[str, str]:
    assert {item.reason for item in found.set_aside} <= REASONS.keys()
    return {item.image_id: item.reason for item in found.set_aside}


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's are closed."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def nobody() -> Iterator[None]:
    """As a user who is not root, who may read everything."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def some(ids: Sequence[str], count: int) -> list[str]:
    """So many of them, from everywhere."""
    return [ids[number * len(ids) // count] for number in range(min(count, len(ids)))]


def montgomery(root: Path, *, count: int = 138, size: int = 32) -> Path:
    """The set of Montgomery County as it is unpacked, below `root`.

    Args:
        root: where MontgomerySet/ is made.
        count: how many of its images.
        size: pixels of their longer side, of 4892.
    """
    top = root / "MontgomerySet"
    for index, image_id in enumerate(some(MONTGOMERY, count)):
        image, mask = chest(index, size)
        # Films lie or stand, 4892 x 4020 px or 4020 x 4892.
        height, width = (size, size * 4020 // 4892)[:: 1 if index % 3 else -1]
        image, mask = image[:height, :width], mask[:height, :width]
        right, left = _sides(mask)
        _write(top / f"CXR_png/{image_id}.png", _png(Image.fromarray(image)))
        _write(top / f"ManualMask/leftMask/{image_id}.png", _png(Image.fromarray(left)))
        _write(top / f"ManualMask/rightMask/{image_id}.png", _png(Image.fromarray(right)))
        _write(top / f"ClinicalReadings/{image_id}.txt", _montgomery_reading(index, image_id))
    _write(top / "NLM-MontgomeryCXRSet-ReadMe.pdf", b"%PDF-1.4\n")
    return root


def shenzhen(root: Path, *, count: int = 662, size: int = 32) -> Path:
    """The set of Shenzhen with the masks beside it, each as it is unpacked, below `root`.

    Args:
        root: where ChinaSet_AllFiles/ and mask/ are made.
        count: how many of its images.
        size: pixels of their longer side, of 3000.
    """
    _shenzhen(root / "ChinaSet_AllFiles", root / "mask", count, size)
    _write(root / "ChinaSet_AllFiles/NLM-ChinaCXRSet-ReadMe.docx", b"PK\3\4")
    # What marks findings, and not lungs.
    _write(root / "Annotations-2/masks/CHNCXR_0327_1.png", b"")
    return root


def kaggle(root: Path, *, count: int = 800, size: int = 32) -> Path:
    """Both sets in one folder, each with one mask for both lungs, as an edition on Kaggle has them."""
    top = root / "Lung Segmentation"
    _shenzhen(top, top / "masks", count * 662 // 800, size)
    for index, image_id in enumerate(some(MONTGOMERY, count * 138 // 800)):
        image, mask = chest(index + 700, size)
        _write(top / f"CXR_png/{image_id}.png", _png(Image.fromarray(image)))
        _write(top / f"masks/{image_id}.png", _png(Image.fromarray(mask)))
        _write(top / f"ClinicalReadings/{image_id}.txt", _montgomery_reading(index, image_id))
    for image_id in SHENZHEN_BARE:
        if (bare := top / f"CXR_png/{image_id}.png").exists():
            _write(top / f"test/{image_id}.png", bare.read_bytes())
    _write(top / "NLM-ChinaCXRSet-ReadMe.docx", b"PK\3\4")
    return root


def jsrt(root: Path, *, count: int = 247, whole: int = 0, masks: bool = True) -> Path:
    """The database of the JSRT with the masks of SCR, each as it is unpacked, below `root`.

    Args:
        root: where All247images/, Clinical_Information/ and scratch/ are made.
        count: how many of its images.
        whole: how many of these can be read, with 8 MB each; the others end after a few bytes.
        masks: whether SCR is there.
    """
    lines: dict[str, list[str]] = {"CLNDAT_EN.txt": [], "CNNDAT_EN.TXT": []}
    for index, image_id in enumerate(some(JSRT, count)):
        size = 2048 if index < whole else 64
        image, mask = chest(index, size)
        # 12 bits, of which 0 is white.
        stored = (4095 - image.astype(np.uint32) * 4095 // 255).astype(">u2").tobytes()
        _write(root / f"All247images/{image_id}.IMG", stored if index < whole else stored[:64])
        sex, age = ("male", "female")[index % 2], "?" if index == 5 else str(30 + index % 50)
        if image_id.startswith("JPCLN"):
            row = f"{image_id}.IMG\t{1 + index % 5}\t15\t{age}\t{sex}\t1634\t692\tmalignant\tl.upper lobe\tlung cancer"
            lines["CLNDAT_EN.txt"].append(row)
        else:
            lines["CNNDAT_EN.TXT"].append(f"{image_id}.IMG {age}  {sex}   non-nodule")
        if masks:
            right, left = _sides(mask[::2, ::2])
            fold = root / f"scratch/fold{1 if int(image_id[-3:]) % 2 else 2}/masks"
            none = np.zeros_like(left)
            parts = {"left lung": left, "right lung": right, "heart": none}
            for name, part in {**parts, "left clavicle": none, "right clavicle": none}.items():
                _write(fold / name / f"{image_id}.gif", _gif(part))
    for name, rows in lines.items():
        _write(root / "Clinical_Information" / name, "\r\n".join(rows).encode())
    return root


def chexmask(root: Path, *, count: int = 30, size: int = 64, first: int = 1) -> tuple[Path, Path]:
    """Images of ChestX-ray14 as the NIH has them, and CheXmask, whose masks of CheXpert belong to no image here.

    Returns the folder of the images and that of the masks. Every tenth mask is of a quality below 0.7.
    """
    pixels, masks = root / "nih", root / "chexmask"
    entries, rows, lists = [], [], {"train_val_list.txt": "", "test_list.txt": ""}
    for index in range(count):
        patient, visit = index // 3 + first, index % 3
        name = f"{patient:08d}_{visit:03d}.png"
        image, mask = chest(index, size)
        _write(pixels / f"images_{index * 12 // count + 1:03d}" / "images" / name, _png(Image.fromarray(image)))
        finding = "No Finding" if visit else "Effusion|Mass"
        entries.append(f"{name},{finding},{visit},{patient},{20 + patient % 60},F,PA,{size},{size},0.143,0.143,")
        lists["test_list.txt" if patient % 5 == 0 else "train_val_list.txt"] += f"{name}\n"
        right, left = _sides(mask)
        heart = np.zeros_like(mask)
        heart[size // 2 : size * 3 // 4, size * 2 // 5 : size * 3 // 5] = 255
        quality = 0.4 if index % 10 == 9 else 0.85
        rows.append((name, quality, left, right, heart))
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    header += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
    _write(pixels / "Data_Entry_2017_v2020.csv", (header + "\n".join(entries) + "\n").encode())
    for name, text in lists.items():
        _write(pixels / name, text.encode())
    _write(masks / "OriginalResolution" / "ChestX-Ray8.csv", run_lengths("Image Index", rows))
    others = [(f"/train/patient{n:05d}/study1/view1_frontal.jpg", *rows[n][1:]) for n in range(min(count, 5))]
    _write(masks / "OriginalResolution" / "CheXpert.csv", run_lengths("Path", others))
    _write(masks / "README.md", b"# CheXmask Database")
    return pixels, masks


def covid_qu_ex(root: Path, *, count: int = 36, size: int = 64) -> Path:
    """COVID-QU-Ex: the lungs of `count` images in three splits and three classes, and infections of some of them."""
    top = root / "COVID-QU-Ex Dataset"
    lungs, infections = (top / f"{name}/{name}" for name in ("Lung Segmentation Data", "Infection Segmentation Data"))
    sides, labels = ("Train", "Val", "Test"), ("COVID-19", "Non-COVID", "Normal")
    names = {"COVID-19": "covid_{}.png", "Non-COVID": "non_COVID ({}).png", "Normal": "Normal ({}).png"}
    for index in range(count):
        side, label = sides[index // 3 % 3], labels[index % 3]
        name = names[label].format(index)
        image, mask = chest(index, size)
        files = {"images": image, "lung masks": mask}
        for kind, picture in files.items():
            _write(lungs / side / label / kind / name, _png(Image.fromarray(picture)))
        if index % 4 == 0:
            spot = mask.copy()
            spot[: size // 2] = 0
            for kind, picture in (files | {"infection masks": spot if label == "COVID-19" else spot * 0}).items():
                _write(infections / side / label / kind / name, _png(Image.fromarray(picture)))
    _write(top / "README.txt", b"COVID-QU-Ex Dataset")
    return top


def run_lengths(column: str, rows: Sequence[tuple[str, float, Pixels, Pixels, Pixels]]) -> bytes:
    """A table of CheXmask. Its landmarks are a printed array, with line breaks in the cell."""
    lines = [f"{column},Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,Width"]
    for name, quality, *organs in rows:
        height, width = organs[0].shape
        runs = ",".join(map(_runs, organs))
        lines.append(f'{name},{quality},{quality + 0.05:.2f},"[[ 1 22]\n [31  4]]",{runs},{height},{width}')
    return ("\n".join(lines) + "\n").encode()


def _runs(mask: Pixels) -> str:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel() > 0, [0]]).astype(np.int8)))
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))


def _shenzhen(top: Path, masks: Path, count: int, size: int) -> None:
    bare = set(SHENZHEN_BARE)
    for index, image_id in enumerate(some(SHENZHEN, count)):
        image, mask = chest(index, size)
        height = size * 2919 // 3000
        # Their PNGs have a palette, of greys.
        _write(top / f"CXR_png/{image_id}.png", _png(Image.fromarray(image[:height]).convert("P")))
        if image_id not in bare:
            _write(masks / f"{image_id}_mask.png", _png(Image.fromarray(mask[:height])))
        finding = "normal" if image_id.endswith("_0") else "bilateral PTB"
        reading = ODD_READINGS.get(image_id, f"{('male', 'female')[index % 2]} {20 + index % 60}yrs\n{finding}")
        _write(top / f"ClinicalReadings/{image_id}.txt", f"{reading}\n".encode())


def _montgomery_reading(index: int, image_id: str) -> bytes:
    finding = "normal" if image_id.endswith("_0") else "cavitary lesion in the right upper lobe; active TB"
    return f"Patient's Sex: {'FM'[index % 2]} \nPatient's Age: {20 + index % 60:03d}Y\n{finding}\n".encode()


def chest(index: int, size: int) -> tuple[Pixels, Pixels]:
    """An image like no other, and its mask of 0 and 255."""
    image, mask = _drawing(index % _DRAWINGS, size)
    image = image.copy()
    image[-1, :4] = list(index.to_bytes(4, "big"))
    image[0, :4] = list(index.to_bytes(4, "big"))
    return image, mask


@lru_cache(maxsize=64)
def _drawing(index: int, size: int) -> tuple[Pixels, Pixels]:
    image, mask = draw(index, seed=0, size=max(size, 64))
    # Less than what the phantom draws is a corner of it in another scale.
    step = max(1, 64 // size)
    return image[::step, ::step], mask[::step, ::step] * np.uint8(255)


def _sides(mask: Pixels) -> tuple[Pixels, Pixels]:
    """The lungs at the left and at the right of the image, which are the patient's right and left."""
    left, right = mask.copy(), mask.copy()
    left[:, mask.shape[1] // 2 :] = 0
    right[:, : mask.shape[1] // 2] = 0
    return left, right


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _gif(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "GIF")
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
