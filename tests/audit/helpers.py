"""Images, pictures and audits that the tests of the audit share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg_ray.audit import outliers
from lungseg_ray.audit.duplicates import find_duplicates
from lungseg_ray.audit.facts import ImageFacts, LabelFacts
from lungseg_ray.audit.result import Audit, write_table
from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.record import MaskSource, Record
from lungseg_ray.storage import locate

LUNG = LabelFacts(share=0.3, parts=2, specks=0, ratio=0.9, touches=(), left=0.5, row=0.5, column=0.5)


def make_facts(name: str, **change: Any) -> ImageFacts:
    """An image that nothing is wrong with; its hash is far from that of any other name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    plain: dict[str, Any] = {
        "image_id": name,
        "patient_id": f"patient of {name}",
        "place": f"/data/{name}.png",
        "format": "png",
        "groups": {},
        "height": 100,
        "width": 120,
        "bits": 8,
        "spacing": None,
        "mean": 0.5,
        "std": 0.2,
        "low": 0.0,
        "high": 0.9,
        "brightest": 1.0,
        "black": 0.01,
        "white": 0.0,
        "phash": digest,
        "image_sha256": digest,
        "mask_sha256": digest[::-1],
        "labels": {"lung": LUNG},
        "split": "train",
    }
    return ImageFacts(**{**plain, **change})


def make_audit(images: list[ImageFacts], **change: Any) -> Audit:
    plain: dict[str, Any] = {
        "corpus": CorpusSettings(root="somewhere"),
        "longer_side": 64,
        "layout": "pairs",
        "records": {
            one.image_id: Record(one.image_id, one.place, (MaskSource("mask.png"),), one.patient_id) for one in images
        },
        "images": images,
        "set_aside": [],
        "ignored": 0,
        "split_conflicts": {},
        "unsplit_reason": "",
        "duplicates": find_duplicates(images),
        "outliers": outliers.find_outliers(images, ["lung"]),
    }
    return Audit(**{**plain, **change})


def three_splits(count: int = 4, **change: Any) -> list[ImageFacts]:
    return [
        make_facts(f"{split}-{number}", split=split, **change)
        for split in ("train", "val", "test")
        for number in range(count)
    ]


def table_of(audit: Audit, folder: Path) -> str:
    place = locate(str(folder)) / "audit.csv"
    write_table(audit, place)
    return place.read_text()


def altered(image: NDArray[np.uint8], how: str) -> NDArray[np.uint8]:
    if how == "jpeg":
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)
    if how == "half":
        return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    if how == "gamma":
        return np.asarray(255 * (image / 255) ** 0.7, np.uint8)
    return np.ascontiguousarray(image[:, ::-1])


def opened(file: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), np.uint8)
